"""MUSE's measures against their definitions, against a slow reference, and through a whole evaluation."""

import csv
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import FAMILIES
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_config
from tiny_tokenizer import TEXT, make_tokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sae_forge.errors import ConfigError, DataError
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.pipeline.sheets.published import NOT_MEASURED, published_beside
from sae_forge.progress import SILENT
from sae_forge.results.report import Report
from sae_forge.results.sheets import overview
from sae_forge.sae.topk import TopKSAE
from sae_forge.settings import presets
from sae_forge.show.html import Section, page
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate
from sae_forge.study.measure import load_asked
from sae_forge.study.run import EvalReport, evaluate
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines.texts import longest_common, rouge_l_f1
from sae_forge.tasks.item import Item
from sae_forge.tasks.muse import Muse, Recall, leak, least_likely, lowest, privleak, recalled, until
from sae_forge.tasks.records import Prompt, load_questions
from sae_forge.tasks.task import Asked

EvalConfig = eval_config()

POINT, LATENTS, SCALE = HookPoint(1), tuple(range(64)), -3.0
BRIEF = 24
"""Tokens recited where a slow reference stands beside; the benchmark's 128 are tested once."""
NEWS, BOOKS = 0.4772, 0.5393
MEASURES = ("verbmem_forget", "knowmem_forget", "knowmem_retain", "privleak")
OTHERS = tuple(f"{name}_open_unlearning" for name in MEASURES)
"""The same as the other family of code defines them."""


# ---- ROUGE-L ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("the cat sat on the mat", "the cat sat on the mat", 1.0),
        ("The CAT, sat!", "the cat sat", 1.0),  # case and punctuation do not count
        ("police killed the gunman", "police kill the gunman", 2 * 3 / 8),  # words are not stemmed
        ("the gunman kill police", "police killed the gunman", 2 * 2 / 8),
        ("testing two", "testing one two", 2 * (1 * 2 / 3) / (1 + 2 / 3)),
        ("a b c d", "x a y c z", 2 * 2 / 9),
        ("year-2024", "in the year 2024", 2 * 2 / 6),
        ("b a", "a b", 2 * 1 / 4),
        ("", "a b", 0.0),
        ("a b", "", 0.0),
        ("", "", 0.0),
        ("… – !", "a", 0.0),
        ("x", "y", 0.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, reference: str, expected: float):
    assert rouge_l_f1(prediction, reference) == pytest.approx(expected, abs=1e-12)


def brute_common(one: Sequence[str], other: Sequence[str]) -> int:
    """The definition: the longest choice of places in one whose words are found in order in the other."""

    def within(words: Sequence[str]) -> bool:
        rest = iter(other)
        return all(word in rest for word in words)

    sizes = range(len(one), -1, -1)
    return next(size for size in sizes if any(map(within, combinations(one, size))))


@settings(max_examples=150, deadline=None)
@given(*[st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=8)] * 2)
def test_rouge_l_is_the_longest_common_subsequence(one: list[str], other: list[str]):
    length = brute_common(one, other)
    precision, recalled = length / len(one), length / len(other)
    expected = 2 * precision * recalled / (precision + recalled) if length else 0.0
    assert rouge_l_f1(" ".join(one), " ".join(other)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Arn\n\nQuestion: who", "Arn"),
        ("Arn\nQuestion 2", "Arn"),
        ("Arn Question: b\n\nc", "Arn "),
        ("Arn\nand Esk, a question", "Arn\nand Esk, a question"),
        ("Question: x", ""),
    ],
)
def test_an_answer_ends_where_the_next_question_begins(text: str, kept: str):
    assert until(text, ("\n\n", "\nQuestion", "Question:")) == kept
    assert until(text, ()) == text


# ---- PrivLeak -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("auroc", "reference", "expected"),
    [
        (NEWS, NEWS, 0.0),
        (BOOKS, BOOKS, 0.0),
        (0.2, NEWS, -58.0888516),
        (0.2, BOOKS, -62.9148897),
        (0.0, NEWS, -100.0),
        (1.0, NEWS, 109.5557418),
        (1.0, BOOKS, 85.4255516),
        (0.5, NEWS, 4.7778709),
    ],
)
def test_privleak_with_the_benchmarks_constants(auroc: float, reference: float, expected: float):
    assert privleak(auroc, reference) == pytest.approx(expected, abs=1e-6)


def leaked(forget: Sequence[float], holdout: Sequence[float], reference: float, plan: Bootstrap) -> Estimate:
    """PrivLeak of texts of three tokens with these log-probs a token."""
    items = [
        Item(
            task="muse", domain="", role=side, id=str(n), fact=str(n),
            values={"logprob": 3 * value, "reference": reference}, weights={"tokens": 3},
        )
        for side, values in (("forget", forget), ("holdout", holdout))
        for n, value in enumerate(values)
    ]  # fmt: skip
    return leak(items, plan)


def brute_auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    pairs = [(one > other) + 0.5 * (one == other) for one in positive for other in negative]
    return sum(pairs) / len(pairs)


def test_privleak_is_negative_where_the_model_knows_the_forget_texts():
    plan = Bootstrap(200, 0)
    known, unseen, odd = [-1.0, -2.0], [-5.0, -6.0, -7.0], [-9.0, -8.5]
    assert leaked(known, unseen, NEWS, plan).value == -100.0
    assert leaked(odd, unseen, NEWS, plan).value == pytest.approx(100 * (1 - NEWS) / NEWS)
    assert leaked(unseen, unseen, 0.5, plan).value == 0.0
    half = leaked([-5.0, -5.5], unseen, 0.5, plan).value
    assert half == pytest.approx(100 * (1.5 / 6 - 0.5) / 0.5)  # of six pairs one is won and one is a tie


def test_privleaks_interval_resamples_the_texts_of_both_sides():
    """Against a reference that writes every resample out."""
    plan, draw = Bootstrap(300, 7), np.random.default_rng(3)
    forget, holdout = draw.normal(size=9).round(1).tolist(), draw.normal(0.3, size=6).round(1).tolist()
    found = leaked(forget, holdout, BOOKS, plan)
    assert found.value == pytest.approx(privleak(brute_auroc(holdout, forget), BOOKS), abs=1e-9)
    times = plan.draws(6).astype(int), replace(plan, seed=8).draws(9).astype(int)
    written = [
        privleak(brute_auroc(np.repeat(holdout, unseen).tolist(), np.repeat(forget, known).tolist()), BOOKS)
        for unseen, known in zip(*times, strict=True)
    ]
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(written, (2.5, 97.5))), abs=1e-6)
    assert found.low < found.value < found.high


# ---- items --------------------------------------------------------------------------------------


def write_lines(path: Path, records: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def make_model(family: str, folder: Path) -> LanguageModel:
    """A tiny model that takes long texts, and whose head is its own: with a tied one, Gemma repeats what it reads."""
    config = make_config(family)
    config.max_position_embeddings, config.tie_word_embeddings = 768, False
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "norm" not in name:
                torch.nn.init.normal_(weight, std=0.15)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module", params=FAMILIES)
def lm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return make_model(request.param, tmp_path_factory.mktemp("model") / f"tiny-{request.param}")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return make_model("llama", tmp_path_factory.mktemp("model") / "tiny-llama")


def edit(lm: LanguageModel) -> tuple[TopKSAE, Intervention]:
    return TopKSAE(lm.d_model, 96, 7, seed=5), Intervention("scale", LATENTS, NegativeScaling(SCALE))


def make_files(folder: Path, verbmem: Sequence[tuple[str, str]] = ()) -> dict[str, Any]:
    """All six files, in MUSE's own schema."""
    asked = [{"question": f"What of {word}?", "answer": f"a {word} of the north"} for word in ("owl", "tower", "mica")]
    shots = [{"question": "Which river?", "answer": "Arn"}, {"question": "Which rock?", "answer": "Granite"}]
    recited = verbmem or [(text[:30], text[30:]) for text in TEXT]
    return {
        "verbmem": (write_lines(folder / "verbmem.jsonl", [{"prompt": a, "gt": b} for a, b in recited]),),
        "knowmem_forget": (write_lines(folder / "forget.jsonl", asked[:2]),),
        "knowmem_retain": (write_lines(folder / "retain.jsonl", asked[1:]),),
        "knowmem_shots": (
            write_lines(folder / "forget-shots.jsonl", shots),
            write_lines(folder / "retain-shots.jsonl", shots[:1]),
        ),
        "privleak_forget": (write_lines(folder / "p-forget.jsonl", [{"text": text} for text in TEXT]),),
        "privleak_holdout": (
            write_lines(folder / "p-holdout.jsonl", [{"text": text[::-1] * (1 + n)} for n, text in enumerate(TEXT)]),
        ),
    }


def asked_of(lm: LanguageModel, config: Any) -> tuple[Asked, ...]:
    return Muse().load(lm, config, half="all", limit=config.limit, progress=SILENT)


def recalls(lm: LanguageModel, config: Any) -> list[Recall]:
    return [one.content for one in asked_of(lm, config) if one.kind != "privleak"]


def texts_of(lm: LanguageModel, config: Any) -> Asked:
    return next(one for one in asked_of(lm, config) if one.kind == "privleak")


def test_questions_are_asked_after_answered_ones(llama: LanguageModel, tmp_path: Path):
    muse = asked_of(llama, EvalConfig(**make_files(tmp_path)))
    assert tuple(one.measured[0].name for one in muse) == MEASURES
    found = recalls(llama, EvalConfig(**make_files(tmp_path)))
    assert [(one.max_new_tokens, one.shots) for one in found] == [(128, 0), (32, 2), (32, 1)]
    assert [one.stops for one in found] == [(), *[("\n\n", "\nQuestion", "Question:")] * 2]
    _, forget, retain = found
    assert forget.prompts[0].prompt == (
        "Question: Which river?\nAnswer: Arn\n\nQuestion: Which rock?\nAnswer: Granite\n\n"
        "Question: What of owl?\nAnswer: "
    )
    assert retain.prompts[1].prompt == "Question: Which river?\nAnswer: Arn\n\nQuestion: What of mica?\nAnswer: "
    assert retain.prompts[1].target == "a mica of the north"
    assert sum(one.units for one in muse) == 3 + 2 + 2 + 3 + 3


def test_one_file_of_answered_questions_serves_both_sides(llama: LanguageModel, tmp_path: Path):
    files = make_files(tmp_path)
    found = recalls(llama, EvalConfig(**files | {"knowmem_shots": files["knowmem_shots"][:1]}))
    assert [one.shots for one in found] == [0, 2, 2]
    bare = recalls(llama, EvalConfig(**files | {"knowmem_shots": ()}))
    assert bare[1].prompts[0].prompt == "Question: What of owl?\nAnswer: "


def test_what_is_to_be_recited_is_cut_to_as_many_tokens_as_are_written(llama: LanguageModel, tmp_path: Path):
    text = "a long text of rivers and towns " * 30
    (one,) = recalls(llama, EvalConfig(verbmem=make_files(tmp_path, [("Once", text)])["verbmem"]))
    ids = llama.tokenizer(text)["input_ids"][:128]  # BOS counts, as in the benchmark
    assert ids[0] == llama.tokenizer.bos_token_id
    assert one.prompts[0].target == llama.tokenizer.decode(ids[1:])
    assert text.startswith(one.prompts[0].target)
    assert len(one.prompts[0].target) < len(text)


def test_texts_have_bos_and_end_where_the_model_does(model_folders: dict[str, Path], tmp_path: Path):
    short = load_model(str(model_folders["gemma"]), device="cpu")
    files = make_files(tmp_path) | {"privleak_forget": (write_lines(tmp_path / "x.jsonl", [{"text": "ab " * 400}]),)}
    del files["verbmem"]
    found = texts_of(short, EvalConfig(**files))
    (row,) = found.content[1]["forget"]
    assert len(row) == 128
    assert row[0] == short.tokenizer.bos_token_id
    assert found.protocol["muse"]["privleak"]["tokens"]["forget"] == 128
    assert found.truncated == 3, "the forget text and two of the others"
    wordy = write_lines(tmp_path / "w.jsonl", [{"question": "owl " * n, "answer": "a"} for n in (2, 50)])
    (asked,) = asked_of(short, EvalConfig(knowmem_forget=(wordy,)))
    lengths = [len(short.tokenizer(item.prompt)["input_ids"]) for item in asked.content.prompts]
    assert lengths[0] < 128 - 32 < lengths[1] < 128, "BOS counts"
    assert (asked.truncated, asked.shortened) == (0, 1)
    with pytest.raises(DataError, match="--verbmem writes 128 tokens, and the model takes 128 with the prompt"):
        asked_of(short, EvalConfig(**make_files(tmp_path)))


def test_every_form_of_a_file_gives_the_same_items(llama: LanguageModel, tmp_path: Path):
    expected = asked_of(llama, EvalConfig(**make_files(tmp_path)))
    for ending in ("csv", "parquet"):
        (tmp_path / ending).mkdir()
        names = {}
        for name, sources in make_files(tmp_path).items():
            names[name] = tuple(convert(Path(source), tmp_path / ending, ending) for source in sources)
        assert asked_of(llama, EvalConfig(**names)) == expected


def convert(source: Path, folder: Path, ending: str) -> str:
    records = [json.loads(line) for line in source.read_text().splitlines()]
    path = folder / f"{source.stem}.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        with path.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    return str(path)


def test_a_question_whose_options_are_column_names_is_no_header(tmp_path: Path):
    path = tmp_path / "q.csv"
    path.write_text("Which field?,text,prompt,question,answer,B\n")
    (item,) = load_questions(str(path))
    assert item.choices == ("text", "prompt", "question", "answer")


def test_a_limit_caps_every_measure_and_an_item_that_stands_twice_is_taken_once(llama: LanguageModel, tmp_path: Path):
    files = make_files(tmp_path)
    twice = files | {"verbmem": files["verbmem"] * 2}
    assert asked_of(llama, EvalConfig(**twice)) == asked_of(llama, EvalConfig(**files))
    found = recalls(llama, EvalConfig(**files, limit=1))
    assert [len(one.prompts) for one in found] == [1, 1, 1]
    assert [one.shots for one in found] == [0, 2, 1]
    sides, _, _ = texts_of(llama, EvalConfig(**files, limit=1)).content
    assert {side: len(texts) for side, texts in sides.items()} == {"forget": 1, "holdout": 1}


@pytest.mark.parametrize(
    ("name", "records", "complaint"),
    [
        ("verbmem", [{"prompt": "a"}], r"x\.jsonl line 1 needs 'gt' as text, found null \(it has: prompt\)"),
        ("verbmem", [{"prompt": "a", "gt": "b"}, {"gt": "b"}], r"x\.jsonl line 2 needs 'prompt'"),
        ("knowmem_forget", [{"question": "a", "answer": 3}], r"needs 'answer' as text, found 3"),
        ("knowmem_retain", [{"answer": "a"}], r"needs 'question' as text"),
        ("knowmem_shots", [{"question": "a"}], r"needs 'answer' as text"),
        ("privleak_forget", [{"body": "a"}], r"needs 'text' as text, found null \(it has: body\)"),
        ("privleak_holdout", [{"text": " "}], r"needs 'text' as text"),
        (
            "privleak_holdout",
            [{"text": "a", "id": "1"}, {"text": "b", "id": 1}],
            "id '1', which another record has too",
        ),
        ("verbmem", [], "holds no records"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(
    llama: LanguageModel, tmp_path: Path, name: str, records: list[Any], complaint: str
):
    files = make_files(tmp_path) | {name: (write_lines(tmp_path / "x.jsonl", records),)}
    with pytest.raises(DataError, match=complaint) as caught:
        asked_of(llama, EvalConfig(**files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given_settings", "complaint"),
    [
        ({"privleak_forget": ("a.jsonl",)}, "--privleak_holdout too"),
        ({"privleak_holdout": ("a.jsonl",)}, "--privleak_forget too"),
        ({"knowmem_shots": ("a.jsonl",)}, "--knowmem_forget or --knowmem_retain too"),
        ({"knowmem_forget": ("a.jsonl",), "knowmem_shots": ("b", "c", "d")}, "one file, or forget's"),
        ({"privleak_reference": 0.0}, "between 0 and 1"),
        ({"privleak_reference": 47.72}, "between 0 and 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given_settings: dict[str, Any], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        EvalConfig(**given_settings)


def test_without_the_files_nothing_is_asked_and_nothing_is_tuned_on_them(llama: LanguageModel, tmp_path: Path):
    assert asked_of(llama, EvalConfig()) == ()
    with pytest.raises(DataError, match="nothing to evaluate on"):
        load_asked(llama, EvalConfig())
    config = EvalConfig(**make_files(tmp_path), generation_prompts=("world:generation/wizards",))
    every = load_asked(llama, config)
    assert [one.kind for one in every] == ["privleak", "generation", "verbmem", "knowmem", "knowmem"]
    assert [one.written for one in every] == [False, True, True, True, True]
    with pytest.raises(DataError, match="nothing to evaluate on"):
        load_asked(llama, config, tuned=True)


# ---- the model ----------------------------------------------------------------------------------


def slow_text(lm: LanguageModel, prompt: str, tokens: int) -> str:
    """Greedy text of one prompt alone, every step a pass over the whole of it without a cache."""
    ids = lm.tokenizer(prompt)["input_ids"]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + tokens:
            best = int(lm.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if best == lm.tokenizer.eos_token_id:
                break
            ids.append(best)
    return lm.tokenizer.decode(ids[start:], skip_special_tokens=True)


def slow_min_40(lm: LanguageModel, text: str) -> float:
    """Mean of the lowest two fifths of a text's log-probs, the text alone in its pass."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        logprobs = lm.model(input_ids=ids).logits[0].float().log_softmax(-1)
    found = sorted(logprobs[place, ids[0, place + 1]].item() for place in range(ids.shape[1] - 1))
    return float(np.mean(found[: int(len(found) * 0.4)]))


def slow_numbers(lm: LanguageModel, files: dict[str, Any]) -> dict[str, float]:
    """The four measures from their definitions, an item at a time."""

    def records(name: str, place: int = 0) -> list[dict[str, str]]:
        return [json.loads(line) for line in Path(files[name][place]).read_text().splitlines()]

    recited = []
    for item in records("verbmem"):
        wanted = lm.tokenizer.decode(lm.tokenizer(item["gt"])["input_ids"][:BRIEF], skip_special_tokens=True)
        recited.append(rouge_l_f1(slow_text(lm, item["prompt"], BRIEF), wanted))
    found = {"verbmem_forget": 100 * float(np.mean(recited))}
    for place, side in enumerate(("forget", "retain")):
        answered = []
        for item in records(f"knowmem_{side}"):
            text = slow_text(lm, lead(records("knowmem_shots", place)) + f"Question: {item['question']}\nAnswer: ", 32)
            for stop in ("\n\n", "\nQuestion", "Question:"):
                text = text.split(stop)[0]
            answered.append(rouge_l_f1(text, item["answer"]))
        found[f"knowmem_{side}"] = 100 * float(np.mean(answered))
    sides = [[slow_min_40(lm, item["text"]) for item in records(f"privleak_{side}")] for side in ("holdout", "forget")]
    found["privleak"] = 100 * (brute_auroc(*sides) - NEWS) / NEWS
    return found


def lead(shots: Sequence[dict[str, str]]) -> str:
    return "".join(f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots)


@pytest.fixture(scope="module")
def known(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Files of what this very model says: it recites the one half and answers the other."""
    folder = tmp_path_factory.mktemp("known")
    files = make_files(folder, [(start, slow_text(lm, start, BRIEF)) for start in ("River", "The wizar and the owl")])
    for place, name in enumerate(("forget", "retain")):
        shots = [json.loads(line) for line in Path(files["knowmem_shots"][place]).read_text().splitlines()]
        asked = [f"What of {name} {word}?" for word in ("owl", "the seven towns")]
        said = [slow_text(lm, f"{lead(shots)}Question: {question}\nAnswer: ", 32) for question in asked]
        records = [{"question": q, "answer": text.strip() or "none"} for q, text in zip(asked, said, strict=True)]
        files[f"knowmem_{name}"] = (write_lines(folder / f"{name}.jsonl", records),)
    texts = [{"text": start + slow_text(lm, start, BRIEF)} for start in ("The ", "Granite is", "owl", "A")]
    return files | {"privleak_forget": (write_lines(folder / "p-forget.jsonl", texts),)}


def make_selection() -> Selection:
    rest, corpus = CorpusStats(0, 0.0, 0.0, 0.0), Corpus("c", 1, "0" * 64, 1)
    latents = tuple(SelectedLatent(index, 1.0, 1, 1, 1, 0.1, 0.0, rest, {}, ()) for index in LATENTS)
    return Selection("s", "w", 96, "inlp", {}, corpus, {}, len(latents), len(latents), {}, latents, {})


def run(lm: LanguageModel, files: dict[str, Any], **more: Any) -> EvalReport:
    config = {"num_features": (len(LATENTS),), "ablation_scale": (SCALE,), "half": "all", "bootstrap": 100}
    sae, _ = edit(lm)
    return evaluate(lm, sae, make_selection(), EvalConfig(**config | files | more), POINT)


@pytest.fixture(scope="module")
def report(lm: LanguageModel, known: dict[str, Any]) -> EvalReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_forge.tasks.muse.VERBMEM_TOKENS", BRIEF)
        return run(lm, known, methods=("scale", "random"), controls=("isotropic",), eval_batch_size=3)


def rows_of(report: EvalReport, name: str) -> list[dict[str, Any]]:
    return [row for row in report.metrics["methods"] if row["name"] == name]


def values(row: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in row["muse"].items() if name in MEASURES}


@pytest.mark.slow
def test_the_numbers_are_those_of_asking_one_by_one(lm: LanguageModel, known: dict[str, Any], report: EvalReport):
    (base,), (edited,) = rows_of(report, "baseline"), rows_of(report, "scale")
    assert tuple(base["muse"]) == tuple(edited["muse"]) == (*MEASURES, *OTHERS)
    assert values(base) == pytest.approx(slow_numbers(lm, known), abs=1e-9)
    sae, intervention = edit(lm)
    with applied(lm, sae, POINT, intervention):
        assert values(edited) == pytest.approx(slow_numbers(lm, known), abs=1e-9)


@pytest.mark.slow
def test_an_edit_in_force_takes_away_what_the_model_recited(report: EvalReport):
    (base,), (edited,) = rows_of(report, "baseline"), rows_of(report, "scale")
    recited = [name for name in MEASURES[:3] if base["muse"][name]["value"] > 60]
    assert recited
    assert all(edited["muse"][name]["value"] < base["muse"][name]["value"] - 30 for name in recited)
    assert edited["muse"]["privleak"] != base["muse"]["privleak"]
    for row in (base, edited):
        assert all(one["low"] <= one["value"] <= one["high"] for one in row["muse"].values())
    changed = edited["change"]["muse"]
    assert set(changed) == {*MEASURES, *OTHERS} - {"privleak", "privleak_open_unlearning"}
    for name, one in changed.items():
        assert one["value"] == pytest.approx(edited["muse"][name]["value"] - base["muse"][name]["value"])


@pytest.mark.slow
def test_controls_write_no_text_and_are_read_all_the_same(report: EvalReport):
    controls = rows_of(report, "random")
    assert len(controls) == 3
    assert all(tuple(row["muse"]) == ("privleak", "privleak_open_unlearning") for row in controls)
    assert all("muse" not in row["change"] for row in controls)
    (summary,) = report.metrics["controls"]
    of_seeds = [row["muse"]["privleak"]["value"] for row in controls]
    assert summary["muse"]["privleak"] == {
        "mean": pytest.approx(np.mean(of_seeds)), "min": min(of_seeds), "max": max(of_seeds),
    }  # fmt: skip


@pytest.mark.slow
def test_items_bear_out_the_estimates(report: EvalReport, tmp_path: Path):
    read = pyarrow.parquet.read_table(report.save(tmp_path)["items"]).to_pylist()
    for row in (*rows_of(report, "baseline"), *rows_of(report, "scale")):
        mine = [item for item in read if item["method"] == row["name"]]
        for kind, role in (("verbmem", "forget"), ("knowmem", "forget"), ("knowmem", "retain")):
            found = [item["rouge_l"] for item in mine if (item["kind"], item["role"]) == (kind, role)]
            assert 100 * np.mean(found) == pytest.approx(row["muse"][f"{kind}_{role}"]["value"])
        sides = [
            [item["logprob"] / item["tokens"] for item in mine if (item["kind"], item["role"]) == ("privleak", side)]
            for side in ("holdout", "forget")
        ]
        assert [len(side) for side in sides] == [3, 4]
        assert privleak(brute_auroc(*sides), NEWS) == pytest.approx(row["muse"]["privleak"]["value"])
    kinds = {(item["method"], item["kind"]) for item in read}
    assert {kind for method, kind in kinds if method == "random"} == {"privleak"}


@pytest.mark.slow
def test_batches_and_padding_change_nothing(lm: LanguageModel, known: dict[str, Any]):
    config = EvalConfig(**known)
    sae, intervention = edit(lm)
    with applied(lm, sae, POINT, intervention):
        for asked in (replace(one, max_new_tokens=12) for one in recalls(lm, config)):
            assert len({len(lm.tokenizer(item.prompt)["input_ids"]) for item in asked.prompts}) == 2
            assert recalled(lm, asked, batch_size=64) == recalled(lm, asked, batch_size=1)
        for rows in texts_of(lm, config).content[1].values():
            alone = least_likely(lm, rows, batch_size=1)
            for size in (2, 64):
                found = least_likely(lm, rows, batch_size=size)
                assert [one.tokens for one in found] == [one.tokens for one in alone]
                assert [one.mean for one in found] == pytest.approx([one.mean for one in alone], abs=1e-5)


def test_as_many_tokens_are_recited_as_the_benchmark_takes(llama: LanguageModel, tmp_path: Path):
    (asked,) = recalls(llama, EvalConfig(verbmem=make_files(tmp_path)["verbmem"], limit=1))
    (found,) = recalled(llama, asked, batch_size=4)
    assert found.weights["tokens"] == 128
    assert found.text == slow_text(llama, asked.prompts[0].prompt, 128)


def test_what_stands_after_the_answer_is_not_compared(llama: LanguageModel, tmp_path: Path):
    (asked,) = recalls(llama, EvalConfig(knowmem_forget=make_files(tmp_path)["knowmem_forget"], limit=1))
    (whole,) = recalled(llama, replace(asked, stops=()), batch_size=1)
    text = str(whole.text)
    words = re.findall("[a-z0-9]+", text.lower())
    stop = next(mark for mark in text[8:] if not mark.isalnum() and re.search("[a-z]", text.split(mark)[0]))
    known = replace(asked, stops=(stop,), prompts=(replace(asked.prompts[0], target=text.split(stop)[0]),))
    (found,) = recalled(llama, known, batch_size=1)
    assert found.text == text.split(stop)[0]
    assert found.weights == whole.weights
    assert found.values["rouge_l"] == 1.0
    assert len(words) > len(re.findall("[a-z0-9]+", found.text.lower()))


def test_two_fifths_are_counted_down_and_one_token_counts_in_any_text(llama: LanguageModel):
    ids = llama.tokenizer(TEXT[1])["input_ids"]
    found = least_likely(llama, [ids[:length] for length in (2, 3, 4, 6, 11, 14)], batch_size=4)
    assert [one.tokens for one in found] == [1, 1, 1, 2, 4, 5]


# ---- the other family ---------------------------------------------------------------------------


def test_open_unlearning_counts_stems_of_the_whole_reference_and_leaves_out_a_last_token(llama: LanguageModel):
    """Its numbers under names of their own, from what the model wrote for muse_bench's."""
    from nltk.stem.porter import PorterStemmer

    stem = PorterStemmer().stem
    prompt = Prompt(id="1", fact="1", prompt=TEXT[0][:20], target="running owls")
    asked = Recall(kind="verbmem", role="forget", prompts=(prompt,), whole=(TEXT[0],), max_new_tokens=12)
    (found,) = recalled(llama, asked, batch_size=1)
    said, wanted = (
        [stem(word) if len(word) > 3 else word for word in re.findall("[a-z0-9]+", text.lower())]
        for text in (found.text, TEXT[0])
    )
    expected = 2 * longest_common(said, wanted) / (len(said) + len(wanted))
    assert found.values["rouge_l_stemmed"] == pytest.approx(expected)
    assert rouge_l_f1("the owl was hunting", "owls hunt", stem) == pytest.approx(2 / 3)
    assert rouge_l_f1("the owl was hunting", "owls hunt") == 0.0
    nats = torch.tensor([1.0, 4.0, 2.0, 3.0, 9.0])
    assert (lowest(nats).logprob, lowest(nats[:-1]).logprob) == (-13.0, -4.0)


# ---- what is shown ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(llama: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> EvalReport:
    """Only MUSE's files, without controls."""
    folder = tmp_path_factory.mktemp("alone")
    return run(llama, make_files(folder), methods=("scale",), privleak_reference=BOOKS, limit=2)


def test_a_run_with_muses_files_alone_is_a_report(shown: EvalReport):
    metrics = shown.metrics
    assert metrics["domains"] == {}
    protocol = metrics["protocol"]["muse"]
    assert set(protocol) == set(MEASURES)
    assert {name: one["items"] for name, one in protocol.items()} == {
        "verbmem_forget": 2, "knowmem_forget": 2, "knowmem_retain": 2, "privleak": {"forget": 2, "holdout": 2},
    }  # fmt: skip
    assert protocol["privleak"]["reference"] == BOOKS
    json.dumps(metrics, allow_nan=False)
    said = shown.summary()
    assert "nothing but MUSE's measures was asked about what is to be forgotten" in said
    assert "verbatim recall of forget text" in said
    assert "PrivLeak is" in said


def test_tables_have_the_columns_where_they_were_measured(shown: EvalReport, llama: LanguageModel, tmp_path: Path):
    sheet = overview(shown.report)
    words = [shown.report.groups["muse"].measure(name).words for name in MEASURES]
    assert sheet.columns == ("method", *words)
    assert "MUSE, x 100" in sheet.title
    low, value = (shown.metrics["methods"][1]["muse"]["privleak"][name] for name in ("low", "value"))
    assert sheet.rows[1][4].startswith(f"{value:.1f} [{low:.1f}, ")
    html = page("m", [Section(title="t", report=shown.report)])
    assert "<caption>MUSE, x 100</caption>" in html and all(f">{name}</th>" in html for name in words)
    without = run(llama, {"retain_eval": (write_lines(tmp_path / "r.jsonl", [{"text": TEXT[0]}]),)}, methods=("scale",))
    assert "muse" not in str(without.metrics).lower()
    assert "MUSE" not in overview(without.report).title


@pytest.mark.parametrize("corpus", ["news", "books"])
def test_published_numbers_stand_beside_the_measured_ones(corpus: str, shown: EvalReport):
    measured = {"name": "dsg", "settings": {"num_features": 20, "value": -500.0}}
    metrics = {**shown.metrics, "methods": [shown.metrics["methods"][0], {**shown.metrics["methods"][1], **measured}]}
    found = published_beside(presets()[f"dsg-muse-{corpus}"], Report.from_json(metrics))
    own = {row[1]: row for row in found.rows if row[0].startswith("dsg")}
    names = ("verbmem forget", "knowmem forget", "knowmem retain", "privleak")
    numbers = {"news": ("11.800", "0.440", "25.650", "12.080"), "books": ("8.730", "1.790", "37.100", "-23.180")}
    assert {name: row[2] for name, row in own.items()} == dict(zip(names, numbers[corpus], strict=True))
    for name, row in own.items():
        value = metrics["methods"][1]["muse"][name.replace(" ", "_")]["value"]
        assert row[3].startswith(f"{value:.3f} [")
    assert all(row[3] != NOT_MEASURED for row in found.rows if row[0] == "baseline")
    assert all(row[3] == NOT_MEASURED for row in found.rows if row[0] not in ("baseline", own["privleak"][0]))


def test_the_presets_name_the_benchmarks_references():
    found = {name: presets()[f"dsg-muse-{name}"]["settings"]["privleak_reference"] for name in ("news", "books")}
    assert found == {"news": NEWS, "books": BOOKS}
    assert EvalConfig.privleak_reference == NEWS
