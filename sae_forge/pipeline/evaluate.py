"""``eval``: an SAE and a selection become a report of forgetting and side effects beside their controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_forge.config.evaluate import EvalConfig
from sae_forge.data.corpus import corpus_identity
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.selection import Selection
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.steering_csv import read_steering_csv, steering_table, write_steering_csv
from sae_forge.methods.materials import Shards
from sae_forge.outcome import Outcome, Sheet
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import readers
from sae_forge.results.claims import headlines
from sae_forge.results.estimates import Measurement, controls_of, domains, headline, measurements, methods
from sae_forge.sae.named import NamedSAE
from sae_forge.sae.store import Provenance
from sae_forge.show.plots import domain_bars, method_map, sweep_panels, trade_off
from sae_forge.store import files
from sae_forge.study.run import REPORT_FILE, EvalReport
from sae_forge.study.run import evaluate as measure
from sae_forge.study.settings import catalogue_of

MOST_BARS = 8
"""Methods whose bars can be told apart in one picture."""
FEWEST_POINTS = 3
"""The model as it is, an edit and zero ablation: no trade-off yet."""
KINDS = ("questions", "prompts", "generation_prompts", "eval", "verbmem", "knowmem", "privleak")
"""Kinds of files in the order in which a report's identity lists them; so reports of 0.1 are found again."""


def evaluate(config: EvalConfig, bench: Bench) -> Outcome:
    """A report folder: eval.json, items.parquet and the pictures."""
    named = bench.sae(config.sae)
    selection = Selection.load(bench.selection(config.selection, named.folder), weights=named.weights)
    rivals, also = _rivals(config, bench, named), _steered(config, named)
    identity = _identity(config, [selection, *rivals], named.provenance)
    folder = bench.run.evals(named.folder) / files.short_hash(identity)
    if (folder / REPORT_FILE).exists() and not config.starts_over:
        bench.progress.say(f"{folder} is there under the same settings")
        metrics = files.read_json(folder / REPORT_FILE, kind=DataError, what="an eval report")
        (folder / REPORT_FILE).touch()  # what was asked for last is the newest
    else:
        bench.require_same_model(named)
        report = measure(
            bench.lm, named.sae, selection, config, named.point, bench.progress,
            collected=_collected(bench, named, selection), also=also,
            rivals=rivals, folder=folder,
        )  # fmt: skip
        metrics = report.to_json()
        files.publish_json(folder / "config.json", config.deciding("report"))
        for name, picture in _pictures(metrics).items():
            files.publish_bytes(folder / f"{name}.png", picture)
        _export(report, named, folder)
        report.save(folder)
    return Outcome(
        run=bench.run,
        outputs={"report": folder / REPORT_FILE, "folder": folder},
        metrics=metrics,
        summary="\n".join(headlines(metrics)[0]) + f"\n{folder}",
        tables=(table(metrics),),
        then=bench.next("report"),
    )


def _collected(bench: Bench, named: NamedSAE, selection: Selection) -> Shards | None:
    """The activations that the selection was made from, if the run folder still holds them."""
    found = {reader.manifest.sha256: reader for reader in readers(bench.run, named.point)}
    forget = found.get(selection.forget_corpus.manifest)
    retain = {name: found.get(corpus.manifest) for name, corpus in selection.retain_corpora.items()}
    kept = {name: reader for name, reader in retain.items() if reader is not None}
    return None if forget is None or len(kept) < len(retain) else Shards(forget, kept)


def _rivals(config: EvalConfig, bench: Bench, named: NamedSAE) -> list[Selection]:
    """Every selection made for this SAE, if they are to be compared."""
    if not config.compare_selections:
        return []
    paths = sorted(bench.run.selections(named.folder).glob("*.json"))
    return [Selection.load(path, weights=named.weights) for path in paths]


def _steered(config: EvalConfig, named: NamedSAE) -> list[Edit]:
    """The edit that a steering CSV says, if one was given."""
    if config.steering is None:
        return []
    table = read_steering_csv(config.steering)
    table.require_sae(named.name)
    return [Edit(named.point, named.sae, table.intervention())]


def _export(report: EvalReport, named: NamedSAE, folder: Path) -> None:
    """Write every edit that other tools can say as a steering CSV; in that table the SAE's error is always kept."""
    for number, edit in enumerate(report.edits):
        if not edit.intervention.keep_error:
            continue
        try:
            written = steering_table(edit.intervention, sae_id=named.name)
        except ConfigError:  # scaling, gates of whole texts and projections have no words in that table
            continue
        write_steering_csv(folder / "steering" / f"{edit.intervention.name}-{number}.csv", written)


def _identity(config: EvalConfig, selections: Sequence[Selection], provenance: Provenance) -> dict[str, Any]:
    """All that decides the numbers: settings, the files they name, the selections and the model by their content."""
    items = config.items("report")
    return {
        "settings": config.deciding("report"),
        "items": [corpus_identity(source) for name in sorted(items, key=_place) for source in items[name]],
        "selections": [selection.without_snippets().to_json() for selection in selections],
        "steering": None if config.steering is None else files.file_sha256(config.steering),
        "model": provenance.weights,
        **({"plugins": plugins} if (plugins := catalogue_of(config).plugins) else {}),
    }


def _place(setting: str) -> tuple[int, str]:
    return max((place for place, kind in enumerate(KINDS) if kind in setting), default=len(KINDS)), setting


def _pictures(metrics: dict[str, Any]) -> dict[str, bytes]:
    """The pictures a report allows: bars while they can be told apart, the trade-off where there is one to show."""
    chances = {"accuracy": metrics["protocol"]["chance"], "logprob": None}
    measured = {name for row in metrics["methods"] for domain in row["domains"].values() for name in domain}
    shown = {name: chance for name, chance in chances.items() if name in measured}
    found = {}
    if len(headline(metrics)) <= MOST_BARS:
        found |= {name: domain_bars(metrics, measure=name, chance=chance) for name, chance in shown.items()}
    if "sweep" in metrics:
        return found | {
            "methods": method_map(metrics, chance=chances["accuracy"]),
            "sweep": sweep_panels(metrics),
        }
    if "accuracy" in shown and len(methods(metrics)) > FEWEST_POINTS:
        found["trade_off"] = trade_off(metrics, chance=chances["accuracy"])
    return found


# ---- table --------------------------------------------------------------------------------------


def table(metrics: dict[str, Any]) -> Sheet:
    """A row a method: accuracy by domain, loss and edited tokens by role, with intervals.

    Controls have rows of their own, seeds pooled; after a sweep, where they would be three rows of four, a column says
    what they did to the forget questions.
    """
    asked = [name for name in domains(metrics) if metrics["domains"][name]["items"]]
    roles = [role for role in ("forget", "retain") if role in metrics["methods"][0]["loss"]]
    muse = list(dict.fromkeys(name for row in metrics["methods"] for name in row.get("muse", {})))
    swept = "sweep" in metrics
    columns = (
        "method",
        *(f"{name}\n({metrics['domains'][name]['role']})" for name in asked),
        *(("forget under\nrandom controls",) if swept else ()),
        *(f"loss on\n{role}" for role in roles),
        *(f"edited\n{role}" for role in roles),
        *(name.replace("_", "\n") for name in muse),
    )
    rows = (
        (
            found.label,
            *(_shown(found.domain(name, "accuracy"), digits=2) for name in asked),
            *((_controlled(metrics, found),) if swept else ()),
            *(_shown(found.group("loss", role), digits=3) for role in roles),
            *(f"{share:.1%}" if (share := found.edited_share(role)) is not None else "" for role in roles),
            *(_shown(found.group("muse", name), digits=1) for name in muse),
        )
        for found in (methods(metrics) if swept else measurements(metrics))
    )
    title = "question accuracy by domain, loss in nats per token, share of tokens edited"
    return Sheet(f"{title}, MUSE x 100" if muse else title, columns, tuple(rows))


def _controlled(metrics: dict[str, Any], found: Measurement) -> str:
    """The least and the most that any kind of random control left of the forget questions."""
    values = [
        row["roles"]["forget"]["accuracy"]["value"]
        for control in controls_of(metrics, found)
        for row in control.entries
        if "accuracy" in row["roles"].get("forget", {})
    ]
    return f"{min(values):.2f} to {max(values):.2f}" if values else ""


def _shown(estimate: Mapping[str, float] | None, *, digits: int) -> str:
    if estimate is None:
        return ""
    return "{value:.{digits}f}\n[{low:.{digits}f}, {high:.{digits}f}]".format(**estimate, digits=digits)
