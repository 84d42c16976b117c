"""Turns of a model's chat template: what a user says, and how a model's answer to it is written."""

from collections.abc import Sequence

from sae_forge.errors import ConfigError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, max_input
from sae_forge.tasks.engines.continuations import Encoded, end_ids, split


def dialogue(lm: LanguageModel, said: str, answer: str | None = None) -> str:
    """A user's turn and the model's, as text: up to where the answer begins, or with the answer, its turn closed.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"a chat turn needs a chat template, and {lm.name} has none; ask in plain text")
    turns = [{"role": "user", "content": said}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return str(lm.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer is None))


def encode_answers(lm: LanguageModel, said: str, answers: Sequence[str]) -> Encoded:
    """Token ids of the answers after one user's turn, with what the template closes a turn with, and EOS."""

    def ids(text: str) -> list[int]:
        found, front = lm.tokenizer(text, add_special_tokens=False)["input_ids"], bos_ids(lm)
        return found if found[: len(front)] == front else [*front, *found]  # pyright: ignore

    end = end_ids(lm)
    wholes = [ids(dialogue(lm, said, answer)) for answer in answers]
    closed = [whole if tuple(whole[-1:]) == end else [*whole, *end] for whole in wholes]
    return split(ids(dialogue(lm, said)), closed, max_input(lm))
