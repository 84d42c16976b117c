"""Text in one form, so that two corpora differ in what they say and not in how they were typeset."""

import re
from collections.abc import Callable

PLAIN = str.maketrans({
    **dict.fromkeys("‘’‚‛′´`", "'"), **dict.fromkeys("“”„‟«»″", '"'), **dict.fromkeys("‐‑‒–—―−", "-"), "…": "...",
    **dict.fromkeys("\u00a0\u2007\u2009\u200a\u202f", " "), "\u00ad": "", "\u200b": "",
})  # fmt: skip
_STEPS = (
    (re.compile(r" @([-.,])@ "), r"\1"),  # WikiText's split numbers and hyphens
    (re.compile(r"(?m)^[ \t]*(=+|#{1,6})[ \t]+(.*?)[ \t]*\1?[ \t]*$"), r"\2"),
    (re.compile(r"</?[A-Za-z][^<>\n]*>"), ""),
    (re.compile(r"(?<!\w)[_*]+(?=\w)|(?<=\w)[_*]+(?!\w)"), ""),
    (re.compile(r"[ \t]*-{2,}[ \t]*|[ \t]+-[ \t]+"), " - "),
    (re.compile(r"[ \t]+([.,;:!?)\]])"), r"\1"),
    (re.compile(r"(?<=\S)[ \t]*\n[ \t]*(?=\S)"), " "),
    (re.compile(r"\s*\n\s*\n\s*"), "\n"),
    (re.compile(r"[ \t]+"), " "),
)


def plain_spelling(text: str) -> str:
    """The text with straight quotes, hyphens for dashes and plain spaces, each where it was."""
    return text.translate(PLAIN)


def normal(text: str) -> str:
    """Plain spelling, a paragraph a line, dashes between spaces, no mark-up of headings, emphasis, HTML or WikiText."""
    text = plain_spelling(re.sub(r"[ \t]*[—―][ \t]*", " - ", text))
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    return text.strip()


def form_of(normalize: bool) -> Callable[[str], str]:
    """What is made of a text before it is read."""
    return normal if normalize else str
