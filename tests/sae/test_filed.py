"""An SAE that stays in its file: the latents of an edit are read alone, and are what they are in the whole."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sae_forge.config.generate import GenerateConfig
from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import attached, delta
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.edit import Edit, read_ahead
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.saved import load_edits, save_edits
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.weights.crisp import Shiftable
from sae_forge.pipeline.bench import Bench
from sae_forge.sae.filed import FiledSAE
from sae_forge.sae.formats import stored
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.named import load_dictionary, read_dictionary
from sae_forge.sae.slices import hold, rows_of
from sae_forge.sae.store import Provenance, save_sae
from sae_forge.store import files
from sae_forge.store.cache import known_sha256
from sae_forge.store.runs import Run
from tests.sae.test_formats import saelens_folder

D_IN, D_SAE = 48, 3000
LATENTS = tuple(range(7, 2900, 59))
"""Fifty of them, as one in sixty."""


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


W = {
    "W_enc": draw(D_IN, D_SAE, seed=1), "b_enc": draw(D_SAE, seed=2), "W_dec": draw(D_SAE, D_IN, seed=3),
    "b_dec": draw(D_IN, seed=4), "threshold": draw(D_SAE, seed=5).abs() * 4, "b_gate": draw(D_SAE, seed=6),
    "b_mag": draw(D_SAE, seed=7), "r_mag": draw(D_SAE, seed=8) * 0.3,
}  # fmt: skip
NAMES = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")


def npz(root: Path, *, fortran: bool = False) -> Path:
    (folder := root / "layer_3").mkdir(parents=True)
    arrays: dict[str, Any] = {name: W[name].numpy() for name in NAMES}
    turned = {name: np.asfortranarray(array) for name, array in arrays.items()}
    np.savez(folder / "params.npz", **(turned if fortran else arrays))
    return folder


def llama_scope(root: Path) -> Path:
    """Both matrices the other way round: a latent is a row of the encoder, and a column of the decoder."""
    (root / "checkpoints").mkdir(parents=True)
    linear = {"encoder.weight": W["W_enc"].T, "encoder.bias": W["b_enc"], "decoder.weight": W["W_dec"].T}
    save_file(
        {name: each.contiguous() for name, each in {**linear, "decoder.bias": W["b_dec"]}.items()},
        root / "checkpoints" / "final.safetensors",
    )
    point = '"blocks.3.hook_resid_post"'
    (root / "hyperparams.json").write_text(
        f'{{"d_model": {D_IN}, "d_sae": {D_SAE}, "jump_relu_threshold": 0.8, "hook_point_in": {point}, '
        f'"hook_point_out": {point}, "dataset_average_activation_norm": {{"in": 3.0, "out": 3.0}}}}'
    )
    return root


def saelens(root: Path, kind: str, **cfg: Any) -> Path:
    return saelens_folder(root, kind, change=W, d_in=D_IN, d_sae=D_SAE, **cfg)


def ours(root: Path) -> Path:
    save_sae(root, JumpReLUSAE(*(W[name] for name in NAMES)), Provenance(model="m", hook_point=str(HookPoint(3))))
    return root


LAYOUTS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "npz": (npz, 1),
    "npz, column after column": (lambda root: npz(root, fortran=True), 1),
    "llama scope": (llama_scope, 1),
    "standard": (lambda root: saelens(root, "standard"), 1),
    "gated": (lambda root: saelens(root, "gated", apply_b_dec_to_input=False), 1),
    "ours": (ours, 1),
}
"""How to make each, and how many of its matrices do not lie latent by latent."""


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes of tensors that were read from weights files."""
    counted: list[int] = []
    read = stored._read

    def counting(file: Any, start: int, count: int, dtype: torch.dtype) -> Tensor:
        counted.append(count * dtype.itemsize)
        return read(file, start, count, dtype)

    monkeypatch.setattr(stored, "_read", counting)
    yield counted


def left_in_its_file(folder: Path, tmp_path: Path, **asked: Any) -> FiledSAE:
    sae = load_dictionary(folder, Run(tmp_path / "run"), model="m", partly=True, **asked).sae
    assert isinstance(sae, FiledSAE)
    return sae


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_a_few_latents_cost_half_the_file_once_and_nothing_afterwards(layout, tmp_path, reads):
    make, across = LAYOUTS[layout]
    folder = make(tmp_path / "sae")
    whole = read_dictionary(str(folder)).sae
    size = sum(reads)
    reads.clear()
    sae = left_in_its_file(folder, tmp_path)
    assert (sum(reads), sae.across) == (0, across), "only the header"
    part = sae.part(LATENTS)
    assert sum(reads) <= 0.6 * size
    for name in NAMES:
        assert torch.equal(getattr(part, name), getattr(whole.cut(LATENTS), name))
    reads.clear()
    again = left_in_its_file(folder, tmp_path).part(LATENTS[::-1])
    assert sum(reads) == 0, "from the cache"
    assert torch.equal(again.W_dec, whole.W_dec[list(LATENTS[::-1])])
    assert torch.equal(again.W_enc, whole.W_enc[:, list(LATENTS[::-1])])


def test_where_both_matrices_lie_latent_by_latent_next_to_nothing_is_read(tmp_path, reads):
    folder = tmp_path / "L3R"
    folder.mkdir()
    tensors = {f"encoder.{one}": W[two] for one, two in (("weight", "W_dec"), ("bias", "b_enc"))}  # any rows will do
    save_file(tensors, folder / "sae.safetensors")
    with stored.opened(folder / "sae.safetensors", allow_pickle=False, what="it") as found:
        rows = stored.lines(found, "encoder.weight", LATENTS, turned=False)
    assert torch.equal(rows, W["W_dec"][list(LATENTS)])
    assert sum(reads) == len(LATENTS) * D_IN * 4


def test_what_asks_for_all_of_it_reads_all_and_once_parts_cost_as_much_they_are_no_longer_read_alone(tmp_path, reads):
    folder = npz(tmp_path / "sae")
    whole = read_dictionary(str(folder)).sae
    sae, x = left_in_its_file(folder, tmp_path), draw(9, D_IN, seed=9)
    assert torch.equal(sae.b_dec, whole.b_dec)
    assert torch.equal(rows_of(sae, (5, 2)), whole.W_dec[[5, 2]])
    rows_of(sae, (6, 3))
    reads.clear()
    assert torch.equal(sae.latent_acts(x, torch.tensor([9, 4])), whole.latent_acts(x, torch.tensor([9, 4])))
    assert sum(reads) > 0.9 * (folder / "params.npz").stat().st_size, "a third part would have cost half of it again"
    reads.clear()
    assert torch.equal(sae.decode(sae.encode(x)), whole.decode(whole.encode(x)))
    assert torch.equal(sae.W_dec, whole.W_dec)
    assert isinstance(sae, Shiftable), "CRISP lifts the pre-acts of a released SAE too"
    assert torch.equal(sae.activated(sae.pre_acts(x)), whole.activated(whole.pre_acts(x)))
    sae.hold(range(100))
    assert not reads
    with pytest.raises(ConfigError, match=f"latent {D_SAE} is beyond the SAE"):
        hold(left_in_its_file(folder, tmp_path), [1, D_SAE])


@pytest.mark.parametrize("control", [None, "isotropic", "latents"])
def test_an_edit_does_the_same_to_the_bit(control, tmp_path):
    folder, x = npz(tmp_path / "sae"), draw(2, 7, D_IN, seed=9) * 3
    edit = NegativeScaling(-3.0)
    targets = LATENTS[:9]
    intervention = scale(targets, -3.0)
    if control is not None:
        intervention = Intervention("control", targets, RandomDirections(edit, 0, control))
    sae, whole = left_in_its_file(folder, tmp_path), read_dictionary(str(folder)).sae
    real = torch.ones(2, 7, dtype=torch.bool)
    moved = delta(sae, intervention, x, real)
    assert bool(moved.any())
    assert torch.equal(moved, delta(whole, intervention, x, real))
    assert "whole" not in vars(sae), "none but these latents was read"
    assert Edit(HookPoint(3), sae, intervention) == Edit(HookPoint(3), whole, intervention)
    save_edits(tmp_path / "edit", [Edit(HookPoint(3), sae, intervention)])
    (again,) = load_edits(tmp_path / "edit")
    assert torch.equal(delta(again.dictionary, intervention, x, real), moved)
    unkept = Intervention("scale", targets, edit, keep_error=False)
    assert torch.equal(delta(sae, unkept, x, real), delta(whole, unkept, x, real))


def test_a_part_that_was_spoilt_in_the_cache_is_read_again(tmp_path, monkeypatch, reads):
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path / "cache"))
    folder = npz(tmp_path / "sae")
    part = left_in_its_file(folder, tmp_path).part(LATENTS)
    (kept,) = (tmp_path / "cache" / "saes").rglob("*.safetensors")
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    reads.clear()
    assert torch.equal(left_in_its_file(folder, tmp_path).part(LATENTS).W_enc, part.W_enc)
    assert sum(reads) > 0
    assert kept.read_bytes() != bytes(content), "and mended"


def test_the_hash_of_a_file_is_known_until_something_is_written_to_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert known_sha256(path) == files.file_sha256(path)
    assert not (tmp_path / "cache").exists(), "its times could not tell a change that follows at once"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 60)
    known_sha256(path)
    with monkeypatch.context() as unread:
        unread.setattr(files, "file_sha256", lambda path: pytest.fail("it was read"))
        assert known_sha256(path) == known_sha256(path)
    before = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert known_sha256(path) == files.file_sha256(path)


def test_a_model_is_edited_by_an_sae_of_which_no_more_was_read(tmp_path, model_folders):
    folder = tmp_path / "layer_1"
    folder.mkdir()
    arrays: dict[str, Any] = {
        "W_enc": draw(56, 400, seed=1).numpy(), "b_enc": draw(400, seed=2).numpy(), "b_dec": draw(56, seed=4).numpy(),
        "W_dec": draw(400, 56, seed=3).numpy(), "threshold": draw(400, seed=5).abs().numpy(),
    }  # fmt: skip
    np.savez(folder / "params.npz", **arrays)
    bench = Bench(GenerateConfig(model=str(model_folders["llama"]), run_dir=tmp_path / "run", model_device="cpu"))
    partly, whole = bench.sae(str(folder), partly=True), bench.sae(str(folder))
    bench.require_same_model(partly)
    tokens, logits = torch.tensor([[3, 8, 5, 9, 4]]), []
    for sae in (partly.sae, whole.sae):
        edit = Edit(HookPoint(1), sae, scale((5, 8, 13), -3.0))
        read_ahead(sae, [edit])
        with attached(bench.lm, [edit]) as log, torch.no_grad():
            logits.append(bench.lm.model(tokens).logits)
        assert log.edited
    assert torch.equal(*logits)
    assert isinstance(partly.sae, FiledSAE)
    assert "whole" not in vars(partly.sae)
