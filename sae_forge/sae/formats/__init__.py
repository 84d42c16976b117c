"""Readers and writers for other people's SAE files."""
