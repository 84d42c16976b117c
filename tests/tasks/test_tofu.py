"""TOFU's measures against their definitions, against a slow reference, and through a whole evaluation."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from scipy.stats import hmean, ks_2samp

from sae_forge.errors import ConfigError, DataError
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT
from sae_forge.results.report import Report
from sae_forge.results.sheets import overview
from sae_forge.sae.topk import TopKSAE
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.truth import truth_ratio, truth_ratio_of_means
from sae_forge.study.run import EvalReport, evaluate
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines.texts import rouge_l_recall
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked
from sae_forge.tasks.tofu import KEPT, SIDES, Tofu, quality, stemmer

EvalConfig = eval_config()
CHAT = (
    "{{ bos_token }}{% for turn in messages %}[{{ turn['role'] }}]{{ turn['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
BRIEF = 6
"""Tokens written where the benchmark writes 200."""


# ---- formulas -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "text", "recall"),
    [  # values of rouge_score 0.1.2 with its stemmer
        ("The author was dying early, saucers denied happily.", "authors die early saucer denies happy", 5 / 8),
        ("She published 12 relational novels", "her relation novel publishing 12", 0.4),
        ("the cat", "cat the", 0.5),
        ("", "cat", 0.0),
        ("Ünïcode", "", 0.0),
    ],
)  # fmt: skip
def test_recall_counts_words_by_their_stems(reference: str, text: str, recall: float):
    assert rouge_l_recall(text, reference, stemmer()) == pytest.approx(recall)


def test_the_released_ratio_takes_the_geometric_mean_and_the_paper_the_arithmetic():
    right, wrong = -math.log(0.5), [-math.log(0.2), -math.log(0.05)]
    assert truth_ratio(right, wrong) == pytest.approx(0.1 / 0.5)
    assert truth_ratio_of_means(right, wrong) == pytest.approx(0.125 / 0.5)


def test_forget_quality_is_the_exact_test_against_a_model_that_never_saw_the_text():
    generator = np.random.default_rng(0)
    now, never = generator.random(30), generator.random(25) + 0.3

    def item(domain: str, number: int, value: float) -> Item:
        return Item(
            task="tofu", domain=domain, role="", id=str(number), fact=str(number), values={"truth_ratio": value}
        )

    items = [item("forget", number, value) for number, value in enumerate(now)]
    items += [item("reference", number, value) for number, value in enumerate(never)]
    found = quality(items, Bootstrap(resamples=50))
    assert found.value == pytest.approx(ks_2samp(now, never, method="exact").pvalue)
    assert 0 <= found.low <= found.high <= 1
    assert found.low < found.high
    same = quality([*items[:30], *(item("reference", n, v) for n, v in enumerate(now))], Bootstrap(resamples=50))
    assert same.value == 1


# ---- files --------------------------------------------------------------------------------------


def records_of(side: str, count: int = 4) -> list[dict[str, Any]]:
    return [
        {
            "question": f"Which {side} town has {number} rivers?",
            "answer": f"The town of Arn {number}",
            **({"paraphrased_answer": f"It is Arn {number}"} if side in ("forget", "retain") else {}),
            "perturbed_answer": [f"The town of Esk {number}", f"The village {number * 7} of Orm", "None at all"],
        }
        for number in range(count)
    ]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("tofu")
    sides: dict[str, Any] = {f"tofu_{side}": (write(folder / f"{side}.jsonl", records_of(side)),) for side in SIDES}
    log = {"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": {n: {"score": n / 10} for n in range(9)}}}
    (folder / "TOFU_EVAL.json").write_text(json.dumps(log))
    return sides | {"tofu_reference": (str(folder / "TOFU_EVAL.json"),)}


def asked_of(lm: LanguageModel, **settings: Any) -> tuple[Asked, ...]:
    config = EvalConfig(**settings)
    return Tofu().load(lm, config, half="all", limit=config.limit, progress=SILENT)


def test_what_is_named_decides_what_is_measured(tiny_llama: LanguageModel, files: dict[str, Any]):
    assert asked_of(tiny_llama) == ()
    read, written = asked_of(tiny_llama, **files)
    assert (read.written, written.written) == (False, True)
    assert {"forget_quality", "model_utility"} <= {measure.name for measure in read.measured}
    assert "retain_rouge" in {measure.name for measure in written.measured}
    alone, _ = asked_of(tiny_llama, tofu_forget=files["tofu_forget"], limit=2)
    assert alone.units == 2
    assert {measure.name for measure in alone.measured} == {
        "forget_probability", "forget_truth_ratio", "forget_truth_ratio_paper",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "complaint"),
    [
        ({"question": "q", "answer": "a"}, r"line 1 needs 'paraphrased_answer' as text"),
        ({"question": "q", "answer": "a", "paraphrased_answer": "b"}, r"needs 'perturbed_answer' as a list.* None"),
        ({"question": "q", "answer": "a", "paraphrased_answer": "b", "perturbed_answer": []}, r"found \[\]"),
        ({"question": "q", "answer": "a", "paraphrased_answer": "b", "perturbed_answer": [3]}, "as text, found 3"),
        ({"answer": "a"}, "needs 'question' as text"),
    ],
)
def test_a_malformed_record_is_one_line(tiny_llama: LanguageModel, tmp_path: Path, record: Any, complaint: str):
    with pytest.raises(DataError, match=complaint) as caught:
        asked_of(tiny_llama, tofu_forget=(write(tmp_path / "x.jsonl", [record]),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"forget_truth_ratio": {"value_by_index": {"0": {"score": null}}}}']
)
def test_a_reference_without_truth_ratios_is_one_line(
    tiny_llama: LanguageModel, files: dict[str, Any], tmp_path: Path, text: str
):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match=r"r\.json holds"):
        asked_of(tiny_llama, **files | {"tofu_reference": (str(tmp_path / "r.json"),)})
    with pytest.raises(DataError, match="No such file"):
        asked_of(tiny_llama, **files | {"tofu_reference": (str(tmp_path / "none.json"),)})
    with pytest.raises(ConfigError, match="--tofu_forget too"):
        EvalConfig(tofu_reference=files["tofu_reference"])


# ---- the model ----------------------------------------------------------------------------------


def slow_loss(lm: LanguageModel, prompt: str, answer: str) -> float:
    """Mean loss of the answer and the EOS after it, alone in a pass over all."""
    start = lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = lm.tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    assert whole[: len(start)] == start
    front = [] if whole[0] == lm.tokenizer.bos_token_id else [lm.tokenizer.bos_token_id]
    ids = torch.tensor([[*front, *whole, lm.tokenizer.eos_token_id]])
    labels = ids.clone()
    labels[:, : len(front) + len(start)] = -100
    with torch.no_grad():
        return float(lm.model(input_ids=ids, labels=labels).loss)


def slow_numbers(lm: LanguageModel, frame: str) -> dict[str, float]:
    numbers, ratios = {}, {}
    for side in SIDES:
        probabilities, scores, ratios[side] = [], [], []
        for record in records_of(side):
            prompt = f"Question: {record['question']}\nAnswer:"
            lead, close = (" ", "")
            if frame == "chat":
                turns = [{"role": "user", "content": record["question"]}]
                prompt = lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
                lead, close = ("", "\n")
            answer, *wrong = (
                slow_loss(lm, prompt, lead + text + close) for text in (record["answer"], *record["perturbed_answer"])
            )
            right = slow_loss(lm, prompt, lead + record.get("paraphrased_answer", record["answer"]) + close)
            ratio = math.exp(-np.mean(wrong)) / math.exp(-right)
            ratios[side].append(ratio)
            scores.append(min(ratio, 1 / ratio) if side == "forget" else max(0, 1 - ratio))
            among = sum(math.exp(-loss) for loss in wrong) if side in KEPT[1:] else 0
            p = math.exp(-answer)
            probabilities.append(p / (p + among) if among else p)
        numbers[f"{side}_probability"], numbers[f"{side}_truth_ratio"] = np.mean(probabilities), np.mean(scores)
    numbers["forget_quality"] = ks_2samp(ratios["forget"], [n / 10 for n in range(9)]).pvalue
    return numbers


@pytest.fixture(scope="module")
def report(tiny_llama: LanguageModel, files: dict[str, Any]) -> EvalReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_forge.tasks.tofu.NEW_TOKENS", BRIEF)
        return run(tiny_llama, methods=("scale", "random"), controls=("isotropic",), **files)


def run(lm: LanguageModel, **settings: Any) -> EvalReport:
    sae = TopKSAE(lm.d_model, 64, 8, seed=5)
    rest, corpus = CorpusStats(0, 0.0, 0.0, 0.0), Corpus("c", 1, "0" * 64, 1)
    latents = tuple(SelectedLatent(index, 1.0, 1, 1, 1, 0.1, 0.0, rest, {}, ()) for index in range(32))
    selection = Selection("s", "w", 64, "inlp", {}, corpus, {}, 32, 32, {}, latents, {})
    config = EvalConfig(num_features=(32,), ablation_scale=(-3.0,), half="all", bootstrap=100, **settings)
    return evaluate(lm, sae, selection, config, HookPoint(1))


def values(row: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in row["tofu"].items()}


def rows_of(report: EvalReport, name: str) -> list[dict[str, Any]]:
    return [row for row in report.metrics["methods"] if row["name"] == name]


def test_the_numbers_are_those_of_asking_one_by_one(tiny_llama: LanguageModel, report: EvalReport):
    (base,) = rows_of(report, "baseline")
    for name, value in slow_numbers(tiny_llama, "question").items():
        assert values(base)[name] == pytest.approx(value, rel=1e-4), name
    nine = [values(base)[f"{side}_{part}"] for side in KEPT for part in ("probability", "rouge", "truth_ratio")]
    assert values(base)["model_utility"] == pytest.approx(hmean(nine) if min(nine) > 0 else 0)


def test_in_a_chat_the_turn_is_closed_before_the_eos(tiny_llama: LanguageModel, files: dict[str, Any]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_llama.tokenizer, "chat_template", CHAT)
        read, written = asked_of(tiny_llama, tofu_frame="chat", **files)
        items = Tofu().ask(tiny_llama, read, batch_size=3, done=None)
        expected = slow_numbers(tiny_llama, "chat")
        assert written.content[1][0].text.endswith("rivers?\n[assistant]")
    for name in ("forget_probability", "world_facts_truth_ratio"):
        assert np.mean([item.values[name] for item in items if name in item.values]) == pytest.approx(expected[name])
    with pytest.raises(ConfigError, match="has none"):
        asked_of(tiny_llama, tofu_frame="chat", **files)


def test_controls_answer_and_write_nothing(report: EvalReport):
    (edited,), controls = rows_of(report, "scale"), rows_of(report, "random")
    assert len(controls) == 3
    for row in controls:
        assert "forget_quality" in row["tofu"]
        assert not {"model_utility", "retain_rouge"} & set(row["tofu"])
    assert edited["tofu"]["forget_truth_ratio"] != rows_of(report, "baseline")[0]["tofu"]["forget_truth_ratio"]
    (summary,) = report.metrics["controls"]
    assert summary["tofu"]["forget_truth_ratio"]["min"] <= summary["tofu"]["forget_truth_ratio"]["max"]


def test_items_of_an_eval_are_a_reference_for_another(
    tiny_llama: LanguageModel, report: EvalReport, files: dict[str, Any], tmp_path: Path
):
    items = report.save(tmp_path)["items"]
    rows = pyarrow.parquet.read_table(items).to_pylist()
    ratios = [row["truth_ratio"] for row in rows if row["method"] == "baseline" and row["domain"] == "forget"]
    read, _ = asked_of(tiny_llama, **files | {"tofu_reference": (str(items),)})
    answers = Tofu().ask(tiny_llama, read, batch_size=8, done=None)
    of_reference = [item.values["truth_ratio"] for item in answers if item.domain == "reference"]
    assert of_reference == [ratio for ratio in ratios if ratio is not None]
    assert quality(answers, Bootstrap(resamples=2)).value == 1


def test_tables_say_what_was_measured(report: EvalReport):
    printed = json.dumps(list(overview(Report.from_json(report.metrics)).rows), default=str)
    columns = json.dumps(overview(Report.from_json(report.metrics)).columns, default=str)
    assert "forget quality" in printed + columns
    assert "model utility" in printed + columns
