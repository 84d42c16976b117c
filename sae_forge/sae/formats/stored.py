"""Tensors as they lie in a file, read piece by piece: nothing is held twice, and what is not asked for is not read.

Three kinds of file: safetensors, an ``npz`` whose arrays are not compressed, and a pickle, which a limited child
process turns into safetensors first (``formats.pickled``). Whatever precision is stored, fp32 comes out.
"""

import math
import stat
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import torch
from numpy.lib import format as npy
from torch import Tensor

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats.pickled import as_safetensors
from sae_forge.store.tensors import read_header

PICKLES = (".pt", ".pth")
AT_ONCE = 2**23
"""Bytes that are read before they are put where they belong."""
_FEW = 2**20
"""The same where only a little of them is kept."""
_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, OverflowError, NotImplementedError, RuntimeError,
    struct.error, zipfile.BadZipFile, tokenize.TokenError,
)  # fmt: skip


@runtime_checkable
class Stored(Protocol):
    """The tensors of one open file."""

    @property
    def path(self) -> Path:
        """The file, for messages."""
        ...

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every tensor's shape."""
        ...

    def columnwise(self, name: str) -> bool:
        """Whether a matrix lies column after column, as Fortran has it."""
        ...

    def elements(self, name: str, first: int, count: int) -> Tensor:
        """Some numbers of a tensor in the order in which they lie, flat, in the precision they are stored in."""
        ...


@contextmanager
def opened(path: Path, *, allow_pickle: bool, what: str) -> Iterator[Stored]:
    """The tensors of a weights file; nothing but its header is read yet.

    Args:
        what: What the file should be ("the weights of a sparsify SAE"), for messages.

    Raises:
        CheckpointError: missing, damaged, of another kind, or a pickle that was not allowed; also from the block, for
            what turns out unreadable only then.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise CheckpointError(f"{path} is not a regular file, so it cannot be {what}")
        if path.suffix in PICKLES:
            with as_safetensors(path, allowed=allow_pickle) as converted, converted.open("rb") as file:
                yield _safetensors(converted, file, path, what)
        elif path.suffix == ".npz":
            with path.open("rb") as file, zipfile.ZipFile(file) as archive:
                yield _npz(archive, file, path)
        else:
            with path.open("rb") as file:
                yield _safetensors(path, file, path, what)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; it should be {what}") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is not {what}: {' '.join(str(error).split())[:200]}") from error


# ---- a tensor or a part of it, in fp32 ----------------------------------------------------------


def vector(stored: Stored, name: str) -> Tensor:
    """A tensor of one axis or none, in fp32.

    Raises:
        CheckpointError: a number is not finite.
    """
    shape = stored.shapes[name]
    return _floats(stored, name, stored.elements(name, 0, math.prod(shape))).reshape(shape)


def number(stored: Stored, name: str) -> int:
    """A whole number that is kept as a tensor."""
    if math.prod(stored.shapes[name]) != 1:
        raise CheckpointError(f"{stored.path}: {name} should be one number, and is {list(stored.shapes[name])[:4]}")
    return int(stored.elements(name, 0, 1))


def matrix(stored: Stored, name: str, *, turned: bool) -> Tensor:
    """A matrix in fp32, row after row, transposed if ``turned``; beside it only ``AT_ONCE`` bytes are held.

    Raises:
        CheckpointError: a number is not finite.
    """
    rows, columns = stored.shapes[name]
    if stored.columnwise(name):
        rows, columns, turned = columns, rows, not turned
    values = torch.empty((columns, rows) if turned else (rows, columns))
    at_once = max(1, AT_ONCE // (4 * columns))
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        piece = stored.elements(name, first * columns, count * columns).view(count, columns)
        place = values[:, first : first + count].T if turned else values[first : first + count]
        place.copy_(_floats(stored, name, piece))
    return values


def lines(stored: Stored, name: str, wanted: Sequence[int], *, turned: bool) -> Tensor:
    """Some rows of a matrix (of its transpose, if ``turned``), in fp32 and in the order asked for.

    Where they lie row after row only these are read; where they lie across, every row is read and little of it kept.

    Raises:
        CheckpointError: a number among them is not finite.
    """
    rows, columns = stored.shapes[name]
    if stored.columnwise(name):
        rows, columns, turned = columns, rows, not turned
    if not wanted:
        return torch.empty(0, rows if turned else columns)
    if not turned:
        return torch.stack([_floats(stored, name, stored.elements(name, row * columns, columns)) for row in wanted])
    values, at_once, places = torch.empty(len(wanted), rows), max(1, _FEW // (4 * columns)), torch.tensor(wanted)
    for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        piece = stored.elements(name, first * columns, count * columns).view(count, columns)
        values[:, first : first + count] = _floats(stored, name, piece[:, places]).T
    return values


def _floats(stored: Stored, name: str, piece: Tensor) -> Tensor:
    if not piece.is_floating_point():
        raise CheckpointError(f"{stored.path}: {name} holds {piece.dtype}, not floats")
    values = piece.float()
    if not bool(torch.isfinite(values).all()):
        raise CheckpointError(f"{stored.path} is damaged: {name} holds numbers that are not finite")
    return values


# ---- safetensors --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Safetensors:
    path: Path
    file: BinaryIO
    dtypes: Mapping[str, torch.dtype]
    starts: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    def columnwise(self, name: str) -> bool:
        del name
        return False

    def elements(self, name: str, first: int, count: int) -> Tensor:
        dtype = self.dtypes[name]
        return _read(self.file, self.starts[name] + first * dtype.itemsize, count, dtype)


def _safetensors(path: Path, file: BinaryIO, shown: Path, what: str) -> Stored:
    layout, _ = read_header(path, kind=CheckpointError, what=what, max_tensors=64)
    return _Safetensors(
        shown,
        file,
        {name: dtype for name, (dtype, *_) in layout.items()},
        {name: start for name, (_, _, start, _) in layout.items()},
        {name: shape for name, (_, shape, _, _) in layout.items()},
    )


def _read(file: BinaryIO, start: int, count: int, dtype: torch.dtype) -> Tensor:
    buffer = torch.empty(count * dtype.itemsize, dtype=torch.uint8)
    file.seek(start)
    if file.readinto(buffer.numpy().data) != len(buffer):  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError("it ends before its tensors do")
    return buffer.view(dtype)


# ---- npz ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Array:
    shape: tuple[int, ...]
    columnwise: bool
    dtype: torch.dtype
    start: int
    """Of its numbers in the file."""
    crc: int
    """Of the whole member."""
    head: int
    """Crc of what stands before the numbers."""


@dataclass(frozen=True)
class _Npz:
    path: Path
    file: BinaryIO
    arrays: Mapping[str, _Array]
    crcs: dict[str, tuple[int, int]] = field(default_factory=dict)
    """How far each array was read without a gap, in bytes, and the crc up to there."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: array.shape for name, array in self.arrays.items()}

    def columnwise(self, name: str) -> bool:
        return self.arrays[name].columnwise

    def elements(self, name: str, first: int, count: int) -> Tensor:
        array = self.arrays[name]
        size = array.dtype.itemsize
        values = _read(self.file, array.start + first * size, count, array.dtype)
        read, crc = self.crcs.get(name, (0, array.head))
        if read == first * size:
            read, crc = read + count * size, zlib.crc32(values.view(torch.uint8).numpy().data, crc)
            self.crcs[name] = (read, crc)
            if read == math.prod(array.shape) * size and crc != array.crc:
                raise ValueError(f"{name} is damaged: its CRC is not the one in the archive")
        return values


_NPY = {"<f2": torch.float16, "<f4": torch.float32, "<f8": torch.float64}


def _npz(archive: zipfile.ZipFile, file: BinaryIO, path: Path) -> Stored:
    size, entries = path.stat().st_size, archive.infolist()
    if len({entry.filename for entry in entries}) < len(entries) or len(entries) > 64:
        raise ValueError(f"it names an array twice, or more than 64: {len(entries)} in all")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed; write it with numpy.savez, which does not compress")
    if (declared := sum(entry.file_size for entry in entries)) > size:
        raise ValueError(f"it claims {declared} bytes of arrays in a file of {size}")
    return _Npz(path, file, {entry.filename.removesuffix(".npy"): _array(file, entry, size) for entry in entries})


def _array(file: BinaryIO, entry: zipfile.ZipInfo, size: int) -> _Array:
    """Where an array's numbers lie, refused unless it is of floats and as long as its own header says."""
    file.seek(entry.header_offset)
    # a member: 30 bytes that end with the lengths of name and extra field, then these two, then its content
    local = struct.unpack("<4s22xHH", file.read(30))
    begin = entry.header_offset + 30 + local[1] + local[2]
    if local[0] != b"PK\x03\x04" or entry.flag_bits & 1 or begin + entry.file_size > size:
        raise ValueError(f"{entry.filename[:40]} does not lie where the archive says, or is encrypted")
    file.seek(begin)
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{entry.filename[:40]} is in version {version} of the npy format")
    read_shape = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, columnwise, dtype = read_shape(file)
    start, name = file.tell(), entry.filename.removesuffix(".npy")
    if (stored := _NPY.get(dtype.str)) is None:
        raise ValueError(f"{name[:40]} holds {dtype}, not floats")
    if start - begin + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{name} claims the shape {list(shape)[:8]}, which is not what {entry.file_size} bytes hold")
    file.seek(begin)
    head = zlib.crc32(file.read(start - begin))
    return _Array(tuple(shape), columnwise and len(shape) == 2, stored, start, entry.CRC, head)
