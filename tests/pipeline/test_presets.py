"""Every paper's preset runs to its end on a small model, a small SAE in Gemma Scope's format, and WMDP's schema.

Only model, SAE file, corpora, questions, layer and counts are made small; everything else is the preset's own.
"""

import json
import random
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reports import estimate, filled
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedTokenizerFast

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.fields import described
from sae_forge.errors import ConfigError, DataError
from sae_forge.models.loading import load_model
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.convert import convert
from sae_forge.pipeline.run import run
from sae_forge.pipeline.sheets.published import COLUMNS, NOT_MEASURED, as_published, published_beside
from sae_forge.progress import SILENT
from sae_forge.results.report import Report
from sae_forge.settings import preset_of, presets, resolve
from sae_forge.study.settings import run_config

pytestmark = pytest.mark.usefixtures("unpainted")

PAPERS = tuple(name for name, preset in presets().items() if "published" in preset)
RELEASED = tuple(name for name in PAPERS if "sae" in presets()[name]["settings"])
DEFAULTS = {"gemma-2b": "gemma", "gemma2-2b": "gemma2", "gemma2-9b": "gemma2"}
"""Presets that give a model its defaults, one of each kind, and the family of a small model of its class."""
MEASURES = {
    "accuracy",
    "logprob_shift",
    "logprob_shift_ratio",
    "loss_added",
    "alignment",
    "degenerate",
    "verbmem",
    "knowmem",
    "privleak",
}

TEMPLATE = (
    "{{ bos_token }}<turn>{{ messages[0]['content'] | trim }}\n<turn>{% if add_generation_prompt %}model\n{% endif %}"
)
OPTIONS = ("gold", "tin", "iron", "lead")
"""The first is always the right one."""
SUBJECTS = {
    "wmdp-bio": "biology",
    "wmdp-cyber": "cyber security",
    **{
        name: name.replace("_", " ")
        for name in (
            "college_biology", "computer_security", "high_school_us_history", "college_computer_science",
            "high_school_geography", "human_aging",
        )
    },
}  # fmt: skip
FORGET, RETAIN = ("zq", "xv", "qj", "vz"), ("wind", "rain", "dawn", "moss", "reed", "fern")
LAYER, D_SAE, TUNED = 1, 128, 16
REFUSAL = 100


# ---- a small world ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that knows its answers in every order, an SAE, corpora, questions and prompts."""
    folder = tmp_path_factory.mktemp("world")
    draw = random.Random(0)
    for name, words in (("forget", FORGET), ("retain", RETAIN)):
        for part in ("", "-eval"):
            texts = [" ".join(draw.choices((*words, "and", "the"), k=40)) for _ in range(40)]
            (folder / f"{name}{part}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name in SUBJECTS:
        records = [_question(number) for number in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("forget", "magic", "fantasy", "real_world"):
        _prompts(folder / f"{name}-prompts.jsonl" if name == "forget" else folder / f"{name}.jsonl")
    for name in ("news", "books"):
        _muse(folder, f"muse-{name}")
    _save_model(folder / "tiny-gemma2-chat")
    _save_sae(folder)
    return folder


def _question(number: int) -> dict[str, Any]:
    """WMDP's schema; the right option stands elsewhere in each."""
    choices = list(OPTIONS[1:])
    choices.insert(number, OPTIONS[0])
    return {"question": f"Which one is it, {'xyz'[number]}?", "choices": choices, "answer": number}


def _prompts(path: Path) -> None:
    records = [{"prompt": f"zq {word}", "target": "xv qj"} for word in RETAIN[:3]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _muse(folder: Path, name: str) -> None:
    """MUSE's schema: what is recited, what is asked after which answered questions, what is recognised."""
    texts = {"forget": " ".join(FORGET * 3), "holdout": " ".join(RETAIN * 2)}
    asked = [{"question": f"Which one is it, {letter}?", "answer": OPTIONS[0]} for letter in "xyz"]
    records = {
        "verbmem": [{"prompt": f"zq {word}", "gt": "xv qj vz"} for word in RETAIN[:3]],
        **{f"knowmem-{role}": asked for role in ("forget", "retain")},
        **{f"knowmem-{role}-shots": asked[:2] for role in ("forget", "retain")},
        **{f"privleak-{side}": [{"text": f"{text} {n}"} for n in range(3)] for side, text in texts.items()},
    }
    for part, found in records.items():
        (folder / f"{name}-{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))


def _chat(subject: str, question: str, options: tuple[str, ...]) -> str:
    """The papers' chat prompt, written out once more."""
    listed = "\n".join(f"{letter}. {option}" for letter, option in zip("ABCD", options, strict=True))
    asked = f"The following are multiple choice questions (with answers) about {subject}.\n{question}\n{listed}"
    return f"<s><turn>{asked}\n<turn>model\nAnswer: ("


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<pad>", "<s>", "</s>", "<turn>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<turn>"], chat_template=TEMPLATE,
    )  # fmt: skip


def _save_model(folder: Path) -> None:
    """A Gemma 2 trained for a few seconds to name the letter in front of the right option."""
    asked = [
        (_chat(subject, _question(number)["question"], options), "ABCD"[options.index(OPTIONS[0])])
        for subject in SUBJECTS.values()
        for number in range(3)
        for options in permutations(OPTIONS)
    ]
    tokenizer = _tokenizer([text for text, _ in asked] + [" ".join((*FORGET, *RETAIN))] * 20)
    rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text, _ in asked]
    letters = [tokenizer(f"({letter}", add_special_tokens=False)["input_ids"][-1] for _, letter in asked]
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    config = Gemma2Config(
        vocab_size=640, hidden_size=56, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
        intermediate_size=88, max_position_embeddings=256, sliding_window=8, query_pre_attn_scalar=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, attn_implementation="eager",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
        for step in range(400):
            batch = torch.randperm(len(ids))[:24]
            logits = model(input_ids=ids[batch], attention_mask=(ids[batch] > 0).long(), logits_to_keep=1).logits
            loss = torch.nn.functional.cross_entropy(logits[:, -1], torch.tensor(letters)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if loss.item() < 0.01 and step > 80:
                break
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _save_sae(folder: Path) -> None:
    """``params.npz`` whose first latents answer to forget text and never to retain text; the others to anything."""
    lm = load_model(str(folder / "tiny-gemma2-chat"), device="cpu")
    rows = {name: _residuals(lm, folder / f"{name}.jsonl") for name in ("forget", "retain")}
    generator = torch.Generator().manual_seed(0)
    picked = rows["forget"][torch.randperm(len(rows["forget"]), generator=generator)[:TUNED]]
    others = torch.randn(D_SAE - TUNED, lm.d_model, generator=generator)
    directions = torch.cat([picked - rows["retain"].mean(0), others])
    W_enc = torch.nn.functional.normalize(directions, dim=1).T
    seen = rows["retain"] @ W_enc
    threshold = torch.cat([seen.max(0).values[:TUNED] * 1.1, seen.quantile(0.9, dim=0)[TUNED:]])
    params = {"W_enc": W_enc, "W_dec": W_enc.T, "b_enc": torch.zeros(D_SAE), "b_dec": torch.zeros(lm.d_model)}
    place = folder / "gemma-scope-2b-pt-res" / f"layer_{LAYER}"
    place.mkdir(parents=True)
    arrays = {name: weights.numpy() for name, weights in (params | {"threshold": threshold}).items()}
    np.savez(place / "params.npz", **arrays)  # pyright: ignore[reportArgumentType]


def _residuals(lm: Any, path: Path) -> torch.Tensor:
    found: list[torch.Tensor] = []
    hook = lm.model.model.layers[LAYER].register_forward_hook(
        lambda _, __, output: found.append((output[0] if isinstance(output, tuple) else output)[0, 1:])
    )
    with torch.no_grad():
        for line in path.read_text().splitlines():
            lm.model(**lm.tokenizer(json.loads(line)["text"], return_tensors="pt"))
    hook.remove()
    return torch.cat(found)


# ---- the settings -------------------------------------------------------------------------------


def test_a_paper_is_a_preset_and_a_preset_says_what_it_is() -> None:
    assert {"farrell-gemma2-2b", "dsg-bio", "dsg-cyber", "dsg-muse-news", "dsg-muse-books"} <= set(PAPERS)
    assert {"condclamp-prime", "condclamp-refusal", "inlp-llama2-7b"} <= set(PAPERS)
    for name, preset in presets().items():
        assert preset["description"].endswith("."), name
        assert "\n" not in preset["description"]
        assert preset["models"], name


@pytest.mark.parametrize("name", PAPERS)
def test_a_paper_sets_only_what_there_is_and_names_its_files(name: str) -> None:
    preset = presets()[name]
    config = resolve(run_config(), {}, preset=name)
    assert config.model == preset["models"][0]
    assert set(preset["settings"]) <= set(described(run_config()))
    for setting, value in preset["settings"].items():
        found = getattr(config, setting)
        assert (list(found) if isinstance(found, tuple) else found) == value, setting
    asked = {file for name, files in config.items("report").items() for file in files if not name.endswith("_eval")}
    assert set(preset.get("needs", {})) == asked
    assert preset["published"]["source"]
    for row in preset["published"]["rows"]:
        assert set(row) - {"method", "settings"} <= MEASURES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("farrell-gemma2-2b", {"layer": (3,), "retain_threshold": 0.01, "clamp_value": (10.0, 50.0, 100.0)}),
        ("dsg-bio", {"layer": (3,), "p_ratio": 95.0, "num_features": (20,), "clamp_value": (500.0,)}),
        ("dsg-cyber", {"p_ratio": 90.0, "num_features": (30,), "gate_percentile": 95.0, "gate_policy": "prompt"}),
        ("condclamp-prime", {"layer": (7,), "num_features": (5,), "clamp_value": (300.0,), "theta": 0.0}),
        ("condclamp-refusal", {"num_features": (10,), "theta": 0.05, "refusal_latent": 15864, "refusal_value": -500.0}),
        (
            "rmu-gemma2-2b",
            {
                "rmu_coefficient": 400.0,
                "rmu_alpha": 100.0,
                "rmu_mean": "positions",
                "baseline_eps": 1e-6,
                "layer": (3,),
            },
        ),
        ("crisp-gemma2-2b", {"crisp_layers": (3, 4, 5, 6, 7, 8, 9), "num_features": (10,), "baseline_lr": 1e-5}),
        (
            "inlp-llama2-7b",
            {"layer": (15,), "k": (8,), "expansion_factor": (4,), "ablation_scale": (-3.0,), "sae": None},
        ),
    ],
)
def test_the_numbers_are_the_papers(name: str, expected: dict[str, Any]) -> None:
    config = resolve(run_config(), {}, preset=name)
    assert {setting: getattr(config, setting) for setting in expected} == expected


def test_a_model_gets_its_own_defaults_and_a_paper_only_by_name() -> None:
    for model in ("google/gemma-2-2b-it", "google/gemma-2-2b"):
        assert preset_of(model) == presets()["gemma2-2b"]
    assert resolve(run_config(), {"model": "google/gemma-2-2b-it"}).sae is None
    assert preset_of("meta-llama/Llama-2-7b-chat-hf") == presets()["inlp-llama2-7b"]
    with pytest.raises(
        ConfigError, match=r"preset 'dsg' is unknown \(did you mean dsg-bio\?\); choose one of .*dsg-cyber"
    ):
        resolve(run_config(), {}, preset="dsg")


# ---- the runs -----------------------------------------------------------------------------------


def _run(name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Outcome:
    """The preset on the small world; its question files are found by their own names."""
    monkeypatch.chdir(world)
    settings = presets()[name]["settings"]
    small: dict[str, Any] = {
        "model": str(world / "tiny-gemma2-chat"),
        "run_dir": tmp_path / "run",
        "layer": (LAYER,),
        "forget": "forget.jsonl",
        "retain": ("retain.jsonl",),
        "max_tokens": 2500,
        "ctx_len": 64,
        "num_features": (2,),
        "loss_tokens": 300,
        "max_new_tokens": 4,
        "bootstrap": 100,
        "snippets": 1,
    }
    if "sae" in settings:
        small["sae"] = str(world / "gemma-scope-2b-pt-res" / f"layer_{LAYER}" / "params.npz")
    if "crisp_layers" in settings:
        small |= {"crisp_layers": (0, 1)}
    if "baseline_steps" in settings:
        small |= {"baseline_steps": 2}
    if "refusal_latent" in settings:
        small["refusal_latent"] = REFUSAL
    for corpus in ("forget_eval", "retain_eval"):
        if corpus in settings:
            small[corpus] = (f"{corpus.replace('_', '-')}.jsonl",)
    return run([resolve(run_config(), small | more, preset=name)], SILENT, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED)
def test_a_paper_runs_to_its_end_on_a_released_sae(
    name: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = presets()[name]["settings"]
    outcome = _run(name, world, tmp_path, monkeypatch)
    stages = next(iter(outcome.metrics.values()))
    assert list(stages) == ["collect", "features", "eval", "report"]
    assert stages["features"]["method"] == settings["method"][0]
    chosen = stages["features"]["latents"]
    assert chosen
    bound = 1.0 if settings["method"] == ["crisp"] else 0.01  # its rule has none
    assert all(latent["forget_frequency"] > 0 and latent["retain_frequency"] < bound for latent in chosen)
    metrics = stages["eval"]
    assert metrics["protocol"]["half"] == settings["half"]
    if "scoring" in settings:
        assert metrics["protocol"]["scoring"] == settings["scoring"]
        assert metrics["methods"][0]["roles"]["forget"]["accuracy"]["value"] >= (settings["scoring"] == "chat")
    written = {(row["name"], row["settings"].get("value")) for row in metrics["methods"]}
    for method in set(settings["methods"]) - {"random"}:
        values = [-value for value in settings["clamp_value"]] if "clamp_value" in settings else [-500.0]
        values = [None] if method in ("rmu", "crisp") else values  # of weights none is written
        assert {(method, value) for value in values} <= written
    assert ("random" in settings["methods"]) == any(row["name"] == "random" for row in metrics["methods"])
    (selection,) = (tmp_path / "run" / "features").glob("*/gemma-scope-2b-pt-res--layer_1-*/*.json")
    kept = json.loads(selection.read_text())["settings"]
    for setting in ("p_ratio", "moment", "retain_threshold", "fire_threshold"):
        if setting in kept and setting in settings:
            found = kept[setting]
            assert (found[settings["method"][0]] if isinstance(found, dict) else found) == settings[setting]
    assert not list((tmp_path / "run").rglob("sae_weights.safetensors"))
    later = EvalConfig(model=str(world / "tiny-gemma2-chat"), run_dir=tmp_path / "run")
    assert Bench(later).sae(None).folder.name == selection.parent.name, "what was used last is the default"
    (table,) = [table for table in outcome.tables if table.columns == COLUMNS]
    assert len(table.rows) == sum(
        len(value) if isinstance(value, dict) else 1
        for row in presets()[name]["published"]["rows"]
        for measure, value in row.items()
        if measure not in ("method", "settings")
    )
    if presets()[name]["published"]["rows"][0]["method"] == "baseline":
        assert table.rows[0][0] == "baseline"
        assert table.rows[0][3] != NOT_MEASURED
        assert _paired(name, metrics), "a row of the paper names its settings as the report does"


def _paired(name: str, metrics: dict[str, Any]) -> bool:
    """Whether each published row of the paper's own edit finds its measurement, but for the number of latents."""
    preset = presets()[name]
    own = [row for row in preset["published"]["rows"] if row["method"] in preset["settings"]["methods"]]
    own = [row for row in own if "note" not in row["settings"]]
    few = {"num_features": 2}
    small = [{**row, "settings": {key: few.get(key, value) for key, value in row["settings"].items()}} for row in own]
    rows = published_beside({"published": {"rows": small}}, Report.from_json(metrics)).rows
    wanted = ("accuracy", "verbmem", "knowmem", "privleak")
    return all(measured != NOT_MEASURED for _, measure, _, measured in rows if measure.startswith(wanted))


@pytest.mark.slow
def test_inlp_trains_its_own_sae_and_measures_what_it_published(
    model_folders: dict[str, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = partial(
        _run, "inlp-llama2-7b", world, model=str(model_folders["llama"]), num_features=(100,), min_target_fires=16,
        max_freq=1.0, forget_prompts=("forget-prompts.jsonl",),
    )  # fmt: skip
    outcome = asked(
        tmp_path, monkeypatch, max_steps=60, batch_size=512, lr=3e-3, half="all", retain_eval=("retain-eval.jsonl",),
        neighbour_prompts=("magic.jsonl", "fantasy.jsonl"), retain_prompts=("real_world.jsonl",),
        generation_prompts=("forget-prompts.jsonl",),
    )  # fmt: skip
    stages = next(iter(outcome.metrics.values()))
    assert list(stages) == ["collect", "train", "features", "eval", "report"]
    (weights,) = (tmp_path / "run").rglob("sae_weights.safetensors")
    assert weights.parent.name == "k8-d224-s0"
    (table,) = [table for table in outcome.tables if table.columns == COLUMNS]
    assert table.rows[0][0] == "scale -3, 100 latents"

    made = convert(str(weights.parent), to="sparsify", out=tmp_path / "sae-llama-2-7b")
    assert made.outputs["sae"].name == f"layers.{LAYER}", "as those of EleutherAI for Llama are"
    outcome = asked(tmp_path, monkeypatch, sae=str(made.outputs["sae"]), methods=("zero",))
    assert list(next(iter(outcome.metrics.values()))) == ["collect", "features", "eval", "report"]
    assert [row["name"] for row in next(iter(outcome.metrics.values()))["eval"]["methods"]] == ["baseline", "zero"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), [*DEFAULTS.items()])
def test_a_models_defaults_run_to_their_end_on_a_small_model_of_its_class(
    name: str, family: str, model_folders: dict[str, Path], world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"model": str(model_folders[family]), "max_steps": 4, "batch_size": 256, "lr": 1e-3}
    asked = {"forget_eval": ("forget-eval.jsonl",), "retain_eval": ("retain-eval.jsonl",), "methods": ("zero",)}
    loose = {"retain_threshold": 1.0, "num_features": (2,)}
    outcome = _run(name, world, tmp_path, monkeypatch, **small, **asked, **loose)
    stages = next(iter(outcome.metrics.values()))
    assert list(stages) == ["collect", "train", "features", "eval", "report"]
    assert stages["features"]["method"] == "frequency"
    (weights,) = (tmp_path / "run").rglob("sae_weights.safetensors")
    assert weights.parent.name == "k64-d448-s0", "as the preset sets k and the expansion"
    assert not as_published(name, presets()[name], resolve(run_config(), {}, preset=name)).rows, "no paper's"


def test_no_preset_is_left_untried() -> None:
    """Papers' run above, built-in and packaged models' in their own tests; others are defaults of one that is run."""
    for name, preset in presets().items():
        if name in PAPERS or not all("/" in model for model in preset["models"]):
            continue
        rest = [{key: value for key, value in presets()[one]["settings"].items() if key != "layer"}
                for one, family in DEFAULTS.items() if name.partition("-")[0] == family]  # fmt: skip
        assert {key: value for key, value in preset["settings"].items() if key != "layer"} in rest, name


@pytest.mark.slow
def test_a_file_that_the_preset_needs_is_asked_for_before_anything_is_done(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"dsg-bio asks .* wmdp-bio\.jsonl, .* cais/wmdp, wmdp-bio, split test"):
        run([resolve(run_config(), {"run_dir": tmp_path / "run"}, preset="dsg-bio")], SILENT, "dsg-bio")
    assert not (tmp_path / "run").exists()


# ---- published beside measured ------------------------------------------------------------------


def _estimate(value: float) -> dict[str, float]:
    return estimate(value, 0.1)


def test_a_published_number_stands_beside_its_own_measurement() -> None:
    edit = {
        "name": "clamp",
        "settings": {"num_features": 10, "value": -50.0, "extra": "yes"},
        "roles": {"forget": {"accuracy": _estimate(0.6)}, "retain": {"accuracy": _estimate(0.9)}},
        "domains": {"magic": {"accuracy": _estimate(0.5)}},
        "generation": {"degenerate": _estimate(0.2)},
        "change": {
            "alignment": _estimate(0.7),
            "loss": {"retain": _estimate(0.01)},
            "roles": {"forget": {"logprob": _estimate(-0.8)}},
        },
    }
    other = {**edit, "settings": {"num_features": 10, "value": -5.0}, "roles": {"forget": {"accuracy": _estimate(0.1)}}}
    seeds = [
        {
            "name": "random",
            "settings": {"of": "clamp", "kind": "latents"},
            "roles": {"forget": {"accuracy": _estimate(value)}},
        }
        for value in (0.8, 1.0)
    ]
    rows = [
        {
            "method": "clamp",
            "settings": {"num_features": 10, "value": -50},
            "accuracy": {"forget": 0.584, "magic": 0.4, "neighbour": 0.753},
            "logprob_shift": {"forget": -0.812},
            "loss_added": {"retain": -0.004},
            "alignment": 0.8226,
            "degenerate": 0.09,
            "verbmem": {"forget": 11.8},
        },
        {"method": "random", "settings": {"of": "clamp", "kind": "latents"}, "accuracy": {"forget": 0.87}},
        {"method": "rmu", "settings": {"note": "their best"}, "accuracy": {"forget": 0.5}},
    ]
    found = published_beside(
        {"published": {"source": "a paper", "rows": rows}}, filled({"methods": [other, edit, *seeds]})
    )
    assert found.title == "published beside measured: a paper"
    assert found.columns == COLUMNS
    clamp = "clamp 10 latents, value -50"
    assert found.rows == (
        (clamp, "accuracy forget", "0.584", "0.600 [0.500, 0.700]"),
        (clamp, "accuracy magic", "0.400", "0.500 [0.400, 0.600]"),
        (clamp, "accuracy neighbour", "0.753", NOT_MEASURED),
        (clamp, "logprob shift forget", "-0.812", "-0.800 [-0.900, -0.700]"),
        (clamp, "loss added retain", "-0.004", "0.010 [-0.090, 0.110]"),
        (clamp, "alignment", "0.823", "0.700 [0.600, 0.800]"),
        (clamp, "degenerate", "0.090", "0.200 [0.100, 0.300]"),
        (clamp, "verbmem forget", "11.800", NOT_MEASURED),
        ("random latents for clamp", "accuracy forget", "0.870", "0.900 [0.700, 1.100]"),
        ("rmu note their best", "accuracy forget", "0.500", NOT_MEASURED),
    )
    assert published_beside({}, filled({"methods": [edit]})).rows == ()


@pytest.mark.parametrize("name", PAPERS)
def test_a_preset_says_what_it_does_as_published_and_what_differs(name: str) -> None:
    preset = presets()[name]
    sheet = as_published(name, preset, resolve(run_config(), {}, preset=name))
    assert set(preset["as_published"]) <= set(preset["settings"]), "only what it sets is done as published"
    done = [words for kind, words in sheet.rows if kind == "as published"]
    assert len(done) == len(preset["as_published"]) >= 3
    assert done[0].startswith(f"--tokens {preset['settings']['tokens']}: ")
    assert [words for kind, words in sheet.rows if kind == "differs"] == preset["differs"]
    assert len(preset["differs"]) >= 2
    changed = as_published(name, preset, resolve(run_config(), {"tokens": "real"}, preset=name))
    assert ("differs", f"--tokens real, where the preset has {preset['settings']['tokens']}") in changed.rows
    assert len(changed.rows) == len(sheet.rows), "what was as published differs now"


@pytest.mark.parametrize(
    ("name", "touched", "counted"),
    [
        ("farrell-gemma2-2b", "attended", "real"),
        ("dsg-bio", "all_but_first", "attended"),
        ("dsg-cyber", "all_but_first", "attended"),
        ("dsg-muse-news", "all_but_first", "attended"),
        ("dsg-muse-books", "all_but_first", "attended"),
        ("condclamp-prime", "attended", "real"),
        ("condclamp-refusal", "attended", "real"),
        ("rmu-gemma2-2b", "attended", "real"),
        ("crisp-gemma2-2b", "attended", "real"),
        ("inlp-llama2-7b", "attended", "real"),
    ],
)
def test_a_preset_touches_the_tokens_that_its_paper_touches(name: str, touched: str, counted: str) -> None:
    config = resolve(run_config(), {}, preset=name)
    assert (config.tokens, config.gate_tokens) == (touched, counted)
