"""Answers to one turn of a user, in the words of the model's chat template."""

from collections.abc import Sequence

from sae_forge.errors import ConfigError
from sae_forge.models.chat import Rendered, prompt_ids, render
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import max_input
from sae_forge.tasks.engines.continuations import Encoded, end_ids, split


def turn(lm: LanguageModel, said: str) -> Rendered:
    """What a user says, up to where the model's answer begins.

    Raises:
        ConfigError: the tokenizer has no chat template.
        DataError: it has one that refuses this.
    """
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"a chat turn needs a chat template, and {lm.name} has none; ask in plain text")
    return render(lm, [{"role": "user", "content": said}], to_go_on=True)


def encode_answers(lm: LanguageModel, said: str, answers: Sequence[str]) -> Encoded:
    """Token ids of the answers after one user's turn, with what the template closes a turn with, and EOS."""
    asked, wholes = turn(lm, said), []
    for answer in answers:
        turns = [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        whole = prompt_ids(lm, render(lm, turns, to_go_on=False))
        wholes.append(whole if tuple(whole[-1:]) == end_ids(lm) else [*whole, *end_ids(lm)])
    return split(prompt_ids(lm, asked), wholes, max_input(lm))
