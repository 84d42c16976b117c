"""Texts that begin alike against each alone: tokens run, scores, and what an edit sees and counts."""

from itertools import permutations
from unittest.mock import Mock
from weakref import WeakSet

import pytest
import torch

from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import applied
from sae_forge.interventions.gates.mean import MeanRate
from sae_forge.interventions.gates.window import WindowRate
from sae_forge.interventions.intervention import Intervention
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines import beginnings, continuations
from sae_forge.tasks.engines.beginnings import FEWEST, stretches, tokens
from sae_forge.tasks.engines.continuations import Encoded, rows_of, score
from sae_forge.tasks.engines.passes import forward

STEM = tuple(range(10, 25))
OPTIONS = ((30, 31, 32, 33, 34), (40, 41, 42, 43, 44, 45), (50, 51, 52, 53, 54, 55, 56), (60, 61, 62, 63))
END = (70, 71)


def orders(*targets: tuple[int, ...], options: int = 4) -> list[Encoded]:
    """A question in all orders of its options, as a model reads it."""
    chosen = permutations(OPTIONS[:options])
    return [Encoded((1, *STEM, *(token for one in order for token in one), *END), targets) for order in chosen]


LETTERS = orders((80,), (81,), (82,))
WORDS = orders((80, 81, 82), (80, 83), (84,), options=3)


@pytest.fixture(scope="module")
def edited(tiny_llama: LanguageModel) -> TopKSAE:
    return TopKSAE(tiny_llama.d_model, 64, 8, seed=3)


def test_of_24_orders_64_options_run_and_not_96() -> None:
    share = [sum(map(len, OPTIONS)) / 4 * count for count in (64, 96)]
    assert tokens(stretches(rows_of(LETTERS))) == 1 + len(STEM) + share[0] + 24 * len(END)
    assert sum(len(one.context) for one in LETTERS) == 24 * (1 + len(STEM) + len(END)) + share[1]


def test_what_is_alike_for_a_token_or_two_does_not_part_rows() -> None:
    few, enough = (tuple(range(count)) for count in (FEWEST - 1, FEWEST))
    for front, roots in ((few, 2), (enough, 1)):
        rows = rows_of([Encoded((*front, token, 9, 9, 9, 9), ((1,),)) for token in (20, 21)])
        assert len(stretches(rows)) == roots


@pytest.mark.parametrize("batch_size", [1, 7, 40])
@pytest.mark.parametrize("asked", [LETTERS, WORDS])
def test_scores_are_those_of_rows_of_their_own(
    tiny_llama: LanguageModel, asked: list[Encoded], batch_size: int
) -> None:
    finished = []
    shared = score(tiny_llama, asked, batch_size=batch_size, done=finished.append)
    apart = score(tiny_llama, asked, batch_size=4, share=False)
    assert sum(finished) == len(asked)
    for found, wanted in zip(shared, apart, strict=True):
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in wanted], abs=1e-5)
        assert [one.tokens for one in found] == [one.tokens for one in wanted]


def test_relative_scores_form_no_logits_but_the_targets(tiny_llama: LanguageModel) -> None:
    widths, head = [], tiny_llama.model.get_output_embeddings()
    handle = head.register_forward_hook(lambda module, args, output: widths.append(tuple(output.shape)))
    shared = score(tiny_llama, LETTERS, batch_size=8, relative=True)
    handle.remove()
    assert {shape[-1] for shape in widths} == {3}
    assert sum(shape[1] for shape in widths) == 24
    for found, full in zip(shared, score(tiny_llama, LETTERS, batch_size=8), strict=True):
        total = torch.tensor([one.logprob for one in full], dtype=torch.float64)
        wanted = (total - total.logsumexp(0)).tolist()
        assert [one.logprob for one in found] == pytest.approx(wanted, abs=1e-5)
    assert head.weight.shape[0] == head(torch.zeros(1, tiny_llama.d_model)).shape[-1]  # as it was


def test_memory_does_not_grow_with_the_texts(tiny_llama: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten times the questions no more caches live at once, nor larger ones, and no pass is wider."""
    live, peaks, widest, fewer = WeakSet(), [], [], orders((80,), (81,), options=3)

    def watched(lm, ids, mask, **how):
        output = forward(lm, ids, mask, **how)
        if output.past_key_values is not None:
            live.add(output.past_key_values)
        peaks[-1] = max(peaks[-1], sum(one.layers[0].keys.numel() for one in live if one.layers[0].keys is not None))
        widest[-1] = max(widest[-1], ids.numel())
        return output

    monkeypatch.setattr(beginnings, "forward", watched)
    for questions in (2, 20):
        every = [
            Encoded((1, 100 + number, *one.context[1:]), one.targets) for number in range(questions) for one in fewer
        ]
        peaks.append(0)
        widest.append(0)
        score(tiny_llama, every, batch_size=2)
    assert 0 < peaks[1] <= peaks[0]
    assert 0 < widest[1] <= widest[0]


def seen_by(lm: LanguageModel, sae: TopKSAE, gate, *, share: bool, control=None) -> tuple:
    intervention = Intervention("scale", tuple(range(24)), NegativeScaling(-3.0), gate=gate)
    with applied(lm, sae, HookPoint(1), intervention) as log:
        scores = score(lm, LETTERS, batch_size=5, share=share)
    assert 0 < log.edited < log.tokens and log.opened > 0
    counts = (log.tokens, log.edited, log.texts, log.opened)
    return [[one.logprob for one in each] for each in scores], counts, log.norms


def test_an_edit_sees_and_counts_what_it_does_in_rows_of_their_own(
    tiny_llama: LanguageModel, edited: TopKSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a gate that remembers; it is told how many texts have a token in common."""
    run = Mock(wraps=continuations.run)
    monkeypatch.setattr(continuations, "run", run)
    for gate in (WindowRate(0.55, 6), MeanRate(0.5, policy="streaming")):
        shared, counts, norms = seen_by(tiny_llama, edited, gate, share=True)
        # each context once: letters are one token, so rows of their own are the contexts, three times over
        apart, thrice, thrice_norms = seen_by(tiny_llama, edited, gate, share=False)
        assert thrice == tuple(3 * count for count in counts)
        assert norms == pytest.approx(thrice_norms / 3, rel=1e-5)
        for found, wanted in zip(shared, apart, strict=True):
            assert found == pytest.approx(wanted, abs=2e-5)
    assert run.call_count == 2


def test_a_gate_that_decides_on_the_prompt_is_shown_it_whole(
    tiny_llama: LanguageModel, edited: TopKSAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = MeanRate(0.5, policy="prompt")
    wanted = seen_by(tiny_llama, edited, gate, share=False)[0]
    monkeypatch.setattr(continuations, "run", None)
    for found, own in zip(seen_by(tiny_llama, edited, gate, share=True)[0], wanted, strict=True):
        assert found == pytest.approx(own, abs=2e-5)


def test_one_tape_serves_edits_that_share_and_edits_that_must_not(tiny_llama: LanguageModel, edited: TopKSAE) -> None:
    tape = Tape(tiny_llama, HookPoint(1))
    with tape.running():
        score(tiny_llama, LETTERS, batch_size=5)
    for gate in (WindowRate(0.55, 6), MeanRate(0.5, policy="prompt")):
        in_full = seen_by(tiny_llama, edited, gate, share=True)
        for _ in range(2):  # recorded where it is the first of its kind, then played
            intervention = Intervention("scale", tuple(range(24)), NegativeScaling(-3.0), gate=gate)
            with applied(tiny_llama, edited, HookPoint(1), intervention), tape.running():
                played = score(tiny_llama, LETTERS, batch_size=5)
            assert [[one.logprob for one in each] for each in played] == in_full[0]
