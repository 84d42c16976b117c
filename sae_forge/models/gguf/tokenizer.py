"""The tokenizer of a GGUF file, built from its metadata as tokenizers' own JSON.

Going through a converter and ``add_tokens`` takes minutes for 262,144 tokens; written out and parsed once, seconds.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from sae_forge.errors import UnsupportedModelError
from sae_forge.models.gguf.header import Header

_CONTROL, _USER_DEFINED = 3, 4
_MARK = "▁"

_GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def _cut_by(pattern: str) -> list[dict[str, Any]]:
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [cut, _BYTES | {"use_regex": False}]


_GPT2 = [_BYTES | {"use_regex": True}]
_WORDS: Mapping[str, list[dict[str, Any]]] = {
    "gpt-2": _GPT2,
    "smollm": [{"type": "Digits", "individual_digits": True}, *_GPT2],
    "llama-bpe": _cut_by(_GPT4 % "{1,3}"),
    "qwen2": _cut_by(_GPT4 % ""),
    "deepseek-r1-qwen": _cut_by(_GPT4 % ""),
}
"""How ``tokenizer.ggml.pre`` cuts text into words before bytes are merged."""
_OPENS = frozenset({"llama-bpe"})
"""Of these, llama.cpp puts BOS in front where the file does not say."""


def tokenizer_of(header: Header) -> PreTrainedTokenizerBase:
    """The file's tokenizer.

    Raises:
        UnsupportedModelError: it is of an unknown kind, or incomplete.
    """
    said = {key.removeprefix("tokenizer.ggml."): value for key, value in header.metadata.items()}
    tokens, kinds = said.get("tokens"), said.get("token_type")
    if not isinstance(tokens, list) or not isinstance(kinds, np.ndarray) or len(kinds) != len(tokens):
        raise UnsupportedModelError(f"{header.path} holds no tokenizer")
    ids = {role: said.get(f"{key}_token_id") for role, key in _ROLES.items()}
    if any(index is not None and (type(index) is not int or not 0 <= index < len(tokens)) for index in ids.values()):
        raise UnsupportedModelError(f"{header.path} is damaged: a token of its tokenizer is beyond the vocabulary")
    if len(said.setdefault("scores", np.zeros(len(tokens)))) != len(tokens):
        raise UnsupportedModelError(
            f"{header.path} is damaged: it scores {len(said['scores'])} of {len(tokens)} tokens"
        )
    parts, opens = _parts(header, said)
    names = {role: tokens[index] for role, index in ids.items() if index is not None}
    if said.get("add_bos_token", opens) and (bos := ids["bos_token"]) is not None:
        parts["post_processor"] = _opening(names["bos_token"], bos)
    prefix = said["model"] == "llama" and bool(said.get("add_space_prefix", True))
    parts["added_tokens"] = [
        _added(index, token, special=bool(kind == _CONTROL), marked=not prefix)
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_CONTROL, _USER_DEFINED)
    ]
    written = json.dumps({"version": "1.0", "truncation": None, "padding": None, **parts})
    try:
        made = Tokenizer.from_str(written)
    except Exception as error:  # tokenizers raises nothing narrower
        raise UnsupportedModelError(f"{header.path} holds no tokenizer that can be used: {error}") from error
    template = header.metadata.get("tokenizer.chat_template")
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, **names)


_ROLES = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}


def _parts(header: Header, said: Mapping[str, Any]) -> tuple[dict[str, Any], bool]:
    """The parts of tokenizers' JSON that its kind decides, and whether llama.cpp lets its texts open with BOS."""
    vocab = {token: index for index, token in enumerate(said["tokens"])}
    match said.get("model"), said.get("pre", "default"):
        case "gpt2", str() as words if words in _WORDS:
            return {
                "normalizer": {"type": "NFC"} if "qwen" in words else None,
                "pre_tokenizer": {"type": "Sequence", "pretokenizers": _WORDS[words]},
                "decoder": _BYTES | {"use_regex": True},
                "model": _bpe(vocab, [merge.split(" ", 1) for merge in said.get("merges", ())]) | {
                    "ignore_merges": words == "llama-bpe"
                },
            }, words in _OPENS  # fmt: skip
        case "llama", _:
            prefix = bool(said.get("add_space_prefix", True))
            marked = {"type": "Replace", "pattern": {"String": " "}, "content": _MARK}
            spaced = {"type": "Replace", "pattern": {"String": _MARK}, "content": " "}
            front = [{"type": "Prepend", "prepend": _MARK}] if prefix else []
            behind = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
            unknown = said.get("unknown_token_id")
            return {
                "normalizer": {"type": "Sequence", "normalizers": [*front, marked]},
                "pre_tokenizer": None,
                "decoder": {
                    "type": "Sequence",
                    "decoders": [spaced, {"type": "ByteFallback"}, {"type": "Fuse"}, *behind],
                },
                "model": _bpe(vocab, list(_merges(vocab, said["scores"]))) | {
                    "byte_fallback": True, "fuse_unk": True,
                    "unk_token": None if unknown is None else said["tokens"][unknown],
                },
            }, True  # fmt: skip
    raise UnsupportedModelError(
        f"{header.path} has a tokenizer of kind {said.get('model')!r}, {said.get('pre')!r}; of GGUF files these can be "
        f"read: llama, and gpt2 with {', '.join(_WORDS)}"
    )


def _bpe(vocab: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": vocab, "merges": merges}  # fmt: skip


def _merges(vocab: Mapping[str, int], scores: np.ndarray) -> Iterator[tuple[str, str]]:
    """SentencePiece joins the pair whose whole scores highest: every pair of pieces that makes a piece, best first."""
    merges = []
    for whole, index in vocab.items():
        for cut in range(1, len(whole)):
            left, right = whole[:cut], whole[cut:]
            if left in vocab and right in vocab:
                merges.append((float(scores[index]), len(left), len(right), left, right))
    merges.sort(key=lambda one: one[:3], reverse=True)
    return ((left, right) for *_, left, right in merges)


def _added(index: int, token: str, *, special: bool, marked: bool) -> dict[str, Any]:
    """A token that is found before anything is merged.

    Args:
        marked: One that the user defined may hold the mark of a space, so it is looked for in normalised text; not
            where a mark is put in front of every text, since tokenizers would put one in front of the token too.
    """
    return {"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
            "normalized": marked and not special, "special": special}  # fmt: skip


def _opening(token: str, index: int) -> dict[str, Any]:
    bos, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    return {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, bos, second],
            "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}  # fmt: skip
