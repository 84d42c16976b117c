"""Readers of SAEs that others released, one file a format."""
