"""Sinks: found by their length alone, counted and said, and left out of training, figures, selections and edits."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sae_forge.config.features import FeaturesConfig
from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import Fingerprint, ShardReader, ShardWriter
from sae_forge.data.sinks import are_sinks, census, sink_norm, without_sinks
from sae_forge.data.stream import ActivationStream
from sae_forge.features.stats import survey
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import attached
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.saved import load_edits, save_edits
from sae_forge.models.hooks import capture
from sae_forge.pipeline.asking.attribution import Asking
from sae_forge.sae.store import Provenance, load_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.study.recovered import ce_recovered
from sae_forge.training.trainer import train_sae

D_IN, ROWS, CTX = 12, 2048, 32
QUOTE = 7


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rows_with_sinks() -> tuple[Tensor, Tensor]:
    """Sums of two of 16 directions, and where sinks stand: every first position at 150 times, a few others at 10."""
    directions = draw(16, D_IN, seed=1)
    code = torch.zeros(ROWS, 16).scatter(1, draw(ROWS, 16, seed=2).topk(2, dim=1).indices, 1.0)
    rows = (code * (2 + draw(ROWS, 16, seed=3).abs())) @ (directions / directions.norm(dim=1, keepdim=True))
    sinks = torch.zeros(ROWS, dtype=torch.bool)
    sinks[::CTX] = sinks[70::500] = True
    median = rows.norm(dim=1).median()
    heavy = draw(int(sinks.sum()), D_IN, seed=4) * 0.1
    heavy[:, 5] += torch.where(torch.arange(ROWS)[sinks] % CTX == 0, 150.0, 10.0)
    rows[sinks] = heavy * median
    return rows, sinks


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    fingerprint = Fingerprint(
        model="toy", weights="w", tokenizer="t", hook_point="blocks.1.hook_resid_post", d_in=D_IN, storage_dtype="fp32",
        ctx_len=CTX, bos="none", batch_size=16, max_tokens=None, corpus="c", source="c", role="retain",
    )  # fmt: skip
    folder, (rows, sinks) = tmp_path_factory.mktemp("sinks"), rows_with_sinks()
    places = torch.arange(512)
    with ShardWriter(folder, fingerprint, shard_rows=1024) as writer:
        for index, (part, heavy) in enumerate(zip(rows.split(512), sinks.split(512), strict=True)):
            tokens = torch.where(heavy, QUOTE, places % 5).int()
            writer.write_batch(index, part, places // CTX + 16 * index, (places % CTX).int(), tokens)
        writer.finish()
    return ShardReader(folder)


def test_sinks_are_told_by_length_and_ordinary_rows_have_none():
    rows, sinks = rows_with_sinks()
    assert torch.equal(are_sinks(rows, sink_norm(rows)), sinks)
    ordinary = draw(4096, 64, seed=5) * (1 + draw(4096, 1, seed=6).abs() / 3)
    assert without_sinks(ordinary, sink_norm(ordinary)) is ordinary
    assert not are_sinks(rows, None).any() and not are_sinks(rows, 0.0).any()


def test_a_census_says_how_many_which_tokens_and_which_channel(reader):
    found = census([reader])
    assert (found.sinks, found.rows, found.channel) == (int(rows_with_sinks()[1].sum()), ROWS, 5)
    said = found.said(lambda ids: "’" if ids == [QUOTE] else "x")
    for words in ("68 of 2,048 tokens", "(3.32%)", "'’'", "channel 5 holds 100%", "--keep_sinks"):
        assert words in said, said
    assert found.variance_share > 0.9


def test_a_census_of_wide_rows_looks_at_fewer(reader, monkeypatch):
    monkeypatch.setattr("sae_forge.data.sinks.CENSUS_NUMBERS", ROWS * reader.d_in // 2)
    assert census([reader]).rows == ROWS // 2


def test_an_sae_learns_the_others_as_if_sinks_were_not_there(reader, tmp_path):
    reports = {}
    for keep in (False, True):
        config = TrainConfig(
            model="toy", k=(2,), d_sae=(48,), batch_size=64, max_steps=90, lr=0.03, sae_device="cpu", keep_sinks=keep
        )
        stream = ActivationStream([reader], batch_size=64, seed=0)
        point = Provenance(model="toy", hook_point="blocks.1.hook_resid_post")
        reports[keep] = train_sae(stream, config, tmp_path / str(keep), point)
    rows, sinks = rows_with_sinks()
    lost = {}
    for keep in (False, True):
        sae, known = load_sae(tmp_path / str(keep))
        x = rows[~sinks]
        lost[keep] = float((x - sae(x)).square().sum() / (x - x.mean(0)).square().sum())
        assert (known.sink_norm is None) is keep
    assert lost[False] < 0.25 < lost[True], lost
    assert reports[False].fvu == pytest.approx(lost[False], rel=1e-3)
    assert reports[False].fvu_with_sinks is not None and reports[False].fvu_with_sinks > 0.5
    assert reports[True].fvu_with_sinks is None
    assert reports[False].fvu < (reports[False].fvu_pca or 0), "two latents a token say more than two directions"


def test_a_selection_counts_no_sink(reader):
    sae, norm = TopKSAE(D_IN, 24, 2, seed=0), census([reader]).norm
    every, ordinary = (survey(reader, sae, title="x", sink_norm=each) for each in (None, norm))
    sinks = int(rows_with_sinks()[1].sum())
    assert (every.tokens, ordinary.tokens) == (ROWS, ROWS - sinks)
    assert every.peaks.max() > 20 * ordinary.peaks.max()


def test_no_edit_touches_a_sink_and_none_is_counted(tiny_llama, tmp_path):
    lm, point = tiny_llama, HookPoint(1)
    ids = torch.tensor([[5, 9, 11, 20, 31, 8]])
    x = capture(lm, [point], ids, torch.ones_like(ids))[point][0]
    sae = TopKSAE(lm.d_model, 64, 8, seed=0)
    edit = Edit(point, sae, Intervention("scale", tuple(range(64)), NegativeScaling(-3.0)))
    lengths = x.norm(dim=1).sort().values
    spared = replace(edit, sink_norm=float(lengths[3:5].mean()))
    touched = {}
    for name, each in {"all": edit, "spared": spared}.items():
        with attached(lm, [each]) as log, torch.no_grad():
            lm.model(input_ids=ids)
        touched[name] = (log.tokens, log.edited)
    assert touched == {"all": (6, 6), "spared": (4, 4)}
    assert edit != spared and "sinks spared" in str(spared)
    save_edits(tmp_path, [edit, spared])
    assert load_edits(tmp_path) == (edit, spared)


def test_a_method_that_asks_the_model_edits_no_sink_either(tiny_llama):
    lm, ids = tiny_llama, torch.tensor([[5, 9, 11, 20, 31, 8]])
    x = capture(lm, [HookPoint(1)], ids, torch.ones_like(ids))[HookPoint(1)][0]
    norm = float(x.norm(dim=1).sort().values[3:5].mean())
    sae = TopKSAE(lm.d_model, 64, 64, seed=0)
    latent = int((sae.latent_acts(x, torch.arange(64)) > 0).all(dim=0).nonzero()[0])
    edited = {}
    for each in (None, norm):
        ask = Asking(lm, sae, HookPoint(1), FeaturesConfig(model="toy"), {}, sink_norm=each)
        with ask.clamped(latent, -50.0) as log, torch.no_grad():
            lm.model(input_ids=ids)
        edited[each] = log.edited
    assert edited == {None: 6, norm: 4}


def test_losses_are_taken_with_sinks_restored_and_once_more_without(tiny_llama):
    from sae_forge.data.texts.packing import PackedBatch
    from sae_forge.tasks.engines.losses import Corpus

    lm, point = tiny_llama, HookPoint(1)
    ids = torch.randint(5, 60, (4, 16), generator=torch.Generator().manual_seed(0))
    corpus = Corpus("c", "retain", (PackedBatch(0, ids, torch.ones_like(ids, dtype=torch.bool), torch.arange(4)),))
    x = capture(lm, [point], ids, torch.ones_like(ids))[point]
    norm = float(x.norm(dim=-1).flatten().sort().values[-6:-4].mean())
    sae = TopKSAE(lm.d_model, 64, 8, seed=0)
    plain, spared = ce_recovered(lm, sae, point, [corpus]), ce_recovered(lm, sae, point, [corpus], norm)
    assert plain.fvu_with_sinks is None and plain.share_with_sinks is None
    assert spared.fvu_with_sinks == pytest.approx(plain.fvu)
    assert spared.share_with_sinks == pytest.approx(plain.share)
    assert (spared.sae, spared.zero, spared.base) != (plain.sae, plain.zero, plain.base) and spared.base == plain.base
