"""Cards show where latents fire, token by token, and no text that must not be shown."""

import numpy as np
import pytest
import torch
from test_features import CTX, plain_sae, random_acts, write_shards

from sae_forge.data.shards import ShardReader
from sae_forge.features.cards import BARS, PERCENTILES, STRONGEST, Cards, cards, sample

WIDTH, ROWS = 6, 60 * CTX
SPECIAL = (3, 10)


def decode(token_ids: list[int]) -> str:
    """Like a tokenizer that leaves out the blank a text begins with."""
    return "".join(f" w{token}" for token in token_ids).lstrip()


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardReader]:
    folder = tmp_path_factory.mktemp("cards")
    acts = {name: random_acts(ROWS, WIDTH, seed=seed) for seed, name in enumerate(("saga", "wiki", "news"))}
    for one in acts.values():
        one[:, WIDTH - 1] = 0  # the last latent never fires
    return {name: write_shards(folder / name, one, special=SPECIAL) for name, one in acts.items()}


def made(readers: dict[str, ShardReader], **how: bool) -> Cards:
    return cards(sample(readers, plain_sae(WIDTH)), [2], decode, **{"show_forget": True, **how})


def acts_of(reader: ShardReader) -> torch.Tensor:
    return torch.cat([reader.read_block(number).acts for number in range(reader.block_count)])


def test_what_a_card_counts_is_what_the_activations_say(readers: dict[str, ShardReader]):
    found = made(readers)
    assert found.corpora == tuple(readers) and found.tokens == tuple(reader.rows for reader in readers.values())
    assert found.cards[0].latent == 2
    assert sorted(card.latent for card in found.cards) == list(range(WIDTH - 1)), "one that never fires has no card"
    for card in found.cards:
        columns = [acts_of(reader)[:, card.latent] for reader in readers.values()]
        assert card.fires == tuple(int((column > 0).sum()) for column in columns)
        assert card.peak == pytest.approx(max(float(column.max()) for column in columns), rel=5e-3)
        assert sum(card.histogram[0]) == card.fires[0] and sum(card.histogram[1]) == sum(card.fires[1:])
        assert len(card.histogram[0]) == BARS
        shares = [fires / count for fires, count in zip(card.fires, found.tokens, strict=True)]
        assert found.frequencies[:, card.latent] == pytest.approx([shares[0], max(shares[1:])])


def test_snippets_are_the_text_around_firings_strongest_first_and_weaker_ones_too(readers: dict[str, ShardReader]):
    found = made(readers)
    saga = readers["saga"]
    acts, ids = acts_of(saga)[:, 2], torch.cat([saga.read_block(n).token_ids for n in range(saga.block_count)])
    forget = [one for one in found.cards[0].snippets if one.corpus == 0]
    strongest = [one.acts[one.fired.index(one.peak)] for one in forget if one.percentile == 100]
    assert len(strongest) == STRONGEST and strongest == sorted(strongest, reverse=True)
    assert strongest[0] == pytest.approx(float(acts.max()), rel=5e-3)
    weaker = {one.percentile: one.acts[one.fired.index(one.peak)] for one in forget if one.percentile < 100}
    fired = acts[acts > 0].numpy()
    assert set(weaker) == set(PERCENTILES)
    for share, act in weaker.items():
        assert 100 * float((fired < act).mean()) == pytest.approx(share, abs=3), share
    peak = int(acts.argmax())
    shown = [found.pieces[piece] for piece in found.text[forget[0].start : forget[0].start + forget[0].length]]
    assert shown[forget[0].peak] == f" w{int(ids[peak])}"
    # a sequence of seven tokens, of which one or two were dropped: text on both sides of a gap is not joined
    assert all(one.length <= CTX for one in forget)


def test_text_to_forget_is_left_out_where_it_may_not_be_shown(readers: dict[str, ShardReader]):
    found = made(readers, show_forget=False)
    assert all(one.corpus > 0 for card in found.cards for one in card.snippets)
    with_it = made(readers)
    assert len(found.text) < len(with_it.text)
    first, other = found.cards[0], with_it.cards[0]
    assert (first.fires, first.peak, first.histogram) == (other.fires, other.peak, other.histogram)
    assert first.favourites != other.favourites


def test_of_a_large_corpus_whole_sequences_are_looked_at(readers: dict[str, ShardReader]):
    seen = sample(readers, plain_sae(WIDTH), tokens=100)
    assert all(rows <= 130 for rows in seen.rows) and sum(seen.rows) == len(seen.token_ids)
    assert len(np.unique(seen.sequences)) == pytest.approx(sum(seen.rows) / CTX, rel=0.1)
    assert all(np.diff(seen.places[seen.latents == latent]).min() > 0 for latent in range(WIDTH - 1))


def test_activations_beyond_the_sinks_norm_do_not_fire(readers: dict[str, ShardReader]):
    norm = float(acts_of(readers["saga"]).norm(dim=1).median())
    assert len(sample(readers, plain_sae(WIDTH), sink_norm=norm).acts) < len(sample(readers, plain_sae(WIDTH)).acts)
