"""How many times as far a row moved what is forgotten as it moved each other domain, in words."""

from sae_forge.results.report import SHIFT_RATIO, Report, Row
from sae_forge.results.words import interval


def shift_ratios(report: Report, row: Row) -> str:
    """The forget shift over that of each other domain whose own is told apart from none."""
    cells = row.change.domains if row.change is not None else {}
    told = [
        f"{interval(cells[name].estimates[SHIFT_RATIO], 1)} times that on {name}"
        for name in report.domain_names
        if name in cells and SHIFT_RATIO in cells[name].estimates
    ]
    return f"The log-prob shift on what is forgotten is {', '.join(told)}." if told else ""
