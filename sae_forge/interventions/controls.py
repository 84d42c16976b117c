"""The controls that tell forgetting from mere damage: the same push, with its directions or its places made random.

A control takes the place of an intervention's edit and answers to its gate. Whatever the edit (gated, dense, on other
latents than those watched, on the residual itself), all but ``places`` have its delta's L2 norm on every token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.protocol import AlongRows, LatentEdit, ResidualEdit, RowEdit, State
from sae_forge.rng import generator
from sae_forge.sae.slices import Slice

DirectionKind = Literal["isotropic", "latents", "direction", "places"]
MOVES_ON = 0.25
"""Chance that a delta under ``places`` leaves at the next real token; at 1 in 4 it waits four tokens on average."""


@dataclass(frozen=True)
class RandomDirections:
    """Do what ``edit`` does, with something random in the place of its directions, or of its tokens.

    Under ``isotropic`` and ``latents`` the delta of a token is ``sum of c_j r_j``, where ``c_j`` is how far ``edit``
    moves along the row of latent j and ``r_j`` is drawn once from ``seed``, scaled to the norm of the real delta. An
    edit that knows no rows has one ``r``, and ``c`` is its norm.
    """

    edit: LatentEdit | RowEdit | ResidualEdit
    seed: int
    kind: DirectionKind = "isotropic"
    """``isotropic``: directions uniform on the sphere, as long as the rows. ``latents``: decoder rows of other
    latents, none of them twice. ``direction``: a single direction, uniform on the sphere, for all deltas.
    ``places``: the real deltas, on other tokens; see :class:`RandomPlaces` for what holds."""
    alive: tuple[int, ...] | None = None
    """Latents that ``latents`` may draw from; None: all of the SAE's."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(DirectionKind):
            raise ConfigError(f"kind={self.kind!r} is unknown; choose one of {', '.join(get_args(DirectionKind))}")

    def bound(self, real: ResidualEdit, source: Slice, latents: Sequence[int]) -> "Control":
        """The control for this SAE, its directions drawn.

        Args:
            real: ``edit``, told of the SAE's rows.
            latents: All that are watched or written, none of which may stand in for another.

        Raises:
            ConfigError: too few other latents to draw from.
        """
        if self.kind == "places":
            return RandomPlaces(self.seed)
        W_dec = source.part.W_dec.detach()
        edit = real if isinstance(real, AlongRows) and self.kind != "direction" else None
        lengths = W_dec.new_ones(1) if edit is None else edit.rows.norm(dim=-1)
        if self.kind == "latents":
            others = self.stand_ins(len(lengths), source.d_sae, latents)
            return MatchedDirections(edit, W_dec[source.places(others)])
        return MatchedDirections(edit, self._isotropic(lengths, W_dec))

    def stand_ins(self, count: int, d_sae: int, latents: Sequence[int]) -> tuple[int, ...]:
        """The latents whose rows take the place of the real ones; none unless ``kind`` is ``latents``.

        Raises:
            ConfigError: too few other latents to draw from.
        """
        if self.kind != "latents":
            return ()
        taken = set(latents)
        pool = [other for other in (range(d_sae) if self.alive is None else self.alive) if other not in taken]
        if len(pool) < count:
            raise ConfigError(f"the control needs {count} other latents and has {len(pool)} to draw from; target fewer")
        return tuple(generator(self.seed, f"{self.kind} control directions").permutation(pool)[:count].tolist())

    def _isotropic(self, lengths: Tensor, W_dec: Tensor) -> Float[Tensor, "n d_in"]:
        random = generator(self.seed, f"{self.kind} control directions")
        drawn = torch.from_numpy(random.standard_normal((len(lengths), W_dec.shape[1]))).to(W_dec)
        return drawn / drawn.norm(dim=-1, keepdim=True) * lengths[:, None]


@runtime_checkable
class Control(Protocol):
    """Turns the real delta of a call into the control's."""

    def moved(
        self,
        real_delta: Float[Tensor, "batch seq d_in"],
        x: Float[Tensor, "batch seq d_in"],
        acts: Float[Tensor, "batch seq n"],
        editable: Bool[Tensor, "batch seq"],
        state: State | None,
    ) -> tuple[Float[Tensor, "batch seq d_in"], State]:
        """What is added instead, and what to remember for the next call of the same texts.

        Args:
            real_delta: What the edit would add where its gate is open; zero elsewhere.
            acts: As the edit is given them.
            editable: Tokens that may be edited at all, whether or not the gate is open.
        """
        ...


@dataclass(frozen=True, eq=False)
class MatchedDirections:
    """The real edit's coefficients on other directions, at the real delta's norm."""

    edit: AlongRows | None
    """Where the coefficients come from; None: the norm is the only one."""
    directions: Float[Tensor, "n d_in"]

    def moved(
        self,
        real_delta: Float[Tensor, "batch seq d_in"],
        x: Float[Tensor, "batch seq d_in"],
        acts: Float[Tensor, "batch seq n"],
        editable: Bool[Tensor, "batch seq"],
        state: State | None,
    ) -> tuple[Float[Tensor, "batch seq d_in"], State]:
        del editable, state  # the real delta is where it may be, and nothing is remembered
        # token by token as long as the real delta, so that what differs from the edit is direction alone
        norm = real_delta.norm(dim=-1, keepdim=True)
        drawn = (norm if self.edit is None else self.edit.coefficients(x, acts)) @ self.directions
        drawn_norm = drawn.norm(dim=-1, keepdim=True)
        return torch.where((drawn_norm > 0) & (norm > 0), drawn * (norm / drawn_norm), 0.0), ()


@dataclass(frozen=True, eq=False)
class RandomPlaces:
    """The real deltas on random later tokens of the same text.

    Every delta leaves the token that caused it and comes back whole on a later real token, drawn from ``seed``, at
    the latest when the next delta needs its place. So each token has one delta at most, deltas keep their order, and
    over a text there are as many as there would have been, of the same norms, but for one that may still be
    waiting when the text ends. No token is moved by what comes after it, which shuffling a row would not give: the
    answer could be read off the question's own edits. That also makes cached calls and a single pass agree.
    """

    seed: int

    def moved(
        self,
        real_delta: Float[Tensor, "batch seq d_in"],
        x: Float[Tensor, "batch seq d_in"],
        acts: Float[Tensor, "batch seq n"],
        editable: Bool[Tensor, "batch seq"],
        state: State | None,
    ) -> tuple[Float[Tensor, "batch seq d_in"], State]:
        del x, acts  # the real delta says all
        batch, _, d_in = real_delta.shape
        if state is None:
            state = (
                torch.zeros(batch, dtype=torch.long),
                torch.zeros(batch, dtype=torch.bool),
                real_delta.new_zeros(batch, d_in),
            )
        position, waits, waiting = state
        sources, position, left = self._sources(
            (real_delta != 0).any(dim=-1).tolist(), editable.tolist(), position.tolist(), waits.tolist()
        )
        nothing = real_delta.new_zeros(batch, 1, d_in)
        brought = rearrange(waiting.to(real_delta), "batch d_in -> batch 1 d_in")
        deltas = torch.cat([nothing, brought, real_delta.detach()], dim=1)
        chosen = torch.tensor([[*row, last] for row, last in zip(sources, left, strict=True)], device=deltas.device)
        moved = deltas.gather(1, repeat(chosen, "batch places -> batch places d_in", d_in=d_in))
        return moved[:, :-1], (torch.tensor(position), torch.tensor(left) > 0, moved[:, -1])

    def _sources(
        self, arrives: list[list[bool]], editable: list[list[bool]], position: list[int], waits: list[bool]
    ) -> tuple[list[list[int]], list[int], list[int]]:
        """Which delta each token takes (0: none, 1: the one brought along, 2 + t: token t's), and what is left."""
        coins = generator(self.seed, "control places").random(max(position) + len(arrives[0])) < MOVES_ON
        sources, positions, left = [], [], []
        for row, held in enumerate(waits):
            pending, place, taken = int(held), position[row], []
            for token, may_edit in enumerate(editable[row]):
                leaves = may_edit and (arrives[row][token] or bool(coins[place]))
                taken.append(pending if leaves else 0)
                pending = 0 if leaves else pending
                if may_edit and arrives[row][token]:
                    pending = token + 2
                place += may_edit
            sources.append(taken)
            positions.append(place)
            left.append(pending)
        return sources, positions, left
