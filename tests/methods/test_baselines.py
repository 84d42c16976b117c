"""Rivals: each loss is its formula, the given model keeps every bit, and what comes out forgot what it should."""

import copy
import hashlib
import importlib.util
import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import save_model
from tiny_tokenizer import TEXT
from torch import Tensor

from sae_forge.collect import collect
from sae_forge.config.collect import CollectConfig
from sae_forge.data.shards import ShardReader
from sae_forge.data.texts.packing import iter_packed
from sae_forge.errors import (
    BackendError,
    CheckpointError,
    ConfigError,
    DataError,
    ForgeError,
    NumericalError,
    ShardError,
    UnsupportedModelError,
)
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import RemoveShare, ZeroAblation
from sae_forge.interventions.apply import Intervention, edited
from sae_forge.methods.edits.diff_means import (
    difference_in_means,
    matching_strength,
    retain_threshold,
)
from sae_forge.methods.weights import crisp, suppress
from sae_forge.methods.weights.adapters import Suppressed
from sae_forge.methods.weights.crisp import CRISP
from sae_forge.methods.weights.grad_diff import GradDiff
from sae_forge.methods.weights.gradient_ascent import GradientAscent
from sae_forge.methods.weights.npo import NPO
from sae_forge.methods.weights.objectives import nats_per_token
from sae_forge.methods.weights.recipe import Recipe
from sae_forge.methods.weights.rmu import RMU
from sae_forge.methods.weights.sentences import Writing
from sae_forge.methods.weights.simnpo import SimNPO
from sae_forge.methods.weights.suppress import Suppress
from sae_forge.methods.weights.texts import TextBatch, Texts, iter_batches, load_texts
from sae_forge.methods.weights.training import unlearn
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.models.projections import projections
from sae_forge.models.tokens import real_token_mask
from sae_forge.progress import SILENT
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.direction import Direction
from sae_forge.sae.topk import TopKSAE

POINT = HookPoint(2)
D_IN, D_SAE, K = 56, 113, 7
DOCUMENTS = [f"{TEXT[i % 3]} Number {i}." for i in range(20)]
RETAIN = [f"The river Arn and the town of Esk, {i} miles apart." for i in range(20)]


@pytest.fixture(scope="module")
def sae() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.b_dec.normal_(generator=torch.Generator().manual_seed(0))
    return sae


def collected(lm: LanguageModel, folder: Path, bos: str = "row", **settings) -> dict[str, ShardReader]:
    """Shards of both corpora at POINT, read by any model of the tests."""
    corpora = []
    for role, documents in (("forget", DOCUMENTS), ("retain", RETAIN)):
        path = folder / f"{role}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        corpora.append((role, str(path)))
    config = CollectConfig(
        model=lm.name, run_dir=folder / "run", layer=(POINT.layer,), ctx_len=24, model_batch_size=4, bos=bos,
        storage_dtype="fp32", **settings,
    )  # fmt: skip
    report = collect(config, lm, corpora)
    return {reader.fingerprint.role: reader for reader in map(ShardReader, report.folders)}


@pytest.fixture(scope="module")
def shards(model_folders, tmp_path_factory) -> dict[str, ShardReader]:
    lm = load_model(str(model_folders["llama"]), device="cpu")
    return collected(lm, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def forget(tiny_llama, shards) -> Texts:
    return load_texts(tiny_llama, [shards["forget"]])


@pytest.fixture(scope="module")
def retain(tiny_llama, shards) -> Texts:
    return load_texts(tiny_llama, [shards["retain"]])


def ragged(lm: LanguageModel, texts: list[str]) -> Texts:
    """Sequences of different lengths, with BOS, padded on the right."""
    batch = lm.tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    return Texts(batch["input_ids"], batch["attention_mask"].bool())


def whole(texts: Texts) -> TextBatch:
    return TextBatch(texts.token_ids, texts.attention_mask)


def other(lm: LanguageModel, seed: int = 5) -> LanguageModel:
    """The same architecture a little way off."""
    model = copy.deepcopy(lm.model)
    random = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.add_(0.02 * torch.randn(weight.shape, generator=random))
    return replace(lm, model=model)


def recipes(sae: TopKSAE, steps: int = 2) -> list[Recipe]:
    common = {"steps": steps, "lr": 1e-3, "batch_size": 2}
    return [
        RMU(layer=2, **common),
        GradientAscent(**common),
        GradDiff(**common),
        NPO(**common),
        NPO(retain="kl", **common),
        SimNPO(**common),
        Suppress(suppressed=(Suppressed(POINT, sae, tuple(range(40))),), writing=Writing(2, new_tokens=4), **common),
        CRISP(suppressed=(Suppressed(POINT, sae, tuple(range(40))),), writing=Writing(2, new_tokens=4), **common),
    ]


def fingerprint(lm: LanguageModel) -> dict[str, str]:
    state = lm.model.state_dict()
    return {name: hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest() for name, tensor in state.items()}


def hook_count(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def logits(lm: LanguageModel, texts: Texts) -> Tensor:
    with torch.no_grad():
        return lm.model(texts.token_ids, attention_mask=texts.attention_mask.long()).logits


# ---- texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", ["row", "document", "none"])
def test_texts_are_what_was_packed(tiny_llama, tmp_path, bos):
    reader = collected(tiny_llama, tmp_path, bos)["forget"]
    texts = load_texts(tiny_llama, [reader])
    packed = list(iter_packed(DOCUMENTS, tiny_llama.tokenizer, ctx_len=24, batch_size=4, bos=bos))
    pairs = [pair for batch in packed for pair in zip(batch.token_ids, batch.attention_mask, strict=True)]
    rows = [row[mask].tolist() for row, mask in pairs if mask.any()]
    assert len(texts) == len(rows)
    for ids, mask, row in zip(texts.token_ids, texts.attention_mask, rows, strict=True):
        expected = row if bos != "none" else [1, *row]
        while expected[-1] == 2:  # an EOS that ends a row predicts nothing there
            expected = expected[:-1]
        assert ids[mask].tolist() == expected


def test_corpora_follow_one_another_and_are_cut_at_the_bound(tiny_llama, shards):
    both = load_texts(tiny_llama, [shards["forget"], shards["retain"]])
    few = load_texts(tiny_llama, [shards["forget"], shards["retain"]], max_sequences=3)
    alone = load_texts(tiny_llama, [shards["forget"]])
    assert len(few) == 6
    assert torch.equal(few.token_ids[:3], both.token_ids[:3])
    assert torch.equal(few.token_ids[3:], both.token_ids[len(alone) :][:3])


def test_every_sequence_comes_once_before_any_comes_again(forget):
    n = len(forget)
    taken = list(iter_batches(forget, count=n, batch_size=2, seed=0, purpose="test"))
    rows = [tuple(row[mask].tolist()) for batch in taken for row, mask in zip(*batch, strict=True)]
    every = sorted(tuple(row[mask].tolist()) for row, mask in zip(forget.token_ids, forget.attention_mask, strict=True))
    assert len(rows) == 2 * n
    assert sorted(rows[:n]) == sorted(rows[n:]) == every
    assert rows[:n] != rows[n:]
    again = iter_batches(forget, count=n, batch_size=2, seed=0, purpose="test")
    assert all(torch.equal(mine.token_ids, its.token_ids) for mine, its in zip(taken, again, strict=True))
    for changed in ({"seed": 1}, {"purpose": "else"}):
        arguments = {"count": n, "batch_size": 2, "seed": 0, "purpose": "test"} | changed
        order = iter_batches(forget, **arguments)
        assert not all(torch.equal(mine.token_ids, its.token_ids) for mine, its in zip(taken, order, strict=True))


def test_shards_of_another_tokenizer_are_refused(tiny_llama, shards):
    stranger = load_model("tiny-llama", device="cpu")
    with pytest.raises(ShardError, match="another tokenizer"):
        load_texts(stranger, [shards["forget"]])
    with pytest.raises(DataError, match="no text"):
        load_texts(tiny_llama, [])


# ---- losses against their formulas --------------------------------------------------------------


def slow_logprobs(lm: LanguageModel, texts: Texts) -> list[list[float]]:
    """Log-probability of each real token but the first, sequence by sequence, alone and in float64."""
    model, found = copy.deepcopy(lm.model).double(), []
    for ids, mask in zip(texts.token_ids, texts.attention_mask, strict=True):
        row = ids[mask]
        with torch.no_grad():
            table = model(row[None]).logits[0].log_softmax(-1)
        found.append([float(table[i - 1, row[i]]) for i in range(1, len(row)) if int(row[i]) not in lm.special_ids])
    return found


def slow_kl(before: LanguageModel, after: LanguageModel, texts: Texts) -> float:
    one, two = copy.deepcopy(before.model).double(), copy.deepcopy(after.model).double()
    parts = []
    for ids, mask in zip(texts.token_ids, texts.attention_mask, strict=True):
        row = ids[mask]
        with torch.no_grad():
            p, q = (model(row[None]).logits[0].log_softmax(-1) for model in (one, two))
        kl = (p.exp() * (p - q)).sum(-1)
        parts += [float(kl[i - 1]) for i in range(1, len(row)) if int(row[i]) not in before.special_ids]
    return float(np.mean(parts))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


Gradient = GradientAscent | GradDiff | NPO | SimNPO


def by_hand(recipe: Gradient, lm: LanguageModel, given: LanguageModel, forget: Texts, retain: Texts) -> float:
    rows, before, held = slow_logprobs(lm, forget), slow_logprobs(given, forget), slow_logprobs(lm, retain)
    nll_f, nll_r = -np.mean(list(chain(*rows))), -np.mean(list(chain(*held)))
    match recipe:
        case GradientAscent():
            return -nll_f
        case GradDiff():
            return -recipe.gamma * nll_f + recipe.alpha * nll_r
        case NPO():
            ratios = [sum(row) - sum(ref) for row, ref in zip(rows, before, strict=True)]
            pull = -2 / recipe.beta * np.mean([math.log(sigmoid(-recipe.beta * ratio)) for ratio in ratios])
            return pull + recipe.alpha * (slow_kl(given, lm, retain) if recipe.retain == "kl" else nll_r)
        case SimNPO():
            margins = [recipe.beta * (-np.mean(row) - recipe.delta) for row in rows]
            pull = -2 / recipe.beta * np.mean([math.log(sigmoid(margin)) for margin in margins])
            return recipe.gamma * pull + recipe.alpha * nll_r


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        GradientAscent(),
        GradDiff(gamma=0.5, alpha=2.0),
        NPO(beta=0.05, alpha=0.3),
        NPO(beta=0.05, alpha=3.0, retain="kl"),
        SimNPO(beta=2.5, delta=1.5, gamma=0.7, alpha=0.2),
    ],
    ids=lambda recipe: f"{recipe.name}-{getattr(recipe, 'retain', '')}",
)
def test_gradient_losses_are_their_formulas(tiny_model, recipe):
    changed = other(tiny_model)
    forget, retain = (
        ragged(tiny_model, [TEXT[0], TEXT[1][:30], "owl"]),
        ragged(tiny_model, [TEXT[2][:40], "mica, mica!"]),
    )
    found = recipe.loss(changed, tiny_model, retain, 0)(whole(forget), whole(retain))
    expected = by_hand(recipe, changed, tiny_model, forget, retain)
    assert float(found) == pytest.approx(expected, rel=2e-5, abs=1e-6)


def hidden(model, texts: Texts, layer: int) -> Tensor:
    """A layer's output in float64, from the model's own list; of any layer but the last."""
    mask = texts.attention_mask.long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = model.model(texts.token_ids, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    return output.hidden_states[layer + 1].double()


def squared(x: Tensor, target: Tensor, texts: Texts, padding: bool, special: frozenset[int]) -> Tensor:
    """Mean over tokens and width, one token after the other."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(texts)):
        for place in range(texts.token_ids.shape[1]):
            attended = bool(texts.attention_mask[row, place]) and int(texts.token_ids[row, place]) not in special
            if padding or attended:
                total = total + ((x[row, place] - target.expand_as(x)[row, place]) ** 2).sum()
                count += 1
    return total / (count * x.shape[-1])


@pytest.mark.parametrize("mean", ["real", "positions"])
def test_one_rmu_step_is_its_formula(tiny_model, mean):
    """The gradient lies on three output projections alone; AdamW's first step is sign-like, so it is compared by it."""
    forget, retain = ragged(tiny_model, [TEXT[0], "an owl"]), ragged(tiny_model, [TEXT[2], "mica, mica!"])
    recipe = RMU(layer=2, coefficient=30.0, alpha=7.0, steps=1, lr=1e-3, batch_size=2, mean=mean)
    target = recipe.direction(D_IN, seed=3)
    assert float(target.norm()) == pytest.approx(30)
    assert (target >= 0).all()
    slow = copy.deepcopy(tiny_model.model).requires_grad_(True)
    before = hidden(tiny_model.model, retain, 2)
    special = tiny_model.special_ids
    value = squared(hidden(slow, forget, 2), target.double(), forget, mean == "positions", special)
    value = value + 7.0 * squared(hidden(slow, retain, 2), before, retain, mean == "positions", special)
    value.backward()
    fast = recipe.loss(tiny_model, tiny_model, retain, 3)(whole(forget), whole(retain))
    assert float(fast) == pytest.approx(value.item(), rel=1e-5)

    after = unlearn(tiny_model, recipe, forget, retain, seed=3)
    trained = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1, 2)}
    for name, weight in tiny_model.model.named_parameters():
        moved = after.model.get_parameter(name)
        if name not in trained:
            assert moved is weight
            continue
        slope = slow.get_parameter(name).grad.double()
        expected = weight.double() * (1 - recipe.lr * recipe.weight_decay) - recipe.lr * slope / (slope.abs() + 1e-8)
        clear = slope.abs() > 1e-5
        assert clear.float().mean() > 0.5
        torch.testing.assert_close(moved.double()[clear], expected[clear], rtol=0, atol=2e-2 * recipe.lr)


def test_suppression_is_its_formula(tiny_model, sae):
    """Acts by sorting every pre-act; a pair counts where it fires in the given model."""
    changed = other(tiny_model)
    texts = ragged(tiny_model, [TEXT[0], TEXT[1][:30], "owl"])
    chosen = tuple(range(0, D_SAE, 2))
    recipe = Suppress(suppressed=(Suppressed(POINT, sae, chosen),), alpha=3.0)
    x, y = (hidden(lm.model, texts, POINT.layer) for lm in (tiny_model, changed))

    def dense(h: Tensor) -> Tensor:
        answers = (h - sae.b_dec.double()) @ sae.W_enc.double() + sae.b_enc.double()
        smallest = answers.sort(-1, descending=True).values[..., K - 1 : K]
        return torch.where(answers >= smallest, answers, 0.0).relu()

    pulled, drifts = [], []
    real = real_token_mask(texts.token_ids, texts.attention_mask, tiny_model.special_ids)
    for row, place in real.nonzero().tolist():
        z, after = dense(x[row, place]), dense(y[row, place])
        pulled += [abs(after[j] + abs(3.0 * z.mean())) for j in chosen if z[j] > 0]
        drifts.append(((x[row, place] - y[row, place]) ** 2).mean())
    assert len(pulled) > 20
    found = suppress.suppression(changed, tiny_model, recipe, whole(texts))
    assert float(found) == pytest.approx(float(torch.stack(pulled).mean()), rel=1e-4)
    found = suppress.drift(changed, tiny_model, recipe, whole(texts))
    assert float(found) == pytest.approx(float(torch.stack(drifts).mean()), rel=1e-4)


def test_a_sink_of_the_given_model_counts_in_no_loss(tiny_model, sae):
    """Here whatever is longer than the median token, also where training has made it shorter or others longer."""
    changed, texts = other(tiny_model), ragged(tiny_model, [TEXT[0], TEXT[1][:30], "owl"])
    x, y = (hidden(lm.model, texts, POINT.layer) for lm in (tiny_model, changed))
    real = real_token_mask(texts.token_ids, texts.attention_mask, tiny_model.special_ids)
    norm = float(x.norm(dim=-1)[real].median())
    kept = real & (x.norm(dim=-1) <= norm)
    assert 2 * int(kept.sum()) <= int(real.sum()) + 1
    drift = ((x - y) ** 2).mean(-1)
    recipe = RMU(layer=POINT.layer, coefficient=30.0, alpha=7.0, sink_norm=norm)
    aim = ((y - recipe.direction(D_IN, 3).double()) ** 2).mean(-1)
    found = recipe.loss(changed, tiny_model, texts, 3)(whole(texts), whole(texts))
    assert float(found) == pytest.approx(float((aim + 7 * drift)[kept].mean()), rel=1e-4)
    silenced = (Suppressed(POINT, sae, (0, 1), norm),)
    found = suppress.drift(changed, tiny_model, Suppress(suppressed=silenced), whole(texts))
    assert float(found) == pytest.approx(float(drift[kept].mean()), rel=1e-4)
    later = kept & (texts.attention_mask.long().cumsum(-1) > 1)
    found = crisp.retaining(changed, tiny_model, crisp.CRISP(suppressed=silenced), whole(texts))
    assert float(found) == pytest.approx(float(torch.where(later, drift, 0).mean()), rel=1e-4)


# ---- what is promised about models --------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", range(8))
def test_the_given_model_keeps_every_bit(tiny_model, sae, forget, retain, number):
    recipe = recipes(sae)[number]
    weights, before, hooks = fingerprint(tiny_model), logits(tiny_model, forget), hook_count(tiny_model)
    torch.manual_seed(11)
    drawn = torch.rand(3)
    torch.manual_seed(11)
    after = unlearn(tiny_model, recipe, forget, retain)
    assert torch.equal(torch.rand(3), drawn)
    assert fingerprint(tiny_model) == weights
    assert torch.equal(logits(tiny_model, forget), before)
    assert not torch.equal(logits(after, forget), before)
    assert after.name == f"{tiny_model.name}-{recipe.name}"
    assert hook_count(tiny_model) == hook_count(after) == hooks
    for lm in (tiny_model, after):
        assert not any(module.training for module in lm.model.modules())
        assert not any(weight.requires_grad or weight.grad is not None for weight in lm.model.parameters())
    assert set(after.model.state_dict()) == set(tiny_model.model.state_dict())
    assert vars(after.model).keys() == vars(tiny_model.model).keys()
    assert [type(module) for module in after.model.modules()] == [type(module) for module in tiny_model.model.modules()]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(7))
def test_the_same_seed_gives_the_same_bits(tiny_llama, sae, forget, retain, number):
    recipe = recipes(sae)[number]
    found = []
    for seed, state in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(state)  # which must not matter
        found.append(fingerprint(unlearn(tiny_llama, recipe, forget, retain, seed=seed)))
    first, again, another = found
    assert first == again
    assert first != another


def test_half_precision_weights_move_by_steps_below_their_rounding(model_folders, forget, retain):
    lm = load_model(str(model_folders["llama"]), dtype="bf16", device="cpu")
    after = unlearn(lm, GradientAscent(steps=20, lr=1e-4, batch_size=2), forget, retain)
    name = "model.layers.1.mlp.up_proj.weight"
    was, now = lm.model.get_parameter(name), after.model.get_parameter(name)
    large = was.abs() > 0.25  # there bf16 is 1e-3 coarse or more, and a step is 1e-4
    assert now.dtype == torch.bfloat16
    assert (was != now)[large].float().mean() > 0.2


def test_adapters_merge_into_what_they_computed(sae, tmp_path):
    """In every family, fused and transposed projections among them."""
    for family in ("llama", "gpt2", "mixtral", "gpt_oss"):
        lm = load_model(str(save_model(tmp_path / family, family)), device="cpu")
        recipe = CRISP(suppressed=(Suppressed(POINT, sae, (1,)),), layers=(0, 3), dropout=0.0)
        plain, changed = logits(lm, TOKENS), replace(lm, model=copy.deepcopy(lm.model))
        torch.manual_seed(0)
        with recipe.training(changed) as weights:
            adapted = [projection.weight for layer in (0, 3) for projection in projections(lm, layer)]
            assert len(weights) == 2 * len(adapted)
            assert torch.equal(logits(changed, TOKENS), plain)
            with torch.no_grad():
                for weight in weights:
                    weight.normal_(std=0.1)
            computed = logits(changed, TOKENS)
        torch.testing.assert_close(logits(changed, TOKENS), computed, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(computed, plain, atol=1e-2)
        own = dict(changed.model.named_parameters())
        moved = {name for name, weight in lm.model.named_parameters() if not torch.equal(weight, own[name])}
        assert moved == set(adapted)


TOKENS = Texts(torch.arange(4, 24).view(2, 10), torch.ones(2, 10, dtype=torch.bool))


# ---- what is learnt -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[LanguageModel, Texts, Texts, dict[str, ShardReader]]:
    """The built-in Llama with a little of what it knows."""
    lm = load_model("tiny-llama", device="cpu")
    config = CollectConfig(
        model="tiny-llama", run_dir=tmp_path_factory.mktemp("world"), layer=(1,), ctx_len=64, max_tokens=4000,
        storage_dtype="fp32",
    )  # fmt: skip
    corpora = [("forget", "world:corpora/wizards"), ("retain", "world:corpora/geography")]
    found = [ShardReader(folder) for folder in collect(config, lm, corpora).folders]
    readers = {reader.fingerprint.role: reader for reader in found}
    return lm, load_texts(lm, [readers["forget"]]), load_texts(lm, [readers["retain"]]), readers


def nats(lm: LanguageModel, texts: Texts) -> float:
    with torch.no_grad():
        return float(nats_per_token(lm, texts.rows(torch.arange(16))))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        GradientAscent(steps=6, lr=1e-4),
        GradDiff(steps=8, lr=1e-4),
        NPO(steps=12, lr=1e-3),
        SimNPO(steps=12, lr=1e-3, beta=1.0, gamma=1.0),
    ],
    ids=lambda recipe: recipe.name,
)
def test_forget_text_becomes_less_likely(world, recipe):
    lm, forget, retain, _ = world
    after = unlearn(lm, recipe, forget, retain)
    lost, kept = nats(after, forget) - nats(lm, forget), nats(after, retain) - nats(lm, retain)
    assert lost > 0.2
    assert lost > 2 * kept or isinstance(recipe, GradientAscent)  # nothing in its loss holds the rest


@pytest.mark.slow
def test_rmu_moves_forget_text_to_its_target_and_holds_retain_text(world):
    lm, forget, retain, _ = world
    recipe, point = RMU(layer=1, coefficient=100.0, alpha=100.0, steps=30, lr=1e-3), HookPoint(1)
    after = unlearn(lm, recipe, forget, retain, seed=4)
    target = recipe.direction(lm.d_model, seed=4)
    distance, drift = {}, {}
    for role, texts in (("forget", forget), ("retain", retain)):
        batch = texts.rows(torch.arange(16))
        real = real_token_mask(*batch, lm.special_ids)
        was, now = (capture(model, [point], *batch)[point][real] for model in (lm, after))
        distance[role] = float((now - target).norm(dim=-1).mean() / (was - target).norm(dim=-1).mean())
        drift[role] = float((now - was).norm(dim=-1).mean())
    assert distance["forget"] < 0.9
    assert distance["retain"] > 0.95
    assert drift["retain"] < 0.3 * drift["forget"]


@pytest.mark.slow
def test_suppress_silences_its_latents(world):
    lm, forget, retain, _ = world
    point = HookPoint(1)
    sae = TopKSAE(lm.d_model, 200, 12, seed=2).requires_grad_(False)
    fired = {}

    def count(model: LanguageModel, texts: Texts, latents: Tensor) -> float:
        batch = texts.rows(torch.arange(16))
        real = real_token_mask(*batch, lm.special_ids)
        return float((sae.latent_acts(capture(model, [point], *batch)[point], latents)[real] > 0).float().sum())

    every = torch.arange(200)
    batch = forget.rows(torch.arange(16))
    acts = sae.latent_acts(capture(lm, [point], *batch)[point][real_token_mask(*batch, lm.special_ids)], every)
    chosen = (acts > 0).sum(0).topk(6).indices
    suppressed = (Suppressed(point, sae, tuple(chosen.tolist())),)
    recipe = Suppress(suppressed=suppressed, steps=20, lr=5e-3, batch_size=4, writing=Writing(4))
    after = unlearn(lm, recipe, forget, retain)
    fired = {name: count(model, forget, chosen) for name, model in (("before", lm), ("after", after))}
    assert fired["before"] > 100
    assert fired["after"] < 0.6 * fired["before"]
    assert not [module for module in after.model.modules() if type(module).__module__.startswith("peft")]
    reloaded = type(after.model)(copy.deepcopy(after.model.config))
    reloaded.load_state_dict(after.model.state_dict())


# ---- difference in means ------------------------------------------------------------------------


def rows_of(reader: ShardReader) -> Tensor:
    return torch.cat([block.acts for block in reader.iter_blocks()])


def test_difference_in_means_is_what_its_name_says(shards):
    found = difference_in_means([shards["forget"]], [shards["retain"], shards["retain"]])
    expected = rows_of(shards["forget"]).double().mean(0) - rows_of(shards["retain"]).double().mean(0)
    torch.testing.assert_close(found.W_dec[0].double(), expected / expected.norm(), rtol=0, atol=1e-6)
    assert (found.d_in, found.d_sae) == (D_IN, 1)
    assert isinstance(found, Dictionary)


def test_threshold_is_the_largest_percentile_of_any_retain_corpus(shards):
    direction = difference_in_means([shards["forget"]], [shards["retain"]])
    each = {}
    for role, reader in shards.items():
        along = sorted(float(row.double() @ direction.W_dec[0].double()) for row in rows_of(reader))
        place = 0.9 * (len(along) - 1)
        low, part = int(place), place - int(place)
        each[role] = along[low] + part * (along[min(low + 1, len(along) - 1)] - along[low])
    found = retain_threshold(direction, [shards["retain"], shards["forget"]], percentile=90)
    assert found == pytest.approx(max(each.values()), rel=1e-6)
    assert retain_threshold(direction, [shards["retain"]], percentile=90) == pytest.approx(each["retain"], rel=1e-6)
    for readers, percentile in (([], 95.0), ([shards["retain"]], 101.0)):
        with pytest.raises(ForgeError):
            retain_threshold(direction, readers, percentile=percentile)


@pytest.mark.parametrize("strength", [1.0, 2.0, -0.5])
def test_removing_the_direction_takes_its_part_and_no_more(strength):
    x = torch.randn(3, 5, D_IN, generator=torch.Generator().manual_seed(1))
    v = torch.randn(D_IN, generator=torch.Generator().manual_seed(2))
    v /= v.norm()
    direction, real = Direction(v[None]), torch.ones(3, 5, dtype=torch.bool)
    along = x @ v
    assert (along < 0).any()
    edit = ZeroAblation() if strength == 1 else RemoveShare(strength)
    result = edited(direction, Intervention("diff_means", (0,), edit), x, real)
    torch.testing.assert_close(result, x - strength * along[..., None] * v, rtol=1e-5, atol=1e-5)
    gated = direction.gated(float(along.flatten().sort().values[9]))
    result = edited(gated, Intervention("diff_means", (0,), edit), x, real)
    beyond = along > gated.threshold
    assert 0 < int(beyond.sum()) < beyond.numel()
    assert torch.equal(result[~beyond], x[~beyond])
    torch.testing.assert_close(result[beyond], (x - strength * along[..., None] * v)[beyond], rtol=1e-5, atol=1e-5)


def test_the_matching_strength_moves_tokens_by_the_norm_asked_for(shards):
    plain = difference_in_means([shards["forget"]], [shards["retain"]])
    x = rows_of(shards["forget"])
    for direction in (plain, plain.gated(retain_threshold(plain, [shards["retain"]], percentile=50))):
        strength = matching_strength(direction, [shards["forget"]], mean_norm=3.0)
        intervention = Intervention("diff_means", (0,), RemoveShare(strength))
        moved = edited(direction, intervention, x[None], torch.ones(1, len(x), dtype=torch.bool))[0] - x
        assert float(moved.norm(dim=-1).mean()) == pytest.approx(3.0, rel=1e-4)
    with pytest.raises(DataError, match="lower the threshold"):
        matching_strength(plain.gated(1e9), [shards["forget"]], mean_norm=3.0)


def test_a_direction_decodes_what_it_encodes():
    v = torch.tensor([0.6, 0.8, 0.0])
    direction = Direction(v[None])
    x = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])
    torch.testing.assert_close(direction.decode(direction.encode(x)), (x @ v)[:, None] * v)
    assert direction.latent_acts(x, torch.tensor([0])).tolist() == [[pytest.approx(2.2)], [pytest.approx(-0.6)]]
    assert direction.gated(0.0).latent_acts(x, torch.tensor([0])).tolist() == [[pytest.approx(2.2)], [0.0]]


def test_the_same_text_on_both_sides_gives_no_direction(shards):
    with pytest.raises(DataError, match="same mean"):
        difference_in_means([shards["forget"]], [shards["forget"]])
    with pytest.raises(DataError, match="needs retain tokens"):
        difference_in_means([shards["forget"]], [])


def test_activations_of_two_models_have_no_difference(shards, world):
    *_, readers = world
    with pytest.raises(ShardError, match="one site"):
        difference_in_means([shards["forget"]], [readers["retain"]])


# ---- refusals -----------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_training_before_the_step(tiny_llama, forget, retain):
    weights = fingerprint(tiny_llama)
    with pytest.raises(NumericalError, match=r"step 2 of 5 \(lr=1e\+30\)"):
        unlearn(tiny_llama, GradientAscent(steps=5, lr=1e30, batch_size=2), forget, retain)
    assert fingerprint(tiny_llama) == weights


@pytest.mark.parametrize(
    ("build", "kind", "says"),
    [
        (lambda sae: RMU(layer=9), ConfigError, "layer=9 is beyond"),
        (lambda sae: RMU(layer=1, coefficient=0.0), ConfigError, "cannot be trained"),
        (lambda sae: NPO(beta=0.0), ConfigError, "beta=0.0"),
        (lambda sae: NPO(retain="mse"), Exception, "retain"),
        (lambda sae: GradDiff(steps=0), ConfigError, "steps=0"),
        (lambda sae: CRISP(suppressed=()), ConfigError, "needs latents"),
        (lambda sae: CRISP(suppressed=(Suppressed(HookPoint(8), sae, (1,)),)), ConfigError, "layer=8 is beyond"),
        (lambda sae: CRISP(suppressed=(Suppressed(POINT, TopKSAE(40, 80, 4), (1,)),)), CheckpointError, "40 wide"),
        (
            lambda sae: CRISP(suppressed=(Suppressed(POINT, sae, (1,)),), writing=Writing(prompt_tokens=999)),
            DataError,
            "prompt_tokens",
        ),
    ],
)
def test_recipes_that_cannot_work_are_refused(tiny_llama, sae, forget, retain, build: Callable, kind, says):
    with pytest.raises(kind, match=says):
        unlearn(tiny_llama, build(sae), forget, retain)


def test_quantized_weights_are_refused(tiny_llama, forget, retain):
    with pytest.raises(UnsupportedModelError, match="4bit"):
        unlearn(replace(tiny_llama, quantize="4bit"), GradDiff(), forget, retain)


def test_without_peft_crisp_names_what_to_install(tiny_llama, sae, forget, retain, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"pip install 'sae-forge\[baselines\]'"):
        unlearn(tiny_llama, recipes(sae)[-1], forget, retain)


def test_progress_counts_steps(tiny_llama, sae, forget, retain):
    class Counter:
        def __init__(self) -> None:
            self.steps, self.title = 0, ""

        def say(self, line: str) -> None: ...

        @contextmanager
        def task(self, title, total, unit):
            self.title, self.total = title, total
            yield self

        def advance(self, amount: int, **facts: float | str) -> None:
            self.steps += amount

    counter = Counter()
    unlearn(tiny_llama, recipes(sae)[0], forget, retain, progress=counter)
    assert (counter.title, counter.total, counter.steps) == ("unlearn rmu", 2, 2)
    assert SILENT is not counter
