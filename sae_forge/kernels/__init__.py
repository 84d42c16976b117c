"""A few operations, each with its gradients; ``dispatch`` is the only door."""
