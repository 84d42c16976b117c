"""The room where shards become an SAE."""
