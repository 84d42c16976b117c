"""Difference in means: the direction from the mean activation of retain to that of forget tokens is taken out.

It reads no SAE (arXiv 2312.06681 adds such a direction). Its budget is what negative scaling adds to a forget token on
average, so that the two push equally hard.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from sae_forge.errors import ConfigError, DataError, ForgeError, ShardError
from sae_forge.methods.method import Method, Settings, Strength, titled, without_shards

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from sae_forge.data.shards import ShardReader
    from sae_forge.methods.materials import Materials
    from sae_forge.methods.subjects import Edited
    from sae_forge.sae.direction import Direction

QUANTILE = 95.0
"""Percentile of the retain tokens' projections beyond which the gated form acts."""


def difference_in_means(
    forget: Sequence["ShardReader"], retain: Sequence["ShardReader"], *, sink_norm: float | None = None
) -> "Direction":
    """From the mean of the retain tokens to that of the forget tokens, one row a token, in fp32 on the CPU.

    One pass over the shards; sums are in float64. Rows longer than ``sink_norm`` count for neither.

    Raises:
        ShardError: the shards are not all of one hook point of one model.
        DataError: a side has no token, or the two means are equal.
    """
    from sae_forge.sae.direction import Direction

    origins = [reader.fingerprint for reader in (*forget, *retain)]
    sites = {(origin.model, origin.weights, origin.hook_point) for origin in origins}
    if len(sites) > 1:
        listed = ", ".join(sorted(f"{model} at {point}" for model, _, point in sites))
        raise ShardError(f"a difference in means needs activations of one site, got {listed}; collect them at one")
    # mu_forget - mu_retain, whose length says nothing: the strength is set apart from it
    difference = _mean(forget, "forget", sink_norm) - _mean(retain, "retain", sink_norm)
    length = difference.norm()
    if not length > 0:
        raise DataError("forget and retain activations have the same mean; they are the same text, or not collected")
    return Direction((difference / length).float()[None])


def retain_threshold(
    direction: "Direction",
    retain: Sequence["ShardReader"],
    *,
    percentile: float = QUANTILE,
    sink_norm: float | None = None,
) -> float:
    """The projection that ``percentile`` % of a corpus's tokens do not exceed; of several corpora the largest.

    Rows longer than ``sink_norm`` do not count.

    Raises:
        ConfigError: the percentile is not in [0, 100].
        DataError: there is no corpus, or one without tokens.
    """
    import numpy as np

    if not 0 <= percentile <= 100:
        raise ConfigError(f"percentile={percentile} is not in 0..100; the usual one is {QUANTILE:g}")
    if not retain or not all(reader.rows for reader in retain):
        raise DataError("a threshold needs retain tokens; collect a retain corpus")
    return max(float(np.percentile(_projections(direction, reader, sink_norm), percentile)) for reader in retain)


def matching_strength(
    direction: "Direction", readers: Sequence["ShardReader"], *, mean_norm: float, sink_norm: float | None = None
) -> float:
    """The strength of ``RemoveShare`` at which the edit moves a token by ``mean_norm`` on average.

    The average is over all tokens of the shards, those that the direction's threshold leaves alone among them, so a
    gated edit makes up for them on the others. Rows longer than ``sink_norm``, which no edit moves, do not count.

    Raises:
        DataError: no token lies beyond the direction's threshold.
    """
    import numpy as np

    along = np.concatenate([_projections(direction, reader, sink_norm) for reader in readers])
    # the direction d has length 1, so the edit moves a token by strength |x d|: the mean of that is linear in strength
    moved = float(np.abs(np.where(along > direction.threshold, along, 0.0)).mean()) if len(along) else 0.0
    if not moved > 0:
        raise DataError(f"no token lies beyond {direction.threshold:g} along the direction; lower the threshold")
    return mean_norm / moved


def _projections(direction: "Direction", reader: "ShardReader", sink_norm: float | None) -> "np.ndarray":
    import torch

    from sae_forge.data.sinks import without_sinks

    along = direction.W_dec[0].double().cpu()
    blocks = reader.iter_acts(range(reader.block_count), reader.make_scratch())
    return torch.cat([without_sinks(acts, sink_norm).double() @ along for acts in blocks]).numpy()


def _mean(readers: Sequence["ShardReader"], role: str, sink_norm: float | None) -> "Tensor":
    import torch

    from sae_forge.data.sinks import without_sinks

    if not sum(reader.rows for reader in readers):
        raise DataError(f"a difference in means needs {role} tokens; collect a {role} corpus")
    # float64, or the millions of rows that are summed leave too few digits to the difference
    total, rows = torch.zeros(readers[0].d_in, dtype=torch.float64), 0
    for reader in readers:
        for acts in reader.iter_acts(range(reader.block_count), reader.make_scratch()):
            ordinary = without_sinks(acts, sink_norm)
            total += ordinary.double().sum(0)
            rows += len(ordinary)
    return total / rows


# ---- the method ---------------------------------------------------------------------------------


def _direction(materials: "Materials") -> "Direction":
    retain = list(materials.shards.retain.values())
    direction = difference_in_means([materials.shards.forget], retain, sink_norm=materials.sink_norm)
    return direction.to(materials.sae.b_dec.device)


def _threshold(materials: "Materials") -> float:
    """How far along the direction a token must lie for the gated form to act."""
    retain = list(materials.shards.retain.values())
    direction, percentile = materials.once(_direction), materials.config.gate_percentile
    return retain_threshold(direction, retain, percentile=percentile, sink_norm=materials.sink_norm)


def _budget(materials: "Materials") -> float:
    """Mean L2 norm of what the first ablation scale on all latents adds to a forget token, touched or not."""
    import torch

    from sae_forge.interventions.apply import delta
    from sae_forge.methods.edits.scale import scale

    x = materials.forget_sample
    real = torch.ones(x.shape[:2], dtype=torch.bool)
    reference = scale(materials.selection.indices, materials.config.ablation_scale[0])
    return float(delta(materials.sae, reference, x, real).double().norm(dim=-1).mean())


def _build(settings: Settings, materials: "Materials") -> "Edited":
    """The direction, taken out of tokens so far that it moves forget text as much as the budget says."""
    from sae_forge.interventions.ablation import RemoveShare
    from sae_forge.interventions.edit import Edit
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.methods.subjects import Edited

    direction = materials.once(_direction)
    if settings["gated"]:
        direction = direction.gated(materials.once(_threshold))
    mean_norm = settings["budget"] * materials.once(_budget)
    forget, norm = [materials.shards.forget], materials.sink_norm
    strength = matching_strength(direction, forget, mean_norm=mean_norm, sink_norm=norm)
    edit = Intervention("diff_means", (0,), RemoveShare(strength), tokens=materials.config.tokens)
    return Edited((Edit(materials.point, direction, edit, materials.sink_norm),))


def _needs(materials: "Materials") -> ForgeError | None:
    if materials.config.gate != "own" or not materials.config.keep_error:
        return ConfigError(
            "diff_means reads no SAE: it has no error to drop and a gate of its own; leave it out of --methods, or "
            "leave out --gate and --no_keep_error"
        )
    return without_shards("diff_means", "is the difference of the collected means", materials)


METHOD = Method(
    name="diff_means",
    kind="hook",
    title=lambda settings: (
        f"{titled('diff_means', 'budget')(settings)}, {'gated' if settings['gated'] else 'on every token'}"
    ),
    rough=("budget",),
    from_flags=lambda *_: [{"budget": 1.0, "gated": gated} for gated in (False, True)],
    axes=lambda *_: ({"gated": [False, True]}, Strength("budget", 0.25, 4.0)),
    needs=_needs,
    build=_build,
    everywhere=lambda subject: cast("Direction", subject.edits[0].dictionary).threshold == -math.inf,
)
