"""The model card: what was forgotten, the numbers beside their controls, how to load it, and what it cannot promise.

Built from settings, statistics and measured numbers alone, so no corpus text can reach it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from sae_forge import builtin
from sae_forge.config.evaluate import EvalConfig
from sae_forge.hookpoint import SITES
from sae_forge.methods.method import Method
from sae_forge.methods.table import METHODS
from sae_forge.results.claims import REVERSIBLE, headlines
from sae_forge.results.pooled import methods
from sae_forge.results.report import ROLES, Report
from sae_forge.results.sheets import Sheet, notes, sheets
from sae_forge.results.words import number, share
from sae_forge.show.markdown import cell, items, table, titled

if TYPE_CHECKING:  # it loads torch
    from sae_forge.features.selection import Selection

TAGS = ("saelens", "sparse-autoencoder", "mechanistic-interpretability", "unlearning", "sae_forge")
UNNAMED = "a model that is not on the Hub"
_SHOWN_LATENTS = 10
_QUALITY = {
    "fvu": "fraction of variance unexplained (of the model's own activations)",
    "fvu_stored": "of the activations as they were stored",
    "l0": "latents firing per token",
    "dead_share": "share of dead latents",
    "ce_recovered": "loss recovered when spliced in",
}
"""What training measured, in words."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about."""

    repo_id: str
    inside: str
    """Folder of the SAE in the repository: its hook point."""
    cfg: Mapping[str, Any]
    """Settings of the SAE, without paths of this machine."""
    quality: Mapping[str, Any]
    """What training measured; empty when unknown."""
    selection: "Selection | None"
    report: Report | None
    plots: tuple[str, ...]
    license: str | None
    contexts: bool
    """Whether corpus snippets are published beside the statistics."""

    @property
    def model(self) -> str:
        """The language model by its public name, or what is said of one that has none."""
        return self._named or UNNAMED

    @property
    def base_model(self) -> str | None:
        """The repository of the language model on the Hub."""
        return None if builtin.model_folder(self._named) else self._named or None

    @property
    def _named(self) -> str:
        ours = self.cfg.get("sae_forge", {}).get("provenance", {})
        return str(ours.get("model") or self.cfg.get("metadata", {}).get("model_name") or "")

    @property
    def roles(self) -> dict[str, list[str]]:
        """The domains of each role that has any."""
        names = self.report.domain_names if self.report else ()
        domains = self.report.domains if self.report else {}
        named = {role: [name for name in names if domains[name].role == role] for role in ROLES}
        return {role: names for role, names in named.items() if names}

    @property
    def forgotten(self) -> str:
        """The domains, or else the corpus, whose latents were chosen."""
        if named := self.roles.get("forget"):
            return ", ".join(named)
        return "" if self.selection is None else self.selection.forget_corpus.name


def render(subject: Subject) -> str:
    """The card, front matter and text."""
    sections = [_about(subject), *_forgotten(subject), *_measured(subject), _loading(subject), _limits(subject)]
    results = list(_results(subject.report)) if subject.report else []
    front_matter = ModelCardData(
        library_name="saelens",
        base_model=subject.base_model,
        license=subject.license,
        tags=list(TAGS),
        # the Hub's client refuses results without it
        model_name=subject.repo_id.partition("/")[2] if results else None,
        eval_results=results or None,
    ).to_yaml()  # which quotes what YAML would read otherwise
    return f"---\n{front_matter}\n---\n\n" + "\n\n".join(sections) + "\n"


# ---- front matter -------------------------------------------------------------------------------


def _results(report: Report) -> Iterator[EvalResult]:
    """Every method's estimates by domain; random controls stand in the tables, pooled over seeds."""
    for method in methods(report):
        for domain in report.domain_names:
            about = report.domains[domain]
            for measure in report.measures:
                estimate = method.domain(domain, measure.name)
                if estimate is not None and measure.shown != "in the file":
                    yield EvalResult(
                        task_type="text-generation" if measure.chance is None else "multiple-choice",
                        dataset_type=domain,
                        dataset_name=f"{domain} ({about.role})",
                        metric_type=measure.name,
                        metric_name=f"{measure.name}, {method.label}",
                        metric_value=round(estimate.value, 4),
                    )


# ---- sections -----------------------------------------------------------------------------------


def _about(subject: Subject) -> str:
    cfg, topic = subject.cfg, cell(subject.forgotten)
    what = f"to make it forget **{topic}**" if topic else "to find and edit what it knows"
    kept = f"{cfg['k']} kept per token" if "k" in cfg else "each above a threshold of its own"
    size = f"{cfg['d_sae']:,} latents, {kept}, input width {cfg['d_in']:,}"
    of = subject.model if subject.model == UNNAMED else f"`{subject.model}`"
    lines = [
        f"# {subject.repo_id.partition('/')[2]}",
        f"A {'TopK' if 'k' in cfg else 'JumpReLU'} sparse autoencoder on `{subject.inside}` of {of}, {what}: {size}. "
        "Made with sae_forge; SAELens loads it as it is.",
    ]
    known = {words: subject.quality[key] for key, words in _QUALITY.items() if subject.quality.get(key) is not None}
    if known:
        lines.append(
            f"Measured after training: {', '.join(f'{words} {number(value)}' for words, value in known.items())}."
        )
    return "\n\n".join(lines)


def _forgotten(subject: Subject) -> Iterator[str]:
    chosen = subject.selection
    if chosen is None:
        return
    yield "## What is forgotten"
    yield (
        f"{len(chosen.latents)} latents, chosen by `{chosen.method}`, stand, {chosen.order}, in "
        f"`{subject.inside}/features.json` with every statistic. Editing them is what makes the model forget"
        + (f" {cell(subject.forgotten)}." if subject.forgotten else ".")
    )
    if subject.roles:
        yield "\n".join(f"- {role}: {', '.join(map(cell, names))}" for role, names in subject.roles.items())
    rows = (
        (str(one.index), number(one.score), share(one.forget_frequency, 3), share(one.retain_frequency, 3))
        for one in chosen.latents[:_SHOWN_LATENTS]
    )
    yield table(Sheet("", ("latent", "score", "share of forget tokens", "of retain tokens"), tuple(rows)))


def _measured(subject: Subject) -> Iterator[str]:
    report = subject.report
    if report is None:
        return
    first, rest = headlines(report)
    guessing = [f"{one.chance:g} in {one.words}" for one in report.measures if one.chance is not None]
    yield "## What was measured"
    yield items([line for line in first if line != REVERSIBLE])
    yield (
        "Estimates with 95% intervals, resampled by fact. Random directions are the control: same norm on the same "
        "tokens, other directions, seeds pooled to their mean and widest interval."
        + (
            f" Guessing gives {' and '.join(guessing)}; below it is knowledge turned round, not gone."
            if guessing
            else ""
        )
    )
    yield from map(titled, sheets(report))
    if rest:
        yield items(rest)
    if also := list(notes(report)):
        yield items(also)
    yield from (f"![{path}]({path})" for path in subject.plots)


def _loading(subject: Subject) -> str:
    module, made, count = _headline(subject.report)
    tokens = subject.report.protocol.get("tokens", "real") if subject.report else "real"
    # as what was measured: sinks stay as they are where they did there
    spared = subject.report is None or subject.report.protocol.get("sinks_spared", False)
    norm = ", selection.sink_norm" if spared and subject.selection and subject.selection.sink_norm else ""
    model = "load_model(provenance.model)"
    if subject.model == UNNAMED:
        model = 'load_model("…")  # the model that the SAE was made on: it has no public name'
    edit = f"""
lm = {model}
selection = Selection.load(folder / "features.json")
latents = selection.indices[:{count}]
edit = {made if tokens == "real" else f'replace({made}, tokens="{tokens}")'}
with applied(lm, sae, HookPoint.parse(provenance.hook_point), edit{norm}):
    ...  # lm.model forgets inside this block, and only here
"""
    # as what was measured: an edit spares special tokens unless it is told otherwise
    imports = "" if tokens == "real" else "from dataclasses import replace\n\n"
    imports += f"""from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import applied
from {module} import {made.partition("(")[0]}
from sae_forge.models.loading import load_model
"""
    # code is printed only where it runs as it stands: with latents to edit, at a place that hooks know
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


def _headline(report: Report | None) -> tuple[str, str, int]:
    """Module, call and number of latents of the report's first edit that a call says, else of the first there is."""
    sayable = {one.name: one for one in METHODS if isinstance(one, Method) and one.intervention}
    method, settings = next(iter(sayable.values())), {"num_features": EvalConfig.num_features[0]}
    for row in report.rows if report else ():
        one = sayable.get(row.name)
        if row.edits and one is not None and {"num_features", *one.arguments} <= set(row.settings):
            method, settings = one, row.settings
            break
    assert method.intervention is not None
    values = [f"{settings[name]:g}" for name in method.arguments if name in settings]
    made = f"{method.intervention.__name__}({', '.join(['latents', *values])})"
    return method.intervention.__module__, made, int(settings["num_features"])


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
