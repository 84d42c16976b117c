"""Extraction strength, exact memorisation and membership, token by token against slow readings of the released code."""

import json
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from sae_forge.errors import ConfigError, DataError
from sae_forge.progress import SILENT
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines.memory import Read, read, text_row, token_row
from sae_forge.tasks.memorisation import Memorisation, extraction_strength, familiarity, told_apart

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel

TEXTS = ("The owl flew over the moor at night.", "Granite and mica lie under the town of Esk.", "A mole")


@pytest.mark.parametrize(
    ("right", "released", "paper"),
    [
        ([True] * 4, 1.0, 1.0),
        ([False, True, True, True], 0.75, 0.75),
        ([True, False, True, True], 0.5, 0.5),
        ([True, True, True, False], 0.25, 0.0),
        ([False] * 4, 0.25, 0.0),
        ([False], 1.0, 0.0),
    ],
)
def test_extraction_strength_is_the_share_that_is_right_to_the_end(right, released, paper) -> None:
    """open-unlearning looks no further than the last token, and takes it for right."""
    assert extraction_strength(right) == (pytest.approx(released), pytest.approx(paper))


def slowly(lm: "LanguageModel", ids: list[int], first: int) -> tuple[list[bool], list[float], list[float]]:
    with torch.no_grad():
        table = lm.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    right, own, standard = [], [], []
    for place in range(first, len(ids)):
        row = table[place - 1]
        mean = float((row.exp() * row).sum())
        spread = math.sqrt(max(1e-6, float((row.exp() * row**2).sum()) - mean**2))
        right.append(int(row.argmax()) == ids[place])
        own.append(float(row[ids[place]]))
        standard.append((own[-1] - mean) / spread)
    return right, own, standard


def test_every_token_is_read_as_the_model_alone_reads_it(tiny_model: "LanguageModel") -> None:
    rows = [text_row(tiny_model, text) for text in TEXTS] + [token_row(tiny_model, "Of owls:", "they fly.")]
    assert rows[-1].first > 1
    for size in (1, 4):
        for row, got in zip(rows, read(tiny_model, rows, batch_size=size), strict=True):
            right, own, standard = slowly(tiny_model, list(row.ids), row.first)
            assert len(got.right) == len(row.ids) - row.first
            assert list(got.right) == right
            assert list(got.logprobs) == pytest.approx(own, abs=2e-4)
            assert list(got.standard) == pytest.approx(standard, abs=2e-3)


def test_familiarity_is_the_four_measures(tiny_llama: "LanguageModel") -> None:
    logprobs, standard = (-1.0, -5.0, -2.0, -0.5, -4.0), (0.5, -2.0, 0.1, 1.0, -1.0)
    found = familiarity(Read((True,) * 5, logprobs, standard), "abcabcabc")
    assert found == {
        "mia_min_k": pytest.approx(-4.5),
        "mia_min_k_plus_plus": pytest.approx(-1.5),
        "mia_zlib": pytest.approx(-2.5 / len(zlib.compress(b"abcabcabc"))),
        "mia_loss": pytest.approx(-2.5),
    }


def config(folder: Path, **more: object):
    def write(name: str, records: list[dict]) -> tuple[str, ...]:
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return (str(folder / name),)

    files = {
        "memorised": write(
            "m.jsonl", [{"prompt": "Owls", "gt": "fly."}, {"question": "Who?", "answer": "Me."}, {"text": TEXTS[0]}]
        ),
        "member_forget": write("f.jsonl", [{"text": text} for text in TEXTS]),
        "member_holdout": write("h.jsonl", [{"text": text[::-1]} for text in TEXTS]),
    }
    return eval_config()(**{**files, **more})


def test_the_task_asks_what_its_files_hold(tiny_llama: "LanguageModel", tmp_path: Path) -> None:
    task = Memorisation()
    asked = task.load(tiny_llama, config(tmp_path), half="all", limit=None, progress=SILENT)
    assert [(one.kind, one.units) for one in asked] == [("memorised", 3), ("members", 6)]
    recited, members = (task.ask(tiny_llama, one, batch_size=4, done=None) for one in asked)
    rows = asked[0].content
    for item, row in zip(recited, rows, strict=True):
        right = slowly(tiny_llama, list(row.ids), row.first)[0]
        assert item.values["exact_memorisation"] == pytest.approx(np.mean(right))
        assert item.values["extraction_strength"] == pytest.approx(extraction_strength(right)[0])
    assert [item.role for item in members] == ["forget"] * 3 + ["holdout"] * 3
    estimate = told_apart("mia_loss", members, Bootstrap(100, 0))
    losses = [item.values["mia_loss"] for item in members]
    wins = np.mean([(one > other) + (one == other) / 2 for one in losses[:3] for other in losses[3:]])
    assert estimate.value == pytest.approx(wins)
    assert task.load(tiny_llama, eval_config()(), half="all", limit=None, progress=SILENT) == ()


def test_what_cannot_be_asked_is_refused_in_one_line(tiny_llama: "LanguageModel", tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give --member_holdout too"):
        eval_config()(member_forget=("a",))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"prompt": "a"}\n')
    with pytest.raises(DataError, match=r"bad\.jsonl line 2 needs 'gt' as text"):
        asked = config(tmp_path, memorised=(str(bad),))
        Memorisation().load(tiny_llama, asked, half="all", limit=None, progress=SILENT)
