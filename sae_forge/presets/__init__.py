"""One TOML a model and a paper: every setting, and the published numbers."""
