"""What strangers hand us, in short: groups C and D of the acceptance protocol, and foreign SAEs read with suspicion."""

import os
import time
from pathlib import Path

import pytest
import torch
from fakehub import TOKEN, FakeHub, Fault
from safetensors.torch import load_file

from sae_forge.errors import CheckpointError, ConfigError, ForgeError, RemoteError
from sae_forge.hub import wire
from sae_forge.hub.repository import Repository
from sae_forge.progress import SILENT
from sae_forge.sae.formats.pickled import as_safetensors
from sae_forge.store import files
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


# ---- pickles ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_lies_about_its_size_or_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "bomb.pt")
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    for name, said in (("bomb.pt", "claims 4000000000000 bytes"), ("list.pt", "not a state dict")):
        with pytest.raises(CheckpointError, match=said), as_safetensors(tmp_path / name, allowed=True):
            pass


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
    with as_safetensors(tmp_path / "a.pt", allowed=True) as converted:
        assert set(load_file(converted)) == {"a"}
    assert seen and TOKEN not in seen.values() and set(seen) <= set(os.environ)


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
