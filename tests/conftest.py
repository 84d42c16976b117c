"""Fixtures every room shares: a tiny model of each family, made here, loaded as any model is; nothing is downloaded."""

# ruff: noqa: E402 (the environment and the import hook come before what they act on)
import os

os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"  # a test that needs the network fails at once, everywhere
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pkgutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

check_types = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do for a float, as for pyright

# Types and shapes are checked in tests, and only there; not in kernels, whose Triton functions compile from source.
_ROOMS = [room.name for room in pkgutil.iter_modules([str(Path(__file__).parents[1] / "sae_forge")])]
install_import_hook([f"sae_forge.{room}" for room in _ROOMS if room != "kernels"], "conftest.check_types")

import pytest
import torch
from tiny_tokenizer import TEXT as TEXT
from tiny_tokenizer import make_tokenizer
from transformers import (
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from sae_forge.models.loading import LanguageModel, load_model

torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs with it ignored

FAMILIES = ("llama", "gemma", "gemma2")


def make_config(family: str):
    """The real configuration class of ``family``, at toy size; widths differ so that a mixed-up axis fails."""
    shape = {"vocab_size": 320, "hidden_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4}
    shape |= {"intermediate_size": 88, "num_key_value_heads": 2, "max_position_embeddings": 128}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    match family:
        case "llama":
            return LlamaConfig(**shape, **ends)
        case "gemma":
            return GemmaConfig(**shape, **ends, head_dim=16)
        case "gemma2":
            return Gemma2Config(**shape, **ends, head_dim=16, sliding_window=8, query_pre_attn_scalar=16)
        case "mistral":
            return MistralConfig(**shape, **ends, sliding_window=8)
        case "qwen2":
            return Qwen2Config(**shape, **ends)
        case "gpt2":
            return GPT2Config(vocab_size=320, n_embd=56, n_layer=4, n_head=4, n_positions=128, **ends)
    raise ValueError(f"the tests know no tiny {family}")


def save_model(folder: Path, family: str, *, seed: int = 0) -> Path:
    """Write a tiny model of random weights and its tokenizer as `save_pretrained` does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(family))
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "norm" not in name:
                torch.nn.init.normal_(weight, std=0.15)  # at the default 0.02 every layer is nearly the identity
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A saved tiny model of each family the tests run on, by family."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(root / f"tiny-{family}", family) for family in FAMILIES}


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_model(request: pytest.FixtureRequest, model_folders: dict[str, Path]) -> LanguageModel:
    """A tiny random model, once for each family; 4 layers, d_model 56, fp32 on the CPU."""
    return load_model(str(model_folders[request.param]), device="cpu")


@pytest.fixture(scope="session")
def tiny_llama(model_folders: dict[str, Path]) -> LanguageModel:
    """The Llama among the tiny models, for tests where the family does not matter."""
    return load_model(str(model_folders["llama"]), device="cpu")


@pytest.fixture(scope="session")
def plugged_run(model_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory):
    """One small run for everything that a plug-in brings."""
    from tiny_run import make_run

    return make_run(tmp_path_factory.mktemp("plugged"), model_folders["llama"])


@pytest.fixture(scope="session")
def command() -> Callable[..., str]:
    """What a command prints, run as a user runs it."""

    def run(*arguments: str) -> str:
        line = [sys.executable, "-m", "sae_forge", *arguments]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    return run
