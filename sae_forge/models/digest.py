"""What a model's weights are, said by their numbers: the same for every folder, file layout and name they stand under.

Of each tensor its shape and a sample of its numbers count, and within a layer its name from the layer's number on.
Numbers count as they are in bfloat16, so that a copy in bf16 of fp32 or fp16 weights is the same model, and one in fp32
of bf16 too; an fp16 copy of weights that were made in fp32 is rounded twice and another. Small tensors count whole. Of
large ones 1,021 stretches of 256 numbers do: who retrains, merges or rounds a matrix moves some of those, but a single
changed row of it may be missed.
"""

import json
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from sae_forge.store import files

MARK = "tensors-1:"
"""What a digest begins with; before 0.3 weights were known by a commit or by a hash of their files."""
INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_STRETCHES, _LENGTH = 1021, 256
"""A prime number of stretches, so that they begin in ever other columns."""
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
"""Bytes of a number; 1 where nothing is said."""

Entry = tuple[str, list[int], str]
"""Name from the layer on, shape, hash of the sampled numbers."""


def digest_of_folder(folder: Path, names: Collection[str]) -> str | None:
    """The digest of the safetensors files that transformers would load from a folder; None where there are none.

    Args:
        names: Of the loaded model's tensors; what a file holds beside them, as masks that older versions saved, does
            not count.
    """
    index = folder / INDEX
    if (folder / WHOLE).is_file():
        parts = [folder / WHOLE]
    elif index.is_file():
        parts = [folder / name for name in sorted(set(json.loads(index.read_bytes())["weight_map"].values()))]
    else:
        parts = sorted(folder.glob("*.safetensors"))
    known = {_place(name) for name in names}
    modules = {name[:at] for name in known for at, mark in enumerate(name) if mark == "."}

    def counts(name: str) -> bool:
        return name in known or name.rpartition(".")[0] not in modules

    return _digest(entry for part in parts for entry in _entries(part) if counts(entry[0])) if parts else None


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """The digest of weights in memory, for those that did not come from safetensors files."""
    return _digest((_place(name), list(tensor.shape), _hash(tensor)) for name, tensor in tensors.items())


def _digest(entries: Iterable[Entry]) -> str:
    """What is in no layer counts without its name and once, since files may or may not repeat tied embeddings."""
    layers, others = [], []
    for place, shape, numbers in sorted(entries):
        if place[:1].isdigit():
            layers.append([place, shape, numbers])
        elif [shape, numbers] not in others:
            others.append([shape, numbers])
    return MARK + files.digest([layers, sorted(others)])[:40]


def _place(name: str) -> str:
    """``0.mlp.up_proj.weight`` of ``model.layers.0.mlp.up_proj.weight``; of what is in no layer the last two parts."""
    parts = name.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdigit()), max(0, len(parts) - 2))
    return ".".join(parts[first:])


def _entries(path: Path) -> Iterator[Entry]:
    """Of every tensor in a safetensors file, which transformers has read already."""
    raw = np.memmap(path, np.uint8, mode="c")
    begin = 8 + struct.unpack("<Q", raw[:8].tobytes())[0]
    for name, said in json.loads(raw[8:begin].tobytes()).items():
        if name == "__metadata__":
            continue
        first, last = said["data_offsets"]
        content, dtype = torch.from_numpy(raw[begin + first : begin + last]), said["dtype"]
        sample = _sample(content, _SIZES.get(dtype, 1))
        yield _place(name), said["shape"], _hash_numbers(sample.view(_FLOATS[dtype]) if dtype in _FLOATS else sample)


def _hash(tensor: Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    if flat.is_meta:
        return "elsewhere"
    return _hash_numbers(_sample(flat, 1).cpu())


def _sample(flat: Tensor, size: int) -> Tensor:
    """A tensor's sampled numbers, one after the other, in memory of their own.

    Args:
        size: Elements of ``flat`` that make a number: its bytes, where it holds bytes.
    """
    numbers = len(flat) // size
    if numbers <= _STRETCHES * _LENGTH:
        return flat.clone()
    step = numbers // _STRETCHES * size
    stretches = flat[: step * _STRETCHES].view(_STRETCHES, step)[:, : _LENGTH * size]
    return torch.cat([stretches.reshape(-1), flat[-_LENGTH * size :]])


def _hash_numbers(sample: Tensor) -> str:
    if sample.is_floating_point():
        sample = sample.float().to(torch.bfloat16)
    return xxhash.xxh3_128_hexdigest(sample.contiguous().view(torch.uint8).numpy().tobytes())
