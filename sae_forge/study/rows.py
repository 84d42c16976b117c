"""One row per item and method: the evidence behind a report, as a parquet table."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from sae_forge.store import files
from sae_forge.study.measure import Measurement, Suite

SCHEMA = pyarrow.schema(
    [
        ("method", pyarrow.string()),
        ("settings", pyarrow.string()),
        ("seed", pyarrow.int64()),
        ("kind", pyarrow.string()),
        ("domain", pyarrow.string()),
        ("role", pyarrow.string()),
        ("id", pyarrow.string()),
        ("fact", pyarrow.string()),
        ("correct", pyarrow.bool_()),
        ("correct_by_mean", pyarrow.bool_()),
        ("chosen", pyarrow.int64()),
        ("probability", pyarrow.float64()),
        ("logprob", pyarrow.float64()),
        ("tokens", pyarrow.int64()),
        ("option_logprobs", pyarrow.list_(pyarrow.float64())),
        ("option_tokens", pyarrow.list_(pyarrow.int64())),
        ("degenerate", pyarrow.bool_()),
        ("rouge_l", pyarrow.float64()),
        ("text", pyarrow.string()),
    ]
)
"""``kind`` is question, prompt, sequence, generation, verbmem, knowmem or privleak; ``logprob`` is summed over
``tokens``, in nats."""

Row = dict[str, Any]


def item_rows(suite: Suite, method: str, settings: Row, seed: int | None, found: Measurement) -> Iterator[Row]:
    """Every item of one measurement; columns that say nothing about an item are None."""
    blank = dict.fromkeys(SCHEMA.names)
    common = {"method": method, "settings": json.dumps(settings, sort_keys=True), "seed": seed}
    for row in (*_asked(suite, found), *_read(suite, found), *_written(found), *_muse(suite, found)):
        yield {**blank, **common, **row}


def publish_rows(path: Path, rows: list[Row]) -> None:
    """Write the rows as one parquet file, whole or not at all."""
    with files.publish(path) as part:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), part, write_page_checksum=True)


def _asked(suite: Suite, found: Measurement) -> Iterator[Row]:
    for domain in suite.domains:
        place = {"domain": domain.name, "role": domain.role}
        for item, got in zip(domain.questions, found.answers.get(domain.name, []), strict=True):
            yield {
                **place,
                "kind": "question",
                "id": item.id,
                "fact": item.fact,
                "correct": got.correct,
                "correct_by_mean": got.chosen_by_mean == got.answer,
                "chosen": got.chosen,
                "probability": got.probability,
                "logprob": got.logprob,
                "tokens": got.options[got.answer].tokens,
                "option_logprobs": [option.logprob for option in got.options],
                "option_tokens": [option.tokens for option in got.options],
            }
        for item, got in zip(domain.prompts, found.targets.get(domain.name, []), strict=True):
            names = {"kind": "prompt", "id": item.id, "fact": item.fact}
            yield {**place, **names, "logprob": got.logprob, "tokens": got.tokens}


def _read(suite: Suite, found: Measurement) -> Iterator[Row]:
    for corpus in suite.corpora:
        losses = found.losses[corpus.key]
        for number, (nats, tokens) in enumerate(zip(losses.nats, losses.tokens, strict=True)):
            place = {"kind": "sequence", "domain": corpus.name, "role": corpus.role, "id": str(number)}
            yield {**place, "logprob": -nats, "tokens": tokens}


def _written(found: Measurement) -> Iterator[Row]:
    for number, got in enumerate(found.written):
        degenerate = bool(got.measures()["degenerate"])
        yield {
            "kind": "generation",
            "id": str(number),
            "tokens": got.tokens,
            "degenerate": degenerate,
            "text": got.text,
        }


def _muse(suite: Suite, found: Measurement) -> Iterator[Row]:
    """What was recited and answered; of a text, its least likely tokens."""
    asked_of = [asked for asked in suite.muse.recalls if asked.name in found.recalled]  # controls write no text
    for asked in asked_of:
        for item, got in zip(asked.prompts, found.recalled[asked.name], strict=True):
            place = {"kind": asked.kind, "role": asked.role, "id": item.id, "fact": item.fact}
            yield {**place, "rouge_l": got.rouge_l, "tokens": got.tokens, "text": got.text}
    for side, scores in found.least_likely.items():
        for item, got in zip(suite.muse.texts[side], scores, strict=True):
            place = {"kind": "privleak", "role": side, "id": item.id, "fact": item.fact}
            yield {**place, "logprob": got.logprob, "tokens": got.tokens}
