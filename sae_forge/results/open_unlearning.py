"""open-unlearning's summaries: a report's rows written as it writes them, and its own laid beside a report's."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from sae_forge.errors import DataError
from sae_forge.results.foreign import is_number, read_foreign
from sae_forge.results.report import Report, Row
from sae_forge.results.sheets import Sheet
from sae_forge.results.words import number

SUMMARIES: Mapping[str, Mapping[tuple[str, str], str]] = {
    "TOFU_SUMMARY.json": {
        ("tofu", "forget_quality"): "forget_quality",
        ("tofu", "model_utility"): "model_utility",
        ("tofu", "forget_truth_ratio"): "forget_truth_ratio",
        **{
            ("tofu", f"{side}_{ours}"): f"{called}_{theirs}"
            for side, called in (
                ("forget", "forget"),
                ("retain", "retain"),
                ("real_authors", "ra"),
                ("world_facts", "wf"),
            )
            for ours, theirs in (
                ("probability", "Q_A_Prob" if side in ("forget", "retain") else "Q_A_Prob_normalised"),
                ("rouge", "Q_A_ROUGE"),
                *((("truth_ratio", "Truth_Ratio"),) if side != "forget" else ()),
            )
        },
        ("memorisation", "extraction_strength"): "extraction_strength",
        ("memorisation", "exact_memorisation"): "exact_memorization",
        **{("memorisation", f"mia_{name}"): f"mia_{name}" for name in ("min_k", "min_k_plus_plus", "zlib", "loss")},
    },
    "MUSE_SUMMARY.json": {
        ("muse", "verbmem_forget_open_unlearning"): "forget_verbmem_ROUGE",
        ("muse", "knowmem_forget_open_unlearning"): "forget_knowmem_ROUGE",
        ("muse", "knowmem_retain_open_unlearning"): "retain_knowmem_ROUGE",
        ("muse", "privleak_open_unlearning"): "privleak",
    },
}
"""By file: heading and measure of a row here, and the key there."""
SHARES = "ROUGE"
"""Keys that hold this are in [0, 1] there, and times 100 under MUSE here."""
MAX_BYTES = 2**20


def summaries(row: Row) -> dict[str, dict[str, float]]:
    """Each file that a row fills, by its name; keys are sorted as open-unlearning sorts them."""
    contents = {}
    for file, keys in SUMMARIES.items():
        told = {
            theirs: row.groups[heading][ours].value / (100 if heading == "muse" and SHARES in theirs else 1)
            for (heading, ours), theirs in keys.items()
            if ours in row.groups.get(heading, {})
        }
        if told:
            contents[file] = dict(sorted(told.items()))
    return contents


def read_summary(path: Path) -> dict[str, float | None]:
    """What ``TOFU_SUMMARY.json`` or ``MUSE_SUMMARY.json`` says, by metric.

    Raises:
        DataError: it is missing, too large, or no object of numbers.
    """
    advice = f"is larger than {MAX_BYTES} bytes; give a *_SUMMARY.json, not a *_EVAL.json"
    said = read_foreign(path, most=MAX_BYTES, too_large=advice)
    if not isinstance(said, dict) or not said:
        raise DataError(f"{path} is no summary of open-unlearning: it should be an object of numbers by metric")
    for key, value in said.items():
        if value is not None and not is_number(value):
            raise DataError(f"{path}: {key[:60]!r} should be a number or null, not {str(value)[:40]!r}")
    return said


def beside(report: Report, paths: Sequence[Path]) -> Sheet:
    """The metrics of a report's rows and of summaries under each other; a row that lacks one has nothing there."""
    ours = [
        (row.title, {key: value for told in summaries(row).values() for key, value in told.items()})
        for row in report.rows
        if not row.is_control
    ]
    theirs = [(f"open-unlearning: {path.parent.name}", read_summary(path)) for path in paths]
    keys = [key for keys in SUMMARIES.values() for key in keys.values()]
    shown = [key for key in keys if any(told.get(key) is not None for _, told in (*ours, *theirs))]
    return Sheet(
        "beside open-unlearning",
        ("method", *shown),
        tuple((title, *_cells(told, shown)) for title, told in (*ours, *theirs)),
    )


def _cells(told: Mapping[str, float | None], shown: Sequence[str]) -> Iterator[str]:
    for key in shown:
        value = told.get(key)
        yield "" if value is None else number(float(value))
