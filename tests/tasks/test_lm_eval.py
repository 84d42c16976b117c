"""lm-eval's tasks: the same items as the harness's own model gives, and an edit that sees no padding."""

import copy
import json
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from sae_forge.errors import ConfigError, DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.loading import LanguageModel
from sae_forge.pipeline.evaluate import identity_of
from sae_forge.progress import SILENT
from sae_forge.sae.store import Provenance
from sae_forge.sae.topk import TopKSAE
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.store.files import digest
from sae_forge.study.settings import eval_config
from sae_forge.tasks.choice import choices
from sae_forge.tasks.engines.harness import HarnessLM
from sae_forge.tasks.item import Item
from sae_forge.tasks.lm_eval import KNOWN, LmEval, measure_of
from sae_forge.tasks.table import TASKS
from sae_forge.tasks.task import Asked

EvalConfig = eval_config()
WORDS = ("owl", "river", "tower", "mica", "the seven towns", "wizard")
COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
"""
TASKS_OF = {
    "toy_choice": """
output_type: multiple_choice
doc_to_text: "{{question.strip()}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nAnswer:"
doc_to_choice: ["A", "B", "C"]
doc_to_target: answer
fewshot_split: test
fewshot_config: {sampler: first_n}
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "toy_cloze": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "toy_greedy": """
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{choices[0]}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
""",
    "toy_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
""",
    "toy_written": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[0]}}"
generation_kwargs: {until: ["."], max_gen_toks: 5, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("harness")
    docs = [
        {
            "question": f"Which {word} stands {'far ' * number}north?",
            "choices": [word, f"{word} of Arn", "none"],
            "answer": number % 3,
            "text": f"The {word} of the north. " * (number + 1),
        }
        for number, word in enumerate(WORDS)
    ]
    (root / "data.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, text in TASKS_OF.items():
        said = COMMON.replace("DATA", str(root / "data.jsonl")) + text
        (root / f"{name}.yaml").write_text(f"task: {name}\n{said}")
    (root / "group.yaml").write_text("group: toys\ntask: [toy_choice, toy_cloze]\n")
    return root


def loaded(lm: LanguageModel, folder: Path, name: str, **settings: Any) -> tuple[Asked, ...]:
    config = EvalConfig(tasks=(name,), lm_eval_folder=(str(folder),), **{"half": "all"} | settings)
    (choice,) = choices(config.tasks, TASKS)
    return choice.load(lm, config, half=config.half, limit=config.limit, progress=SILENT)


def asked_items(lm: LanguageModel, folder: Path, name: str, batch_size: int = 4, **settings: Any) -> list[Item]:
    (asked,) = loaded(lm, folder, name, **settings)
    return asked.task.ask(lm, asked, batch_size=batch_size, done=None)


def hf_model(lm: LanguageModel, **more: Any) -> HFLM:
    return HFLM(pretrained=lm.model, tokenizer=copy.deepcopy(lm.tokenizer), batch_size=1, **more)  # pyright: ignore


def of_harness(lm: LanguageModel, folder: Path, names: list[str], model: Any = None, **more: Any) -> dict[str, Any]:
    """What the harness's own model gives, by task and document."""
    own = model or hf_model(lm)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found = lm_eval.simple_evaluate(own, tasks=names, task_manager=manager, bootstrap_iters=0, **more)
    assert found is not None
    by_name = {name: sorted(found["samples"][name], key=lambda row: row["doc_id"]) for name in names}
    return by_name | {"results": found["results"]}


@pytest.mark.slow
def test_items_are_those_of_the_harness(tiny_llama: LanguageModel, folder: Path):
    # a text read whole: with BOS put in by the tokenizer, the harness scores BOS after BOS as its first token
    whole = of_harness(tiny_llama, folder, ["toy_rolling"], hf_model(tiny_llama, add_bos_token=False))
    names = list(TASKS_OF)
    theirs = of_harness(tiny_llama, folder, [name for name in names if name not in whole]) | whole
    for name in names:
        ours = asked_items(tiny_llama, folder, name)
        assert [item.id for item in ours] == [str(row["doc_id"]) for row in theirs[name]]
        for item, row in zip(ours, theirs[name], strict=True):
            for metric in row["metrics"]:
                value = row[metric]
                mine = item.values["correct" if metric == "acc" else metric]
                expected = value[0] if isinstance(value, tuple) else value
                assert mine == pytest.approx(expected, rel=1e-5), (name, metric)
                if isinstance(value, tuple):
                    assert item.weights[metric] == value[1]


def test_estimates_are_those_of_the_harness(tiny_llama: LanguageModel, folder: Path):
    results = of_harness(tiny_llama, folder, ["toy_rolling"], hf_model(tiny_llama, add_bos_token=False))["results"]
    items = asked_items(tiny_llama, folder, "toy_rolling")
    perplexity, bits = KNOWN["word_perplexity"], KNOWN["bits_per_byte"]
    assert perplexity.aggregate is not None
    found = perplexity.aggregate(items, Bootstrap(resamples=100))
    assert found.value == pytest.approx(results["toy_rolling"]["word_perplexity,none"], rel=1e-5)
    assert found.low < found.value < found.high
    sums, counts = zip(*(bits.of(item) for item in items), strict=True)  # pyright: ignore
    assert sum(sums) / sum(counts) == pytest.approx(results["toy_rolling"]["bits_per_byte,none"], rel=1e-5)


def test_examples_in_front_are_those_of_the_harness(tiny_llama: LanguageModel, folder: Path):
    config = {"lm_eval_shots": 1, "limit": 3}
    (asked,) = loaded(tiny_llama, folder, "toy_choice", **config)
    assert asked.protocol["lm_eval"]["toy_choice"]["num_fewshot"] == 1
    theirs = of_harness(tiny_llama, folder, ["toy_choice"], num_fewshot=1)["toy_choice"]
    by_number = {str(row["doc_id"]): row for row in theirs}
    for item in asked.task.ask(tiny_llama, asked, batch_size=8, done=None):
        assert item.values["correct"] == by_number[item.id]["acc"]
    prompts = {request.args[0] for request in asked.content[0].requests}
    assert prompts == {request[0] for n in asked.ids for request in by_number[n]["arguments"]}


@pytest.mark.slow
def test_the_model_may_be_handed_to_the_harness(tiny_llama: LanguageModel, folder: Path):
    before = (tiny_llama.tokenizer.pad_token, tiny_llama.tokenizer.padding_side)
    theirs = of_harness(tiny_llama, folder, ["toy_cloze", "toy_greedy"])
    ours = of_harness(tiny_llama, folder, ["toy_cloze", "toy_greedy"], HarnessLM(tiny_llama))
    for name in ("toy_cloze", "toy_greedy"):
        for mine, row in zip(ours[name], theirs[name], strict=True):
            for one, other in zip(mine["filtered_resps"], row["filtered_resps"], strict=True):
                assert one[0] == pytest.approx(other[0], rel=1e-5)
                assert one[1] == other[1]
    assert (tiny_llama.tokenizer.pad_token, tiny_llama.tokenizer.padding_side) == before


def test_an_edit_answers_alike_in_any_batch(tiny_llama: LanguageModel, folder: Path):
    sae = TopKSAE(tiny_llama.d_model, 64, 8, seed=5)
    edit = Intervention("scale", tuple(range(48)), NegativeScaling(-3.0))
    plain = asked_items(tiny_llama, folder, "toy_rolling")
    with applied(tiny_llama, sae, HookPoint(1), edit):
        alone = asked_items(tiny_llama, folder, "toy_rolling", batch_size=1)
        together = asked_items(tiny_llama, folder, "toy_rolling", batch_size=40)
    for one, other, base in zip(alone, together, plain, strict=True):
        assert one.values["word_perplexity"] == pytest.approx(other.values["word_perplexity"], abs=1e-4)
        assert abs(one.values["word_perplexity"] - base.values["word_perplexity"]) > 1e-2  # pyright: ignore


def test_groups_roles_parts_and_halves(tiny_llama: LanguageModel, folder: Path):
    both = loaded(tiny_llama, folder, "toys")
    assert [(one.domain, one.role, one.units) for one in both] == [
        ("toy_choice", "retain", 6), ("toy_cloze", "retain", 6),
    ]  # fmt: skip
    (part,) = loaded(tiny_llama, folder, "toys:toy_cloze", forget_tasks=("toys",))
    assert (part.domain, part.role) == ("toy_cloze", "forget")
    (numbers,) = loaded(tiny_llama, folder, "toy_choice:0-1+4", half="dev", limit=1)
    assert numbers.ids == ("0", "1", "4")
    halves = [loaded(tiny_llama, folder, "toy_choice", half=half)[0].ids for half in ("dev", "test")]
    assert sorted(map(int, [*halves[0], *halves[1]])) == list(range(6))
    written = loaded(tiny_llama, folder, "toy_written")[0]
    assert (written.written, written.task.tuned_on) == (True, False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("toy_chioce", r"in lm-eval \(nearest: toy_choice"),
        ("toy_choice:0-9", "holds documents 0 to 5, not 9"),
        ("questons", "did you mean"),
    ],
)
def test_what_there_is_not_is_said_in_one_line(
    tiny_llama: LanguageModel, folder: Path, name: str, complaint: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(  # all that ships takes seconds to read
        "sae_forge.tasks.engines.harness.everything", lambda own: TaskManager(include_path=own, include_defaults=False)
    )
    with pytest.raises((ConfigError, DataError), match=complaint) as caught:
        loaded(tiny_llama, folder, name)
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_is_asked_about_and_missing_data_are_named(
    tiny_llama: LanguageModel, folder: Path, tmp_path: Path
):
    text = (folder / "toy_choice.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(text.replace("doc_to_target: answer", "doc_to_target: !function f.g"))
    with pytest.raises(ConfigError, match=r"mine\.yaml runs Python of its own; .*--lm_eval_code"):
        loaded(tiny_llama, tmp_path, "toy_choice")
    (tmp_path / "mine.yaml").write_text(text.replace("data.jsonl", "gone.jsonl"))
    with pytest.raises(DataError, match="the data of toy_choice could not be read"):
        loaded(tiny_llama, tmp_path, "toy_choice")
    with pytest.raises(ConfigError, match="is no folder"):
        loaded(tiny_llama, tmp_path / "none", "toy_choice")


def test_data_outside_the_folder_of_descriptions_decide_what_a_report_is(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "descriptions"
    (tmp_path / "kept").mkdir()
    own.mkdir()
    for name, place in (("one", "data.jsonl"), ("two", f"{tmp_path}/kept/*.jsonl"), ("three", "descriptions/own.csv")):
        text = COMMON.replace("DATA", f'"{place}"') + TASKS_OF["toy_choice"]
        (own / f"{name}.yaml").write_text(f"task: {name}\n{text}")
    (own / "four.yaml").write_text("task: four\ndataset_path: kept\n")
    for file in ("data.jsonl", "kept/a.jsonl", "descriptions/own.csv"):
        (tmp_path / file).write_text((folder / "data.jsonl").read_text())
    config = EvalConfig(tasks=("one",), lm_eval_folder=("descriptions",))
    door = next(task for task in TASKS if task.name == "lm_eval")
    assert isinstance(door, LmEval)
    assert door.reads(config) == (f"{tmp_path}/kept/*.jsonl", "data.jsonl", "kept")
    assert door.reads(EvalConfig(tasks=("one",))) == ()

    def identity() -> str:
        return digest(identity_of(config, [], Provenance(model="tiny", hook_point="blocks.1.hook_resid_post")))

    before = identity()
    assert identity() == before
    for file in ("data.jsonl", "kept/a.jsonl", "descriptions/own.csv"):
        (tmp_path / file).write_text((tmp_path / file).read_text().replace("owl", "elk"))
        assert identity() != before, file
        before = identity()


def test_a_chat_is_laid_out_by_the_template(tiny_llama: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="needs a chat template"):
        loaded(tiny_llama, folder, "toy_choice", lm_eval_chat=True)
    template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]"
    monkeypatch.setattr(tiny_llama.tokenizer, "chat_template", template)
    (asked,) = loaded(tiny_llama, folder, "toy_choice", lm_eval_chat=True)
    assert asked.content[0].requests[0].args[0].startswith("[user]Which owl")
    assert asked.content[0].requests[0].args[0].endswith("[assistant]")


def test_an_unknown_measure_goes_by_its_own_name():
    assert measure_of("f1", higher_is_better=True).better == "up"
    assert measure_of("edit_distance", higher_is_better=False).words == "edit distance"
