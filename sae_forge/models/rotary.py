"""Models whose rotary frequencies follow the length of a text, and the lengths to which they are kept.

With ``longrope`` one set of frequencies serves a whole batch, picked by its longest text; with ``dynamic`` they follow
the longest text since the last short one. Beyond a boundary the activations of a text therefore hang on what else was
run (by up to 0.4 on values of 2.6, and 2 nats where a cache is continued over it), so no text may cross it.
"""

from functools import partial
from typing import Any

from torch import nn

from sae_forge.errors import DataError

_FOLLOWING = ("longrope", "dynamic")


def boundary(model: nn.Module) -> int | None:
    """Tokens a text may have; None for models whose frequencies follow nothing."""
    limits = [limit for module in model.modules() if (limit := _boundary(module)) is not None]
    return min(limits, default=None)


def keep_within(model: nn.Module, name: str) -> None:
    """From now on a pass over a longer text is refused before it has computed anything; most models have no such limit.

    Raises:
        DataError: from a later pass; says how long texts may be.
    """
    for module in model.modules():
        if (limit := _boundary(module)) is not None:
            module.register_forward_pre_hook(partial(_refuse, name, limit), with_kwargs=True)


def _boundary(module: nn.Module) -> int | None:
    kind, settings = getattr(module, "rope_type", None), getattr(getattr(module, "config", None), "rope_parameters", {})
    if isinstance(kind, dict):  # by type of layer
        limits = [_limit(one, settings[layers], module) for layers, one in kind.items()]
        return min((limit for limit in limits if limit is not None), default=None)
    return _limit(kind, settings, module)


def _limit(kind: str | None, settings: dict[str, Any], module: Any) -> int | None:
    if kind not in _FOLLOWING:
        return None
    return settings["original_max_position_embeddings"] if kind == "longrope" else module.original_max_seq_len


def _refuse(name: str, limit: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    del module
    length = int((args[1] if len(args) > 1 else kwargs["position_ids"]).max()) + 1
    if length > limit:
        raise DataError(
            f"a text of {length} tokens: beyond {limit} the rotary frequencies of {name} follow the longest text that "
            f"was run, and its activations with them; give texts of at most {limit} tokens (--ctx_len)"
        )
