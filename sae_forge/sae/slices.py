"""A few latents of a dictionary, with all that reading and writing them takes and nothing else.

What that is depends on the activation function. A JumpReLU latent, or a projection, stands alone: its column of the
encoder and its row of the decoder suffice. Whether a TopK latent fires depends on every other one, so the encoder is
kept whole and only the decoder rows are chosen.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.config.train import Backend
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.kernels.dispatch import topk_encode
from sae_forge.sae.dictionary import Dictionary, LatentActs, acts_of
from sae_forge.sae.direction import Direction
from sae_forge.sae.filed import FiledSAE
from sae_forge.sae.groupmax import GroupMaxSAE
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE


@dataclass(frozen=True, eq=False)
class TopKRows:
    """A ``Dictionary`` of some latents of a TopK SAE, which compete with all the others; only their rows are here."""

    W_enc: Float[Tensor, "d_in all"]
    """Of every latent, held latent by latent in memory as ``TopKSAE`` holds it, so that products are the same."""
    b_enc: Float[Tensor, " all"]
    W_dec: Float[Tensor, "n d_in"]
    b_dec: Float[Tensor, " d_in"]
    latents: Int[Tensor, " n"]
    """Where among all of them the ones with a row stand."""
    k: int
    backend: Backend = "auto"

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents that have a row."""
        return len(self.W_dec)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> LatentActs:
        """Acts of all latents that have a row, zero where one is not among the token's top k."""
        whole = topk_encode(x, self.W_enc, self.b_enc, self.b_dec, self.k, backend=self.backend)
        acts = acts_of(LatentActs(*whole), self.latents, len(self.b_enc))
        return LatentActs(acts, torch.arange(self.d_sae, device=acts.device).expand(acts.shape))

    def decode(self, acts: LatentActs) -> Float[Tensor, "*batch d_in"]:
        """The part of the reconstruction that these latents are."""
        dense = acts.values.new_zeros(*acts.values.shape[:-1], self.d_sae)
        return dense.scatter_add(-1, acts.indices, acts.values) @ self.W_dec + self.b_dec

    def latent_acts(self, x: Float[Tensor, "*batch d_in"], latents: Int[Tensor, "n"]) -> Float[Tensor, "*batch n"]:
        """Acts of the chosen latents, in the order given."""
        return self.encode(x).values[..., latents]

    def to(self, device: torch.device | str) -> "TopKRows":
        """The same on another device."""
        names = ("W_enc", "b_enc", "W_dec", "b_dec", "latents")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


@dataclass(frozen=True, eq=False)
class Slice:
    """Some latents of a dictionary, under the numbers they have in the whole one."""

    latents: Sequence[int]
    """The latents that ``part`` has, in its order."""
    d_sae: int
    """Number of latents of the whole dictionary."""
    part: Dictionary

    @property
    def d_in(self) -> int:
        """Width of the activations it reads and writes."""
        return self.part.d_in

    def places(self, latents: Sequence[int]) -> Int[Tensor, " n"]:
        """Where in ``part`` the latents stand.

        Raises:
            ConfigError: one lies beyond the whole dictionary, or was not kept.
        """
        if latents and max(latents) >= self.d_sae:
            raise ConfigError(f"latent {max(latents)} is beyond the SAE, whose latents are 0..{self.d_sae - 1}")
        if missing := [latent for latent in latents if latent not in self.latents]:
            raise ConfigError(
                f"latent {missing[0]} is not among the {len(self.latents)} that were kept; use the whole SAE"
            )
        numbers = [self.latents.index(latent) for latent in latents]
        return torch.tensor(numbers, dtype=torch.long, device=self.part.b_dec.device)

    def to(self, device: torch.device | str) -> "Slice":
        """The same on another device."""
        return replace(self, part=self.part.to(device))  # pyright: ignore[reportAttributeAccessIssue]


def whole(dictionary: Dictionary | Slice) -> Slice:
    """The dictionary as a slice that has all its latents; a slice as it is."""
    if isinstance(dictionary, Slice):
        return dictionary
    return Slice(range(dictionary.d_sae), dictionary.d_sae, dictionary)


def rows_of(dictionary: Dictionary | Slice, latents: Sequence[int]) -> Float[Tensor, "n d_in"]:
    """The decoder rows of some latents; of one that stays in its file no others are read."""
    part = sliced(dictionary, latents)
    return part.part.W_dec.detach()[part.places(latents)]


def hold(dictionary: Dictionary | Slice, latents: Iterable[int]) -> None:
    """Have latents read at once that will be asked for one after the other, of a dictionary that stays in its file.

    Raises:
        ConfigError: one lies beyond it.
    """
    if isinstance(dictionary, FiledSAE):
        whole(dictionary).places(wanted := tuple(dict.fromkeys(latents)))
        dictionary.hold(wanted)


def sliced(dictionary: Dictionary | Slice, latents: Sequence[int]) -> Slice:
    """What reading and writing ``latents`` takes of the dictionary; acts and rows are the same to the bit.

    Raises:
        ConfigError: a latent lies beyond the dictionary.
        CheckpointError: nobody knows what a dictionary of this type needs to be read.
    """
    source = whole(dictionary)
    places = source.places(latents)
    match source.part:
        case TopKSAE() as sae:
            if sae.product_dtype is not None:
                raise CheckpointError(
                    f"an SAE whose products are in {sae.product_dtype} is one in training; save it first"
                )
            W_enc, b_enc, W_dec, b_dec = (weights.detach() for weights in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
            part = TopKRows(W_enc, b_enc, W_dec[places], b_dec, places, sae.k, sae.backend)
        case TopKRows() as rows:
            part = replace(rows, W_dec=rows.W_dec[places], latents=rows.latents[places])
        case FiledSAE() as sae:
            part = sae.part(latents)
        case JumpReLUSAE() as sae:
            part = sae.cut(places.tolist())
        case GroupMaxSAE() | Direction():  # a run's latents compete, so all of them are kept, in their own order
            return source
        case other:
            raise CheckpointError(
                f"what an edit needs of a {type(other).__name__} is not known; known are {', '.join(MADE_OF)}"
            )
    return Slice(tuple(latents), source.d_sae, part)


# ---- as tensors and numbers ---------------------------------------------------------------------

MADE_OF: dict[str, tuple[str, ...]] = {
    "TopKSAE": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "TopKRows": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "JumpReLUSAE": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "GroupMaxSAE": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "Direction": ("W_dec", "threshold"),
}
"""The tensors that each dictionary is made of."""


@dataclass(frozen=True, kw_only=True)
class SliceFacts:
    """What is to be known of a dictionary or a slice of one beside its tensors."""

    kind: str
    d_sae: int
    """Of the whole dictionary."""
    k: int | None = None
    latents: tuple[int, ...] | None = None
    """Those of a slice; None: all."""


def taken_apart(dictionary: Dictionary | Slice) -> tuple[SliceFacts, dict[str, Tensor]]:
    """The facts and the tensors of a dictionary, which together give it back.

    Raises:
        CheckpointError: it is of a type nobody can put together again, or computes in another precision than fp32.
    """
    source = whole(dictionary)
    if isinstance(source.part, FiledSAE):
        source = replace(source, part=source.part.whole)
    kind, latents = type(source.part).__name__, None if isinstance(source.latents, range) else tuple(source.latents)
    if kind not in MADE_OF:
        raise CheckpointError(f"a dictionary of type {kind} cannot be saved; those that can are {', '.join(MADE_OF)}")
    if source.part.b_dec.dtype != torch.float32:
        raise CheckpointError(f"a dictionary in {source.part.b_dec.dtype} cannot be saved; convert it to float32 first")
    facts = SliceFacts(kind=kind, d_sae=source.d_sae, k=getattr(source.part, "k", None), latents=latents)
    return facts, {
        name: torch.as_tensor(getattr(source.part, name), dtype=_dtype(kind, name)) for name in MADE_OF[kind]
    }


def put_together(
    facts: SliceFacts, tensors: Mapping[str, Tensor]
) -> TopKSAE | TopKRows | JumpReLUSAE | GroupMaxSAE | Direction | Slice:
    """The dictionary or slice that was taken apart, on the CPU.

    Raises:
        ValueError: these are not the tensors and facts of one, or a number is not finite.
    """
    kind, given = facts.kind, dict(tensors)
    if set(given) != set(MADE_OF.get(kind, ())) or given["W_dec"].ndim != 2:
        raise ValueError(f"it does not hold a {kind[:40]}, which would be {', '.join(MADE_OF.get(kind, ('nothing',)))}")
    latents = range(facts.d_sae) if facts.latents is None else facts.latents
    rows, d_in = given["W_dec"].shape
    columns = facts.d_sae if kind == "TopKRows" else rows
    if len(set(latents)) != rows or rows != len(latents) or not all(0 <= latent < facts.d_sae for latent in latents):
        raise ValueError(f"its {rows} decoder rows are not those of {len(latents)} latents among {facts.d_sae}")
    has_k = kind not in ("JumpReLUSAE", "Direction")
    if has_k != (facts.k is not None) or (facts.k is not None and not 1 <= facts.k <= columns):
        raise ValueError(f"k={facts.k} does not fit a {kind} of {columns} latents")
    shapes = {"W_enc": (d_in, columns), "W_dec": (rows, d_in), "b_enc": (columns,), "b_dec": (d_in,)}
    shapes["threshold"] = () if kind == "Direction" else (columns,)
    for name, tensor in given.items():
        if tuple(tensor.shape) != shapes[name] or tensor.dtype != _dtype(kind, name):
            raise ValueError(f"its {name} is of {tensor.dtype} and shape {list(tensor.shape)[:4]}")
        if not bool((tensor if tensor.ndim else tensor.nan_to_num(math.nan, 0.0, 0.0)).isfinite().all()):
            raise ValueError(f"its {name} holds numbers that are not finite")
    W_dec, k = given.pop("W_dec"), facts.k or 0
    match kind, given:
        case "TopKSAE", {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec}:
            part = TopKSAE.holding(W_enc.T.contiguous(), b_enc, W_dec, b_dec, k)
        case "TopKRows", {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec}:
            places = torch.tensor(latents, dtype=torch.long)
            part = TopKRows(W_enc.T.contiguous().T, b_enc, W_dec, b_dec, places, k)
        case "GroupMaxSAE", {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec}:
            part = GroupMaxSAE(W_enc.T.contiguous(), b_enc, W_dec, b_dec, k)
        case "JumpReLUSAE", {"W_enc": W_enc, "b_enc": b_enc, "b_dec": b_dec, "threshold": threshold}:
            part = JumpReLUSAE(W_enc, b_enc, W_dec, b_dec, threshold)
        case _:
            part = Direction(W_dec, float(given["threshold"]))
    return part if facts.latents is None else Slice(facts.latents, facts.d_sae, part)


def _dtype(kind: str, name: str) -> torch.dtype:
    """A projection's threshold is one number of Python's; all else is fp32."""
    return torch.float64 if kind == "Direction" and name == "threshold" else torch.float32
