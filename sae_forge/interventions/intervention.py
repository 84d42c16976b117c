"""An intervention: which latents are watched, which are written, what is written, and where."""

from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, get_args

from sae_forge.config.editing import Tokens
from sae_forge.errors import ConfigError
from sae_forge.interventions.controls import RandomDirections
from sae_forge.interventions.gates.none import ALWAYS
from sae_forge.interventions.protocol import Gate, LatentEdit, ResidualEdit, RowEdit

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Intervention:
    """Which latents are edited, how, and on which tokens. Where the gate is shut, nothing changes."""

    name: str
    """The method's name in reports."""
    targets: tuple[int, ...]
    """Distinct latents that are watched: their acts are what the gate sees. May be empty for an edit of the residual
    that asks no latent."""
    edit: LatentEdit | RowEdit | ResidualEdit | RandomDirections
    _: KW_ONLY
    writes: tuple[int, ...] | None = None
    """Distinct latents that are written, in the order of any list of values in ``edit``; None: the targets."""
    gate: Gate = ALWAYS
    tokens: Tokens = "real"
    """Those it may touch."""
    counted: Tokens = "real"
    """Those that a gate's statistic of the text counts; beyond the real ones, a token that may not be touched counts as
    one on which nothing fires."""
    keep_error: bool = True
    """Off, the SAE's reconstruction replaces every token that may be edited, gate or no gate: an ablation that shows
    what dropping its error costs."""

    def __post_init__(self) -> None:
        for name, chosen in (("tokens", self.tokens), ("counted", self.counted)):
            if chosen not in get_args(Tokens):
                raise ConfigError(f"{name}={chosen!r} is unknown; choose one of {', '.join(get_args(Tokens))}")
        if not self.written and self._needs_latents:
            raise ConfigError(f"{self.name} needs distinct latents of 0 or more, at least one; got ()")
        for latents in (self.targets, self.written):
            if min(latents, default=0) < 0 or len(set(latents)) < len(latents):
                raise ConfigError(f"{self.name} needs distinct latents of 0 or more, at least one; got {latents[:8]}")

    @property
    def written(self) -> tuple[int, ...]:
        """The latents that are written."""
        return self.targets if self.writes is None else self.writes

    @property
    def latents(self) -> tuple[int, ...]:
        """All latents concerned, watched or written, each once."""
        return tuple(dict.fromkeys((*self.targets, *self.written)))

    @property
    def _needs_latents(self) -> bool:
        edit = self.edit.edit if isinstance(self.edit, RandomDirections) else self.edit
        return isinstance(edit, LatentEdit | RowEdit)


def chosen_tokens(which: Tokens, real: "Tensor", attended: "Tensor", *, begins: bool = True) -> "Tensor":
    """The mask ``[batch, seq]`` of the tokens that are meant.

    Args:
        begins: Whether texts begin in this call, so that the first attended token of each row is its first of all.
    """
    if which == "real":
        return real
    return attended & (attended.long().cumsum(-1) > 1) if which == "all_but_first" and begins else attended
