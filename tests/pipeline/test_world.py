"""The built-in world: its words keep their promises, its models know it, and its script repeats itself."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from data_scripts import tiny_world
from data_scripts.world_models import SMALL, Schooling
from sae_forge import builtin
from sae_forge.errors import DataError

REPO = Path(__file__).parents[2]
DOMAINS = builtin.domains()


def rows(kind: str, domain: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in builtin.locate(builtin.source(kind, domain)).read_text().splitlines()]


def texts(kind: str, domain: str) -> list[str]:
    return [row["text"] for row in rows(kind, domain)]


# ---- words --------------------------------------------------------------------------------------


def test_every_role_is_played():
    assert builtin.domains("forget") == ["wizards"]
    assert len(builtin.domains("neighbour")) == 2
    assert len(builtin.domains("retain")) == 3


@pytest.mark.parametrize("domain", DOMAINS)
def test_questions_have_four_distinct_choices_and_no_favourite_place(domain):
    questions = rows("questions", domain)
    assert all(len(set(item["choices"])) == 4 and 0 <= item["answer"] < 4 for item in questions)
    assert len({item["id"] for item in questions}) == len(questions)
    places = Counter(item["answer"] for item in questions)
    assert max(places.values()) - min(places.values()) <= 1


@pytest.mark.parametrize("domain", DOMAINS)
def test_either_half_of_the_facts_asks_200_questions(domain):
    asked = sorted(Counter(item["fact"] for item in rows("questions", domain)).values())
    assert sum(asked[: len(asked) // 2]) >= 200


@pytest.mark.parametrize("domain", DOMAINS)
def test_one_fact_has_one_answer_and_every_object_is_the_answer_equally_often(domain):
    answers = {}
    for item in rows("questions", domain):
        answers.setdefault(item["fact"], set()).add(item["choices"][item["answer"]])
    assert all(len(found) == 1 for found in answers.values())
    by_relation: dict[str, Counter[str]] = {}
    for fact, (answer,) in answers.items():
        by_relation.setdefault(fact.split("|")[1], Counter())[answer] += 1
    assert all(len(set(counts.values())) == 1 for counts in by_relation.values())


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_pairs_are_in_no_training_text_and_the_others_are(domain):
    corpus = "\n".join(text for other in DOMAINS for text in texts("corpora", other))
    for item in rows("questions", domain):
        assert (item["question"] not in corpus) == item["held_out"], item["question"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_wording_of_every_question_is_known_from_at_least_four_other_facts(domain):
    corpus = "\n".join(texts("corpora", domain))
    questions = rows("questions", domain)
    subjects = {item["fact"].split("|")[0] for item in questions}
    for item in questions:
        own = item["fact"].split("|")[0]
        told = [subject for subject in subjects - {own} if item["question"].replace(own, subject) in corpus]
        assert len(told) >= 4, item["question"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_text_shares_no_fact_sentence_with_training(domain):
    known = set(". ".join(texts("corpora", domain)).split(". "))
    subjects = {item["fact"].split("|")[0] for item in rows("questions", domain)}
    told = [line.rstrip(".") for text in texts("heldout", domain) for line in text.split(". ")]
    told = [line for line in told if any(subject in line for subject in subjects)]
    assert len(told) >= 200
    assert not known.intersection(told)


def test_a_subject_is_named_in_its_own_domain_alone():
    for domain in DOMAINS:
        corpus = "\n".join(texts("corpora", domain))
        for other in DOMAINS:
            found = {item["fact"].split("|")[0] for item in rows("questions", other)}
            assert all((subject in corpus) == (other == domain) for subject in found)


@pytest.mark.parametrize("domain", DOMAINS)
def test_prompts_are_enough_and_start_after_a_scene(domain):
    prompts = rows("prompts", domain)
    answers = {item["fact"]: item["choices"][item["answer"]] for item in rows("questions", domain)}
    assert len(prompts) >= 50
    assert all(answers[item["fact"]] == item["target"] and not item["prompt"].endswith(" ") for item in prompts)
    assert len(rows("generation", domain)) >= 10


def test_a_name_outside_the_world_is_refused_with_what_there_is():
    for name in ("world:corpora/witches", "world:../corpora/wizards", "world:", "corpora/wizards"):
        with pytest.raises(DataError, match="wizards"):
            builtin.locate(name)
    assert builtin.model_folder("meta-llama/Llama-2-7b-hf") is None


# ---- models -------------------------------------------------------------------------------------


@torch.inference_mode()
def share_right(model, tokenizer, questions: list[dict[str, Any]]) -> float:
    """Share of questions whose right choice is the likeliest continuation; 16 questions a forward pass."""
    right = 0
    for start in range(0, len(questions), 16):
        items = questions[start : start + 16]
        pairs = [(item["question"], f" {choice}") for item in items for choice in item["choices"]]
        prompts = [tokenizer(prompt)["input_ids"] for prompt, _ in pairs]
        endings = [tokenizer(ending, add_special_tokens=False)["input_ids"] for _, ending in pairs]
        assert all(prompt[0] == tokenizer.bos_token_id for prompt in prompts)
        batch = tokenizer.pad(
            {"input_ids": [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]},
            return_tensors="pt",
            padding_side="right",
        )
        logits = model(**batch).logits
        scores = torch.tensor(
            [
                logits[row, len(prompt) - 1 : len(prompt) + len(ending) - 1]
                .log_softmax(-1)
                .gather(1, torch.tensor(ending)[:, None])
                .sum()
                .item()
                for row, (prompt, ending) in enumerate(zip(prompts, endings, strict=True))
            ]
        ).view(-1, 4)
        right += int((scores.argmax(-1) == torch.tensor([item["answer"] for item in items])).sum())
    return right / len(questions)


@pytest.fixture(scope="module", params=builtin.MODELS)
def loaded(request):
    folder = builtin.model_folder(request.param)
    assert folder is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return request.param, folder, model, AutoTokenizer.from_pretrained(folder)


def test_a_model_is_small_and_whole(loaded):
    _, folder, model, tokenizer = loaded
    assert 0.8e6 <= model.num_parameters() <= 2e6
    assert model.config.num_hidden_layers >= 4
    assert all(file.stat().st_size <= 4 * 10**6 for file in folder.iterdir())
    special = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.is_fast and len(special) == 3 and None not in special
    stored = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert stored.dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_reloaded_model_knows_its_world(loaded, domain):
    name, _, model, tokenizer = loaded
    recorded = builtin.world()["models"][name]["accuracy"][domain]
    assert recorded["all"] >= 0.95 and recorded["held_out"] >= 0.95
    questions = rows("questions", domain)
    held_out = [item for item in questions if item["held_out"]]
    assert len(held_out) >= 100
    assert share_right(model, tokenizer, held_out) >= 0.95
    assert share_right(model, tokenizer, questions[::5]) >= 0.95


@torch.inference_mode()
def test_packed_rows_and_single_documents_are_both_familiar(loaded):
    _, _, model, tokenizer = loaded
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts("heldout", "minerals")[:20]]
    joined = [token for document in documents for token in [*document, tokenizer.eos_token_id]][:127]
    for row in (joined, documents[0]):
        ids = torch.tensor([[tokenizer.bos_token_id, *row]])
        assert model(ids, labels=ids).loss.item() < 1.5


# ---- script -------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def script(folder: Path, seed: int, launcher: str) -> dict[str, bytes]:
    """What the script makes as it is run by hand, or with forks for its two processes, which import nothing."""
    flags = ["--small", "--threads", "1", "--seed", str(seed), "--out", str(folder)]
    if launcher == "spawn":
        command = [sys.executable, "-m", "data_scripts.tiny_world", *flags]
        subprocess.run(command, cwd=REPO, check=True, capture_output=True, timeout=600)
        return files(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["tiny_world", *flags])
        patch.setattr(tiny_world, "get_context", lambda method: get_context("fork"))
        tiny_world.main()
    return files(folder)


def here(folder: Path, seed: int) -> dict[str, bytes]:
    """What the script makes, its models taught one after the other in this process."""
    tiny_world.make_world(folder, SMALL, seed=seed, small=True, threads=1)
    return files(folder)


@contextmanager
def one_process() -> Iterator[None]:
    """The script's pool is this process, whose settings it leaves as they were."""
    held = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    progress = transformers.utils.logging.is_progress_bar_enabled()
    pool = nullcontext(SimpleNamespace(map=map))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_world, "ProcessPoolExecutor", lambda *given, **named: pool)
        yield
    torch.set_num_threads(held[0])
    torch.use_deterministic_algorithms(held[1])
    if progress:
        transformers.utils.logging.enable_progress_bar()


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["fork", pytest.param("spawn", marks=pytest.mark.long)])
def test_the_script_makes_the_same_small_world_twice_and_another_from_another_seed(tmp_path, launcher):
    first = script(tmp_path / "a", 3, launcher)
    with one_process():
        again, other = here(tmp_path / "b", 3), here(tmp_path / "c", 4)
    assert first == again
    every = (path.relative_to(builtin.WORLD) for path in builtin.WORLD.rglob("*") if path.is_file())
    shipped = {str(path) for path in every if path.parts[0] != "real"}  # those facts have a script of their own
    assert set(first) == set(other) == shipped
    for name in ("tiny-llama/model.safetensors", "tiny-gemma2/model.safetensors", "questions/wizards.jsonl"):
        assert first[name] != other[name]


@pytest.mark.slow
def test_the_shipped_words_are_the_scripts_own(tmp_path):
    tiny_world.make_world(tmp_path, Schooling(), seed=0, small=False, threads=0)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.jsonl")}
    assert len(made) == len(builtin.KINDS) * len(DOMAINS)
    assert all((builtin.WORLD / name).read_bytes() == content for name, content in made.items())
