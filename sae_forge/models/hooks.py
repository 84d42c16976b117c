"""Reading and rewriting activations of a live model; the only file that registers hooks on them.

``hidden_states[layer + 1]`` is not the residual stream at the last layer (it comes after the final norm), and
decoder layers return a tensor or a tuple depending on the transformers version: hooks here know both, so that
nobody else has to. Every handle is removed when its block ends, however it ends.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch._dynamo import config as dynamo
from torch.utils.hooks import RemovableHandle

from sae_forge.errors import ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.caches import CARRIED, Carried
from sae_forge.models.from_transformers import AnyModel, language_model
from sae_forge.models.loading import LanguageModel
from sae_forge.models.places import submodule_of
from sae_forge.models.tokens import embeddable, real_token_mask

Rewrite = Callable[[Float[Tensor, "batch seq d_in"], Bool[Tensor, "batch seq"]], Float[Tensor, "batch seq d_in"]]
"""Takes an activation and the mask of its real tokens; returns what stands in its place."""

Shared = tuple[tuple[int, ...], ...]
"""For each row the texts it stands for: one, or several that have its tokens in common."""

_Visit = Callable[[Tensor], Tensor]
_WHOLE = "sae_forge_whole"
_BLOCKS = count()
_SHARED: ContextVar[Shared | None] = ContextVar("texts of each row", default=None)
_PAUSED: ContextVar[bool] = ContextVar("activations are left as they are", default=False)


HookT = TypeVar("HookT", bound=Callable[..., Any])


def _not_traced(hook: HookT) -> HookT:
    """The hook, run as plain Python where ``torch.compile`` traces the model around it."""
    return torch.compiler.disable(hook)  # pyright: ignore[reportReturnType]


class _AllRead(Exception):  # noqa: N818 (a signal between hook and caller, never an error)
    """Ends a forward pass from inside it: everything asked for has been read."""


def check_points(lm: LanguageModel, points: Sequence[HookPoint]) -> None:
    """Every point lies in the model.

    Raises:
        ConfigError: one lies beyond the last layer or at a site its layer does not have, or there is none at all.
    """
    if not points:
        raise ConfigError("no hook point was given; name at least one layer with --layer")
    for point in points:
        if point.layer >= lm.n_layers:
            raise ConfigError(f"layer={point.layer} is beyond {lm.name}, whose layers are 0..{lm.n_layers - 1}")
        beside = lm.family.mlp_beside
        if point.site == "mlp_out" and beside and getattr(lm.layer(point.layer), beside, None) is not None:
            raise ConfigError(
                f"{lm.name} has no one place for {point}: what its MLP adds comes from two modules; "
                "choose --site resid_post, resid_pre or attn_out"
            )


def unreached(lm: LanguageModel, point: HookPoint) -> str | None:
    """What an edit at ``point`` cannot do, in words: later tokens do not see it where all layers above share keys."""
    first_sharing = lm.n_layers - (getattr(lm.config, lm.family.kv_shared, 0) if lm.family.kv_shared else 0)
    lowest_reader = point.layer if point.site == "resid_pre" else point.layer + 1
    if lowest_reader < first_sharing or first_sharing == lm.n_layers:
        return None
    return (
        f"an edit at {point} of {lm.name} changes what its own token gives and reaches no later token: layers from "
        f"{first_sharing} up read the keys and values of lower layers"
    )


def capture(
    lm: AnyModel,
    points: Sequence[HookPoint],
    token_ids: Int[Tensor, "batch seq"],
    attention_mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"],
) -> dict[HookPoint, Float[Tensor, "batch seq d_in"]]:
    """Activations at ``points``, in the model's dtype and on its device, without gradients.

    The pass ends at the highest point: no layer above it runs, and no logits are formed. Positions count from
    the first attended token, so left padding does not move them. Rows of padding hold no meaning.

    Raises:
        ConfigError: a point lies beyond the model.
    """
    with torch.no_grad():
        return _read(language_model(lm), points, token_ids, attention_mask)


def capture_with_gradients(
    lm: AnyModel,
    points: Sequence[HookPoint],
    token_ids: Int[Tensor, "batch seq"],
    attention_mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"],
) -> dict[HookPoint, Float[Tensor, "batch seq d_in"]]:
    """What ``capture`` reads, as functions of the weights that take gradients; no layer above the points runs.

    Raises:
        ConfigError: a point lies beyond the model.
    """
    return _read(language_model(lm), points, token_ids, attention_mask)


def _read(
    lm: LanguageModel, points: Sequence[HookPoint], token_ids: Tensor, attention_mask: Tensor
) -> dict[HookPoint, Tensor]:
    check_points(lm, points)
    wanted = dict.fromkeys(points)
    seen: dict[HookPoint, Tensor] = {}

    def read(point: HookPoint, x: Tensor) -> Tensor:
        seen[point] = x
        if len(seen) == len(wanted):
            raise _AllRead
        return x

    token_ids = embeddable(lm, token_ids, attention_mask)
    attention_mask = attention_mask.to(lm.device, torch.long)
    with ExitStack() as handles, suppress(_AllRead):
        for point in wanted:
            handles.callback(_tap(lm, point, partial(read, point)).remove)
        lm.model.base_model(
            input_ids=token_ids.to(lm.device),
            attention_mask=attention_mask,
            position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
            use_cache=False,
        )
    return {point: seen[point] for point in points}


@dataclass(frozen=True, eq=False)
class Call:
    """What a rewrite is told of the forward pass under way."""

    real: Bool[Tensor, "batch seq"]
    """The real tokens of this call: under cached generation, of the new tokens only."""
    attended: Bool[Tensor, "batch seq"]
    """The tokens that are no padding."""
    held: int
    """Earlier tokens that the cache of the call holds, padding among them; 0 where the texts begin."""
    carried: Carried | None
    """What the rewrite returned from the call before; None if it has not seen all that the cache holds."""
    texts: Shared | None = None
    """Where rows are what several texts have in common: the texts of each row, by their numbers."""


CarryingRewrite = Callable[[Float[Tensor, "batch seq d_in"], Call], tuple[Float[Tensor, "batch seq d_in"], Carried]]
"""Takes an activation and what is known of the call; returns what stands in its place, and what to remember."""


@contextmanager
def splice(lm: AnyModel, point: HookPoint, rewrite: Rewrite) -> Iterator[None]:
    """Inside the block, every forward pass continues from ``rewrite(x, real)`` at ``point``.

    ``real`` marks the real tokens of the call under way: under cached generation, the new tokens only. A rewrite
    that returns ``x`` itself leaves the logits identical to the bit. Static caches are followed, and a model that was
    compiled is compiled anew when a block begins or ends. Blocks nest: each sees what those below it in
    the model wrote, and of two at one point the outer comes first.

    Raises:
        ConfigError: ``point`` lies beyond the model, or a call inside hides which of its tokens are real.
    """
    with splice_carrying(lm, point, lambda x, call: (rewrite(x, call.real.to(x.device)), ())):
        yield


@contextmanager
def sharing(texts: Shared) -> Iterator[None]:
    """Inside the block, what is spliced in is told that rows stand for these texts; calls of one cache number alike."""
    before = _SHARED.set(texts)
    try:
        yield
    finally:
        _SHARED.reset(before)


@contextmanager
def paused() -> Iterator[None]:
    """Inside the block, what is spliced in is shown nothing and changes nothing."""
    before = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(before)


def wants_whole(lm: AnyModel) -> bool:
    """Whether something is spliced in that must be shown all of a prompt in one call."""
    return getattr(language_model(lm).model.base_model, _WHOLE, 0) > 0


@contextmanager
def _wanting_whole(base: nn.Module, whole: bool) -> Iterator[None]:
    setattr(base, _WHOLE, getattr(base, _WHOLE, 0) + whole)
    try:
        yield
    finally:
        setattr(base, _WHOLE, getattr(base, _WHOLE) - whole)


@contextmanager
def splice_carrying(lm: AnyModel, point: HookPoint, rewrite: CarryingRewrite, *, whole: bool = True) -> Iterator[None]:
    """``splice`` for a rewrite that must remember the texts it is shown from one cached call to the next.

    What it returns travels on the cache of the call: it is copied with the cache, ends with it, and a call that fails
    leaves it as it was. ``select_rows`` chooses rows of both; a cache that was shortened has nothing to hand on. Beam
    search shuffles the rows of a cache by itself and is not followed.

    Args:
        whole: A prompt shown in several calls is not the same to it as in one.

    Raises:
        ConfigError: ``point`` lies beyond the model, or a call inside hides which of its tokens are real.
    """
    lm = language_model(lm)
    check_points(lm, [point])
    _make_compiled_code_heed_hooks()
    base = lm.model.base_model
    signature = inspect.signature(base.forward)
    block = next(_BLOCKS)
    under_way: dict[str, Any] = {}

    @_not_traced
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...] | None:
        del module
        under_way.clear()
        arguments = signature.bind_partial(*args, **kwargs).arguments
        cache = arguments.get("past_key_values")
        held = 0 if cache is None else int(cache.get_seq_length())
        seen, carried = getattr(cache, CARRIED, {}).get(block, (0, None))
        real, attended = _tokens_of(arguments, lm.special_ids)
        call = Call(real, attended, held, carried if held and held == seen else None, _SHARED.get())
        under_way.update(call=call, cache=cache, seen=held + real.shape[1])
        if kwargs.get("logits_to_keep") is None:
            return None
        # Layers that read the keys of lower ones are given only the tokens whose logits are wanted, and a rewrite must
        # see all; the causal LM cuts afterwards.
        return args, {**kwargs, "logits_to_keep": 0}

    def visit(x: Tensor) -> Tensor:
        if _PAUSED.get():
            return x
        y, under_way["carried"] = rewrite(x, under_way["call"])
        return y

    @_not_traced
    def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        del module, args
        cache = getattr(output, "past_key_values", None) or under_way["cache"]
        if under_way.get("carried") and cache is not None:
            vars(cache).setdefault(CARRIED, {})[block] = (under_way["seen"], under_way["carried"])
        under_way.clear()

    with ExitStack() as handles:
        handles.enter_context(_wanting_whole(base, whole))
        handles.callback(base.register_forward_pre_hook(note, with_kwargs=True).remove)
        handles.callback(base.register_forward_hook(keep).remove)
        handles.callback(_tap(lm, point, visit).remove)
        yield


def _make_compiled_code_heed_hooks() -> None:
    """Without this, code that ``torch.compile`` made before a hook was there goes on as if it still were not."""
    if dynamo.skip_nnmodule_hook_guards:
        dynamo.skip_nnmodule_hook_guards = False
        torch._dynamo.reset()


@contextmanager
def differentiable(lm: AnyModel, point: HookPoint) -> Iterator[list[Float[Tensor, "batch seq d_in"]]]:
    """Inside the block, what the model computes above ``point`` can be differentiated by the activation there.

    Each forward pass adds its activation to the list, cut from all below it, so that only the layers above are kept
    for the way back. No number changes, and the weights still take no gradient.

    Raises:
        ConfigError: ``point`` lies beyond the model.
    """
    lm = language_model(lm)
    check_points(lm, [point])
    leaves: list[Tensor] = []

    def cut(x: Tensor) -> Tensor:
        leaves.append(x.detach().requires_grad_())
        return leaves[-1]

    with ExitStack() as handles:
        handles.callback(_tap(lm, point, cut).remove)
        yield leaves


def _tokens_of(
    arguments: Mapping[str, Any], special_ids: frozenset[int]
) -> tuple[Bool[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """The real and the attended tokens of one call; its mask also covers what the cache holds, so its tail is taken."""
    token_ids, attention_mask = arguments.get("input_ids"), arguments.get("attention_mask")
    if token_ids is None:
        raise ConfigError("an edited model was called without input_ids, so its special tokens cannot be told apart")
    if attention_mask is None:
        attention_mask = torch.ones_like(token_ids)
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        attended = attention_mask[:, -token_ids.shape[1] :]
    else:
        attended = _seeing_themselves(attention_mask, token_ids, arguments.get("past_key_values"))
    attended = attended.to(token_ids.device, torch.bool)
    return real_token_mask(token_ids, attended, special_ids), attended


def _seeing_themselves(mask: Any, token_ids: Int[Tensor, "batch seq"], cache: Any) -> Tensor:
    """The attended tokens, read off the causal masks that ``generate`` makes for a static cache: padding sees nothing.

    Those come as ``[batch, 1, seq, keys]``, or several of them by type of layer. In full attention a token's column is
    its place in the text; of a sliding window the cache knows the place of the first column.
    """
    masks = mask if isinstance(mask, Mapping) else {"": mask}
    chosen, seq = masks.get("full_attention", next(iter(masks.values()))), token_ids.shape[1]
    if chosen is None:  # left out where nothing is padded
        return torch.ones_like(token_ids)
    if not isinstance(chosen, Tensor) or chosen.ndim != 4 or chosen.shape[2] != seq or cache is None:
        raise ConfigError("an edited model was called with a ready-made causal mask; pass one of shape [batch, seq]")
    first = 0 if "full_attention" in masks else cache.get_mask_sizes(seq, 0)[1]
    columns = torch.arange(seq, device=chosen.device) + int(cache.get_seq_length()) - int(first)
    own = chosen[:, 0].gather(2, columns[None, :, None].expand(len(chosen), -1, 1))[..., 0]
    return own if own.dtype == torch.bool else own > torch.finfo(own.dtype).min / 2


def _tap(lm: LanguageModel, point: HookPoint, visit: _Visit) -> RemovableHandle:
    """Show the activation at ``point`` to ``visit`` in every forward pass, and continue with what it returns."""
    layer = lm.layer(point.layer)
    match point.site:
        case "resid_pre":
            return layer.register_forward_pre_hook(partial(_visit_input, visit), with_kwargs=True)
        case "resid_post":
            return layer.register_forward_hook(partial(_visit_output, visit))
        case "z":
            return lm.writer(point.layer).register_forward_pre_hook(partial(_visit_input, visit), with_kwargs=True)
        case "attn_out":
            branch = lm.family.attn_out
        case "mlp_out":
            branch = lm.family.mlp_out
    module = submodule_of(layer, branch)
    if lm.family.multiplier is not None:
        visit = partial(_visit_multiplied, visit, getattr(lm.config, lm.family.multiplier))
    return module.register_forward_hook(partial(_visit_output, visit))


def _visit_multiplied(visit: _Visit, multiplier: float, x: Tensor) -> Tensor:
    """Show what the layer will make of ``x``; where nothing is changed, ``x`` keeps its bits."""
    added = x * multiplier
    y = visit(added)
    return x if y is added else torch.where(y == added, x, y / multiplier)


@_not_traced
def _visit_input(
    visit: _Visit, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    del module
    x = args[0] if args else kwargs["hidden_states"]
    y = visit(x)
    if y is x:
        return None
    return ((y, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": y})


@_not_traced
def _visit_output(visit: _Visit, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
    del module, args
    x = output[0] if isinstance(output, tuple) else output
    y = visit(x)
    if y is x:
        return None
    return (y, *output[1:]) if isinstance(output, tuple) else y
