"""The model card: what was forgotten, the numbers beside their controls, how to load it, and what it cannot promise.

Built from settings, statistics and measured numbers alone, so no corpus text can reach it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from sae_forge import builtin
from sae_forge.config.evaluate import EvalConfig
from sae_forge.hookpoint import SITES
from sae_forge.hub.plan import without_paths
from sae_forge.hub.tables import block, cell, label, number, table

TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability", "unlearning", "sae_forge")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_SHOWN_LATENTS = 10

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about."""

    repo_id: str
    inside: str
    """Folder of the SAE in the repository: its hook point."""
    cfg: Json
    """Settings of the SAE."""
    quality: Json
    """What training measured; empty when unknown."""
    selection: Json | None
    report: Json | None
    plots: tuple[str, ...]
    license: str | None
    contexts: bool
    """Whether corpus snippets are published beside the statistics."""

    @property
    def model(self) -> str:
        """The language model, by name."""
        ours = self.cfg.get("sae_forge", {}).get("provenance", {})
        name = ours.get("model") or self.cfg.get("metadata", {}).get("model_name") or "an unnamed model"
        return without_paths(str(name))

    @property
    def forgotten(self) -> str:
        """The domains, or else the corpus, whose latents were chosen."""
        if named := _roles(self.report or {}).get("forget"):
            return ", ".join(named)
        return str((self.selection or {}).get("forget_corpus", {}).get("name", ""))


def render(subject: Subject) -> str:
    """The card, front matter and text.

    Raises:
        KeyError, TypeError, AttributeError or ValueError: the selection or the report is malformed.
    """
    sections = [_about(subject), *_forgotten(subject), *_measured(subject), _loading(subject), _limits(subject)]
    return f"---\n{_front_matter(subject)}\n---\n\n" + "\n\n".join(sections) + "\n"


# ---- front matter -------------------------------------------------------------------------------


def _front_matter(subject: Subject) -> str:
    results = list(_results(subject.report)) if subject.report else []
    data = ModelCardData(
        library_name="saelens",
        base_model=subject.model if _on_hub(subject.model) else None,
        license=subject.license,
        tags=list(TAGS),
        model_name=subject.repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _on_hub(model: str) -> bool:
    """Whether the Hub may know this name; it refuses a card whose base model is no repository's name."""
    return bool(_HUB_ID.fullmatch(model)) and builtin.model_folder(model) is None and not Path(model).exists()


def _results(report: Json) -> Iterator[EvalResult]:
    roles = {name: domain["role"] for name, domain in report["domains"].items()}
    for method in report["methods"]:
        if method["name"] == "random":
            continue  # controls stand in the tables, a summary over seeds each
        for domain, measured in method["domains"].items():
            for name in ("accuracy", "logprob"):
                if measured.get(name) is not None:
                    yield EvalResult(
                        task_type="text-generation" if name == "logprob" else "multiple-choice",
                        dataset_type=domain,
                        dataset_name=f"{domain} ({roles[domain]})",
                        metric_type=name,
                        metric_name=f"{name}, {label(method)}",
                        metric_value=round(float(measured[name]["value"]), 4),
                    )


# ---- sections -----------------------------------------------------------------------------------


def _about(subject: Subject) -> str:
    cfg, topic = subject.cfg, cell(subject.forgotten)
    what = f"to make it forget **{topic}**" if topic else "to find and edit what it knows"
    size = f"{cfg['d_sae']:,} latents, {cfg['k']} kept per token, input width {cfg['d_in']:,}"
    lines = [
        f"# {subject.repo_id.partition('/')[2]}",
        f"A TopK sparse autoencoder on `{subject.inside}` of `{subject.model}`, {what}: {size}. "
        "Made with sae_forge; SAELens loads it as it is.",
    ]
    names = {"fvu": "fraction of variance unexplained", "l0": "latents firing per token"}
    names |= {"dead_share": "share of dead latents", "ce_recovered": "loss recovered when spliced in"}
    found = [
        f"{words} {subject.quality[key]:.4g}" for key, words in names.items() if subject.quality.get(key) is not None
    ]
    return "\n\n".join([*lines, *(["Measured after training: " + ", ".join(found) + "."] if found else [])])


def _forgotten(subject: Subject) -> Iterator[str]:
    if subject.selection is None:
        return
    chosen = subject.selection
    text = [
        "## What is forgotten",
        f"{len(chosen['latents'])} latents, chosen by `{chosen.get('method', 'given')}`, stand best first in "
        f"`{subject.inside}/features.json` with every statistic. Editing them is what makes the model forget"
        + (f" {cell(subject.forgotten)}." if subject.forgotten else "."),
    ]
    roles = [f"- {role}: {', '.join(map(cell, names))}" for role, names in _roles(subject.report or {}).items()]
    text += ["\n".join(roles)] if roles else []
    rows = [
        [str(latent["index"]), *(number(latent.get(key)) for key in ("score", "forget_frequency", "retain_frequency"))]
        for latent in chosen["latents"][:_SHOWN_LATENTS]
    ]
    yield "\n\n".join([*text, table(["latent", "score", "share of forget tokens", "of retain tokens"], rows)])


def _measured(subject: Subject) -> Iterator[str]:
    if subject.report is None:
        return
    report = subject.report
    domains = [name for names in _roles(report).values() for name in names]
    text = [
        "## What was measured",
        "Estimates with 95 % intervals, resampled by fact. Random directions are the control: same norm on the same "
        "tokens, other directions, as mean and range over seeds. Four options make chance 0.25; an accuracy below "
        "chance is knowledge turned round, not gone.",
    ]
    for key, title in (
        ("accuracy", "Question accuracy"),
        ("logprob", "Log-prob of what should follow, nats per token"),
    ):
        text += block(
            title, report, lambda row, key=key: {name: row["domains"].get(name, {}).get(key) for name in domains}
        )
    text += block("Loss on held-out text, nats per token", report, lambda row: row.get("loss", {}))
    text += block("Share of tokens edited", report, lambda row: row.get("edited_share", {}))
    text += block("Generated text", report, lambda row: row.get("generation", {}))
    text += block("MUSE, x 100", report, lambda row: row.get("muse", {}))
    said = [line for line in report.get("claims", []) if "restores everything" not in line]
    if said:
        text.append("\n".join(f"{' ' * (len(line) - len(line.lstrip()))}- {cell(line)}" for line in said))
    text += [f"![{path}]({path})" for path in subject.plots]
    yield "\n\n".join(text)


def _loading(subject: Subject) -> str:
    scale, count = _headline(subject.report)
    edit = f"""
lm = load_model(provenance.model)
latents = Selection.load(folder / "features.json").indices[:{count}]
edit = Intervention("scale", latents, NegativeScaling({scale:g}))
with applied(lm, sae, HookPoint.parse(provenance.hook_point), edit):
    ...  # lm.model forgets inside this block, and only here
"""
    imports = """from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.loading import load_model
"""
    whole = subject.selection is not None and subject.inside.rpartition("hook_")[2] in SITES
    return f"""## How to load it

With sae_forge:

```python
from pathlib import Path

from huggingface_hub import snapshot_download
{imports if whole else ""}from sae_forge.sae.store import load_sae

folder = Path(snapshot_download("{subject.repo_id}")) / "{subject.inside}"
sae, provenance = load_sae(folder)
{edit if whole else ""}```

With SAELens 6:

```python
from sae_lens import SAE

sae = SAE.from_pretrained("{subject.repo_id}", "{subject.inside}")
```"""


def _limits(subject: Subject) -> str:
    lines = [
        "The edit is a hook on a running model: the weights are unchanged, and removing the hook restores everything. "
        "Whoever holds the weights can do so.",
        "What is shown is what was asked above, in these words and this language; resistance to fine-tuning, "
        "paraphrase or adversarial prompts was not measured.",
        "A latent rarely stands for one thing alone: look at the retain and neighbour numbers before relying on it.",
        "Published beside the statistics: the corpus snippets on which the chosen latents fire most."
        if subject.contexts
        else "No corpus text is published here.",
    ]
    if subject.report is None:
        lines.insert(1, "No effect of editing these latents was measured before publishing.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _roles(report: Json) -> dict[str, list[str]]:
    """Domains by role; alphabetical order puts what is forgotten first."""
    found = {str(name): str(domain["role"]) for name, domain in report.get("domains", {}).items()}
    return {role: sorted(name for name in found if found[name] == role) for role in sorted(set(found.values()))}


def _headline(report: Json | None) -> tuple[float, int]:
    """Scale and number of latents of the first edit in the report, else the defaults of ``eval``."""
    for method in (report or {}).get("methods", []):
        if method["name"] == "scale" and {"scale", "num_features"} <= set(method["settings"]):
            return float(method["settings"]["scale"]), int(method["settings"]["num_features"])
    return EvalConfig.ablation_scale[0], EvalConfig.num_features[0]
