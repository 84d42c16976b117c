"""SAEs of other tools: each format beside what its own definition computes, and true refusals of the rest."""

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_forge.config.evaluate import EvalConfig
from sae_forge.errors import CheckpointError, ConfigError, ForgeError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.families import FAMILIES
from sae_forge.pipeline.bench import Bench
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.formats import build, pickled, table
from sae_forge.sae.formats.format import Hints
from sae_forge.sae.formats.places import place_of
from sae_forge.sae.named import NamedSAE, load_dictionary
from sae_forge.sae.released import same_model
from sae_forge.sae.slices import put_together, sliced, taken_apart
from sae_forge.sae.store import load_sae
from sae_forge.store.runs import POINTER, Run

D_IN, D_SAE, K = 12, 28, 4


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(40, D_IN, seed=0) * 2 + 0.5
W: dict[str, Tensor] = {
    "W_enc": draw(D_IN, D_SAE, seed=1),
    "b_enc": draw(D_SAE, seed=2) * 0.3,
    "W_dec": draw(D_SAE, D_IN, seed=3) * draw(D_SAE, 1, seed=4).abs(),
    "b_dec": draw(D_IN, seed=5),
    "threshold": draw(D_SAE, seed=6).abs() * 2,
    "b_gate": draw(D_SAE, seed=7),
    "b_mag": draw(D_SAE, seed=8),
    "r_mag": draw(D_SAE, seed=9) * 0.4,
}


def top(pre_acts: Tensor) -> Tensor:
    kept = pre_acts.relu().topk(K, dim=-1)
    return torch.zeros_like(pre_acts).scatter(-1, kept.indices, kept.values)


def abs_top(pre_acts: Tensor) -> Tensor:
    indices = pre_acts.abs().topk(K, dim=-1).indices
    return torch.zeros_like(pre_acts).scatter(-1, indices, pre_acts.gather(-1, indices))


def run_max(pre_acts: Tensor) -> Tensor:
    values, places = pre_acts.relu().unflatten(-1, (K, -1)).max(dim=-1)
    return torch.zeros_like(pre_acts).scatter(-1, places + torch.arange(0, D_SAE, D_SAE // K), values)


RULES: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": top,
    "abstopk": abs_top,
    "groupmax": run_max,
    "standard": torch.relu,
    "jumprelu": lambda pre_acts: torch.where(pre_acts > W["threshold"].double(), pre_acts, 0.0).relu(),
}


def defined(rule: str, x: Tensor, *, centred: bool, by_norm: bool = False) -> tuple[Tensor, Tensor]:
    """Acts and output from the definition, in float64: nothing is folded."""
    wide = {name: tensor.double() for name, tensor in W.items()}
    x = x.double() - wide["b_dec"] if centred else x.double()
    norms = wide["W_dec"].norm(dim=1) if by_norm else torch.ones(D_SAE).double()
    if rule == "gated":
        strength = (x @ (wide["W_enc"] * wide["r_mag"].exp()) + wide["b_mag"]).relu()
        acts = strength * (x @ wide["W_enc"] + wide["b_gate"] > 0)
    else:
        acts = RULES[rule]((x @ wide["W_enc"] + wide["b_enc"]) * norms)
    return acts, (acts / norms) @ wide["W_dec"] + wide["b_dec"]


def dense(sae: Dictionary, x: Tensor) -> Tensor:
    found = sae.encode(x)
    acts = torch.zeros(len(x), sae.d_sae).scatter_add_(1, found.indices.long(), found.values)
    return acts[:, :D_SAE] - acts[:, D_SAE:] if sae.d_sae == 2 * D_SAE else acts


def agree(sae: Dictionary, acts: Tensor, output: Tensor, x: Tensor = X) -> None:
    torch.testing.assert_close(dense(sae, x).double(), acts, rtol=5e-6, atol=5e-6 * float(acts.abs().max()))
    assert torch.equal(dense(sae, x) != 0, acts != 0)
    torch.testing.assert_close(
        sae.decode(sae.encode(x)).double(), output, rtol=1e-5, atol=1e-5 * float(output.abs().max())
    )


def opened(path: Path, tmp_path: Path, **asked: Any) -> NamedSAE:
    return load_dictionary(path, Run(tmp_path / "run"), **{"model": "m", "allow_pickle": True, **asked})


# ---- SAELens ------------------------------------------------------------------------------------

NOTHING: dict[str, Any] = {}
TENSORS = {"jumprelu": ("b_enc", "threshold"), "gated": ("b_gate", "b_mag", "r_mag")}


def saelens_folder(
    folder: Path, kind: str, *, metadata: dict[str, Any] | None = NOTHING, change: dict[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32, **cfg: Any,
) -> Path:  # fmt: skip
    """What SAELens 6 writes; a setting of None is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("W_enc", "W_dec", "b_dec", *TENSORS.get(kind, ("b_enc",)))
    tensors = {name: ((change or {}).get(name, W[name])).to(dtype).contiguous() for name in names}
    save_file(tensors, folder / "sae_weights.safetensors")
    told = {"architecture": kind, "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "apply_b_dec_to_input": True}
    told |= {"k": K} if "topk" in kind else {}
    if metadata is not None:
        known = {"sae_lens_version": "6.54.12", "hook_name": "blocks.3.hook_resid_post"}
        told |= {"metadata": known | metadata if isinstance(metadata, dict) else metadata}
    (folder / "cfg.json").write_text(json.dumps({k: v for k, v in (told | cfg).items() if v is not None}))
    return folder


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("kind", ["topk", "abstopk", "jumprelu", "standard", "gated"])
def test_every_architecture_of_saelens_computes_what_its_definition_says(kind, centred, tmp_path):
    found = opened(saelens_folder(tmp_path / "sae", kind, apply_b_dec_to_input=centred), tmp_path)
    agree(found.sae, *defined(kind, X, centred=centred))
    assert found.point == HookPoint(3)
    assert (found.folder / POINTER).is_file()


@pytest.mark.parametrize("kind", ["topk", "abstopk"])
def test_acts_that_compete_by_decoder_norm_are_folded_and_a_row_of_zeros_stays_silent(kind, tmp_path):
    rows = W["W_dec"].clone()
    rows[5] = 0
    folder = saelens_folder(tmp_path / "sae", kind, rescale_acts_by_decoder_norm=True, change={"W_dec": rows})
    sae = opened(folder, tmp_path).sae
    assert bool(sae.W_dec.isfinite().all())
    assert not dense(sae, X)[:, 5].any()
    agree(
        opened(saelens_folder(tmp_path / "b", kind, rescale_acts_by_decoder_norm=True), tmp_path).sae,
        *defined(kind, X, centred=True, by_norm=True),
    )


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("topk", {"architecture": "topk", "k": None, "activation_fn": "topk", "activation_fn_kwargs": {"k": K}}),
        ("topk", {"architecture": None, "k": None, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}),
        ("topk", {"architecture": "standard", "k": None, "activation_fn": "topk", "activation_fn_kwargs": {"k": K}}),
        ("standard", {"architecture": None, "activation_fn_str": "relu"}),
        ("standard", {"architecture": "standard", "normalize_activations": False}),
        ("jumprelu", {"normalize_activations": "expected_average_only_in"}),
        ("jumprelu", {"normalize_activations": "covariance_whitening"}),
    ],
)
def test_files_of_before_saelens_6_are_read(kind, told, tmp_path):
    place = {"metadata": None, "hook_point": "blocks.3.hook_resid_post", "model_name": "m"}
    found = opened(saelens_folder(tmp_path / "sae", kind, **told, **place), tmp_path)
    agree(found.sae, *defined(kind, X, centred=True))
    assert (found.point, found.provenance.model) == (HookPoint(3), "m")


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_any_precision_is_read_as_fp32(dtype, tmp_path):
    sae = opened(saelens_folder(tmp_path / "sae", "standard", dtype=dtype), tmp_path).sae
    assert torch.equal(sae.W_dec, W["W_dec"].to(dtype).float())


def test_a_precision_that_is_not_read_is_named(tmp_path):
    folder = saelens_folder(tmp_path / "sae", "standard")
    content = (folder / "sae_weights.safetensors").read_bytes().replace(b'"F32"', b'"F4" ', 1)
    (folder / "sae_weights.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="is stored as F4; those that are read"):
        opened(folder, tmp_path)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"normalize_activations": "constant_norm_rescale"}, "a scale of its own for each token"),
        ({"normalize_activations": "layer_norm"}, "a scale of its own for each token"),
        ({"reshape_activations": "hook_z"}, "hook_z"),
        ({"architecture": "transcoder"}, "rebuilds other activations"),
        ({"architecture": "jumprelu_skip_transcoder"}, "rebuilds other activations"),
        ({"architecture": "matching_pursuit"}, "'matching_pursuit' SAE; usable are topk, jumprelu"),
        ({"architecture": "temporal"}, "'temporal' SAE"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, "'tanh-relu'; relu and topk"),
        ({"metadata": {"hook_name": "blocks.3.hook_resid_mid"}}, "no place that can be edited"),
        ({"k": 40}, "keeps k=40 latents per token of only d_sae=28"),
        ({"k": None}, "gives k=None"),
        ({"d_in": D_IN + 1}, "expected W_enc of shape"),
        ({"metadata": [3]}, "no JSON object"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(told, said, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        opened(saelens_folder(tmp_path / "sae", "topk", **told), tmp_path)


def test_activations_less_their_mean_are_folded_where_the_norms_take_it_off_anyhow(tmp_path):
    asks = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder, less = saelens_folder(tmp_path / "sae", "topk", metadata=asks), X - X.mean(dim=1, keepdim=True)
    agree(opened(folder, tmp_path, norms_take_mean=lambda: True).sae, *defined("topk", less, centred=True))
    plain = opened(folder, tmp_path, norms_take_mean=lambda: False).sae  # RMSNorm: there is nothing to centre
    agree(plain, *defined("topk", X, centred=True))
    gated = saelens_folder(tmp_path / "gated", "gated", metadata=asks, apply_b_dec_to_input=False)
    agree(opened(gated, tmp_path, norms_take_mean=lambda: True).sae, *defined("gated", less, centred=False))


# ---- where it reads -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("blocks.3.hook_resid_post", HookPoint(3)),
        ("blocks.3.hook_out", HookPoint(3)),
        ("model.layers.3", HookPoint(3)),
        ("transformer.h.11", HookPoint(11)),
        ("layers.3.mlp", HookPoint(3, "mlp_out")),
        ("model.layers.3.self_attn", HookPoint(3, "attn_out")),
        ("blocks.0.hook_resid_pre", HookPoint(0, "resid_pre")),
        ("blocks.7.hook_attn_out", HookPoint(7, "attn_out")),
        ("", None),
    ],
)
def test_the_names_that_tools_have_for_a_place(name, point):
    assert place_of(name, told="it") == point


@pytest.mark.parametrize(
    "name", ["blocks.3", "blocks.3.hook_resid_mid", "blocks.3.mlp", "layers.3.mlp.act_fn", "layers.x", "hook_embed"]
)
def test_a_place_that_is_none_of_ours_is_no_other(name):
    with pytest.raises(CheckpointError, match="no place that can be edited"):
        place_of(name, told="it")


@pytest.mark.parametrize("hook", ["blocks.3.hook_resid_post", "model.layers.3", "blocks.3.hook_out"])
def test_a_layer_or_site_that_the_file_contradicts_is_refused(hook, tmp_path):
    folder = saelens_folder(tmp_path / "sae", "topk", metadata={"hook_name": hook})
    assert opened(folder, tmp_path).point == HookPoint(3)
    with pytest.raises(ConfigError, match=r"reads blocks\.3\.hook_resid_post, not blocks\.1\..*; give --layer 3"):
        opened(folder, tmp_path, asked=HookPoint(1))
    with pytest.raises(ConfigError, match="--layer 3 --site resid_post"):
        opened(folder, tmp_path, asked=HookPoint(3, "mlp_out"))
    assert opened(folder, tmp_path, asked=HookPoint(1, "mlp_out"), spelled=()).point == HookPoint(3), "a preset's layer"
    with pytest.raises(ConfigError, match="give --layer 3"):
        opened(folder, tmp_path, asked=HookPoint(1), spelled=("layer", "run_dir"))


def test_a_pointer_is_not_used_at_another_place(tmp_path):
    folder = opened(saelens_folder(tmp_path / "sae", "topk"), tmp_path).folder
    with pytest.raises(ConfigError, match="give --layer 3"):
        opened(folder, tmp_path, asked=HookPoint(1))


def test_spellings_of_one_model_are_one():
    for one, other in (
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("gpt2-small", "openai-community/gpt2"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("meta-llama/Meta-Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ):
        assert same_model(one, other)
    assert not same_model("gemma-2-2b", "google/gemma-2-2b-it")


def test_an_sae_of_the_base_model_is_used_on_the_tuned_one_and_said(tmp_path):
    class Heard:
        lines: list[str] = []  # noqa: RUF012

        def say(self, line: str) -> None:
            self.lines.append(line)

        def task(self, title: str, total: int | None, unit: str) -> Any:
            raise AssertionError(title)

    folder = saelens_folder(tmp_path / "sae", "topk", metadata={"model_name": "gemma-2-2b"})
    opened(folder, tmp_path, model="google/gemma-2-2b", progress=Heard())
    opened(folder, tmp_path, model="google/gemma-2-2b-it", progress=Heard())
    words = ("which by its name is the same model", "as published papers do")
    assert [word in line for word, line in zip(words, Heard.lines, strict=True)] == [True, True]


# ---- other tools --------------------------------------------------------------------------------


def linear(encoder: str = "encoder", decoder: str = "decoder") -> dict[str, Tensor]:
    """The weights as ``torch.nn.Linear`` keeps them."""
    return {
        f"{encoder}.weight": W["W_enc"].T.contiguous(),
        f"{encoder}.bias": W["b_enc"],
        f"{decoder}.weight": W["W_dec"].T.contiguous(),
    }


def sparsify_folder(folder: Path, *, drop: str | None = None, **settings: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: linear()[name] for name in ("encoder.weight", "encoder.bias")} | {
        "W_dec": W["W_dec"],
        "b_dec": W["b_dec"],
    }
    save_file({name: tensor for name, tensor in found.items() if name != drop}, folder / "sae.safetensors")
    cfg = {"activation": "topk", "k": K, "d_in": D_IN, "num_latents": D_SAE, "transcode": False, "signed": False}
    (folder / "cfg.json").write_text(json.dumps({**cfg, **settings}))
    return folder


@pytest.mark.parametrize(
    ("settings", "rule"), [({}, "topk"), ({"multi_topk": True}, "topk"), ({"activation": "groupmax"}, "groupmax")]
)
def test_a_sparsify_sae_computes_what_its_definition_says(settings, rule, tmp_path):
    found = opened(sparsify_folder(tmp_path / "layers.3", **settings), tmp_path)
    agree(found.sae, *defined(rule, X, centred=True))
    assert found.point == HookPoint(3)


@pytest.mark.parametrize(
    ("family", "said"), [("gemma2", "what the module mlp gives, and .* norms or multiplies"), ("llama", "12 wide, but")]
)
def test_what_a_module_gives_is_not_read_where_a_family_norms_it_before_it_is_added(
    family, said, tmp_path, model_folders
):
    source = str(sparsify_folder(tmp_path / "layers.3.mlp"))
    bench = Bench(EvalConfig(model=str(model_folders[family]), run_dir=tmp_path / "run", model_device="cpu"))
    with pytest.raises(CheckpointError, match=said):
        bench.require_same_model(bench.sae(source))


def test_sparsify_reads_where_its_folder_says(tmp_path):
    folder = sparsify_folder(tmp_path / "layers.3.mlp")
    assert (found := opened(folder, tmp_path)).point == HookPoint(3, "mlp_out")
    assert (found.module, opened(found.folder, tmp_path).module) == ("mlp", "mlp")
    with pytest.raises(ConfigError, match=r"reads blocks\.3\.hook_mlp_out, not blocks\.3\.hook_resid_post"):
        opened(folder, tmp_path, asked=HookPoint(3))
    with pytest.raises(CheckpointError, match="name it with --layer"):
        opened(sparsify_folder(tmp_path / "mine"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation": "relu"}, "usable are topk, groupmax"),
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "transcoder"),
        ({"num_latents": -1}, "num_latents=-1"),
        ({"num_latents": D_SAE + 1}, "expected encoder.weight of shape"),
        ({"k": D_SAE + 1}, "latents per token"),
        ({"k": None}, "k=None"),
        ({"activation": "groupmax", "k": 5}, "k=5 runs of equal length"),
        ({"d_in": 10**40}, "d_in=1000"),
        ({"drop": "b_dec"}, "it lacks b_dec"),
    ],
)
def test_a_sparsify_folder_that_is_something_else_is_refused(settings: dict, said: str, tmp_path: Path) -> None:
    with pytest.raises(ForgeError, match=said):
        opened(sparsify_folder(tmp_path / "layers.1", **settings), tmp_path)


LEARNED: dict[str, tuple[dict[str, Tensor], str, bool]] = {
    "AutoEncoderTopK": (linear() | {"b_dec": W["b_dec"], "k": torch.tensor(K)}, "topk", True),
    "BatchTopKSAE": (
        linear() | {"b_dec": W["b_dec"], "k": torch.tensor(K), "threshold": torch.tensor(-1.0)}, "standard", True,
    ),
    "MatryoshkaBatchTopKSAE": (
        {name: W[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}
        | {"k": torch.tensor(K), "group_sizes": torch.tensor([8, 20])}, "jumprelu", True,
    ),
    "AutoEncoder": (linear() | {"bias": W["b_dec"]}, "standard", True),
    "AutoEncoderNew": (linear() | {"decoder.bias": W["b_dec"]}, "standard", False),
    "GatedAutoEncoder": (
        {name: each for name, each in linear().items() if name != "encoder.bias"}
        | {"decoder_bias": W["b_dec"], "gate_bias": W["b_gate"], "mag_bias": W["b_mag"], "r_mag": W["r_mag"]},
        "gated", True,
    ),
    "JumpReluAutoEncoder": (
        {name: W[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")}, "jumprelu", False,
    ),
}  # fmt: skip


def learned_folder(folder: Path, kind: str, tensors: dict[str, Tensor], **trainer: Any) -> Path:
    """What dictionary_learning saves of one of its classes."""
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "ae.pt")
    told = {"dict_class": kind, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "lm_name": "some/model"}
    told |= {"submodule_name": "resid_post_layer_3", "layer": 3} | trainer
    (folder / "config.json").write_text(json.dumps({"trainer": told, "buffer": {"ctx_len": 128}}))
    return folder


@pytest.mark.parametrize("kind", list(LEARNED))
def test_a_dictionary_learning_sae_computes_what_its_class_does(kind, tmp_path):
    tensors, rule, centred = LEARNED[kind]
    found = opened(learned_folder(tmp_path / "ae", kind, tensors), tmp_path, model="some/model")
    assert (found.point, found.provenance.model) == (HookPoint(3), "some/model")
    agree(found.sae, *defined(rule, X, centred=centred))


def test_a_dictionary_learning_sae_of_a_module_says_so(tmp_path):
    for number, (word, module) in enumerate((("mlp_out", "mlp"), ("attention_out", "self_attn"), ("resid_post", ""))):
        tensors = LEARNED["AutoEncoder"][0]
        folder = learned_folder(tmp_path / str(number), "AutoEncoder", tensors, submodule_name=f"{word}_layer_3")
        found = table.on_disk(folder)
        assert found is not None
        assert found.format.describe(found, Hints()).module == module
    assert not FAMILIES["gemma2"].adds_as_given("mlp_out"), "so Bench refuses it there"
    assert not FAMILIES["granite"].adds_as_given("attn_out")
    assert FAMILIES["gpt_neox"].adds_as_given("attn_out")


def test_a_class_without_an_equal_is_refused_by_name(tmp_path):
    folder = learned_folder(tmp_path / "ae", "CrossCoder", {})
    with pytest.raises(CheckpointError, match="describes a CrossCoder; those that can be used: AutoEncoderTopK"):
        opened(folder, tmp_path)


def test_a_pickle_is_read_only_when_that_was_asked_for(tmp_path):
    folder = learned_folder(tmp_path / "ae", "AutoEncoder", LEARNED["AutoEncoder"][0])
    with pytest.raises(CheckpointError, match=r"ae\.pt is a pickle.*--allow_pickle"):
        opened(folder, tmp_path, allow_pickle=False)


@pytest.mark.slow
def test_a_file_in_the_working_folder_stands_for_no_module_of_the_process_that_reads_a_pickle(tmp_path, monkeypatch):
    folder = learned_folder(tmp_path / "ae", "AutoEncoder", LEARNED["AutoEncoder"][0])
    for name in ("torch", "runpy", "safetensors", "random", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend("")
    opened(folder, tmp_path)
    assert not (tmp_path / "ran").exists()


def gemma_scope_2_folder(root: Path, site: str = "resid_post", *, config: dict[str, Any] | None = None) -> Path:
    folder = root / "gemma-scope-2-1b-pt" / site / "layer_3_width_16k_l0_small_seed_1"
    folder.mkdir(parents=True)
    save_file(
        {name.lower(): W[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")},
        folder / "params.safetensors",
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps({"architecture": "jump_relu"} | config))
    return folder


@pytest.mark.parametrize(
    "config", [None, {"model_name": "gemma-v3-1b-pt", "hf_hook_point_in": "model.layers.3.output"}]
)
def test_gemma_scope_2_is_read_with_and_without_its_settings(config, tmp_path):
    found = opened(gemma_scope_2_folder(tmp_path, "resid_post_all", config=config), tmp_path)
    assert (found.point, found.provenance.model) == (HookPoint(3), "google/gemma-3-1b-pt")
    agree(found.sae, *defined("jumprelu", X, centred=False))
    for folder, site in (("mlp_out", "mlp_out"), ("attn_out", "z")):
        assert opened(gemma_scope_2_folder(tmp_path, folder), tmp_path).point == HookPoint(3, site)


@pytest.mark.parametrize(
    ("site", "config", "said"),
    [
        ("transcoder", None, "is a transcoder"),
        ("resid_post", {"hf_hook_point_out": "model.layers.3.output"}, "describes a transcoder"),
        ("resid_post", {"hf_hook_point_in": "model.layers.4.output"}, "one of them is wrong"),
        ("resid_post", {"hf_hook_point_in": "model.layers.3.mlp.input"}, "no place that can be edited"),
        ("resid_post", {"architecture": "topk"}, "does not describe a jump_relu SAE"),
    ],
)
def test_what_gemma_scope_2_has_beside_saes_is_refused(site, config, said, tmp_path):
    with pytest.raises(CheckpointError, match=said):
        opened(gemma_scope_2_folder(tmp_path, site, config=config), tmp_path)


def llama_scope_folder(folder: Path, **changes: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True)
    save_file(linear() | {"decoder.bias": W["b_dec"]}, folder / "checkpoints" / "final.safetensors")
    told = {"d_model": D_IN, "d_sae": D_SAE, "jump_relu_threshold": 0.8, "hook_point_in": "blocks.15.hook_resid_post"}
    told |= {"hook_point_out": "blocks.15.hook_resid_post", "dataset_average_activation_norm": {"in": 2.0, "out": 2.0}}
    (folder / "hyperparams.json").write_text(json.dumps(told | changes))
    return folder


def test_llama_scope_reads_input_in_the_units_of_its_norm(tmp_path):
    folder, scale = llama_scope_folder(tmp_path / "Llama3_1-8B-Base-L15R-8x"), math.sqrt(D_IN) / 2
    pre_acts = (X.double() * scale) @ W["W_enc"].double() + W["b_enc"].double()
    acts = torch.where(pre_acts > 0.8 * scale, pre_acts, 0.0)
    for path in (folder, folder / "checkpoints" / "final.safetensors"):
        found = opened(path, tmp_path)
        agree(found.sae, acts, (acts @ W["W_dec"].double() + W["b_dec"].double()) / scale)
        assert (found.point, found.provenance.model) == (HookPoint(15), "meta-llama/Llama-3.1-8B")
    with pytest.raises(CheckpointError, match="no dataset_average_activation_norm"):
        opened(llama_scope_folder(tmp_path / "b", dataset_average_activation_norm=None), tmp_path)


def test_llama_scope_of_r1_distill_takes_its_norm_from_a_directory(tmp_path):
    folder = tmp_path / "Llama-Scope-R1-Distill" / "L3R"
    folder.mkdir(parents=True)
    save_file(
        linear() | {"decoder.bias": W["b_dec"], "log_jumprelu_threshold": W["threshold"].log()},
        folder / "sae_weights.safetensors",
    )
    told = {"d_model": D_IN, "expansion_factor": 7, "hook_point_in": "blocks.3.hook_resid_post"}
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match="name the SAE by its release there"):
        opened(folder, tmp_path)
    found = table.on_disk(folder)
    assert found is not None
    said = found.format.describe(found, Hints(scale=1.5))
    assert (said.recipe.d_sae, said.recipe.scale) == (7 * D_IN, 1.5)
    (folder / "config.json").write_text(json.dumps(told | {"expansion_factor": D_SAE // D_IN + 1}))
    with pytest.raises(CheckpointError, match=r"expected encoder\.weight of shape"):
        build.read(found.weights, found.format.describe(found, Hints(scale=1.5)), allow_pickle=False, what="it")


@pytest.fixture(autouse=True)
def pickles_are_read_here(monkeypatch):
    """Without limits, and not in a process of their own: tests/data/test_hostile.py has those."""

    def run(command, **_):
        path, out = map(Path, command[-2:])
        try:
            pickled._convert(path, out)
        except (TypeError, ValueError, UnpicklingError) as error:
            return SimpleNamespace(returncode=1, stdout=str(error).encode())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(pickled, "_limit", lambda kind, most: None)
    held = SimpleNamespace(run=run, DEVNULL=None, TimeoutExpired=TimeoutError)
    monkeypatch.setattr(pickled, "subprocess", held)


def single_pickle(path: Path, tensors: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, path)
    return path


OWN = {name: W[name] for name in ("W_enc", "W_dec", "b_enc", "b_dec")}
QWEN = OWN | {name: W[name].T.contiguous() for name in ("W_enc", "W_dec")}
GOODFIRE = linear("encoder_linear", "decoder_linear") | {"decoder_linear.bias": W["b_dec"]}
INLP = {"sae_state_dict": OWN | {"total_steps": torch.tensor(3)}, "args": {"k": K}}


@pytest.mark.parametrize(
    ("name", "tensors", "rule", "centred", "layer"),
    [
        ("Llama-3.1-8B-Instruct-SAE-l19.pth", GOODFIRE, "standard", False, 19),
        ("DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", linear() | {"decoder.bias": W["b_dec"]}, "standard", False, 19),
        (f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}/layer7.sae.pt", QWEN, "topk", False, 7),
        ("checkpoints/sae_layer_15.pt", INLP, "topk", True, 15),
    ],
)  # fmt: skip
def test_an_sae_that_is_one_pickle_says_its_layer_in_its_name(name, tensors, rule, centred, layer, tmp_path):
    found = opened(single_pickle(tmp_path / name, tensors), tmp_path)
    assert found.point == HookPoint(layer)
    agree(found.sae, *defined(rule, X, centred=centred))


def test_of_a_folder_with_an_sae_for_each_layer_the_layer_that_was_asked_for_is_read(tmp_path):
    folder = tmp_path / f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}"
    for layer in (0, 7):
        single_pickle(folder / f"layer{layer}.sae.pt", QWEN)
    assert opened(folder, tmp_path, asked=HookPoint(7)).point == HookPoint(7)
    with pytest.raises(CheckpointError, match=r"holds 2 SAEs, as layer0\.sae\.pt"):
        opened(folder, tmp_path)


def test_an_inlp_sae_of_a_blocks_input_is_refused(tmp_path):
    args = {"k": K, "hook_position": "pre"}
    path = single_pickle(tmp_path / "sae_layer_15.pt", {"sae_state_dict": OWN, "args": args})
    with pytest.raises(CheckpointError, match=r"found args\.hook_position=pre too"):
        opened(path, tmp_path)


# ---- what is no SAE that is read ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.safetensors", "no SAE of a format that is read"),
        ("checkpoints/last.safetensors", "no SAE of a format that is read"),
        ("layer_3.safetensors", "transcoder of circuit-tracer"),
        ("W_enc_3.safetensors", "cross-layer transcoder"),
        ("latest_ckpt.safetensors", "temporal SAE"),
        ("gpt2-small_L0_Hcat_z_lr1.pt", "hook_z"),
        ("sae_weights.safetensors", "no SAE of a format that is read"),
    ],
)
def test_a_folder_with_an_sae_that_is_not_read_is_never_told_to_train_one(name, said, tmp_path):
    path = tmp_path / "foreign" / name
    path.parent.mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, path)
    for source in (tmp_path / "foreign", path):
        with pytest.raises(CheckpointError, match=said) as caught:
            opened(source, tmp_path)
        assert "sae-forge train" not in str(caught.value)
    with pytest.raises(CheckpointError, match="holds") as caught:
        load_sae(tmp_path / "foreign")
    assert "sae-forge train" not in str(caught.value)


# ---- afterwards ---------------------------------------------------------------------------------


def test_a_run_finds_a_foreign_sae_again_by_its_pointer(tmp_path):
    folder = saelens_folder(tmp_path / "sae", "gated", metadata={"model_name": "m"})
    run = Run(tmp_path / "run")
    first = load_dictionary(folder, run, model="m")
    assert run.newest_sae(HookPoint(3), "train") == first.folder
    again = load_dictionary(first.folder, run, model="m")
    assert (again.point, again.weights, again.provenance.model) == (first.point, first.weights, "m")
    assert torch.equal(dense(again.sae, X), dense(first.sae, X))


def test_latents_of_a_groupmax_sae_are_cut_out_and_kept_with_their_run(tmp_path):
    sae = opened(sparsify_folder(tmp_path / "layers.3", activation="groupmax"), tmp_path).sae
    cut = sliced(sae, [9, 2])
    acts = cut.part.latent_acts(X, cut.places([9, 2]))
    assert torch.equal(acts, dense(sae, X)[:, [9, 2]])
    assert bool(acts.any())
    back = put_together(*taken_apart(cut))
    assert torch.equal(back.latent_acts(X, torch.tensor([9, 2])), acts)  # pyright: ignore[reportAttributeAccessIssue]
    turned = list(reversed(range(sae.d_sae)))
    cut = sliced(sae, turned)
    assert torch.equal(cut.part.latent_acts(X, cut.places(turned)), dense(sae, X)[:, turned])


def test_an_sae_of_centred_activations_is_read_by_what_the_norms_of_its_model_do(tmp_path):
    asks = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
    folder = saelens_folder(tmp_path / "sae", "standard", metadata=asks)
    less = X - X.mean(dim=1, keepdim=True)
    agree(load_sae(folder, norms_take_mean=lambda: True)[0], *defined("standard", less, centred=True))
    agree(load_sae(folder, norms_take_mean=lambda: False)[0], *defined("standard", X, centred=True))
    with pytest.raises(CheckpointError, match="less their mean, which depends on the model: say norms_take_mean"):
        load_sae(folder)


# ---- spoilt ---------------------------------------------------------------------------------------


def gemma_scope_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    names = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    np.savez(folder / "params.npz", **{name: W[name].numpy() for name in names})  # pyright: ignore[reportArgumentType]
    return folder


MADE: dict[str, Callable[[Path], Path]] = {
    "SAELens": lambda root: saelens_folder(root / "sae", "gated"),
    "sparsify": lambda root: sparsify_folder(root / "layers.3"),
    "Gemma Scope": lambda root: gemma_scope_folder(root / "layer_3"),
    "Gemma Scope 2": lambda root: gemma_scope_2_folder(root, config={"hf_hook_point_in": "model.layers.3.output"}),
    "Llama Scope": lambda root: llama_scope_folder(root / "L3R"),
}


def spoilt(kind: str, root: Path, times: int) -> None:
    """Spoil a few bytes of the head of a file of an SAE, time and again: it is read, or refused in one line."""
    folder, spoil = MADE[kind](root), Random(kind)
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = 0
    for _ in range(times):
        path = spoil.choice(sorted(whole))
        content = bytearray(whole[path])
        for _ in range(spoil.randint(1, 4)):
            place = spoil.randrange(min(len(content), 700))
            content[place] = spoil.choice((spoil.randrange(256), *b'0129-"[]{}:,e'))
        path.write_bytes(content)
        try:
            found = table.on_disk(folder)
            assert found is not None
            build.read(found.weights, found.format.describe(found, Hints()), allow_pickle=False, what="it")
        except ForgeError as error:
            refused += 1
            assert "\n" not in str(error)
            assert len(str(error)) < 600
        path.write_bytes(whole[path])
    assert refused > times // 4


@pytest.mark.parametrize("kind", list(MADE))
def test_a_spoilt_head_is_refused_in_one_line(kind, tmp_path):
    spoilt(kind, tmp_path, 40)


@pytest.mark.long
@pytest.mark.parametrize("kind", list(MADE))
def test_ten_thousand_spoilt_heads_are_refused_in_one_line(kind, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spoilt(kind, tmp_path, 2_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kilobytes"
