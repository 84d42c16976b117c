"""A whole evaluation on tiny models: its shape, its controls, that it repeats to the byte, and what it claims."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from reports import filled
from tiny_tokenizer import TEXT

from sae_forge.errors import ConfigError, DataError
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.features.snippets import Snippet
from sae_forge.hookpoint import HookPoint
from sae_forge.methods.materials import Materials
from sae_forge.methods.subjects import Edited
from sae_forge.methods.table import methods_of
from sae_forge.models.loading import LanguageModel
from sae_forge.pipeline.sheets.single_latents import single_latents
from sae_forge.progress import SILENT
from sae_forge.results.claims import REVERSIBLE, claims
from sae_forge.results.measure import Measure
from sae_forge.results.words import label
from sae_forge.sae.topk import TopKSAE
from sae_forge.statistics.bootstrap import Bootstrap
from sae_forge.statistics.estimate import Estimate
from sae_forge.statistics.proportions import wilson
from sae_forge.study.estimates import Pool
from sae_forge.study.measure import load_asked, measure
from sae_forge.study.plan import Plan, iter_plans
from sae_forge.study.run import EvalReport, evaluate
from sae_forge.study.settings import eval_config
from sae_forge.tasks.item import Item
from sae_forge.tasks.records import half_of

EvalConfig = eval_config()

POINT = HookPoint(1)
CHOICES = ["a silver owl", "a book", "granite", "the river Arn"]


def make_selection(count: int) -> Selection:
    rest = CorpusStats(0, 0.0, 0.0, 0.0)
    latents = tuple(SelectedLatent(index, 1.0, 1, 1, 1, 0.1, 0.0, rest, {}, ()) for index in range(count))
    corpus = Corpus("c", 1, "0" * 64, 1)
    return Selection("s", "w", 96, "inlp", {}, corpus, {}, count, count, {}, latents, {})


def make_sources(folder: Path) -> dict[str, tuple[str, ...]]:
    """Two domains of questions, one of which has prompts; two texts to keep; prompts to continue."""

    def write(name: str, records: list[Any]) -> str:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(json.dumps, records)))
        return str(path)

    asked = [
        {
            "id": f"q{n}",
            "question": f"{TEXT[n % 3][:14]} {n}",
            "choices": CHOICES,
            "answer": n % 4,
            "fact": f"f{n // 3}",
        }
        for n in range(30)
    ]
    for name in ("one", "two"):
        write(f"{name}.jsonl", [{"text": text} for text in TEXT])
    return {
        "forget_questions": (write("wizards.jsonl", asked),),
        "neighbour_questions": (write("stones.jsonl", asked[:9]),),
        "retain_questions": (write("rivers.jsonl", asked[9:]),),
        "forget_prompts": (write("prompts/wizards.jsonl", [{"prompt": t[:20], "target": t[21:30]} for t in TEXT]),),
        "generation_prompts": (write("go.jsonl", [{"prompt": text[:12]} for text in TEXT]),),
        "forget_eval": (write("f.jsonl", [{"text": TEXT[0]}]),),
        "retain_eval": (str(folder / "one.jsonl"), str(folder / "two.jsonl")),
    }


SETTINGS: dict[str, Any] = {
    "num_features": (12,), "half": "all", "scoring": "cloze", "ctx_len": 16, "max_new_tokens": 6, "bootstrap": 100,
}  # fmt: skip


def run(lm: LanguageModel, *, latents: int = 12, **settings: Any) -> EvalReport:
    sae = TopKSAE(lm.d_model, 96, 7, seed=5)
    return evaluate(lm, sae, make_selection(latents), EvalConfig(**{**SETTINGS, **settings}), POINT)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_sources(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def report(tiny_llama: LanguageModel, sources: dict[str, Any]) -> EvalReport:
    return run(tiny_llama, **sources)


def is_estimate(value: Any) -> bool:
    return set(value) == {"value", "low", "high"} and value["low"] <= value["value"] <= value["high"]


# ---- shape --------------------------------------------------------------------------------------


def test_the_report_has_the_promised_shape(report: EvalReport):
    metrics = report.to_json()
    assert {name: (entry["role"], entry["items"]) for name, entry in metrics["domains"].items()} == {
        "wizards": ("forget", 30), "stones": ("neighbour", 9), "rivers": ("retain", 21),
    }  # fmt: skip
    assert [row["name"] for row in metrics["methods"]] == ["baseline", "scale", "zero", *["random"] * 12]
    assert [row["kind"] for row in metrics["methods"]] == ["baseline", *["hook"] * 14]
    for row in metrics["methods"]:
        assert set(row["domains"]) == set(metrics["domains"])
        assert all(is_estimate(entry[key]) for entry in row["domains"].values() for key in ("accuracy", "logprob"))
        assert set(row["loss"]) == {"forget", "retain", "retain/one", "retain/two"}
        assert all(map(is_estimate, (*row["loss"].values(), *row["perplexity"].values(), *row["generation"].values())))
        assert set(row["edit_norm"]) == {"forget", "neighbour", "retain"}
        writes = row["name"] != "random"  # text is not compared with controls, so they write none
        assert {"distinct_3", "degenerate"} <= set(row["generation"]) if writes else row["generation"] == {}
        assert set(row["edited_share"]) == {"forget", "retain", *(("generation",) if writes else ())}
        assert ("change" in row) == (row["name"] != "baseline")
    assert metrics["methods"][1]["settings"] == {"scale": -3.0, "num_features": 12}
    json.dumps(metrics, allow_nan=False)


def test_only_the_baseline_edits_nothing(report: EvalReport):
    base, *edits = report.metrics["methods"]
    assert set(base["edited_share"].values()) == set(base["edit_norm"].values()) == {0.0}
    assert all(0 < share <= 1 for row in edits for share in row["edited_share"].values())
    assert all(0 < entry["edited_share"] <= 1 for row in edits for entry in row["domains"].values())


KINDS = ("latents", "isotropic", "places", "direction")


def test_controls_push_as_hard_on_the_same_tokens_and_every_seed_is_another(report: EvalReport):
    rows = report.metrics["methods"]
    scale, controls = rows[1], [row for row in rows if row["name"] == "random"]
    assert [(row["settings"]["kind"], row["seed"]) for row in controls] == list(product(KINDS, range(3)))
    assert all(row["settings"].items() >= {"of": "scale", **scale["settings"]}.items() for row in controls)
    assert len({row["loss"]["forget"]["value"] for row in controls}) == 12
    for row in controls:
        if row["settings"]["kind"] == "places":  # the push of a text's last edited token has nowhere to go
            assert 0 < row["edited_share"]["forget"] <= scale["edited_share"]["forget"]
        else:  # gated by the same latents, and the layers below the edit are those of the model as it is
            assert row["edited_share"]["forget"] == scale["edited_share"]["forget"]
            assert row["edit_norm"] == pytest.approx(scale["edit_norm"], rel=1e-4)


def test_control_summaries_are_mean_and_range_over_seeds(report: EvalReport):
    controls = report.metrics["controls"]
    assert [control["settings"]["kind"] for control in controls] == list(KINDS)
    for control in controls:
        rows = [row for row in report.metrics["methods"] if row["settings"] == control["settings"]]
        values = [row["roles"]["forget"]["logprob"]["value"] for row in rows]
        spread = control["roles"]["forget"]["logprob"]
        assert spread == pytest.approx({"mean": sum(values) / 3, "min": min(values), "max": max(values)})
        edit = report.metrics["methods"][1]["roles"]["forget"]["logprob"]["value"]
        assert control["edit_minus_control"]["forget"]["logprob"]["value"] == pytest.approx(edit - sum(values) / 3)


def test_change_is_the_difference_to_the_baseline(report: EvalReport):
    base, scale = report.metrics["methods"][:2]
    for name, entry in scale["change"]["domains"].items():
        for name_of in ("accuracy", "logprob"):
            shift = scale["domains"][name][name_of]["value"] - base["domains"][name][name_of]["value"]
            assert entry[name_of]["value"] == pytest.approx(shift, abs=1e-9)
        count = report.metrics["domains"][name]["questions"]
        assert entry["gained"] - entry["lost"] == pytest.approx(entry["accuracy"]["value"] * count)
    loss = scale["loss"]["retain"]["value"] - base["loss"]["retain"]["value"]
    assert scale["change"]["loss"]["retain"]["value"] == pytest.approx(loss)


def test_estimates_follow_from_the_items(report: EvalReport):
    for row in report.metrics["methods"]:
        mine = [
            item
            for item in report.items
            if (item["method"], item["seed"]) == (row["name"], row["seed"])
            and json.loads(item["settings"]) == row["settings"]
        ]
        asked = [item["correct"] for item in mine if item["kind"] == "question" and item["domain"] == "wizards"]
        assert row["domains"]["wizards"]["accuracy"]["value"] == pytest.approx(sum(asked) / len(asked))
        prompts = [item["logprob"] / item["tokens"] for item in mine if item["kind"] == "prompt"]
        assert row["domains"]["wizards"]["logprob"]["value"] == pytest.approx(sum(prompts) / 3)
        read = [item for item in mine if item["kind"] == "sequence" and item["role"] == "retain"]
        loss = -sum(item["logprob"] for item in read) / sum(item["tokens"] for item in read)
        assert row["loss"]["retain"]["value"] == pytest.approx(loss)
        assert sum(item["kind"] == "generation" for item in mine) == (0 if row["name"] == "random" else 3)


@pytest.mark.slow
def test_every_family_is_measured_and_is_afterwards_as_before(tiny_model: LanguageModel, sources: dict[str, Any]):
    chosen = {name: sources[name] for name in ("forget_questions", "forget_eval", "generation_prompts")}
    asked = load_asked(tiny_model, EvalConfig(**SETTINGS, **chosen))
    with SILENT.task("test", None, "items") as task:
        before = measure(tiny_model, asked, None, task, batch_size=16)
        found = run(tiny_model, **chosen, methods=("scale",)).metrics["methods"]
        assert measure(tiny_model, asked, None, task, batch_size=16) == before
    assert found[0]["loss"] != found[1]["loss"]


# ---- files --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(
    report: EvalReport, sources: dict[str, Any], tiny_llama: LanguageModel, tmp_path: Path
):
    first, second = report.save(tmp_path / "a"), run(tiny_llama, **sources).save(tmp_path / "b")
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name
    text = first["report"].read_text()
    assert "second" not in text
    assert str(Path(sources["forget_questions"][0]).parent) not in text


def test_items_come_back_from_parquet(report: EvalReport, tmp_path: Path):
    paths = report.save(tmp_path / "out")
    table = pyarrow.parquet.read_table(paths["items"])
    sequences = sum(item["kind"] == "sequence" and item["method"] == "baseline" for item in report.items)
    assert table.num_rows == len(report.items) == 15 * (30 + 9 + 21 + 3 + sequences) + 3 * 3
    question = next(row for row in table.to_pylist() if row["kind"] == "question")
    assert len(question["option_logprobs"]) == 4
    assert question["logprob"] == max(question["option_logprobs"]) or not question["correct"]
    assert json.loads(paths["report"].read_text()) == report.metrics


# ---- what is asked ------------------------------------------------------------------------------


def test_nothing_to_evaluate_on_names_the_flags(tiny_llama: LanguageModel):
    with pytest.raises(DataError, match="--forget_questions"):
        run(tiny_llama)


@pytest.mark.parametrize(
    ("only", "filled"),
    [
        ("forget_questions", "domains"),
        ("forget_prompts", "domains"),
        ("generation_prompts", "generation"),
        ("retain_eval", "loss"),
        ("forget_eval", "loss"),
    ],
)
def test_what_is_there_is_evaluated(tiny_llama: LanguageModel, tmp_path: Path, only: str, filled: str):
    found = run(tiny_llama, **{only: make_sources(tmp_path)[only]}, methods=("scale",))
    base = found.metrics["methods"][0]
    assert [name for name in ("domains", "loss", "generation") if base[name]] == [filled]
    assert REVERSIBLE in found.summary().splitlines()[:5]


def test_the_half_asked_for_is_the_half_reported(tiny_llama: LanguageModel, tmp_path: Path):
    sources = {"forget_questions": make_sources(tmp_path)["forget_questions"]}
    asked = {}
    for half in ("dev", "test"):
        found = run(tiny_llama, **sources, half=half, methods=("zero",))
        asked[half] = set(found.metrics["domains"]["wizards"]["ids"]["questions"])
        facts = {item["fact"] for item in found.items}
        assert {half_of(fact) for fact in facts} == {half}
        assert {item["id"] for item in found.items} == asked[half]
    assert len(asked["dev"] | asked["test"]) == 30
    assert not asked["dev"] & asked["test"]


def test_a_limit_caps_every_domain(tiny_llama: LanguageModel, tmp_path: Path):
    found = run(tiny_llama, **make_sources(tmp_path), limit=2, methods=("zero",))
    assert {entry["questions"] for entry in found.metrics["domains"].values()} == {2}
    assert found.metrics["protocol"]["generation"]["prompts"] == 2


def test_a_report_says_the_frame_of_each_domain(tiny_llama: LanguageModel, tmp_path: Path):
    sources = {name: files for name, files in make_sources(tmp_path).items() if name.endswith("_questions")}
    frame = {"question_template": "Q: {question}\\n{options}\\nA:", "shots": 1, "scoring": "letter", "limit": 2}
    (shots := tmp_path / "shots.jsonl").write_text('{"question": "Is it?", "choices": ["yes", "no"], "answer": 0}\n')
    found = run(tiny_llama, **sources, **frame, shot_questions=(str(shots),), methods=("zero",))
    told = {"template": "Q: {question}\n{options}\nA:", "shots": 1}
    assert found.metrics["protocol"]["frames"] == dict.fromkeys(found.metrics["domains"], told)
    assert "frames" not in run(tiny_llama, **sources, limit=2, methods=("zero",)).metrics["protocol"]


@pytest.mark.slow
def test_each_latent_is_measured_alone_beside_other_latents(tiny_llama: LanguageModel, tmp_path: Path):
    sources = {name: files for name, files in make_sources(tmp_path).items() if name.endswith("_questions")}
    found = run(tiny_llama, **sources, limit=2, methods=("zero", "scale", "random"), each_latent=2)
    alone = [row for row in found.report.rows if row.edits and "latent" in row.settings]
    controls = [one for one in found.report.controls if "latent" in one.settings]
    assert [row.name for row in alone] == ["scale", "scale"], "the first edit of latents that puts none to rest"
    assert all(row.settings["num_features"] == 1 for row in alone)
    assert len({row.settings["latent"] for row in alone}) == 2
    assert label("scale", alone[0].settings).startswith("scale -3, 1 latent, latent ")
    assert [one.settings["latent"] for one in controls] == [row.settings["latent"] for row in alone]
    assert {one.settings["kind"] for one in controls} == {"latents"}
    assert [len(one.seeds) for one in controls] == [3, 3]
    fired = f"{'a word ' * 20}«peak» after it"
    selection = make_selection(12)
    latents = tuple(replace(one, snippets=(Snippet(fired, 1.0, 0, 0),)) for one in selection.latents)
    (sheet,) = single_latents(found.report, replace(selection, latents=latents))
    assert sheet.rows[0][-1] == fired, "the token it fires on is not cut off"
    assert [row[0] for row in sheet.rows] == [str(row.settings["latent"]) for row in alone]
    accuracy, spread = alone[0].roles["forget"].estimates["accuracy"], controls[0].roles["forget"]["accuracy"]
    assert sheet.rows[0][1].startswith(f"{accuracy.value:.2f} [")
    assert sheet.rows[0][3] == f"{spread.mean:.2f} ({spread.min:.2f} to {spread.max:.2f})"
    assert single_latents(filled({"methods": []}), make_selection(12)) == ()
    with pytest.raises(ConfigError, match="needs an edit of latents among --methods"):
        run(tiny_llama, **sources, limit=2, methods=("zero",), each_latent=1)


class Counting:
    """Progress that adds up what it is told."""

    def __init__(self):
        self.total, self.count, self.lines = None, 0, []

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, title: str, total: int | None, unit: str) -> Iterator["Counting"]:
        self.total = total
        yield self

    def advance(self, amount: int, **facts: float | str) -> None:
        assert facts["method"] in ("baseline", "zero")
        self.count += amount


@pytest.mark.slow
@pytest.mark.parametrize("scoring", ["cloze", "letter"])
def test_progress_counts_every_item_once(tiny_llama: LanguageModel, sources: dict[str, Any], scoring: str):
    watcher = Counting()
    settings = SETTINGS | {"scoring": scoring, "methods": ("zero",), "eval_batch_size": 4, **sources}
    sae = TopKSAE(tiny_llama.d_model, 96, 7, seed=5)
    evaluate(tiny_llama, sae, make_selection(3), EvalConfig(**settings), POINT, watcher)
    assert watcher.count == watcher.total > 0
    guessing, others = [
        [line for line in watcher.lines if line.startswith("Warning: as it is asked here") is so]
        for so in (True, False)
    ]
    assert others == ["12 latents were asked for and 3 are selected; taking those"]
    assert len(set(guessing)) == len(guessing) > 0, "a random model can only guess, which is said once a role"


# ---- plans --------------------------------------------------------------------------------------


def plans_of(lm: LanguageModel, latents: int, **settings: Any) -> list[Plan]:
    materials = Materials(
        lm, TopKSAE(lm.d_model, 96, 7, seed=5), POINT, make_selection(latents), EvalConfig(**settings)
    )
    return list(iter_plans(materials, methods_of(materials.config.methods)))


def test_every_pair_of_scale_and_number_is_measured_with_its_controls(tiny_llama: LanguageModel):
    plans = plans_of(
        tiny_llama, 20,
        ablation_scale=(-1.0, -3.0), num_features=(5, 9), random_seeds=3, methods=("scale", "zero", "random"),
    )  # fmt: skip
    names = [plan.name for plan in plans]
    assert [names.count(name) for name in ("baseline", "scale", "zero", "random")] == [1, 4, 2, 4 * 4 * 3]
    scaled = {(plan.settings["scale"], plan.settings["num_features"]) for plan in plans if plan.name == "scale"}
    assert scaled == {(-1.0, 5), (-1.0, 9), (-3.0, 5), (-3.0, 9)}
    for plan in plans[1:]:
        assert isinstance(plan.subject, Edited)
        assert plan.subject.edits[0].intervention.targets == tuple(range(plan.settings["num_features"]))


def test_without_random_among_the_methods_no_control_is_measured(tiny_llama: LanguageModel):
    plans = plans_of(tiny_llama, 20, num_features=(5,), methods=("scale", "zero"))
    assert [plan.name for plan in plans] == ["baseline", "scale", "zero"]


def test_the_controls_asked_for_are_those_measured(tiny_llama: LanguageModel):
    plans = plans_of(tiny_llama, 20, num_features=(5,), methods=("zero", "scale", "random"), controls=("places",))
    assert [plan.settings.get("kind") for plan in plans] == [None, None, None, "places", "places", "places"]


def test_fewer_latents_than_asked_are_taken_once_and_both_numbers_recorded(tiny_llama: LanguageModel):
    plans = plans_of(tiny_llama, 7, num_features=(4, 50, 100), methods=("zero",))[1:]
    assert [plan.settings for plan in plans] == [{"num_features": 4}, {"num_features": 7, "requested": 100}]


# ---- claims -------------------------------------------------------------------------------------


def estimate(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high}


def story(accuracy: tuple[float, float, float], control: float, beyond: tuple[float, float, float]) -> list[str]:
    """Claims of a report in which one edit brought forget accuracy from 1 to ``accuracy``."""

    def role(value: dict[str, float]) -> dict[str, Any]:
        low = 0.0 if value["low"] <= 0.25 <= value["high"] else 0.1
        return {"accuracy": value, "logprob": value, "chance_distance": estimate(abs(value["value"] - 0.25), low, 1)}

    settings = {"scale": -3.0, "num_features": 10}
    after = estimate(*accuracy)
    moved = estimate(*(value - 1 for value in accuracy))
    before = {"forget": role(estimate(1, 1, 1))}
    common = {"loss": {}, "generation": {}, "domains": {"wizards": before["forget"]}}
    rows = [
        {"name": "baseline", "kind": "baseline", "settings": {}, "roles": before, **common},
        {
            "name": "scale", "kind": "hook", "settings": settings, "roles": {"forget": role(after)}, **common,
            "change": {"roles": {"forget": {"accuracy": moved, "logprob": moved}}, "loss": {}},
        },
    ]  # fmt: skip
    spread = {"mean": control, "min": control, "max": control}
    beside = {
        "settings": {"of": "scale", **settings, "kind": "isotropic"}, "seeds": [0, 1, 2],
        "roles": {"forget": {"accuracy": spread, "logprob": spread}},
        "edit_minus_control": {"forget": {"accuracy": estimate(*beyond), "logprob": estimate(*beyond)}},
    }  # fmt: skip
    return claims(filled({"methods": rows, "controls": [beside]}))


def test_a_true_effect_is_claimed_beside_its_control():
    lines = story((0.26, 0.2, 0.31), 0.9, (-0.64, -0.7, -0.5))
    assert "fell from 1.00 to 0.26 [0.20, 0.31]" in lines[0]
    assert "not told apart from guessing" in lines[0]
    assert "The edit goes further by 0.64 [0.50, 0.70]" in lines[1]
    assert lines[2] == REVERSIBLE


def test_a_control_that_does_the_same_takes_the_claim_away():
    lines = story((0.5, 0.4, 0.6), 0.5, (0.0, -0.1, 0.1))
    assert "not shown to come from the chosen latents" in lines[1]


def test_below_chance_is_called_turned_round():
    assert "turned round rather than gone" in story((0.01, 0.0, 0.03), 0.9, (-0.9, -1, -0.8))[0]


def test_no_effect_is_not_called_a_fall():
    lines = story((1.0, 0.98, 1.0), 1.0, (0.0, 0.0, 0.0))
    assert "fell" not in lines[0]


def test_a_seed_that_goes_as_far_takes_the_claim_away():
    lines = story((0.5, 0.4, 0.6), 0.49, (-0.08, -0.17, -0.001))
    assert "further by 0.08 [0.00, 0.17] than their mean, but not than every seed" in lines[1]


def swept_row(name: str, accuracy: tuple[float, float, float], *, kind: str = "hook", retain: float = 0.0) -> dict:
    """A row at the setting that a sweep chose."""
    found, fell = estimate(*accuracy), estimate(*(value - 1 for value in accuracy))
    role = {"accuracy": found, "logprob": found, "chance_distance": estimate(0.1, 0.1, 0.1), "edited_share": 0.0}
    changed = {"forget": {"accuracy": fell, "logprob": fell}, "retain": {"accuracy": estimate(retain, retain, retain)}}
    return {
        "name": name, "kind": kind, "settings": {"num_features": 3, "value": -1.0}, "roles": {"forget": role},
        "loss": {}, "generation": {}, "edited_share": {}, "change": {"roles": changed, "loss": {}},
    }  # fmt: skip


def claims_of_sweep(*rows: dict, ends: dict[str, str] | None = None, protocol: dict | None = None) -> list[str]:
    before = {"forget": {"accuracy": estimate(1, 1, 1), "logprob": estimate(0, 0, 0)}}
    base = {"name": "baseline", "kind": "baseline", "roles": before, "domains": {"wizards": before["forget"]}}
    point = {"forget": 1.0, "utility": 1.0, "neighbour": None, "alignment": 0.0}
    tuned = {
        row["name"]: {
            "configurations": 8, "points": [], "front": [], "best_at": {}, "saebench_score": 0.0, "hypervolume": 0.0,
            "best_alignment": 0.0, "chosen": {**point, "settings": row["settings"]}, "rule": "utility_99",
            "end": (ends or {}).get(row["name"]),
        }
        for row in rows
    }  # fmt: skip
    sweep = {"half": "dev", "domains": {}, "base": {**point, "settings": {}}, "floors": {}, "methods": tuned}
    metrics = {"methods": [base, *rows], "sweep": sweep, "protocol": protocol or {}}
    return claims(filled(metrics))


def test_a_sweep_names_what_forgets_and_keeps_nearest_to_guessing_first():
    lines = claims_of_sweep(
        swept_row("clamp", (0.5, 0.4, 0.6)),
        swept_row("scale", (0.05, 0.0, 0.1)),
        swept_row("rmu", (0.3, 0.2, 0.4), kind="weights"),
        swept_row("steer", (0.98, 0.9, 1.0)),  # does not forget measurably
        swept_row("project", (0.3, 0.2, 0.4), retain=-0.2),  # costs too much
        swept_row("zero", (0.9, 0.8, 0.95)),  # a control
        ends={"clamp": "roughest", "steer": "gentlest"},
        protocol={"selection": "inlp"},
    )
    listed = [line for line in lines if line.startswith("  ") and " to " in line and "questions" not in line]
    assert [line.split(":")[0].strip() for line in listed] == ["rmu", "scale", "clamp"]
    assert "turned round" in listed[1] and "turned round" not in listed[0]
    assert "Chosen at the roughest strength that was tried, so there may be better beyond: clamp." in lines
    assert "Chosen at the gentlest strength that was tried, so there may be better beyond: steer." in lines
    assert any("one selection, inlp" in line for line in lines)
    assert "  No token of the forget questions was edited." in lines


def test_a_sweep_in_which_nothing_forgets_says_so():
    lines = claims_of_sweep(swept_row("clamp", (1.0, 0.99, 1.0)))
    assert any(line.startswith("None of them forgets measurably") for line in lines)


def test_what_holds_for_every_edit_is_said():
    how = {"selection": "inlp", "gate": "window", "gate_policy": "streaming", "keep_error": False}
    lines = claims_of_sweep(swept_row("clamp", (0.3, 0.2, 0.4)), protocol=how)
    assert "Every edit is in force only where the gate window is open (streaming)." in lines
    assert any("The SAE's error is dropped" in line for line in lines)


def text_only(after: float, control: float, beyond: float, *, retain: float = 0.01) -> list[str]:
    """Claims of a run without questions, in which one edit brought the loss on forget text from 2 to ``after``."""
    settings = {"scale": -3.0, "num_features": 10}
    spread = {"mean": control, "min": control - 0.1, "max": control + 0.1}
    beside = {
        "settings": {"of": "scale", **settings, "kind": "isotropic"}, "seeds": [0, 1, 2],
        "loss": {"forget": spread},
        "edit_minus_control": {"loss": {"forget": estimate(beyond, beyond - 0.1, beyond + 0.1)}},
    }  # fmt: skip
    losses = {"forget": estimate(after, after, after), "retain": estimate(2 + retain, 2 + retain, 2 + retain)}
    change = {"forget": estimate(after - 2, after - 2.1, after - 1.9), "retain": estimate(retain, retain, retain)}
    rows = [
        {"name": "baseline", "kind": "baseline", "loss": dict.fromkeys(losses, estimate(2, 2, 2)), "generation": {}},
        {"name": "scale", "settings": settings, "loss": losses, "generation": {}, "change": {"loss": change}},
    ]
    return claims(filled({"methods": rows, "controls": [beside]}))


def test_a_run_on_texts_alone_compares_losses_with_its_controls():
    lines = text_only(4.0, 3.5, 0.5)
    (beside,) = [line for line in lines if "isotropic" in line]
    assert "loss on forget text from 2.00 to 3.50 (3.40 to 3.60) nats; 70% to 80% of the edit's rise" in beside
    assert "The edit goes further by 0.50 [0.40, 0.60]." in beside
    assert "The control goes further" in "".join(text_only(3.0, 3.5, -0.5))
    assert "not told apart from chance" in "".join(text_only(3.55, 3.5, 0.15))
    assert not [line for line in lines if "nothing that is to be forgotten" in line]


@pytest.mark.parametrize(("retain", "broken"), [(0.49, False), (0.51, True)])
def test_a_broken_model_is_what_is_said_first(retain: float, broken: bool):
    first = text_only(4.0, 3.5, 0.5, retain=retain)[0]
    assert first.startswith("The model is broken under Scale -3 on 10 latents: loss on retain text +0.51") == broken


def test_a_method_that_costs_more_than_ten_points_is_broken_and_never_among_those_that_keep():
    lines = claims_of_sweep(
        swept_row("clamp", (0.5, 0.4, 0.6)), swept_row("rmu", (0.3, 0.2, 0.4), retain=-0.11, kind="weights")
    )
    assert lines[0].startswith("The model is broken under rmu") and "retain questions -11" in lines[0]
    assert "clamp" not in lines[0]


def test_answers_that_are_all_alike_have_an_interval_by_the_number_of_facts():
    one, two = (Item(task="t", domain="", role="", id=str(n), fact=f"f{n}", values={"right": True}) for n in (1, 2))
    again = replace(two, id="3")
    measure = Measure(name="right", words="right", yes_or_no=True, read=lambda item: (item.values["right"], 1.0))
    pool = Pool(measure, (one, two, again))
    assert pool.estimate(Bootstrap()).low == pytest.approx(wilson(2, 2).low)
    assert pool.series is not None
    assert pool.series.minus(pool.series).estimate(Bootstrap()) == Estimate(0, -wilson(0, 2).high, wilson(0, 2).high)
    assert Pool(replace(measure, yes_or_no=False), (one, two)).estimate(Bootstrap()) == Estimate(1, 1, 1)


def test_several_settings_on_the_same_items_point_to_the_sweep(tiny_llama: LanguageModel, tmp_path: Path):
    sources = {"forget_questions": make_sources(tmp_path)["forget_questions"]}
    lines = run(tiny_llama, **sources, ablation_scale=(-1.0, -3.0), methods=("scale",)).summary().splitlines()
    assert any("--sweep" in line and "dev half" in line for line in lines)
    assert any("Without a random-direction control" in line for line in lines)
