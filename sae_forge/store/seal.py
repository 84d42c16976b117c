"""The seal: a first line of 64 blanks and tabs that spells the xxh3_64 of what follows.

Every reader of JSON, of HTML and of numbers by line passes over it, so it fits files whose keys others decide. It finds
accidents, not tampering. What has none, from an older version or another hand, is read as it is, unless its reader asks
for proof.
"""

import json
from typing import Any

import xxhash

BYTES = 65
"""Of the seal, with the end of its line."""


def sealed(content: bytes) -> bytes:
    """``content`` under its seal; for any format that passes over leading blanks."""
    # 64 blanks or tabs, a bit each and the highest first: blanks are what JSON and HTML may both begin with
    bits = f"{xxhash.xxh3_64_intdigest(content):064b}"
    return bits.replace("0", " ").replace("1", "\t").encode() + b"\n" + content


def readable_json(value: Any) -> bytes:
    """``value`` as JSON for people, the same bytes for the same value: sorted keys, no NaN, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def sealed_json(value: Any) -> bytes:
    """:func:`readable_json` under its seal."""
    return sealed(readable_json(value))


def is_sealed(content: bytes) -> bool:
    """Whether ``content`` begins with a seal.

    Raises:
        ValueError: it does, and the seal is not that of what follows; a seal is still one with one byte spoilt.
    """
    blanks = sum(byte in b" \t" for byte in content[:BYTES])
    if len(content) <= BYTES or blanks < BYTES - 2:  # the end of its line is none, and one may be spoilt
        return False
    if sealed(content[BYTES:]) != content:
        raise ValueError("it is damaged: its content is not what its seal says")
    return True
