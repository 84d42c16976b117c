"""The room where shards become a selection of latents."""
