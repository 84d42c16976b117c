"""Edits of the running model, a file each."""
