"""What the models of a report wrote, read from its items, with marks on the tokens that an edit changed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet

from sae_forge.config.generate import GenerateConfig
from sae_forge.errors import DataError, ForgeError
from sae_forge.live.session import Session, Token
from sae_forge.methods.subjects import in_force
from sae_forge.methods.table import METHODS
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.generate import AT_ONCE, marks, opened, sampling_of
from sae_forge.results.pooled import methods
from sae_forge.results.report import Report
from sae_forge.show.explorer import Continued, Written
from sae_forge.tasks.prompts import Prompts
from sae_forge.tasks.records import iter_records, text_field

MOST = 8
"""Prompts whose continuations are shown."""
ITEMS = "items.parquet"


def continued(
    folder: Path, report: Report, bench: Bench, config: Mapping[str, Any], *, sae: Path, marked: bool
) -> list[Continued]:
    """The first prompts of a report with what each method wrote after them; controls are left out.

    Args:
        config: The settings of the report.
        marked: Write anew under each edit, to mark what it changed; a text that comes out otherwise has no marks.

    Raises:
        DataError: the prompts or the items are gone.
    """
    written = _written(folder / ITEMS, report, bench)
    prompts = _prompts(config, bench)
    if not prompts:
        return []
    # what another tool's file or another selection said is no setting of a method, and a plug-in's method is not here
    here = {one.name for one in METHODS}
    rows = [row for row in report.rows if row.kind == "hook" and not row.is_control]
    foreign = {row.name for row in rows if row.settings.keys() & {"given", "selection"}}
    edits = [row.name for row in rows if row.title in written and row.name not in foreign]
    edits = [name for name in edits if here.issuperset(name.split("+"))]
    anew = _anew(prompts, dict.fromkeys(edits), bench, config, sae) if marked and edits else {}
    told = []
    for place, prompt in enumerate(prompts):
        under = {title: texts[str(place)] for title, texts in written.items() if str(place) in texts}
        told.append(
            Continued(prompt, {title: _marked(text, anew.get(title, {}).get(place)) for title, text in under.items()})
        )
    return told


def _prompts(config: Mapping[str, Any], bench: Bench) -> list[str]:
    said: list[str] = []
    for source in config.get("generation_prompts", ()):
        # a limit is one of each source, as the task has it
        records = list(iter_records(source, "prompt", bench.progress))[: config.get("limit")]
        said += [text_field(record, "prompt", where) for where, record in records]
    return said[:MOST]


def _written(path: Path, report: Report, bench: Bench) -> dict[str, dict[str, str]]:
    """What was written after each prompt by its number, by the title of the row."""
    try:
        table = pyarrow.parquet.read_table(path, columns=["method", "settings", "task", "id", "text"])
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{path} cannot be read: {error}; measure anew with: {bench.next('eval', '--fresh')}"
        ) from error
    titles = {(one.name, json.dumps(dict(one.settings), sort_keys=True)): one.rows[0].title for one in methods(report)}
    written: dict[str, dict[str, str]] = {title: {} for title in titles.values()}
    for row in table.to_pylist():
        title = titles.get((row["method"], row["settings"]))
        if title is not None and row["task"] == Prompts.name and row["text"] is not None:
            written[title][row["id"]] = row["text"]
    return {title: texts for title, texts in written.items() if texts}


def _anew(
    prompts: Sequence[str], names: Mapping[str, None], bench: Bench, config: Mapping[str, Any], sae: Path
) -> dict[str, dict[int, list[Token]]]:
    """The tokens that each edit writes, by its title and the prompt's place; nothing where they cannot be written."""
    drawn = {name: config[name] for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    of = GenerateConfig(
        model=bench.config.model, run_dir=bench.config.run_dir, sae=str(sae), methods=tuple(names), **drawn
    )
    try:
        under = opened(of, bench.under(of))
        tokens: dict[str, dict[int, list[Token]]] = {}
        for title, subject in under.chosen.items():
            tokens[title] = {}
            with in_force(bench.lm, subject, bench.progress) as (lm, log):
                for start in range(0, len(prompts), AT_ONCE):
                    for token in Session(lm, log).stream(
                        prompts[start : start + AT_ONCE], sampling_of(of), first=start
                    ):
                        tokens[title].setdefault(start + token.text, []).append(token)
    except ForgeError as error:
        bench.progress.say(f"edited tokens are not marked on the page: {error}")
        return {}
    return tokens


def _marked(text: str, tokens: Sequence[Token] | None) -> Written:
    written = [token for token in tokens or () if token.written]
    if "".join(token.piece for token in written) != text:
        return Written(text)
    edited, past = [], 0
    for token in written:
        if token.edited and token.piece:
            edited.append((past, past + len(token.piece), marks(token)))
        past += len(token.piece)
    return Written(text, tuple(edited))
