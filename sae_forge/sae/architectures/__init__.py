"""Architectures of SAEs, one file each: what an encoder of that kind is folded into."""
