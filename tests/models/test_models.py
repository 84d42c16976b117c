"""Loading: one door for folders, built-ins and the Hub, and one line with the right exit code for each failure."""

import copy
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file
from tiny_models import save_model
from tiny_tokenizer import make_tokenizer
from transformers import LlamaForCausalLM

from sae_forge.errors import BackendError, ConfigError, DataError, RemoteError, UnsupportedModelError
from sae_forge.hookpoint import HookPoint
from sae_forge.models import loading
from sae_forge.models.digest import digest_of_tensors
from sae_forge.models.families import FAMILIES
from sae_forge.models.hooks import capture
from sae_forge.models.loading import load_model, parameter_bytes
from sae_forge.models.tokens import real_token_mask
from sae_forge.store import files
from sae_forge.store.weights import same
from sae_forge.tasks.engines.generation import Sampling, write

ROOT = Path(__file__).parents[2]


def test_a_loaded_model_is_frozen_and_knows_its_shape(tiny_model):
    assert not tiny_model.model.training
    assert not any(weight.requires_grad for weight in tiny_model.model.parameters())
    assert (tiny_model.n_layers, tiny_model.d_model) == (4, 56)
    assert tiny_model.model.dtype == torch.float32
    assert tiny_model.device == torch.device("cpu")
    assert tiny_model.name == f"tiny-{tiny_model.family.name}"
    assert tiny_model.special_ids == {0, 1, 2, 3}
    assert tiny_model.pad_id == 0
    assert "Parameter" not in repr(tiny_model)


def test_family_entries_have_distinct_model_types():
    types = [model_type for family in FAMILIES.values() for model_type in family.model_types]
    assert len(types) == len(set(types))
    assert {"llama", "gemma", "gemma2"} <= set(types)


def test_dtype_and_stored_precision(tmp_path):
    folder = save_model(tmp_path, "llama")
    LlamaForCausalLM.from_pretrained(folder).half().save_pretrained(folder)
    assert load_model(str(folder), device="cpu").model.dtype == torch.float32
    half = load_model(str(folder), device="cpu", dtype="bf16")
    assert half.model.dtype == torch.bfloat16
    assert half.fingerprint()["dtype"] == "bfloat16"
    assert parameter_bytes(half.model) == sum(2 * w.numel() for w in half.model.parameters()) + sum(
        b.numel() * b.element_size() for b in half.model.buffers()
    )


def test_fingerprint_follows_weights_and_tokenizer_and_nothing_else(tmp_path, model_folders):
    lm = load_model(str(model_folders["llama"]), device="cpu")
    first = lm.fingerprint()
    lm.tokenizer(["a", "long one"], padding=True, truncation=True, max_length=3)
    copy = load_model(str(shutil.copytree(model_folders["llama"], tmp_path / "tiny-llama")), device="cpu")
    copy.tokenizer(["x", "y z"], padding=True)
    assert copy.fingerprint() == first
    assert json.loads(json.dumps(first)) == first

    other_weights = load_model(str(save_model(tmp_path / "b", "llama", seed=1)), device="cpu").fingerprint()
    assert other_weights["weights"] != first["weights"]
    assert other_weights["tokenizer"] == first["tokenizer"]

    tokenizer = json.loads((tmp_path / "tiny-llama" / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (tmp_path / "tiny-llama" / "tokenizer.json").write_text(json.dumps(tokenizer))
    fewer_merges = load_model(str(tmp_path / "tiny-llama"), device="cpu").fingerprint()
    assert fewer_merges["weights"] == first["weights"]
    assert fewer_merges["tokenizer"] != first["tokenizer"]


def digests(*folders: Path) -> set[str]:
    return {load_model(str(folder), device="cpu").fingerprint()["weights"] for folder in folders}


def test_weights_are_known_by_their_numbers_and_not_by_files_names_or_precision(tmp_path, model_folders):
    """Shard files, a base model's names, masks that older files hold, bf16 upcast to fp32, a GPU's bf16: one model."""
    source = model_folders["llama"]
    half = LlamaForCausalLM.from_pretrained(source).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "bf16")
    half.float().save_pretrained(tmp_path / "fp32")
    half.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    tensors = {name.removeprefix("model."): weight for name, weight in half.state_dict().items()}
    tensors |= {"layers.0.self_attn.mask": torch.ones(3), "lm_head.weight": half.lm_head.weight.detach()}
    renamed = shutil.copytree(tmp_path / "bf16", tmp_path / "renamed")
    save_file(
        {name: tensor.clone() for name, tensor in tensors.items()}, renamed / "model.safetensors", {"format": "pt"}
    )
    for name in ("bf16", "fp32", "sharded", "renamed"):
        make_tokenizer().save_pretrained(tmp_path / name)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    same = digests(source, *(tmp_path / name for name in ("bf16", "fp32", "sharded", "renamed")))
    assert len(same) == 1
    lm = load_model(str(source), device="cpu", dtype="bf16")
    assert {lm.fingerprint()["weights"], digest_of_tensors(lm.model.state_dict())} == same
    lm.model.lm_head.weight[5, 7] += 1
    assert digest_of_tensors(lm.model.state_dict()) not in same


def test_layers_that_changed_places_are_other_weights(model_folders):
    lm = load_model(str(model_folders["llama"]), device="cpu")
    before = digest_of_tensors(lm.model.state_dict())
    lm.model.model.layers.append(lm.model.model.layers[0])
    del lm.model.model.layers[0]
    assert digest_of_tensors(lm.model.state_dict()) != before


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (2500, 300)])
def test_a_large_matrix_is_sampled_over_all_its_rows_and_columns(place):
    """A matrix that is merged or scaled in one column is another; bytes of a file and tensors in memory agree."""
    weight = torch.randn(3000, 640)
    digest = digest_of_tensors({"model.layers.0.up_proj.weight": weight})
    changed = weight.clone()
    changed[:, place[1]] *= 1.1
    assert digest_of_tensors({"model.layers.0.up_proj.weight": changed}) != digest
    changed = weight.clone()
    changed[place] += 1
    assert (digest_of_tensors({"model.layers.0.up_proj.weight": changed}) != digest) == (place != (2500, 300))


def test_what_older_versions_noted_is_understood(model_folders):
    lm = load_model(str(model_folders["llama"]), device="cpu")
    parts = sorted([*model_folders["llama"].glob("*.safetensors"), model_folders["llama"] / "config.json"])
    old = files.digest([[part.name, files.file_sha256(part)] for part in parts])
    assert lm.weights_as(old) == old
    assert same("ab" * 32, lm.weights_as("ab" * 32)) is False
    assert same("ab" * 20, lm.weights_as("ab" * 20)) is None, "a commit says nothing of a folder"
    assert same(lm.fingerprint()["weights"], lm.weights_as(lm.fingerprint()["weights"])) is True
    assert same(old, lm.fingerprint()["weights"]) is None, "two ways of saying it cannot be compared"


def test_real_tokens_are_attended_and_not_special():
    token_ids = torch.tensor([[1, 9, 2, 8], [0, 0, 1, 7]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    expected = torch.tensor([[False, True, False, True], [False, False, False, True]])
    assert torch.equal(real_token_mask(token_ids, mask, {0, 1, 2}), expected)
    assert torch.equal(real_token_mask(token_ids, mask.bool(), set()), mask.bool())


# ---- refusals -----------------------------------------------------------------------------------


def test_unknown_family_is_refused_before_its_weights_are_read(tmp_path):
    folder = save_model(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bloom", "architectures": ["Bloom"]}))
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        UnsupportedModelError, match=r"'bloom'; supported: llama, gemma, gemma2.*--family FILE.*families\.md"
    ):
        load_model(str(folder))


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match=r"holds no config\.json"):
        load_model(str(tmp_path))
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        load_model(str(tmp_path / "nowhere"))
    with pytest.raises(UnsupportedModelError, match="neither a folder nor a Hub id"):
        load_model("no such/model")


def test_a_lora_adapter_and_a_folder_without_tokenizer_are_called_what_they_are(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/base"}')
    with pytest.raises(UnsupportedModelError, match="is a LoRA adapter, no model; merge it into some/base first"):
        load_model(str(tmp_path))
    folder = save_model(tmp_path / "bare", "llama")
    for path in folder.glob("token*"):
        path.unlink()
    with pytest.raises(UnsupportedModelError, match="holds no tokenizer files; copy them from the base model"):
        load_model(str(folder))


def test_a_pad_token_that_the_model_has_no_row_for_pads_all_the_same(tiny_llama):
    tokenizer = copy.deepcopy(tiny_llama.tokenizer)
    tokenizer.add_tokens(["<new>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    lm = replace(tiny_llama, tokenizer=tokenizer)
    assert tokenizer.pad_token_id >= lm.rows == 320
    texts = ["one owl", "the river Arn runs past seven towns"]
    ids, mask = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False).values()
    padded = capture(lm, [HookPoint(2)], ids, mask)[HookPoint(2)][mask.bool()]
    alone = [
        capture(lm, [HookPoint(2)], row[kept][None], kept[kept][None])[HookPoint(2)][0]
        for row, kept in zip(ids, mask.bool(), strict=True)
    ]
    torch.testing.assert_close(padded, torch.cat(alone), atol=1e-5, rtol=1e-5)
    assert [len(got.text) > 0 for got in write(lm, texts, Sampling(max_new_tokens=4), batch_size=2)] == [True, True]
    with pytest.raises(DataError, match=r"'<new>', token 320 of a tokenizer of 322, but .* 320 rows"):
        write(lm, ["a <new> owl"], Sampling(max_new_tokens=4), batch_size=2)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "cut"])
def test_a_damaged_folder_is_one_line(tmp_path, name, damage):
    path = save_model(tmp_path, "gemma2") / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"\x00garbage" * 9 if damage == "garbage" else content[: len(content) // 2])
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_that_are_missing_are_not_made_up(tmp_path):
    folder = save_model(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 6}))
    with pytest.raises(UnsupportedModelError, match=r"lacks 18 weights .* model\.layers\.4"):
        load_model(str(folder))


def test_pickled_weights_are_not_read(tmp_path):
    save_model(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsupportedModelError, match="safetensors"):
        load_model(str(tmp_path))


def test_code_from_a_repository_is_not_run(tmp_path):
    folder = save_model(tmp_path, "llama")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(UnsupportedModelError):
        load_model(str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_device_or_library_that_is_not_there_is_named(model_folders, monkeypatch):
    folder = str(model_folders["llama"])
    with pytest.raises(ConfigError, match="--model_device gpu7 is no device"):
        load_model(folder, device="gpu7")
    with pytest.raises(BackendError, match=f"cuda:99: torch sees {torch.cuda.device_count()} CUDA"):
        load_model(folder, device="cuda:99")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install sae-forge\[quant\]"):
        load_model(folder, quantize="4bit")


# ---- the Hub ------------------------------------------------------------------------------------

ANSWERS = {
    "some/gated": (403, "GatedRepo", 5, "is gated"),
    "some/missing": (404, "RepoNotFound", 5, "is not on the Hub, or is private"),
    "some/branchless": (404, "RevisionNotFound", 5, "--revision"),
    "some/forbidden": (403, None, 5, "HTTP 403"),
    "some/teapot": (418, None, 5, "HTTP 418"),
    "some/dataset": (404, "EntryNotFound", 2, "config.json"),
}
"""What a server answers for a repository, and the exit code and words that must come of it."""

SCRIPT = """
import sys
from sae_forge.errors import ForgeError
from sae_forge.models.loading import load_model
for name in sys.argv[1:]:
    try:
        load_model(name)
    except ForgeError as error:
        print(error.exit_code, error)
"""


@pytest.fixture
def refusing_hub() -> Iterator[str]:
    """A Hub on localhost that answers each repository of ANSWERS with its error."""

    class Refuse(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status, code, *_ = ANSWERS["/".join(self.path.split("/")[1:3])]
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD  # noqa: N815 (the server looks the method up by this name)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def load_elsewhere(names: list[str], tmp_path: Path, **environment: str) -> list[str]:
    """What loading each of ``names`` says, one line each, in a process of its own: the Hub's address is read once."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    env = {**keep, "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *names], env=env, capture_output=True, text=True, check=True, timeout=600
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_what_the_hub_refuses_is_one_line_and_the_right_exit_code(refusing_hub, tmp_path):
    lines = load_elsewhere(list(ANSWERS), tmp_path, HF_ENDPOINT=refusing_hub)
    assert len(lines) == len(ANSWERS)
    for line, (name, (_, _, exit_code, words)) in zip(lines, ANSWERS.items(), strict=True):
        assert line.startswith(f"{exit_code} ")
        assert words in line
        assert name in line
    for line in lines[:2]:
        assert "hf auth login" in line
        assert "HF_TOKEN" in line
        assert "--model tiny-llama" in line


def test_without_a_network_the_built_in_model_is_pointed_to(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RemoteError, match="Llama-2-7b-chat-hf is not in the local cache") as told:
        load_model("meta-llama/Llama-2-7b-chat-hf")
    assert str(told.value).startswith("meta-llama/Llama-2-7b-chat-hf is not")
    assert "--model tiny-llama" in str(told.value)
    assert told.value.exit_code == 5


def test_8_bits_are_loaded_so_that_a_row_hangs_on_no_other(monkeypatch):
    """At bitsandbytes' own threshold columns are taken out for all tokens of a call at once."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = loading._quantization("8bit", "auto")
    assert config is not None and config.load_in_8bit and config.llm_int8_threshold == 0
    assert not logging.getLogger("bitsandbytes").isEnabledFor(logging.WARNING)  # it would warn of every product


@pytest.mark.parametrize(("dtype", "placed", "computed"), [
    ("auto", {"": "cpu"}, torch.float32), ("bf16", {"": "cpu"}, torch.bfloat16), ("fp32", {"": "cuda:0"}, torch.float32)
])  # fmt: skip
def test_4_bits_compute_as_the_rest_of_the_model_does(monkeypatch, dtype, placed, computed):
    """bfloat16, which processors without it emulate, takes five times as long as float32."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    config = loading._quantization("4bit", loading._dtype(dtype, placed))
    assert config is not None and config.bnb_4bit_compute_dtype == computed
