"""A Llama of full width and random weights, made on the device itself: nothing is downloaded or written to a disk."""

import torch
from small_model import VOCABULARY, questions
from tiny_tokenizer import make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from sae_forge.models.families import family_of
from sae_forge.models.loading import LanguageModel
from sae_forge.tasks.engines.multiple_choice import letter_prompt

NAME = "wide-llama"


def wide_llama(layers: int, d_model: int, device: torch.device) -> LanguageModel:
    """A Llama in the proportions of Llama 2 7B, but for its vocabulary; bf16 on a GPU."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=d_model,
        intermediate_size=d_model * 43 // 16,
        num_hidden_layers=layers,
        num_attention_heads=max(1, d_model // 128),
        max_position_embeddings=4096,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device.type == "cuda" else torch.float32)
    try:
        with device:
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    return LanguageModel(model, make_tokenizer(texts(400), VOCABULARY), family_of("llama", NAME), NAME, revision=NAME)


def texts(count: int) -> list[str]:
    """Prompts of about 100 tokens."""
    return [letter_prompt(item, "anything") for item in questions(count, seed=2)]
