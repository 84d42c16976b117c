"""What is done to a model on top of something else."""
