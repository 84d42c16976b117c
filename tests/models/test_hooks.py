"""Hooks: what is read is what the model computes, what is spliced is all that changes, and nothing stays behind."""

import pytest
import torch
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import SITES, HookPoint
from sae_forge.models.hooks import capture, splice
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import real_token_mask

PROMPTS = ("The wizard of the north", "Granite", "A silver owl reads the book of weather aloud")


def tokens(lm: LanguageModel, side: str = "right") -> tuple[Tensor, Tensor]:
    """The prompts as one batch, padded on ``side``."""
    batch = lm.tokenizer(list(PROMPTS), padding=True, padding_side=side, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def hook_count(lm: LanguageModel) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in lm.model.modules())


def by_hand(lm: LanguageModel, token_ids: Tensor, mask: Tensor) -> dict[HookPoint, Tensor]:
    """Every site of every layer from one full pass, read with plain hooks written out here."""
    found, handles = {}, []
    for layer, block in enumerate(lm.model.get_submodule(lm.family.layers)):

        def keep(module, args, kwargs, output, layer=layer):
            x = args[0] if args else kwargs["hidden_states"]
            found[HookPoint(layer, "resid_pre")] = x
            found[HookPoint(layer, "resid_post")] = output[0] if isinstance(output, tuple) else output

        handles.append(block.register_forward_hook(keep, with_kwargs=True))
    with torch.no_grad():
        lm.model(token_ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    return found


def test_capture_reads_what_a_full_pass_computes(tiny_model):
    token_ids, mask = tokens(tiny_model)
    full = by_hand(tiny_model, token_ids, mask)
    taken = capture(tiny_model, list(full), token_ids, mask)
    for point, expected in full.items():
        assert torch.equal(taken[point][mask.bool()], expected[mask.bool()]), str(point)


def test_branches_add_up_to_the_block(tiny_model):
    token_ids, mask = tokens(tiny_model)
    for layer in range(tiny_model.n_layers):
        points = [HookPoint(layer, site) for site in SITES]
        taken = capture(tiny_model, points, token_ids, mask)
        pre, post, attn, mlp = (
            taken[HookPoint(layer, site)] for site in ("resid_pre", "resid_post", "attn_out", "mlp_out")
        )
        torch.testing.assert_close(pre + attn + mlp, post, rtol=1e-5, atol=1e-5)


def test_what_the_output_projection_reads_is_captured_in_its_own_width(tiny_model):
    token_ids, mask = tokens(tiny_model)
    point, seen = HookPoint(2, "z"), []
    handle = tiny_model.writer(2).register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    try:
        with torch.no_grad():
            tiny_model.model(token_ids, attention_mask=mask)
    finally:
        handle.remove()
    (z, written), x = seen[0], capture(tiny_model, [point], token_ids, mask)[point]
    torch.testing.assert_close(x[mask.bool()], z[mask.bool()])
    assert x.shape[-1] == tiny_model.width(point)
    assert written.shape[-1] == tiny_model.d_model


def test_last_layer_resid_post_comes_before_the_final_norm(tiny_model):
    token_ids, mask = tokens(tiny_model)
    point = HookPoint(tiny_model.n_layers - 1)
    x = capture(tiny_model, [point], token_ids, mask)[point]
    with torch.no_grad():
        output = tiny_model.model(token_ids, attention_mask=mask, output_hidden_states=True)
        normed = tiny_model.model.get_submodule(tiny_model.family.final_norm)(x)
    after_norm, attended = output.hidden_states[-1], mask.bool()
    assert torch.equal(normed[attended], after_norm[attended])
    assert not torch.allclose(x[attended], after_norm[attended])


@pytest.mark.parametrize("point", [HookPoint(1, site) for site in SITES], ids=str)
def test_capture_runs_nothing_above_the_highest_tap(tiny_model, point):
    token_ids, mask = tokens(tiny_model)
    ran = []
    layers = tiny_model.model.get_submodule(tiny_model.family.layers)
    handles = [layer.register_forward_pre_hook(lambda *_, i=i: ran.append(i)) for i, layer in enumerate(layers)]
    try:
        capture(tiny_model, [HookPoint(0, "resid_pre"), point], token_ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    assert ran == [0, 1]


def test_capture_does_not_depend_on_the_side_of_the_padding(tiny_model):
    point = HookPoint(2)
    (right, right_mask), (left, left_mask) = tokens(tiny_model), tokens(tiny_model, "left")
    from_right = capture(tiny_model, [point], right, right_mask)[point][right_mask.bool()]
    from_left = capture(tiny_model, [point], left, left_mask)[point][left_mask.bool()]
    torch.testing.assert_close(from_left, from_right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_a_splice_that_returns_its_input_changes_no_bit(tiny_model, site):
    token_ids, mask = tokens(tiny_model, "left")
    with torch.no_grad():
        plain = tiny_model.model(token_ids, attention_mask=mask).logits
        with splice(tiny_model, HookPoint(2, site), lambda x, real: x):
            same = tiny_model.model(token_ids, attention_mask=mask).logits
        with splice(tiny_model, HookPoint(2, site), lambda x, real: x * 1.5):
            other = tiny_model.model(token_ids, attention_mask=mask).logits
    assert torch.equal(plain, same)
    assert not torch.allclose(plain, other)


def test_a_rewrite_is_what_the_next_layer_reads(tiny_model):
    token_ids, mask = tokens(tiny_model)
    below, above = HookPoint(1), HookPoint(2, "resid_pre")
    with splice(tiny_model, below, lambda x, real: torch.where(real[..., None], x + 1, x)):
        taken = capture(tiny_model, [above], token_ids, mask)[above]
    plain = capture(tiny_model, [above], token_ids, mask)[above]
    real = real_token_mask(token_ids, mask, tiny_model.special_ids)
    assert torch.equal(taken[real], plain[real] + 1)
    assert torch.equal(taken[~real], plain[~real])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_rewrite_sees_the_real_tokens_of_a_padded_call(tiny_model, side):
    token_ids, mask = tokens(tiny_model, side)
    seen = []
    with torch.no_grad(), splice(tiny_model, HookPoint(0), lambda x, real: seen.append(real) or x):
        tiny_model.model(token_ids, attention_mask=mask)
        tiny_model.model(token_ids)
    assert torch.equal(seen[0], (mask == 1) & (token_ids != 1))
    assert torch.equal(seen[1], token_ids > 3)


def test_a_rewrite_sees_each_call_of_cached_generation(tiny_model):
    token_ids, mask = tokens(tiny_model, "left")
    seen = []
    with splice(tiny_model, HookPoint(0), lambda x, real: seen.append(real) or x):
        out = tiny_model.model.generate(
            token_ids, attention_mask=mask, max_new_tokens=5, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    prompt = token_ids.shape[1]
    assert [tuple(real.shape) for real in seen] == [(3, prompt)] + [(3, 1)] * 4
    assert torch.equal(torch.cat(seen, 1)[:, :prompt], (mask == 1) & (token_ids != 1))
    assert torch.equal(torch.cat(seen[1:], 1), out[:, prompt:-1] > 3)


def test_a_rewrite_sees_which_single_new_tokens_are_real(tiny_model):
    token_ids, mask = tokens(tiny_model, "left")
    seen = []
    with torch.no_grad(), splice(tiny_model, HookPoint(0), lambda x, real: seen.append(real[:, 0].tolist()) or x):
        cache = tiny_model.model(token_ids, attention_mask=mask, use_cache=True).past_key_values
        for step in ([9, 2, 8], [1, 7, 3], [7, 7, 0]):
            mask = torch.cat([mask, torch.tensor([[1], [1], [int(step[2] > 0)]])], 1)
            tiny_model.model(torch.tensor(step)[:, None], attention_mask=mask, past_key_values=cache, use_cache=True)
    assert seen[1:] == [[True, False, True], [False, True, False], [True, True, False]]


def test_hooks_are_gone_after_an_exception(tiny_model):
    token_ids, mask = tokens(tiny_model)
    before = hook_count(tiny_model)

    def fail(x, real):
        raise RuntimeError("from inside the model")

    with pytest.raises(RuntimeError, match="inside the model"), splice(tiny_model, HookPoint(1), fail):
        assert hook_count(tiny_model) == before + 3
        tiny_model.model(token_ids, attention_mask=mask)
    assert hook_count(tiny_model) == before

    with pytest.raises(RuntimeError, match="inside the model"), splice(tiny_model, HookPoint(0), fail):
        capture(tiny_model, [HookPoint(1)], token_ids, mask)
    capture(tiny_model, [HookPoint(1)], token_ids, mask)
    assert hook_count(tiny_model) == before


def test_a_layer_that_returns_a_tuple_keeps_the_rest_of_it(tiny_llama):
    """As Gemma 2 did in transformers 4.56."""
    token_ids, mask = tokens(tiny_llama)
    layer = tiny_llama.model.get_submodule(tiny_llama.family.layers)[1]
    handle = layer.register_forward_hook(lambda module, args, output: (output, "weights"))
    seen = []
    with torch.no_grad():
        try:
            x = capture(tiny_llama, [HookPoint(1)], token_ids, mask)[HookPoint(1)]
            with splice(tiny_llama, HookPoint(1), lambda x, real: x + 1):
                last = layer.register_forward_hook(lambda module, args, output: seen.append(output) or output[0])
                tiny_llama.model(token_ids, attention_mask=mask)
                last.remove()
        finally:
            handle.remove()
    assert seen[0][1] == "weights"
    assert torch.equal(seen[0][0][mask.bool()], x[mask.bool()] + 1)


def test_a_layer_beyond_the_model_is_refused(tiny_model):
    token_ids, mask = tokens(tiny_model)
    with pytest.raises(ConfigError, match=r"layer=4 is beyond .*layers are 0\.\.3"):
        capture(tiny_model, [HookPoint(4)], token_ids, mask)
    with pytest.raises(ConfigError, match="no hook point"):
        capture(tiny_model, [], token_ids, mask)


def test_calls_that_hide_their_tokens_are_refused(tiny_llama):
    token_ids, mask = tokens(tiny_llama)
    embedded = tiny_llama.model.get_input_embeddings()(token_ids)
    with splice(tiny_llama, HookPoint(0), lambda x, real: x):
        with pytest.raises(ConfigError, match="input_ids"):
            tiny_llama.model(inputs_embeds=embedded, attention_mask=mask)
        with pytest.raises(ConfigError, match="batch, seq"):
            tiny_llama.model(token_ids, attention_mask=mask[:, None, None, :].bool())
