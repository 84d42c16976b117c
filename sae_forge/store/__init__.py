"""Bytes at rest: files, stores, tensors, seals and run folders, and nothing of what they mean."""
