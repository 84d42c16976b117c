"""An edit as one thing: it prints, compares, is saved, and does the same to the bit wherever it comes from."""

import json
import random
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from tiny_tokenizer import TEXT
from torch import Tensor

from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.ablation import NegativeScaling, RemoveShare
from sae_forge.interventions.apply import applied, attached
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.edit import Edit
from sae_forge.interventions.gates.all import AllFire
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.cusum import Cusum
from sae_forge.interventions.gates.window import WindowRate
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.saved import EDIT, TENSORS, load_edits, save_edits
from sae_forge.interventions.steering import SetProjection
from sae_forge.methods.edits.clamp import clamp
from sae_forge.methods.edits.conditional_clamp import conditional_clamp
from sae_forge.methods.edits.dsg import dsg
from sae_forge.methods.edits.mean_ablate import mean_ablate
from sae_forge.methods.edits.project import project
from sae_forge.methods.edits.refusal_clamp import clamp_and_refusal, refusal_clamp
from sae_forge.methods.edits.scale import scale
from sae_forge.methods.edits.steer import steer
from sae_forge.methods.edits.zero import zero
from sae_forge.models.loading import LanguageModel
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.direction import Direction
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.slices import Slice, TopKRows
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files

POINT, D_IN, D_SAE, K = HookPoint(1), 56, 113, 40
S = (112, 3, 50, 17, 8)
PROMPTS = (TEXT[0][:40], "Granite", TEXT[2][:57], "mica, mica!")


def random_tensor(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def topk() -> TopKSAE:
    sae = TopKSAE(D_IN, D_SAE, K, seed=3).requires_grad_(False)
    sae.b_dec.copy_(random_tensor(0, D_IN))
    return sae


@pytest.fixture(scope="module")
def jumprelu() -> JumpReLUSAE:
    weights = random_tensor(1, D_IN, D_SAE), random_tensor(2, D_SAE), random_tensor(3, D_SAE, D_IN)
    return JumpReLUSAE(*weights, random_tensor(4, D_IN), random_tensor(5, D_SAE).abs())


DIRECTION = Direction(random_tensor(6, 1, D_IN) / 7, threshold=0.123456789123456789)
INTERVENTIONS = [
    scale(S, -3),
    zero(S[:1]),
    clamp(S, (1.5, -20.0, 0.1, 7.0, -1e-3)),
    conditional_clamp(S, -5.0, 0.05),
    refusal_clamp(S, 9, -50.0),
    clamp_and_refusal(S, 9, -4.0, 6.0),
    dsg(S, -5.0, tau=0.3),
    mean_ablate(S, [0.1, 0.2, 0.3, 1 / 3, 0.5]),
    steer(S, 2.0),
    project(S, 1.7),
    Intervention("set_projection", S, SetProjection(3.0), tokens="attended"),
    replace(scale(S), gate=WindowRate(0.1, 4, AnyFires(0.2), "streaming")),
    replace(scale(S), gate=AllFire(-1.0)),
    replace(scale(S), gate=Cusum(0.5, 0.1, AnyFires(0.1))),
    replace(scale(S), keep_error=False),
    *(Intervention("scale", S, RandomDirections(NegativeScaling(-3.0), 5, kind))
      for kind in ("isotropic", "latents", "direction", "places")),
    Intervention("scale", S, RandomDirections(NegativeScaling(-3.0), 5, "latents", tuple(range(0, D_SAE, 2)))),
]  # fmt: skip


def written(lm: LanguageModel, edits: tuple[Edit, ...], texts: tuple[str, ...] = PROMPTS) -> Tensor:
    batch = lm.tokenizer(list(texts), padding=True, return_tensors="pt")
    with torch.no_grad(), attached(lm, edits):
        return lm.model(**batch).logits


@pytest.fixture(params=["topk", "jumprelu"])
def dictionary(request: pytest.FixtureRequest) -> Dictionary:
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(INTERVENTIONS)))
def test_saved_and_loaded_is_the_same_edit_to_the_bit(tiny_llama, dictionary, tmp_path, number):
    edit = Edit(POINT, dictionary, INTERVENTIONS[number])
    save_edits(tmp_path, [edit])
    (loaded,) = load_edits(tmp_path)
    assert loaded == edit == edit.sliced()
    assert hash(loaded) == hash(edit)
    assert str(loaded) == str(edit)
    assert loaded.intervention == edit.intervention
    expected, plain = written(tiny_llama, (edit,)), written(tiny_llama, ())
    assert torch.equal(written(tiny_llama, (loaded,)), expected)
    assert torch.equal(written(tiny_llama, (edit.sliced(),)), expected)
    assert not torch.equal(plain, expected)
    letters = random.Random(number)
    strange = tuple("".join(letters.choices("aeiou wxyz,.", k=30)) for _ in range(6))
    assert torch.equal(written(tiny_llama, (loaded,), strange), written(tiny_llama, (edit,), strange))


def test_direction_without_bound_survives_the_disk(tiny_llama, tmp_path):
    for direction in (DIRECTION, Direction(DIRECTION.W_dec)):
        edit = Edit(POINT, direction, Intervention("diff_means", (0,), RemoveShare(1.3)))
        save_edits(tmp_path, [edit])
        (loaded,) = load_edits(tmp_path)
        assert loaded == edit
        assert torch.equal(written(tiny_llama, (loaded,)), written(tiny_llama, (edit,)))


def test_slice_holds_only_what_the_edit_needs(topk, jumprelu, tmp_path):
    edit = Edit(POINT, topk, scale(S)).sliced()
    assert isinstance(edit.dictionary, Slice)
    assert isinstance(edit.dictionary.part, TopKRows)
    assert edit.dictionary.part.W_dec.shape == (5, D_IN)
    assert edit.dictionary.part.W_enc.shape == (D_IN, D_SAE)  # a TopK latent competes with all the others
    small = Edit(POINT, jumprelu, scale(S)).sliced().dictionary
    assert isinstance(small, Slice)
    assert isinstance(small.part, JumpReLUSAE)
    assert small.part.W_enc.shape == (D_IN, 5)
    assert isinstance(Edit(POINT, topk, replace(zero(S), keep_error=False)).sliced().dictionary, TopKSAE)
    control = Intervention("scale", S, RandomDirections(NegativeScaling(), 1, "latents"))
    assert len(Edit(POINT, topk, control).sliced().dictionary.latents) == 10  # pyright: ignore
    with pytest.raises(ConfigError, match="latent 4 is not among the 5 that were kept"):
        Edit(POINT, edit.dictionary, scale((4,))).sliced()
    again = Edit(POINT, edit.dictionary, scale(S[1:3]))
    assert again == Edit(POINT, topk, scale(S[1:3]))


def test_rows_of_a_slice_are_a_dictionary(topk):
    rows = Edit(POINT, topk, scale(S)).sliced().dictionary
    assert isinstance(rows, Slice)
    assert isinstance(rows.part, Dictionary)
    x = random_tensor(9, 4, 6, D_IN)
    acts = topk.latent_acts(x, torch.tensor(S))
    assert torch.equal(rows.part.latent_acts(x, torch.tensor([1, 0])), acts[..., [1, 0]])
    torch.testing.assert_close(rows.part.decode(rows.part.encode(x)), acts @ topk.W_dec[list(S)] + topk.b_dec)


def test_equal_means_the_same_numbers_at_the_same_place(topk, jumprelu):
    edit = Edit(POINT, topk, scale(S))
    twin = TopKSAE.from_weights(topk.W_enc, topk.b_enc, topk.W_dec, topk.b_dec, K)
    other = TopKSAE.from_weights(topk.W_enc, topk.b_enc, topk.W_dec, topk.b_dec, K)
    with torch.no_grad():
        other.W_dec[S[0], 0] += 1e-6
        twin.W_dec[0] += 1  # nobody's row
    assert edit == Edit(POINT, twin, scale(S))
    assert edit != Edit(POINT, other, scale(S))
    assert edit != Edit(POINT, jumprelu, scale(S))
    assert edit != Edit(HookPoint(2), topk, scale(S))
    assert edit != Edit(POINT, topk, scale(S, -2.0))
    assert edit != Edit(POINT, topk, replace(scale(S), tokens="attended"))
    assert edit != "scale"


def test_edit_says_what_it_does_in_one_line(topk):
    lines = [str(Edit(POINT, topk, intervention)) for intervention in INTERVENTIONS]
    assert len(set(lines)) == len(lines) - 1  # which latents a control may draw from is not said
    assert not any("\n" in line for line in lines)
    edit = Edit(POINT, topk, INTERVENTIONS[0])
    assert repr((edit, edit.sliced())) == f"(Edit({edit}), Edit({edit}))"
    assert lines[0] == "scale -3 on 5 latents at blocks.1.hook_resid_post"
    assert lines[1] == "zero on 1 latent at blocks.1.hook_resid_post"
    assert lines[3] == "conditional_clamp -5 theta 0.05 on 5 latents at blocks.1.hook_resid_post"
    assert (
        lines[6] == "dsg -5 on 5 latents behind SequenceGate Mean limit 0.3 policy prompt at blocks.1.hook_resid_post"
    )
    assert "latents control 5 of scale -3" in lines[16]


# ---- several edits ------------------------------------------------------------------------------


def test_edits_at_several_layers_are_one_list_and_logged_each(tiny_model, topk, jumprelu, tmp_path):
    low, high = Edit(POINT, topk, scale(S)), Edit(HookPoint(2), jumprelu, steer(S[:2], 3.0))
    expected = written(tiny_model, (low, high))
    assert torch.equal(written(tiny_model, (high, low)), expected)  # at different places the order means nothing
    save_edits(tmp_path, (low, high))
    assert load_edits(tmp_path) == (low, high)
    assert torch.equal(written(tiny_model, load_edits(tmp_path)), expected)
    batch = tiny_model.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad(), attached(tiny_model, (low, high)) as log:
        tiny_model.model(**batch)
        tiny_model.model(**batch)
    with torch.no_grad(), applied(tiny_model, topk, POINT, low.intervention) as alone:
        tiny_model.model(**batch)
        tiny_model.model(**batch)
    first, second = log.each
    assert first == alone
    assert second.edited == second.tokens == log.tokens == first.tokens  # steering touches every token
    assert 0 < first.edited < first.tokens
    assert log.edited == log.tokens
    assert (log.texts, log.opened) == (8, 8)
    assert log.norms == pytest.approx(first.norms + second.norms)


def test_of_two_edits_at_one_place_the_second_reads_what_the_first_wrote(tiny_llama, topk):
    pushed, scaled = Edit(POINT, topk, steer((3,), 30.0)), Edit(POINT, topk, scale((3,), -1.0))
    batch = tiny_llama.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad(), attached(tiny_llama, (pushed, scaled)) as after:
        composed = tiny_llama.model(**batch).logits
    with torch.no_grad(), attached(tiny_llama, (scaled, pushed)) as before:
        other = tiny_llama.model(**batch).logits
    assert after.each[1].edited == after.tokens  # pushed by 30, the latent fires everywhere
    assert before.each[0].edited < before.tokens
    assert not torch.equal(composed, other)
    with torch.no_grad(), attached(tiny_llama, (pushed,)), attached(tiny_llama, (scaled,)):
        assert torch.equal(tiny_llama.model(**batch).logits, composed)


def test_tokens_that_either_edit_touches_count_once(tiny_llama, topk):
    edits = tuple(Edit(HookPoint(layer), topk, scale(S)) for layer in (0, 2))
    masks: list[Tensor] = []
    with torch.no_grad(), attached(tiny_llama, edits) as log:
        for text in PROMPTS:
            tiny_llama.model(**tiny_llama.tokenizer(text, return_tensors="pt"))
            seen = [part.latest for part in log.each]
            assert all(call is not None and call.latents == S for call in seen)
            masks.append(seen[0].edited | seen[1].edited)  # pyright: ignore
    assert log.edited == sum(int(mask.sum()) for mask in masks)
    assert max(part.edited for part in log.each) < log.edited < sum(part.edited for part in log.each)


def test_no_edit_leaves_every_bit(tiny_llama):
    batch = tiny_llama.tokenizer(list(PROMPTS), padding=True, return_tensors="pt")
    with torch.no_grad(), attached(tiny_llama, ()) as log:
        inside = tiny_llama.model(**batch).logits
    assert torch.equal(inside, tiny_llama.model(**batch).logits)
    assert (log.tokens, log.share) == (0, 0.0)


# ---- refusals -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Halved:
    """An edit of one's own."""

    times: int = 1

    def edit(self, acts: Tensor) -> Tensor:
        return acts / 2**self.times


def test_edit_of_ones_own_is_saved_and_loaded_when_its_class_is_named(tiny_llama, topk, tmp_path):
    edit = Edit(POINT, topk, Intervention("halved", S, Halved(2)))
    with pytest.raises(ConfigError, match="a Halved cannot be saved with an edit; name its class in kinds"):
        save_edits(tmp_path, [edit])
    save_edits(tmp_path, [edit], kinds=(Halved,))
    with pytest.raises(CheckpointError, match="of no known kind"):
        load_edits(tmp_path)
    (loaded,) = load_edits(tmp_path, kinds=(Halved,))
    assert loaded == edit
    assert torch.equal(written(tiny_llama, (loaded,)), written(tiny_llama, (edit,)))


def test_what_cannot_be_given_back_is_not_saved(topk, tmp_path):
    wide = TopKSAE(D_IN, D_SAE, K).double()
    with pytest.raises(CheckpointError, match="convert it to float32"):
        save_edits(tmp_path, [Edit(POINT, wide, scale(S))])
    training = TopKSAE(D_IN, D_SAE, K, product_dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match="is one in training"):
        save_edits(tmp_path, [Edit(POINT, training, scale(S))])
    with pytest.raises(ConfigError, match="latent 113 is beyond the SAE"):
        save_edits(tmp_path, [Edit(POINT, topk, scale((113,)))])
    assert not (tmp_path / EDIT).exists()


def altered(folder: Path, *keys: str | int, to: object) -> None:
    """Change one entry of the saved JSON and seal it again."""
    record = json.loads((folder / EDIT).read_text())
    place = record
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    files.publish_json(folder / EDIT, record)


@pytest.mark.parametrize(
    ("keys", "to", "message"),
    [
        (("format",), 2, "format: it should be 1, not 2"),
        (("edits", 0, "point"), "layer 1", "hook point 'layer 1' is not of the form"),
        (
            ("edits", 0, "intervention", "Intervention", "edit", "NegativeScaling", "scale"),
            "-3",
            "scale of a NegativeScaling: it should be a valid number, not '-3'",
        ),
        (("edits", 0, "intervention", "Intervention", "edit"), {"Popen": {"args": "ls"}}, "of no known kind"),
        (
            ("edits", 0, "intervention", "Intervention", "edit"),
            3,
            "'3' is of no known kind",
        ),
        (
            ("edits", 0, "intervention", "Intervention", "gate"),
            {"ZeroAblation": {}},
            "gate of a Intervention cannot be a ZeroAblation",
        ),
        (("edits", 0, "intervention", "Intervention", "targets"), [3, 3], "needs distinct latents"),
        (("edits", 0, "intervention", "Intervention", "targets", 0), 4, "latent 4 is not among the 5 that were kept"),
        (
            ("edits", 0, "intervention", "Intervention", "targets", 0),
            2.5,
            r"targets of a Intervention: 0: it should be a valid integer",
        ),
        (
            ("edits", 0, "intervention", "Intervention", "keep_error"),
            1,
            "keep_error of a Intervention: it should be a valid boolean, not 1",
        ),
        (("edits", 0, "intervention", "Intervention", "more"), 1, "a Intervention has the fields"),
        (("edits", 0, "dictionary", "k"), 0, "k=0 does not fit"),
        (("edits", 0, "dictionary", "k"), None, "k=None does not fit"),
        (("edits", 0, "dictionary", "kind"), "JumpReLUSAE", "does not hold a JumpReLUSAE"),
        (("edits", 0, "dictionary", "latents"), [1, 2], "its 5 decoder rows are not those of 2 latents"),
        (("edits", 0, "dictionary", "d_sae"), 50, "its 5 decoder rows are not those of 5 latents among 50"),
        (("tensors_sha256",), "0" * 64, "edit.safetensors is damaged"),
        (("edits",), [3], r"edits\.0: it should be an object, not 3; save the edit again"),
    ],
)
def test_altered_file_is_refused_in_one_line(topk, tmp_path, keys, to, message):
    save_edits(tmp_path, [Edit(POINT, topk, scale(S))])
    altered(tmp_path, *keys, to=to)
    with pytest.raises(CheckpointError, match=message):
        load_edits(tmp_path)


def test_damage_is_noticed(topk, tmp_path):
    save_edits(tmp_path, [Edit(POINT, topk, scale(S))])
    for name in (EDIT, TENSORS):
        content = (tmp_path / name).read_bytes()
        middle = len(content) // 2
        (tmp_path / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        with pytest.raises(CheckpointError, match=r"damaged|is not"):
            load_edits(tmp_path)
        (tmp_path / name).write_bytes(content)
    assert load_edits(tmp_path)
    (tmp_path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        load_edits(tmp_path)
    with pytest.raises(CheckpointError, match="is missing"):
        load_edits(tmp_path / "elsewhere")
