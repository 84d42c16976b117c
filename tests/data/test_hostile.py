"""What strangers hand us, in short: groups C and D of the acceptance protocol, and foreign SAEs read with suspicion."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from fakehub import TOKEN, FakeHub, Fault

from sae_forge.errors import CheckpointError, ConfigError, ForgeError, RemoteError
from sae_forge.hookpoint import HookPoint
from sae_forge.hub import wire
from sae_forge.hub.repository import Repository
from sae_forge.progress import SILENT
from sae_forge.sae.formats.dictionary_learning import load_dictionary_learning
from sae_forge.sae.formats.pickled import read_pickled
from sae_forge.sae.formats.sparsify import load_sparsify
from sae_forge.sae.named import load_dictionary
from sae_forge.store import files
from sae_forge.store.runs import POINTER, Run
from sae_forge.store.tensors import publish_tensors
from tests.acceptance import hostile, remote
from tests.acceptance.harness import Ground

D_IN, D_SAE, K = 6, 20, 3
X = torch.randn(40, D_IN, generator=torch.Generator().manual_seed(1))

# ---- the protocol -------------------------------------------------------------------------------

IN_PROCESS = ("C1 fuzz", "C2", "C3", "C5", "C6")
PUSHES = (
    "D1 upload 429",
    "D1 upload reset",
    "D2 30",
    "D2 killed before commit",
    "D2 killed after commit",
    "D3",
    "D4",
    "D5",
)
PUSHES += ("D6", "D7")


@pytest.mark.slow
@pytest.mark.parametrize("case", IN_PROCESS)
def test_hostile_input_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    results = list(hostile.cases(Ground(tmp_path, smoke=True, seed=0, only=(case,))))
    assert results and [one.reason for one in results if one.result != "passed"] == []


@pytest.mark.slow
@pytest.mark.parametrize("case", PUSHES)
def test_a_push_is_one_commit_or_none(case: str, tmp_path: Path) -> None:
    results = list(remote.cases(Ground(tmp_path, smoke=True, seed=0, only=(case,))))
    assert results and [one.reason for one in results if one.result != "passed"] == []


# ---- push ---------------------------------------------------------------------------------------


def test_a_refusal_by_the_store_of_large_files_is_not_asked_again(tmp_path: Path) -> None:
    folder = remote.artefacts(tmp_path)
    with remote.hub() as running:
        running.faults.append(Fault("upload", 403, times=9))
        with pytest.raises(RemoteError, match="403"):
            remote.publish(folder)
        assert running.steps().count("upload") == 1
        assert "commit" not in running.steps()


def test_an_answer_that_drips_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SILENCE", 0.4)
    monkeypatch.setattr(wire, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(wire, "TRIES", 2)
    with FakeHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        running.add_repo("a/b")
        running.faults.append(Fault("look", "drip", times=9))
        started = time.monotonic()
        with pytest.raises(RemoteError, match="gave no answer within 0 s, 2 times"):
            Repository("a/b", TOKEN, SILENT).look("main")
        assert time.monotonic() - started < 5


# ---- foreign SAEs -------------------------------------------------------------------------------


def weights(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sparsify_folder(folder: Path, *, drop: str | None = None, **settings: object) -> dict[str, torch.Tensor]:
    found = {
        "encoder.weight": weights(D_SAE, D_IN, seed=2),
        "encoder.bias": weights(D_SAE, seed=3),
        "W_dec": weights(D_SAE, D_IN, seed=4),
        "b_dec": weights(D_IN, seed=5),
    }
    publish_tensors(folder / "sae.safetensors", {name: tensor for name, tensor in found.items() if name != drop})
    cfg = {"activation": "topk", "k": K, "d_in": D_IN, "num_latents": D_SAE, "transcode": False, "signed": False}
    (folder / "cfg.json").write_text(json.dumps({**cfg, **settings}))
    return found


def learned_folder(folder: Path, kind: str) -> dict[str, torch.Tensor]:
    """What dictionary_learning saves of one of its classes."""
    if kind == "JumpReluAutoEncoder":
        found = {"W_enc": weights(D_IN, D_SAE, seed=2), "W_dec": weights(D_SAE, D_IN, seed=4)}
        found |= {"b_enc": weights(D_SAE, seed=3), "b_dec": weights(D_IN, seed=5), "threshold": weights(D_SAE, seed=6)}
    else:
        found = {"encoder.weight": weights(D_SAE, D_IN, seed=2), "encoder.bias": weights(D_SAE, seed=3)}
        found |= {"decoder.weight": weights(D_IN, D_SAE, seed=4)}
        found |= {"bias" if kind == "AutoEncoder" else "b_dec": weights(D_IN, seed=5)}
    if kind in ("AutoEncoderTopK", "BatchTopKSAE"):
        found |= {"k": torch.tensor(K, dtype=torch.int32), "threshold": torch.tensor(0.75)}
    folder.mkdir(parents=True)
    torch.save(found, folder / "ae.pt")
    trainer = {"dict_class": kind, "activation_dim": D_IN, "dict_size": D_SAE, "k": K, "lm_name": "some/model"}
    trainer |= {"submodule_name": "resid_post_layer_3", "layer": 3}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {"ctx_len": 128}}))
    return found


def top(pre_acts: torch.Tensor) -> torch.Tensor:
    kept = pre_acts.relu().topk(K, dim=-1)
    return torch.zeros_like(pre_acts).scatter(-1, kept.indices, kept.values)


def rebuilt(kind: str, found: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the class computes, from its definition, in float64."""
    wide = {name: tensor.double() for name, tensor in found.items()}
    if kind == "JumpReluAutoEncoder":
        pre_acts = X.double() @ wide["W_enc"] + wide["b_enc"]
        return (pre_acts * (pre_acts > wide["threshold"])).relu() @ wide["W_dec"] + wide["b_dec"]
    centre = wide["bias" if kind == "AutoEncoder" else "b_dec"]
    pre_acts = ((X.double() - centre) @ wide["encoder.weight"].T + wide["encoder.bias"]).relu()
    acts = {
        "AutoEncoder": pre_acts,
        "AutoEncoderTopK": top(pre_acts),
        "BatchTopKSAE": pre_acts * (pre_acts > 0.75),
    }[kind]
    return acts @ wide["decoder.weight"].T + centre


def test_a_sparsify_sae_computes_what_its_definition_says(tmp_path: Path) -> None:
    found = {name: tensor.double() for name, tensor in sparsify_folder(tmp_path / "layers.3").items()}
    acts = top((X.double() - found["b_dec"]) @ found["encoder.weight"].T + found["encoder.bias"])
    expected = acts @ found["W_dec"] + found["b_dec"]
    torch.testing.assert_close(load_sparsify(tmp_path / "layers.3")(X).double(), expected, rtol=1e-5, atol=1e-5)
    named = load_dictionary(tmp_path / "layers.3", Run(tmp_path / "run"), model="any")
    assert named.point == HookPoint(3)
    assert (named.folder / POINTER).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["AutoEncoderTopK", "BatchTopKSAE", "AutoEncoder", "JumpReluAutoEncoder"])
def test_a_dictionary_learning_sae_computes_what_its_class_does(kind: str, tmp_path: Path) -> None:
    found = learned_folder(tmp_path / "ae", kind)
    named = load_dictionary(tmp_path / "ae", Run(tmp_path / "run"), model="some/model", allow_pickle=True)
    assert (named.point, named.provenance.model) == (HookPoint(3), "some/model")
    code = named.sae.encode(X)
    torch.testing.assert_close(named.sae.decode(code).double(), rebuilt(kind, found), rtol=1e-4, atol=1e-4)


def test_a_pickle_is_read_only_when_that_was_asked_for(tmp_path: Path) -> None:
    learned_folder(tmp_path / "ae", "AutoEncoderTopK")
    with pytest.raises(CheckpointError, match=r"ae\.pt is a pickle.*--allow_pickle"):
        load_dictionary_learning(tmp_path / "ae" / "ae.pt", allow_pickle=False)


@pytest.mark.slow
def test_what_lies_about_its_size_or_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name, said in (("bomb.pt", "claims 4000000000000 bytes"), ("list.pt", "not a state dict")):
        with pytest.raises(CheckpointError, match=said):
            read_pickled(tmp_path / name, allowed=True)


@pytest.mark.slow
def test_the_child_that_reads_a_pickle_has_no_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, str] = {}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    import sae_forge.sae.formats.pickled as pickled

    run = pickled.subprocess.run
    monkeypatch.setattr(
        pickled.subprocess, "run", lambda *args, **named: (seen.update(named["env"]), run(*args, **named))[1]
    )
    assert set(read_pickled(tmp_path / "a.pt", allowed=True)) == {"a"}
    assert seen and TOKEN not in seen.values() and set(seen) <= set(os.environ)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"activation": "groupmax"}, "only topk"),
        ({"transcode": True}, "transcoder"),
        ({"skip_connection": True}, "transcoder"),
        ({"num_latents": -1}, "num_latents=-1"),
        ({"num_latents": D_SAE + 1}, "expected encoder.weight of shape"),
        ({"k": D_SAE + 1}, "latents per token"),
        ({"k": None}, "k=None"),
        ({"d_in": 10**40}, "d_in=1000"),
        ({"drop": "b_dec"}, "expected the tensors"),
    ],
)
def test_a_sparsify_folder_that_is_something_else_is_refused(settings: dict, said: str, tmp_path: Path) -> None:
    sparsify_folder(tmp_path, **settings)
    with pytest.raises(CheckpointError, match=said):
        load_sparsify(tmp_path)


# ---- words --------------------------------------------------------------------------------------


def test_an_error_is_one_line_that_any_terminal_can_show() -> None:
    told = str(ForgeError("a\nb \x1b[2J \u202e c\t\ud800 é"))
    assert told == "a b \\x1b[2J \\u202e c \\ud800 é"


@pytest.mark.parametrize("content", [b"x = " + b"9" * 5000, b"x = " + b"[" * 5000, b"\xff", b"#" * 70_000])
def test_a_config_file_that_breaks_its_parser_is_refused(content: bytes, tmp_path: Path) -> None:
    from sae_forge.config.train import TrainConfig
    from sae_forge.settings import read_config_file

    (tmp_path / "a.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"a\.toml is not TOML"):
        read_config_file(tmp_path / "a.toml", TrainConfig)


def test_json_that_grows_in_memory_is_not_parsed() -> None:
    for content in (
        b"[" + b"[]," * (files.MAX_JSON_CONTAINERS + 1) + b"0]",
        b"[" + b"1," * (files.MAX_JSON_VALUES + 1) + b"0]",
    ):
        with pytest.raises(ValueError, match="holds more than"):
            files.parse_json(content)
