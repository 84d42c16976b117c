"""``eval``: an SAE and a selection become a report of forgetting and side effects beside their controls."""

from collections.abc import Mapping
from typing import Any

from sae_forge import files
from sae_forge.config import EvalConfig
from sae_forge.data.corpus import corpus_identity
from sae_forge.errors import DataError
from sae_forge.evals.runner import REPORT_FILE
from sae_forge.evals.runner import evaluate as measure
from sae_forge.features.selection import Selection
from sae_forge.outcome import Outcome, Sheet
from sae_forge.pipeline.bench import Bench
from sae_forge.report.estimates import domains, measurements
from sae_forge.report.plots import domain_bars, trade_off
from sae_forge.sae.store import Provenance

NOT_DECIDING = ("run_dir", "sae", "selection", "resume", "fresh", "model_device", "sae_device", "device_map")
"""Settings that do not change what is measured; the selection counts by its content instead of its path."""
ITEM_FILES = (
    "forget_questions", "neighbour_questions", "retain_questions", "forget_prompts", "neighbour_prompts",
    "retain_prompts", "generation_prompts", "forget_eval", "retain_eval",
)  # fmt: skip


def evaluate(config: EvalConfig, bench: Bench) -> Outcome:
    """A report folder: eval.json, items.parquet and the pictures."""
    named = bench.sae(config.sae)
    selection = Selection.load(bench.selection(config.selection, named.folder), weights=named.weights)
    folder = bench.run.evals(named.folder) / files.short_hash(_identity(config, selection, named.provenance))
    if (folder / REPORT_FILE).exists() and not config.starts_over:
        bench.progress.say(f"{folder} is there under the same settings")
        metrics = files.read_json(folder / REPORT_FILE, kind=DataError, what="an eval report")
        (folder / REPORT_FILE).touch()  # what was asked for last is the newest
    else:
        bench.require_same_model(named)
        report = measure(bench.lm, named.sae, selection, config, named.point, bench.progress)
        metrics = report.to_json()
        files.publish_json(folder / "config.json", _settings(config))
        for name, picture in _pictures(metrics).items():
            files.publish_bytes(folder / f"{name}.png", picture)
        report.save(folder)
    return Outcome(
        run=bench.run,
        outputs={"report": folder / REPORT_FILE, "folder": folder},
        metrics=metrics,
        summary="\n".join(metrics["claims"]) + f"\n{folder}",
        tables=(table(metrics),),
        then=bench.next("report"),
    )


def _settings(config: EvalConfig) -> dict[str, Any]:
    return {name: value for name, value in config.settings(EvalConfig).items() if name not in NOT_DECIDING}


def _identity(config: EvalConfig, selection: Selection, provenance: Provenance) -> dict[str, Any]:
    """All that decides the numbers: settings, the files they name, the selection and the model by their content."""
    return {
        "settings": _settings(config),
        "items": [corpus_identity(source) for name in ITEM_FILES for source in getattr(config, name)],
        "selection": selection.without_snippets().to_json(),
        "model": provenance.weights,
    }


def _pictures(metrics: dict[str, Any]) -> dict[str, bytes]:
    """The pictures a report allows: bars where there are questions or prompts, the trade-off where it was swept."""
    chances = {"accuracy": metrics["protocol"]["chance"], "logprob": None}
    measured = {name for row in metrics["methods"] for domain in row["domains"].values() for name in domain}
    found = {name: domain_bars(metrics, measure=name, chance=chances[name]) for name in chances if name in measured}
    if "accuracy" in found and sum(row["name"] == "scale" for row in metrics["methods"]) > 1:
        found["trade_off"] = trade_off(metrics, chance=chances["accuracy"])
    return found


# ---- table --------------------------------------------------------------------------------------


def table(metrics: dict[str, Any]) -> Sheet:
    """A row a method, a control's seeds pooled: accuracy by domain, loss and edited tokens by role, with intervals."""
    asked = [name for name in domains(metrics) if metrics["domains"][name]["items"]]
    roles = [role for role in ("forget", "retain") if role in metrics["methods"][0]["loss"]]
    columns = (
        "method",
        *(f"{name}\n({metrics['domains'][name]['role']})" for name in asked),
        *(f"loss on\n{role}" for role in roles),
        *(f"edited\n{role}" for role in roles),
    )
    rows = (
        (
            found.label,
            *(_shown(found.domain(name, "accuracy"), digits=2) for name in asked),
            *(_shown(found.group("loss", role), digits=3) for role in roles),
            *(f"{found.edited_share(role) or 0:.1%}" for role in roles),
        )
        for found in measurements(metrics)
    )
    return Sheet("question accuracy by domain, loss in nats per token, share of tokens edited", columns, tuple(rows))


def _shown(estimate: Mapping[str, float] | None, *, digits: int) -> str:
    if estimate is None:
        return ""
    return "{value:.{digits}f}\n[{low:.{digits}f}, {high:.{digits}f}]".format(**estimate, digits=digits)
