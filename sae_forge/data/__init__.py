"""Text and activations: corpora, shards, and the shuffled stream over them."""
