"""A model that is asked which latents answers hang on: what the selection method ``attribution`` is handed."""
