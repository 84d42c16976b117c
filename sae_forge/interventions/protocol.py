"""What an edit and a gate must offer. Both are pure: they know no model, SAE, hook or earlier call.

What a gate remembers of a text is handed in and out as its state; keeping it is the business of ``apply`` alone.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

State = tuple[Tensor, ...]
"""What is remembered of the tokens of each text so far: tensors whose first axis is the batch."""


@runtime_checkable
class LatentEdit(Protocol):
    """Rewrites the acts of the written latents; what becomes of the activation follows from that."""

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


@runtime_checkable
class AlongRows(ResidualEdit, Protocol):
    """A ``ResidualEdit`` whose delta is a sum of decoder rows, and that says how much of each."""

    @property
    def rows(self) -> Float[Tensor, "n d_in"]:
        """The directions."""
        ...

    def coefficients(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq n"]:
        """How far the edit moves along each row: ``delta == coefficients @ rows``."""
        ...


@runtime_checkable
class RowEdit(Protocol):
    """Moves the activation along the written latents' decoder rows, which it must be told first."""

    def bind(self, rows: Float[Tensor, "n d_in"], b_dec: Float[Tensor, "d_in"]) -> AlongRows:
        """The edit for these latents of this SAE."""
        ...


@runtime_checkable
class Gate(Protocol):
    """Says on which tokens an edit is in force.

    One that has ``whole = False`` may be shown a prompt in several calls, each with the state of the one before: what
    many prompts begin with then runs once for all.
    """

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        """Where the gate is open, and what to remember for the next call of the same texts.

        Args:
            acts: Of the targeted latents; those of padding may be anything.
            real: The real tokens, the only ones a statistic may count.
            state: What the call before returned; None where the texts begin.

        Returns:
            What holds at each token, and the new state: ``()`` if nothing need be remembered.
        """
        ...
