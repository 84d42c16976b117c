"""Each format beside the tool that reads it: acts, firings and output of its own loader on the very same files.

pip install --no-deps sae-lens==6.54.12 eai-sparsify==1.3.3 dictionary-learning==0.1.0
python -m pytest -m interop tests/sae/test_interop.py -s
"""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats import build, table
from sae_forge.sae.formats.format import Found, Hints
from sae_forge.sae.formats.written import given, write
from tests.sae.test_formats import (
    D_IN,
    D_SAE,
    GOODFIRE,
    LEARNED,
    QWEN,
    K,
    W,
    X,
    dense,
    gemma_scope_2_folder,
    learned_folder,
    linear,
    llama_scope_folder,
    pickles_are_read_here,  # noqa: F401 (a fixture for every test here)
    saelens_folder,
    single_pickle,
    sparsify_folder,
)
from tests.sae.test_written import PAIRS, made

pytestmark = pytest.mark.interop


def compared(
    name: str, path: Path, acts: Tensor, output: Tensor, *, where: str | None = None, scale: float | None = None
) -> None:
    """Hold ours against theirs, and print the distance."""
    found = table.on_disk(path)
    assert found is not None
    found = Found(found.format, found.folder, found.weights, where or found.where)
    told = found.format.describe(found, Hints())
    sae = build.read(found.weights, told, allow_pickle=True, what=name)
    ours, rebuilt = dense(sae, X), sae.decode(sae.encode(X))
    off = float((ours - acts).abs().max() / acts.abs().max())
    other = int(((ours != 0) != (acts != 0)).sum())
    out = float((rebuilt - output).abs().max() / output.abs().max())
    fired = int((acts != 0).sum())
    print(f"{name}: acts {off:.1e} of their size, firings that differ {other} of {fired}, output {out:.1e}")  # noqa: T201
    assert off <= 5e-6
    assert other == 0
    assert out <= 1e-5


# ---- SAELens' own files and those its loaders read ----------------------------------------------


def saelens_from(
    release: str,
    folder: str,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    loader: str,
    scale: float | None = None,
) -> Any:
    """What SAELens makes of a release whose downloads are answered from ``root``."""
    sae_lens = pytest.importorskip("sae_lens")
    from huggingface_hub.utils import EntryNotFoundError
    from sae_lens.loading import pretrained_sae_loaders as loaders

    def download(repo_id: str, filename: str, subfolder: str | None = None, **_: Any) -> str:
        path = root / (f"{subfolder}/{filename}" if subfolder else filename)
        if not path.exists():
            raise EntryNotFoundError(filename)
        return str(path)

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        with safe_open(root / filename, "pt") as file:
            return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(loaders, "hf_hub_download", download)
    monkeypatch.setattr(loaders, "get_safetensors_tensor_shapes", shapes)
    overrides = {"device": "cpu", "dtype": "float32", "d_in": D_IN, "d_sae": D_SAE}
    cfg, state, _ = loaders.NAMED_PRETRAINED_SAE_LOADERS[loader](release, folder, "cpu", False, overrides)
    cfg = loaders.handle_config_defaulting(cfg)
    config = sae_lens.SAE.get_sae_config_class_for_architecture(cfg["architecture"]).from_dict(cfg)
    sae = sae_lens.SAE.get_sae_class_for_architecture(config.architecture())(config)
    sae.process_state_dict_for_loading(state)
    sae.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    if scale is not None:
        sae.fold_activation_norm_scaling_factor(scale)
    return sae


def gemma_scope_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    np.savez(
        folder / "params.npz", **{name: W[name].numpy() for name in ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")}
    )
    return folder


GEMMA, GEMMA_2 = "layer_3/width_16k/a", "gemma-scope-2-1b-pt/resid_post/layer_3_width_16k_l0_small_seed_1"
LLAMA, GOOD, QWEN_3 = "Llama3_1-8B-Base-L15R-8x", "Llama-3.1-8B-Instruct-SAE-l19.pth", "layer7.sae.pt"
DEEPSEEK, DEEPSEEK_TENSORS = "DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt", {**linear(), "decoder.bias": W["b_dec"]}
LOADERS: dict[str, tuple[str, str, Callable[[Path], Path], float | None]] = {
    "gemma_2": ("google/gemma-scope-2b-pt-res", GEMMA, lambda root: gemma_scope_folder(root / GEMMA), None),
    "gemma_3": ("google/gemma-scope-2-1b-pt", GEMMA_2, lambda root: gemma_scope_2_folder(root), None),
    "llama_scope": ("fnlp/LXR-8x", LLAMA, lambda root: llama_scope_folder(root / LLAMA), D_IN**0.5 / 2),
    "goodfire": (f"Goodfire/{Path(GOOD).stem}", GOOD, lambda root: single_pickle(root / GOOD, GOODFIRE), None),
    "deepseek_r1": ("q/a", DEEPSEEK, lambda root: single_pickle(root / DEEPSEEK, DEEPSEEK_TENSORS), None),
    "qwen_scope": (
        f"Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_{K}", QWEN_3, lambda root: single_pickle(root / QWEN_3, QWEN), None,
    ),
    "sae_lens": ("someone/saes", "a", lambda root: saelens_folder(root / "a", "gated"), None),
}  # fmt: skip


@pytest.mark.parametrize("loader", list(LOADERS))
def test_what_saelens_loads_is_the_same_here(loader, tmp_path, monkeypatch):
    release, folder, make, scale = LOADERS[loader]
    path = make(tmp_path)
    theirs = saelens_from(release, folder, tmp_path, monkeypatch, loader, scale)
    with torch.no_grad():
        acts = theirs.encode(X)
        compared(f"SAELens {loader}", path, acts, theirs.decode(acts), where=f"{release}:{folder}")


@pytest.mark.parametrize("kind", [kind for kind in LEARNED if kind != "AutoEncoderNew"])
def test_what_saelens_loads_of_dictionary_learning_is_the_same_here(kind, tmp_path, monkeypatch):
    path = learned_folder(tmp_path / "resid_post_layer_3", kind, LEARNED[kind][0])
    theirs = saelens_from("a/b", "resid_post_layer_3", tmp_path, monkeypatch, "dictionary_learning_1")
    with torch.no_grad():
        acts = theirs.encode(X)
        compared(f"SAELens dictionary_learning_1 {kind}", path, acts, theirs.decode(acts))


# ---- the tools themselves -----------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["topk", "groupmax"])
def test_what_sparsify_loads_is_the_same_here(activation, tmp_path):
    sparsify = pytest.importorskip("sparsify")
    path = sparsify_folder(tmp_path / "layers.3", activation=activation, expansion_factor=32, normalize_decoder=True)
    theirs = sparsify.SparseCoder.load_from_disk(path)
    with torch.no_grad():
        top, indices, _ = theirs.encode(X)
        acts = torch.zeros(len(X), D_SAE).scatter_(1, indices, top)
        output = acts @ theirs.W_dec + theirs.b_dec
    compared(f"sparsify {activation}", path, acts, output)


@pytest.mark.parametrize("kind", list(LEARNED))
def test_what_dictionary_learning_loads_is_the_same_here(kind, tmp_path, monkeypatch):
    if "nnsight" not in sys.modules:
        monkeypatch.setitem(sys.modules, "nnsight", _nothing())  # only its buffer of activations needs it
    pytest.importorskip("dictionary_learning")
    from dictionary_learning import dictionary
    from dictionary_learning.trainers import batch_top_k, matryoshka_batch_top_k, top_k

    tensors = LEARNED[kind][0]
    if "TopK" in kind:
        tensors = tensors | {"threshold": torch.tensor(0.9)}
    path = learned_folder(tmp_path / "ae", kind, tensors)
    places = (dictionary, batch_top_k, matryoshka_batch_top_k, top_k)
    made: Any = next(getattr(place, kind) for place in places if hasattr(place, kind))
    sizes: list[Any] = [D_IN, D_SAE, *([K] if "TopK" in kind else []), *([[8, 20]] if "Matryoshka" in kind else [])]
    theirs = made(*sizes)
    theirs.load_state_dict(tensors)
    with torch.no_grad():
        acts = theirs.encode(X)
        compared(f"dictionary_learning {kind}", path, acts, theirs.decode(acts))


def _nothing() -> ModuleType:
    module: Any = ModuleType("nnsight")
    module.LanguageModel = object
    return module


# ---- what is written here ------------------------------------------------------------------------


def their_saelens(folder: Path) -> tuple[Tensor, Tensor]:
    theirs = pytest.importorskip("sae_lens").SAE.load_from_disk(folder)
    return (acts := theirs.encode(X)), theirs.decode(acts)


def their_gemma_scope(folder: Path) -> tuple[Tensor, Tensor]:
    with pytest.MonkeyPatch.context() as patched:
        release = f"google/{folder.parent.name}"
        theirs = saelens_from(release, folder.name, folder.parent, patched, "gemma_2")
    return (acts := theirs.encode(X)), theirs.decode(acts)


def their_gemma_scope_2(folder: Path) -> tuple[Tensor, Tensor]:
    place = "resid_post/layer_3_width_16k_l0_small"  # its release is asked for by these names
    folder.parent.joinpath("resid_post").mkdir()
    folder.rename(folder.parent / place)
    with pytest.MonkeyPatch.context() as patched:
        theirs = saelens_from("google/gemma-scope-2-1b-pt", place, folder.parent, patched, "gemma_3")
    (folder.parent / place).rename(folder)
    return (acts := theirs.encode(X)), theirs.decode(acts)


def their_sparsify(folder: Path) -> tuple[Tensor, Tensor]:
    theirs = pytest.importorskip("sparsify").SparseCoder.load_from_disk(folder)
    top, indices, _ = theirs.encode(X)
    acts = torch.zeros(len(X), theirs.num_latents).scatter_(1, indices, top)
    return acts, acts @ theirs.W_dec + theirs.b_dec


def their_dictionary_learning(folder: Path) -> tuple[Tensor, Tensor]:
    for unneeded in ("nnsight", "zstandard"):  # to make activations and to read texts
        sys.modules.setdefault(unneeded, _nothing())
    pytest.importorskip("dictionary_learning")
    from dictionary_learning.utils import load_dictionary

    theirs, _ = load_dictionary(str(folder), "cpu")
    return (acts := theirs.encode(X)), theirs.decode(acts)


READERS = {
    "SAELens": their_saelens,
    "Gemma Scope": their_gemma_scope,
    "Gemma Scope 2": their_gemma_scope_2,
    "sparsify": their_sparsify,
    "dictionary_learning": their_dictionary_learning,
}


@pytest.mark.parametrize(("entry", "kind"), PAIRS, ids=lambda each: getattr(each, "name", each))
def test_what_is_written_here_is_the_same_in_the_tool_it_is_written_for(entry, kind, tmp_path):
    told = given(made(kind, tmp_path), HookPoint(3), model="google/gemma-2-2b", module=lambda: "layers.3")
    folder = write(tmp_path / "out", entry, told)
    with torch.no_grad():
        acts, output = READERS[entry.name](folder)
    acts = acts[:, :D_SAE] - acts[:, D_SAE:] if acts.shape[1] == 2 * D_SAE else acts
    compared(f"{entry.name} {kind}, written here", folder, acts, output)
