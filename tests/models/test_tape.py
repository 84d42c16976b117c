"""The tape: what a played run skips, that it changes no bit, and what it refuses."""

import gc
from typing import Any, NamedTuple

import pytest
import torch
from tiny_models import save_model
from tiny_tokenizer import TEXT

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied, attached
from sae_forge.interventions.edit import Edit
from sae_forge.models.hooks import capture
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.models.tape import Tape, memory_of
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.continuations import Encoded, encode, score

ASKED = [(TEXT[0][:20], (" silver owl", " book of weather", " tower")), (TEXT[2][:30], (" Bel", " Corvo and Dun"))]


def layer_calls(lm: LanguageModel, layer: int, calls: list[int]):
    """Count the passes in which the attention of ``layer`` computes anything."""
    return lm.layer(layer).get_submodule(lm.family.attn_out[0]).register_forward_hook(lambda *_: calls.append(layer))


@pytest.fixture(scope="module", params=("llama", "gemma2", "gpt2"))
def any_model(request, tmp_path_factory) -> LanguageModel:
    return load_model(str(save_model(tmp_path_factory.mktemp("tape") / request.param, request.param)), device="cpu")


@pytest.mark.slow
@pytest.mark.parametrize("point", [HookPoint(2), HookPoint(3), HookPoint(2, "mlp_out"), HookPoint(1, "resid_pre")])
def test_a_played_run_computes_the_same_bits_with_and_without_an_edit(any_model, point):
    lm = any_model
    asked = encode(lm, ASKED)  # targets of several tokens: contexts leave a cache behind, which continuations select
    sae = TopKSAE(lm.d_model, 64, 8)
    edit = Intervention("scale", tuple(range(32)), NegativeScaling(-5.0))
    plain = score(lm, asked, batch_size=2)
    with applied(lm, sae, point, edit):
        changed = score(lm, asked, batch_size=2)
    assert plain != changed
    tape = Tape(lm, point)
    with tape.running():
        recorded = score(lm, asked, batch_size=2)
    # a last layer that is played has run on all tokens, and without a tape on those alone that are read
    one, other = ([[each.logprob for each in scores] for scores in run] for run in (recorded, plain))
    assert recorded == plain or point == HookPoint(3)
    for found, wanted in zip(one, other, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)
    with tape.running(), applied(lm, sae, point, edit):
        assert score(lm, asked, batch_size=2) == changed
    with applied(lm, sae, point, edit), tape.running():
        assert score(lm, asked, batch_size=2) == changed
    with tape.running():
        assert score(lm, asked, batch_size=2) == recorded
    assert score(lm, asked, batch_size=2) == plain


def test_a_tape_may_be_recorded_under_an_edit(tiny_llama):
    asked = encode(tiny_llama, ASKED)
    plain = score(tiny_llama, asked, batch_size=2)
    tape, edit = Tape(tiny_llama, HookPoint(1)), Intervention("scale", (0, 1, 2, 3), NegativeScaling(-9.0))
    with tape.running(), applied(tiny_llama, TopKSAE(tiny_llama.d_model, 16, 8), HookPoint(1), edit):
        assert score(tiny_llama, asked, batch_size=2) != plain
    with tape.running():
        assert score(tiny_llama, asked, batch_size=2) == plain


@pytest.mark.parametrize(
    ("point", "skipped"), [(HookPoint(2), 3), (HookPoint(2, "attn_out"), 2), (HookPoint(0, "resid_pre"), 0)]
)
def test_a_played_run_skips_the_layers_below_the_point(any_model, point, skipped):
    lm, tape, calls = any_model, Tape(any_model, point), []
    asked = encode(lm, ASKED)
    with tape.running():
        score(lm, asked, batch_size=2)
    handles = [layer_calls(lm, layer, calls) for layer in range(lm.n_layers)]
    with tape.running():
        score(lm, asked, batch_size=2)
    for handle in handles:
        handle.remove()
    assert set(calls) == set(range(skipped, lm.n_layers))


class OneRow(NamedTuple):
    """Three questions, and an edit that changes a token of one of them."""

    asked: list[Encoded]
    sae: TopKSAE
    edit: Intervention
    changed: int

    @classmethod
    def of(cls, lm: LanguageModel, point: HookPoint) -> "OneRow":
        ids = torch.arange(18).view(3, 6) % 40 + 20
        sae = TopKSAE(lm.d_model, 64, 4)
        acts = sae.latent_acts(capture(lm, [point], ids, torch.ones_like(ids))[point], torch.arange(64))
        fires = (acts > 0).any(dim=1)
        latent = int((fires.sum(dim=0) == 1).nonzero()[0, 0])
        asked = [Encoded(tuple(row), ((7,), (8,))) for row in ids.tolist()]
        return cls(
            asked, sae, Intervention("scale", (latent,), NegativeScaling(-50.0)), int(fires[:, latent].nonzero())
        )


@pytest.mark.parametrize("point", [HookPoint(1), HookPoint(2, "resid_pre")])
def test_rows_that_an_edit_leaves_alone_do_not_run_above_it(any_model, point, monkeypatch):
    lm, rows = any_model, []
    asked, sae, edit, one = OneRow.of(lm, point)
    plain = score(lm, asked, batch_size=3)
    with applied(lm, sae, point, edit) as expected:
        changed = score(lm, asked, batch_size=3)
    mlp: Any = lm.layer(lm.n_layers - 1).mlp
    own = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: (rows.append(len(x)), own(x))[1])
    found = []
    for first in ("as it is", "edited"):
        tape = Tape(lm, point)
        if first == "as it is":
            with tape.running():
                assert score(lm, asked, batch_size=3) == plain
        for _ in range(2):
            with tape.running(), applied(lm, sae, point, edit) as log:
                found.append(score(lm, asked, batch_size=3))
            assert log == expected
        with tape.running():
            assert score(lm, asked, batch_size=3) == plain
    assert rows == [3, 1, 1, 3, 1, 1]  # no row of the model as it is, once something of it is known
    assert found == found[:1] * 4  # to the bit, whatever ran before
    assert [a == b for a, b in zip(found[0], plain, strict=True)] == [number != one for number in range(3)]
    assert torch.allclose(torch.tensor(found[0]), torch.tensor(changed), atol=1e-5)


def test_rows_run_on_where_something_above_reads_or_edits_them(tiny_llama):
    lm, point = tiny_llama, HookPoint(1)
    asked, sae, edit, _ = OneRow.of(lm, point)
    above = Edit(HookPoint(2), TopKSAE(lm.d_model, 64, 8, seed=1), Intervention("all", tuple(range(64)), edit.edit))
    with attached(lm, (Edit(point, sae, edit), above)):
        changed = score(lm, asked, batch_size=3)
    tape = Tape(lm, point)
    for edits in ((), (Edit(point, sae, edit),), (Edit(point, sae, edit), above)):
        with tape.running(), attached(lm, edits):
            last = score(lm, asked, batch_size=3)
    assert last == changed


def test_what_all_layers_give_yields_to_what_spares_every_row(tiny_llama):
    lm, point = tiny_llama, HookPoint(1)
    asked, sae, edit, _ = OneRow.of(lm, point)
    with applied(lm, sae, point, edit):
        changed = score(lm, asked, batch_size=1)
    tape = Tape(lm, point, limit_bytes=3 * 6 * lm.d_model * 4 + 1)
    with tape.running():
        score(lm, asked, batch_size=1)
    passes = tape._recordings[True].passes if True in tape._recordings else tape._recordings[False].passes
    assert [(one.output is None, one.top) for one in passes] == [(False, None)] * 3
    with tape.running(), applied(lm, sae, point, edit):
        assert score(lm, asked, batch_size=1) == changed


class CountingSAE(TopKSAE):
    """Notes how many tokens it encodes."""

    encoded = 0

    def encode(self, x):
        self.encoded += x.shape[0] * x.shape[1]
        return super().encode(x)


@pytest.mark.slow
@pytest.mark.parametrize("point", [HookPoint(2), HookPoint(2, "resid_pre")])
def test_edits_of_a_played_activation_encode_it_once_with_each_sae(any_model, point):
    lm = any_model
    asked = encode(lm, ASKED)
    saes = [CountingSAE(lm.d_model, 64, 8, seed=seed) for seed in (0, 1)]
    edits = [Intervention("scale", latents, NegativeScaling(-5.0)) for latents in (tuple(range(32)), (40, 3, 9))]
    expected = {}
    for number, sae in enumerate(saes):
        for edit in edits:
            with applied(lm, sae, point, edit):
                expected[number, edit] = score(lm, asked, batch_size=2)
    assert len(set(map(str, expected.values()))) == 4
    once = [sae.encoded // len(edits) for sae in saes]
    tape = Tape(lm, point)
    for (number, edit), scores in expected.items():
        with tape.running(), applied(lm, saes[number], point, edit):
            assert score(lm, asked, batch_size=2) == scores
    assert [sae.encoded for sae in saes] == [(len(edits) + 1) * count for count in once]
    passes = [passed for recording in tape._recordings.values() for passed in recording.passes]
    memories = [memory_of(passed.output) for passed in passes if isinstance(passed.output, torch.Tensor)]
    del saes[0], sae
    gc.collect()
    assert all(memory is not None and len(memory) == 1 for memory in memories)


def test_an_activation_that_takes_gradients_is_encoded_anew(tiny_llama):
    sae, point = CountingSAE(tiny_llama.d_model, 64, 8), HookPoint(2)
    edit, ids = Intervention("scale", tuple(range(32)), NegativeScaling(-5.0)), torch.full((1, 6), 7)
    tape = Tape(tiny_llama, point)
    for _ in range(2):
        with tape.running(), applied(tiny_llama, sae, point, edit):
            tiny_llama.model(input_ids=ids).logits.sum().backward()
    assert sae.encoded == 2 * ids.numel()
    assert sae.W_enc.grad is not None


def test_passes_beyond_the_limit_run_in_full(tiny_model):
    asked = encode(tiny_model, ASKED)
    plain = score(tiny_model, asked, batch_size=1)
    tape = Tape(tiny_model, HookPoint(2), limit_bytes=9_000)
    for _ in range(2):
        with tape.running():
            assert score(tiny_model, asked, batch_size=1) == plain
    kept = [passed.output is not None for passed in tape._recordings[False].passes]
    assert any(kept) and not all(kept)


def test_another_question_than_the_recorded_one_is_refused(tiny_llama):
    tape = Tape(tiny_llama, HookPoint(1))
    with tape.running():
        score(tiny_llama, encode(tiny_llama, ASKED[:1]), batch_size=2)
    for other in (ASKED[1:], ASKED[:1] * 2):
        with pytest.raises(RuntimeError, match="asks for other tokens"), tape.running():
            score(tiny_llama, encode(tiny_llama, other), batch_size=1)
    assert "forward" not in vars(tiny_llama.model.base_model)  # what was diverted is restored


def test_a_run_that_failed_is_not_played(tiny_llama):
    asked = encode(tiny_llama, ASKED)
    tape = Tape(tiny_llama, HookPoint(1))
    with pytest.raises(KeyboardInterrupt), tape.running():
        score(tiny_llama, asked[:1], batch_size=1)
        raise KeyboardInterrupt
    with tape.running():
        first = score(tiny_llama, asked, batch_size=1)
    with tape.running():
        assert score(tiny_llama, asked, batch_size=1) == first


def test_padded_and_masked_calls_are_told_apart(tiny_llama):
    ids = torch.full((1, 6), 7)
    masks = torch.ones(1, 6, dtype=torch.long), torch.tensor([[0, 0, 1, 1, 1, 1]])
    tape = Tape(tiny_llama, HookPoint(1))
    with torch.no_grad(), tape.running():
        tiny_llama.model(input_ids=ids, attention_mask=masks[0])
    with pytest.raises(RuntimeError, match="asks for other"), torch.no_grad(), tape.running():
        tiny_llama.model(input_ids=ids, attention_mask=masks[1])


def test_a_point_beyond_the_model_is_refused(tiny_llama):
    with pytest.raises(ConfigError, match="beyond"), Tape(tiny_llama, HookPoint(9)).running():
        pass
