"""What the numbers of a report allow one to say, in sentences, read from its JSON alone.

The words are tied to intervals: something fell, rose or differs only where the interval of the paired change
excludes zero. No setting is picked out of those measured on the same questions, because the best of many flatters
itself; what a sweep chose, it chose on other questions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sae_forge.statistics.answers import CHANCE

REVERSIBLE = "This is a hook on a running model: the weights are unchanged, and removing the hook restores everything."
RETRAINED = (
    "{names}: other weights, trained on a copy; the given model is unchanged, and what went may be learned again."
)
POINTS = 100
AT_REST = ("zero", "mean_ablate")
"""Edits that put latents to rest: controls themselves."""

Json = Mapping[str, Any]


def claims(metrics: Json) -> list[str]:
    """Sentences on what was chosen, on what comes back, then on each method, its side effects and its controls."""
    base, *rows = metrics["methods"]
    edits = [row for row in rows if row["kind"] == "hook" and row["name"] not in ("random", *AT_REST)]
    edits = [row for row in edits if "selection" not in row["settings"]]
    trained = [row for row in rows if row["kind"] == "weights"]
    lines = list(_of_sweep(metrics, base, rows)) if "sweep" in metrics else []
    lines += list(_of_edit(edits[0], base, metrics)) if edits and not lines else []
    lines += _of_all(metrics, edits)
    lines.append(REVERSIBLE)
    lines += [RETRAINED.format(names=", ".join(row["name"] for row in trained))] if trained else []
    lines += [line for row in edits[0 if "sweep" in metrics else 1 :] for line in _of_edit(row, base, metrics)]
    lines += [line for row in trained for line in _of_method(row, base)]
    lines += [f"{_title(row)}: {_forgetting(row, base)}" for row in rows if row["name"] in AT_REST]
    if len({row["name"] for row in edits}) < len(edits):
        lines.append(
            f"{len(edits)} settings were measured on the same items; choose among them with --sweep, which tunes on "
            "the dev half and reports on the test half."
        )
    return lines


def headlines(metrics: Json) -> tuple[list[str], list[str]]:
    """The claims that come first, and after a sweep those about each method by itself."""
    every = metrics["claims"]
    if "sweep" not in metrics:
        return every, []
    first = every.index(REVERSIBLE) + 1
    first += any(row["kind"] == "weights" for row in metrics["methods"])
    return every[:first], every[first:]


def _of_sweep(metrics: Json, base: Json, rows: list[Json]) -> Iterator[str]:
    """What was tuned, and which methods forget while utility holds, on the half that nothing was chosen on."""
    tuned = metrics["sweep"]["methods"]
    most = max(one["configurations"] for one in tuned.values())
    once = [name for name, one in tuned.items() if one["configurations"] == 1]
    many = f"{len(tuned)} methods, each" if len(tuned) > 1 else "1 method,"
    said = f"{many} tuned over {most} settings on the dev half and measured on the test half"
    yield f"{said} ({', '.join(once)}: nothing to tune, one setting)." if once else f"{said}."
    chosen = {name: one["chosen"]["settings"] for name, one in tuned.items()}
    measured = [row for row in rows if row["settings"] == chosen.get(row["name"]) and row["name"] not in AT_REST]
    kept = [row for row in measured if _keeps(row) and row["change"]["roles"]["forget"]["accuracy"]["high"] < 0]
    if not kept:
        yield "None of them forgets measurably and keeps the retain questions within one point, by the values measured."
    else:
        yield (
            "Forget questions under those that keep the retain questions within one point, by the values measured, "
            f"nearest to guessing ({CHANCE:g}) first; the order itself was seen on the test half:"
        )
    for row in sorted(kept, key=_standing):
        accuracy = row["roles"]["forget"]["accuracy"]
        turned = ", turned round" if accuracy["high"] < CHANCE else ""
        beside = row["change"]["roles"].get("neighbour", {}).get("accuracy")
        also = f"; neighbours {_moved(beside, POINTS)} points" if beside else ""
        before = base["roles"]["forget"]["accuracy"]["value"]
        yield f"  {row['name']}: {before:.2f} to {_interval(accuracy)}{turned}{also}"
    for end in ("roughest", "gentlest"):
        if names := [name for name, one in tuned.items() if one["end"] == end]:
            yield f"Chosen at the {end} strength that was tried, so there may be better beyond: {', '.join(names)}."


def _keeps(row: Json) -> bool:
    """Whether no more than a point of retain accuracy is lost."""
    return row["change"]["roles"]["retain"]["accuracy"]["value"] >= -1 / POINTS


def _standing(row: Json) -> tuple[float, float]:
    """Nearest to chance first, then what the neighbours lose."""
    beside = row["change"]["roles"].get("neighbour", {}).get("accuracy")
    return abs(row["roles"]["forget"]["accuracy"]["value"] - CHANCE), -beside["value"] if beside else 0.0


def _of_all(metrics: Json, edits: list[Json]) -> Iterator[str]:
    """What holds for every edit and is not how the papers have it."""
    how = metrics.get("protocol", {})
    if len({row["name"] for row in edits}) > 1:
        yield (
            f"All edits of latents use one selection, {how['selection']}; a paper's own is made with features --method "
            "and compared with --compare_selections."
        )
    if how.get("gate", "own") != "own":
        yield f"Every edit is in force only where the gate {how['gate']} is open ({how['gate_policy']})."
    if not how.get("keep_error", True):
        yield "The SAE's error is dropped (--no_keep_error): part of every change comes from that alone."


def _of_edit(row: Json, base: Json, metrics: Json) -> Iterator[str]:
    yield from _of_method(row, base)
    asked = {"of": row["name"], **row["settings"]}
    beside = [control for control in metrics["controls"] if control["settings"].items() >= asked.items()]
    yield from (f"  {_control(control, row, base)}" for control in beside)
    if not beside:
        yield "  Without a random-direction control these numbers do not show that the chosen latents matter."


def _of_method(row: Json, base: Json) -> Iterator[str]:
    yield f"{_title(row)}: {_forgetting(row, base)}"
    if row["kind"] == "hook" and row["roles"].get("forget", {}).get("edited_share") == 0:
        yield "  No token of the forget questions was edited."
    yield from (f"  {text}" for text in (_utility(row), _recall(row, base), _fluency(row, base)) if text)


def _title(row: Json) -> str:
    settings, name = row["settings"], row["name"]
    count = settings.get("num_features", settings.get("given"))
    latents = f"{count} latent{'s' if count > 1 else ''}" if count else ""
    match name:
        case "scale" if "scale" in settings:
            return f"Scale {settings['scale']:g} on {latents}"
        case "zero":
            return f"Zero ablation of {latents}"
    rest = [f"{key} {value:g}" for key, value in settings.items() if key in SHOWN]
    rest += [{True: "gated", False: "on every token"}[settings["gated"]]] if "gated" in settings else []
    return ", ".join(filter(None, (f"{name} of {latents}" if latents else name, *rest)))


SHOWN = ("value", "strength", "budget", "coefficient", "lr")
"""The settings that say how rough a method was."""


# ---- forgetting ---------------------------------------------------------------------------------


def _forgetting(row: Json, base: Json) -> str:
    role, before = row["roles"].get("forget"), base["roles"].get("forget")
    if role is None or before is None:
        if "forget" in row["loss"]:
            return f"loss on forget text {_moved(row['change']['loss']['forget'])} nats per token."
        asked = "nothing but MUSE's measures" if "muse" in row else "nothing"
        return f"{asked} was asked about what is to be forgotten."
    changed = row["change"]["roles"]["forget"]
    shift = f"log-prob of what should follow {_moved(changed['logprob'])} nats per token"
    if "accuracy" not in role:
        return f"forget prompts: {shift}."
    verb = _verb(changed["accuracy"])
    said = f"forget questions {verb} from {before['accuracy']['value']:.2f} to {_interval(role['accuracy'])}"
    return f"{said}, {_against_chance(role, verb == FELL)}; {shift}."


def _against_chance(role: Json, fell: bool) -> str:
    distance = f"{role['chance_distance']['value']:.2f} from chance"
    if role["chance_distance"]["low"] == 0:
        return f"{distance} and not told apart from guessing"
    if role["accuracy"]["value"] < CHANCE and fell:
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
    if row["kind"] == "hook" and "retain" in row["edited_share"]:
        parts.append(f"{row['edited_share']['retain']:.2%} of retain tokens are edited")
    return f"Side effects: {'; '.join(parts)}." if parts else ""


RECALLED = {
    "verbmem_forget": "verbatim recall of forget text",
    "knowmem_forget": "answers on forget text",
    "knowmem_retain": "answers on what is kept",
}
"""What MUSE's ROUGE-L is of, for a reader."""


def _recall(row: Json, base: Json) -> str:
    """MUSE's measures before and after."""
    found, parts = row.get("muse", {}), []
    for name, words in RECALLED.items():
        if name in found:
            verb, before = _verb(row["change"]["muse"][name]), base["muse"][name]["value"]
            parts.append(f"{words} {verb} from {before:.1f} to {_tenths(found[name])}")
    if "privleak" in found:
        before = base["muse"]["privleak"]["value"]
        parts.append(
            f"PrivLeak is {_tenths(found['privleak'])} and was {before:.1f}, where 0 is a model retrained without the "
            "forget text"
        )
    return f"MUSE, x 100: {'; '.join(parts)}." if parts else ""


def _fluency(row: Json, base: Json) -> str:
    if not row["generation"]:
        return ""
    now, before = row["generation"]["degenerate"], base["generation"]["degenerate"]["value"]
    return f"Generated text: {before:.0%} degenerate without the edit, {_interval(now)} with it."


# ---- controls -----------------------------------------------------------------------------------

KINDS = {
    "latents": "Other latents' directions at the same norm",
    "isotropic": "Random directions of the same norm",
    "places": "The same pushes on other tokens",
    "direction": "One random direction at the same norm",
}
"""What each kind of random control is, for a reader."""


def _control(control: Json, row: Json, base: Json) -> str:
    settings, seeds = control["settings"], len(control["seeds"])
    name = f"{KINDS[settings['kind']]} ({settings['kind']}, {seeds} seeds)"
    forget = control["roles"].get("forget", {})
    measure = "accuracy" if "accuracy" in forget else "logprob"
    if measure not in forget:
        if leak := control.get("muse", {}).get("privleak"):
            before = base["muse"]["privleak"]["value"]
            return f"{name}: PrivLeak from {before:.1f} to {leak['mean']:.1f} ({leak['min']:.1f} to {leak['max']:.1f})."
        return f"{name} were measured on nothing that is to be forgotten."
    spread, before = forget[measure], base["roles"]["forget"][measure]["value"]
    unit = "forget questions" if measure == "accuracy" else "forget log-prob"
    said = f"{name}: {unit} from {before:.2f} to {_over_seeds(spread)}"
    if retain := control["roles"].get("retain", {}).get(measure):
        said += f", retain to {_over_seeds(retain)}"
    beyond = control.get("edit_minus_control", {}).get("forget", {}).get(measure)
    as_far = spread["min"] <= row["roles"]["forget"][measure]["value"]
    return f"{said}. {_verdict(beyond, as_far)}" if beyond else f"{said}."


def _verdict(beyond: Json, as_far: bool) -> str:
    """Whether the edit did more than its control, by the paired difference to the mean over seeds and by every seed.

    Args:
        as_far: One of the seeds goes as far as the edit.
    """
    further = f"further by {-beyond['value']:.2f} [{-beyond['high']:.2f}, {-beyond['low']:.2f}]"
    if beyond["high"] < 0 and as_far:
        return f"The edit goes {further} than their mean, but not than every seed, so it is not told apart from chance."
    if beyond["high"] < 0:
        return f"The edit goes {further}."
    if beyond["low"] > 0:
        return "The control goes further than the edit, so forgetting is not shown to come from the chosen latents."
    return "The edit is not told apart from it, so forgetting is not shown to come from the chosen latents."


# ---- words --------------------------------------------------------------------------------------


FELL = "fell"


def _verb(changed: Json) -> str:
    if changed["high"] < 0:
        return FELL
    return "rose" if changed["low"] > 0 else "moved, not measurably,"


def _moved(changed: Json, times: float = 1) -> str:
    value, low, high = (changed[name] * times for name in ("value", "low", "high"))
    return f"{value:+.3g} [{low:+.3g}, {high:+.3g}]"


def _over_seeds(spread: Json) -> str:
    return f"{spread['mean']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def _interval(estimate: Json) -> str:
    return f"{estimate['value']:.2f} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def _tenths(estimate: Json) -> str:
    return f"{estimate['value']:.1f} [{estimate['low']:.1f}, {estimate['high']:.1f}]"
