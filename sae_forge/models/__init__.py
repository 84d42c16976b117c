"""A Hugging Face decoder: families, loading, and the hooks on it."""
