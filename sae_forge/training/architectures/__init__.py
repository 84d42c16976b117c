"""How latents compete while an SAE is trained: a file an architecture, and a table."""
