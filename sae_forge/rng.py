"""Randomness as a function of (seed, purpose, index), so that resuming needs no saved generator state."""

import hashlib

import numpy as np


def generator(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """A Philox stream that is the same on every machine for the same three arguments.

    ``purpose`` keeps streams apart that share a seed and an index ("row order", "bootstrap" …).
    """
    word = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest(), "little")
    return np.random.Generator(np.random.Philox(key=[seed % 2**64, word], counter=[0, 0, 0, index]))


def torch_seed(seed: int, purpose: str, index: int = 0) -> int:
    """A 63-bit seed for ``torch.Generator().manual_seed`` drawn from the same stream."""
    return int(generator(seed, purpose, index).integers(2**63))
