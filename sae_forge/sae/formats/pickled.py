"""Foreign pickles, only where the user allowed them: ``torch.load`` stands in this module and nowhere else.

A child process reads the file with ``weights_only``, without the environment's secrets and under limits of memory,
time and output that its size sets; what comes back is a safetensors file, bounded and checked like any other.
"""

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_forge.errors import CheckpointError

MEMORY = 2**30
"""Address space the child may add to that of its imports, beside that of four copies of the file."""
SECONDS = 60
"""It may take, and one more for each ``A_SECOND`` bytes of the file."""
A_SECOND = 2**25
MAX_TENSORS = 4096
_NESTED = ("ae", "sae_state_dict")
"""Where a training backup keeps the state dict itself."""
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "OMP_NUM_THREADS")
"""The environment of the child: nothing in it is secret."""
_RUN = "import runpy, sys; sys.path += sys.argv.pop(1).split(':'); runpy.run_module(sys.argv.pop(1), {}, '__main__')"
"""What it is started with, isolated: this process's folders of packages come last, its working folder not at all."""


@contextmanager
def as_safetensors(path: Path, *, allowed: bool) -> Iterator[Path]:
    """A safetensors file, there until the block ends, of the tensors in a state dict that ``torch.save`` wrote.

    Raises:
        CheckpointError: not allowed, not a state dict, or more than the limits hold.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing or not a plain file; it should be a state dict")
    if not allowed:
        raise CheckpointError(
            f"{path} is a pickle, a format that can run code when it is read; if you trust where it is from, give "
            "--allow_pickle to read its tensors in a limited process, or convert it to safetensors"
        )
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "tensors.safetensors"
        command = [sys.executable, "-I", "-c", _RUN, _packages(), __spec__.name, str(path.resolve()), str(out)]
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        try:
            done = subprocess.run(  # noqa: S603 (our own module, on a path given as one argument)
                command, cwd=scratch, env=environment, capture_output=True, stdin=subprocess.DEVNULL,
                timeout=_seconds(path),
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{path} was not read within {_seconds(path)} s; convert it to safetensors") from None
        if done.returncode != 0:
            told = (
                " ".join(done.stdout.decode(errors="replace").split())[:160]
                or f"reading it ended with {done.returncode}"
            )
            raise CheckpointError(f"{path} is no state dict that can be read safely: {told}")
        yield out


def _packages() -> str:
    """Folders that packages are imported from, as ``PATH`` lists folders, this package's own last."""
    own, here = Path(__file__).resolve().parents[3], Path.cwd()
    folders = [Path(each) for each in sys.path if Path(each).is_absolute() and Path(each) != here]
    return ":".join(map(str, [*folders, own]))


def _seconds(path: Path) -> int:
    return SECONDS + path.stat().st_size // A_SECOND


# ---- in the child -------------------------------------------------------------------------------


def _convert(path: Path, out: Path) -> None:
    """Write the file's tensors as safetensors, under limits that hold from before its first byte is read."""
    size = path.stat().st_size
    _limit(resource.RLIMIT_AS, _mapped() + MEMORY + 4 * size)
    _limit(resource.RLIMIT_CPU, _seconds(path))
    _limit(resource.RLIMIT_FSIZE, size + 2**20)
    state = _state(torch.load(path, map_location="cpu", weights_only=True))
    for name, tensor in state.items():
        held = tensor.untyped_storage().nbytes()
        if tensor.layout != torch.strided or tensor.nbytes > held:
            raise ValueError(f"tensor {name[:40]!r} claims {tensor.nbytes} bytes and holds {held}")
    if (claimed := sum(tensor.nbytes for tensor in state.values())) > size:
        raise ValueError(f"its tensors claim {claimed} bytes in a file of {size}")
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, out
    )


def _state(value: Any) -> dict[str, Tensor]:
    kept: dict[str, Tensor] = {}
    for name in _NESTED:
        if isinstance(value, Mapping) and isinstance(value.get(name), Mapping):
            kept, value = _arguments(value.get("args")), value[name]
    if not isinstance(value, Mapping):
        raise TypeError(f"it holds a {type(value).__name__[:40]}, not a state dict")
    tensors = {name: tensor for name, tensor in value.items() if isinstance(name, str) and isinstance(tensor, Tensor)}
    if not 1 <= len(tensors) <= MAX_TENSORS:
        raise ValueError(f"it names {len(tensors)} tensors; a state dict has 1 to {MAX_TENSORS}")
    return tensors | kept


def _arguments(args: Any) -> dict[str, Tensor]:
    """What a trainer's arguments say that its weights do not: k, and a place other than a block's output."""
    if not isinstance(args, Mapping):
        return {}
    kept = {"args.k": torch.tensor(args["k"])} if type(args.get("k")) is int else {}
    if args.get("hook_position") == "pre":
        kept["args.hook_position=pre"] = torch.tensor(1)
    return kept


def _limit(kind: int, most: int) -> None:
    hard = resource.getrlimit(kind)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def _mapped() -> int:
    """Bytes of address space this process has now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError):
        return 0


if __name__ == "__main__":
    try:
        _convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # noqa: BLE001 (whatever a foreign file brings about is its reader's one line)
        sys.stdout.write(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        sys.exit(1)
