"""What the rooms that read or edit latents ask of an SAE, whatever its activation function."""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LatentActs(NamedTuple):
    """Acts of the latents that may fire on each token; the order within a token means nothing."""

    values: Float[Tensor, "*batch k"]
    """Zero or more; a zero did not fire."""
    indices: Int[Tensor, "*batch k"]
    """Which latents they are."""


def acts_of(acts: LatentActs, latents: Int[Tensor, "n"], d_sae: int) -> Float[Tensor, "*batch n"]:
    """Of encoded tokens the acts of the chosen latents, in their order; zero where one does not fire.

    Args:
        latents: Distinct ones, in ``[0, d_sae)``.
    """
    place = latents.new_full((d_sae,), len(latents))  # the last column gathers what was not asked for
    place[latents] = torch.arange(len(latents), device=latents.device, dtype=latents.dtype)
    columns = acts.values.new_zeros(*acts.values.shape[:-1], len(latents) + 1)
    return columns.scatter_add(-1, place[acts.indices].long(), acts.values)[..., :-1]


_ProtocolType: Any = type(Protocol)


class _SaysSo(_ProtocolType):
    """Believes a class that says ``is_dictionary``: Python 3.11 would ask an instance for each of its attributes.

    One that stays in its file would be read for the question.
    """

    def __instancecheck__(self, instance: object) -> bool:
        return getattr(type(instance), "is_dictionary", False) or super().__instancecheck__(instance)


@runtime_checkable
class Dictionary(Protocol, metaclass=_SaysSo):
    """A dictionary of directions: acts of latents in, sums of decoder rows out."""

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        ...

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        ...

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """A row is a latent's direction; its device and dtype are the dictionary's."""
        ...

    @property
    def b_dec(self) -> Float[Tensor, "d_in"]:
        """What every reconstruction starts from."""
        ...

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The latents that fire on each token, with their acts."""
        ...

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction these acts stand for."""
        ...

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents alone, in the order given."""
        ...
