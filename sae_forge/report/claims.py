"""What the numbers of an eval report allow one to say, in sentences, and no more than that.

Each sentence follows from intervals: a difference whose intervals overlap is called no difference shown.
"""

from sae_forge.report.estimates import Measurement, Record, measurements, trade_offs

REVERSIBLE = (
    "The edit lives in a hook at inference time: no weight of the model is changed, and removing the hook restores "
    "everything, so nothing here is erased from the model."
)
UNMEASURED = ("No eval report is here, so nothing can be claimed about forgetting or side effects.",)

_CONTROLS = {
    "zero": (
        "Zero ablation of the same latents",
        (
            "more than the edit leaves: it is the negative scale that forgets, not the absence of these latents",
            "less than the edit leaves",
            "not distinguishable from the edit",
        ),
    ),
    "random": (
        "Random directions of the same norm",
        (
            "more than the edit leaves: the choice of directions matters, not the size of the push alone",
            "less than the edit leaves: the effect is not owed to the directions chosen",
            "not distinguishable from the edit: the effect is not owed to the directions chosen",
        ),
    ),
}
"""For each control, what it says when it leaves more than the edit, less, or when intervals overlap."""


def claims(metrics: Record, chance: float | None, measure: str = "accuracy") -> tuple[str, ...]:
    """Sentences about the first setting of the edit: forgetting, damage, and what the controls say about both.

    Args:
        chance: Accuracy of guessing, which is where forgetting ends; None leaves that sentence out.
    """
    points = {point.measurement.name: point for point in reversed(trade_offs(metrics, measure))}
    edit = points.get("scale")
    if edit is None or "baseline" not in points:
        return ("The report holds no edit beside its baseline on both sides, so it supports no claim.",)
    baseline = next(entry for entry in measurements(metrics) if entry.name == "baseline")
    said = [_forgetting(edit.forget, points["baseline"].forget, edit.measurement, chance)]
    said.append(_damage(metrics, edit.measurement, baseline, measure))
    for name, (words, verdicts) in _CONTROLS.items():
        if name in points:
            said.append(_control(words, verdicts, points[name].forget, edit.forget))
    return tuple(said)


def _forgetting(edited: Record, base: Record, edit: Measurement, chance: float | None) -> str:
    numbers = f"from {_show(base)} to {_show(edited)}"
    if edited["high"] >= base["low"]:
        return f"With {edit.label}, accuracy on what should be forgotten goes {numbers}: no forgetting is shown."
    end = ""
    if chance is not None and edited["high"] < chance:
        end = f" That is below guessing ({chance:g}): knowledge turned round, which is not knowledge forgotten."
    elif chance is not None and edited["low"] <= chance:
        end = f" Guessing gives {chance:g}, inside that interval."
    elif chance is not None:
        end = f" Guessing gives {chance:g}: some of the knowledge still shows."
    return f"With {edit.label}, accuracy on what should be forgotten falls {numbers}.{end}"


def _damage(metrics: Record, edit: Measurement, baseline: Measurement, measure: str) -> str:
    kept = [name for name, entry in metrics["domains"].items() if entry["role"] != "forget"]
    pairs = [(name, baseline.domain(name, measure), edit.domain(name, measure)) for name in kept]
    known = [(name, base, edited) for name, base, edited in pairs if base and edited]
    name, base, edited = max(known, key=lambda pair: pair[1]["value"] - pair[2]["value"])
    worst = f"the largest fall is on {name}, from {_show(base)} to {_show(edited)}"
    if edited["high"] < base["low"]:
        return f"It does damage elsewhere: of {len(known)} neighbour and retain domains, {worst}."
    return (
        f"No damage is shown elsewhere: of {len(known)} neighbour and retain domains, {worst}, intervals overlapping."
    )


def _control(words: str, verdicts: tuple[str, str, str], control: Record, edit: Record) -> str:
    above, below = control["low"] > edit["high"], control["high"] < edit["low"]
    verdict = verdicts[0] if above else verdicts[1] if below else verdicts[2]
    return f"{words}: {_show(control)} on what should be forgotten, {verdict}."


def _show(estimate: Record) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
