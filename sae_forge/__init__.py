"""sae_forge: from a language model to an audited unlearning result."""

__version__ = "0.1.0"
