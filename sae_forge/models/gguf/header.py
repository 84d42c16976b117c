"""What a GGUF file says before its weights: metadata and where each tensor lies, with every length checked.

Layout: ``GGUF``, version u32, tensor and metadata counts u64; then keys with typed values, then a name, shape, type and
offset a tensor, then, aligned, the tensors. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_forge.errors import UnsupportedModelError

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: where its bytes begin, and how they are to be read."""

    shape: tuple[int, ...]
    """As numpy and torch have it: rows first."""
    kind: int
    """``gguf.GGMLQuantizationType``."""
    start: int
    """Byte of the file at which it begins."""


@dataclass(frozen=True)
class Header:
    """Metadata and tensors of a file, by name; no weight is read for it."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]

    @property
    def architecture(self) -> str:
        """What kind of model it says it is."""
        return str(self.metadata.get("general.architecture", ""))

    def of_model(self, key: str, default: Any = None) -> Any:
        """The value of a key that stands under the architecture's name."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def is_gguf(path: Path) -> bool:
    """Whether a file is one, by its name or its first bytes."""
    if not path.is_file():
        return False
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def read_header(path: Path) -> Header:
    """The header of a GGUF file of version 2 or 3.

    Raises:
        UnsupportedModelError: it is no such file, or is cut short.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _parsed(path, content)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UnsupportedModelError(f"{path} cannot be read as GGUF: {error}") from error


def _parsed(path: Path, content: mmap.mmap) -> Header:
    at, size = 0, len(content)

    def take(count: int) -> bytes:
        nonlocal at
        if count > size - at:
            raise UnsupportedModelError(f"{path} is cut short: its header goes on after its {size:,} bytes")
        at += count
        return content[at - count : at]

    def number(kind: str) -> int:
        return struct.unpack(kind, take(struct.calcsize(kind)))[0]

    def text() -> str:
        return take(number("<Q")).decode(errors="replace")

    if take(4) != b"GGUF":
        raise UnsupportedModelError(f"{path} is no GGUF file: it does not begin with GGUF")
    if (version := number("<I")) not in (2, 3):
        raise UnsupportedModelError(
            f"{path} is GGUF of version {version}; versions 2 and 3, little-endian, can be read"
        )
    tensor_count, key_count = number("<Q"), number("<Q")
    metadata = {}
    for _ in range(key_count):
        key = text()
        metadata[key] = _value(path, number("<I"), take, number, text)
    described = []
    for _ in range(tensor_count):
        name, dimensions = text(), number("<I")
        if dimensions > _MAX_DIMENSIONS:
            raise UnsupportedModelError(f"{path} is damaged: tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(number("<Q") for _ in range(dimensions))[::-1]
        described.append((name, shape, number("<I"), number("<Q")))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise UnsupportedModelError(f"{path} is damaged: it aligns its tensors to {str(alignment)[:40]}")
    begin = -(-at // alignment) * alignment
    return Header(path, metadata, {name: TensorInfo(shape, kind, begin + to) for name, shape, kind, to in described})


def _value(
    path: Path,
    kind: int,
    take: Callable[[int], bytes],
    number: Callable[[str], int],
    text: Callable[[], str],
) -> Any:
    if kind == _STRING:
        return text()
    if kind == _ARRAY:
        inner, count = number("<I"), number("<Q")
        if inner == _STRING:
            return [text() for _ in range(count)]
        if inner in _SCALARS:
            dtype = np.dtype(_SCALARS[inner])
            return np.frombuffer(take(count * dtype.itemsize), dtype)
    elif kind in _SCALARS:
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(take(dtype.itemsize), dtype)[0].item()
    raise UnsupportedModelError(f"{path} is damaged: its metadata holds a value of type {kind}, which GGUF has not")
