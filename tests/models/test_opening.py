"""What texts open with: the tokenizer decides, for every verb alike; a run of before keeps to its own."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_tokenizer import TEXT, make_tokenizer
from tokenizers import processors

from sae_forge.config.collect import CollectConfig
from sae_forge.config.text import HeldOutConfig
from sae_forge.errors import DataError
from sae_forge.models.families import FAMILIES
from sae_forge.models.loading import load_model
from sae_forge.models.opening import Opening
from sae_forge.models.tokens import bos_ids, packing
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collect import collect
from sae_forge.store import files
from sae_forge.tasks.engines.continuations import encode
from sae_forge.tasks.engines.generation import Sampling, steps
from sae_forge.tasks.engines.losses import load_corpus

LLAMA, QWEN = FAMILIES["llama"], FAMILIES["qwen2"]


def tokenizer(template: str | None):
    """A tokenizer with BOS that writes a text as the template has it."""
    made = make_tokenizer()
    marks = [("<s>", 1), ("</s>", 2), ("<turn>", 3)]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template or "$A", special_tokens=marks)
    return made


@pytest.mark.parametrize("family", [LLAMA, QWEN], ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("<s> $A", Opening((1,), "tokenizer", True)),
        ("<s> $A </s>", Opening((1,), "tokenizer", True)),
        ("$A </s>", Opening((), "tokenizer", False)),
        (None, Opening((), "tokenizer", False)),
    ],
)
def test_the_tokenizer_decides_whatever_the_family(template, opening, family):
    assert Opening.of(tokenizer(template), family) == opening


def test_where_the_tokenizer_opens_with_something_else_the_family_decides():
    assert Opening.of(tokenizer("<turn> <s> $A"), LLAMA) == Opening((1,), "family", True)
    assert Opening.of(tokenizer("<turn> <s> $A"), QWEN) == Opening((), "family", False)


@pytest.mark.parametrize("opens", [True, False])
def test_every_verb_opens_a_text_alike(tiny_llama, tmp_path, opens):
    lm = replace(tiny_llama, tokenizer=tokenizer("<s> $A" if opens else None))
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 4))
    front = [1] if opens else []
    held = HeldOutConfig(model="any", ctx_len=16, loss_tokens=64)
    (question,) = encode(lm, [("The owl", ["sleeps"])])
    sampling = Sampling(max_new_tokens=1, temperature=0, top_p=1.0, seed=0)
    assert (next(steps(lm, ["The owl"], sampling, np.zeros((1, 1)))).read[0, 0] == 1) == opens
    assert bos_ids(lm) == front
    assert (question.context[0] == 1) is opens
    packed = load_corpus(lm, str(tmp_path / "text.txt"), "retain", held).batches[0].token_ids
    assert (packed[0, 0] == 1) == opens
    assert packing(lm, "auto") == ("row" if opens else "none")
    assert packing(lm, "document") == "document"


@pytest.fixture
def run_config(model_folders, tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 4))
    return CollectConfig(
        model=str(model_folders["llama"]), run_dir=tmp_path / "run", layer=(1,), forget="",
        retain=(str(tmp_path / "text.txt"),), ctx_len=16, model_batch_size=2, model_device="cpu",
    )  # fmt: skip


def test_a_run_records_what_texts_open_with_and_keeps_to_it(run_config, tmp_path):
    collect(run_config, Bench(run_config))
    path = tmp_path / "run" / "run.json"
    assert files.read_json(path, kind=DataError, what="")["opening"] == {"ids": [1], "by": "tokenizer", "rows": True}
    files.publish_json(path, {"model": run_config.model, "opening": {"ids": [], "by": "tokenizer", "rows": False}})
    assert bos_ids(Bench(run_config).lm) == []
    files.publish_json(path, {"model": run_config.model, "opening": {"ids": ["<s>"]}})
    with pytest.raises(DataError, match=r"run\.json does not say what texts open with"):
        _ = Bench(run_config).lm


@pytest.mark.parametrize(("family", "ids"), [("llama", (1,)), ("qwen2", ())])
def test_a_run_of_before_opens_texts_by_the_family_and_rows_with_bos(run_config, tmp_path, monkeypatch, family, ids):
    files.publish_json(tmp_path / "run" / "run.json", {"model": run_config.model})
    tiny = load_model(run_config.model, device="cpu")
    made = replace(tiny, tokenizer=tokenizer(None), family=FAMILIES[family])
    monkeypatch.setattr("sae_forge.pipeline.bench.load_model", lambda *_, **__: made)
    lm = Bench(run_config).lm
    assert lm.opening == Opening(ids, "earlier run", True)
    assert packing(lm, "auto") == "row"
