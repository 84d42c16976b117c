"""A dictionary of directions: the TopK SAE, its losses and its files."""
