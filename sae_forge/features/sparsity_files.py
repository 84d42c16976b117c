"""SAEBench's frequencies on disk, ``feature_sparsity_forget.txt`` and ``_retain.txt``: a line of six decimals a latent.

They stand under our seal, over which ``np.loadtxt`` passes, with which SAEBench reads them; its own have none. What is
rounded there stays so: a latent that fires on fewer than one token in two million counts as silent, and one at
0.0099999 is not below 0.01 any more.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sae_forge.errors import DataError
from sae_forge.store import files
from sae_forge.store.seal import BYTES, is_sealed, sealed

NAMES = {"forget": "feature_sparsity_forget.txt", "retain": "feature_sparsity_retain.txt"}
MAX_BYTES = 2**28


def write_sparsity(folder: Path, forget: Sequence[float], retain: Sequence[float]) -> None:
    """Both files, each whole or not at all; frequencies by latent."""
    for side, values in (("forget", forget), ("retain", retain)):
        files.publish_bytes(folder / NAMES[side], sealed("".join(f"{value:f}\n" for value in values).encode()))


def read_sparsity(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Forget and retain frequencies by latent, as SAEBench or :func:`write_sparsity` left them.

    Raises:
        DataError: a file is missing, or is not what its seal says, or a line is no frequency (it is named), or the two
            are not equally long.
    """
    forget, retain = (_read(folder / name) for name in NAMES.values())
    if len(forget) != len(retain):
        counts = f"{len(forget)} forget and {len(retain)} retain frequencies"
        raise DataError(f"{folder} holds {counts}; they are of two SAEs")
    return forget, retain


def frequent_and_rare(forget: np.ndarray, retain: np.ndarray, threshold: float, count: int) -> tuple[int, ...]:
    """The latents that SAEBench's rule takes: retain frequency below the threshold, most frequent on forget text first.

    Of equal ones the lower comes first; SAEBench's sort keeps no order among these.
    """
    score = np.where(retain >= threshold, 0.0, forget)
    order = np.argsort(-score, kind="stable")
    return tuple(int(latent) for latent in order[score[order] > 0][:count])


def _read(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB; it should have a line a latent")
        content = path.read_bytes()
        lines = content[BYTES * is_sealed(content) :].decode().splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise DataError(f"{path} is not text; it should have a number a line") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}; make it again with features") from None
    values = np.empty(len(lines))
    for number, line in enumerate(lines):
        try:
            values[number] = float(line)
        except ValueError:
            values[number] = -1.0
        if not 0 <= values[number] <= 1:
            raise DataError(f"{path} line {number + 1} is {line[:30]!r}, not a frequency between 0 and 1")
    if not lines:
        raise DataError(f"{path} is empty; it should have a line a latent")
    return values
