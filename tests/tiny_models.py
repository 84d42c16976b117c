"""Tiny models of random weights, one of each family the tests run on, made here and saved; nothing is downloaded."""

from pathlib import Path

import torch
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
