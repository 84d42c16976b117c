"""Reports of version 0.1, brought to today's format: they have no words of their own, and say no task."""

from collections.abc import Mapping
from typing import Any

from sae_forge.errors import DataError

ROUGH = ("scale", "value", "strength", "budget", "coefficient", "lr")
UNSAID = ("steps", "batch_size", "refusal_latent")
AT_REST = ("zero", "mean_ablate")
CORPORA = {"words": "loss", "unit": "nats per token", "better": "down", "digits": 3}
RETRAINED = "0 is a model retrained without the forget text"
X_100 = {"unit": "x 100", "digits": 1}
TASKS: tuple[dict[str, Any], ...] = (
    {
        "name": "questions", "title": "Questions", "group": None,
        "measures": [
            {"name": "accuracy", "words": "question accuracy", "better": "up", "chance": 0.25},
            {"name": "answer_logprob", "words": "log-prob of the right option", "unit": "nats", "shown": "in the file"},
            {"name": "probability", "words": "probability of the right option", "shown": "in the file"},
        ],
    },
    {
        "name": "completions", "title": "Completions", "group": None,
        "measures": [
            {"name": "logprob", "words": "log-prob of what should follow", "unit": "nats per token", "better": "up",
             "digits": 3, "shown": "in full"},
        ],
    },
    {
        "name": "held_out", "title": "Loss on held-out text", "group": "loss",
        "measures": [{"name": "loss", **CORPORA}],
    },
    {
        "name": "prompts", "title": "Generated text", "group": "generation",
        "measures": [
            {"name": "distinct_1", "words": "distinct words", "better": "up", "shown": "in full"},
            {"name": "distinct_2", "words": "distinct word pairs", "better": "up", "shown": "in full"},
            {"name": "distinct_3", "words": "distinct word triples", "better": "up", "shown": "in full"},
            {"name": "stutter", "words": "stutters", "better": "down", "shown": "in full"},
            {"name": "degenerate", "words": "degenerate", "better": "down", "shown": "in full"},
        ],
    },
    {
        "name": "muse", "title": "MUSE", "group": "muse",
        "measures": [
            {"name": "verbmem_forget", "words": "verbatim recall of forget text", **X_100},
            {"name": "knowmem_forget", "words": "answers on forget text", **X_100},
            {"name": "knowmem_retain", "words": "answers on what is kept", "better": "up", **X_100},
            {"name": "privleak", "words": "PrivLeak", "note": RETRAINED, **X_100},
        ],
    },
)  # fmt: skip
"""The tasks of that version, as a report describes them."""


def upgraded(value: Mapping[str, Any]) -> dict[str, Any]:
    """The same report with the tasks that measured something, and with every row in words."""
    rows = value.get("methods")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise DataError("methods: it should be a list of objects")
    return {
        # before what the report holds: keys that it may lack
        "controls": [],
        "protocol": {},
        "left_out": {},
        **value,
        # and after it what is of today's form, whatever stood there
        "format": 2,
        "rough": ROUGH,
        "unsaid": UNSAID,
        # 0.1 said no task: those whose numbers some row holds
        "tasks": [task for task in TASKS if any(_measured(task, row) for row in rows)],
        "methods": [_worded(row) for row in rows],
    }


def _measured(task: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    if task["group"] is not None:
        return bool(row.get(task["group"]))
    names = {measure["name"] for measure in task["measures"]}
    domains = row.get("domains", {})
    return isinstance(domains, Mapping) and any(names & set(cell) for cell in domains.values())


def _worded(row: Mapping[str, Any]) -> dict[str, Any]:
    name, settings = row.get("name"), row.get("settings")
    if not isinstance(name, str) or not isinstance(settings, Mapping):
        raise DataError("methods: it should give each a name and its settings")
    count = settings.get("num_features", settings.get("given"))
    latents = f"{count} latent{'s' if count > 1 else ''}" if count else ""
    if name == "scale" and "scale" in settings:
        title = f"Scale {settings['scale']:g} on {latents}"
    elif name == "zero":
        title = f"Zero ablation of {latents}"
    else:  # the method, how many latents it takes, and how rough it was: ``clamp of 20 latents, value -3``
        rough = [f"{key} {value:g}" for key, value in settings.items() if key in ROUGH]
        rough += [{True: "gated", False: "on every token"}[settings["gated"]]] if "gated" in settings else []
        title = ", ".join([f"{name} of {latents}" if latents else name, *rough])
    return {**row, "title": title, **({"at_rest": True} if name in AT_REST else {})}
