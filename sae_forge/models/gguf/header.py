"""What a GGUF file says before its weights: metadata and where each tensor lies, with every length checked.

Layout: ``GGUF``, version u32, tensor and metadata counts u64; then keys with typed values, then a name, shape, type and
offset a tensor, then, aligned, the tensors. https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sae_forge.errors import UnsupportedModelError

_SCALARS = {0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8", 12: "<f8"}
_STRING, _ARRAY = 8, 9
_MAX_DIMENSIONS = 4
ARCHITECTURE = "general.architecture"


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
        return str(self.metadata.get(ARCHITECTURE, ""))

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
    with _reading(path) as reader:
        tensor_count, key_count = reader.counts()
        metadata = {reader.text(): reader.value() for _ in range(key_count)}
        described = []
        for _ in range(tensor_count):
            name, dimensions = reader.text(), reader.number("<I")
            if dimensions > _MAX_DIMENSIONS:
                raise UnsupportedModelError(f"{path} is damaged: tensor {name[:60]!r} has {dimensions} dimensions")
            shape = tuple(reader.number("<Q") for _ in range(dimensions))[::-1]
            described.append((name, shape, reader.number("<I"), reader.number("<Q")))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise UnsupportedModelError(f"{path} is damaged: it aligns its tensors to {str(alignment)[:40]}")
    begin = -(-reader.at // alignment) * alignment
    return Header(path, metadata, {name: TensorInfo(shape, kind, begin + to) for name, shape, kind, to in described})


def architecture_in(path: Path) -> str:
    """What kind of model a file says it holds; what stands before that is passed over, and nothing after it is read.

    Raises:
        UnsupportedModelError: it is no GGUF file, or is cut short.
    """
    with _reading(path) as reader:
        _, key_count = reader.counts()
        for _ in range(key_count):
            if reader.text() == ARCHITECTURE:
                return str(reader.value())
            reader.pass_over(reader.number("<I"))
    return ""


@contextmanager
def _reading(path: Path) -> Iterator["_Reader"]:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            yield _Reader(path, content)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise UnsupportedModelError(f"{path} cannot be read as GGUF: {error}") from error


class _Reader:
    """Reads one value after the other, none beyond the end."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.at = path, content, 0

    def counts(self) -> tuple[int, int]:
        """How many tensors and keys there are, once it is known to be a file that can be read."""
        if self.take(4) != b"GGUF":
            raise UnsupportedModelError(f"{self.path} is no GGUF file: it does not begin with GGUF")
        if (version := self.number("<I")) not in (2, 3):
            raise UnsupportedModelError(
                f"{self.path} is GGUF of version {version}; versions 2 and 3, little-endian, can be read"
            )
        return self.number("<Q"), self.number("<Q")

    def skip(self, count: int) -> None:
        if count > (size := len(self.content)) - self.at:
            raise UnsupportedModelError(f"{self.path} is cut short: its header goes on after its {size:,} bytes")
        self.at += count

    def take(self, count: int) -> bytes:
        self.skip(count)
        return self.content[self.at - count : self.at]

    def number(self, kind: str) -> int:
        return struct.unpack(kind, self.take(struct.calcsize(kind)))[0]

    def text(self) -> str:
        return self.take(self.number("<Q")).decode(errors="replace")

    def value(self) -> Any:
        kind = self.number("<I")
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            dtype = self.scalar(kind)
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        inner, count = self.number("<I"), self.number("<Q")
        if inner == _STRING:
            return [self.text() for _ in range(count)]
        dtype = self.scalar(inner)
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def pass_over(self, kind: int) -> None:
        """Go to where a value of that type ends, keeping nothing of it."""
        if kind == _STRING:
            self.skip(self.number("<Q"))
        elif kind == _ARRAY:
            inner, count = self.number("<I"), self.number("<Q")
            if inner == _STRING:
                for _ in range(count):
                    self.skip(self.number("<Q"))
            else:
                self.skip(count * self.scalar(inner).itemsize)
        else:
            self.skip(self.scalar(kind).itemsize)

    def scalar(self, kind: int) -> np.dtype:
        if kind not in _SCALARS:
            raise UnsupportedModelError(
                f"{self.path} is damaged: its metadata holds a value of type {kind}, which GGUF has not"
            )
        return np.dtype(_SCALARS[kind])
