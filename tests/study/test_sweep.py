"""The sweep: an equal budget for every method, spent on one half of the questions and reported on the other."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import LATENTS, NAMED, TinyRun, made

from sae_forge.config.evaluate import EvalConfig
from sae_forge.errors import ConfigError, DataError
from sae_forge.methods.method import Method, grid
from sae_forge.methods.subjects import AsItIs, Edited, Retrained, Subject, in_force
from sae_forge.progress import Silent, Task
from sae_forge.statistics.answers import alignment
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.store.records import decode, encode
from sae_forge.study.estimates import Heading, change, describe
from sae_forge.study.measure import Measurement, load_asked, measure
from sae_forge.study.pareto import Point, choose, front, hypervolume
from sae_forge.study.run import EvalReport
from sae_forge.study.settings import eval_config
from sae_forge.study.sweep import require_possible
from sae_forge.tasks.engines import continuations, generation, losses, multiple_choice
from sae_forge.tasks.records import half_of

pytestmark = pytest.mark.slow

UNTUNED = [method.name for method in NAMED.values() if method.axes is None]
ALL: dict[str, Any] = {"methods": ("all",), "sweep": True, "controls": ("direction",)}
FEW: dict[str, Any] = {
    "methods": ("project", "zero", "npo", "random"), "sweep": True, "configurations": 8, "controls": ("places",),
    "limit": 3,
}  # fmt: skip
LOSS = {"loss": Heading(standing=True, derived=False)}
ESTIMATES = ("roles", "domains", "loss", "edited_share", "edit_norm")


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


class Watched(Silent):
    """Progress that knows which task is under way, and what everything asked in it was about."""

    def __init__(self) -> None:
        self.title = ""
        self.asked: dict[str, Counter[str]] = {}
        """Facts of the questions that were asked, by the title of the task."""

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator[Task]:
        before, self.title = self.title, title
        with super().task(title, total, unit) as task:
            yield task
        self.title = before


def snapshot(run: TinyRun) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Every weight of the model, and its logits on a text."""
    state = {name: weight.clone() for name, weight in run.lm.model.state_dict().items()}
    with torch.no_grad():
        logits = run.lm.model(run.lm.tokenizer("The wizard of the north", return_tensors="pt")["input_ids"]).logits
    return state, logits


@pytest.fixture(scope="module")
def swept(run: TinyRun) -> tuple[EvalReport, Watched, bool]:
    """Every method swept once: the report, what was asked, and whether the model stayed as it was."""
    watched, before = Watched(), snapshot(run)
    real = multiple_choice.answer

    def spying(lm: Any, questions: Sequence[Any], *rest: Any, **named: Any) -> Any:
        watched.asked.setdefault(watched.title, Counter()).update(question.fact for question in questions)
        return real(lm, questions, *rest, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiple_choice, "answer", spying)
        report = run.evaluate(progress=watched, **ALL)
    after = snapshot(run)
    same = torch.equal(before[1], after[1]) and all(torch.equal(it, after[0][name]) for name, it in before[0].items())
    return report, watched, same and before[0].keys() == after[0].keys()


@pytest.fixture(scope="module")
def base(run: TinyRun) -> Measurement:
    return measured(run, AsItIs())


@pytest.fixture
def metrics(swept: tuple[EvalReport, Watched, bool]) -> dict[str, Any]:
    return swept[0].metrics


def point(record: dict[str, Any]) -> Point:
    return decode(Point, record)


# ---- halves -------------------------------------------------------------------------------------


def test_what_it_was_tuned_on_is_not_what_is_reported(metrics: dict[str, Any]):
    assert list(metrics["sweep"]["domains"]) == list(metrics["domains"]) == ["wizards", "owls", "stones"]
    for name, domain in metrics["domains"].items():
        dev = set(metrics["sweep"]["domains"][name]["ids"]["questions"])
        test = set(domain["ids"]["questions"])
        assert len(dev) == len(test) == 6
        assert not dev & test
        facts = {half: {half_of(f"{name} {one.removeprefix(name)}") for one in ids} for half, ids in
                 (("dev", dev), ("test", test))}  # fmt: skip
        assert facts == {"dev": {"dev"}, "test": {"test"}}
    assert metrics["protocol"]["half"] == "test"
    assert metrics["sweep"]["half"] == "dev"


def test_nothing_of_the_test_half_is_asked_while_tuning(swept: tuple[EvalReport, Watched, bool]):
    report, watched, _ = swept
    assert set(watched.asked) == {"sweep", "eval"}
    assert {half_of(fact) for fact in watched.asked["sweep"]} == {"dev"}
    assert {half_of(fact) for fact in watched.asked["eval"]} == {"test"}
    tried = 1 + sum(one["configurations"] for one in report.metrics["sweep"]["methods"].values())
    assert set(watched.asked["sweep"].values()) == {tried}
    assert set(watched.asked["eval"].values()) == {len(report.metrics["methods"])}


def test_text_and_prompts_are_left_for_the_report(run: TinyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    watched, seen = Watched(), Counter[tuple[str, str]]()
    for engine, name in ((losses, "sequence_losses"), (continuations, "score"), (generation, "write")):
        real = getattr(engine, name)

        def spying(*given: Any, real: Any = real, name: str = name, **named: Any) -> Any:
            seen[name, watched.title] += 1
            return real(*given, **named)

        monkeypatch.setattr(engine, name, spying)
    text, prompts, starts = (tmp_path / f"{name}.jsonl" for name in ("text", "prompts", "starts"))
    text.write_text(json.dumps({"text": "The wizard keeps an owl and a book of weather in the north tower."}))
    records = [{"prompt": f"Of rivers {n} it", "target": "is long", "fact": f"river {n}"} for n in range(12)]
    prompts.write_text("\n".join(map(json.dumps, records)))
    starts.write_text(json.dumps({"prompt": "The wizard"}))
    metrics = run.evaluate(
        progress=watched, methods=("project",), sweep=True, configurations=8, limit=3,
        forget_eval=(str(text),), forget_prompts=(str(prompts),), generation_prompts=(str(starts),),
    ).metrics  # fmt: skip
    assert set(seen) == {("sequence_losses", "eval"), ("score", "eval"), ("write", "eval")}
    assert metrics["domains"]["prompts"]["prompts"] == 3
    assert "prompts" not in metrics["sweep"]["domains"]


# ---- what is chosen -----------------------------------------------------------------------------


def test_the_shape_of_a_sweep(metrics: dict[str, Any]):
    found = metrics["sweep"]
    assert set(found) == {"half", "domains", "base", "floors", "methods"}
    coordinates = {"settings", "forget", "utility", "neighbour", "alignment", "changes"}
    assert set(found["base"]) == coordinates
    assert found["base"]["settings"] == {}
    assert found["floors"] == pytest.approx(
        {"utility_99": 0.99 * found["base"]["utility"], "utility_1pt": found["base"]["utility"] - 0.01}
    )
    assert list(found["methods"]) == list(NAMED)
    for one in found["methods"].values():
        assert set(one) == {
            "configurations", "points", "front", "best_at", "saebench_score", "hypervolume", "best_alignment",
            "chosen", "rule", "end", "unlearning_score",
        }  # fmt: skip
        assert all(set(entry) == coordinates for entry in (*one["points"], *one["front"], one["chosen"]))
        assert set(one["best_at"]) == {"utility_99", "utility_1pt", "neighbours_99"}
        assert one["rule"] in ("utility_99", "utility_1pt", "alignment")
        for entry in one["points"]:  # of all questions, so a role's change is the difference of its accuracies
            roles = {"forget": "forget", "retain": "utility", "neighbour": "neighbour"}
            assert set(entry["changes"]) == set(roles)
            for role, name in roles.items():
                change = entry["changes"][role]
                assert change["value"] == pytest.approx(entry[name] - found["base"][name], abs=1e-12)
                assert change["low"] <= change["value"] <= change["high"]
        assert all(0 <= entry[name] <= 1 for entry in one["points"] for name in ("forget", "utility", "neighbour"))
    json.dumps(found, allow_nan=False)


def test_every_method_gets_the_same_budget_and_untuned_ones_count_once(run: TinyRun, metrics: dict[str, Any]):
    tuned = metrics["sweep"]["methods"]
    assert {name: one["configurations"] for name, one in tuned.items()} == {
        name: 1 if name in UNTUNED else 12 for name in NAMED
    }
    for name, one in tuned.items():
        settings = [entry["settings"] for entry in one["points"]]
        assert len({repr(entry) for entry in settings}) == one["configurations"]
        assert settings == grid(NAMED[name], run.materials())
    said = f"{len(NAMED)} methods, each tuned over 12 settings on the dev half"
    (line,) = (line for line in metrics["claims"] if line.startswith(said))
    assert "(zero, mean_ablate: nothing to tune, one setting)" in line


def test_the_chosen_settings_are_those_that_the_rule_takes(metrics: dict[str, Any]):
    base = point(metrics["sweep"]["base"])
    for one in metrics["sweep"]["methods"].values():
        points = [point(entry) for entry in one["points"]]
        assert (point(one["chosen"]), one["rule"]) == choose(points, base.utility)
        assert [point(entry) for entry in one["front"]] == front(points)
        assert one["hypervolume"] == hypervolume(points, base.forget)
        assert one["best_alignment"] == max(entry.alignment for entry in points)
        for name, floor in metrics["sweep"]["floors"].items():
            allowed = [entry.forget for entry in points if entry.utility >= floor]
            best = one["best_at"][name]
            assert (None if best is None else best["forget"]) == min(allowed, default=None)
        at_99 = one["best_at"]["utility_99"]
        assert one["unlearning_score"] == (0.0 if at_99 is None else 1 - at_99["forget"])
        assert one["saebench_score"] is None, "SAEBench defines it on filtered questions alone"
        for entry in points:
            assert entry.alignment == alignment(entry.utility, base.utility, entry.forget, base.forget)


def test_settings_were_told_apart(metrics: dict[str, Any]):
    """A sweep whose points are all alike would let every test above pass."""
    places = [{(entry["forget"], entry["utility"]) for entry in one["points"]}
              for one in metrics["sweep"]["methods"].values()]  # fmt: skip
    assert sum(len(found) > 2 for found in places) >= 4
    assert metrics["sweep"]["base"]["forget"] > 0.5


# ---- what is reported ---------------------------------------------------------------------------


def test_each_method_is_reported_at_the_chosen_settings_beside_its_controls(metrics: dict[str, Any]):
    edits = [row for row in metrics["methods"] if row["name"] not in ("baseline", "random")]
    tuned = metrics["sweep"]["methods"]
    assert [(row["name"], row["settings"]) for row in edits] == [
        (name, one["chosen"]["settings"]) for name, one in tuned.items()
    ]
    assert {row["name"]: row["kind"] for row in edits} == {method.name: method.kind for method in NAMED.values()}
    assert [row["title"] for row in edits] == [NAMED[row["name"]].said(row["settings"]) for row in edits]
    assert [row["name"] for row in edits if row.get("at_rest")] == ["zero", "mean_ablate"]
    controls = [row["settings"] for row in metrics["methods"] if row["name"] == "random"]
    wanted = [
        {"of": row["name"], **row["settings"], "kind": "direction"}
        for row in edits
        if row["kind"] == "hook" and row["name"] not in UNTUNED
        for _ in range(3)
    ]
    assert controls == wanted
    assert len(metrics["controls"]) == len(wanted) / 3
    assert metrics["left_out"] == {}


def measured(run: TinyRun, subject: Subject) -> Measurement:
    """What the test half answers, without layers spared and without a sweep."""
    config = run.materials(**run.questions).config
    every = load_asked(run.lm, config)
    with Silent().task("", None, "") as task, in_force(run.lm, subject) as (lm, log):
        return measure(lm, every, log, task, batch_size=config.eval_batch_size)


def test_a_measurement_takes_no_argument_that_it_does_not_know(run: TinyRun):
    with Silent().task("", None, "") as task, pytest.raises(TypeError, match="tape"):
        measure(run.lm, (), None, task, batch_size=2, tape=None)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("method", NAMED)
def test_the_reported_row_is_what_measuring_it_alone_gives(
    run: TinyRun, metrics: dict[str, Any], base: Measurement, method: Any
):
    row = next(row for row in metrics["methods"] if row["name"] == method)
    subject = NAMED[method].build(row["settings"], run.materials())
    bootstrap = Bootstrap(100, 0)
    found = measured(run, subject)
    described = describe(found, LOSS, bootstrap)
    wanted = encode(described | described.pop("groups") | {"change": change(found, base, LOSS, bootstrap)})
    wanted.pop("groups", None)
    same(row, wanted)
    if isinstance(subject, Edited):
        alone = run.evaluate(methods=(), also=subject.edits).metrics
        assert "sweep" not in alone
        given = next(one for one in alone["methods"] if one["name"] == method)
        assert {key: given[key] for key in (*ESTIMATES, "change")} == {key: row[key] for key in (*ESTIMATES, "change")}
    else:
        assert isinstance(subject, Retrained)


def same(found: Any, wanted: Any) -> None:
    """Every number of ``wanted`` is in ``found``, up to the rounding of another order of sums."""
    for key, value in wanted.items():
        if isinstance(value, dict):
            same(found[key], value)
        else:
            assert found[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key


def test_flags_at_the_chosen_settings_give_the_same_row(run: TinyRun, metrics: dict[str, Any]):
    row = next(row for row in metrics["methods"] if row["name"] == "scale")
    settings = row["settings"]
    alone = run.evaluate(
        methods=("scale",), ablation_scale=(settings["scale"],), num_features=(settings["num_features"],)
    ).metrics
    given = alone["methods"][1]
    assert given["settings"] == settings
    assert {key: given[key] for key in (*ESTIMATES, "change")} == {key: row[key] for key in (*ESTIMATES, "change")}


def test_the_model_is_afterwards_as_before_to_the_bit(swept: tuple[EvalReport, Watched, bool]):
    assert swept[2]


@pytest.fixture(scope="module")
def few(run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a sweep over a few methods leaves that nothing stops."""
    folder = tmp_path_factory.mktemp("few")
    run.evaluate(folder=folder, **FEW).save(folder)
    return folder


def test_the_same_sweep_gives_the_same_bytes(run: TinyRun, few: Path, tmp_path: Path):
    run.evaluate(**FEW).save(tmp_path)
    for file in ("eval.json", "items.parquet"):
        assert (tmp_path / file).read_bytes() == (few / file).read_bytes()


def test_an_edit_that_was_given_is_none_of_those_that_were_tuned(run: TinyRun):
    """It is measured and controlled like the others, and not among those that the sweep stands for."""
    given = made("clamp", {"num_features": 3, "value": -0.01}, run.materials())
    settings = {"methods": ("clamp", "random"), "sweep": True, "configurations": 8, "controls": ("places",)}
    metrics = run.evaluate(also=(given,), limit=3, **settings).metrics
    assert [row["settings"].get("given") for row in metrics["methods"]][:3] == [None, None, 3]
    assert [row["settings"]["of"] for row in metrics["methods"][3:]] == ["clamp"] * 6
    assert any(line.startswith("1 method, tuned over 8 settings on the dev half") for line in metrics["claims"])
    assert sum(line.startswith("  clamp: ") for line in metrics["claims"]) <= 1
    assert any(line.startswith("clamp of 3 latents: ") for line in metrics["claims"])


# ---- limits and refusals ------------------------------------------------------------------------


def test_a_sweep_may_ask_less_than_the_report(run: TinyRun):
    metrics = run.evaluate(methods=("project",), sweep=True, configurations=8, sweep_limit=2, limit=5).metrics
    assert {one["questions"] for one in metrics["sweep"]["domains"].values()} == {2}
    assert {one["questions"] for one in metrics["domains"].values()} == {5}


def test_it_takes_no_more_latents_than_there_are(run: TinyRun):
    metrics = run.evaluate(methods=("project",), sweep=True, configurations=8, limit=2, num_features=(500,)).metrics
    sizes = {one["settings"]["num_features"] for one in metrics["sweep"]["methods"]["project"]["points"]}
    assert max(sizes) == LATENTS


def test_a_half_of_its_own_contradicts_a_sweep():
    for half in ("dev", "all"):
        with pytest.raises(ConfigError, match=f"drop --half {half}"):
            EvalConfig(sweep=True, half=half)


@pytest.mark.parametrize(("kept", "role"), [("forget", "retain"), ("retain", "forget")])
def test_without_questions_on_both_sides_there_is_nothing_to_choose_by(run: TinyRun, kept: str, role: str):
    given = {f"{name}_questions": run.questions[f"{name}_questions"] if name == kept else ()
             for name in ("forget", "neighbour", "retain")}  # fmt: skip
    with pytest.raises(DataError, match=f"has none in the role {role}; give --forget_questions"):
        run.evaluate(methods=("scale",), sweep=True, **given)


def test_rmu_is_not_tried_with_less_than_it_needs(run: TinyRun):
    with pytest.raises(ConfigError, match="rmu needs at least 12"):
        run.evaluate(methods=("rmu",), sweep=True, configurations=8)


def test_what_an_evaluation_would_refuse_is_refused_before_anything_is_collected(run: TinyRun, tmp_path: Path):
    def refused(match: str, **settings: Any) -> None:
        given = dict(run.questions) | settings
        with pytest.raises((ConfigError, DataError), match=match):
            require_possible(run.lm, eval_config()(**given))

    require_possible(run.lm, eval_config()(**run.questions, methods=("scale",), sweep=True))
    refused("rmu needs at least 12", methods=("rmu",), sweep=True, configurations=8)
    refused("has none in the role retain", methods=("scale",), sweep=True, retain_questions=(), neighbour_questions=())
    refused("absent.jsonl does not exist", forget_questions=(str(tmp_path / "absent.jsonl"),))


# ---- stopping and going on ----------------------------------------------------------------------


def test_a_sweep_that_was_stopped_goes_on_where_it_was(run: TinyRun, few: Path, tmp_path: Path):
    stopped, built = tmp_path / "stopped", []

    def counting(method: Method) -> Method:
        def build(settings: Any, materials: Any) -> Subject:
            built.append(method.name)
            if len(built) == 6:
                raise KeyboardInterrupt
            return method.build(settings, materials)

        return replace(method, build=build)

    counted = tuple(map(counting, NAMED.values()))
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(folder=stopped, table=counted, **FEW)
    assert len(list((stopped / "measured" / "tried").glob("*.json"))) == 5
    run.evaluate(folder=stopped, table=counted, **FEW).save(stopped)
    settings, reported = 8 + 1 + 8, 3  # of project, zero and npo
    assert len(built) == 6 + (settings - 5) + reported
    for file in ("sweep.json", "eval.json", "items.parquet"):
        assert (stopped / file).read_bytes() == (few / file).read_bytes()


def test_a_journal_that_is_none_is_refused_in_one_line(run: TinyRun, tmp_path: Path):
    for content in ("[]", '{"a": {"forget": 1}}', "{"):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(DataError) as caught:
            run.evaluate(folder=tmp_path, **FEW)
        assert "sweep.json" in str(caught.value)
    run.evaluate(folder=tmp_path, fresh=True, **FEW)
