"""Safetensors files read with suspicion and written durably; nothing here ever unpickles."""

import stat
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save_file
from torch import Tensor

from sae_forge.errors import ForgeError
from sae_forge.store import files
from sae_forge.store.remote import AnyPath, beside

DTYPES: dict[str, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Precisions by the name the command line uses."""

Layout = dict[str, tuple[torch.dtype, tuple[int, ...], int, int]]
"""For each tensor of a file: dtype, shape, first byte, byte after the last."""

_TORCH_DTYPES = {
    "BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


def publish_tensors(path: AnyPath, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors so that ``path`` is never seen half-written.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
        RemoteError: the store did not take it.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    for stale in beside(path).parent.glob(".tmp??????"):  # safetensors writes there; a killed save leaves it behind
        stale.unlink(missing_ok=True)
    with files.publish(path) as part:
        try:
            save_file(contiguous, part, dict(metadata) if metadata else None)
        except SafetensorError as error:  # its only way to say that the disk is full
            raise OSError(str(error)) from error


def read_tensors(path: Path, *, kind: type[ForgeError], what: str) -> dict[str, Tensor]:
    """Read a whole safetensors file into memory we own, or say why it is not one.

    Args:
        kind: The error to raise; its message names the file.
        what: What the file should be ("SAE weights"), for that message.
    """
    # before the library sees it: what a foreign file claims of itself must not decide how much memory is taken
    read_header(path, kind=kind, what=what, max_header=4 * 2**20, max_tensors=4096)
    try:
        return parse_tensors(path.read_bytes())
    except (SafetensorError, TypeError, NotImplementedError, ValueError, OSError) as error:
        raise kind(f"{path} is not {what}: {error}") from error


def read_header(
    path: AnyPath, *, kind: type[ForgeError], what: str, max_header: int = 64 * 1024, max_tensors: int = 16
) -> tuple[Layout, int]:
    """Parse and bound a safetensors header before any library sees the file.

    Returns:
        For each tensor its dtype, shape, and byte range in the file; and the file's exact length in bytes.
    """
    try:
        if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for ever
            raise kind(f"{path} is not a regular file, so it cannot be {what}")
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            # the header's length (u64, little-endian), the header as JSON, then the tensors' bytes without a hole
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
            if not 2 <= length <= min(max_header, size - 8):
                raise ValueError(f"its header claims {length} bytes in a file of {size}")
            header = files.parse_json(file.read(length))
        return _layout(header, 8 + length, size, max_tensors), size
    except FileNotFoundError:
        raise kind(f"{path} is missing; it should be {what}") from None
    except OSError as error:
        raise kind(f"{path} cannot be read as {what}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise kind(f"{path} is not {what}: {error}") from error


def _layout(header: object, start: int, size: int, max_tensors: int) -> Layout:
    """Check that the tensors tile the file exactly, and say where each one lies."""
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(entries) > max_tensors:
        raise ValueError(f"it names {len(entries)} tensors, more than {max_tensors}")
    layout: Layout = {}
    for name, entry in entries.items():
        try:
            stored, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            dtype = _TORCH_DTYPES.get(stored)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"its entry for tensor {name[:40]!r} is malformed") from None
        if dtype is None:
            known = ", ".join(_TORCH_DTYPES)
            raise ValueError(f"tensor {name[:40]!r} is stored as {str(stored)[:20]}; those that are read: {known}")
        # ``type``, as True is an int to isinstance; 2**63, as beyond it sizes wrap in 64 bits
        if any(type(n) is not int or not 0 <= n < 2**63 for n in (*shape, begin, end)):
            raise ValueError(f"its entry for tensor {name[:40]!r} holds a number that is no size")
        elements = 1
        for n in shape:
            elements *= n
        if end - begin != elements * dtype.itemsize:
            raise ValueError(f"tensor {name[:40]!r} claims {end - begin} bytes for shape {list(shape)[:8]}")
        layout[name] = (dtype, shape, start + begin, start + end)
    position = start
    # in the order of the file, each must begin where the one before it ended
    for _, _, begin, end in sorted(layout.values(), key=lambda entry: entry[2:]):
        if begin != position:
            raise ValueError("its tensors overlap or leave holes")
        position = end
    if position != size:
        raise ValueError(f"its tensors end at byte {position} of {size}")
    return layout
