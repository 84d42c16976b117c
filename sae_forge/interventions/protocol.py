"""What an edit must offer. Both kinds are pure: they know no model, SAE, hook or earlier call.

When an edit is in force, and what state that takes, is not theirs to know: it belongs to ``apply``.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class LatentEdit(Protocol):
    """Rewrites the acts of the targeted latents; what becomes of the activation follows from that."""

    def edit(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq n"]:
        """New acts; an act that is to stay must come back identical to the bit."""
        ...


@runtime_checkable
class ResidualEdit(Protocol):
    """Moves the activation itself, in whatever direction."""

    def delta(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq d_in"]:
        """What to add to ``x``; exactly zero on a token that is to stay."""
        ...
