"""Gates: their statistics against plain loops, and that padding, batches and caches move none of them."""

import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import TEXT
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.interventions.calibration import calibrated, rate_percentile, text_statistic
from sae_forge.interventions.clamping import SetTo
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.gates.all import AllFire
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.cusum import Cusum, Excess
from sae_forge.interventions.gates.gate import GateKind
from sae_forge.interventions.gates.max import Peak, Strongest
from sae_forge.interventions.gates.mean import Mean, MeanRate
from sae_forge.interventions.gates.none import Always
from sae_forge.interventions.gates.sequence import SequenceGate
from sae_forge.interventions.gates.table import GATES as GATES_OF_FLAGS
from sae_forge.interventions.gates.table import gate_of
from sae_forge.interventions.gates.window import Window, WindowRate
from sae_forge.interventions.protocol import Gate, State
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.project import project
from sae_forge.methods.edits.refusal_clamp import refusal_clamp
from sae_forge.methods.edits.steer import steer
from sae_forge.methods.edits.zero import zero
from sae_forge.models.caches import select_rows
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask
from sae_forge.sae.topk import TopKSAE
from sae_forge.settings import parse_value
from sae_forge.study.settings import Catalogue, eval_config

GATES: tuple[SequenceGate, ...] = (MeanRate(0.3), WindowRate(0.3, 5), Cusum(1.2, 0.25), Peak(0.8))
NAMES = {Mean: "MeanRate", Window: "WindowRate", Excess: "Cusum", Strongest: "Peak"}
TOKEN_GATES = (Always(), AnyFires(), AnyFires(0.3), AllFire(), AllFire(0.3))


def name_of(gate: Gate) -> str:
    return NAMES[type(gate.statistic)] if isinstance(gate, SequenceGate) else type(gate).__name__


def text(seed: int, length: int = 14, latents: int = 3) -> tuple[Tensor, Tensor]:
    """Acts and real tokens of one text; whole numbers of sixteenths, so that float32 holds them exactly."""
    drawn = np.random.default_rng(seed)
    busy = drawn.random((1, length, 1)) < drawn.random()  # from silent texts to dense ones, either side of a threshold
    acts = drawn.integers(-24, 24, (1, length, latents)).clip(0) / 16 * busy
    real = drawn.random((1, length)) < 0.7
    return torch.from_numpy(acts).float(), torch.from_numpy(real)


def slow_statistics(gate: SequenceGate, acts: Tensor, real: Tensor) -> list[float]:
    """The running statistic of one text, by its definition."""
    seen: list[float] = []
    statistics, total, current = [], 0.0, 0.0
    for token, is_real in zip(acts[0].tolist(), real[0].tolist(), strict=True):
        hit = float(any(act > 0 for act in token))
        if is_real:
            seen.append(max(token) if gate.statistic == Strongest() else hit)
            total = max(0.0, total + hit - gate.statistic.drift) if isinstance(gate.statistic, Excess) else 0.0
        match gate.statistic:
            case Mean():
                current = sum(seen) / max(len(seen), 1)
            case Window(width=width):
                current = sum(seen[-width:]) / width
            case Excess():
                current = total
            case Strongest():
                current = max(seen, default=0.0)
        statistics.append(current)
    return statistics


def slow_open(gate: SequenceGate, acts: Tensor, real: Tensor) -> list[bool]:
    statistics = slow_statistics(gate, acts, real)
    if gate.policy == "prompt":
        of_text = statistics[-1] if gate.statistic == Mean() else max(statistics)
        statistics = [of_text] * len(statistics)
    return [
        any(act > 0 for act in token) and statistic > gate.limit
        for token, statistic in zip(acts[0].tolist(), statistics, strict=True)
    ]


def in_parts(gate: Gate, acts: Tensor, real: Tensor, cuts: list[int]) -> Tensor:
    """What the gate says of a text that comes in several calls."""
    state, opened = None, []
    edges = [0, *sorted({cut % acts.shape[1] for cut in cuts} - {0}), acts.shape[1]]
    for start, stop in pairwise(edges):
        part, state = gate.decide(acts[:, start:stop], real[:, start:stop], state)
        opened.append(part)
    return torch.cat(opened, dim=1)


# ---- statistics ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["prompt", "streaming"])
@pytest.mark.parametrize("gate", GATES, ids=name_of)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_a_gate_is_open_where_its_definition_says(gate, policy, seed):
    acts, real = text(seed)
    gate = replace(gate, policy=policy)
    opened, _ = gate.decide(acts, real, None)
    assert opened[0].tolist() == slow_open(gate, acts, real)
    hits = gate.inside.decide(acts, real, None)[0].double()
    running, _ = gate.statistic.running(gate.statistic.signal(acts, hits), real, None)
    torch.testing.assert_close(running[0], torch.tensor(slow_statistics(gate, acts, real), dtype=torch.float64))


@pytest.mark.parametrize("gate", (*GATES, *TOKEN_GATES), ids=str)
@given(seed=st.integers(0, 2**32), cuts=st.lists(st.integers(0, 99), max_size=6))
@settings(max_examples=25, deadline=None)
def test_cutting_a_text_into_calls_moves_no_streaming_gate(gate, seed, cuts):
    acts, real = text(seed)
    gate = replace(gate, policy="streaming") if isinstance(gate, SequenceGate) else gate
    whole, _ = gate.decide(acts, real, None)
    assert torch.equal(in_parts(gate, acts, real, cuts), whole)


@pytest.mark.parametrize("gate", GATES, ids=name_of)
def test_under_prompt_the_first_call_decides_for_all_that_follow(gate):
    gate = replace(gate, policy="prompt")
    quiet, loud, real = torch.zeros(1, 4, 3), torch.full((1, 4, 3), 2.0), torch.ones(1, 4, dtype=torch.bool)
    opened = in_parts(gate, torch.cat([quiet, loud], 1), torch.cat([real, real], 1), [4])
    assert not opened.any()
    opened = in_parts(gate, torch.cat([loud, quiet, loud], 1), torch.cat([real, real, real], 1), [4, 8])
    assert opened[0].tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize("policy", ["prompt", "streaming", "per_token"])
@pytest.mark.parametrize("gate", GATES, ids=name_of)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_batching_move_no_gate(gate, policy, side):
    gate = replace(gate, policy=policy)
    texts = [text(seed, 6 + seed) for seed in range(12)]
    width = 20
    acts, real = torch.full((12, width, 3), float("nan")), torch.zeros(12, width, dtype=torch.bool)
    acts[..., 0] = 9.0  # padding that fires counts for nothing
    places = []
    for row, (its_acts, its_real) in enumerate(texts):
        length = its_acts.shape[1]
        place = slice(width - length, width) if side == "left" else slice(0, length)
        acts[row, place], real[row, place] = its_acts[0], its_real[0]
        places.append(place)
    together, state = gate.decide(acts, real, None)
    for row, (its_acts, its_real) in enumerate(texts):
        alone, its_state = gate.decide(its_acts, its_real, None)
        assert torch.equal(together[row, places[row]], alone[0])
        assert all(torch.equal(part[row], its[0]) for part, its in zip(state, its_state, strict=True))


def test_the_statistic_of_a_token_alone_flips():
    acts = torch.tensor([[[0.0], [2.0], [0.0], [2.0]]])
    real = torch.ones(1, 4, dtype=torch.bool)
    for gate in (MeanRate(0.9), WindowRate(0.9, 5), Cusum(0.5, 0.25), Peak(1.5)):
        opened, state = replace(gate, policy="per_token").decide(acts, real, None)
        assert opened[0].tolist() == [False, True, False, True]
        assert state == ()


def test_the_threshold_itself_keeps_the_gate_shut():
    acts, real = torch.tensor([[[2.0], [0.0]]]), torch.ones(1, 2, dtype=torch.bool)
    for policy in ("prompt", "streaming"):
        assert not MeanRate(0.5, policy="prompt").decide(acts, real, None)[0].any()
        assert MeanRate(0.499, policy=policy).decide(acts, real, None)[0][0].tolist() == [True, False]
    assert not Peak(2.0).decide(acts, real, None)[0].any()
    assert not MeanRate(1.0, policy="streaming").decide(acts, real, None)[0].any()


def test_harmless_text_in_front_hides_a_question_from_the_mean_and_from_nothing_else():
    """The known attack: 40 quiet tokens, then 10 that fire on 6."""
    acts = torch.zeros(1, 50, 1)
    acts[0, [40, 41, 43, 44, 46, 48], 0] = 1.0
    real = torch.ones(1, 50, dtype=torch.bool)
    assert not MeanRate(0.3).decide(acts, real, None)[0].any()
    for gate in (WindowRate(0.3, 8), Cusum(1.5, 0.3), Peak(0.5)):
        assert gate.decide(acts, real, None)[0].any()
        assert not gate.decide(acts[:, :40], real[:, :40], None)[0].any()


def test_gates_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="finite"):
        MeanRate(float("nan"))
    with pytest.raises(ConfigError, match="width=0"):
        WindowRate(0.5, 0)
    with pytest.raises(ConfigError, match="drift=1"):
        Cusum(1.0, 1.0)


# ---- calibration --------------------------------------------------------------------------------


def test_a_calibrated_gate_has_its_own_percentile_of_retain_texts():
    traces = [text(seed, 10 + seed)[0][0] for seed in range(30)]
    for gate in GATES:
        found = []
        for trace in traces:
            running = slow_statistics(gate, trace[None], torch.ones(1, len(trace), dtype=torch.bool))
            found.append(running[-1] if gate.statistic == Mean() else max(running))
            assert text_statistic(gate, trace) == pytest.approx(found[-1])
        made = calibrated(gate, traces, 90)
        assert made.limit == pytest.approx(np.percentile(found, 90))
        assert replace(made, limit=gate.limit) == gate
        opened = [bool(replace(made, policy="prompt").decide(t[None], _all(t), None)[0].any()) for t in traces]
        assert sum(opened) <= 3
    fires = [trace > 0 for trace in traces]
    assert calibrated(MeanRate(0.0), fires, 95).limit == calibrated(MeanRate(0.0), traces, 95).limit


def _all(trace: Tensor) -> Tensor:
    return torch.ones(1, len(trace), dtype=torch.bool)


def test_a_threshold_from_rates_is_the_highest_of_any_retain_corpus():
    rates = {"wiki": tuple(i / 100 for i in range(101)), "stories": (0.2, 0.4), "none": ()}
    assert rate_percentile(rates, 95) == pytest.approx(0.95)
    assert rate_percentile({"wiki": (0.0, 0.0), "stories": (0.2, 0.4)}, 50) == pytest.approx(0.3)
    assert rate_percentile({"wiki": (0.0, 0.0)}, 50) == 0.0


def test_a_gate_cannot_be_calibrated_on_nothing():
    with pytest.raises(ConfigError, match="collect retain text"):
        calibrated(MeanRate(0.0), [], 95)
    for rates in ({}, {"wiki": ()}):
        with pytest.raises(ConfigError, match="collect retain text"):
            rate_percentile(rates, 95)
    with pytest.raises(ConfigError, match="percentile=101"):
        calibrated(MeanRate(0.0), [torch.zeros(3, 2)], 101)
    assert calibrated(Peak(3.0), [torch.zeros(0, 2)], 95).limit == 0.0


# ---- the table ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Longest:
    """A gate of one's own: the longest run of hits so far, in real tokens."""

    def signal(self, acts: Tensor, hits: Tensor) -> Tensor:
        return hits

    def running(self, signal: Tensor, real: Tensor, state: State | None) -> tuple[Tensor, State]:
        run, best = state or (signal.new_zeros(len(signal)), signal.new_zeros(len(signal)))
        seen = []
        for hit, is_real in zip(signal.T, real.T, strict=True):
            run = torch.where(is_real, (run + 1) * hit, run)
            best = torch.maximum(best, run)
            seen.append(best)
        return torch.stack(seen, 1), (run, best)

    def alone(self, signal: Tensor) -> Tensor:
        return signal

    def overall(self, running: Tensor) -> Tensor:
        return running[:, -1]


RUNS = GateKind(
    name="runs",
    words="after a long run of hits",
    reads_retain=True,
    make=lambda config, calibrate: calibrate(SequenceGate(Longest(), 0.0, AnyFires(config.theta), config.gate_policy)),
)


def flags(gate: str, **changes: Any) -> SimpleNamespace:
    given = {"gate": gate, "theta": 0.25, "gate_policy": "streaming", "gate_percentile": 90.0, "gate_window": 4}
    return SimpleNamespace(**given | changes)


def test_a_gate_of_ones_own_is_calibrated_and_runs_like_the_built_in_ones():
    traces = {"wiki": [text(seed, 12)[0][0] for seed in range(30)], "none": [torch.zeros(5, 3)]}
    gate = gate_of(flags("runs"), lambda: traces, (*GATES_OF_FLAGS, RUNS))
    assert isinstance(gate, SequenceGate) and gate.inside == AnyFires(0.25)
    runs = [max(map(len, "".join("x" if row.max() > 0.25 else " " for row in trace).split()), default=0)
            for trace in traces["wiki"]]  # fmt: skip
    assert gate.limit == np.percentile(runs, 90) > 0
    acts, real = text(3, 16)
    assert torch.equal(in_parts(gate, acts, real, [2, 5, 11]), gate.decide(acts, real, None)[0])


def test_a_gate_of_ones_own_is_named_on_the_command_line_beside_those_that_ship():
    kind = eval_config(Catalogue(gates=(*GATES_OF_FLAGS, RUNS)))
    assert parse_value(kind, "gate", "runs") == "runs"
    gate = gate_of(kind(gate="runs"), lambda: {"wiki": [text(1)[0][0]]})
    assert isinstance(gate, SequenceGate)
    assert gate.statistic == Longest()
    with pytest.raises(ConfigError, match="--gate runs: input should be own, none, any"):
        parse_value(eval_config(), "gate", "runs")
    with pytest.raises(ConfigError, match="never open it"):
        kind(gate="cusum", gate_policy="per_token")


def test_every_gate_is_made_from_its_flags():
    traces = {"wiki": [text(seed, 12)[0][0] for seed in range(20)], "other": [text(seed, 9)[0][0] for seed in range(9)]}
    made = {kind.name: gate_of(flags(kind.name), lambda: traces) for kind in GATES_OF_FLAGS}
    assert made["own"] is None
    assert (made["none"], made["any"], made["all"]) == (Always(), AnyFires(0.25), AllFire(0.25))
    for name, statistic in {"mean": Mean(), "window": Window(4), "max": Strongest()}.items():
        bare = SequenceGate(statistic, 0.0, AnyFires(0.25), "streaming")
        assert made[name] == max((calibrated(bare, each, 90.0) for each in traces.values()), key=lambda one: one.limit)
    cusum = made["cusum"]
    assert isinstance(cusum, SequenceGate) and cusum.statistic == Excess(made["mean"].limit)
    always_firing = gate_of(flags("cusum"), lambda: {"wiki": [torch.ones(6, 3)]})
    assert always_firing.statistic == Excess(0.99), "a drift of 1 would never gather evidence"


def test_only_what_is_calibrated_reads_retain_text():
    def unread():
        raise AssertionError("retain text was read")

    for kind in GATES_OF_FLAGS:
        if kind.reads_retain:
            with pytest.raises(AssertionError, match="was read"):
                gate_of(flags(kind.name), unread)
        else:
            gate_of(flags(kind.name), unread)


def test_a_gate_that_is_not_there_names_those_that_are():
    with pytest.raises(ConfigError, match=r"--gate door: choose one of own, none, any, all, mean.*runs"):
        gate_of(flags("door"), dict, (*GATES_OF_FLAGS, RUNS))


def test_a_sum_over_a_text_is_refused_token_by_token():
    told = {kind.name: kind.refused(flags(kind.name, gate_policy="per_token")) for kind in GATES_OF_FLAGS}
    assert [name for name, error in told.items() if error] == ["cusum"]
    assert not any(kind.refused(flags(kind.name)) for kind in GATES_OF_FLAGS)


# ---- on a live model ----------------------------------------------------------------------------

POINT = HookPoint(1)
PROMPTS = (TEXT[0][:24], "Granite", TEXT[2][:57], "mica, mica!")
S = tuple(range(0, 60, 4))
GREEDY = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    return TopKSAE(56, 113, 7, seed=3).requires_grad_(False)


def tokens(lm: LanguageModel, side: str = "left") -> tuple[Tensor, Tensor]:
    batch = lm.tokenizer(list(PROMPTS), padding=True, padding_side=side, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def middling(lm: LanguageModel, sae: TopKSAE, gate: SequenceGate) -> SequenceGate:
    """The gate with a threshold that some of the prompts exceed and some do not."""
    token_ids, mask = tokens(lm)
    x, real = capture(lm, [POINT], token_ids, mask)[POINT], real_token_mask(token_ids, mask, lm.special_ids)
    traces = [sae.latent_acts(row, torch.tensor(S))[kept] for row, kept in zip(x, real, strict=True)]
    return calibrated(gate, traces, 40)


EDITS = {
    "dsg": dsg(S, -4.0),
    "steer": steer(S, 3.0),
    "refusal_clamp": refusal_clamp(S, 90, -20.0, 0.0),
    "project": project(S),
    "random": Intervention("random", S, RandomDirections(SetTo(-4.0), 1)),
    "places": Intervention("random", S, RandomDirections(SetTo(-4.0), 1, "places")),
}
PAIRS = [("dsg", gate) for gate in GATES] + [(name, GATES[0]) for name in EDITS if name != "dsg"]
PAIRS += [("dsg", AnyFires()), ("steer", Always())]


@pytest.mark.slow
@pytest.mark.parametrize(("method", "gate"), PAIRS, ids=lambda part: part if isinstance(part, str) else name_of(part))
def test_cached_generation_equals_recomputing_everything_under_streaming(tiny_model, sae, method, gate):
    if isinstance(gate, SequenceGate):
        gate = replace(middling(tiny_model, sae, gate), policy="streaming")
    intervention = replace(EDITS[method], gate=gate)
    token_ids, mask = tokens(tiny_model)
    with torch.no_grad(), applied(tiny_model, sae, POINT, intervention) as log:
        cached = tiny_model.model.generate(token_ids, attention_mask=mask, **GREEDY)
        seen = replace(log)
        full = tiny_model.model.generate(token_ids, attention_mask=mask, **GREEDY, use_cache=False)
    assert torch.equal(cached, full)
    assert seen.edited > 0
    assert seen.texts == len(PROMPTS)
    with torch.no_grad(), applied(tiny_model, sae, POINT, intervention) as once:
        grown = torch.cat([mask, mask.new_ones(len(mask), 11)], 1)
        positions = (grown.cumsum(-1) - 1).clamp(min=0)
        tiny_model.model(cached[:, :-1], attention_mask=grown, position_ids=positions)
    assert (once.tokens, once.edited, once.texts, once.opened) == (seen.tokens, seen.edited, seen.texts, seen.opened)
    assert once.norms == pytest.approx(seen.norms, rel=1e-4)


@dataclass(frozen=True)
class Held:
    """A token gate in the rows named, shut in the others: what a prompt's decision amounts to."""

    rows: tuple[bool, ...]

    def decide(self, acts: Tensor, real: Tensor, state: State | None) -> tuple[Tensor, State]:
        return AnyFires().decide(acts, real, state)[0] & torch.tensor(self.rows)[:, None], ()


@pytest.mark.slow
@pytest.mark.parametrize("gate", GATES, ids=name_of)
def test_under_prompt_generation_holds_what_the_prompt_decided(tiny_model, sae, gate):
    gate = replace(middling(tiny_model, sae, gate), policy="prompt")
    token_ids, mask = tokens(tiny_model)
    x, real = (
        capture(tiny_model, [POINT], token_ids, mask)[POINT],
        real_token_mask(token_ids, mask, tiny_model.special_ids),
    )
    decided = gate.decide(sae.latent_acts(x, torch.tensor(S)), real, None)[1][0]
    assert decided.any()
    assert not decided.all()
    with torch.no_grad():
        with applied(tiny_model, sae, POINT, replace(dsg(S, -2.0), gate=gate)) as log:
            cached = tiny_model.model.generate(token_ids, attention_mask=mask, **GREEDY)
        held = replace(dsg(S, -2.0), gate=Held(tuple(decided.tolist())))
        with applied(tiny_model, sae, POINT, held):
            full = tiny_model.model.generate(token_ids, attention_mask=mask, **GREEDY, use_cache=False)
        plain = tiny_model.model.generate(token_ids, attention_mask=mask, **GREEDY)
    assert torch.equal(cached, full)
    assert torch.equal(cached[~decided], plain[~decided])
    assert (log.opened, log.texts) == (int(decided.sum()), len(PROMPTS))
    assert log.opened_share == log.opened / log.texts


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["prompt", "streaming"])
@pytest.mark.parametrize("gate", GATES, ids=name_of)
def test_a_text_alone_and_in_a_batch_padded_on_either_side_is_gated_alike(tiny_model, sae, gate, policy):
    gate = replace(middling(tiny_model, sae, gate), policy=policy)
    intervention = replace(dsg(S, -2.0), gate=gate)
    found = {}
    for side in ("left", "right"):
        token_ids, mask = tokens(tiny_model, side)
        with applied(tiny_model, sae, POINT, intervention):
            x = capture(tiny_model, [POINT], token_ids, mask)[POINT]
        plain = capture(tiny_model, [POINT], token_ids, mask)[POINT]
        found[side] = [(x[row] != plain[row]).any(-1)[kept].tolist() for row, kept in enumerate(mask.bool())]
    token_ids, mask = tokens(tiny_model)
    for row, kept in enumerate(mask.bool()):
        alone_ids, alone_mask = token_ids[row][kept][None], mask[row][kept][None]
        with applied(tiny_model, sae, POINT, intervention):
            x = capture(tiny_model, [POINT], alone_ids, alone_mask)[POINT]
        plain = capture(tiny_model, [POINT], alone_ids, alone_mask)[POINT]
        alone = (x != plain)[0].any(-1).tolist()
        assert alone == found["left"][row] == found["right"][row]
    assert any(any(row) for row in found["left"])


@pytest.mark.parametrize("gate", GATES, ids=name_of)
def test_continuations_that_share_a_context_go_on_from_its_state(tiny_model, sae, gate):
    """As questions are scored: the context once with a cache, then copies of chosen rows of it with each option."""
    gate = replace(middling(tiny_model, sae, gate), policy="streaming")
    intervention = replace(dsg(S, -2.0), gate=gate)
    token_ids, mask = tokens(tiny_model)
    rows = torch.tensor([2, 0, 0, 3, 2])
    rest = torch.randint(4, 320, (5, 6), generator=torch.Generator().manual_seed(0))
    whole_mask = torch.cat([mask[rows], torch.ones_like(rest)], 1)
    positions = (whole_mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad(), applied(tiny_model, sae, POINT, intervention) as log:
        first = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = tiny_model.model(token_ids, attention_mask=mask, position_ids=first, use_cache=True).past_key_values
        kept = copy.deepcopy(cache)
        for _ in range(2):
            select_rows(cache, rows)
            logits = tiny_model.model(
                rest, attention_mask=whole_mask, position_ids=positions[:, -6:], past_key_values=cache
            ).logits
            cache = kept
        assert log.texts == len(PROMPTS)
        assert log.opened <= log.texts
        whole = tiny_model.model(
            torch.cat([token_ids[rows], rest], 1), attention_mask=whole_mask, position_ids=positions
        ).logits
    torch.testing.assert_close(logits, whole[:, -6:], rtol=1e-3, atol=1e-3)


def test_a_text_whose_beginning_was_not_seen_is_refused_by_gates_that_remember(tiny_llama, sae):
    token_ids, mask = tokens(tiny_llama)
    more, grown = torch.full((4, 1), 9), torch.cat([mask, mask.new_ones(4, 1)], 1)

    def go_on(cache, intervention: Intervention) -> None:
        with torch.no_grad(), applied(tiny_llama, sae, POINT, intervention):
            tiny_llama.model(more, attention_mask=grown, past_key_values=cache, use_cache=True)

    def begun():
        with torch.no_grad():
            return tiny_llama.model(token_ids, attention_mask=mask, use_cache=True).past_key_values

    with pytest.raises(ConfigError, match=r"dsg remembers .* from its beginning"):
        go_on(begun(), dsg(S, -2.0))
    with pytest.raises(ConfigError, match="random remembers"):
        go_on(begun(), Intervention("random", S, RandomDirections(zero(S).edit, 0, "places")))
    go_on(begun(), clamp(S, -2.0))
    go_on(begun(), replace(dsg(S), gate=MeanRate(0.1, policy="per_token")))
    with torch.no_grad(), applied(tiny_llama, sae, POINT, dsg(S, -2.0)):
        cache = tiny_llama.model(token_ids, attention_mask=mask, use_cache=True).past_key_values
        cache.crop(-2)
        with pytest.raises(ConfigError, match="without shortening"):
            tiny_llama.model(more, attention_mask=grown[:, 2:], past_key_values=cache, use_cache=True)


def test_two_gated_edits_remember_apart(tiny_llama, sae):
    token_ids, mask = tokens(tiny_llama)
    low = replace(dsg(S, -2.0), gate=replace(middling(tiny_llama, sae, GATES[0]), policy="streaming"))
    high = replace(low, targets=tuple(range(1, 60, 4)), gate=WindowRate(0.2, 4))
    with torch.no_grad(), applied(tiny_llama, sae, POINT, low), applied(tiny_llama, sae, HookPoint(2), high):
        cached = tiny_llama.model.generate(token_ids, attention_mask=mask, **GREEDY)
        full = tiny_llama.model.generate(token_ids, attention_mask=mask, **GREEDY, use_cache=False)
    assert torch.equal(cached, full)
