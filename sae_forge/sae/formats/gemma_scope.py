"""Gemma Scope's ``params.npz``: five arrays in a zip, read without pickle and bounded before any of them is read.

The file says nothing of model or layer; the path it was released under does (see ``sae_forge.sae.released``).
"""

import math
import stat
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib import format as npy

from sae_forge.errors import CheckpointError
from sae_forge.sae.jumprelu import JumpReLUSAE

PARAMS = "params.npz"
WHAT = "the weights of a Gemma Scope SAE"
MAX_D_IN = 2**16
MAX_D_SAE = 2**21
"""Twice the widest release."""

_AXES = {
    "W_enc": ("d_in", "d_sae"),
    "W_dec": ("d_sae", "d_in"),
    "b_enc": ("d_sae",),
    "b_dec": ("d_in",),
    "threshold": ("d_sae",),
}
_UNREADABLE = (
    OSError, EOFError, ValueError, TypeError, KeyError, SyntaxError, OverflowError, NotImplementedError, RuntimeError,
    struct.error, zipfile.BadZipFile,
)  # fmt: skip


def load_gemma_scope(path: Path) -> JumpReLUSAE:
    """The SAE in ``path``, in fp32 on the CPU, its weights asking for no gradient.

    Raises:
        CheckpointError: missing, damaged, compressed, with other arrays, shapes or dtypes, or with numbers that are
            not finite.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{path} is not a regular file, so it cannot be {WHAT}")
        with zipfile.ZipFile(path) as archive:
            shapes = {name: _declared(archive, name) for name in _members(archive, path.stat().st_size)}
            _require_shapes(shapes)
            arrays = {name: _read(archive, name) for name in _AXES}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; it should be {WHAT}") from None
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} is not {WHAT}: {' '.join(str(error).split())[:200]}") from error
    for name, array in arrays.items():
        if not bool(torch.isfinite(array).all()):
            raise CheckpointError(f"{path} is damaged: {name} holds numbers that are not finite")
    return JumpReLUSAE(
        arrays["W_enc"], arrays["b_enc"], arrays["W_dec"], arrays["b_dec"], arrays["threshold"]
    )  # fmt: skip


def _members(archive: zipfile.ZipFile, size: int) -> list[str]:
    """Names of the five arrays; what could unpack to more than the file holds is refused."""
    entries = archive.infolist()
    found = [entry.filename for entry in entries]
    if sorted(found) != sorted(f"{name}.npy" for name in _AXES):
        raise ValueError(f"expected the arrays {sorted(_AXES)}, found {sorted(found)[:8]}")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise ValueError(f"{entry.filename} is compressed; write it with numpy.savez, which does not compress")
    if (declared := sum(entry.file_size for entry in entries)) > size:
        raise ValueError(f"it claims {declared} bytes of arrays in a file of {size}")
    return list(_AXES)


def _declared(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Shape of one array as its header gives it, refused unless it is of floats and as long as it says."""
    entry = archive.getinfo(f"{name}.npy")
    with archive.open(entry) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{name} is in version {version} of the npy format")
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        start = file.tell()
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"{name} holds {dtype}, not floats")
    if start + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{name} claims the shape {list(shape)[:8]}, which is not what {entry.file_size} bytes hold")
    return shape


def _require_shapes(shapes: dict[str, tuple[int, ...]]) -> None:
    if len(shapes["W_enc"]) != 2:
        raise ValueError(f"W_enc has the shape {list(shapes['W_enc'])[:8]}, not [d_in, d_sae]")
    sizes = dict(zip(_AXES["W_enc"], shapes["W_enc"], strict=True))
    if not (1 <= sizes["d_in"] <= MAX_D_IN and 1 <= sizes["d_sae"] <= MAX_D_SAE):
        raise ValueError(f"d_in={sizes['d_in']} and d_sae={sizes['d_sae']} are beyond {MAX_D_IN} and {MAX_D_SAE}")
    for name, axes in _AXES.items():
        expected = tuple(sizes[axis] for axis in axes)
        if shapes[name] != expected:
            raise ValueError(f"expected {name} of shape {list(expected)}, found {list(shapes[name])[:8]}")


def _read(archive: zipfile.ZipFile, name: str) -> torch.Tensor:
    with archive.open(f"{name}.npy") as file:
        array = npy.read_array(file, allow_pickle=False)
        if file.read(1):
            raise ValueError(f"{name} goes on after its end")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
