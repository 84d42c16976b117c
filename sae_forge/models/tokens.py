"""Facts about tokens: the ids of a text, which are real text, what a sequence starts with, how many a model takes."""

from collections.abc import Collection, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_forge.config.text import BosPolicy, Packing
from sae_forge.errors import DataError
from sae_forge.models.loading import LanguageModel
from sae_forge.models.rotary import boundary


def real_token_mask(
    token_ids: Int[Tensor, "batch seq"],
    attention_mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"],
    special_ids: Collection[int],
) -> Bool[Tensor, "batch seq"]:
    """True where a token is text: attended to, and not BOS, EOS, PAD or a chat-template token.

    Args:
        special_ids: The tokenizer's special ids, as ``LanguageModel.special_ids`` lists them.
    """
    special = torch.tensor(sorted(special_ids), dtype=token_ids.dtype, device=token_ids.device)
    return attention_mask.to(token_ids.device, torch.bool) & ~torch.isin(token_ids, special)


def embeddable(lm: LanguageModel, token_ids: Int[Tensor, "batch seq"], attended: Tensor) -> Int[Tensor, "batch seq"]:
    """The ids as the model can look them up: padding, which nothing attends to, becomes an id that it has a row for.

    Raises:
        DataError: a token of the text itself lies beyond the model's embeddings.
    """
    ids = torch.where(attended.to(token_ids.device, torch.bool), token_ids, lm.pad_id)
    if ids.numel() and (beyond := int(ids.max())) >= lm.rows:
        raise DataError(
            f"the text holds {lm.tokenizer.convert_ids_to_tokens(beyond)!r}, token {beyond} of a tokenizer of "
            f"{len(lm.tokenizer)}, but the embeddings of {lm.name} have {lm.rows} rows, 0 to {lm.rows - 1}; give the "
            "tokenizer that belongs to the model, or resize the model's embeddings to it"
        )
    return ids


def bos_ids(lm: LanguageModel) -> list[int]:
    """The tokens every text starts with: BOS, or nothing, as ``lm.opening`` has it."""
    return list(lm.opening.ids)


def packing(lm: LanguageModel, bos: BosPolicy) -> Packing:
    """Where BOS stands in packed text; ``auto`` puts it before each row of a model whose texts open with it."""
    if bos == "auto":
        return "row" if lm.opening.rows else "none"
    return bos


def max_input(lm: LanguageModel) -> int:
    """Longest sequence the model takes and computes the same beside any other, in tokens."""
    longest = int(getattr(lm.config, "max_position_embeddings", 0) or 2**31)
    return min(longest, boundary(lm.model) or longest)


def text_ids(lm: LanguageModel, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without BOS; what is spelled like a special token is text as all else."""
    if not texts:
        return []
    # verbose: else a text longer than the model announces indexing errors, though nobody reads it in one piece
    read = lm.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)
    return read["input_ids"]  # pyright: ignore[reportReturnType]


def control_strings(lm: LanguageModel) -> list[str]:
    """Special tokens that this tokenizer takes for control tokens even where they stand in a text."""
    read = text_ids(lm, lm.special_strings)
    return [text for text, ids in zip(lm.special_strings, read, strict=True) if not lm.special_ids.isdisjoint(ids)]


def room_after(lm: LanguageModel, before: Sequence[int], wanted: int) -> int:
    """New tokens, ``wanted`` of them at most, that the model takes after those before: nothing of these is ever cut.

    Raises:
        DataError: there is room for none.
    """
    longest = max_input(lm)
    if len(before) >= longest:
        begins = str(lm.tokenizer.decode(list(before[:16]), skip_special_tokens=True))
        raise DataError(
            f"the prompt {begins!r}… is {len(before)} tokens long, and {lm.name} takes {longest} together with what is "
            "written; shorten the prompt"
        )
    return min(wanted, longest - len(before))
