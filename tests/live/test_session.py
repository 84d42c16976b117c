"""A session writes what ``write`` writes, piece by piece, and tells what the edits saw and did."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import TEXT, make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import attached
from sae_forge.interventions.edit import Edit
from sae_forge.live.pieces import Pieces
from sae_forge.live.session import Session, Token
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.scale import scale
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.generation import Sampling, write

PROMPTS = ["The wizard", "Granite is a rock of quartz,", "Flüsse 🦉 日本", TEXT[1], "It cools"]
SAMPLING = Sampling(max_new_tokens=14, temperature=1.2, top_p=0.98, seed=4)


def edits_of(lm: LanguageModel) -> tuple[Edit, ...]:
    low, high = TopKSAE(lm.d_model, 96, 30, seed=5), TopKSAE(lm.d_model, 64, 20, seed=6)
    return (
        Edit(HookPoint(1), low, scale(tuple(range(0, 96, 9)), -4.0)),
        Edit(HookPoint(2), high, dsg((3, 5, 40), -6.0, tau=0.1)),
    )


def text_of(tokens: list[Token], number: int, *, written: bool = True) -> str:
    return "".join(token.piece for token in tokens if token.text == number and token.written == written)


# ---- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("edited", [False, True])
def test_session_writes_what_write_writes(tiny_model: LanguageModel, edited: bool):
    edits = edits_of(tiny_model) if edited else ()
    with attached(tiny_model, edits):
        expected = write(tiny_model, PROMPTS, SAMPLING, batch_size=2)
    with attached(tiny_model, edits) as log:
        tokens = list(Session(tiny_model, log).stream(PROMPTS, SAMPLING))
    for number, written in enumerate(expected):
        mine = [token for token in tokens if token.text == number and token.written]
        assert text_of(tokens, number) == written.text
        assert len(mine) == written.tokens
        assert text_of(tokens, number, written=False) == PROMPTS[number]
    assert any(token.edited for token in tokens) == edited


def test_one_prompt_and_none(tiny_llama: LanguageModel):
    (written,) = write(tiny_llama, PROMPTS[:1], SAMPLING, batch_size=1)
    tokens = list(Session(tiny_llama).stream(PROMPTS[:1], SAMPLING))
    assert text_of(tokens, 0) == written.text
    assert not any(token.fired or token.edited for token in tokens)
    assert list(Session(tiny_llama).stream([], SAMPLING)) == []


def test_text_that_ends_at_once_or_early_is_whole(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    first = [token.id for token in Session(tiny_llama).stream(PROMPTS[:1], SAMPLING) if token.written]
    for ends in (first[0], next(index for index in first if index != first[0])):
        with monkeypatch.context() as changed:
            changed.setattr(tiny_llama.model.generation_config, "eos_token_id", [2, ends])
            tokens = list(Session(tiny_llama).stream(PROMPTS, SAMPLING))
            for number, written in enumerate(write(tiny_llama, PROMPTS, SAMPLING, batch_size=5)):
                assert text_of(tokens, number) == written.text
                assert sum(token.written for token in tokens if token.text == number) == written.tokens
    assert sum(token.written for token in tokens if token.text == 0) == first.index(ends)


def test_tokens_come_while_the_model_writes(tiny_llama: LanguageModel):
    """The first written token is there before the last has been drawn: it takes two passes and no more."""
    passes: list[int] = []
    handle = tiny_llama.model.register_forward_hook(lambda *_: passes.append(1))
    try:
        stream = Session(tiny_llama).stream(PROMPTS[:1], SAMPLING)
        assert next(token for token in stream if token.written)
        assert len(passes) == 2
        stream.close()
    finally:
        handle.remove()


# ---- what was seen ------------------------------------------------------------------------------


def test_tokens_tell_which_latents_fired_and_where_the_edits_were(tiny_llama: LanguageModel):
    edits = edits_of(tiny_llama)
    with attached(tiny_llama, edits) as log:
        tokens = list(Session(tiny_llama, log).stream(PROMPTS, SAMPLING))
    assert log.edited == sum(token.edited for token in tokens)
    assert 0 < log.edited < log.tokens
    assert {fired.edit for token in tokens for fired in token.fired} == {0, 1}
    for number, prompt in enumerate(PROMPTS):
        mine = [token for token in tokens if token.text == number]
        ids = torch.tensor([[token.id for token in mine]])
        with torch.no_grad(), attached(tiny_llama, edits[:1]) as whole:
            tiny_llama.model(ids, attention_mask=torch.ones_like(ids))
        seen = whole.latest
        assert seen is not None
        for place, token in enumerate(mine[:-1]):
            expected = {
                latent: float(act) for latent, act in zip(seen.latents, seen.acts[0, place], strict=True) if act
            }
            shown = {fired.latent: fired.act for fired in token.fired if fired.edit == 0}
            assert shown == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert [token.id for token in mine[: len(bos_ids(tiny_llama))]] == [1]
        assert not mine[0].edited  # BOS is no text
        assert mine[0].piece == ""
        assert prompt == text_of(tokens, number, written=False)


# ---- pieces -------------------------------------------------------------------------------------


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2's: a mark for the space, bytes for what the vocabulary lacks, the first space taken off."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁owl", "s", "é", "▁▁"]
    tokenizer = Tokenizer(models.BPE({word: place for place, word in enumerate(words)}, [], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def tidying_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer()
    tokenizer.clean_up_tokenization_spaces = True
    # transformers 4 needs no more to tidy; 5 wants it said again
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    return tokenizer


TOKENIZERS = {"bytes": bytes_tokenizer(), "byte_level": make_tokenizer(), "tidying": tidying_tokenizer()}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_pieces_join_to_exactly_the_decoded_text(tiny_llama: LanguageModel, kind: str):
    tokenizer = TOKENIZERS[kind]
    lm = LanguageModel(tiny_llama.model, tokenizer, tiny_llama.family, "made up")
    euro = [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in "€é".encode()] if kind == "bytes" else []
    other = tokenizer("日本 🦉 isn't , said the owl .", add_special_tokens=False)["input_ids"]

    @settings(max_examples=150, deadline=None)
    @given(st.lists(st.one_of(st.integers(0, len(tokenizer) - 1), st.sampled_from([*euro, *other])), max_size=24))
    def check(ids: list[int]) -> None:
        pieces = Pieces(lm)
        shown = [pieces.take(index, last=place == len(ids) - 1) for place, index in enumerate(ids)]
        assert "".join(shown) == tokenizer.decode(ids, skip_special_tokens=True)

    check()
    mixed = other if kind != "bytes" else [4 + 0x40, 1, 4 + 0xC3, *euro, 1, *euro[:2], 1, *euro[2:], 260, euro[0]]
    assert " ," not in tokenizer.decode(mixed) or kind == "byte_level"
    check.hypothesis.inner_test(mixed)


def test_character_of_several_tokens_comes_with_its_last(tiny_llama: LanguageModel):
    pieces = Pieces(tiny_llama)
    ids = tiny_llama.tokenizer("a🦉b", add_special_tokens=False)["input_ids"]
    shown = [pieces.take(index, last=False) for index in ids]  # pyright: ignore
    assert shown == ["a", "", "", "", "🦉", "b"]
