"""Steering CSVs on disk: an intervention as a table that other tools write and read, a row a latent.

The dialect is told by the header, whose columns may stand in any order. In that of conditional clamping
``clamp_value`` is the act to exceed, ``steering_coefficient`` the value written and ``refuse_id`` the latent that
``clamp_refusal`` writes; older files lack columns, and without ``hook_action`` they add.
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from sae_forge.errors import DataError
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.steering_table import ACTIONS, Dialect, SteeringRow, SteeringTable, steering_table
from sae_forge.store import files

CONDITIONAL = (
    "latent_idx", "hook_action", "refuse_id", "clamp_value", "steering_coefficient", "sae_id", "sae_release",
    "description",
)  # fmt: skip
LM_EVAL = (
    "loader", "action", "sparse_model", "hookpoint", "feature_index", "steering_coefficient", "head_index", "sae_id",
    "description",
)  # fmt: skip
NEEDED: dict[Dialect, tuple[str, ...]] = {
    "conditional": ("latent_idx", "steering_coefficient"),
    "lm_eval": ("sparse_model", "feature_index", "steering_coefficient"),
}
MAX_BYTES = 64 * 2**20


def write_steering_csv(
    path: Path,
    intervention: Intervention | SteeringTable,
    *,
    dialect: Dialect = "conditional",
    sae_id: str = "",
    sae_release: str = "",
    hookpoint: str = "",
    descriptions: Mapping[int, str] | None = None,
) -> None:
    """Write the file whole or not at all; reading it gives the same edit, number for number.

    Args:
        intervention: What to write; of a table that was read, its own dialect and columns.
        sae_release: lm-eval's ``sparse_model``.
        hookpoint: Module the SAE reads, for lm-eval.
        descriptions: By latent.

    Raises:
        ConfigError: the dialect cannot say the intervention.
    """
    table = (
        intervention
        if isinstance(intervention, SteeringTable)
        else steering_table(
            intervention,
            dialect=dialect,
            sae_id=sae_id,
            sae_release=sae_release,
            hookpoint=hookpoint,
            descriptions=descriptions,
        )
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CONDITIONAL if table.dialect == "conditional" else LM_EVAL)
    writer.writerows(map(_conditional_cells if table.dialect == "conditional" else _lm_eval_cells, table.rows))
    files.publish_bytes(path, text.getvalue().encode())


def read_steering_csv(path: Path, *, sae_id: str | None = None, sae_release: str | None = None) -> SteeringTable:
    """The rows of a steering CSV of either dialect; ``.intervention()`` is the edit they make.

    Args:
        sae_id: The SAE the rows must be about, ``layer_7/width_16k/canonical`` for example; None skips that check.
        sae_release: The same of ``gemma-scope-2b-pt-res-canonical``.

    Raises:
        DataError: missing, empty, malformed (the line is named), or about another SAE.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is larger than {MAX_BYTES >> 20} MiB; a steering CSV has a line for each latent")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the steering CSV {path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text; save the steering CSV as UTF-8") from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    dialect = _dialect(path, reader)
    table = SteeringTable(dialect, tuple(_rows(path, reader, dialect)))
    if not table.rows:
        raise DataError(f"{path} has a header and no row; give a row for each latent")
    table.require_sae(sae_id, sae_release)
    return table


def _dialect(path: Path, reader: csv.DictReader) -> Dialect:
    try:
        header = [name.strip() for name in reader.fieldnames or ()]
    except csv.Error as error:
        raise DataError(f"{path}:1: {error}") from None
    reader.fieldnames = header
    known: dict[Dialect, tuple[str, ...]] = {"conditional": CONDITIONAL, "lm_eval": LM_EVAL}
    for dialect, columns in known.items():
        if set(NEEDED[dialect]) <= set(header) <= {*columns, ""} and len(set(header)) == len(header):
            return dialect
    raise DataError(
        f"{path}:1: the header {','.join(header)[:120]!r} is not one of a steering CSV; it is {','.join(CONDITIONAL)} "
        f"or, for lm-eval, {','.join(LM_EVAL)}"
    )


def _rows(path: Path, reader: csv.DictReader, dialect: Dialect) -> Iterator[SteeringRow]:
    read = _read_conditional if dialect == "conditional" else _read_lm_eval
    try:
        for cells in reader:
            if any(cells.get(extra) for extra in (None, "")):
                raise ValueError("it has more cells than the header")
            row = read({name: value or "" for name, value in cells.items() if name})
            if row.action not in ACTIONS[dialect]:
                raise ValueError(f"action {row.action!r} is unknown; those known are {', '.join(ACTIONS[dialect])}")
            yield row
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}:{reader.reader.line_num}: {error}") from None


def _read_conditional(cells: Mapping[str, str]) -> SteeringRow:
    action = cells.get("hook_action", "").strip() or "add"
    theta, refusal = cells.get("clamp_value", "").strip(), cells.get("refuse_id", "").strip()
    conditional = action in ("clamp_cond", "clamp_refusal")
    if action == "clamp_refusal" and not refusal:
        raise ValueError("clamp_refusal needs the latent that is written, in refuse_id")
    return SteeringRow(
        latent=_latent(cells, "latent_idx"),
        action=action,
        coefficient=_number(cells, "steering_coefficient"),
        theta=_number(cells, "clamp_value") if theta and conditional else None,
        refusal=_latent(cells, "refuse_id") if refusal and action == "clamp_refusal" else None,
        sae_id=cells.get("sae_id", ""),
        sae_release=cells.get("sae_release", ""),
        description=cells.get("description", ""),
    )


def _read_lm_eval(cells: Mapping[str, str]) -> SteeringRow:
    return SteeringRow(
        latent=_latent(cells, "feature_index"),
        action=cells.get("action", "").strip() or "add",
        coefficient=_number(cells, "steering_coefficient"),
        sae_id=cells.get("sae_id", ""),
        sae_release=cells["sparse_model"],
        description=cells.get("description", ""),
        loader=cells.get("loader", ""),
        hookpoint=cells.get("hookpoint", ""),
        head_index=cells.get("head_index", ""),
    )


def _latent(cells: Mapping[str, str], column: str) -> int:
    number = _number(cells, column)
    if number < 0 or not number.is_integer():
        raise ValueError(f"{column} {cells[column]!r} is not a latent's index; give a whole number of 0 or more")
    return int(number)


def _number(cells: Mapping[str, str], column: str) -> float:
    try:
        number = float(cells[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column} {cells[column]!r} is not a finite number")
    return number


def _conditional_cells(row: SteeringRow) -> tuple[str, ...]:
    refusal, theta = "" if row.refusal is None else str(row.refusal), "" if row.theta is None else _text(row.theta)
    written = (str(row.latent), row.action, refusal, theta, _text(row.coefficient))
    return *written, row.sae_id, row.sae_release, row.description


def _lm_eval_cells(row: SteeringRow) -> tuple[str, ...]:
    placed = (row.loader, row.action, row.sae_release, row.hookpoint, str(row.latent), _text(row.coefficient))
    return *placed, row.head_index, row.sae_id, row.description


def _text(number: float) -> str:
    """The number as the papers' files write it, and exactly."""
    return str(int(number)) if float(number).is_integer() and abs(number) < 2**53 else repr(float(number))
