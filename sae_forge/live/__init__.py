"""A model at work, edits and all, watched token by token."""
