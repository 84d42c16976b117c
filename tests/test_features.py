"""Statistics by hand on toy counts, selections from real shards, and files that are refused."""

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import log1p
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_forge.config import FeaturesConfig
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.errors import ConfigError, DataError, ShardError
from sae_forge.features import scores
from sae_forge.features.places import TopPlaces
from sae_forge.features.select import choose, measure, select
from sae_forge.features.selection import COLUMNS, Selection, file_name, table
from sae_forge.features.snippets import marked
from sae_forge.features.stats import LatentStats, firing_rates, survey, tally
from sae_forge.progress import Silent
from sae_forge.sae.topk import TopKSAE

WEIGHTS = "ab" * 32
NAME = "blocks.1.hook_resid_post/k5-d5-s0"
CTX = 7


class Ear(Silent):
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def counts(tokens: int, fires: Sequence[int], means: Sequence[float] = ()) -> LatentStats:
    """Statistics made up from fire counts and mean activations where firing (1 unless given)."""
    fired = torch.tensor(fires)
    sums = fired * torch.tensor(means or [1.0] * len(fires)).double()
    none = torch.zeros(len(fires), 0, dtype=torch.long)
    return LatentStats(
        tokens, fired, sums, sums, torch.ones(len(fires)), TopPlaces(torch.zeros(len(fires), 0), none, none)
    )


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


def test_every_inlp_bound_is_strict_but_the_fire_count():
    #             kept | 63 fires | p = .001 | p = .2 | retain p = .005 | ratio = 2
    forget = counts(64_000, [128, 63, 64, 12_800, 3200, 128])
    retain = counts(64_000, [0, 0, 0, 0, 320, 56])
    config = FeaturesConfig()
    filters = scores.forget_filters(forget, config) | scores.retain_filters(compare(forget, retain), config)
    valid, removed = scores.sieve(filters)
    assert valid.tolist() == [True] + [False] * 5
    assert removed == {"min_target_fires": 1, "min_freq": 1, "max_freq": 1, "max_neutral_freq": 1, "min_ratio": 1}


def test_inlp_admits_what_lies_just_inside_its_bounds():
    forget = counts(63_999, [64, 12_799, 3200, 129])
    retain = counts(64_001, [0, 0, 320, 56])
    config = FeaturesConfig()
    filters = scores.forget_filters(forget, config) | scores.retain_filters(compare(forget, retain), config)
    assert scores.sieve(filters)[0].all()


def test_farrell_zeroes_at_the_threshold_and_drops_what_never_fires():
    forget, retain = counts(1000, [50, 400, 0, 70, 70]), counts(1000, [9, 10, 0, 0, 0])
    config = FeaturesConfig(method="frequency")
    measured = compare(forget, retain)
    valid, removed = scores.sieve(scores.forget_filters(forget, config) | scores.retain_filters(measured, config))
    assert removed == {"never_fires_on_forget": 1, "retain_threshold": 1}
    assert scores.ranked(valid, scores.rank_by(measured, config), 9).tolist() == [3, 4, 0]  # ties by index
    assert scores.ranked(valid, scores.rank_by(measured, config), 1).tolist() == [3]


@pytest.mark.parametrize(("sort_by", "best"), [("score", 0), ("ratio", 1), ("diff", 2), ("act_ratio", 3)])
def test_sort_by_names_the_statistic_that_ranks(sort_by: str, best: int):
    columns = [torch.eye(4)[i].double() for i in range(4)]
    measured = scores.Selectivity(*columns, torch.zeros(4), torch.zeros(4))
    assert (
        scores.ranked(torch.ones(4, dtype=torch.bool), scores.rank_by(measured, FeaturesConfig(sort_by=sort_by)), 1)
        == best
    )


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
            floor=floor,
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
        make(corpora, method="frequency", retain_threshold=0.0)


def test_frequency_selection_ranks_by_forget_frequency(corpora):
    found = make(corpora, method="frequency", retain_threshold=0.5, num_features=(9,))
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
    found = choose(measured, forget, retain, by_diff, name=NAME, weights=WEIGHTS)
    assert found == make(corpora, num_features=(1,), min_target_fires=1, sort_by="diff", formula="literal")


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
    rows = table(make(corpora, spell))
    assert [row[0] for row in rows] == ["0", "1"]
    assert all(len(row) == len(COLUMNS) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[0][2:4] == ("10.000%", "0.000%")
    assert "«" in rows[0][5]


def test_file_names_change_with_what_decides_the_content_and_with_nothing_else(corpora):
    forget, retain = corpora
    name = file_name(FeaturesConfig(), forget, retain, WEIGHTS)
    assert name.startswith("inlp-")
    assert name == file_name(FeaturesConfig(retain_threshold=0.5, shard_rows=9), forget, retain, WEIGHTS)
    assert file_name(FeaturesConfig(num_features=(10, 100)), forget, retain, WEIGHTS) == name
    others = [
        file_name(FeaturesConfig(min_ratio=3.0), forget, retain, WEIGHTS),
        file_name(FeaturesConfig(), forget, {"a": retain["a"]}, WEIGHTS),
        file_name(FeaturesConfig(), forget, retain, "cd" * 32),
        file_name(FeaturesConfig(method="frequency"), forget, retain, WEIGHTS),
        file_name(FeaturesConfig(latents=(1,)), forget, retain, WEIGHTS),
    ]
    assert len({name, *others}) == 6


def test_a_selection_made_for_another_sae_is_refused(corpora, tmp_path: Path):
    path = tmp_path / "s.json"
    make(corpora).save(path)
    with pytest.raises(DataError, match=r"s\.json was made for the SAE .*sae-forge features"):
        Selection.load(path, weights="cd" * 32)


def edit(record: dict[str, Any], *keys: Any, to: Any) -> None:
    for key in keys[:-1]:
        record = record[key]
    record[keys[-1]] = to


@pytest.mark.parametrize(
    ("keys", "value", "told"),
    [
        (("latents",), [], "no latents"),
        (("latents", 0, "index"), 5, "outside an SAE of 5"),
        (("latents", 0, "index"), 1, "twice"),
        (("latents", 0, "index"), True, "index holds 'True'"),
        (("latents", 0, "index"), 1.0, "index holds '1.0'"),
        (("latents", 0, "score"), "high", "score holds 'high'"),
        (("latents", 0, "score"), None, "score holds"),
        (("latents", 0, "forget", "extra"), 1, "other fields than CorpusStats: 'extra'"),
        (("latents", 0, "snippets"), {}, "snippets holds"),
        (("latents",), 3, "latents holds '3'"),
        (("filtered", "min_freq"), "x", "filtered holds 'x'"),
        (("retain_rates", "a"), [0.5, 1.5], "outside"),
        (("unknown",), 1, "other fields than Selection: 'unknown'"),
        (("format",), 2, "format 2"),
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
