"""Tiny models of random weights, one of each family, made here and saved; nothing is downloaded.

Each is of its real configuration class at toy size: 4 to 6 layers, every kind of layer among them.
"""

from pathlib import Path
from typing import Any

import torch
from tiny_tokenizer import make_tokenizer
from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SHAPE = {
    "vocab_size": 320, "hidden_size": 56, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 88, "max_position_embeddings": 128,
}  # fmt: skip
"""Widths differ so that a mixed-up axis fails."""

SLIDING, FULL, LINEAR = "sliding_attention", "full_attention", "linear_attention"
_SLIDING_AND_FULL = {"head_dim": 16, "sliding_window": 8, "layer_types": [SLIDING, FULL, SLIDING, FULL]}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16}
_GEMMA3 = {**SHAPE, **_SLIDING_AND_FULL, "query_pre_attn_scalar": 16}
_GEMMA4 = {
    **SHAPE, **_SLIDING_AND_FULL, "num_hidden_layers": 6, "layer_types": [SLIDING, FULL] * 3, "global_head_dim": 24,
    "num_global_key_value_heads": 1, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 320,
    "num_kv_shared_layers": 2,
}  # fmt: skip
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_QWEN_EXPERTS = {
    "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1], "head_dim": 16,
}  # fmt: skip
_LINEAR_AND_FULL = {
    "layer_types": [LINEAR, LINEAR, FULL, LINEAR], "head_dim": 16, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
_SIGHT = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip

_OWN: dict[str, dict[str, Any]] = {
    "gemma": {"head_dim": 16},
    "gemma2": {**_GEMMA, "sliding_window": 8},
    "gemma3_text": _GEMMA3,
    "gemma3": {"text_config": {**_GEMMA3, **ENDS}, "vision_config": _SIGHT, "mm_tokens_per_image": 4},
    "gemma4_text": _GEMMA4,
    "gemma4": {
        "text_config": {**_GEMMA4, **ENDS}, "audio_config": None,
        "vision_config": {**_SIGHT, "num_key_value_heads": 2, "head_dim": 8},
    },
    "mistral": {"sliding_window": 8},
    "mixtral": {**_EXPERTS, "sliding_window": 8},
    "qwen3": {"head_dim": 16},
    "qwen3_moe": _QWEN_EXPERTS,
    "qwen3_next": {**_QWEN_EXPERTS, **_LINEAR_AND_FULL, "shared_expert_intermediate_size": 24},
    "qwen3_5": {"text_config": {**SHAPE, **_LINEAR_AND_FULL, **ENDS}, "vision_config": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 56}},
    "olmo3": _SLIDING_AND_FULL,
    "phi3": {"sliding_window": 8},
    "gpt_oss": {**_EXPERTS, **_SLIDING_AND_FULL, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    "granite": {"residual_multiplier": 0.22, "attention_multiplier": 0.25, "logits_scaling": 2.0},
    "granitemoehybrid": {
        "residual_multiplier": 0.22, "attention_multiplier": 0.25, "num_local_experts": 0, "num_experts_per_tok": 0,
        "shared_intermediate_size": 88, "layer_types": ["mamba", "attention", "mamba", "attention"],
        "mamba_n_heads": 4, "mamba_d_head": 28, "mamba_d_state": 8, "mamba_n_groups": 1,
    },
    "gpt2": {"n_embd": 56, "n_layer": 4, "n_head": 4, "n_positions": 128},
}  # fmt: skip
"""What a family needs to be told beyond the common shape."""
_WRAPPED = {"gemma3", "gemma4", "qwen3_5"}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma4-experts": ("gemma4", {  # as the larger ones are made: experts beside the MLP, values that are the keys
        "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24,
        "attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}),
    "gpt_neox-serial": ("gpt_neox", {"use_parallel_residual": False}),
    "phi3-longrope": ("phi3", {"rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 7, "long_factor": [4.0] * 7},
        "original_max_position_embeddings": 48}),
    "llama-dynamic": ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
}  # fmt: skip
"""Checkpoints of a family that are made otherwise, by a name of ours."""


def make_config(family: str, **differing: Any) -> PretrainedConfig:
    """A tiny configuration of ``family``, or of a variant."""
    family, varied = VARIANTS.get(family, (family, {}))
    differing = {**varied, **differing}
    own = _OWN.get(family, {})
    if family in _WRAPPED:
        return CONFIG_MAPPING[family](**{**own, "text_config": {**own["text_config"], **differing}})
    shape = {"vocab_size": SHAPE["vocab_size"]} if family == "gpt2" else SHAPE
    return CONFIG_MAPPING[family](**{**shape, **ENDS, **own, **differing})


def save_model(folder: Path, family: str, *, seed: int = 0, **differing: Any) -> Path:
    """Write a tiny model of random weights and its tokenizer as `save_pretrained` does."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(make_config(family, **differing))
        for name, weight in model.named_parameters():
            if weight.ndim in (2, 3) and "norm" not in name:
                torch.nn.init.normal_(weight, std=0.15)  # at the default 0.02 every layer is nearly the identity
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):  # at the default 1 nothing shows whether it is heeded
                buffer.fill_(0.8)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
