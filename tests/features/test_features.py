"""Statistics by hand on toy counts, selections from real shards, and files that are refused."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import log1p
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.features import analysis, scores
from sae_forge.features.analysis import separations, traces
from sae_forge.features.identity import file_name
from sae_forge.features.methods.method import Ranking, asked_of, reference_of
from sae_forge.features.methods.table import SELECTIONS
from sae_forge.features.places import TopPlaces
from sae_forge.features.scores import Measured
from sae_forge.features.select import choose, measure, select
from sae_forge.features.selection import Selection
from sae_forge.features.snippets import marked
from sae_forge.features.stats import LatentStats, firing_rates, survey, tally
from sae_forge.features.tables import COMPARED, comparison, table
from sae_forge.progress import Silent
from sae_forge.sae.dictionary import LatentActs
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.settings import features_config

FeaturesConfig: Any = features_config()
RANKS = {method.name: method.rank for method in SELECTIONS if method.rank}
WEIGHTS = "ab" * 32
NAME = "blocks.1.hook_resid_post/k5-d5-s0"
CTX = 7


class Ear(Silent):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def counts(
    tokens: int, fires: Sequence[int], means: Sequence[float] = (), *, clear: Sequence[int] | None = None
) -> LatentStats:
    """Statistics made up from fire counts and activations where firing (1 unless given), equal on every such token."""
    fired, acts = torch.tensor(fires), torch.tensor(means or [1.0] * len(fires)).double()
    none = torch.zeros(len(fires), 0, dtype=torch.long)
    return LatentStats(
        tokens=tokens,
        fires=fired,
        clear_fires=fired if clear is None else torch.tensor(clear),
        sums=fired * acts,
        squares=fired * acts * acts,
        peaks=torch.ones(len(fires)),
        top=TopPlaces(torch.zeros(len(fires), 0), none, none),
    )


def ranking(method: Any, forget: LatentStats, *retain: LatentStats, n: int = 9, **changes: Any) -> Ranking:
    """What a method makes of counts against numbered retain corpora."""
    config = FeaturesConfig(method=(method,), **changes)
    return RANKS[method](Measured(forget, {str(i): one for i, one in enumerate(retain)}), config, n)


def chosen_by(method: Any, forget: LatentStats, *retain: LatentStats, n: int = 9, **changes: Any) -> list[int]:
    return ranking(method, forget, *retain, n=n, **changes).best(n).tolist()


def compare(forget: LatentStats, *retain: LatentStats, formula: str = "corrected") -> scores.Selectivity:
    return scores.selectivity(forget, retain, formula=formula, smoothing=16.0, eps=1e-4)


def plain_sae(width: int) -> TopKSAE:
    """Latent j answers exactly x[j], so the shards' rows say which latents fire."""
    eye = torch.eye(width)
    return TopKSAE.from_weights(eye, torch.zeros(width), eye, torch.zeros(width), k=width)


def write_shards(folder: Path, acts: Tensor, *, special: Sequence[int] = ()) -> ShardReader:
    """Shards of sequences ``CTX`` tokens long; tokens in ``special`` leave no row. Token ids count up modulo 97."""
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=acts.shape[1],
        storage_dtype="fp32", ctx_len=CTX, bos="none", batch_size=3, max_tokens=None, corpus=folder.name,
        source=folder.name, role="forget",
    )  # fmt: skip
    with ShardWriter(folder, fingerprint, shard_rows=300) as writer:
        for batch, begin in enumerate(range(0, len(acts), 3 * CTX)):
            tokens = range(begin, min(begin + 3 * CTX, len(acts)))
            kept = torch.tensor([token for token in tokens if token not in special])
            ids = (kept % CTX).int(), (kept % 97).int()
            writer.write_batch(batch, acts[kept], kept // CTX, *ids, special=len(tokens) - len(kept))
        writer.finish()
    return ShardReader(folder)


def random_acts(rows: int, width: int, *, seed: int, share: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.rand(rows, width, generator=generator) + 0.01
    return torch.where(torch.rand(rows, width, generator=generator) < share, acts, torch.tensor(-1.0))


def topical(rows: int, *, forget: bool, seed: int) -> Tensor:
    """Five latents: 0 and 1 fire on what is forgotten, 2 on both, 3 on what is kept, 4 never."""
    acts = random_acts(rows, 5, seed=seed, share=1.0)
    shares = [0.10, 0.05, 0.30, 0.0, 0.0] if forget else [0.0, 0.002, 0.30, 0.10, 0.0]
    fires = torch.zeros(rows, 5, dtype=torch.bool)
    for latent, share in enumerate(shares):
        fires[torch.arange(rows) % 1000 < share * 1000, latent] = True
    return torch.where(fires, acts, torch.tensor(-1.0))


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> tuple[ShardReader, dict[str, ShardReader]]:
    root = tmp_path_factory.mktemp("corpora")
    retain = {name: write_shards(root / name, topical(3000, forget=False, seed=seed)) for seed, name in enumerate("ab")}
    return write_shards(root / "wizards", topical(4000, forget=True, seed=9)), retain


def spell(token_ids: list[int]) -> str:
    return "".join(f" t{token}" for token in token_ids)


# ---- scores by hand -----------------------------------------------------------------------------


def test_literal_scores_are_the_released_arithmetic_on_raw_counts():
    found = compare(counts(1000, [100], [2.0]), counts(4000, [40], [0.5]), formula="literal")
    assert found.ratio.item() == pytest.approx(116 / 56)
    assert found.act_ratio.item() == pytest.approx(2.0 / 0.5001)
    assert found.score.item() == pytest.approx((0.1 - 0.01) * log1p(116 / 56) * log1p(2.0 / 0.5001))


def test_corrected_scores_compare_both_corpora_at_the_shorter_length():
    forget, retain = counts(1000, [100, 7], [2.0, 1.0]), counts(4000, [40, 8], [0.5, 1.0])
    found = compare(forget, retain)
    overall = (40 * 0.5 + 8) / 48
    act_ratio = 2.0 / ((40 * 0.5 + 16 * overall) / 56)
    assert found.ratio[0].item() == pytest.approx(116 / (10 + 16))
    assert found.act_ratio[0].item() == pytest.approx(act_ratio)
    assert found.score[0].item() == pytest.approx(0.09 * log1p(116 / 26) * log1p(act_ratio))


def test_only_the_corrected_ratio_is_the_same_when_the_retain_corpus_is_repeated():
    forget = counts(1000, [100, 50])
    once, thrice = counts(2000, [40, 8]), counts(6000, [120, 24])
    assert torch.allclose(compare(forget, once).ratio, compare(forget, thrice).ratio)
    assert (compare(forget, once, formula="literal").ratio > compare(forget, thrice, formula="literal").ratio).all()


def test_a_latent_that_never_fires_on_retain_explodes_only_in_the_literal_form():
    forget, retain = counts(1000, [100, 100], [3.0, 3.0]), counts(1000, [0, 20], [0.0, 3.0])
    assert compare(forget, retain, formula="literal").act_ratio[0].item() == pytest.approx(3.0 / 1e-4)
    corrected = compare(forget, retain)
    assert corrected.act_ratio[0].item() == pytest.approx(1.0)  # shrunk to the corpus's mean of 3
    silent = compare(forget, counts(1000, [0, 0]))
    assert silent.act_ratio.tolist() == [scores.ACT_RATIO_MAX] * 2
    assert compare(counts(1000, [0]), counts(1000, [0])).score.isfinite().all()


def test_several_retain_corpora_count_by_the_one_where_the_latent_is_worst():
    forget = counts(1000, [100, 100], [2.0, 2.0])
    one, two = counts(1000, [1, 90], [1.0, 4.0]), counts(5000, [400, 0], [8.0, 0.0])
    both, alone = compare(forget, one, two), [compare(forget, one), compare(forget, two)]
    for name in ("score", "ratio", "diff", "act_ratio"):
        worst = torch.minimum(*(getattr(single, name) for single in alone))
        assert torch.equal(getattr(both, name), worst), name
    assert both.retain_frequency.tolist() == [0.08, 0.09]
    assert torch.equal(compare(forget, two, one).score, both.score)


PAPER = {"min_freq": 0.001, "min_target_fires": 64, "max_neutral_freq": 0.005, "max_freq": 0.2}
"""The bounds of INLP, where a latent fires on one in two thousand tokens."""


def test_unset_bounds_follow_how_common_latents_are_and_how_long_the_corpus_is():
    def passes(forget: LatentStats, retain: LatentStats, **bounds: float) -> list[bool]:
        return scores.sieve(ranking("inlp", forget, retain, **bounds).filters)[0].tolist()

    # as common as in a paper, k/d_sae = 0.0005, on a long corpus: the paper's bounds
    rare = [0] * 500
    forget, retain = (counts(100_000, [*fires, *rare]) for fires in ([200, 63, 20_000], [0, 0, 0]))
    assert passes(forget, retain)[:3] == passes(forget, retain, **PAPER)[:3] == [True, False, False]
    # eight times as common, k/d_sae = 0.007, and 9,000 tokens: ten fires will do, and 1 % of retain text is not much
    usual = [63] * 100
    forget, retain = (counts(9000, [*fires, *usual]) for fires in ([10, 8, 200], [0, 0, 80]))
    assert passes(forget, retain, ratio_smoothing=2.0)[:3] == [True, False, True]
    assert not any(passes(forget, retain, ratio_smoothing=2.0, **PAPER)[:3])


def test_every_inlp_bound_is_strict_but_the_fire_count():
    #             kept | 63 fires | p = .001 | p = .2 | retain p = .005 | ratio = 2
    forget = counts(64_000, [128, 63, 64, 12_800, 3200, 128])
    retain = counts(64_000, [0, 0, 0, 0, 320, 56])
    valid, removed = scores.sieve(ranking("inlp", forget, retain, **PAPER).filters)
    assert valid.tolist() == [True] + [False] * 5
    assert removed == {"min_target_fires": 1, "min_freq": 1, "max_freq": 1, "max_neutral_freq": 1, "min_ratio": 1}


def test_inlp_admits_what_lies_just_inside_its_bounds():
    forget = counts(63_999, [64, 12_799, 3200, 129])
    retain = counts(64_001, [0, 0, 320, 56])
    assert scores.sieve(ranking("inlp", forget, retain).filters)[0].all()


def test_farrell_zeroes_at_the_threshold_and_drops_what_never_fires():
    forget, retain = counts(1000, [50, 400, 0, 70, 70]), counts(1000, [9, 10, 0, 0, 0])
    found = ranking("frequency", forget, retain)
    assert scores.sieve(found.filters)[1] == {"never_fires_on_forget": 1, "retain_threshold": 1}
    assert found.best(9).tolist() == [3, 4, 0]  # ties by index
    assert found.best(1).tolist() == [3]
    assert chosen_by("frequency", forget, retain, retain_threshold=0.0101) == [1, 3, 4, 0]


def test_sort_by_names_the_statistic_that_ranks():
    forget, retain = counts(1000, [100, 64, 150, 70], [1.0, 1.0, 1.0, 8.0]), counts(1000, [3, 0, 4, 3])
    found = compare(forget, retain)
    for statistic in ("score", "ratio", "diff", "act_ratio"):
        order = chosen_by("inlp", forget, retain, sort_by=statistic)
        expected = sorted(range(4), key=lambda latent: (-getattr(found, statistic)[latent].item(), latent))
        assert order == expected, statistic
    assert chosen_by("inlp", forget, retain, sort_by="diff")[0] == 2
    assert chosen_by("inlp", forget, retain, sort_by="act_ratio")[0] == 3


# ---- the other methods by hand ------------------------------------------------------------------


def test_dsg_ratio_orders_by_importance_what_stands_high_beside_retain():
    #                      strong, also on retain | weak, never on retain | strongest, common | forget-dead
    forget = counts(1000, [200, 10, 400, 0], [2.0, 1.0, 3.0, 1.0])
    retain = counts(2000, [40, 0, 800, 5], [2.0, 1.0, 3.0, 1.0])
    importance = [0.4**2, 0.01**2, 1.2**2, 0.0]
    ratio = [0.16 / (0.04**2 + 1e-21), 1e-4 / 1e-21, 1.0, 0.0]
    found = ranking("dsg_ratio", forget, retain, p_ratio=50)
    assert found.by.tolist() == pytest.approx(importance)
    # The median of [100, 1e17, 1, 0] is halfway between 1 and 100.
    assert sorted(ratio)[1:3] == pytest.approx([1.0, 100.0])
    assert found.filters["p_ratio"].tolist() == [True, True, False, False]
    assert found.best(9).tolist() == [0, 1]
    assert chosen_by("dsg_ratio", forget, retain, p_ratio=100) == [1]  # a percentile that is reached is enough
    assert chosen_by("dsg_ratio", forget, retain, p_ratio=0) == [2, 0, 1]  # a dead latent is never of use


def test_dsg_percentiles_are_over_all_latents_dead_ones_too():
    """Of 100 latents 90 are dead; the 95th percentile of the ratio then lies among the ten that live."""
    forget = counts(1000, [0] * 90 + list(range(10, 110, 10)))
    retain = counts(1000, [0] * 90 + [10] * 10)
    assert chosen_by("dsg_ratio", forget, retain) == [99, 98, 97, 96, 95]
    assert ranking("dsg_ratio", forget, retain).filters["importance"].all()


def test_dsg_takes_the_percentile_of_importance_too():
    forget, retain = counts(1000, list(range(1, 101))), counts(1000, [0] * 100)
    kept = ranking("dsg_ratio", forget, retain, p_ratio=0).filters["importance"]
    assert kept.tolist() == [False] * 5 + [True] * 95  # rank 4.95 lies above the fifth smallest


def test_the_two_moments_of_dsg_differ_where_a_latent_is_rare_and_strong():
    forget, retain = counts(1000, [10, 200, 0], [10.0, 1.0, 1.0]), counts(1000, [0, 0, 0])
    assert chosen_by("dsg_ratio", forget, retain, p_ratio=0, moment="sq_mean") == [1, 0]  # 0.1^2 against 0.2^2
    assert chosen_by("dsg_ratio", forget, retain, p_ratio=0, moment="mean_sq") == [0, 1]  # 1.0 against 0.2
    found = ranking("dsg_ratio", forget, retain, moment="mean_sq").by
    assert found.tolist() == pytest.approx([10 * 100 / 1000, 0.2, 0.0])


def test_conditional_counts_activations_above_its_own_threshold():
    forget = counts(10_000, [900, 800, 700, 600], clear=[500, 800, 0, 600])
    retain = counts(10_000, [90, 90, 0, 1], clear=[0, 90, 0, 1])
    found = ranking("conditional", forget, retain)
    assert scores.sieve(found.filters)[1] == {"never_fires_on_forget": 0, "fire_threshold": 1, "retain_threshold": 2}
    assert found.best(9).tolist() == [0]  # 1 of 10,000 is not below 1e-4
    assert found.by[0].item() == 0.05
    assert chosen_by("conditional", forget, retain, retain_threshold=0.00011) == [3, 0]


def test_one_flag_has_each_methods_own_default():
    of = {method.name: method.thresholds for method in SELECTIONS}
    assert of["frequency"](FeaturesConfig()) == {"retain_threshold": 0.01}
    assert of["conditional"](FeaturesConfig()) == {"retain_threshold": 1e-4}
    assert of["conditional"](FeaturesConfig(retain_threshold=0.3)) == {"retain_threshold": 0.3}


def test_crisp_looks_at_ten_times_as_many_as_it_takes_and_keeps_the_active():
    #                       0: excess 90, rel 200/(20+1) | 1: excess 80, rel 3 | 2: rel just below | 3..: small excess
    forget = counts(1000, [100, 90, 90] + [30] * 20, [2.0, 0.7, 0.69] + [5.0] * 20)
    retain = counts(4000, [40, 40, 40] + [0] * 20, [2.0, 0.5, 0.5] + [0.0] * 20)
    found = ranking("crisp", forget, retain, n=1)
    common = 1000  # 40 of 4000 are 10 of 1000
    assert found.by[:3].tolist() == pytest.approx([90, 80, 80])
    relative = [100 * 2.0 / (10 * 2.0 + 1), 90 * 0.7 / (10 * 0.5 + 1), 90 * 0.69 / (10 * 0.5 + 1)]
    assert [value >= 3 for value in relative] == [True, True, True]
    assert common == min(forget.tokens, retain.tokens)
    assert found.filters["crisp_pool"].nonzero()[:, 0].tolist() == list(range(10))
    assert found.best(1).tolist() == [0]
    assert ranking("crisp", forget, retain, n=2).filters["crisp_pool"].sum() == 20


def test_crisp_keeps_a_ratio_of_exactly_three():
    #          A_F / (A_R + 1): 9 / 3 | 8.9 / 3 | 3 / 1, silent on retain
    forget, retain = counts(100, [9, 10, 3], [1.0, 0.89, 1.0]), counts(100, [2, 2, 0])
    assert ranking("crisp", forget, retain).filters["crisp_ratio"].tolist() == [True, False, True]


def test_several_retain_corpora_are_the_worst_of_them_for_every_method():
    """The second corpus condemns latent 1 under every method; alone, the first lets it pass."""
    forget = counts(10_000, [1000, 2000, 10], [3.0, 3.0, 1.0])
    kind, harsh = counts(10_000, [0, 0, 0]), counts(40_000, [0, 16_000, 0], [0.0, 3.0, 0.0])
    for method, changes in (
        ("inlp", {}), ("frequency", {}), ("conditional", {}), ("crisp", {}), ("dsg_ratio", {"p_ratio": 50}),
    ):  # fmt: skip
        assert 1 not in chosen_by(method, forget, kind, harsh, n=2, **changes), method
        assert 1 not in chosen_by(method, forget, harsh, kind, n=2, **changes), method
    assert chosen_by("frequency", forget, kind)[:2] == [1, 0]


def test_top_mean_looks_at_the_forget_corpus_alone():
    forget = counts(1000, [100, 10, 0, 50], [1.0, 20.0, 0.0, 2.0])
    assert chosen_by("top_mean", forget, counts(1000, [500, 500, 500, 500])) == [1, 0, 3]  # 0.2, then 0.1 twice


def test_random_latents_are_alive_and_another_seed_draws_others():
    forget, retain = counts(1000, [1] * 30 + [0] * 70), counts(1000, [0] * 30 + [1] * 30 + [0] * 40)
    drawn = chosen_by("random", forget, retain, n=20)
    assert len(set(drawn)) == 20
    assert max(drawn) < 60
    assert drawn == chosen_by("random", forget, retain, n=20)
    assert drawn != chosen_by("random", forget, retain, n=20, seed=1)
    assert sorted(chosen_by("random", forget, retain, n=99)) == list(range(60))
    assert chosen_by("random", forget, retain, n=5) == drawn[:5]


def test_matched_latents_share_the_deciles_of_what_they_are_matched_to():
    """100 latents in ten deciles of ten; inlp takes some of them, and each drawn one lies in its partner's decile."""
    forget = counts(100_000, [100 * (i + 1) for i in range(100)])
    retain = counts(100_000, [0 if i % 3 == 0 else 40_000 for i in range(100)])
    reference = chosen_by("inlp", forget, retain, n=15)
    drawn = chosen_by("random_matched", forget, retain, n=15)
    assert [latent // 10 for latent in drawn] == [latent // 10 for latent in reference]
    assert not set(drawn) & set(reference)
    assert len(set(drawn)) == 15
    assert drawn != chosen_by("random_matched", forget, retain, n=15, seed=3)
    assert chosen_by("random_matched", forget, retain, n=6) != reference[:6]


def test_a_decile_with_nobody_left_gives_fewer_matches():
    forget, retain = counts(100_000, [1000] * 5 + [5000] * 5), counts(100_000, [0] * 10)
    config = FeaturesConfig(method=("frequency", "random_matched"))
    found = RANKS["random_matched"](Measured(forget, {"r": retain}), config, 8)
    assert reference_of(config).name == "frequency"
    assert len(found.best(8)) == 2  # of eight taken, two of the lower five are left over
    assert set(found.best(8).tolist()) == {3, 4}


def test_matching_is_to_the_first_method_that_ranks():
    assert reference_of(FeaturesConfig(method=("random", "random_matched"))).name == "inlp"
    assert reference_of(FeaturesConfig(method=("random", "crisp", "inlp"))).name == "crisp"


def test_all_names_every_method_but_the_one_that_needs_a_model():
    assert tuple(one.name for one in asked_of(FeaturesConfig(method=("frequency", "all")))) == (
        "frequency", "inlp", "dsg_ratio", "conditional", "crisp", "top_mean", "random_matched", "random",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="inlp,inlp: name each method once"):
        FeaturesConfig(method=("inlp", "inlp"))
    with pytest.raises(ConfigError, match=r"--method luck: choose one of inlp, frequency.*attribution, all"):
        asked_of(FeaturesConfig(method=("luck",)))


# ---- one pass -----------------------------------------------------------------------------------


def test_a_survey_of_shards_equals_plain_sums_over_real_tokens(tmp_path: Path):
    acts, special = random_acts(1003, 11, seed=3), range(0, 1003, CTX)
    reader = write_shards(tmp_path / "corpus", acts, special=special)
    found = survey(reader, plain_sae(11), title="x", keep_top=3, watch=torch.ones(11, dtype=torch.bool))
    kept = acts[[token for token in range(1003) if token not in special]].clamp(min=0).double()
    assert found.tokens == len(kept) == 1003 - 144
    assert torch.equal(found.fires, (kept > 0).sum(0))
    assert torch.equal(found.frequency, (kept > 0).double().mean(0))
    torch.testing.assert_close(found.mean, kept.mean(0))
    torch.testing.assert_close(found.mean_square, kept.square().mean(0))
    assert torch.equal(found.peaks.double(), kept.amax(0))
    assert torch.equal(found.top.acts[:, 0], found.peaks)
    assert torch.equal(found.clear_fires, found.fires)
    strict = survey(reader, plain_sae(11), title="x", fire_threshold=0.5)
    assert torch.equal(strict.clear_fires, (kept > 0.5).sum(0))
    assert torch.equal(strict.fires, found.fires)


@given(cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_parts_add_up_to_the_whole_wherever_they_are_cut(cuts: list[int], seed: int):
    acts = (random_acts(60, 6, seed=seed, share=0.4) * 8).round() / 8  # coarse, so that ties are common
    indices = torch.arange(6).expand(60, 6)
    seq_ids, places = torch.arange(60) // CTX, torch.arange(60)
    watch = torch.tensor([True, True, False, True, False, False])

    def part(rows: slice, floor: Tensor | None = None) -> LatentStats:
        return tally(
            acts[rows].clamp(min=0), indices[rows], seq_ids[rows], places[rows], d_sae=6, keep_top=3, watch=watch,
            floor=floor, fire_threshold=0.5,
        )  # fmt: skip

    whole, edges = part(slice(0, 60)), [0, *sorted(cuts), 60]
    parts = [part(slice(a, b)) for a, b in pairwise(edges)]
    running = [parts[0]]
    for a, b in pairwise(edges[1:]):
        running.append(part(slice(a, b), floor=sum(running[1:], running[0]).top.floor))
    for order in (parts, parts[::-1], running):
        merged = order[0]
        for other in order[1:]:
            merged = merged + other
        assert merged.tokens == 60
        assert torch.equal(merged.fires, whole.fires)
        assert torch.equal(merged.clear_fires, whole.clear_fires)
        torch.testing.assert_close(merged.sums, whole.sums)
        assert torch.equal(merged.peaks, whole.peaks)
        assert torch.equal(merged.top.acts, whole.top.acts)
        assert torch.equal(merged.top.places, whole.top.places)
        for latents in ([0], [0, 1, 3], []):
            chosen = torch.tensor(latents, dtype=torch.long)
            assert firing_rates(merged.firings, chosen) == firing_rates(whole.firings, chosen)


def test_top_places_are_the_peaks_of_the_strongest_sequences():
    acts = torch.tensor([0.5, 0.9, 0.8, 0.0, 0.7, 0.7, 0.6, 0.1]).unsqueeze(1)
    seq_ids = torch.tensor([0, 0, 0, 1, 2, 2, 3, 4])
    top = tally(acts, torch.zeros(8, 1, dtype=torch.long), seq_ids, torch.arange(8), d_sae=2, keep_top=3).top
    assert top.places.tolist() == [[1, 4, 6], [-1, -1, -1]]
    assert top.seq_ids[0].tolist() == [0, 2, 3]
    torch.testing.assert_close(top.acts[0], torch.tensor([0.9, 0.7, 0.6]))


def test_firing_rates_count_a_token_once_however_many_latents_fire_on_it(tmp_path: Path):
    acts = random_acts(500, 9, seed=5, share=0.3)
    reader = write_shards(tmp_path / "corpus", acts, special=[0, 8, 9, 499])
    found = survey(reader, plain_sae(9), title="x", watch=torch.ones(9, dtype=torch.bool))
    chosen = [7, 2, 4]
    fires = (acts[:, chosen] > 0).any(1)
    expected = []
    for begin in range(0, 500, CTX):
        real = [token for token in range(begin, min(begin + CTX, 500)) if token not in (0, 8, 9, 499)]
        expected.append(sum(bool(fires[token]) for token in real) / len(real))
    assert firing_rates(found.firings, torch.tensor(chosen)) == tuple(expected)


def test_firings_are_sampled_by_whole_sequences():
    acts = torch.ones(28, 1)
    part = tally(
        acts, torch.zeros(28, 1, dtype=torch.long), torch.arange(28) // CTX, torch.arange(28), d_sae=1,
        watch=torch.ones(1, dtype=torch.bool), every=3,
    )  # fmt: skip
    assert part.tokens == 28
    assert part.firings[0].seq_ids.tolist() == [0, 3]
    assert firing_rates(part.firings, torch.tensor([0])) == (1.0, 1.0)


def test_shards_of_another_width_than_the_sae_are_refused(tmp_path: Path):
    reader = write_shards(tmp_path / "corpus", random_acts(40, 6, seed=0))
    with pytest.raises(ShardError, match="6 wide and the SAE reads 5"):
        survey(reader, plain_sae(5), title="forget")


# ---- selecting ----------------------------------------------------------------------------------


def make(
    corpora: Any, decode: Callable[[list[int]], str] | None = None, progress: Any = None, **changes: Any
) -> Selection:
    (found,) = make_all(corpora, decode, progress, **changes).values()
    return found


def make_all(
    corpora: Any, decode: Callable[[list[int]], str] | None = None, progress: Any = None, **changes: Any
) -> dict[str, Selection]:
    forget, retain = corpora
    config = FeaturesConfig(**{"num_features": (2,), **changes})
    return select(forget, retain, plain_sae(5), config, decode, progress or Silent(), name=NAME, weights=WEIGHTS)


def test_selection_finds_the_topical_latents_and_says_why_the_others_fell(corpora):
    ear = Ear()
    found = make(corpora, progress=ear, max_freq=0.25)
    assert found.indices == (0, 1)
    assert (found.requested, found.candidates) == (2, 2)
    assert found.filtered == {
        "min_target_fires": 2,
        "min_freq": 0,
        "max_freq": 1,
        "max_neutral_freq": 0,
        "min_ratio": 0,
    }
    assert sum(found.filtered.values()) + found.candidates == found.d_sae
    assert found.latents[1].forget_frequency == 0.05
    assert found.latents[1].retain_frequency == 0.002
    assert found.latents[0].forget.fires == 400
    assert ear.lines == []


def test_retain_rates_are_those_of_the_chosen_latents_per_sequence(corpora):
    found = make(corpora)
    fires = (topical(3000, forget=False, seed=0)[:, list(found.indices)] > 0).any(1)
    rates = found.retain_rates["a"]
    assert len(rates) == -(-3000 // CTX)
    assert sum(rate * min(CTX, 3000 - CTX * seq) for seq, rate in enumerate(rates)) == pytest.approx(int(fires.sum()))
    assert rates[0] == 2 / CTX


def test_fewer_valid_latents_than_asked_are_taken_with_a_warning(corpora):
    ear = Ear()
    found = make(corpora, progress=ear, num_features=(1, 50))
    assert (found.requested, len(found.latents)) == (50, 2)
    assert len(ear.lines) == 1
    assert "50" in ear.lines[0]
    assert "min_target_fires removed 2" in ear.lines[0]


def test_no_valid_latents_names_what_each_filter_removed(corpora):
    with pytest.raises(DataError, match=r"none of the 5 .* min_target_fires removed 2, max_freq removed 3"):
        make(corpora, max_freq=0.01)
    with pytest.raises(DataError, match="never_fires_on_forget removed 2, retain_threshold removed 3"):
        make(corpora, method=("frequency",), retain_threshold=0.0)


def test_no_valid_latents_names_the_filter_and_the_value_that_would_admit_as_many(corpora):
    with pytest.raises(DataError, match="would admit") as refused:
        make(corpora, **PAPER | {"max_freq": 0.01}, num_features=(2,))
    name, value, count = re.search(r"--(\w+) (\S+) instead of 0\.01 would admit (\d)", str(refused.value)).groups()
    assert (name, count) == ("max_freq", "2")
    assert make(corpora, **PAPER | {"max_freq": float(value)}, num_features=(2,)).candidates >= 2
    with pytest.raises(ConfigError, match=r"--min_freq 0\.3 and --max_freq 0\.2 let no latent pass"):
        FeaturesConfig(min_freq=0.3, max_freq=0.2)


def test_the_value_that_would_admit_is_whole_where_the_setting_is(corpora, tmp_path):
    acts = topical(4000, forget=True, seed=9)
    acts[7:] = -1
    with pytest.raises(DataError, match=r"--min_target_fires 7 instead of 8 would admit 2\b"):
        make((write_shards(tmp_path / "few", acts), corpora[1]), min_freq=0.0, min_ratio=0.0)


def test_frequency_selection_ranks_by_forget_frequency(corpora):
    found = make(corpora, method=("frequency",), retain_threshold=0.5, num_features=(9,))
    assert found.indices == (2, 0, 1)
    assert [latent.score for latent in found.latents] == [latent.forget_frequency for latent in found.latents]


def test_a_given_list_is_taken_as_it_is(corpora):
    found = make(corpora, latents=(3, 0))
    assert (found.method, found.indices, found.requested, found.filtered) == ("given", (3, 0), 2, {})
    assert max(found.retain_rates["a"]) == 1.0  # latent 3 fires on whole sequences of retain text
    with pytest.raises(ConfigError, match="names 5, but the SAE has latents 0 to 4"):
        make(corpora, latents=(0, 5))
    with pytest.raises(ConfigError, match="twice"):
        make(corpora, latents=(1, 1))


def test_settings_that_would_divide_by_zero_are_refused(corpora):
    with pytest.raises(ConfigError, match="ratio_smoothing 0"):
        make(corpora, ratio_smoothing=0.0)
    with pytest.raises(ConfigError, match="activation_eps"):
        make(corpora, activation_eps=0.0)
    with pytest.raises(DataError, match="retain"):
        make((corpora[0], {}))


def test_one_measurement_serves_several_choices(corpora):
    forget, retain = corpora
    config = FeaturesConfig(num_features=(2,), min_target_fires=1)
    measured = measure(forget, retain, plain_sae(5), config)
    by_diff = FeaturesConfig(num_features=(1,), min_target_fires=1, sort_by="diff", formula="literal")
    found = choose(measured, forget, retain, plain_sae(5), by_diff, name=NAME, weights=WEIGHTS)
    assert found["inlp"] == make(corpora, num_features=(1,), min_target_fires=1, sort_by="diff", formula="literal")


@pytest.mark.slow
def test_several_methods_are_chosen_from_one_measurement(corpora):
    changes = {"min_target_fires": 1, "num_features": (2,), "p_ratio": 50}
    found = make_all(corpora, method=("frequency", "all"), **changes)
    # No latent is left to match those of frequency: the others of their deciles do not fire.
    assert list(found) == ["frequency", "inlp", "dsg_ratio", "conditional", "crisp", "top_mean", "random"]
    for method, selection in found.items():
        assert selection.method == method
        assert selection == make(corpora, method=(method,), **changes), method


def test_of_several_methods_one_that_finds_nothing_is_told_and_left_out(corpora):
    ear = Ear()
    found = make_all(corpora, progress=ear, method=("inlp", "frequency"), min_freq=0.9, max_freq=1.0)
    assert list(found) == ["frequency"]
    (line,) = ear.lines
    assert line.startswith(
        "none of the 5 latents is valid for --method inlp: min_target_fires removed 2, min_freq removed 3"
    )
    assert line.endswith("; left out")
    with pytest.raises(DataError, match=r"--method inlp: .*--method frequency: .*loosen"):
        make_all(corpora, method=("inlp", "frequency"), min_freq=0.9, max_freq=1.0, retain_threshold=0.0)


def test_attribution_is_refused_before_anything_is_read(corpora):
    with pytest.raises(ConfigError, match="attribution asks the model"):
        make(corpora, method=("inlp", "attribution"))


def test_scores_are_what_the_method_ranks_by(corpora):
    found = make_all(corpora, method=("top_mean", "crisp", "random"), num_features=(2,))
    top = found["top_mean"]
    assert [latent.score for latent in top.latents] == [latent.forget.mean for latent in top.latents]
    excess = [(latent.forget_frequency - latent.retain_frequency) * 3000 for latent in found["crisp"].latents]
    assert [latent.score for latent in found["crisp"].latents] == pytest.approx(excess)


def test_dead_latents_are_those_that_fire_in_no_corpus(corpora):
    found = make(corpora)
    assert found.dead == (4,)
    assert found.alive == (0, 1, 2, 3)
    assert found.metrics()["alive"] == 4
    assert make(corpora, method=("random",), num_features=(9,)).candidates == 4


def test_the_refusal_latent_is_the_one_that_fires_most_where_the_model_refuses(corpora, tmp_path: Path):
    forget, retain = corpora
    acts = torch.full((70, 5), -1.0)
    acts[:30, 0], acts[20:60, 4], acts[:50, 3] = 1.0, 0.5, 0.2
    refusal, ear = write_shards(tmp_path / "refusals", acts), Ear()

    def found(progress: Any = None, **changes: Any) -> int | None:
        config = FeaturesConfig(num_features=(2,), refusal="refusals", **changes)
        kwargs = {"name": NAME, "weights": WEIGHTS, "refusal": refusal}
        chosen = select(forget, retain, plain_sae(5), config, None, progress or Silent(), **kwargs)
        return chosen["inlp"].refusal_latent

    assert found(ear) == 3
    assert len(ear.lines) == 1, "latent 3 fires on a tenth of the retain tokens"
    assert "3 also fires on 10.0%" in ear.lines[0]
    assert found(fire_threshold=0.3) == 4
    with pytest.raises(DataError, match="no latent fires on the refusal text refusals"):
        found(fire_threshold=2.0)
    assert make(corpora, refusal_latent=2).refusal_latent == 2
    assert make(corpora).refusal_latent is None
    with pytest.raises(ConfigError, match="refusal_latent names 5, but the SAE has latents 0 to 4"):
        make(corpora, refusal_latent=5)
    with pytest.raises(ConfigError, match="give one of them"):
        FeaturesConfig(refusal="x", refusal_latent=1)


# ---- analysis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [10**6, 300])
def test_a_selection_is_analysed_on_whole_sequences_of_every_corpus(tmp_path: Path, sample: int):
    """Against a plain computation on the same tokens, with and without sampling."""
    acts = {name: random_acts(1000, 8, seed=seed, share=0.3) for seed, name in enumerate(("f", "a", "b"))}
    acts["f"][:, 2] += 0.5
    acts["f"][:, 5] = -1.0
    acts["a"][:, 5], acts["b"][:, 5] = -1.0, -1.0
    readers = {name: write_shards(tmp_path / name, rows) for name, rows in acts.items()}
    latents = torch.tensor([2, 5, 7])
    chosen = {"x": latents, "y": torch.tensor([0])}
    retain = {name: readers[name] for name in "ab"}
    found = separations(readers["f"], retain, plain_sae(8), chosen, sample_tokens=sample)
    every = -(-1000 // sample)
    kept = {name: rows[(torch.arange(1000) // CTX) % every == 0].clamp(min=0) for name, rows in acts.items()}
    assert found["x"].tokens == {"forget": len(kept["f"]), "retain a": len(kept["a"]), "retain b": len(kept["b"])}
    strongest = {name: rows[:, latents].amax(1) for name, rows in kept.items()}

    def pairs(positive: Tensor, negative: Tensor) -> float:
        difference = positive[:, None] - negative[None, :]
        return ((difference > 0).double() + 0.5 * (difference == 0).double()).mean().item()

    assert found["x"].auroc == pytest.approx(pairs(strongest["f"], torch.cat([strongest["a"], strongest["b"]])))
    assert found["x"].auroc_by_corpus == pytest.approx({name: pairs(strongest["f"], strongest[name]) for name in "ab"})
    r = torch.corrcoef(torch.cat(list(kept.values()))[:, [2, 7]].T)[0, 1].abs().item()  # latent 5 never moves
    assert found["x"].mean_correlation == pytest.approx(r, abs=1e-5)
    assert found["x"].max_correlation == found["x"].mean_correlation
    assert found["y"].mean_correlation is None


def test_correlations_are_pearsons_and_take_the_best_latents_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    acts = random_acts(700, 6, seed=4, share=0.5)
    acts[:, 1] = acts[:, 0] * 2
    readers = [write_shards(tmp_path / name, rows) for name, rows in (("f", acts), ("r", acts[:350]))]

    def found() -> Any:
        return separations(readers[0], {"r": readers[1]}, plain_sae(6), {"x": torch.tensor([0, 1, 3, 4])})["x"]

    every = torch.corrcoef(torch.cat([acts, acts[:350]])[:, [0, 1, 3, 4]].clamp(min=0).T).abs()
    upper = every[tuple(torch.triu_indices(4, 4, 1))]
    assert found().mean_correlation == pytest.approx(upper.mean().item(), abs=1e-5)
    assert found().max_correlation == pytest.approx(1.0, abs=1e-6)
    monkeypatch.setattr(analysis, "CORRELATED", 2)
    assert found().mean_correlation == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_overlap_is_with_what_every_other_method_would_take(corpora):
    found = make(corpora, num_features=(2,), p_ratio=50)
    assert found.analysis is not None
    assert set(found.analysis.overlap) == {"frequency", "dsg_ratio", "conditional", "crisp", "top_mean", "random"}
    for method, overlap in found.analysis.overlap.items():
        try:
            theirs = set(make(corpora, method=(method,), p_ratio=50).indices)
        except DataError:
            theirs = set()
        mine = set(found.indices)
        assert overlap == len(mine & theirs) / len(mine | theirs), method
    assert found.analysis.overlap["frequency"] == 1.0
    assert found.analysis.overlap["top_mean"] == pytest.approx(1 / 3)
    given = make(corpora, latents=(3, 0)).analysis
    assert given is not None
    assert given.overlap["inlp"] == pytest.approx(1 / 3)


def test_traces_are_the_activations_of_whole_sequences_in_order(tmp_path: Path):
    acts, special = random_acts(700, 6, seed=2, share=0.5), [0, 8, 300, 301]
    reader, latents = write_shards(tmp_path / "c", acts, special=special), torch.tensor([4, 0])
    real = [[t for t in range(begin, begin + CTX) if t not in special] for begin in range(0, 700, CTX)]
    for limit, stride in ((1000, 1), (100, 1), (99, 2), (10, 10), (1, 100)):
        found = traces(reader, plain_sae(6), latents, limit)
        assert len(found) == 100 // stride <= limit
        for trace, tokens in zip(found, real[::stride], strict=True):
            assert torch.equal(trace, acts[tokens][:, [4, 0]].clamp(min=0))


class Wide(TopKSAE):
    """A dictionary without ``k``: on each token all latents that fire, as many columns as the densest token needs."""

    def encode(self, x: Tensor) -> LatentActs:
        acts = self.pre_acts(x).relu()
        width = max(1, int((acts > 0).sum(-1).max()))
        top = acts.topk(width, dim=-1)
        return LatentActs(top.values, top.indices)


def test_a_dictionary_with_another_number_of_columns_gives_the_same_selection(corpora):
    forget, retain = corpora
    eye = torch.eye(5)
    wide = Wide.from_weights(eye, torch.zeros(5), eye, torch.zeros(5), k=1)
    config = FeaturesConfig(num_features=(2,))
    found = select(forget, retain, wide, config, name=NAME, weights=WEIGHTS)
    assert found["inlp"] == make(corpora)


def test_the_comparison_has_a_row_for_each_method(corpora):
    found = make_all(corpora, method=("inlp", "top_mean", "random"), num_features=(2,))
    rows = comparison(found)
    assert [row[0] for row in rows] == ["inlp", "top_mean", "random"]
    assert all(len(row) == len(COMPARED) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[0][3:5] == ("7.500%", "0.100%")
    assert (rows[0][-1], rows[1][-1]) == ("2", "1")


# ---- snippets -----------------------------------------------------------------------------------


def test_snippets_show_the_peak_token_within_its_own_sequence(tmp_path: Path):
    acts = torch.full((2000, 5), -1.0)
    peaks = [3, 255, 256, 701, 1999]
    for rank, token in enumerate(peaks):
        acts[token, 0] = 9.0 - rank
    forget = write_shards(tmp_path / "forget", acts, special=[700])
    retain = {"r": write_shards(tmp_path / "retain", topical(500, forget=False, seed=1))}
    found = make((forget, retain), spell, latents=(0, 4), snippets=4)
    assert found.latents[1].snippets == ()
    texts = []
    for token in [3, 255, 701, 1999]:  # 256 is in the sequence of 255, and weaker
        near = [t for t in range(token - token % CTX, min(token - token % CTX + CTX, 2000)) if t != 700]
        texts.append(" ".join(f"«t{t % 97}»" if t == token else f"t{t % 97}" for t in near))
    assert [snippet.text for snippet in found.latents[0].snippets] == texts
    assert [snippet.act for snippet in found.latents[0].snippets] == [9.0, 8.0, 6.0, 5.0]
    assert (found.latents[0].snippets[0].seq_id, found.latents[0].snippets[0].position) == (0, 3)


def test_a_dropped_special_token_ends_the_context(tmp_path: Path):
    acts = torch.full((70, 5), -1.0)
    acts[10, 0] = 1.0
    forget = write_shards(tmp_path / "forget", acts, special=[8, 12])
    retain = {"r": write_shards(tmp_path / "retain", topical(500, forget=False, seed=1))}
    assert make((forget, retain), spell, latents=(0,)).latents[0].snippets[0].text == "t9 «t10» t11"


def test_marking_keeps_spaces_outside_and_survives_split_characters():
    assert marked([1, 2, 3], 1, spell) == "t1 «t2» t3"
    pieces = {0: b"a", 1: b"\xc3", 2: b"\xa9", 3: b"b"}

    def by_bytes(ids: list[int]) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    assert marked([0, 1, 2, 3], 1, by_bytes) == "a«�»�b"
    assert marked([0, 3], 0, by_bytes) == "«a»b"
    assert marked([7], 0, lambda ids: "\n" * len(ids)) == "« »"


# ---- the file -----------------------------------------------------------------------------------


def test_a_selection_survives_its_file_and_comes_out_the_same_to_the_byte(corpora, tmp_path: Path):
    found = make(corpora, spell)
    path = tmp_path / "features" / "inlp-00000000.json"
    found.save(path)
    assert Selection.load(path, weights=WEIGHTS) == found
    again = tmp_path / "again.json"
    make(corpora, spell).save(again)
    assert path.read_bytes() == again.read_bytes()
    assert str(tmp_path) not in path.read_text()


def test_a_selection_can_be_freed_of_corpus_text(corpora):
    found = make(corpora, spell)
    assert "«" in json.dumps(found.to_json(), ensure_ascii=False)
    assert "«" not in json.dumps(found.without_snippets().to_json(), ensure_ascii=False)
    assert found.without_snippets().indices == found.indices


def test_metrics_carry_what_the_command_line_promises(corpora):
    metrics = json.loads(json.dumps(make(corpora).metrics()))
    assert {"method", "candidates", "filtered", "latents"} <= set(metrics)
    assert {"index", "score", "forget_frequency", "retain_frequency"} <= set(metrics["latents"][0])


def test_the_table_is_text_with_a_row_for_each_latent(corpora):
    heads, rows = table(make(corpora, spell))
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(len(row) == len(heads) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[0][2:4] == ("10.000%", "0.000%")
    assert "«" in rows[0][heads.index("fires most on")] and rows[0][heads.index("on content words")].endswith("%")


def test_the_order_that_is_said_is_the_order_they_stand_in(corpora):
    made = make(corpora)
    assert (made.order, len(made.indices)) == ("highest score first", 2)
    turned = replace(made, latents=made.latents[::-1])
    assert turned.order == "in the order they were chosen"
    rising = [replace(latent, score=float(n), diff=-float(n)) for n, latent in enumerate(made.latents)]
    by_diff = replace(made, latents=tuple(rising), settings=made.settings | {"sort_by": "diff"})
    assert by_diff.order == "highest diff first"
    assert table(by_diff)[0][:3] == ("latent", "score", "diff")


def test_file_names_change_with_what_decides_the_content_and_with_nothing_else(corpora):
    forget, retain = corpora

    def name_of(method: str = "inlp", /, *, shards: Any = retain, weights: str = WEIGHTS, **changes: Any) -> str:
        return file_name(method, FeaturesConfig(**changes), forget, shards, weights)

    name = name_of()
    assert name.startswith("inlp-")
    same = [{"shard_rows": 9}, {"num_features": (10, 100)}, {"method": ("inlp", "crisp")}, {"retain_threshold": None}]
    assert {name_of(**changes) for changes in same} == {name}
    others = [
        name_of(min_ratio=3.0),
        name_of(p_ratio=90.0),  # the overlap with dsg_ratio is another
        name_of(retain_threshold=0.01),  # conditional's own is 1e-4
        name_of(seed=1),
        name_of(refusal_latent=3),
        name_of(shards={"a": retain["a"]}),
        name_of(weights="cd" * 32),
        name_of("frequency"),
        name_of("given", latents=(1,)),
        file_name("inlp", FeaturesConfig(), forget, retain, WEIGHTS, refusal=retain["a"]),
    ]
    assert len({name, *others}) == 11
    matched = [name_of("random_matched", method=(one, "random_matched")) for one in ("inlp", "crisp")]
    assert len(set(matched)) == 2


def test_a_selection_made_for_another_sae_is_refused(corpora, tmp_path: Path):
    path = tmp_path / "s.json"
    make(corpora).save(path)
    with pytest.raises(DataError, match=r"s\.json was made for the SAE .*sae-forge features"):
        Selection.load(path, weights="cd" * 32)


def edit(record: dict[str, Any], *keys: Any, to: Any) -> None:
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = to


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("latents",), [], "no latents"),
        (("latents", 0, "index"), 5, "outside an SAE of 5"),
        (("latents", 0, "index"), 1, "twice"),
        (("latents", 0, "index"), True, r"latents\.0\.index: it should be a valid integer, not True"),
        (("latents", 0, "index"), 1.0, r"latents\.0\.index: .* not 1\.0"),
        (("latents", 0, "score"), "high", r"latents\.0\.score: it should be a valid number, not 'high'"),
        (("latents", 0, "score"), None, r"latents\.0\.score: "),
        (("latents", 0, "forget", "extra"), 1, r"latents\.0\.forget\.extra: there is no such key"),
        (("latents", 0, "snippets"), {}, r"latents\.0\.snippets: "),
        (("latents",), 3, "latents: .* not 3"),
        (("filtered", "min_freq"), "x", r"filtered\.min_freq: .* not 'x'"),
        (("retain_rates", "a"), [0.5, 1.5], "outside"),
        (("unknown",), 1, "unknown: there is no such key"),
        (("format",), 1, "format 1, not 2; make it again with: sae-forge features"),
        (("format",), 3, "format 3"),
        (("dead",), [5], "outside an SAE of 5"),
        (("dead",), [4, 4], "twice"),
        (("dead",), [0], "one that fires"),
        (("refusal_latent",), 5, "outside an SAE of 5"),
        (("refusal_latent",), 1.0, r"refusal_latent: .* not 1\.0"),
        (("analysis", "separation", "auroc"), 1.1, "outside"),
        (("analysis", "separation", "auroc"), None, r"analysis\.separation\.auroc: .* not None"),
        (("analysis", "overlap", "crisp"), -0.1, "outside"),
        (("analysis",), {}, r"analysis\.separation: it is missing"),
    ],
)
def test_a_malformed_selection_is_refused_with_the_place(corpora, tmp_path: Path, keys, value, told: str):
    record = json.loads(json.dumps(make(corpora).to_json()))
    edit(record, *keys, to=value)
    path = tmp_path / "s.json"
    path.write_text(json.dumps(record))
    with pytest.raises(DataError, match=told) as caught:
        Selection.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_selection_that_leaves_out_what_it_might_is_refused(corpora, tmp_path: Path):
    record = json.loads(json.dumps(make(corpora).to_json()))
    del record["dead"]
    (tmp_path / "s.json").write_text(json.dumps(record))
    with pytest.raises(DataError, match="dead: it is missing"):
        Selection.load(tmp_path / "s.json")


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff\xfe", b'{"latents": [], "latents": []}', b'{"latents": NaN}', b"[" * 5000]
)
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path):
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.json"):
        Selection.load(path)
    with pytest.raises(DataError, match="missing"):
        Selection.load(tmp_path / "none.json")


@pytest.mark.parametrize("number", ["1e999", "1" + "0" * 400])
def test_numbers_beyond_a_float_are_refused(corpora, number: str, tmp_path: Path):
    record = make(corpora).to_json()
    record["latents"][0]["score"] = 0.123456
    path = tmp_path / "s.json"
    path.write_text(json.dumps(record).replace("0.123456", number))
    with pytest.raises(DataError, match=r"s\.json"):
        Selection.load(path)
