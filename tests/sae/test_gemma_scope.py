"""Gemma Scope SAEs: what JumpReLU computes, what a ``params.npz`` may hold, and every way of naming one."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from fakehub import TOKEN, FakeHub
from torch.utils.flop_counter import FlopCounterMode

from sae_forge.config.evaluate import EvalConfig
from sae_forge.config.push import PushConfig
from sae_forge.errors import CheckpointError, ConfigError, ForgeError, RemoteError, ResourceError
from sae_forge.hookpoint import HookPoint
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.push import push
from sae_forge.sae import jumprelu
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.formats import build
from sae_forge.sae.formats.format import Found, Hints
from sae_forge.sae.formats.gemma_scope import GEMMA_SCOPE, PARAMS, model_of, point_of
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.named import load_dictionary
from sae_forge.sae.released import Reference, fetch, in_cache
from sae_forge.sae.store import Provenance, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files
from sae_forge.store.runs import POINTER, Run

D_IN, D_SAE = 13, 57
LAYER_3 = "layer_3/width_16k/average_l0_59"
RELEASE = "google/gemma-scope-2b-pt-res"


def arrays(*, d_in: int = D_IN, d_sae: int = D_SAE, seed: int = 0, dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Weights in Gemma Scope's names and shapes; thresholds lie on both sides of 0."""
    draw = np.random.default_rng(seed).standard_normal
    W_dec = draw((d_sae, d_in))
    W_dec /= np.linalg.norm(W_dec, axis=1, keepdims=True)
    found = {
        "W_enc": draw((d_in, d_sae)),
        "W_dec": W_dec,
        "b_enc": draw(d_sae),
        "b_dec": draw(d_in),
        "threshold": draw(d_sae) * 2,
    }
    return {name: array.astype(dtype) for name, array in found.items()}


def save_gemma_scope(folder: Path, found: dict[str, np.ndarray] | None = None) -> Path:
    """Write ``params.npz`` as the release has it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / PARAMS, **(found or arrays()))  # pyright: ignore[reportArgumentType]
    return folder / PARAMS


def load_gemma_scope(path: Path) -> JumpReLUSAE:
    told = GEMMA_SCOPE.describe(Found(GEMMA_SCOPE, path.parent, path, ""), Hints())
    sae = build.read(path, told, allow_pickle=False, what="the weights of Gemma Scope")
    assert isinstance(sae, JumpReLUSAE)
    return sae


def sae_of(found: dict[str, np.ndarray]) -> JumpReLUSAE:
    return JumpReLUSAE(**{name: torch.from_numpy(array) for name, array in found.items()})


def slow_acts(found: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Acts of every latent in float64, one number at a time."""
    wide = {name: array.astype(np.float64) for name, array in found.items()}
    acts = np.zeros((len(x), wide["b_enc"].size))
    for token, row in enumerate(x.astype(np.float64)):
        for latent in range(acts.shape[1]):
            pre_act = sum(row * wide["W_enc"][:, latent]) + wide["b_enc"][latent]
            if pre_act > 0 and pre_act > wide["threshold"][latent]:
                acts[token, latent] = pre_act
    return acts


# ---- what it computes ---------------------------------------------------------------------------


def test_acts_and_reconstructions_are_those_of_a_slow_float64_encoder() -> None:
    found = arrays()
    sae, x = sae_of(found), torch.randn(2, 6, D_IN, generator=torch.Generator().manual_seed(1))
    assert isinstance(sae, Dictionary)
    acts = slow_acts(found, x.reshape(-1, D_IN).numpy())
    code = sae.encode(x)
    assert code.values.shape == (2, 6, int((acts > 0).sum(axis=1).max()))
    dense = torch.zeros(2, 6, D_SAE).scatter_add(-1, code.indices, code.values)
    torch.testing.assert_close(dense.reshape(-1, D_SAE).double(), torch.from_numpy(acts), rtol=1e-5, atol=1e-5)
    expected = acts @ found["W_dec"].astype(np.float64) + found["b_dec"]
    torch.testing.assert_close(sae(x).reshape(-1, D_IN).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-4)
    assert not any(parameter.requires_grad for parameter in sae.parameters())


def test_a_latent_is_silent_at_its_threshold_and_below_zero() -> None:
    """Hand numbers: pre-acts are 1 and -1; thresholds 1, 0.99, -2 let through the second alone, and nothing below 0."""
    W_enc = torch.tensor([[1.0, 1.0, -1.0]])
    sae = JumpReLUSAE(W_enc, torch.zeros(3), W_enc.T, torch.zeros(1), torch.tensor([1.0, 0.99, -2.0]))
    assert sae.latent_acts(torch.ones(1, 1), torch.arange(3)).tolist() == [[0.0, 1.0, 0.0]]
    code = sae.encode(torch.ones(1, 1))
    assert (code.values.tolist(), code.indices.tolist()) == ([[1.0]], [[1]])


def test_b_dec_is_not_taken_off_the_input() -> None:
    found = arrays()
    shifted = sae_of({**found, "b_dec": found["b_dec"] + 5})
    x = torch.randn(4, D_IN)
    assert torch.equal(shifted.latent_acts(x, torch.arange(D_SAE)), sae_of(found).latent_acts(x, torch.arange(D_SAE)))


def test_few_latents_are_read_without_the_others() -> None:
    found, chosen = arrays(), [40, 3, 17]
    poisoned = {name: array.copy() for name, array in found.items()}
    others = [latent for latent in range(D_SAE) if latent not in chosen]
    poisoned["W_enc"][:, others] = np.nan
    poisoned["b_enc"][others] = np.nan
    poisoned["threshold"][others] = np.nan
    x = torch.randn(5, 3, D_IN, generator=torch.Generator().manual_seed(2))
    sae = sae_of(poisoned)
    with FlopCounterMode(display=False) as counted:
        read = sae.latent_acts(x, torch.tensor(chosen))
    assert counted.get_total_flops() == 2 * 15 * D_IN * len(chosen), "a product of n columns, not of d_sae"
    acts = slow_acts(found, x.reshape(-1, D_IN).numpy())[:, chosen]
    assert (acts > 0).any()
    torch.testing.assert_close(read.reshape(-1, 3).double(), torch.from_numpy(acts), rtol=1e-5, atol=1e-5)


def test_a_gradient_reaches_the_input_through_the_latents_that_fire() -> None:
    sae = sae_of(arrays())
    x = torch.randn(6, D_IN, requires_grad=True)
    acts = sae.latent_acts(x, torch.tensor([5]))
    (gradient,) = torch.autograd.grad(acts.sum(), x)
    assert torch.equal(gradient, (acts > 0).float() * sae.W_enc[:, 5])


def test_tokens_in_pieces_give_what_all_at_once_give(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = sae_of(arrays()), torch.randn(31, D_IN)
    whole = sae.encode(x)
    seen: list[int] = []
    inner = JumpReLUSAE._firing
    monkeypatch.setattr(jumprelu, "PRE_ACTS_AT_ONCE", 4 * D_SAE)
    monkeypatch.setattr(JumpReLUSAE, "_firing", lambda self, rows: seen.append(len(rows)) or inner(self, rows))
    pieces = sae.encode(x)
    assert max(seen) == 4
    assert torch.equal(whole.indices, pieces.indices)
    torch.testing.assert_close(whole.values, pieces.values)


def test_nothing_fires_and_nothing_to_read() -> None:
    sae = sae_of({**arrays(), "threshold": np.full(D_SAE, 1e9, np.float32)})
    code = sae.encode(torch.randn(3, D_IN))
    assert code.values.tolist() == [[0.0]] * 3
    torch.testing.assert_close(sae.decode(code), sae.b_dec.expand(3, -1))
    assert sae.encode(torch.randn(0, D_IN)).values.shape == (0, 1)
    with pytest.raises(ConfigError, match="12 wide, but the SAE reads 13"):
        sae.encode(torch.randn(3, 12))


def test_saelens_computes_the_same() -> None:
    sae_lens = pytest.importorskip("sae_lens")
    found = arrays()
    config = sae_lens.JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=False)
    theirs = sae_lens.JumpReLUSAE(config)
    theirs.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})
    x = torch.randn(9, D_IN)
    ours = sae_of(found)
    torch.testing.assert_close(ours.latent_acts(x, torch.arange(D_SAE)), theirs.encode(x))
    torch.testing.assert_close(ours(x), theirs(x))


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_a_file_is_read_as_it_was_written(tmp_path: Path, dtype: Any) -> None:
    found = arrays(dtype=dtype)
    found["W_dec"] = np.asfortranarray(found["W_dec"])
    sae = load_gemma_scope(save_gemma_scope(tmp_path, found))
    for name, array in found.items():
        assert np.array_equal(getattr(sae, name).numpy(), array.astype(np.float32)), name
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)


def _hostile(kind: str, path: Path) -> None:
    """Write the named kind of bad file to ``path``."""
    good = arrays()
    match kind:
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("threshold")
        case "cut":
            save_gemma_scope(path.parent, good)
            path.write_bytes(path.read_bytes()[:-400])
        case "flipped":
            save_gemma_scope(path.parent, good)
            content = bytearray(path.read_bytes())
            content[400] ^= 0xFF
            path.write_bytes(bytes(content))
        case "missing array":
            np.savez(path, **{name: array for name, array in good.items() if name != "threshold"})
        case "extra array":
            np.savez(path, **good, extra=np.zeros(3))
        case "transposed":
            np.savez(path, **(good | {"W_enc": good["W_enc"].T}))
        case "flat":
            np.savez(path, **(good | {"W_enc": good["W_enc"].ravel()}))
        case "integers":
            np.savez(path, **(good | {"threshold": np.ones(D_SAE, np.int64)}))
        case "objects":
            np.savez(path, **(good | {"threshold": np.array([_Bomb()] * D_SAE, object)}), allow_pickle=True)
        case "records":
            np.savez(path, **(good | {"threshold": np.zeros(D_SAE, [("a", np.float32)])}))
        case "infinite":
            np.savez(path, **(good | {"b_enc": np.full(D_SAE, np.inf, np.float32)}))
        case "nothing inside":
            np.savez(path, **{name: array[..., :0] for name, array in good.items()})
        case "zip bomb":
            np.savez_compressed(path, **(good | {"b_enc": np.zeros(10_000_000, np.float32)}))
        case "twice":
            save_gemma_scope(path.parent, good)
            with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
                archive.writestr("W_enc.npy", b"x")
        case "claims more":
            _with_header(path, good, "b_enc", {"descr": "<f4", "fortran_order": False, "shape": (10**15,)})
        case "negative":
            _with_header(path, good, "b_enc", {"descr": "<f4", "fortran_order": False, "shape": (-D_SAE,)})
        case "code in the header":
            _with_header(path, good, "b_enc", f"__import__('pathlib').Path({str(path.parent / 'ran')!r}).touch()")
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)


class _Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def _with_header(path: Path, found: dict[str, np.ndarray], name: str, header: Any) -> None:
    """The arrays, one of them under a header it did not earn."""
    words = repr(header).encode() if isinstance(header, dict) else str(header).encode()
    words += b" " * (63 - (10 + len(words)) % 64) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        for each, array in found.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, array)
            if each == name:
                raw = b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words + array.tobytes()
                content = io.BytesIO(raw)
            archive.writestr(f"{each}.npy", content.getvalue())


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("empty", "not a zip"),
        ("text", "not a zip"),
        ("cut", "not a zip"),
        ("flipped", "CRC"),
        ("missing array", "it lacks threshold"),
        ("extra array", "found extra too"),
        ("transposed", "expected W_dec of shape [13, 57], found [57, 13]"),
        ("flat", "not [d_in, d_sae]"),
        ("integers", "threshold holds int64, not floats"),
        ("objects", "threshold holds object, not floats"),
        ("records", "not floats"),
        ("infinite", "b_enc holds numbers that are not finite"),
        ("nothing inside", "d_sae=0"),
        ("zip bomb", "compressed"),
        ("twice", "names an array twice"),
        ("claims more", "b_enc claims the shape"),
        ("negative", "b_enc"),
        ("code in the header", ""),
        ("folder", "not a regular file"),
        ("pipe", "not a regular file"),
        ("absent", "is missing"),
    ],
)
def test_a_file_that_is_no_sae_is_refused_in_one_line(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / PARAMS
    _hostile(kind, path)
    with pytest.raises(CheckpointError) as caught:
        load_gemma_scope(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


# ---- names --------------------------------------------------------------------------------------


def test_a_reference_is_read_back_as_it_is_written() -> None:
    for text in (f"{RELEASE}:{LAYER_3}", f"{RELEASE}@abc123:{LAYER_3}", f"{RELEASE}@refs/pr/1:{LAYER_3}"):
        reference = Reference.parse(text)
        assert reference is not None
        assert str(reference) == text
        assert reference.name == "google--gemma-scope-2b-pt-res--layer_3--width_16k--average_l0_59"
    assert Reference.parse(f"{RELEASE}:{LAYER_3}/{PARAMS}") == Reference(RELEASE, LAYER_3)
    for text in ("folder/of/a/run", "just-a-name", "C:layer_3", "a/b/c:layer_3"):
        assert Reference.parse(text) is None
    for text in (f"{RELEASE}:../../etc", f"{RELEASE}:/", f"{RELEASE}:layer_3//x"):
        with pytest.raises(CheckpointError, match="after the colon"):
            Reference.parse(text)


def test_the_release_says_model_and_layer() -> None:
    assert model_of(f"{RELEASE}:{LAYER_3}") == "google/gemma-2-2b"
    assert model_of("google/gemma-scope-9b-it-res:layer_20/width_131k/average_l0_24") == "google/gemma-2-9b-it"
    assert model_of("/some/folder") == ""
    assert point_of(f"{RELEASE}:{LAYER_3}") == HookPoint(3)
    assert point_of("google/gemma-scope-2b-pt-mlp:layer_3/width_16k/average_l0_60") == HookPoint(3, "mlp_out")
    assert point_of("google/gemma-scope-2b-pt-att:layer_3/width_16k/average_l0_60") == HookPoint(3, "z")
    for name, said in (("res:embedding/width_4k", "reads the embeddings"), ("transcoders:layer_3", "-att can be used")):
        with pytest.raises(CheckpointError, match=said):
            point_of(f"google/gemma-scope-2b-pt-{name}/average_l0_6")


class Heard:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def task(self, title: str, total: int | None, unit: str) -> Any:
        raise AssertionError(title)


def test_a_local_file_becomes_an_sae_of_the_run_without_being_copied(tmp_path: Path) -> None:
    params = save_gemma_scope(tmp_path / "gemma-scope-2b-pt-res" / LAYER_3)
    run, heard = Run(tmp_path / "run"), Heard()
    for source in (params, params.parent):
        found = load_dictionary(source, run, model="google/gemma-2-2b-it", progress=heard)
        assert found.point == HookPoint(3)
        assert found.weights == files.file_sha256(params)
        assert found.provenance.model == "google/gemma-2-2b"
        assert found.name.startswith(
            "blocks.3.hook_resid_post/gemma-scope-2b-pt-res--layer_3--width_16k--average_l0_59-"
        )
        assert run.saes() == [found.folder]
        assert run.newest_sae(HookPoint(3), "train") == found.folder
        assert run.selections(found.folder) == run.folder / "features" / found.name
    assert len(heard.lines) == 2
    assert "as published papers do" in heard.lines[0]
    assert [path.name for path in found.folder.iterdir()] == [POINTER]
    assert str(tmp_path) not in (found.folder / POINTER).read_text()
    again = load_dictionary(found.folder, run, model="google/gemma-2-2b")
    assert (again.weights, again.point, again.name) == (found.weights, found.point, found.name)
    x = torch.randn(3, D_IN)
    assert torch.equal(again.sae.encode(x).values, found.sae.encode(x).values)


def test_two_files_of_one_name_are_told_apart_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    first = save_gemma_scope(tmp_path / "a" / "layer_1")
    second = save_gemma_scope(tmp_path / "b" / "layer_1", arrays(seed=1))
    run = Run(tmp_path / "run")
    found = load_dictionary(first, run, model="tiny")
    assert load_dictionary(second, run, model="tiny").folder != found.folder
    save_gemma_scope(tmp_path / "a" / "layer_1", arrays(seed=2))
    with pytest.raises(CheckpointError, match=r"this run first used .* with other weights than it now has"):
        load_dictionary(found.folder, run, model="tiny")
    first.unlink()
    with pytest.raises(CheckpointError, match="which is gone"):
        load_dictionary(found.folder, run, model="tiny")


def test_the_layer_comes_from_the_path_or_from_the_flag_and_both_must_agree(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    named = save_gemma_scope(tmp_path / "layer_7")
    with pytest.raises(ConfigError, match="--layer 7"):
        load_dictionary(named, run, model="tiny", asked=HookPoint(3))
    unnamed = save_gemma_scope(tmp_path / "mine")
    with pytest.raises(CheckpointError, match="name it with --layer"):
        load_dictionary(unnamed, run, model="tiny")
    assert load_dictionary(unnamed, run, model="tiny", asked=HookPoint(2)).point == HookPoint(2)


def test_a_pointer_that_was_written_by_someone_else_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    found = load_dictionary(save_gemma_scope(tmp_path / "layer_1"), run, model="tiny")
    good = json.loads((found.folder / POINTER).read_text())
    for bad in ([], {**good, "weights": 3}, {**good, "source": None}):
        (found.folder / POINTER).write_text(json.dumps(bad))
        with pytest.raises(CheckpointError, match="is not a pointer to an SAE"):
            load_dictionary(found.folder, run, model="tiny")
    (found.folder / POINTER).write_text(json.dumps({**good, "hook_point": "the third"}))
    with pytest.raises(ForgeError, match="the third"):
        load_dictionary(found.folder, run, model="tiny")


def test_a_trained_sae_goes_through_the_same_door(tmp_path: Path) -> None:
    run = Run(tmp_path)
    folder = run.sae(HookPoint(1), k=3, d_sae=23, seed=0)
    save_sae(folder, TopKSAE(d_in=7, d_sae=23, k=3), Provenance(model="tiny", hook_point="blocks.1.hook_resid_post"))
    found = load_dictionary(folder, run, model="tiny")
    assert (found.folder, found.point, found.name) == (folder, HookPoint(1), "blocks.1.hook_resid_post/k3-d23-s0")
    assert found.weights == files.file_sha256(folder / "sae_weights.safetensors")
    with pytest.raises(CheckpointError, match="sae-forge train"):
        load_dictionary(tmp_path / "nothing", run, model="tiny")
    with pytest.raises(ConfigError, match="~nobody-here/sae does not exist: no user"):
        load_dictionary("~nobody-here/sae", run, model="tiny")


def test_an_sae_of_the_wrong_width_is_refused_and_a_foreign_one_is_not_published(
    tmp_path: Path, model_folders: dict[str, Path]
) -> None:
    source = str(save_gemma_scope(tmp_path / "layer_1"))
    bench = Bench(EvalConfig(model=str(model_folders["gemma2"]), run_dir=tmp_path / "run", model_device="cpu"))
    with pytest.raises(CheckpointError, match=r"reads activations 13 wide, but .* is 56 wide"):
        bench.require_same_model(bench.sae(source))
    config = PushConfig(model=str(model_folders["gemma2"]), run_dir=tmp_path / "run", dry_run=True)
    with pytest.raises(CheckpointError, match="not ours to publish"):
        push(config, Bench(config), "you/copy")


# ---- the Hub ------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """A Hub on localhost that has one SAE of the release, and an empty cache here."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with FakeHub() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        monkeypatch.setattr(
            huggingface_hub.constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            running.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        content = save_gemma_scope(tmp_path / "made").read_bytes()
        running.add_repo(RELEASE, files={f"{LAYER_3}/{PARAMS}": content, "README.md": b"no"})
        yield running


def test_a_reference_is_downloaded_alone_once_and_pinned(hub: FakeHub, tmp_path: Path) -> None:
    run, reference = Run(tmp_path / "run"), f"{RELEASE}:{LAYER_3}"
    found = load_dictionary(reference, run, model="google/gemma-2-2b-it")
    assert found.folder.name == "google--gemma-scope-2b-pt-res--layer_3--width_16k--average_l0_59"
    assert found.weights == files.file_sha256(tmp_path / "made" / PARAMS)
    assert {request.path.rsplit("/", 1)[-1] for request in hub.requests} == {PARAMS}
    commit = hub.repos[RELEASE].main[-1].oid
    assert json.loads((found.folder / POINTER).read_text())["source"] == f"{RELEASE}@{commit}:{LAYER_3}"
    hub.requests.clear()
    again = load_dictionary(found.folder, run, model="google/gemma-2-2b-it")
    assert again.weights == found.weights
    assert not hub.requests, "a pinned file that is here needs no Hub"
    pinned = load_dictionary(f"{RELEASE}@{commit}:{LAYER_3}", run, model="google/gemma-2-2b-it")
    assert pinned.folder == found.folder


def test_a_release_that_changed_is_refused_in_a_run_that_used_the_old(hub: FakeHub, tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    load_dictionary(f"{RELEASE}:{LAYER_3}", run, model="tiny")
    changed = save_gemma_scope(tmp_path / "changed", arrays(seed=5)).read_bytes()
    hub.repos[RELEASE].main.append(hub.new_commit("better", {f"{LAYER_3}/{PARAMS}": changed}))
    with pytest.raises(CheckpointError, match="pin it as owner/name@revision:path"):
        load_dictionary(f"{RELEASE}:{LAYER_3}", run, model="tiny")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{RELEASE}:layer_3/width_16k/average_l0_1", "holds no layer_3/width_16k/average_l0_1/params.npz"),
        (f"{RELEASE}:name", "google/gemma-scope-2b-pt-res holds no name/params.npz"),  # a word of the message itself
        (f"{RELEASE}@nowhere:{LAYER_3}", "no revision 'nowhere'"),
        (f"google/absent:{LAYER_3}", "google/absent is not on the Hub"),
    ],
)
def test_what_the_hub_lacks_is_one_line(hub: FakeHub, tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(RemoteError, match=words) as caught:
        load_dictionary(text, Run(tmp_path / "run"), model="tiny")
    assert "\n" not in str(caught.value)


def test_without_a_network_a_local_folder_is_pointed_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, unreachable_hub: None
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    reference = Reference.parse(f"{RELEASE}:{LAYER_3}")
    assert reference is not None
    for offline in (False, True):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(RemoteError, match="cannot be reached"):
            fetch(reference)


def test_commit_and_path_are_those_of_the_cache_wherever_it_lies() -> None:
    file = Path("/mnt/snapshots/hub/models--google--saes/snapshots/0f1e/layer_3/snapshots/params.npz")
    assert in_cache(file) == ("0f1e", "layer_3/snapshots/params.npz")
    assert in_cache(Path("/mnt/snapshots/params.npz")) == (None, "")


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **kwargs: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(ResourceError, match="disk is full"):
        fetch(Reference(RELEASE, LAYER_3))
