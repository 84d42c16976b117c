"""Sampled text that depends on the seed and the model alone, and its repetition measured as defined."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import TEXT

from sae_forge.errors import DataError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.chat import prompt_ids
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.generation import Sampling, Written, draw, shortened, write
from sae_forge.tasks.engines.texts import degenerate, distinct, stutters

PROMPTS = ["The wizard", "Granite is a rock of quartz,", "River", TEXT[1], "It cools"]


# ---- repetition ---------------------------------------------------------------------------------


def test_distinct_counts_word_ngrams():
    assert distinct("a b a b a", 1) == 2 / 5
    assert distinct("a b a b a", 2) == 2 / 4
    assert distinct("a b a b a", 3) == 2 / 3
    assert distinct("a b", 3) == 1.0
    assert distinct("", 1) == 1.0


def test_a_stutter_is_ten_characters_three_times_apart():
    assert stutters("0123456789" * 3)
    assert not stutters("0123456789" * 2 + "012345678")
    assert not stutters("012345678-" + "012345678+" + "012345678*")  # nine in common
    assert stutters("x0123456789y0123456789z0123456789")
    assert not stutters("a" * 29)  # overlaps do not count
    assert stutters("a" * 30)
    assert not stutters("")


def brute_stutter(text: str) -> bool:
    """The definition, letter by letter: a substring of 10 to 49 characters that ``count`` finds three times."""
    return any(
        text.count(text[start : start + length]) >= 3
        for length in range(10, 50)
        for start in range(len(text) - length + 1)
    )


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["ab", "abcab", "0123456789", "01234", "b"]), max_size=16))
def test_stutter_is_the_definition_read_off_ten_characters(pieces: list[str]):
    text = "".join(pieces)
    assert stutters(text) == brute_stutter(text)


def test_degenerate_is_any_of_three():
    fine = "the owl of the north tower keeps a book and reads it by the light of a candle"
    assert not degenerate(fine)
    assert degenerate("no no no no no no")
    assert degenerate(fine + " " + "xx-" * 12)  # a stutter inside one word
    assert not degenerate("")
    assert Written("p", fine, 5).measures() | {"distinct_1": 0} == {
        "distinct_1": 0, "distinct_2": 1.0, "distinct_3": 1.0, "stutter": 0.0, "degenerate": 0.0,
    }  # fmt: skip


# ---- sampling -----------------------------------------------------------------------------------


def texts(lm: LanguageModel, prompts: list[str], batch_size: int = 3, **sampling) -> list[str]:
    plan = Sampling(**{"max_new_tokens": 12, "temperature": 1.0, "top_p": 0.95, "seed": 4, **sampling})
    return [written.text for written in write(lm, prompts, plan, batch_size=batch_size)]


@pytest.mark.slow
def test_batches_and_padding_change_no_text(tiny_model: LanguageModel):
    assert texts(tiny_model, PROMPTS, 1) == texts(tiny_model, PROMPTS, 2) == texts(tiny_model, PROMPTS, 64)


def test_the_seed_decides_and_torchs_own_randomness_does_not(tiny_llama: LanguageModel):
    torch.manual_seed(0)
    first = texts(tiny_llama, PROMPTS)
    torch.manual_seed(1)
    assert texts(tiny_llama, PROMPTS) == first
    assert texts(tiny_llama, PROMPTS, seed=5) != first


@pytest.mark.slow
def test_an_edit_that_changes_nothing_writes_the_same_text(tiny_model: LanguageModel):
    sae = TopKSAE(tiny_model.d_model, 96, 7, seed=5)
    base = texts(tiny_model, PROMPTS)
    with applied(tiny_model, sae, HookPoint(1), Intervention("scale", tuple(range(96)), NegativeScaling(1.0))):
        assert texts(tiny_model, PROMPTS) == base
    with applied(tiny_model, sae, HookPoint(1), Intervention("scale", tuple(range(96)), NegativeScaling(-9.0))) as log:
        assert texts(tiny_model, PROMPTS) != base
    assert log.edited > 0


def test_a_later_prompt_does_not_change_an_earlier_text(tiny_llama: LanguageModel):
    assert texts(tiny_llama, PROMPTS)[:2] == texts(tiny_llama, PROMPTS[:2])


@pytest.mark.slow
def test_temperature_zero_is_the_librarys_greedy_search(tiny_model: LanguageModel):
    mine = texts(tiny_model, PROMPTS, temperature=0)
    for prompt, text in zip(PROMPTS, mine, strict=True):
        ids = torch.tensor([tiny_model.tokenizer(prompt)["input_ids"]])
        theirs = tiny_model.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert text == tiny_model.tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)


def test_draws_follow_the_nucleus():
    """Quantiles spread evenly must give each token of the nucleus its share, and no other token anything."""
    probs = torch.tensor([0.05, 0.5, 0.15, 0.3])
    quantiles = (torch.arange(1000).double() + 0.5) / 1000
    logits = probs.log().repeat(1000, 1)
    drawn = torch.bincount(draw(logits, quantiles, Sampling(temperature=1.0, top_p=0.75)), minlength=4)
    assert drawn.tolist() == [0, 625, 0, 375]
    drawn = torch.bincount(draw(logits, quantiles, Sampling(temperature=1.0, top_p=1.0)), minlength=4)
    assert drawn.tolist() == pytest.approx([50, 500, 150, 300], abs=1)
    cold = torch.bincount(draw(logits, quantiles, Sampling(temperature=0.5, top_p=1.0)), minlength=4) / 1000
    torch.testing.assert_close(cold, probs**2 / (probs**2).sum(), atol=2e-3, rtol=0)


def test_a_nucleus_smaller_than_the_likeliest_token_still_holds_it():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    assert draw(logits, torch.tensor([0.999999]), Sampling(temperature=1.0, top_p=1e-6)).tolist() == [1]


def test_text_ends_at_eos_and_says_how_long_it_was(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch):
    plan = Sampling(max_new_tokens=6, temperature=0)
    prompt = torch.tensor([tiny_llama.tokenizer("The wizard")["input_ids"]])
    whole = tiny_llama.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False)
    ids = whole[0, prompt.shape[1] :].tolist()
    end = next(place for place in range(1, 6) if ids[place] not in ids[:place])
    monkeypatch.setattr(tiny_llama.model.generation_config, "eos_token_id", [2, ids[end]])
    short, other = write(tiny_llama, ["The wizard", TEXT[2]], plan, batch_size=2)
    assert (short.text, short.tokens) == (tiny_llama.tokenizer.decode(ids[:end]), end)
    assert other == write(tiny_llama, [TEXT[2]], plan, batch_size=1)[0]


def test_nothing_to_continue_is_no_text(tiny_llama: LanguageModel):
    assert write(tiny_llama, [], Sampling(), batch_size=4) == []


def test_what_does_not_fit_beside_a_prompt_is_not_written_and_the_prompt_is_read_whole(
    tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch
):
    """In a batch with a short text, which goes on; another beginning of the long one gives another text."""
    endless = dataclasses.replace(tiny_llama, tokenizer=copy.deepcopy(tiny_llama.tokenizer))
    endless.tokenizer.eos_token = None
    monkeypatch.setattr(endless.model.generation_config, "eos_token_id", None)
    plan, longest = Sampling(max_new_tokens=40, temperature=0), 128
    texts = ["quartz and mica " * 12, "An owl", "feldspar or mica " + "quartz and mica " * 11]
    full, short, other = write(endless, texts, plan, batch_size=3)
    read = len(prompt_ids(endless, texts[0]))
    assert longest - 40 < read < longest
    assert (full.tokens, short.tokens, shortened(endless, texts, 40)) == (longest - read, 40, 2)
    assert write(endless, texts[:1], plan, batch_size=1) == [full]
    assert other.text != full.text
    with pytest.raises(DataError, match=r"the prompt 'quartz and .* takes 128 together with what is written"):
        write(tiny_llama, ["quartz and mica " * 80], Sampling(max_new_tokens=5), batch_size=1)
