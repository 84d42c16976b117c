"""``report``: what a run folder holds becomes one self-contained page."""

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sae_forge import __version__, builtin
from sae_forge.config.report import ReportConfig
from sae_forge.errors import CheckpointError, DataError, ForgeError
from sae_forge.features.cards import MOST, cards, remembered, sample
from sae_forge.features.selection import Selection
from sae_forge.features.tables import COMPARED, comparison
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import shards_of
from sae_forge.pipeline.texts import continued
from sae_forge.results.report import Report, load_report
from sae_forge.results.sheets import Sheet
from sae_forge.sae.named import NamedSAE
from sae_forge.sae.slices import rows_of
from sae_forge.show import gallery
from sae_forge.show.canvas import inline
from sae_forge.show.explorer import Continued, Latents, Voted
from sae_forge.show.html import Section, write_page
from sae_forge.store import files, order
from sae_forge.store.runs import POINTER
from sae_forge.study.run import REPORT_FILE

VOTES = 8
"""Tokens shown that a latent promotes, and that it suppresses."""


def report(config: ReportConfig, bench: Bench) -> Outcome:
    """``report.html`` in the run folder: every SAE, the newest first, or those of the layers or the one that was named.

    Raises:
        DataError: the run holds no SAE, or something of it is damaged.
        CheckpointError: it holds none at the layers named; says which it has.
    """
    saes = _saes(config, bench)
    if not saes:
        raise DataError(f"{bench.run.folder} holds no SAE to report on; make one with: {bench.next('train')}")
    path = bench.run.folder / "report.html"
    model = bench.config.model
    named_for_all = "" if Path(model).expanduser().exists() else model  # a folder's name says nothing to others
    one_place = bench.under(replace(config, layer=None))  # where several were named each SAE says its own
    sections = [_section(sae, config, one_place, share=len(saes)) for sae in saes]
    write_page(path, named_for_all, sections, facts=_facts(sections, bench), versions=_versions(bench))
    return Outcome(
        run=bench.run,
        outputs={"page": path},
        metrics={"saes": [str(sae) for sae in saes], "bytes": path.stat().st_size},
        summary=str(path),
        then=None if (saes[0] / POINTER).exists() else bench.next("push", "you/your-repository", "--dry_run"),
    )


def _saes(config: ReportConfig, bench: Bench) -> list[Path]:
    """Folders of the SAEs the page is about, the newest first."""
    if config.sae:
        return [bench.sae(config.sae).folder]
    every = bench.run.saes()
    points = config.hook_points
    saes = [sae for sae in every if points is None or sae.parent.name in map(str, points)]
    if every and not saes:
        have = ", ".join(sorted({sae.parent.name for sae in every}))
        raise CheckpointError(f"no SAE at {', '.join(map(str, points or ()))} in {bench.run.folder} (found: {have})")
    return saes[::-1]


def _section(sae: Path, config: ReportConfig, bench: Bench, *, share: int) -> Section:
    """What is known about one SAE; the newest report and the selection it measured.

    Args:
        share: How many SAEs the page is shared by.
    """
    evaluated, path = bench.evaluated(sae)
    measured = load_report(evaluated / REPORT_FILE) if evaluated else None
    selection = Selection.load(path) if path else None
    configs = {"train": sae / "config.json"} | ({"eval": evaluated / "config.json"} if evaluated else {})
    settings = {verb: _read(path) for verb, path in configs.items() if path.exists()}
    with_model = config.with_model or "lm" in bench.__dict__ or builtin.model_folder(bench.config.model) is not None
    if with_model:
        _ = bench.lm  # loaded once, whoever needs it
    texts: Sequence[Continued] = ()
    if evaluated and measured and _may_show(settings.get("eval", {}).get("generation_prompts", ()), config):
        texts = continued(evaluated, measured, bench, settings["eval"], sae=sae, marked=with_model)
    return Section(
        title=f"{sae.parent.name} {sae.name}",
        train=_read(sae / "report.json") if (sae / "report.json").exists() else _read(sae / POINTER),
        report=measured,
        pictures=_pictures(sae, measured, bench),
        latents=None if selection is None else _latents(sae, selection, config, bench, share, with_model=with_model),
        texts=texts,
        selections=_selections(sae, bench),
        settings=settings,
        commands=_commands(bench, settings, selection),
    )


def _may_show(sources: Sequence[str], config: ReportConfig) -> bool:
    """Whether text that hangs on these sources may stand in the page: it is asked for, or of the built-in world."""
    return config.include_contexts or (bool(sources) and all(map(builtin.is_builtin, sources)))


# ---- latents ------------------------------------------------------------------------------------


def _latents(
    sae: Path, selection: Selection, config: ReportConfig, bench: Bench, share: int, *, with_model: bool
) -> Latents:
    """Cards from the activations, or where those are gone from the selection alone."""
    try:
        named = bench.sae(str(sae))
        shards = shards_of(selection, bench.run, named.point)
        if shards is not None:
            contexts = _may_show([shards.forget.fingerprint.source], config)
            readers = {selection.forget_corpus.name: shards.forget, **shards.retain}
            seen = sample(readers, named.sae, sink_norm=selection.sink_norm, progress=bench.progress)
            looked = cards(seen, selection.indices, bench.decode, show_forget=contexts, most=MOST // share)
            votes = _votes(named, [card.latent for card in looked.cards], bench) if with_model else {}
            return Latents(selection=selection, cards=looked, contexts=contexts, votes=votes)
    except ForgeError as error:  # what cannot be opened here any more has its numbers still
        bench.progress.say(f"latents of {sae.name} are shown as far as their selection remembers them: {error}")
    contexts = _may_show([text.identity for text in bench.run.texts.values() if text.role == "forget"], config)
    return Latents(selection=selection, cards=remembered(selection, show_forget=contexts), contexts=contexts)


def _votes(named: NamedSAE, latents: Sequence[int], bench: Bench) -> dict[int, Voted]:
    """What the unembedding reads off each latent's direction; nothing where that is not written to the residual."""
    head: Any = bench.lm.model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    if named.point.site == "z" or weight is None or not weight.is_floating_point() or weight.shape[1] != named.sae.d_in:
        return {}
    votes = {}
    for part in torch.tensor(latents).split(64):
        rows = rows_of(named.sae, part.tolist()).to(weight.device, weight.dtype)
        logits = rows @ weight.T
        best, worst = logits.topk(VOTES).indices.tolist(), (-logits).topk(VOTES).indices.tolist()
        for latent, up, down in zip(part.tolist(), best, worst, strict=True):
            votes[latent] = Voted(*(tuple(bench.decode([token]) for token in side) for side in (up, down)))
    return votes


# ---- all else -----------------------------------------------------------------------------------


def _pictures(sae: Path, measured: Report | None, bench: Bench) -> dict[str, str]:
    drawn = {one.caption: one.draw(measured, "svg") for one in gallery.of_report(measured)} if measured else {}
    log = bench.run.logs / f"train-{sae.parent.name}-{sae.name}.jsonl"
    try:
        steps = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    except ValueError as error:
        raise DataError(f"{log} is not a log of training: {error}; delete it to report without its curves") from error
    if gallery.TRAINING.when(steps):
        drawn[gallery.TRAINING.caption] = gallery.TRAINING.draw(steps, "svg")
    return {caption: inline(image) for caption, image in drawn.items()}


def _selections(sae: Path, bench: Bench) -> Sheet | None:
    """Several selections of one SAE side by side; those of older formats are passed over."""
    made = {}
    for path in sorted(bench.run.selections(sae).glob("*.json")):
        with suppress(DataError):
            made[path.stem] = Selection.load(path)
    if len(made) < 2:
        return None
    rows = zip(made, comparison(made), strict=True)
    return Sheet("Selections of this SAE", ("file", *COMPARED), tuple((name, *row) for name, row in rows))


def _facts(sections: Sequence[Section], bench: Bench) -> list[str]:
    """What was to be forgotten, in which order all else is named, and the day of the last measurement."""
    told = []
    if first := next((one.report for one in sections if one.report), None):
        roles = {}
        for name in first.domain_names:
            roles.setdefault(first.domains[name].role, []).append(name)
        told = [f"{role}: {', '.join(names)}" for role, names in roles.items()]
    # the day alone, so that two equal runs of one day have the same page
    if measured := order.last_command(bench.run.folder):
        told.append(f"made on {datetime.fromtimestamp(measured, UTC):%Y-%m-%d}")
    return told


def _versions(bench: Bench) -> dict[str, str]:
    """Of the program that wrote the page, and of what the activations were collected with."""
    collected = next(iter(sorted(bench.run.folder.glob("shards/*/*/config.json"))), None)
    others = _read(collected).get("versions", {}) if collected else {}
    return {
        "sae_forge": __version__,
        "Python": platform.python_version(),
        **{k: v for k, v in others.items() if k != "sae_forge"},
    }


def _commands(bench: Bench, settings: Mapping[str, Mapping[str, Any]], selection: Selection | None) -> list[str]:
    """The commands that make it again, with every setting that is not at its default."""
    known = dict(settings)
    if selection is not None:
        known["features"] = {**selection.settings, "method": selection.method}
    return [bench.again(verb, known[verb]) for verb in ("train", "features", "eval") if verb in known]


def _read(path: Path) -> Any:
    return files.read_json(path, kind=DataError, what="a part of a run")
