"""Where an edit meets a live model: latents are read, changed, and written back as a difference.

``x + (edit(z) - z)[S] @ W_dec[S]`` equals decoding the edited latents and adding the SAE's error back, with one
virtue more: a token on which nothing changes stays identical to the bit, which two decodes in float32 do not give.
What gates and controls remember of a text travels on the cache of its calls. Nothing here outlives its ``with``
block, and nothing is global.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.errors import CheckpointError, ConfigError
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.controls import Control, RandomDirections
from sae_forge.interventions.edit import Edit, needed
from sae_forge.interventions.intervention import Intervention, chosen_tokens
from sae_forge.interventions.protocol import LatentEdit, ResidualEdit, RowEdit
from sae_forge.models.caches import Carried
from sae_forge.models.from_transformers import AnyModel, language_model
from sae_forge.models.hooks import Call, CarryingRewrite, Shared, splice_carrying
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import memory_of
from sae_forge.sae.dictionary import Dictionary
from sae_forge.sae.filed import FiledSAE
from sae_forge.sae.slices import Slice, sliced, whole
from sae_forge.sae.topk import TopKSAE


@dataclass(frozen=True, eq=False)
class Seen:
    """What an edit saw and did in one call, token by token."""

    latents: tuple[int, ...]
    acts: Float[Tensor, "batch seq n"]
    """Of the latents concerned, before the edit; those of padding may be anything."""
    editable: Bool[Tensor, "batch seq"]
    """Tokens that may be edited."""
    edited: Bool[Tensor, "batch seq"]
    """Tokens whose activation was changed."""
    norm: float
    """Summed L2 norm of what was added to them."""
    times: Int[Tensor, " batch"] | None = None
    """How many texts have each row in common, where it may be more than one."""

    def count(self, mask: Tensor) -> int:
        """Tokens of the mask, each as often as it stands in a text."""
        return int(mask.sum() if self.times is None else (mask.sum(dim=-1) * self.times.to(mask.device)).sum())


@dataclass
class EditLog:
    """How much of the text that went through was touched; grows while the edit is in force.

    That of several edits counts a token which any of them may edit, or did, once.
    """

    tokens: int = 0
    """Tokens seen that may be edited: the real ones but sinks, unless the intervention says otherwise. Under cached
    generation each is seen once."""
    edited: int = 0
    """Those of them whose activation was changed."""
    norms: float = 0.0
    """Summed L2 norm of what was added to them."""
    texts: int = 0
    """Texts seen, each counted by its first call."""
    opened: int = 0
    """Texts in which the gate was open on some token that may be edited."""
    latest: Seen | None = field(default=None, repr=False, compare=False)
    """The call before; None for several edits, whose own logs know."""
    _parts: "tuple[EditLog, ...]" = field(default=(), repr=False, compare=False)
    _under_way: dict[int, Seen] = field(default_factory=dict, repr=False, compare=False)
    _opened: set[int] = field(default_factory=set, repr=False, compare=False)

    @property
    def each(self) -> "tuple[EditLog, ...]":
        """The log of each edit, in their order."""
        return self._parts or (self,)

    @property
    def share(self) -> float:
        """Share of the tokens that was edited, in [0, 1]."""
        return self.edited / self.tokens if self.tokens else 0.0

    @property
    def mean_norm(self) -> float:
        """L2 norm of what was added, on average over the edited tokens."""
        return self.norms / self.edited if self.edited else 0.0

    @property
    def opened_share(self) -> float:
        """Share of the texts in which the gate opened, in [0, 1]."""
        return self.opened / self.texts if self.texts else 0.0

    def begin(self, batch: int, shared: Shared | None = None) -> Tensor:
        """Numbers for texts that begin; where rows have texts in common, what is added to the number of each text."""
        first = self.texts
        self.texts += batch if shared is None else sum(map(len, shared))
        return torch.arange(first, self.texts) if shared is None else torch.full((batch,), first)

    def add(self, opened: Iterable[int], seen: Seen) -> None:
        """Count a call, in which the gate was open in these texts."""
        self.latest = seen
        self.tokens += seen.count(seen.editable)
        self.edited += seen.count(seen.edited)
        self.norms += seen.norm
        self._opened.update(opened)
        self.opened = len(self._opened)

    def join(self, number: int) -> None:
        """Count the latest call of one of several edits; all see the same calls, though not all at the same layer."""
        part = self._parts[number]
        assert part.latest is not None
        if number in self._under_way:  # it was called again, so another pass has begun
            self._under_way.clear()
        earlier, now = self._under_way.values(), part.latest
        self.tokens += now.count(_beyond(now.editable, [seen.editable for seen in earlier]))
        self.edited += now.count(_beyond(now.edited, [seen.edited for seen in earlier]))
        self._under_way[number] = part.latest
        self.norms += part.latest.norm
        self.texts = max(self.texts, part.texts)
        self._opened |= part._opened
        self.opened = len(self._opened)


def _beyond(mask: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """Tokens of the mask that are in none of the earlier ones."""
    for other in earlier:
        mask = mask & ~other.to(mask.device)
    return mask


def _numbers(texts: Tensor, opened: Tensor, shared: Shared | None) -> list[int]:
    """The texts with an open token, by number."""
    rows = opened.any(dim=-1).nonzero()[:, 0].tolist()
    if shared is None:
        return texts[rows].tolist()
    return [int(texts[row]) + number for row in rows for number in shared[row]]


@contextmanager
def attached(lm: AnyModel, edits: Sequence[Edit]) -> Iterator[EditLog]:
    """Inside the block, ``lm`` computes with every edit in force; after it, as before.

    Edits at different places each read what those below them wrote. Of several at one place the first in the list
    comes first, and the next reads what it wrote.

    Raises:
        CheckpointError: a dictionary is of another width than the model.
        ConfigError: a point lies beyond the model, a latent beyond the dictionary, or, from a call inside, a gate or
            control that remembers is shown the continuation of a text whose beginning it has not seen.
    """
    lm = language_model(lm)
    parts = tuple(EditLog() for _ in edits)
    log = parts[0] if len(parts) == 1 else EditLog(_parts=parts)
    with ExitStack() as in_force:
        for number, (edit, part) in enumerate(zip(edits, parts, strict=True)):
            joined = partial(log.join, number) if len(parts) > 1 else None
            whole = getattr(edit.intervention.gate, "whole", True)
            rewriting = _rewriting(lm, edit, part, joined)
            in_force.enter_context(splice_carrying(lm, edit.point, rewriting, whole=whole))
        yield log


def applied(
    lm: AnyModel, sae: Dictionary, point: HookPoint, intervention: Intervention, sink_norm: float | None = None
) -> AbstractContextManager[EditLog]:
    """``attached`` for one edit, by its parts."""
    return attached(lm, (Edit(point, sae, intervention, sink_norm),))


def _rewriting(lm: LanguageModel, edit: Edit, log: EditLog, joined: Callable[[], None] | None) -> CarryingRewrite:
    """What stands in the place of an activation, call by call."""
    if edit.dictionary.d_in != (width := lm.width(edit.point)):
        raise CheckpointError(
            f"the SAE reads activations {edit.dictionary.d_in} wide, but {lm.name} is {width} wide at {edit.point}; "
            "use one trained on it"
        )
    bound = _bind(edit.dictionary, edit.intervention)

    def rewrite(x: Tensor, call: Call) -> tuple[Tensor, Carried]:
        texts, *before = call.carried or (log.begin(len(x), call.texts), None, None)
        counted, editable = bound.meant(call.real, call.attended, begins=not call.held)
        ordinary = ~are_sinks(x, edit.sink_norm).to(editable.device)
        counted, editable = counted & ordinary, editable & ordinary
        moved = bound.moved(x, counted, editable, (before[0], before[1]))
        if call.held and call.carried is None and any(moved.after):
            raise ConfigError(
                f"{edit.intervention.name} remembers what it has seen of a text, and the cache holds {call.held} "
                "tokens it has not; run each text from its beginning inside the block, without shortening its cache"
            )
        changed = (moved.difference != 0).any(dim=-1)
        times = None if call.texts is None else torch.tensor([len(row) for row in call.texts], device=x.device)
        norms = moved.difference.detach().norm(dim=-1).double()
        norm = float((norms if times is None else norms * times[:, None]).sum())
        seen = Seen(edit.latents, moved.acts.detach(), editable, changed, norm, times)
        log.add(_numbers(texts, moved.opened, call.texts), seen)
        if joined is not None:
            joined()
        return _add(x, moved.difference), (texts, *moved.after)

    return rewrite


def edited(
    sae: Dictionary | Slice,
    intervention: Intervention,
    x: Float[Tensor, "batch seq d_in"],
    real: Bool[Tensor, "batch seq"],
    attended: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq d_in"]:
    """``x`` under the intervention; tokens it may not edit or does not change are identical to the bit."""
    return _add(x, delta(sae, intervention, x, real, attended))


def delta(
    sae: Dictionary | Slice,
    intervention: Intervention,
    x: Float[Tensor, "batch seq d_in"],
    real: Bool[Tensor, "batch seq"],
    attended: Bool[Tensor, "batch seq"] | None = None,
) -> Float[Tensor, "batch seq d_in"]:
    """The difference the intervention makes to whole texts, in fp32 or better; exactly zero where it makes none.

    Args:
        attended: Tokens that are no padding, for an intervention that edits or counts more than text; None: the real
            ones.

    Raises:
        ConfigError: a latent lies beyond the SAE.
    """
    bound = _bind(sae, intervention)
    counted, editable = bound.meant(real, real if attended is None else attended)
    return bound.moved(x, counted, editable, (None, None)).difference


def _add(x: Tensor, difference: Tensor) -> Tensor:
    """Add where something changes; elsewhere even adding 0.0 would turn -0.0 into 0.0."""
    moved = (x.to(difference.dtype) + difference).to(x.dtype)
    return torch.where((difference != 0).any(dim=-1, keepdim=True), moved, x)


class _Moved(NamedTuple):
    """What an intervention makes of a call."""

    difference: Float[Tensor, "batch seq d_in"]
    opened: Bool[Tensor, "batch seq"]
    """Tokens that may be edited, where the gate is open."""
    acts: Float[Tensor, "batch seq n"]
    after: Carried
    """What gate and control remember."""


@dataclass(frozen=True, eq=False)
class _Bound:
    """An intervention tied to an SAE: what depends on neither text nor call is gathered once."""

    sae: Dictionary
    intervention: Intervention
    latents: Tensor
    """Watched or written, each once, as ``sae`` numbers them."""
    watched: Tensor
    """Columns of ``latents``."""
    given: Tensor
    """Columns whose acts the edit is given."""
    edit: ResidualEdit
    control: Control | None

    def meant(self, real: Tensor, attended: Tensor, *, begins: bool = True) -> tuple[Tensor, Tensor]:
        """The tokens that the gate counts, and those that may be edited."""
        what = self.intervention
        return (
            chosen_tokens(what.counted, real, attended, begins=begins),
            chosen_tokens(what.tokens, real, attended, begins=begins),
        )

    def moved(self, x: Tensor, counted: Tensor, editable: Tensor, before: Carried) -> _Moved:
        weights = self.sae.W_dec
        inside = x.to(weights.device, torch.promote_types(x.dtype, weights.dtype))
        counted, editable = counted.to(weights.device), editable.to(weights.device)
        acts = self.acts(x, inside) if len(self.latents) else inside[..., :0]
        seen = acts[..., self.watched]
        if self.intervention.counted != "real":  # a token that is spared counts, but not as a hit
            seen = torch.where(editable[..., None], seen, 0.0)
        opened, gate_after = self.intervention.gate.decide(seen, counted, before[0])
        opened = opened & editable
        given = acts[..., self.given]
        difference = torch.where(opened[..., None], self.edit.delta(inside, given), 0.0)
        control_after = ()
        if self.control is not None:
            difference, control_after = self.control.moved(difference, inside, given, editable, before[1])
        if not self.intervention.keep_error:
            rebuilt = self.sae.decode(self.sae.encode(inside))
            difference = difference + torch.where(editable[..., None], rebuilt - inside, 0.0)
        return _Moved(difference.to(x.device), opened, acts, (gate_after, control_after))

    def acts(self, x: Tensor, inside: Tensor) -> Tensor:
        """Of all latents concerned; where a tape plays ``x``, its top k are found once for all edits."""
        sae, memory = self.sae, memory_of(x)
        if memory is None or torch.is_grad_enabled() or not isinstance(sae, TopKSAE):
            return sae.latent_acts(inside, self.latents)
        if sae not in memory:
            memory[sae] = sae.encode(inside)
        return sae.chosen(memory[sae], self.latents)


@dataclass(frozen=True, eq=False)
class _Written:
    """An ``AlongRows``: a change of acts, carried along the latents' own decoder rows."""

    edit: LatentEdit
    rows: Float[Tensor, "n d_in"]

    def delta(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq d_in"]:
        return self.coefficients(x, acts) @ self.rows

    def coefficients(
        self, x: Float[Tensor, "batch seq d_in"], acts: Float[Tensor, "batch seq n"]
    ) -> Float[Tensor, "batch seq n"]:
        del x  # a latent edit depends on the acts alone
        return self.edit.edit(acts) - acts


def _bind(sae: Dictionary | Slice, intervention: Intervention) -> _Bound:
    source, latents = whole(sae), intervention.latents
    if isinstance(sae, FiledSAE) and intervention.keep_error:  # else every token is rebuilt from all latents
        source = sliced(sae, needed(intervention, sae.d_sae))
    watched, written = intervention.targets, intervention.written
    places = source.places(latents)
    rows, b_dec = source.part.W_dec.detach()[source.places(written)], source.part.b_dec.detach()
    wanted = intervention.edit
    match wanted.edit if isinstance(wanted, RandomDirections) else wanted:
        case LatentEdit() as edit:
            real, given = _Written(edit, rows), written
        case RowEdit() as edit:
            real, given = edit.bind(rows, b_dec), watched
        case edit:
            real, given = edit, watched
    control = wanted.bound(real, source, latents) if isinstance(wanted, RandomDirections) else None
    watched_columns, given_columns = (
        torch.tensor([latents.index(latent) for latent in some], dtype=torch.long, device=places.device)
        for some in (watched, given)
    )
    return _Bound(source.part, intervention, places, watched_columns, given_columns, real, control)
