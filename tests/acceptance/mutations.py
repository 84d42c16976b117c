"""Ways to spoil a file: blindly, byte by byte, or knowing what it is, so that the spoilt one gets past the first check.

Each is a function of its input and of a ``random.Random`` seeded by the case's number, so any case can be had again.
"""

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Text that stands for a value in JSON as it is, valid or not."""

    text: str


VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30,
    0.5, -0.5, 1e308, 1e-320, "", " ", "0", "-1", "nan", "\x00", "a\nb", "x" * 5000, "é\u202e", "../../etc/passwd",
    "/etc/passwd", "shard-00001.safetensors", "F32", "I64", "bf16", "fp16", [], {}, [[]], [0] * 2000, {"a": {}},
    Raw("NaN"), Raw("-Infinity"), Raw("1e999"), Raw("-1e999"), Raw("-0"), Raw("-0.0"), Raw("9" * 400), Raw("9" * 5000),
    Raw('"\\ud800"'), Raw('"\\u0000"'), Raw("[" * 40 + "]" * 40), Raw("[" * 5000 + "]" * 5000), Raw('{"a":1,"a":2}'),
    Raw("01"), Raw("'x'"), Raw("undefined"), Raw("{}}"), Raw(""),
)  # fmt: skip
"""What a place in a JSON tree is replaced by."""


# ---- bytes --------------------------------------------------------------------------------------


def spoil_bytes(content: bytes, draw: Random) -> bytes:
    """One to four blind changes."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        draw.choice(_BLIND)(found, draw)
    return bytes(found)


def _place(found: bytearray, draw: Random) -> int:
    """Anywhere, but as often near the beginning, where a format says what it is."""
    return draw.randrange(min(len(found), draw.choice((16, 256, len(found) or 1))) or 1) if found else 0


def _flip(found: bytearray, draw: Random) -> None:
    if found:
        found[_place(found, draw)] ^= 1 << draw.randrange(8)


def _set(found: bytearray, draw: Random) -> None:
    if found:
        found[_place(found, draw)] = draw.choice((0, 0xFF, 0x7F, 0x80, *b'{}[]",:\n 9-'))


def _insert(found: bytearray, draw: Random) -> None:
    at = _place(found, draw)
    found[at:at] = draw.choice((draw.randbytes(draw.randrange(1, 64)), b"\0" * 8, b"[" * 200, b"9" * 30, b'"', b"{"))


def _cut(found: bytearray, draw: Random) -> None:
    at = _place(found, draw)
    del found[at : at + draw.choice((1, 2, 8, 100, len(found)))]


def _double(found: bytearray, draw: Random) -> None:
    at = _place(found, draw)
    found[at:at] = found[at : at + draw.choice((1, 8, 64, 1000))]


def _blank(found: bytearray, draw: Random) -> None:
    at = _place(found, draw)
    size = min(draw.choice((1, 8, 64)), len(found) - at)
    found[at : at + size] = bytes(draw.choice((0, 0xFF)) for _ in range(1)) * size


def _length(found: bytearray, draw: Random) -> None:
    """The first eight bytes, where safetensors says how long its header is."""
    found[:8] = struct.pack("<Q", draw.choice((0, 1, 2, 7, 2**16, 10**8, 10**8 + 1, 2**32, 2**63, 2**64 - 1)))


def _garbage(found: bytearray, draw: Random) -> None:
    found[:] = draw.choice(
        (b"", b"\0" * 9, draw.randbytes(200), b"\x80\x04N.", b"PK\x03\x04" + bytes(60), b"\xff\xfe{}")
    )


_BLIND: tuple[Callable[[bytearray, Random], None], ...] = (
    _flip, _flip, _flip, _set, _set, _insert, _cut, _double, _blank, _length, _garbage,
)  # fmt: skip


# ---- JSON ---------------------------------------------------------------------------------------


def spoil_tree(value: Any, draw: Random) -> bytes:
    """A JSON text of ``value`` with one or two places spoilt."""
    holder = {"root": json.loads(json.dumps(value))}
    for _ in range(draw.choice((1, 1, 1, 2))):
        places = list(_places(holder))
        parent, key = draw.choice(places)
        if not isinstance(parent[key], Raw):
            draw.choice(_KNOWING)(parent, key, draw)
    return _text(holder.get("root")).encode("utf-8", "surrogatepass")


def _places(value: Any) -> Any:
    """Every (container, key) of a tree."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in list(pairs):
        yield value, key
        yield from _places(child)


def _replace(parent: Any, key: Any, draw: Random) -> None:
    parent[key] = draw.choice(VALUES)


def _nudge(parent: Any, key: Any, draw: Random) -> None:
    """A value of the same type and almost right."""
    value = parent[key]
    if isinstance(value, bool):
        parent[key] = not value
    elif isinstance(value, int):
        parent[key] = draw.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), 0, 2**40))
    elif isinstance(value, float):
        parent[key] = draw.choice((-value, value * 1e300, int(value), str(value)))
    elif isinstance(value, str):
        parent[key] = draw.choice((value[:-1], value.upper(), value + "\0", value * 3, [value], value[::-1]))
    elif isinstance(value, list):
        parent[key] = draw.choice((value[:-1], value * 2, value[::-1], [value], dict(enumerate(value))))
    elif isinstance(value, dict):
        parent[key] = draw.choice((list(value), list(value.values()), {**value, "odd": 1}, [value]))


def _drop(parent: Any, key: Any, draw: Random) -> None:
    del draw
    if isinstance(parent, dict) and key != "root":
        del parent[key]


def _rename(parent: Any, key: Any, draw: Random) -> None:
    if isinstance(parent, dict) and key != "root":
        parent[draw.choice(("", "odd", str(key).upper(), f"{key} ", "__metadata__", "x" * 3000, "../x"))] = parent.pop(
            key
        )


def _twice(parent: Any, key: Any, draw: Random) -> None:
    """A key that appears twice, with two values."""
    if isinstance(parent[key], dict) and parent[key]:
        inside = draw.choice(list(parent[key]))
        text = _text(parent[key])
        parent[key] = Raw(f"{text[:-1]},{json.dumps(inside)}:{_text(draw.choice(VALUES))}}}")


_KNOWING: tuple[Callable[[Any, Any, Random], None], ...] = (_replace, _replace, _nudge, _nudge, _drop, _rename, _twice)


def _text(value: Any) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(str(key))}:{_text(child)}" for key, child in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    return json.dumps(value)


# ---- safetensors --------------------------------------------------------------------------------


def spoil_tensors(content: bytes, draw: Random) -> bytes:
    """A safetensors file whose header is spoilt as a tree, or whose numbers are."""
    length = struct.unpack_from("<Q", content)[0]
    header, data = json.loads(content[8 : 8 + length]), bytearray(content[8 + length :])
    choice = draw.randrange(8)
    if choice == 0:  # numbers that are none
        size = draw.choice((2, 4))
        at = draw.randrange(len(data) // size) * size
        data[at : at + size] = {2: b"\x80\x7f", 4: b"\x00\x00\xc0\x7f"}[size]
        return content[: 8 + length] + bytes(data)
    if choice == 1:  # a hole, or an end too far
        return content[: 8 + length] + draw.choice((bytes(data) + bytes(8), bytes(data[:-4]), b""))
    if choice == 2:  # many empty tensors
        header |= {
            f"t{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(draw.choice((3, 20, 500)))
        }
        text = json.dumps(header).encode()
    elif choice == 3:  # two names for the same bytes
        header["again"] = header[draw.choice([name for name in header if name != "__metadata__"])]
        text = json.dumps(header).encode()
    else:
        text = spoil_tree(header, draw)
    text += b" " * draw.choice((0, 0, 8 - len(text) % 8, 70_000))
    return struct.pack("<Q", len(text)) + text + bytes(data)


# ---- TOML ---------------------------------------------------------------------------------------

_TOML_VALUES = (
    "true", "0", "-1", "1", "2.5", "-0.0", "nan", "inf", "-inf", "1e400", "9" * 30, "9" * 5000, "0x" + "f" * 40,
    '""', '"x"', '"' + "x" * 20000 + '"', '"\\u0000"', '"a\\nb"', '"\\U0010FFFF"', "'\\'", '"""\n\n"""', '"1,2,3"',
    "[]", "[1]", "[1, 'x', true]", "[[]]", "[" * 40 + "]" * 40, "[" * 5000 + "]" * 5000, "{}", "{a = 1}",
    "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"../../etc/passwd"', '"/dev/zero"', "", "=", "[1,", '"open',
    '"auto"', '"all"', '"none"', '"bf16"',
)  # fmt: skip


def spoil_settings(lines: list[str], names: list[str], draw: Random) -> bytes:
    """A TOML file of ``name = value`` lines of which one or two are spoilt."""
    found = list(lines)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(found) + 1)
        name = draw.choice(
            (*names, draw.choice(("odd", "", "a.b.c", '"quoted key"', "__class__", "spelled", "é", "x" * 3000)))
        )
        line = f"{name} = {draw.choice(_TOML_VALUES)}"
        match draw.randrange(4):
            case 0:
                found[at:at] = [line]
            case 1:
                found[at:at] = [
                    draw.choice(("[table]", "[[tables]]", "]", "\0", "# \udc80", "[a.b]\n[a]\nb = 1", line, line))
                ]
            case _:
                found[at : at + 1] = [line]
    return "\n".join(found).encode("utf-8", "surrogateescape")
