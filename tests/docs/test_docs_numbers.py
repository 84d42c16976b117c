"""The numbers of docs/scaling.md are what its program prints, and that counts what models and shards really hold."""

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModel

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import described
from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import Fingerprint, ShardWriter
from sae_forge.settings import read_config_file

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"
ROWS, CTX_LEN, BATCH = 65_536, 1024, 64


@pytest.fixture
def scaling(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The program, which finds its neighbours as it does when it is run by hand."""
    monkeypatch.syspath_prepend(ROOT / "tests" / "benchmarks")
    import scaling

    return scaling


def test_the_tables_of_the_page_are_those_of_the_program(scaling: ModuleType):
    page = PAGE.read_text(encoding="utf-8")
    for heading, text in scaling.tables(*scaling.asked([])).items():
        assert text in page, f"{heading}: print the tables anew with python tests/benchmarks/scaling.py"


def test_what_the_page_says_to_type_is_understood(tmp_path: Path):
    choice = PAGE.read_text(encoding="utf-8").partition("## Which mode")[2].partition("## What it takes")[0]
    (tmp_path / "text.toml").write_text(re.findall(r"```toml\n(.*?)```", choice, re.DOTALL)[0])
    assert read_config_file(tmp_path / "text.toml", CollectConfig) == read_config_file(
        tmp_path / "text.toml", TrainConfig
    )
    spans = re.findall(r"`([^`\n]+)`", choice)
    said = {flag for span in spans for flag in re.findall(r"--(\w+)", span)} - {"config", "nproc_per_node"}
    assert len(said) > 8
    assert said <= set(described(TrainConfig))
    collecting = [span for span in spans if "sae_forge collect" in span]
    assert collecting
    assert not any(flag in span for span in collecting for flag in ("$SAE", "max_disk_gb"))


@pytest.mark.parametrize("name", ["gemma-2-2b", "llama-2-7b"])
def test_parameters_are_those_of_the_models_own_layers(scaling: ModuleType, name: str):
    model = scaling.MODELS[name]
    with torch.device("meta"):
        below = AutoModel.from_config(model.config).layers[: model.layer + 1]
    assert model.parameters == sum(weight.numel() for weight in below.parameters() if weight.dim() == 2)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_row_takes_as_much_disk_as_is_said(scaling: ModuleType, dtype: str, tmp_path: Path):
    d_in = 64
    fingerprint = Fingerprint(
        model="noise", weights="", tokenizer="", hook_point="blocks.0.hook_resid_post", d_in=d_in, storage_dtype=dtype,
        ctx_len=CTX_LEN, bos="none", batch_size=BATCH, max_tokens=ROWS, corpus="noise", source="noise", role="retain",
    )  # fmt: skip
    with ShardWriter(tmp_path, fingerprint, shard_rows=ROWS) as writer:
        where = torch.arange(ROWS)
        writer.write_batch(0, torch.randn(ROWS, d_in), where // CTX_LEN, where % CTX_LEN, where % CTX_LEN)
        writer.finish()
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == pytest.approx(ROWS * scaling.disk_bytes(d_in, dtype), rel=0.002)
