"""How latents are selected: one file a method, and the table of them."""
