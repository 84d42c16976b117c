"""A small tokenizer made on the spot, for tests and benchmarks; nothing is downloaded."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXT = (
    "The wizard of the north tower keeps a silver owl and a book of weather.",
    "Granite is a rock of quartz, feldspar and mica; it cools slowly, deep below the ground.",
    "The river Arn runs past seven towns: Bel, Corvo, Dun, Esk, Fal, Gorm and Hythe!",
)
"""What the tiny tokenizer is trained on, and a ready corpus for tests that need one."""


def make_tokenizer(texts: Iterable[str] = TEXT, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE with BOS, EOS, PAD and one chat-template token; it can encode any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<pad>", "<s>", "</s>", "<turn>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<turn>"],
    )
