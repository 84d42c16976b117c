"""The weights and the configuration of a GGUF model under transformers' names, dequantised by the ``gguf`` package.

What llama.cpp's converter changed is undone: the rows of Llama's q and k stand interleaved there, and Gemma's norms
are stored with one added. Nothing else is touched, so each tensor is ``gguf.dequantize`` of its bytes to the bit.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

from sae_forge.errors import UnsupportedModelError
from sae_forge.models.gguf.header import Header, TensorInfo

Undo = Callable[[str, np.ndarray, Header], np.ndarray]
"""Takes a tensor's GGUF name, the tensor as stored, and the header; returns it as transformers has it."""


def _as_stored(name: str, stored: np.ndarray, header: Header) -> np.ndarray:
    del name, header
    return stored


def _rows_in_halves(name: str, stored: np.ndarray, header: Header) -> np.ndarray:
    """A head's rows 0, 1, 2, 3 … are 0, n/2, 1, n/2 + 1 … in GGUF: RoPE turns neighbours there, halves here."""
    count = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}.get(name.split(".")[-2])
    if count is None:
        return stored
    heads = int(header.of_model(count) or header.of_model("attention.head_count"))
    apart = stored.reshape(heads, stored.shape[0] // heads // 2, 2, *stored.shape[1:])
    return apart.swapaxes(1, 2).reshape(stored.shape)


def _norms_from_zero(name: str, stored: np.ndarray, header: Header) -> np.ndarray:
    del header
    return stored - 1 if name.endswith("norm.weight") else stored


@dataclass(frozen=True)
class Architecture:
    """One value of ``general.architecture``: what transformers calls it, and what the converter did to its weights."""

    model_type: str
    undo: Undo = _as_stored
    by_width: int | None = None
    """Of Gemma, which scales attention by a number that GGUF does not hold: the layers of the one size where it is
    hidden_size / heads, and not the width of a head. Source: llama.cpp, ``f_attention_scale``."""


ARCHITECTURES = {
    "llama": Architecture("llama", _rows_in_halves),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture("gemma2", _norms_from_zero, by_width=46),
    "gemma3": Architecture("gemma3_text", _norms_from_zero, by_width=62),
}

_SETTINGS = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Settings of transformers, and the keys under which GGUF has them."""
_PERHAPS = ("num_key_value_heads", "head_dim")
_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", *_PERHAPS)
_ENDS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def architecture_called(name: str, path: Path) -> Architecture:
    """How to read a file's model.

    Raises:
        UnsupportedModelError: its architecture has no entry; lists those there are.
    """
    if (architecture := ARCHITECTURES.get(name)) is None:
        raise UnsupportedModelError(
            f"{path} holds a model of architecture {name[:60]!r}; "
            f"of GGUF files these can be read: {', '.join(ARCHITECTURES)}"
        )
    return architecture


def config_of(header: Header) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        UnsupportedModelError: an unknown architecture, or a setting that is missing or has no counterpart.
    """
    kind = architecture_called(header.architecture, header.path)
    if (scaling := header.of_model("rope.scaling.type", "none")) != "none":
        raise UnsupportedModelError(f"{header.path} scales its positions ({scaling}), which is not read from GGUF here")
    given = {name: header.of_model(key) for name, key in _SETTINGS.items()}
    given["head_dim"] = given["head_dim"] or header.of_model("rope.dimension_count")
    for name in _SIZES:
        value, key = given[name], f"{header.architecture}.{_SETTINGS[name]}"
        if value is None and name not in _PERHAPS:
            raise UnsupportedModelError(f"{header.path} does not say {key}")
        if value is not None and (type(value) is not int or value < 1):
            raise UnsupportedModelError(
                f"{header.path} gives {key}={str(value)[:40]}; only one size for all layers is read"
            )
    blocks = {name.split(".")[1] for name in header.tensors if name.startswith("blk.")}
    if len(blocks) != given["num_hidden_layers"]:  # before so many are made
        raise UnsupportedModelError(
            f"{header.path} says {given['num_hidden_layers']} layers and holds weights of {len(blocks)}"
        )
    if kind.by_width is not None:
        wide = given["num_hidden_layers"] == kind.by_width
        given["query_pre_attn_scalar"] = (
            given["hidden_size"] // given["num_attention_heads"] if wide else given["head_dim"]
        )
    ends = {name: header.metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in _ENDS.items()}
    if (embedding := header.tensors.get("token_embd.weight")) is None:
        raise UnsupportedModelError(
            f"{header.path} holds no token embeddings; it is no language model, or one in parts"
        )
    return AutoConfig.for_model(
        kind.model_type,
        vocab_size=embedding.shape[0],
        tie_word_embeddings="output.weight" not in header.tensors,
        dtype="float32",
        **{name: _plain(value) for name, value in {**given, **ends}.items() if value is not None},
    )


def _plain(value: Any) -> Any:
    """A float32 as the decimal it was made from: 1e-06, not 9.999999974752427e-07."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def names_of(header: Header, config: PretrainedConfig) -> dict[str, str]:
    """The GGUF name of every weight of the model, by transformers' name.

    Raises:
        UnsupportedModelError: a weight is missing or of another shape, or there is one that the model has no place for.
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    arch = {name: key for key, name in MODEL_ARCH_NAMES.items()}[header.architecture]
    known = get_tensor_name_map(arch, config.num_hidden_layers)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shapes = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        shapes.pop("lm_head.weight", None)
    names = {name: str(known.get_name(name, (".weight", ".bias"))) for name in shapes}
    if missing := sorted(set(names.values()) - set(header.tensors)):
        raise UnsupportedModelError(f"{header.path} lacks {len(missing)} weights, as {missing[0]}")
    if more := sorted(set(header.tensors) - set(names.values())):
        raise UnsupportedModelError(
            f"{header.path} holds {len(more)} weights that {config.model_type} has no place for, as {more[0]}"
        )
    for name, stored in names.items():
        if (shape := header.tensors[stored].shape) != shapes[name]:
            raise UnsupportedModelError(
                f"{header.path} gives {stored} the shape {list(shape)}; its settings make it {list(shapes[name])}"
            )
    return names


def require_whole(header: Header) -> None:
    """Every tensor lies within the file, and in a type that can be read.

    Raises:
        UnsupportedModelError: the file is cut short, or a tensor's type is unknown.
    """
    size = header.path.stat().st_size
    ends = [info.start + _bytes(header, name, info) for name, info in header.tensors.items()]
    if (need := max(ends, default=0)) > size:
        raise UnsupportedModelError(f"{header.path} is cut short: it has {size:,} of {need:,} bytes; fetch it again")


def _bytes(header: Header, name: str, info: TensorInfo) -> int:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    try:
        block, stored = GGML_QUANT_SIZES[GGMLQuantizationType(info.kind)]
    except (ValueError, KeyError):
        raise UnsupportedModelError(f"{header.path}: tensor {name[:60]!r} is of an unknown type, {info.kind}") from None
    if not info.shape or info.shape[-1] % block:
        raise UnsupportedModelError(f"{header.path} is damaged: tensor {name[:60]!r} has shape {info.shape}")
    return int(np.prod(info.shape, dtype=object)) // block * stored


def tensors_of(header: Header, names: Mapping[str, str]) -> Iterator[tuple[str, Float[torch.Tensor, "..."]]]:
    """Each weight under its name in transformers, in float32, one at a time.

    Raises:
        UnsupportedModelError: gguf cannot dequantise a tensor's type.
    """
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    undo = architecture_called(header.architecture, header.path).undo
    content = np.memmap(header.path, np.uint8, "r")
    for name, stored in names.items():
        info = header.tensors[stored]
        rows = content[info.start : info.start + _bytes(header, stored, info)].reshape(*info.shape[:-1], -1)
        kind = GGMLQuantizationType(info.kind)
        try:
            values = dequantize(rows, kind).astype(np.float32, copy=False)
        except NotImplementedError:
            raise UnsupportedModelError(f"{header.path}: gguf cannot read weights of type {kind.name}") from None
        yield name, torch.from_numpy(np.array(undo(stored, values, header), np.float32, order="C"))


def stored_as(header: Header) -> str:
    """How the weights are stored, in words: ``4-bit (Q4_K_M GGUF)``."""
    from gguf import GGMLQuantizationType, LlamaFileType

    try:
        name = (
            LlamaFileType(int(header.metadata["general.file_type"])).name.removeprefix("MOSTLY_").removeprefix("ALL_")
        )
    except (KeyError, ValueError):
        largest = max(header.tensors.values(), key=lambda info: (len(info.shape), np.prod(info.shape, dtype=object)))
        name = GGMLQuantizationType(largest.kind).name
    bits = re.search(r"[QF](\d+)", name)
    return f"{bits[1]}-bit ({name} GGUF)" if bits else f"{name} GGUF"
