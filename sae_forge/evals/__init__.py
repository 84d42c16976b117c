"""The room where a model is measured outside and inside an edit."""
