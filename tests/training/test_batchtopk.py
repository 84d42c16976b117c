# ruff: noqa: F811 (fixtures of another file are named by the tests that take them)
"""BatchTopK: the k·N largest of a batch, exactly; gradients that are autograd's; an SAE that needs no batch."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_ranks import over_ranks
from test_training import (  # noqa: F401 (fixtures)
    BATCH,
    D_IN,
    D_SAE,
    HARD,
    PROVENANCE,
    WEIGHT_NAMES,
    K,
    KilledError,
    Textbook,
    config,
    contents,
    draw,
    kill_at,
    make_rows,
    reader,
    stream,
)  # fmt: skip
from torch import Tensor

from sae_forge import ranks
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import ConfigError
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.store import CFG, load_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.training.architectures import batchtopk
from sae_forge.training.architectures.batchtopk import BATCHTOPK
from sae_forge.training.architectures.table import TRAINED, architecture_of
from sae_forge.training.code import Code
from sae_forge.training.plan import Plan
from sae_forge.training.state import TrainState
from sae_forge.training.step import train_step
from sae_forge.training.sums import sums_of_parts
from sae_forge.training.trainer import train_sae

BATCHED = {**HARD, "architecture": "batchtopk"}


def plan_of(*, d_sae: int = D_SAE, k: int = K, d_in: int = D_IN, **settings) -> Plan:
    given = config(architecture="batchtopk", **settings)
    return Plan(config=given, d_in=d_in, k=k, d_sae=d_sae, seed=0, steps=100, lr=0.01, device=torch.device("cpu"))


def batch_acts(pre_acts: Tensor) -> Tensor:
    """BatchTopK as it is defined."""
    top = pre_acts.relu().flatten().topk(K * len(pre_acts))
    return torch.zeros_like(pre_acts).flatten().scatter(0, top.indices, top.values).view_as(pre_acts)


# ---- what fires ---------------------------------------------------------------------------------


def seeing(width: int, threshold: float) -> TrainState:
    """An SAE whose pre-acts are its input."""
    state = TrainState.start(TopKSAE(width, width, 1, seed=None), 1.0, BATCHTOPK.own())
    state.sae.W_enc.copy_(torch.eye(width))
    state.own["threshold"].fill_(threshold)
    return state


def fired(codes: list[Code]) -> list[tuple[int, int, float]]:
    """Token, latent and act of every entry, tokens counted through all parts."""
    found, first = [], 0
    for code in codes:
        assert code.tokens is not None and (code.tokens.diff() >= 0).all()
        tokens = (code.tokens + first).tolist()
        found += list(zip(tokens, code.indices.tolist(), code.values.tolist(), strict=True))
        first += len(code.target)
    return found


def largest(pre_acts: Tensor, wanted: int) -> list[tuple[int, int, float]]:
    """By sorting Python's tuples: of equal ones the earlier token's, then the lower latent."""
    every = [(t, i, value) for t, row in enumerate(pre_acts.tolist()) for i, value in enumerate(row) if value > 0]
    return sorted(sorted(every, key=lambda each: (-each[2], each[:2]))[:wanted])


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("width", [48, 37])
@pytest.mark.parametrize(
    "pre_acts",
    [
        lambda width: draw(12, width),
        lambda width: draw(12, width).mul(2).round(),  # nearly all are equal to others, also the last that fires
        lambda width: draw(12, width) - 2.5,  # fewer are above 0 than may fire
        lambda width: draw(12, width) * torch.tensor([100.0] + 11 * [0.1])[:, None],  # one token takes nearly all
        lambda width: -draw(12, width).abs(),
    ],
    ids=["distinct", "ties", "few", "outlier", "none"],
)
def test_the_largest_of_the_whole_batch_fire_whatever_was_guessed(pre_acts, width, parts):
    rows = pre_acts(width)
    plan = plan_of(d_in=width, d_sae=width, batch_size=12)
    orders = []
    for threshold in (0.0, 0.05, 1.4, 500.0):
        with torch.no_grad():
            codes = list(BATCHTOPK.encode(seeing(width, threshold), rows.split(12 // parts), plan))
        assert sorted(fired(codes)) == largest(rows, K * 12)
        orders.append(fired(codes))
    assert all(order == orders[0] for order in orders), "the order of entries decides the last bits of a sum"


def test_a_token_that_is_no_number_is_no_step_and_does_not_fill_the_memory():
    state, plan = seeing(48, 1.0), plan_of(d_in=48, d_sae=48)
    for broken in (torch.nan, torch.inf, -torch.inf):
        rows = draw(12, 48)
        rows[5, 7] = broken
        with torch.no_grad():
            (code,) = BATCHTOPK.encode(state, [rows], plan)
        assert code.values.isnan().any() and len(code.values) <= K * 12
        assert float(state.own["threshold"]) > 0
        before = {name: slot.exp_avg.clone() for name, slot in state.slots.items()}
        figures = train_step(state, rows, plan)
        assert not torch.isfinite(figures[0])
        assert all(torch.equal(slot.exp_avg, before[name]) for name, slot in state.slots.items())


def test_the_threshold_follows_the_least_act_that_fires_at_once_in_the_beginning_and_then_slowly():
    state, plan, before = seeing(48, 0.0), plan_of(d_in=48, d_sae=48), 0.0
    with torch.no_grad():
        for step, rate in ((0, 1.0), (9, 1.0), (39, 0.25), (5000, 0.01)):
            state.step = step
            (code,) = BATCHTOPK.encode(state, [draw(12, 48, seed=step)], plan)
            after = float(state.own["threshold"])
            assert after == pytest.approx((1 - rate) * before + rate * float(code.values.min()))
            before = after
        _ = list(BATCHTOPK.encode(state, [-draw(12, 48).abs()], plan))  # nothing fires
    assert float(state.own["threshold"]) == after


@pytest.mark.slow
def test_ranks_choose_as_one_process_would_also_among_equals(tmp_path):
    rows = draw(12, 48).mul(2).round()  # many are equal to the last that fires, on both ranks

    def choose(rank: int) -> None:
        plan, state = replace(plan_of(d_in=48, d_sae=48), team=ranks.here()), seeing(48, 0.0)
        ranks.here().connect(torch.device("cpu"))
        with torch.no_grad():
            found = fired(list(BATCHTOPK.encode(state, plan.own_rows(rows).split(3), plan)))
        (tmp_path / str(rank)).write_text(json.dumps([found, float(state.own["threshold"])]))

    assert over_ranks(2, choose, tmp_path / "said") == [0, 0]
    (first, low), (second, high) = (json.loads((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert low == high > 0
    assert sorted([tuple(each) for each in first] + [(t + 6, i, v) for t, i, v in second]) == largest(rows, K * 12)


# ---- gradients ----------------------------------------------------------------------------------


def middling(**settings) -> tuple[TrainState, Plan]:
    plan = plan_of(**settings)
    state = TrainState.start(TopKSAE(D_IN, D_SAE, K), 0.7, BATCHTOPK.own())
    with torch.no_grad():
        state.sae.b_dec.copy_(draw(D_IN, seed=9))
        state.sae.b_enc.copy_(0.3 * draw(D_SAE, seed=8))
        state.sae.b_enc[:20] = -60.0  # never among the largest
    return state, plan


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
def test_gradients_are_those_of_autograd(backend, parts):
    state, plan = middling(backend=backend, accumulation=parts, auxk_alpha=0.0)
    rows = make_rows(BATCH)
    weights = {name: getattr(state.sae, name).detach().double().requires_grad_() for name in WEIGHT_NAMES}
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in WEIGHT_NAMES)
    x = rows.double() * 0.7
    x_hat = batch_acts((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec
    loss = (x - x_hat).square().sum() / (x - x.mean(dim=0)).square().sum()
    loss.backward()
    expected = float(loss.detach())
    assert W_dec.grad is not None and W_enc.grad is not None and b_enc.grad is not None and b_dec.grad is not None
    exact = {"W_enc": W_enc.grad.T, "b_enc": b_enc.grad, "b_dec": b_dec.grad}
    exact["W_dec"] = W_dec.grad - (W_dec.grad * W_dec.detach()).sum(dim=1, keepdim=True) * W_dec.detach()
    with torch.no_grad():
        found = sums_of_parts(state, rows, plan)
    for name, gradient in {**found.latents._asdict(), "b_dec": found.b_dec}.items():
        apart = (gradient.double() - exact[name]).norm() / exact[name].norm()
        assert float(apart) <= 1e-6, (name, float(apart))
    assert float(found.loss) == pytest.approx(expected, rel=1e-6)
    assert int(found.fires) == K * BATCH


@pytest.mark.parametrize("backend", ["reference", "cpu", "dense"])
@pytest.mark.parametrize(("most", "parts"), [(None, 1), (0.05, 1), (None, 2)])
def test_steps_are_what_autograd_and_adam_would_do_with_auxk_on(backend, most, parts):
    state, plan = middling(backend=backend, max_grad_norm=most, dead_after=4 * BATCH, accumulation=parts)
    textbook = Textbook(state, most, batch_acts)
    state.tokens = plan.config.dead_after
    state.tokens_since_fired[:20] = plan.config.dead_after
    for index, rows in enumerate(make_rows(5 * BATCH).split(BATCH)):
        dead = torch.nonzero(state.tokens_since_fired >= plan.config.dead_after).squeeze(1)
        assert len(dead) >= 20
        expected = textbook.step(rows.double() * 0.7, dead, plan.lr_at(index))
        figures = train_step(state, rows, plan)
        assert float(figures[0]) == pytest.approx(expected, rel=1e-5)
        assert float(figures[2]) == K
        for name, weight in textbook.weights.items():
            assert torch.allclose(getattr(state.sae, name).double(), weight, rtol=0, atol=1e-5), (index, name)


# ---- a training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(reader, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("batched") / "sae"
    log = folder.parent / "log.jsonl"
    stream = ActivationStream([reader], batch_size=BATCH, seed=0)
    train_sae(stream, config(**BATCHED), folder, PROVENANCE, log=log)
    return folder, json.loads(log.read_text().splitlines()[-1])


def test_it_is_saved_as_what_needs_no_batch_and_says_so(trained):
    folder, last = trained
    sae, provenance = load_sae(folder)
    cfg = json.loads((folder / CFG).read_text())
    assert isinstance(sae, JumpReLUSAE) and provenance.shards == PROVENANCE.shards
    assert cfg["architecture"] == "jumprelu" and "k" not in cfg and cfg["apply_b_dec_to_input"] is False
    assert last["l0"] == K
    x = make_rows(64)
    together, alone = sae(x), torch.cat([sae(row[None]) for row in x])
    assert torch.allclose(together, alone, atol=1e-5)
    report = json.loads((folder / "report.json").read_text())
    assert abs(report["l0"] / K - 1) < 0.25 and 0 < report["fvu"] < 1  # after 14 steps at a rate that is high


def test_what_is_read_back_acts_as_in_training_above_the_threshold(stream, tmp_path, monkeypatch):
    kept = []
    finish = BATCHTOPK.finish

    def keeping(sae, scale, own):
        kept.append((sae, scale, float(own["threshold"])))
        return finish(sae, scale, own)

    monkeypatch.setitem(TRAINED, "batchtopk", replace(BATCHTOPK, finish=keeping))
    train_sae(stream, config(**BATCHED), tmp_path / "sae", PROVENANCE)
    ((sae, scale, threshold),) = kept
    x = make_rows(200)
    pre_acts = (x.double() * scale - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
    expected = torch.where(pre_acts > threshold, pre_acts, 0.0) / scale
    found = load_sae(tmp_path / "sae")[0].latent_acts(x, torch.arange(D_SAE)).double()
    near = (pre_acts / threshold - 1).abs() < 1e-5
    assert near.sum() <= 2 and int((found > 0).sum()) > 200
    assert float((found - expected)[~near].abs().max() / expected.max()) <= 2e-6


def test_killed_and_gone_on_with_it_ends_in_the_same_bytes(stream, tmp_path, trained):
    for stop in (3, 7, 12):
        with pytest.raises(KilledError):
            train_sae(stream, config(**BATCHED), tmp_path, PROVENANCE, progress=kill_at(stop))
    train_sae(stream, config(**BATCHED), tmp_path, PROVENANCE)
    assert contents(tmp_path) == contents(trained[0])


def test_parts_come_to_the_whole_batch(stream, tmp_path, trained):
    train_sae(stream, config(**BATCHED, accumulation=4), tmp_path, PROVENANCE)
    (whole, _), (parts, _) = load_sae(trained[0]), load_sae(tmp_path)
    assert isinstance(whole, JumpReLUSAE) and isinstance(parts, JumpReLUSAE)
    assert float((whole.W_dec - parts.W_dec).norm() / whole.W_dec.norm()) < 1e-4
    assert float((whole.threshold - parts.threshold).norm() / whole.threshold.norm()) < 1e-4


def test_a_topk_sae_of_the_same_sizes_is_another(stream, tmp_path):
    train_sae(stream, config(max_steps=2), tmp_path, PROVENANCE)
    assert "architecture" not in json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(Exception, match="architecture expected batchtopk, found None"):
        train_sae(stream, config(max_steps=2, architecture="batchtopk"), tmp_path, PROVENANCE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "batchtop"}, "--architecture batchtop.*choose one of topk, batchtopk"),
        ({"architecture": "batchtopk", "shard_latents": True}, "--architecture batchtopk: --shard_latents spreads"),
        ({"architecture": "batchtopk", "int8_topk": True}, "--architecture batchtopk: --int8_topk names candidates"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_name(stream, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        train_sae(stream, config(**settings), tmp_path / "sae", PROVENANCE)
    assert not (tmp_path / "sae").exists()


def test_a_new_architecture_is_one_entry_of_the_table(stream, tmp_path, monkeypatch):
    """One that keeps the first half of what BatchTopK keeps, and a number of its own in its checkpoints."""

    def encode(state, parts, plan, beside=None):
        for code in BATCHTOPK.encode(state, parts, plan, beside):
            mask = torch.arange(len(code.values)) < len(code.values) // 2
            state.own["seen"] += len(code.target)
            yield Code(code.target, code.values[mask], code.indices[mask], code.tokens[mask])

    own = lambda: {**BATCHTOPK.own(), "seen": torch.zeros((), dtype=torch.int64)}  # noqa: E731
    monkeypatch.setitem(TRAINED, "half", replace(BATCHTOPK, name="half", encode=encode, own=own))
    half = config(**{**HARD, "architecture": "half"})
    with pytest.raises(KilledError):
        train_sae(stream, half, tmp_path, PROVENANCE, progress=kill_at(9))
    log = tmp_path.parent / "half.jsonl"
    train_sae(stream, half, tmp_path, PROVENANCE, log=log)
    assert json.loads(log.read_text().splitlines()[-1])["l0"] == K / 2
    assert architecture_of(half).name == "half"


def test_the_backends_take_one_step(monkeypatch):
    """Flat entries and the rectangle that is filled for the others come to the same."""
    after = {}
    for backend in ("reference", "cpu", "dense"):
        state, plan = middling(backend=backend)
        for rows in make_rows(3 * BATCH).split(BATCH):
            train_step(state, rows, plan)
        after[backend] = torch.cat([slot.weight.flatten() for slot in state.slots.values()])
    for backend, weights in after.items():
        assert float((weights - after["reference"]).norm() / weights.norm()) < 1e-5, backend
    monkeypatch.setattr(batchtopk, "MARGIN", 0.5)  # more candidates, the same bits
    state, plan = middling(backend="cpu")
    for rows in make_rows(3 * BATCH).split(BATCH):
        train_step(state, rows, plan)
    assert torch.equal(torch.cat([slot.weight.flatten() for slot in state.slots.values()]), after["cpu"])


def test_products_in_bf16_choose_exactly_among_many_ties():
    state, plan = middling()
    state.sae.product_dtype = torch.bfloat16
    half = TrainState.start(state.sae, 0.7, BATCHTOPK.own())
    with torch.no_grad():
        (code,) = BATCHTOPK.encode(half, [make_rows(BATCH)], plan)
    assert len(code.values) == K * BATCH
    assert torch.isfinite(train_step(half, make_rows(BATCH), plan)).all()
