"""INLP's statistics of every latent, and what all methods share: counts of both sides, filters, and a ranking.

Against several retain corpora every statistic is the worst of them: the highest retain frequency, the lowest score,
ratio, difference and activation ratio. A latent is only as selective as against the corpus that knows it best, so a
latent of, say, chat templates cannot hide behind a large encyclopedia in which it never fires.

The score is that of ``bropal404/INLP_PROJECT`` (``analysis/diff_means.py``).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.config.features import FeaturesConfig
from sae_forge.features.forms import FORM, KINDS, MOSTLY, Forms
from sae_forge.features.methods.flags import Formula, ScoreSettings, part_of
from sae_forge.features.stats import LatentStats

SMOOTHING = 16.0
"""Fires added to both sides of a ratio in the paper."""
ACT_RATIO_MAX = 10.0
"""Bound of the corrected ``act_ratio``. It lets that factor of the score vary by 3.5 around a ratio of 1; unbounded, a
latent that never fires on retain text scores 5 to 10 times too high, for no evidence."""


@dataclass(frozen=True)
class Measured:
    """Every latent's statistics on the forget corpus, on each retain corpus, and where the model refuses."""

    forget: LatentStats
    retain: dict[str, LatentStats]
    refusal: LatentStats | None = None
    sink_norm: float | None = None
    """Length beyond which an activation was left out."""
    forms: Forms | None = None
    """How the forms of the corpora compare, where their text can be read."""

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return len(self.forget.fires)

    @property
    def alive(self) -> Bool[Tensor, "d_sae"]:
        """Latents that fire anywhere in the forget and retain corpora."""
        return torch.stack([stats.fires > 0 for stats in (self.forget, *self.retain.values())]).any(0)

    @property
    def marks(self) -> dict[str, Float[Tensor, "d_sae"]]:
        """Share of each latent's forget firings on tokens of each kind; empty where no token was marked."""
        marked = self.forget.marked
        return {} if marked is None else dict(zip(KINDS, marked / self.forget.fires.clamp(min=1), strict=True))

    @property
    def only_form(self) -> Bool[Tensor, "d_sae"]:
        """Latents that fire mostly on tokens that are form and no content."""
        return (torch.stack([self.marks[kind] for kind in FORM]) >= MOSTLY).any(0)

    def worst(self, statistic: Callable[[LatentStats], Tensor]) -> Float[Tensor, "d_sae"]:
        """The highest value of a statistic over the retain corpora."""
        return torch.stack([statistic(stats) for stats in self.retain.values()]).amax(0)

    def selectivity(self, config: FeaturesConfig) -> "Selectivity":
        """INLP's statistics in the form that ``config`` asks for."""
        form, retain = part_of(config, ScoreSettings), list(self.retain.values())
        smoothing, eps = form.ratio_smoothing or SMOOTHING, form.activation_eps
        return selectivity(self.forget, retain, formula=form.formula, smoothing=smoothing, eps=eps)


@dataclass(frozen=True)
class Selectivity:
    """The four INLP statistics of every latent, each against the retain corpus where it is worst."""

    score: Float[Tensor, "d_sae"]
    """``diff * log1p(ratio) * log1p(act_ratio)``."""
    ratio: Float[Tensor, "d_sae"]
    """Smoothed forget fires over smoothed retain fires."""
    diff: Float[Tensor, "d_sae"]
    """Forget frequency minus retain frequency."""
    act_ratio: Float[Tensor, "d_sae"]
    """Mean activation where it fires, forget over retain."""
    forget_frequency: Float[Tensor, "d_sae"]
    retain_frequency: Float[Tensor, "d_sae"]
    """The highest over the retain corpora."""


def selectivity(
    forget: LatentStats, retain: Sequence[LatentStats], *, formula: Formula, smoothing: float, eps: float
) -> Selectivity:
    """INLP's statistics, worst case over the retain corpora.

    ``literal`` is the released code: raw counts in ``ratio``, which a longer corpus skews, and ``act_ratio`` over
    ``mean + eps``, which explodes to ``mean / eps`` where retain never fires. ``corrected`` compares both corpora at
    the length of the shorter, gives the retain mean ``smoothing`` further fires at that corpus's mean over all its
    firings, and bounds ``act_ratio`` by ``ACT_RATIO_MAX``.

    Args:
        smoothing: Fires added to both sides of ``ratio``.
        eps: Activation added to the retain mean; ``literal`` alone uses it.
    """
    pairs = [_against(forget, other, formula=formula, smoothing=smoothing, eps=eps) for other in retain]
    ratio, diff, act_ratio = (torch.stack(column) for column in zip(*pairs, strict=True))
    score = diff * torch.log1p(ratio) * torch.log1p(act_ratio)
    return Selectivity(
        score=score.amin(0),
        ratio=ratio.amin(0),
        diff=diff.amin(0),
        act_ratio=act_ratio.amin(0),
        forget_frequency=forget.frequency,
        retain_frequency=torch.stack([other.frequency for other in retain]).amax(0),
    )


def _against(
    forget: LatentStats, retain: LatentStats, *, formula: Formula, smoothing: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``ratio``, ``diff`` and ``act_ratio`` against one retain corpus."""
    forget_mean, retain_mean = (stats.sums / (stats.fires + 1e-8) for stats in (forget, retain))
    if formula == "literal":
        ratio = (forget.fires + smoothing) / (retain.fires + smoothing)
        act_ratio = forget_mean / (retain_mean + eps)
    else:
        common = min(forget.tokens, retain.tokens)
        # fires as they would be in as many tokens on both sides, or a longer retain corpus would lower every ratio
        ratio = (forget.frequency * common + smoothing) / (retain.frequency * common + smoothing)
        overall = retain.sums.sum() / retain.fires.sum().clamp(min=1)
        # drawn to the corpus's own mean by `smoothing` fires: of a latent that fired twice its mean says little
        shrunk = (retain.sums + smoothing * overall) / (retain.fires + smoothing)
        act_ratio = torch.where(forget.fires > 0, forget_mean / shrunk, 0.0).clamp(max=ACT_RATIO_MAX)
    return ratio.double(), forget.frequency - retain.frequency, act_ratio.double()


def sieve(filters: Mapping[str, Bool[Tensor, "d_sae"]]) -> tuple[Bool[Tensor, "d_sae"], dict[str, int]]:
    """Which latents pass every filter, and how many each removed.

    A latent counts for the first filter that removes it, so the counts and the valid latents sum to d_sae.
    """
    valid = torch.ones_like(next(iter(filters.values())))
    removed = {}
    for name, passes in filters.items():
        removed[name] = int((valid & ~passes).sum())
        valid = valid & passes
    return valid, removed


def ranked(valid: Bool[Tensor, "d_sae"], by: Float[Tensor, "d_sae"], n: int) -> Int[Tensor, "chosen"]:
    """The ``n`` valid latents with the highest ``by``, or all there are; equal ones by rising index."""
    candidates = valid.nonzero()[:, 0]
    return candidates[torch.sort(by[candidates], descending=True, stable=True).indices[:n]]
