"""GGUF files: read with every length checked, and turned once into a folder that loads as any model."""
