"""What the numbers of a report allow one to say, in sentences, read from its JSON alone.

The words are tied to intervals: something fell, rose or differs only where the interval of the paired change
excludes zero. No setting is picked out of a sweep, because the best of many on the same questions flatters itself.
"""

from collections.abc import Iterator
from typing import Any

from sae_forge.evals.metrics import CHANCE

REVERSIBLE = "This is a hook on a running model: the weights are unchanged, and removing the hook restores everything."
POINTS = 100

Json = dict[str, Any]


def claims(metrics: Json) -> list[str]:
    """Sentences on each edit, its side effects and its controls; the last says that nothing was erased."""
    base, *rows = metrics["methods"]
    edits = [row for row in rows if row["name"] == "scale"]
    lines = [line for row in edits for line in _of_edit(row, base, metrics)]
    lines += [f"{_title(row)}: {_forgetting(row, base)}" for row in rows if row["name"] == "zero"]
    if not edits:
        lines += [_control(control, base) for control in metrics["controls"]]
    if len(edits) > 1:
        lines.append(
            f"{len(edits)} settings were measured on the same items; choose among them with --half dev "
            "and report the one chosen with --half test."
        )
    return [*lines, REVERSIBLE]


def _of_edit(row: Json, base: Json, metrics: Json) -> Iterator[str]:
    yield f"{_title(row)}: {_forgetting(row, base)}"
    yield from (f"  {text}" for text in (_utility(row), _fluency(row, base)) if text)
    beside = [control for control in metrics["controls"] if control["settings"].items() >= row["settings"].items()]
    yield from (f"  {_control(control, base)}" for control in beside)
    if not beside:
        yield "  Without a random-direction control these numbers do not show that the chosen latents matter."


def _title(row: Json) -> str:
    settings = row["settings"]
    what = {"scale": f"Scale {settings.get('scale', 0):g} on", "zero": "Zero ablation of"}[row["name"]]
    return f"{what} {settings['num_features']} latents"


# ---- forgetting ---------------------------------------------------------------------------------


def _forgetting(row: Json, base: Json) -> str:
    role, before = row["roles"].get("forget"), base["roles"].get("forget")
    if role is None or before is None:
        if "forget" not in row["loss"]:
            return "nothing was asked about what is to be forgotten."
        return f"loss on forget text {_moved(row['change']['loss']['forget'])} nats per token."
    changed = row["change"]["roles"]["forget"]
    shift = f"log-prob of what should follow {_moved(changed['logprob'])} nats per token"
    if "accuracy" not in role:
        return f"forget prompts: {shift}."
    verb = _verb(changed["accuracy"])
    said = f"forget questions {verb} from {before['accuracy']['value']:.2f} to {_interval(role['accuracy'])}"
    return f"{said}, {_against_chance(role)}; {shift}."


def _against_chance(role: Json) -> str:
    distance = f"{role['chance_distance']['value']:.2f} from chance"
    if role["chance_distance"]["low"] == 0:
        return f"{distance} and not told apart from guessing"
    if role["accuracy"]["value"] < CHANCE:
        return f"{distance} and below it, so knowledge is turned round rather than gone"
    return f"{distance} and above it"


# ---- side effects -------------------------------------------------------------------------------


def _utility(row: Json) -> str:
    changed, parts = row["change"], []
    for role in ("retain", "neighbour"):
        accuracy = changed["roles"].get(role, {}).get("accuracy")
        if accuracy:
            parts.append(f"{role} questions {_moved(accuracy, POINTS)} points")
    if "retain" in changed["loss"]:
        parts.append(f"loss on retain text {_moved(changed['loss']['retain'])} nats")
    if "retain" in row["edited_share"]:
        parts.append(f"{row['edited_share']['retain']:.2%} of retain tokens are edited")
    return f"Side effects: {'; '.join(parts)}." if parts else ""


def _fluency(row: Json, base: Json) -> str:
    if not row["generation"]:
        return ""
    now, before = row["generation"]["degenerate"], base["generation"]["degenerate"]["value"]
    return f"Generated text: {before:.0%} degenerate without the edit, {_interval(now)} with it."


# ---- controls -----------------------------------------------------------------------------------


def _control(control: Json, base: Json) -> str:
    settings, seeds = control["settings"], len(control["seeds"])
    name = f"Random directions of the same norm ({settings['kind']}, {seeds} seeds)"
    forget = control["roles"].get("forget", {})
    measure = "accuracy" if "accuracy" in forget else "logprob"
    if measure not in forget:
        return f"{name} were measured on nothing that is to be forgotten."
    spread, before = forget[measure], base["roles"]["forget"][measure]["value"]
    unit = "forget questions" if measure == "accuracy" else "forget log-prob"
    said = f"{name}: {unit} from {before:.2f} to {_over_seeds(spread)}"
    if retain := control["roles"].get("retain", {}).get(measure):
        said += f", retain to {_over_seeds(retain)}"
    beyond = control.get("edit_minus_control", {}).get("forget", {}).get(measure)
    return f"{said}. {_verdict(beyond)}" if beyond else f"{said}."


def _verdict(beyond: Json) -> str:
    """Whether the edit did more than its control, by the paired difference."""
    if beyond["high"] < 0:
        return f"The edit goes further by {-beyond['value']:.2f} [{-beyond['high']:.2f}, {-beyond['low']:.2f}]."
    if beyond["low"] > 0:
        return "The control goes further than the edit, so forgetting is not shown to come from the chosen latents."
    return "The edit is not told apart from it, so forgetting is not shown to come from the chosen latents."


# ---- words --------------------------------------------------------------------------------------


def _verb(changed: Json) -> str:
    if changed["high"] < 0:
        return "fell"
    return "rose" if changed["low"] > 0 else "moved, not measurably,"


def _moved(changed: Json, times: float = 1) -> str:
    value, low, high = (changed[name] * times for name in ("value", "low", "high"))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def _over_seeds(spread: Json) -> str:
    return f"{spread['mean']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def _interval(estimate: Json) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"
