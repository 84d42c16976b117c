"""What is done to a model: edits of its activations, and rivals that retrain its weights."""
