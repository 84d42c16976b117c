"""The two language models of the built-in world: their tokenizer, their shape, their schooling and their exam."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from sae_forge.rng import generator, torch_seed
from sae_forge.store.files import publish_json

SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
PAD, BOS, EOS = 0, 1, 2
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Schooling:
    """Size of a model and how long it is taught."""

    d_model: int = 128
    n_layers: int = 4
    vocab_size: int = 3072
    steps: int = 1400
    context: int = 128
    packed_rows: int = 8
    single_rows: int = 24
    peak_lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.1
    misread: float = 0.03
    """Share of input tokens replaced by a random word, so that no single token is leant on too hard."""


SMALL = Schooling(d_model=32, n_layers=2, vocab_size=600, steps=20, context=64, packed_rows=4, single_rows=4, warmup=5)


# ---- tokenizer and architecture -----------------------------------------------------------------


def build_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE that reads any text, puts BOS first, and knows most words of the world as one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # a word is one token, first or not
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def build_llama(plan: Schooling, vocab_size: int) -> PreTrainedModel:
    """An untaught Llama with four heads."""
    return LlamaForCausalLM(LlamaConfig(**_shape(plan, vocab_size), tie_word_embeddings=True))


def build_gemma2(plan: Schooling, vocab_size: int) -> PreTrainedModel:
    """An untaught Gemma 2, its sliding window at half the context so that both kinds of layer differ."""
    head_dim = plan.d_model // 4
    gemma2 = Gemma2Config(
        **_shape(plan, vocab_size), head_dim=head_dim, query_pre_attn_scalar=head_dim, sliding_window=plan.context // 2
    )
    gemma2._attn_implementation = "eager"  # the only form that caps the attention logits
    return Gemma2ForCausalLM(gemma2)


BUILDERS: dict[str, Callable[[Schooling, int], PreTrainedModel]] = {
    "tiny-llama": build_llama,
    "tiny-gemma2": build_gemma2,
}


def _shape(plan: Schooling, vocab_size: int) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": plan.d_model,
        "intermediate_size": 4 * plan.d_model,
        "num_hidden_layers": plan.n_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


# ---- schooling ----------------------------------------------------------------------------------


def teach(
    model: PreTrainedModel, documents: list[list[int]], plan: Schooling, seed: int, say: Callable[[str], None]
) -> float:
    """Train ``model`` in place on rows of packed documents and on documents alone; the last loss in nats per token."""
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    plain = [weight for weight in model.parameters() if weight.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=plan.peak_lr, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _learning_rate(step, plan))
    lessons = zip(_packed(documents, plan, seed), _single(documents, plan, seed), strict=False)
    loss = math.nan
    model.train()
    for step, lesson in zip(range(plan.steps), lessons, strict=False):
        losses = [_lesson_loss(model, rows, plan, seed, step) for rows in lesson]
        total = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        loss = total.item()
        if step % 50 == 0 or step == plan.steps - 1:
            say(f"step {step:5d}  loss {loss:.4f}")
    return loss


def _learning_rate(step: int, plan: Schooling) -> float:
    """Linear warm-up, then a cosine down to one hundredth, as a share of the peak."""
    if step < plan.warmup:
        return (step + 1) / plan.warmup
    progress = (step - plan.warmup) / max(1, plan.steps - plan.warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def _lesson_loss(
    model: PreTrainedModel, rows: Int[Tensor, "batch seq"], plan: Schooling, seed: int, step: int
) -> Tensor:
    """Mean next-token loss over the real tokens of ``rows``, a few of whose inputs are misread."""
    real = rows != PAD
    rng = generator(seed, "misread", step)
    noise = torch.from_numpy(rng.random(tuple(rows.shape)) < plan.misread) & (rows > EOS)
    random_words = torch.from_numpy(rng.integers(EOS + 1, model.config.vocab_size, tuple(rows.shape)))
    read = torch.where(noise, random_words, rows)
    logits = model(input_ids=read).logits  # padding is on the right, where no real token looks: no mask is needed
    targets = torch.where(real, rows, IGNORED)[:, 1:]
    return cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def _shuffled(documents: list[list[int]], seed: int, purpose: str) -> Iterator[list[int]]:
    epoch = 0
    while True:
        for index in generator(seed, purpose, epoch).permutation(len(documents)):
            yield documents[index]
        epoch += 1


def _packed(documents: list[list[int]], plan: Schooling, seed: int) -> Iterator[Tensor]:
    """Full rows of documents joined by EOS; in every fourth row each document has its own BOS as well."""
    stream = _shuffled(documents, seed, "packed")
    rest: dict[bool, list[int]] = {False: [], True: []}
    while True:
        rows = np.empty((plan.packed_rows, plan.context), dtype=np.int64)
        for row in range(plan.packed_rows):
            every = row % 4 == 3
            tokens = rest[every]
            while len(tokens) < plan.context:
                tokens = [*tokens, *([BOS] if every else []), *next(stream), EOS]
            rows[row] = [BOS, *tokens[: plan.context - 1]]
            rest[every] = tokens[plan.context - 1 :]
        yield torch.from_numpy(rows)


def _single(documents: list[list[int]], plan: Schooling, seed: int) -> Iterator[Tensor]:
    """Documents alone after BOS, padded on the right; those of a batch are about equally long."""
    stream = _shuffled(documents, seed, "single")
    for block in count():
        rows = sorted(([BOS, *next(stream), EOS][: plan.context] for _ in range(8 * plan.single_rows)), key=len)
        for batch in generator(seed, "batches", block).permutation(8):
            yield _padded(rows[batch * plan.single_rows : (batch + 1) * plan.single_rows])


def _padded(rows: list[list[int]]) -> Int[Tensor, "batch seq"]:
    width = max(map(len, rows))
    return torch.tensor([row + [PAD] * (width - len(row)) for row in rows])


# ---- build and exam -----------------------------------------------------------------------------


def build_model(
    name: str, folder: Path, texts: list[str], plan: Schooling, seed: int, say: Callable[[str], None]
) -> None:
    """Teach the model called ``name`` and leave it in ``folder`` in half precision with its tokenizer."""
    tokenizer = build_tokenizer(texts, plan.vocab_size)
    documents = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    torch.manual_seed(torch_seed(seed, f"weights {name}"))
    model = BUILDERS[name](plan, len(tokenizer))
    say(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    teach(model, documents, plan, seed, say)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _name_portably(folder / "tokenizer_config.json")
    for file in folder.iterdir():
        file.chmod(0o644)


def _name_portably(path: Path) -> None:
    """Call the tokenizer by the class that every supported transformers knows, not by the newest one's own name."""
    settings = json.loads(path.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.pop("backend", None)
    publish_json(path, settings)


@torch.inference_mode()
def examine(folder: Path, questions: list[dict[str, Any]], batch_size: int = 64) -> list[bool]:
    """Whether the model reloaded from ``folder`` in float32 finds the right choice the likeliest to follow."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for start in range(0, len(questions), batch_size):
        items = questions[start : start + batch_size]
        prompts = [tokenizer(item["question"])["input_ids"] for item in items]
        endings = [
            [tokenizer(f" {choice}", add_special_tokens=False)["input_ids"] for choice in item["choices"]]
            for item in items
        ]
        rows = [prompt + ending for prompt, four in zip(prompts, endings, strict=True) for ending in four]
        token_ids = _padded(rows)
        log_probs = model(input_ids=token_ids, attention_mask=(token_ids != PAD).long()).logits.log_softmax(-1)
        for number, item in enumerate(items):
            begin = len(prompts[number])
            scores = []
            for place, ending in enumerate(endings[number]):
                row, at = 4 * number + place, torch.arange(begin, begin + len(ending))
                scores.append(log_probs[row, at - 1, torch.tensor(ending)].sum().item())
            right.append(int(np.argmax(scores)) == item["answer"])
    return right
