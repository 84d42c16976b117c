"""Text of tokens as they come, in pieces that are never taken back and join to exactly the decoded text."""

import re
from dataclasses import dataclass, field

from sae_forge.models.loading import LanguageModel

UNFINISHED = "\ufffd"
"""What a decoder shows of a character whose bytes are not all there."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A token of one byte; a run of them is decoded together, and what it says can change until it ends."""
_TIDIED = 3
"""Characters at the end that a tokenizer which tidies spaces before punctuation may still change."""


@dataclass
class Pieces:
    """The text of one row of tokens, special ones left out; each call decodes the whole row once."""

    lm: LanguageModel
    _ids: list[int] = field(default_factory=list)
    _text: str = ""
    _given: str = ""

    def take(self, index: int, *, last: bool) -> str:
        """The text that is certain once this token is known; empty while a character is incomplete.

        Args:
            last: No more tokens come, so all that is left is given out.
        """
        self._ids.append(index)
        tokenizer = self.lm.tokenizer
        before, self._text = self._text, str(tokenizer.decode(self._ids, skip_special_tokens=True))
        certain = self._text
        if not last:
            if certain == before or _BYTE.fullmatch(str(tokenizer.convert_ids_to_tokens(index))):
                return ""  # a special token, which says nothing and ends no run of bytes, or a run of bytes
            certain = certain.rstrip(UNFINISHED)
            if tokenizer.clean_up_tokenization_spaces:
                certain = certain[: max(0, len(certain) - _TIDIED)]
        piece = certain[len(self._given) :] if certain.startswith(self._given) else ""
        self._given += piece
        return piece
