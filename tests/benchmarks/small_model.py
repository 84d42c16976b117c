"""A Llama of random weights, small enough for a CPU and deep enough to skip layers of, and questions to ask it."""

import random
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.statistics.answers import LETTERS
from sae_forge.tasks.engines.multiple_choice import letter_prompt
from sae_forge.tasks.records import Question

sys.path.append(str(Path(__file__).parents[1]))  # the tokenizer that tests use as well
from tiny_tokenizer import make_tokenizer

VOCABULARY = 2048
SYLLABLES = (
    "ba",
    "cor",
    "den",
    "fi",
    "gra",
    "hul",
    "ket",
    "lo",
    "mir",
    "nos",
    "pra",
    "que",
    "ris",
    "sul",
    "ton",
    "vey",
)
MIDDLE = 56
"""Words a question has beside its options; with them the prompt is about 100 tokens long."""


def small_llama(layers: int, d_model: int, device: str) -> LanguageModel:
    """A Llama in the proportions of Llama 2 7B, loaded from a folder as any other."""
    with tempfile.TemporaryDirectory() as folder:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=d_model,
            intermediate_size=d_model * 43 // 16,
            num_hidden_layers=layers,
            num_attention_heads=d_model // 32,
            max_position_embeddings=1024,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        make_tokenizer(_texts(400), VOCABULARY).save_pretrained(folder)
        return load_model(folder, device=device)


def questions(count: int, seed: int) -> tuple[Question, ...]:
    """Four-option questions of made-up words, no two of the same length."""
    draw = random.Random(seed)
    return tuple(
        Question(
            id=f"{seed}-{number}",
            fact=f"{seed}-{number}",
            question=f"{_words(draw, MIDDLE + draw.randint(-8, 8))}?",
            choices=tuple(_words(draw, 3) for _ in range(4)),
            answer=draw.randrange(4),
        )
        for number in range(count)
    )


def _texts(count: int) -> list[str]:
    """Answered questions, so that a letter after a space is one token, as it is to the tokenizers of real models."""
    asked = questions(count, seed=0)
    return [f"{letter_prompt(item, 'anything')} {LETTERS[item.answer]}" for item in asked]


def _words(draw: random.Random, count: int) -> str:
    return " ".join("".join(draw.choices(SYLLABLES, k=draw.choice((1, 2, 2)))) for _ in range(count))
