"""A model that transformers loaded, no more: it is read and edited as one of ``load_model`` is."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

from sae_forge import HookPoint, TopKSAE, applied, capture, language_model, splice
from sae_forge.errors import UnsupportedModelError
from sae_forge.methods.edits.scale import scale
from sae_forge.models.loading import load_model

POINT = HookPoint(2, "resid_post")
TEXTS = ["The wizard of the north", "Granite"]


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def folder(request, model_folders):
    return str(model_folders[request.param])


@pytest.fixture
def bare(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def edit():
    return TopKSAE(56, 64, 8, seed=0), POINT, scale(tuple(range(32)), -30.0)


def batch(folder, side):
    return AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, padding_side=side, return_tensors="pt")


def test_its_activations_are_read(bare, folder):
    texts = batch(folder, "right")
    ours, theirs = (
        capture(model, [POINT], texts["input_ids"], texts["attention_mask"])[POINT]
        for model in (load_model(folder, device="cpu"), bare)
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_is_edited_and_counted_alike(bare, folder, edit, side):
    texts = batch(folder, side)
    with torch.no_grad():
        before = bare(**texts).logits
        with applied(bare, *edit) as log:
            during = bare(**texts).logits
        with applied(load_model(folder, device="cpu"), *edit) as other:
            pass
        assert torch.equal(bare(**texts).logits, before)
    assert not torch.equal(during, before)
    real = texts["attention_mask"].bool() & (texts["input_ids"] > 2)
    assert log.tokens == int(real.sum()) and 0 < log.edited <= log.tokens and other.tokens == 0


def test_generate_and_pipeline_write_under_the_edit_what_they_write_of_ours(bare, folder, edit):
    greedy = GenerationConfig(max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=None)
    texts = batch(folder, "left")
    known = load_model(folder, device="cpu")
    with applied(known, *edit):
        wanted = known.model.generate(**texts, generation_config=greedy)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    write = pipeline("text-generation", model=bare, tokenizer=tokenizer)
    with applied(bare, *edit) as log:
        assert torch.equal(bare.generate(**texts, generation_config=greedy), wanted)
        seen = log.tokens
        said = write(TEXTS, generation_config=greedy, return_full_text=True, batch_size=2)
    assert log.tokens == 2 * seen
    assert [each[0]["generated_text"] for each in said] == tokenizer.batch_decode(wanted, skip_special_tokens=True)


def test_its_mode_and_its_gradients_stay_as_they_were(bare):
    bare.train()
    with splice(bare, POINT, lambda x, real: x):
        pass
    assert bare.training and all(weight.requires_grad for weight in bare.parameters())


def test_one_made_here_needs_its_tokenizer_once(bare, folder, edit):
    made = type(bare)(bare.config)
    made.name_or_path = ""
    with (
        pytest.raises(UnsupportedModelError, match=r"call language_model\(model, tokenizer\) before"),
        applied(made, *edit),
    ):
        pass
    told = language_model(made, AutoTokenizer.from_pretrained(folder))
    with applied(made, *edit):
        assert language_model(made).tokenizer is told.tokenizer and language_model(told) is told


def test_one_without_a_head_is_refused_by_its_class(folder, edit):
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(UnsupportedModelError, match=f"a {type(model).__name__} is no causal"), applied(model, *edit):
        pass
