"""The report as types, and what its numbers allow one to say."""
