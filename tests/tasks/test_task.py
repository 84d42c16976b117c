"""The recipe: a task is one file and one line; and a task can be chosen, described without code, and said otherwise."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import pyarrow.parquet
import pytest
from tiny_run import TinyRun

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError, DataError
from sae_forge.methods.materials import Materials
from sae_forge.methods.table import METHODS
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT
from sae_forge.results.measure import Measure
from sae_forge.settings import resolve
from sae_forge.study.measure import load_asked
from sae_forge.study.run import evaluate
from sae_forge.study.settings import Catalogue, catalogue, eval_config, run_config
from sae_forge.study.sweep import sweep
from sae_forge.tasks.choice import choices
from sae_forge.tasks.completions import Completions
from sae_forge.tasks.item import ROLES, Item
from sae_forge.tasks.muse import Muse
from sae_forge.tasks.prompts import Prompts
from sae_forge.tasks.questions import Questions
from sae_forge.tasks.records import half_of
from sae_forge.tasks.table import TASKS
from sae_forge.tasks.task import Asked, Task
from sae_forge.tasks.wrapped import Wording, shots, wrapped


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """The toy's own flag."""

    statements: Annotated[tuple[str, ...], "Statements, true or false.", Setting(names_items=True)] = ()


@dataclass(frozen=True, kw_only=True)
class Statements:
    """Two options, chance one half, one graded measure: how sure the model is of what it reads."""

    name: str = "statements"
    title: str = "Statements"
    group: str | None = None
    measures: tuple[Measure, ...] = (Measure(name="sureness", words="sureness", better="up", chance=0.5),)
    settings: type | None = Settings
    tuned_on: bool = True
    writes: bool = False

    def load(self, lm, config, *, half, limit, progress):
        facts = [name for name in map(str, range(40)) if half in ("all", half_of(name))][:limit]
        return tuple(
            Asked(
                task=self, domain=f"{role} talk", role=role, kind="statement", units=len(facts),
                ids=tuple(facts), facts=tuple(facts), content=[f"{role} {fact} {config.statements}" for fact in facts],
            )
            for role in ROLES
        )  # fmt: skip

    def ask(self, lm, asked, *, batch_size, done):
        import torch

        items = []
        for name, text in zip(asked.ids, asked.content, strict=True):
            with torch.no_grad():
                logits = lm.model(lm.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
            value = torch.sigmoid(logits[5] - logits[6]).item()
            items.append(
                Item(
                    task=self.name, domain=asked.domain, role=asked.role, id=name, fact=name,
                    values={"sureness": value},
                )
            )  # fmt: skip
            if done is not None:
                done(1)
        return items


TOY = Statements()


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


def with_toy(*more: Task) -> type[EvalConfig]:
    known = catalogue()
    return eval_config(Catalogue((TOY, *more, *known.tasks), known.methods))


def measured(run: TinyRun, config: EvalConfig, folder: Path | None = None) -> Any:
    return evaluate(run.lm, run.sae, run.selection, config, run.named.point, collected=run.shards, folder=folder)


SMALL: dict[str, Any] = {
    "num_features": (24,), "scoring": "cloze", "ctx_len": 24, "limit": 4, "bootstrap": 100, "half": "all",
    "configurations": 8,
}  # fmt: skip


# ---- the recipe ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [*TASKS, TOY], ids=lambda task: task.name)
def test_every_task_says_what_the_protocol_wants(task: Task):
    assert isinstance(task, Task)
    assert task.measures
    assert task.title


def test_a_task_of_ones_own_goes_through_a_report(run: TinyRun, tmp_path: Path):
    config = with_toy()(**SMALL, methods=("scale", "random"), controls=("direction",), statements=("owls",))
    report = measured(run, config)
    base, edited, *controls = report.metrics["methods"]
    (words,) = report.metrics["tasks"]
    assert (words["name"], [one["name"] for one in words["measures"]]) == ("statements", ["sureness"])
    assert {name: one["statements"] for name, one in report.metrics["domains"].items()} == {
        f"{role} talk": 4 for role in ROLES
    }
    for row in (base, edited, *controls):
        for role in ROLES:
            cell = row["roles"][role]
            mine = [item["sureness"] for item in report.items if (item["method"], item["role"], item["seed"]) == (
                row["name"], role, row["seed"])]  # fmt: skip
            assert cell["sureness"]["value"] == pytest.approx(sum(mine) / 4)
            assert cell["chance_distance"]["value"] == pytest.approx(abs(sum(mine) / 4 - 0.5))
            assert "letters" not in cell
    difference = edited["roles"]["forget"]["sureness"]["value"] - base["roles"]["forget"]["sureness"]["value"]
    assert edited["change"]["roles"]["forget"]["sureness"]["value"] == pytest.approx(difference)
    (control,) = report.metrics["controls"]
    assert set(control["edit_minus_control"]["forget"]) == {"sureness"}
    assert report.metrics["protocol"]["chance"] == 0.5
    table = pyarrow.parquet.read_table(report.save(tmp_path)["items"])
    assert {"task", "kind", "sureness"} <= set(table.column_names)
    assert set(table["task"].to_pylist()) == {"statements"}


@pytest.mark.slow
def test_a_task_of_ones_own_is_what_a_sweep_chooses_by(run: TinyRun):
    config = with_toy()(**{**SMALL, "half": "test", "sweep": True, "methods": ("project",)})
    materials = Materials(run.lm, run.sae, run.named.point, run.selection, config, run.shards)
    (project,) = [method for method in METHODS if method.name == "project"]
    swept = sweep([project], materials, SILENT)
    asked = {name for domain in swept.domains.values() for name in (domain.ids or {})["statements"]}
    assert {half_of(name) for name in asked} == {"dev"}
    assert 0 < swept.base.forget < 1
    points = swept.methods["project"].points
    assert len(points) == 8
    assert len({point.forget for point in points}) > 1


def test_a_task_that_is_taken_out_is_gone_with_its_flags():
    known = catalogue()
    others = tuple(task for task in known.tasks if not isinstance(task, Muse))
    left = eval_config(Catalogue(others, known.methods))
    with pytest.raises(TypeError, match="verbmem"):
        left(verbmem=("x.jsonl",))
    assert not [name for name in left.__dataclass_fields__ if "privleak" in name or "knowmem" in name]
    with pytest.raises(ConfigError, match="preset dsg-muse-news sets --knowmem_forget, which no task or method here"):
        resolve(run_config(Catalogue(others, known.methods)), {}, preset="dsg-muse-news")


# ---- choosing -----------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    asked = [{"question": f"Of {n}?", "choices": ["an owl", "granite"], "answer": n % 2} for n in range(6)]
    for name in ("owls", "rocks"):
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join(json.dumps({**one, "id": name + str(n)}) for n, one in enumerate(asked))
        )
    (tmp_path / "go.jsonl").write_text('{"prompt": "The owl", "target": "flies"}\n')
    return {
        "forget_questions": (str(tmp_path / "owls.jsonl"),), "retain_questions": (str(tmp_path / "rocks.jsonl"),),
        "retain_prompts": (str(tmp_path / "go.jsonl"),), "generation_prompts": (str(tmp_path / "go.jsonl"),),
    }  # fmt: skip


def asked_by(lm: LanguageModel, files: dict[str, Any], *tasks: str) -> list[tuple[str, str]]:
    config = eval_config()(**files, half="all", scoring="cloze", tasks=tasks)
    return [(one.task.name, one.domain) for one in load_asked(lm, config)]


def test_tasks_are_chosen_by_name_and_by_part(tiny_llama: LanguageModel, files: dict[str, Any]):
    every = [("questions", "owls"), ("questions", "rocks"), ("completions", "go"), ("prompts", "")]
    assert asked_by(tiny_llama, files) == every
    assert asked_by(tiny_llama, files, "completions") == every[2:3]
    assert asked_by(tiny_llama, files, "prompts", "questions:rocks") == [every[1], every[3]]
    with pytest.raises(DataError, match="--tasks questions:mica: the parts of questions are owls, rocks"):
        asked_by(tiny_llama, files, "questions:mica")
    with pytest.raises(ConfigError, match=r"there is no task 'questons' \(did you mean questions\?\)"):
        asked_by(tiny_llama, files, "questons")


def test_a_file_describes_a_task_without_code(tiny_llama: LanguageModel, files: dict[str, Any], tmp_path: Path):
    described = tmp_path / "trivia.toml"
    rocks = files["retain_questions"][0]
    described.write_text(f'like = "questions"\n[settings]\nneighbour_questions = ["{rocks}"]\nscoring = "letter"\n')
    assert asked_by(tiny_llama, files, str(described)) == [("trivia", "rocks")]
    assert choices([str(described)], TASKS)[0].items == (rocks,)
    described.write_text(
        f'name = "told"\nlike = "questions"\n[settings]\nretain_questions = ["{rocks}"]\n[wording]\nfront = "Owls. "\n'
    )
    config = eval_config()(**files, half="all", scoring="cloze", tasks=("questions:rocks", str(described)))
    plain, told = load_asked(tiny_llama, config)
    assert (told.task.group, told.ids, told.facts) == ("told", plain.ids, plain.facts)
    assert tiny_llama.tokenizer.decode(told.content[1][0].context, skip_special_tokens=True).startswith("Owls. Of 0?")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("like = [", "is not TOML"),
        ('like = "quiz"', "is like 'quiz'; give like = one of questions"),
        ('like = "questions"\nname = "muse"', "is called 'muse'"),
        ('like = "questions"\nfiles = []', "sets 'files'; possible are"),
        ('like = "questions"\n[settings]\nverbmem = ["x"]', "sets 'verbmem', which is no setting of questions"),
        ('like = "questions"\n[settings]\nscoring = "loud"', "--scoring loud"),
        ('like = "questions"\n[wording]\nbehind = "x"', "wording takes texts called front, prefix"),
        ('name = "mine"', "is like ''; give like = one of questions"),
        ('like = "questions"\nsettings = 3', "settings = 3; give them as a table"),
        ('like = "questions"\nname = "a/../b"', "give a name of letters, digits"),
        ('like = "questions"\nname = "perplexity"', "a name that no task and no part of a report has"),
        ('like = "questions"\nname = "domains"', "a name that no task and no part of a report has"),
        ('like = "muse"\n[wording]\nfront = "x"', "takes no other wording"),
    ],
)
def test_a_description_that_is_none_is_refused_in_one_line(tmp_path: Path, text: str, complaint: str):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as caught:
        choices([str(tmp_path / "mine.toml")], TASKS)
    assert "\n" not in str(caught.value)


def test_nothing_is_asked_twice(tmp_path: Path):
    """Two that fall together would be pooled, and each of their items counted twice."""
    for name in ("one", "two"):
        (tmp_path / f"{name}.toml").write_text('like = "questions"\nname = "twin"\n')
    twins = [str(tmp_path / "one.toml"), str(tmp_path / "two.toml")]
    for names, called in ((["questions", "questions:owls"], "questions"), (twins, "twin")):
        with pytest.raises(ConfigError, match=f"asks all of {called} and again of it"):
            choices(names, TASKS)
    with pytest.raises(ConfigError, match="names no part of questions"):
        choices(["questions:"], TASKS)
    assert [one.part for one in choices(["questions:owls", "questions:rocks", "questions:owls"], TASKS)] == [
        "owls",
        "rocks",
    ]


@pytest.mark.parametrize("kind", ["domain and kind", "two tasks"])
def test_no_item_is_asked_twice_under_one_heading(run: TinyRun, tmp_path: Path, kind: str):
    """What falls together only once files are read: a domain and the kind of its items, a description and its model."""
    name = Path(run.questions["forget_questions"][0]).stem
    (tmp_path / "again.toml").write_text(
        f'like = "questions"\n[settings]\nforget_questions = ["{run.questions["forget_questions"][0]}"]\n'
    )
    tasks = (f"questions:{name}", "questions:question" if kind == "domain and kind" else str(tmp_path / "again.toml"))
    config = run.materials(**run.questions, tasks=tasks).config
    with pytest.raises(DataError, match=f"both ask {name}, whose items would count twice") as caught:
        load_asked(run.lm, config)
    assert "\n" not in str(caught.value)
    assert load_asked(run.lm, replace(config, tasks=tasks[:1]))


# ---- other words --------------------------------------------------------------------------------


def test_a_wrapped_task_asks_the_same_items_in_other_words(run: TinyRun):
    wording = Wording(front=shots([("Of what?", "an owl")]), prefix=" Surely", reword=str.upper)
    loud = wrapped(Questions(), wording, name="loud")
    known = catalogue()
    kind = eval_config(Catalogue((*known.tasks, loud), known.methods))
    config = kind(**{**SMALL, **run.questions}, methods=("scale",))
    plain = [one for one in load_asked(run.lm, config) if one.task.name == "questions"]
    said = [one for one in load_asked(run.lm, config) if one.task.name == "questions+loud"]
    assert [(one.domain, one.ids, one.facts) for one in said] == [(one.domain, one.ids, one.facts) for one in plain]
    text = run.lm.tokenizer.decode(said[0].content[1][0].context, skip_special_tokens=True)
    assert text.startswith("Of what? an owl\n\nOF WIZARDS ")
    assert text.endswith("IT Surely")
    base, edited = measured(run, config).metrics["methods"]
    alone = measured(run, replace(config, tasks=("questions",))).metrics["methods"][0]
    assert base["roles"] == alone["roles"], "the changed question is not mixed with the question"
    assert {"accuracy_forget", "accuracy_retain", "accuracy_neighbour"} <= set(base["questions+loud"])
    assert set(edited["change"]["questions+loud"]) == set(base["questions+loud"])


def test_prompts_and_completions_take_other_words_and_what_takes_none_says_so(tiny_llama: LanguageModel, files: Any):
    known = catalogue()
    made = [wrapped(task, Wording(front="Say: "), name="told") for task in (Completions(), Prompts())]
    config = eval_config(Catalogue((*known.tasks, *made), known.methods))(**files, half="all", scoring="cloze")
    said = {one.task.name: one for one in load_asked(tiny_llama, config)}
    context = said["completions+told"].content[0].context
    assert tiny_llama.tokenizer.decode(context, skip_special_tokens=True) == "Say: The owl"
    assert said["prompts+told"].content[0] == ("Say: The owl",)
    assert said["prompts+told"].protocol["prompts+told"]["prompts"] == 1
    with pytest.raises(ConfigError, match="statements takes no other wording"):
        wrapped(TOY, Wording(), name="told")
