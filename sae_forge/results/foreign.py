"""JSON that another tool wrote, which no seal proves: read whole, with the line where it is none."""

import json
import math
from pathlib import Path
from typing import Any

from sae_forge.errors import DataError


def read_foreign(path: Path, *, most: int, too_large: str) -> Any:
    """The value of a file of at most so many bytes.

    Args:
        too_large: What is said of a larger one, after its path: the limit, and what to give instead.

    Raises:
        DataError: it cannot be read, is larger, or no JSON; names the line.
    """
    try:
        if path.stat().st_size > most:
            raise DataError(f"{path} {too_large}")
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} line {getattr(error, 'lineno', 1)} is not JSON: {str(error)[:80]}") from error


def is_number(value: Any) -> bool:
    """Whether a value of such a file is a number that a float holds: no truth value, NaN or integer beyond 1e308."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON's integers have no end
        return False
