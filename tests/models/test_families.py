"""What every family's entry promises, on a tiny model of each: one fixture, the same list for all.

Sums, cut passes and untouched splices hold to the bit or to rounding; how much rows may move when they are padded or
cached is stated by family, because libraries round differently there.
"""

import json
import re
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from test_hooks import PROMPTS, tokens
from tiny_models import save_model
from tiny_tokenizer import TEXT
from torch import Tensor
from transformers.activations import GELUTanh
from transformers.cache_utils import DynamicCache

from sae_forge.config.model import ModelConfig
from sae_forge.errors import ConfigError, DataError, UnsupportedModelError
from sae_forge.hookpoint import SITES, HookPoint
from sae_forge.interventions.ablation import NegativeScaling
from sae_forge.interventions.apply import Intervention, applied
from sae_forge.models.caches import branches
from sae_forge.models.described import norms_take_mean
from sae_forge.models.diverting import diverted
from sae_forge.models.families import FAMILIES, REFUSED, family_of, read_family
from sae_forge.models.hooks import capture, splice, unreached
from sae_forge.models.last_layer import _twice
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.models.projections import projections, written_through
from sae_forge.models.quicker import SOFT_CAPPED, quicker
from sae_forge.models.tape import Tape
from sae_forge.models.tokens import max_input
from sae_forge.pipeline.bench import Bench
from sae_forge.sae.topk import TopKSAE
from sae_forge.tasks.engines.continuations import Encoded, encode, score
from sae_forge.tasks.engines.passes import forward, pad

NOISE = {"qwen3_5": 3e-4, "qwen3_next": 3e-4, "granitemoehybrid": 3e-4, "gemma4_text": 2e-4, "gemma4": 2e-4}
"""Largest difference that padding or a cache may make to a logit, where it is not ROUNDING: a running state is summed
up in chunks, and padding moves their borders; Gemma 4 norms values, which magnifies what rounding leaves."""
ROUNDING = 2e-5


BASES = ("llama", "gemma2", "gpt2", "qwen3_moe")
"""What most others are like; tests of these alone are quick."""
EVERY = [*FAMILIES, "gemma4-experts", "gpt_neox-serial"]


@pytest.fixture(
    scope="module", params=[name if name in BASES else pytest.param(name, marks=pytest.mark.slow) for name in EVERY]
)
def lm(request, tmp_path_factory) -> LanguageModel:
    return load_model(str(save_model(tmp_path_factory.mktemp("family") / request.param, request.param)), device="cpu")


def noise(lm: LanguageModel) -> float:
    return NOISE.get(lm.family.name, ROUNDING)


def sites(lm: LanguageModel) -> list[HookPoint]:
    return [HookPoint(layer, site) for layer in range(lm.n_layers) for site in SITES]


def logits(lm: LanguageModel, token_ids: Tensor, mask: Tensor, **more) -> Tensor:
    with torch.inference_mode():
        return forward(lm, token_ids, mask, **more).logits


def test_the_parts_of_every_layer_add_up(lm):
    token_ids, mask = tokens(lm)
    taken = capture(lm, sites(lm), token_ids, mask)
    third, handles = {}, []
    for layer in range(lm.n_layers):
        module = getattr(lm.layer(layer), lm.family.third_out or "", None)
        if module is not None:
            handles.append(module.register_forward_hook(lambda *call, layer=layer: third.update({layer: call[-1]})))
    logits(lm, token_ids, mask)
    for handle in handles:
        handle.remove()
    for layer in range(lm.n_layers):
        pre, post, attn, mlp = (
            taken[HookPoint(layer, site)] for site in ("resid_pre", "resid_post", "attn_out", "mlp_out")
        )
        whole = (pre + attn + mlp + third.get(layer, 0)) * getattr(lm.layer(layer), lm.family.scale or "", 1)
        torch.testing.assert_close(whole, post, rtol=1e-5, atol=1e-5)
        assert attn.abs().max() > 1e-3 and mlp.abs().max() > 1e-3
    with torch.no_grad():
        last = lm.model(token_ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
        normed = lm.model.get_submodule(lm.family.final_norm)(post)
    torch.testing.assert_close(normed[mask.bool()], last[mask.bool()], rtol=0, atol=noise(lm))


def test_a_pass_cut_short_is_the_full_pass_to_the_bit(lm):
    token_ids, mask = tokens(lm, "left")
    whole = {}
    with ExitStack() as everywhere:
        for point in sites(lm):
            everywhere.enter_context(splice(lm, point, lambda x, real, point=point: whole.setdefault(point, x)))
        logits(lm, token_ids, mask)
    for point in sites(lm):
        assert torch.equal(capture(lm, [point], token_ids, mask)[point], whole[point]), str(point)


def test_an_untouched_splice_leaves_every_bit(lm):
    for side, keep, rewrite in (("right", 0, lambda x, real: x), ("left", 1, lambda x, real: x.clone())):
        token_ids, mask = tokens(lm, side)
        plain = logits(lm, token_ids, mask, keep=keep)
        with ExitStack() as everywhere:
            for point in sites(lm):
                everywhere.enter_context(splice(lm, point, rewrite))
            assert torch.equal(logits(lm, token_ids, mask, keep=keep), plain)


def test_a_row_is_the_same_alone_and_padded_on_either_side(lm):
    point = HookPoint(lm.n_layers - 1)
    for side in ("left", "right"):
        token_ids, mask = tokens(lm, side)
        together, x = logits(lm, token_ids, mask), capture(lm, [point], token_ids, mask)[point]
        for row in range(len(PROMPTS)):
            ids = token_ids[row : row + 1, mask[row].bool()]
            alone = logits(lm, ids, torch.ones_like(ids))
            torch.testing.assert_close(together[row, mask[row].bool()], alone[0], rtol=0, atol=noise(lm))
            own = capture(lm, [point], ids, torch.ones_like(ids))[point]
            torch.testing.assert_close(x[row, mask[row].bool()], own[0], rtol=0, atol=noise(lm))


STEPS = 6
EDIT = Intervention("scale", tuple(range(24)), NegativeScaling(-3.0))


def test_texts_that_begin_alike_run_once_and_are_what_each_is_alone(lm):
    """Longer than the windows of sliding layers, with an edit in force; not where more is remembered than keys."""
    front, *parts = (lm.tokenizer(text, add_special_tokens=False)["input_ids"][:24] for text in (TEXT[0], *TEXT))
    asked = [
        Encoded((1, *front, *(token for one in order for token in one[: 6 + 2 * len(one) % 5])), ((9,), (7, 8)))
        for order in permutations(parts)
    ]
    assert branches(lm) == (lm.family.name not in ("qwen3_next", "qwen3_5", "granitemoehybrid"))
    with applied(lm, TopKSAE(lm.d_model, 64, 8), HookPoint(1), EDIT):
        apart = score(lm, asked, batch_size=12, share=False)
        shared = score(lm, asked, batch_size=4)
    for found, own in zip(shared, apart, strict=True):
        assert [one.logprob for one in found] == pytest.approx([one.logprob for one in own], abs=5 * noise(lm))


def test_fewer_steps_come_to_what_transformers_gives(lm):
    """With padding and from a cache; families with neither soft caps nor a GELU by tanh compute as they did."""
    token_ids, mask = tokens(lm, "left")
    own, caps = lm.model.config._attn_implementation, lm.family.name == "gemma2"
    found = []
    for how in (nullcontext(), quicker(lm)):
        with how, torch.inference_mode():
            assert lm.model.config._attn_implementation == (SOFT_CAPPED if found and caps else own)
            first = forward(lm, token_ids[:, :9], mask[:, :9], use_cache=True)
            rest = forward(lm, token_ids[:, 9:], mask, cache=first.past_key_values)
            found.append(torch.cat([first.logits, rest.logits], dim=1)[mask > 0])
    torch.testing.assert_close(found[1], found[0], atol=noise(lm), rtol=0)
    gelu = [module for module in lm.model.modules() if type(module) is GELUTanh]
    assert torch.equal(*found) == (not caps and not gelu)
    assert lm.model.config._attn_implementation == own and not any("forward" in vars(module) for module in gelu)


def test_the_last_layer_runs_where_it_is_read(lm):
    """From a text's beginning and from a cache; where a family hands it more than can be cut, on all tokens."""
    token_ids, mask = (part.repeat(2, 1) for part in tokens(lm))
    seq, last = token_ids.shape[1], lm.layer(lm.n_layers - 1)
    at = torch.tensor([(row, column) for row in (0, 1, 4) for column in (int(mask[row].sum()) - 1, 6 + row % 2)])
    ran = []

    def counting(module, own):
        del module
        return lambda *args, **kwargs: (ran.append(args[0].numel() // lm.d_model), own(*args, **kwargs))[1]

    part = next(name for name in (*lm.family.mlp_out, "mlp") if getattr(last, name, None) is not None)
    full = logits(lm, token_ids, mask)[at[:, 0], at[:, 1]]
    with diverted(getattr(last, part), counting):
        found = logits(lm, token_ids, mask, at=at)
        torch.testing.assert_close(found[0], full, atol=noise(lm), rtol=noise(lm))
        with torch.inference_mode():
            cache = forward(lm, token_ids[:, :3], mask[:, :3], use_cache=True).past_key_values
            found = forward(lm, token_ids[:, 3:], mask, cache=cache, at=at - torch.tensor([0, 3])).logits
    torch.testing.assert_close(found[0], full, atol=noise(lm), rtol=noise(lm))
    cut = branches(lm) and lm.family.kv_shared is None
    assert ran == ([6 * 2, 6 * 3, 6 * 2] if cut else [6 * seq, 6 * 3, 6 * (seq - 3)])
    assert "forward" not in vars(last)


@pytest.mark.parametrize("point", [HookPoint(1), HookPoint(3), HookPoint(2, "attn_out"), HookPoint(0, "mlp_out")])
def test_cached_generation_with_an_edit_is_one_full_pass_with_it(lm, point):
    """Texts are longer than the windows of sliding layers."""
    sae = TopKSAE(lm.d_model, 64, 8)
    rows = [lm.tokenizer(text)["input_ids"] for text in (TEXT[0] + TEXT[2], TEXT[1])]
    cut = len(rows[1]) - 12
    with applied(lm, sae, point, EDIT) as log, torch.inference_mode():
        token_ids, mask = pad([rows[0][:cut], rows[1][:cut]], lm.pad_id, left=True)
        output = forward(lm, token_ids, mask, use_cache=True)
        found = [output.logits[:, -1]]
        for step in range(STEPS):
            following = torch.tensor([[row[cut + step]] for row in rows])
            mask = torch.cat([mask, torch.ones_like(following)], 1)
            output = forward(lm, following, mask, cache=output.past_key_values)
            found.append(output.logits[:, -1])
        assert log.edited > 0.7 * log.tokens
        whole = torch.tensor([row[: cut + STEPS] for row in rows])
        full = forward(lm, whole, torch.ones_like(whole)).logits
    torch.testing.assert_close(torch.stack(found, 1), full[:, cut - 1 :], rtol=0, atol=5 * noise(lm))
    assert (full - logits(lm, whole, torch.ones_like(whole))).abs().max() > 0.01  # the edit does something


ASKED = [(TEXT[0][:40], (" silver owl", " book of weather", " tower")), (TEXT[2][:30], (" Bel", " Corvo and Dun"))]


@pytest.mark.parametrize("point", [HookPoint(2), HookPoint(1, "mlp_out")])
def test_a_tape_changes_no_bit(lm, point):
    asked, sae = encode(lm, ASKED), TopKSAE(lm.d_model, 64, 8)
    plain = score(lm, asked, batch_size=2)
    with applied(lm, sae, point, EDIT):
        changed = score(lm, asked, batch_size=2)
    apart = score(lm, asked, batch_size=2, share=False)
    assert plain != changed
    for shared, alone in zip(sum(plain, ()), sum(apart, ()), strict=True):
        assert abs(shared.logprob - alone.logprob) < 10 * noise(lm)
    tape = Tape(lm, point)
    with tape.running():
        assert score(lm, asked, batch_size=2) == plain
    with tape.running(), applied(lm, sae, point, EDIT):
        assert score(lm, asked, batch_size=2) == changed
    with tape.running():
        assert score(lm, asked, batch_size=2) == plain


def test_every_matrix_of_a_layer_is_a_projection_or_a_router(lm):
    for number in range(lm.n_layers):
        place = f"{lm.family.layers}.{number}"
        wide = {f"{place}.{name}" for name, weight in lm.layer(number).named_parameters() if weight.ndim in (2, 3)}
        left = wide - {projection.weight for projection in projections(lm, number)}
        assert all(re.search(r"\.(router|gate|conv1d)\.weight$|_bias$", name) for name in left), left
        written = written_through(lm, number)
        assert written and all(name in wide for name in written)
        for name in written:  # an axis of what is written is the residual stream, and the other axis is not
            inputs = next(each.inputs for each in projections(lm, number) if each.weight == name)
            shape = lm.model.get_parameter(name).shape
            assert shape[-1 if inputs == -2 else -2] == lm.d_model != shape[inputs]


def test_a_static_cache_writes_the_same_text_under_an_edit(lm):
    """``generate`` then hands the model ready-made masks of four axes; prompts are longer than the windows."""
    sae = TopKSAE(lm.d_model, 64, 8)
    rows = [lm.tokenizer(text)["input_ids"] for text in (TEXT[0], TEXT[2])]
    token_ids, mask = pad([rows[0], rows[1][:-9]], lm.pad_id, left=True)
    written, logs = [], []
    for cache in ("static", "dynamic"):
        with applied(lm, sae, HookPoint(1), EDIT) as log:
            output = lm.model.generate(  # pyright: ignore[reportCallIssue]
                input_ids=token_ids, attention_mask=mask, max_new_tokens=6, do_sample=False, eos_token_id=-1,
                pad_token_id=lm.pad_id, cache_implementation=None if cache == "dynamic" else cache,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        written.append(torch.stack(output.logits, 1))
        logs.append((log.tokens, log.edited, log.texts))
    torch.testing.assert_close(written[0], written[1], rtol=0, atol=5 * noise(lm))
    assert logs[0] == logs[1]


def test_norms_that_take_the_mean_off_are_known(lm):
    """An SAE that was trained on centred activations is read accordingly."""
    centring = isinstance(lm.model.get_submodule(lm.family.final_norm), torch.nn.LayerNorm)
    assert norms_take_mean(str(lm.folder)) == centring == (lm.family.name in ("gpt2", "gpt_neox"))


# ---- what only some families do -----------------------------------------------------------------


def loaded(folder: Path, family: str, **differing) -> LanguageModel:
    return load_model(str(save_model(folder / family, family, **differing)), device="cpu")


@pytest.mark.parametrize("family", ["gemma4_text", "gemma4"])
def test_an_edit_above_shared_keys_reaches_no_later_token_and_that_is_said(family, tmp_path):
    lm = loaded(tmp_path, family)
    token_ids, mask = tokens(lm)
    plain = logits(lm, token_ids[2:], mask[2:])

    def nudged(x: Tensor, real: Tensor) -> Tensor:
        return x + 3 * (torch.arange(x.shape[1]) == 2)[None, :, None]

    for point in sites(lm):
        with splice(lm, point, nudged):
            moved = logits(lm, token_ids[2:], mask[2:])
        words = unreached(lm, point)
        assert torch.equal(moved[:, 3:], plain[:, 3:]) == (words is not None or point == HookPoint(5))
        assert not torch.equal(moved[:, 2], plain[:, 2])
        if words is not None:
            assert "reaches no later token: layers from 4 up" in words and str(point) in words
    assert unreached(lm, HookPoint(4, "resid_pre")) and not unreached(lm, HookPoint(3, "resid_pre"))


def test_an_edit_sees_every_token_where_only_the_last_logits_are_wanted(tmp_path):
    """Gemma 4 cuts what it hands to layers that share keys down to the tokens whose logits are asked for."""
    lm = loaded(tmp_path, "gemma4_text")
    token_ids, mask = tokens(lm, "left")
    shapes = []
    with (
        torch.inference_mode(),
        splice(lm, HookPoint(5), lambda x, real: shapes.append((x.shape[:2], real.shape)) or x),
    ):
        output = lm.model(token_ids, attention_mask=mask, logits_to_keep=1)
    assert shapes == [(token_ids.shape, token_ids.shape)]
    assert output.logits.shape[1] == 1


@pytest.mark.parametrize(("family", "longest"), [("phi3-longrope", 48), ("llama-dynamic", 128)])
def test_a_text_at_which_frequencies_change_is_refused_before_anything_is_computed(family, longest, tmp_path):
    lm = loaded(tmp_path, family)
    assert max_input(lm) == longest
    fits = torch.arange(3 * longest).remainder(300).view(3, longest)
    before = capture(lm, [HookPoint(3)], fits, torch.ones_like(fits))[HookPoint(3)]
    computed = []
    longer = torch.full((1, longest + 1), 7)
    with splice(lm, HookPoint(0, "resid_pre"), lambda x, real: computed.append(x) or x):
        for call in (lambda: logits(lm, longer, torch.ones_like(longer)), lambda: lm.model(longer)):
            with pytest.raises(DataError, match=rf"of {longest + 1} tokens: beyond {longest} the rotary frequencies"):
                call()
    output = lm.model(fits, use_cache=True)
    with pytest.raises(DataError, match="at most"):  # one more token on its cache
        lm.model(fits[:, :1], past_key_values=output.past_key_values)
    assert not computed
    assert torch.equal(capture(lm, [HookPoint(3)], fits, torch.ones_like(fits))[HookPoint(3)], before)


def test_a_hybrid_with_experts_has_no_place_for_what_its_mlp_adds(tmp_path):
    lm = loaded(tmp_path, "granitemoehybrid", num_local_experts=4, num_experts_per_tok=2)
    token_ids, mask = tokens(lm)
    with pytest.raises(ConfigError, match=r"no one place for blocks\.2\.hook_mlp_out.*choose --site resid_post"):
        capture(lm, [HookPoint(2, "mlp_out")], token_ids, mask)
    assert capture(lm, [HookPoint(2)], token_ids, mask)[HookPoint(2)].isfinite().all()
    assert len(written_through(lm, 2)) == 2


@pytest.mark.slow
def test_a_compiled_model_heeds_edits_that_come_and_go(tmp_path):
    lm = loaded(tmp_path, "llama", num_hidden_layers=1)
    token_ids, mask = tokens(lm)
    sae, arguments = TopKSAE(lm.d_model, 64, 8), {"input_ids": token_ids, "attention_mask": mask, "use_cache": False}
    with torch.no_grad():
        plain = lm.model(**arguments).logits
        with applied(lm, sae, HookPoint(0), EDIT) as log:
            edited = lm.model(**arguments).logits
        compiled = torch.compile(lm.model, backend="eager")
        for _ in range(2):
            torch.testing.assert_close(compiled(**arguments).logits, plain, rtol=0, atol=ROUNDING)
            with applied(lm, sae, HookPoint(0), EDIT) as again:
                torch.testing.assert_close(compiled(**arguments).logits, edited, rtol=0, atol=ROUNDING)
            assert (again.tokens, again.edited) == (log.tokens, log.edited)


OLMO = replace(FAMILIES["llama"], name="olmo", model_types=("olmo",), needs_bos=False)


def test_a_family_that_the_table_lacks_can_be_brought_along(tmp_path):
    folder = save_model(tmp_path / "olmo", "olmo")
    with pytest.raises(UnsupportedModelError, match=r"supported: llama, .*--family FILE\.toml.*family=Family\("):
        load_model(str(folder))
    (tmp_path / "olmo.toml").write_text('like = "llama"\nname = "olmo"\nneeds_bos = false\n')
    config = ModelConfig(model=str(folder), family=tmp_path / "olmo.toml", model_device="cpu")
    lm = (bench := Bench(config)).lm
    assert lm.family == OLMO
    assert bench.tokenizer is lm.tokenizer, "read once"
    token_ids, mask = tokens(lm)
    taken = capture(lm, [HookPoint(1, site) for site in SITES], token_ids, mask)
    parts = [taken[HookPoint(1, site)] for site in ("resid_pre", "attn_out", "mlp_out")]
    torch.testing.assert_close(sum(parts), taken[HookPoint(1)], rtol=1e-5, atol=1e-5)
    elsewhere = replace(lm, family=replace(OLMO, mlp_out=("post_attention_layernorm",)))
    assert elsewhere.fingerprint()["family"] != lm.fingerprint()["family"], "activations of other places"
    assert "family" not in replace(lm, family=FAMILIES["llama"]).fingerprint()


GPT_NEO = replace(
    FAMILIES["gpt2"],
    name="gpt_neo",
    model_types=("gpt_neo",),
    o_proj=("attn.attention.out_proj",),
    cache_argument="layer_past",
)


def test_a_layer_that_counts_columns_by_itself_is_given_all_of_them(tmp_path):
    """GPT-Neo's attention takes its queries for the last columns and cuts its windows there; its layers give tuples."""
    shape = {"num_layers": 4, "num_heads": 4, "attention_types": [[["global", "local"], 2]], "window_size": 8}
    lm = load_model(str(save_model(tmp_path / "neo", "gpt_neo", **shape)), device="cpu", family=GPT_NEO)
    token_ids, mask = tokens(lm)
    at = torch.tensor([(0, int(mask[0].sum()) - 1), (1, 9), (1, 4)])
    whole = logits(lm, token_ids, mask)[at[:, 0], at[:, 1]]
    torch.testing.assert_close(logits(lm, token_ids, mask, at=at)[0], whole, atol=ROUNDING, rtol=ROUNDING)
    assert logits(lm, token_ids, mask, at=at[:0]).shape == (1, 0, whole.shape[1])


def test_what_a_cut_layer_gives_lies_where_the_layer_does():
    """Models that are spread over devices hand a layer what lies on the one below's."""

    def own(hidden_states: Tensor, past_key_values: DynamicCache, **_others: object):
        past_key_values.update(hidden_states[:, None], hidden_states[:, None], 0)
        return hidden_states.to("meta"), "weights"

    hidden, cache = torch.ones(2, 5, 8), DynamicCache()
    given = {"hidden_states": hidden, "past_key_values": cache}
    every, rest = _twice(own, given, cache, torch.tensor([[4], [2]]))
    assert (every.device.type, every.shape, rest) == ("meta", hidden.shape, "weights")


def test_a_file_says_a_whole_family_or_where_one_departs_from_another(tmp_path):
    for family in (*FAMILIES.values(), OLMO):
        lines = [f"{key} = {json.dumps(value)}" for key, value in asdict(family).items() if value is not None]
        (tmp_path / "whole.toml").write_text("\n".join(lines))
        assert read_family(tmp_path / "whole.toml") == family


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('like = "lama"', r"is like 'lama' \(did you mean llama\?\); there are llama, gemma, "),
        ('like = "llama"\nlayer = "x"', "layer: there is no such key; possible: like, name, model_types, layers, "),
        ('name = "olmo"', "layers: it is missing; possible: like, "),
        ('like = "llama"\nneeds_bos = "no"', "needs_bos: it should be a valid boolean, not 'no'; possible: "),
        ("like =", "is not TOML: "),
    ],
)
def test_a_file_that_describes_no_family_is_one_line_with_what_it_may_hold(tmp_path, said, told):
    (tmp_path / "own.toml").write_text(said)
    with pytest.raises(ConfigError, match=told) as refused:
        read_family(tmp_path / "own.toml")
    assert str(refused.value).startswith(f"--family {tmp_path / 'own.toml'} ")
    assert (refused.value.exit_code, "\n" in str(refused.value)) == (2, False)


@pytest.mark.parametrize(
    ("differing", "told"),
    [
        ({"layers": "model.blocks"}, "has no model.blocks, which family own names as its layers"),
        ({"final_norm": "norm"}, "has no norm, which family own names as its final_norm"),
        ({"mlp_out": ("ffn", "moe")}, "layer 0 of .* has none of ffn, moe, .* as its mlp_out; it has self_attn, "),
        ({"down_proj": ("mlp.w2",)}, "has none of mlp.w2, .* as its down_proj; it has .*, mlp.down_proj, "),
        ({"multiplier": "branch_scale"}, "has no branch_scale, family own's multiplier"),
    ],
)
def test_a_family_of_ones_own_that_does_not_fit_the_model_is_one_line(model_folders, differing, told):
    own = replace(FAMILIES["llama"], name="own", **differing)
    with pytest.raises(UnsupportedModelError, match=told):
        load_model(str(model_folders["llama"]), device="cpu", family=own)


def test_the_page_on_families_has_every_type_that_is_read_or_refused():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    types = [*(name for family in FAMILIES.values() for name in family.model_types), *REFUSED]
    assert [name for name in types if f"`{name}`" not in page] == []


def test_gemma_3n_is_refused_with_the_reason():
    for model_type in REFUSED:
        with pytest.raises(UnsupportedModelError, match="four residual streams at once"):
            family_of(model_type, "google/gemma-3n-E2B")
