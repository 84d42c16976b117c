"""A dictionary that stays in its file: an edit of a few latents reads those, and what asks for all of it reads all.

It is for SAEs whose latents fire each by itself. What was read of one is kept in the cache of this machine under the
hash of the weights, so that the same latents are had again for a thousandth of the file.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.errors import CheckpointError, ResourceError
from sae_forge.sae.architectures.table import ARCHITECTURES
from sae_forge.sae.dictionary import LatentActs
from sae_forge.sae.formats import build
from sae_forge.sae.formats.format import Described
from sae_forge.sae.formats.stored import PICKLES, opened, vector
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.store import files
from sae_forge.store.cache import cache_folder
from sae_forge.store.tensors import publish_tensors, read_tensors

FORMAT = 1
"""Goes up when the same latents of the same file would become other tensors."""
_WHAT = "the weights of an SAE"
_MOST = 0.25
"""Share of the latents from which on all of them are read at once."""
_WORTH = 1.2
"""Of the file, what parts may cost before all of it is read: two parts, where each costs half."""


@dataclass(eq=False)
class FiledSAE:
    """A ``Dictionary`` whose weights are read when they are asked for, and no more of them than that takes."""

    is_dictionary: ClassVar[bool] = True

    path: Path
    told: Described
    weights: str
    """sha256 of the file."""
    d_in: int
    d_sae: int
    across: int
    """How many of ``W_enc`` and ``W_dec`` do not lie latent by latent: of these all is read, whatever is wanted."""
    centre: bool = False
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _held: tuple[tuple[int, ...], JumpReLUSAE] | None = field(default=None, repr=False)
    """What was read last: which latents, and their part."""
    _spent: float = field(default=0.0, repr=False)
    """Share of the file that parts have cost."""

    @cached_property
    def whole(self) -> JumpReLUSAE:
        """All of it."""
        self._held = None
        sae = build.read(self.path, self.told, allow_pickle=False, what=_WHAT, centre=self.centre)
        assert isinstance(sae, JumpReLUSAE)
        return sae.to(self.device)

    def hold(self, latents: Sequence[int]) -> None:
        """Read these latents in one go; parts of them cost nothing afterwards.

        Raises:
            CheckpointError: the file is damaged where they lie.
        """
        wanted = tuple(sorted(set(latents)))
        if "whole" in self.__dict__ or (self._held is not None and set(wanted) <= set(self._held[0])):
            return
        cost = self.across / 2 + (1 - self.across / 2) * len(wanted) / self.d_sae
        place = cache_folder() / "saes" / self.weights[:16] / files.digest([FORMAT, *self._facts, wanted])
        if (part := _kept(place, len(wanted), self.d_in)) is None:
            if len(wanted) > _MOST * self.d_sae or self._spent + cost > _WORTH:
                _ = self.whole
                return
            read = build.read_latents(self.path, self.told, wanted, what=_WHAT, centre=self.centre)
            assert isinstance(read, JumpReLUSAE)
            part, self._spent = read, self._spent + cost
            _keep(place, part)
        self._held = wanted, part.to(self.device)

    def part(self, latents: Sequence[int]) -> JumpReLUSAE:
        """The latents alone, in the order given; the same to the bit as cut from the whole."""
        self.hold(latents)
        if self._held is None:
            return self.whole.cut(latents)
        places = {latent: place for place, latent in enumerate(self._held[0])}
        return self._held[1].cut([places[latent] for latent in latents])

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:
        """Of all latents, which are read for it."""
        return self.whole.W_dec

    @property
    def b_dec(self) -> Float[Tensor, " d_in"]:
        """What every reconstruction starts from."""
        if self._held is not None or "whole" in self.__dict__:
            return (self.whole if self._held is None else self._held[1]).b_dec
        with opened(self.path, allow_pickle=False, what=_WHAT) as stored:
            stored_bias = vector(stored, self.told.recipe.names["b_dec"]).double()
        return (stored_bias / self.told.recipe.scale).float().to(self.device)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """The latents that fire on each token; all are read for it."""
        return self.whole.encode(x)

    def pre_acts(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """What every latent answers; all are read for it."""
        return self.whole.pre_acts(x)

    def activated(self, pre_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """The dense acts that pre-acts become."""
        return self.whole.activated(pre_acts)

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The reconstruction these acts stand for."""
        return self.whole.decode(acts)

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents alone, in the order given."""
        return self.part(latents.tolist()).latent_acts(x, torch.arange(len(latents), device=self.device))

    def to(self, device: torch.device | str) -> "FiledSAE":
        """The same, from here on on another device."""
        self.device = torch.device(device)
        if self._held is not None:
            self._held[1].to(self.device)
        if "whole" in self.__dict__:
            self.whole.to(self.device)
        return self

    @property
    def _facts(self) -> list[Any]:
        """All that decides what a latent's tensors are, JSON-ready."""
        recipe = asdict(self.told.recipe).items()
        plain = {name: sorted(value) if isinstance(value, frozenset) else value for name, value in recipe}
        return [self.weights, plain, self.centre]


def filed(path: Path, told: Described, *, weights: str, centre: bool) -> FiledSAE | None:
    """The SAE of a weights file, none of it read but the header.

    None where its latents compete, so that few are not had without all, or the file has to be converted first.

    Raises:
        CheckpointError: missing, of another kind, or not what its settings say.
    """
    if not ARCHITECTURES[told.recipe.architecture].alone or path.suffix in PICKLES:
        return None
    with opened(path, allow_pickle=False, what=_WHAT) as stored:
        recipe = build.sized(stored, told.recipe)
        lies_across = ("W_enc" not in recipe.turned, "W_dec" in recipe.turned)
        across = sum(
            turned != stored.columnwise(recipe.names[name])
            for name, turned in zip(("W_enc", "W_dec"), lies_across, strict=True)
        )
    assert recipe.d_in is not None
    assert recipe.d_sae is not None
    return FiledSAE(path, told, weights, recipe.d_in, recipe.d_sae, across, centre)


# ---- the cache ----------------------------------------------------------------------------------


def _kept(place: Path, n: int, d_in: int) -> JumpReLUSAE | None:
    """A part that was kept; None where there is none, or it is not what was written."""
    path, record = place.with_suffix(".safetensors"), place.with_suffix(".json")
    try:
        told = files.read_json(record, kind=CheckpointError, what="a kept part of an SAE", proven=True)
        if not isinstance(told, dict) or told.get("tensors") != files.file_sha256(path):
            return None
        tensors = read_tensors(path, kind=CheckpointError, what="a kept part of an SAE")
        shapes = {"W_enc": (d_in, n), "b_enc": (n,), "W_dec": (n, d_in), "b_dec": (d_in,), "threshold": (n,)}
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            return None
        return JumpReLUSAE(*(tensors[name] for name in ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")))
    except (CheckpointError, OSError):
        return None


def _keep(place: Path, part: JumpReLUSAE) -> None:
    """Write a part, its record last; where the cache cannot be written, there is none."""
    path = place.with_suffix(".safetensors")
    try:
        with files.locked(place.parent, wait=True):  # ranks and jobs of one machine want the same
            publish_tensors(path, {name: weights.detach() for name, weights in part.named_parameters()})
            files.publish_json(place.with_suffix(".json"), {"tensors": files.file_sha256(path)})
    except ResourceError:
        return
