"""What a model is asked; knows no edit."""
