"""Activations on disk: shards and the shuffled stream over them; the text they are of is read in ``texts``."""
