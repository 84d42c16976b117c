"""The lower layers of a model, computed once for a run of forward passes and played back in every later run.

An edit after layer l changes nothing below it, so a sweep that asks many edits the same questions can skip layers
0 to l for all but the first: with L layers each later run costs about (L - l - 1) / L of a full one. A row in which an
edit changes no token has the answer of the model as it is, so the layers above run on the other rows alone. The tape
knows the passes by their order, and refuses a run that asks anything else than the one it was recorded from.
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin

from sae_forge.hookpoint import HookPoint
from sae_forge.models.by_row import ROWS, of_rows, separable
from sae_forge.models.diverting import Forward, diverted, given_to
from sae_forge.models.hooks import check_points, paused, wants_whole
from sae_forge.models.last_layer import cuttable
from sae_forge.models.loading import LanguageModel

LIMIT_BYTES = 8 * 2**30
"""Activations a tape keeps at most; passes beyond it run in full every time. What is remembered of them is on top."""

_MEMORY = "sae_forge_memory"
_SHARED = "shared_kv_states"
"""What transformers calls the keys and values that layers leave for those above them."""


def memory_of(x: Float[Tensor, "batch seq d_in"]) -> MutableMapping[Any, Any] | None:
    """What has been worked out from an activation that a tape plays; None for one that will not come back.

    Every run is given the very same tensor, so what depends on it and on the key alone need be computed once. The
    key must not change meanwhile; an entry goes when its key or the tape does.
    """
    return getattr(x, _MEMORY, None)


@dataclass(frozen=True)
class _Pass:
    """One forward pass: what was asked, and what the last skipped layer gave."""

    token_ids: Int[Tensor, "batch seq"]
    attention_mask: Tensor | None
    output: Tensor | tuple[Any, ...] | None
    """None where the tape was full."""
    shared: Mapping[str, tuple[Tensor, ...]]
    """Keys and values that skipped layers left for layers above them, in families that share them."""
    top: Tensor | None = None
    """What all layers give without an edit; None where nobody has asked yet, or for want of room."""

    @property
    def hidden(self) -> Tensor | None:
        """What the last skipped layer gave to the next."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    def asks(self, token_ids: Tensor, attention_mask: Tensor | None) -> bool:
        if not torch.equal(self.token_ids, token_ids):
            return False
        if self.attention_mask is None or attention_mask is None:
            return self.attention_mask is attention_mask
        return torch.equal(self.attention_mask, attention_mask)


@dataclass(eq=False)
class _Recording:
    """The passes of a run."""

    passes: list[_Pass] = field(default_factory=list)
    text: int = 0
    """The pass with which the text under way began: one without earlier tokens in its cache."""
    size: int = 0
    full: bool = False
    whole: bool = False
    """Whether the run has come to its end."""
    topped: int | None = 0
    """Bytes of ``size`` that are of what all layers give; None once there was no room for it."""

    def keep(self, passed: _Pass, continues: bool, limit: int) -> None:
        """Add a pass of the run under way, without its activations where there is no room for them.

        A text is kept whole or not at all, because the caches of skipped layers hold nothing.

        Args:
            continues: The pass stands on the caches of one before it.
        """
        if not continues:
            self.text = len(self.passes)
        self.size += _size(passed.output) + sum(map(_size, passed.shared.values()))
        self.passes.append(passed)
        setattr(passed.hidden, _MEMORY, WeakKeyDictionary())
        if self.size > limit:
            self.let_go()
        if self.full or self.size > limit:
            self.full = True
            self.passes[self.text :] = [replace(one, output=None, shared={}) for one in self.passes[self.text :]]

    def keep_top(self, number: int, top: Tensor, limit: int) -> None:
        """Add what all layers give without an edit to a pass, if there is room."""
        size = _size(top)
        if self.topped is None or self.size + size > limit:
            self.let_go()
            return
        self.passes[number] = replace(self.passes[number], top=top)
        self.size, self.topped = self.size + size, self.topped + size

    def let_go(self) -> None:
        """Keep no more of what all layers give: to skip the layers below spares every row, and this only some."""
        self.size -= self.topped or 0
        self.topped = None
        self.passes = [replace(one, top=None) for one in self.passes]

    def require(self, number: int, token_ids: Tensor, attention_mask: Tensor | None) -> None:
        """The pass that a later run has come to asks for what it asked for here."""
        if number >= len(self.passes) or not self.passes[number].asks(token_ids, attention_mask):
            raise RuntimeError(f"pass {number} of a played run asks for other tokens than the recorded run did")


@dataclass(eq=False)
class Tape:
    """What the layers below ``point`` gave in one run of forward passes.

    A run in which prompts must be shown whole asks for other passes than one that may run once what prompts have in
    common, so each of the two is recorded by itself.
    """

    lm: LanguageModel
    point: HookPoint
    limit_bytes: int = LIMIT_BYTES
    _recordings: dict[bool, _Recording] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """How many layers a played run skips."""
        return self.point.layer + (self.point.site == "resid_post")

    @contextmanager
    def running(self) -> Iterator[None]:
        """A run: the first one that ends without an error is recorded, every later one is played.

        A run computes the same numbers recorded or played. Edits at ``point`` or above may be in force in either.

        Raises:
            ConfigError: the point lies beyond the model.
            RuntimeError: a played run asks for another pass than the recorded one did.
        """
        check_points(self.lm, [self.point])
        if self.depth == 0:
            yield
            return
        kind = wants_whole(self.lm)
        known = self._recordings.get(kind)
        if known is None or not known.whole:
            known = self._recordings[kind] = _Recording()
        with ExitStack() as restored:
            self._divert(restored, _Place(self, known, known.whole))
            yield
        known.whole = True

    def _divert(self, restored: ExitStack, place: "_Place") -> None:
        base = self.lm.model.base_model
        layers = [self.lm.layer(number) for number in range(self.depth)]
        # first, so that the last layer is asked for rows before tokens; all tokens of a layer that is played are edited
        restored.enter_context(cuttable(self.lm, whole=self.depth == self.lm.n_layers))
        restored.enter_context(diverted(base, partial(_noting, place)))
        for number, layer in enumerate(layers):
            restored.enter_context(diverted(layer, partial(_playing, place, number, number == self.depth - 1)))
        if self.point.site in ("resid_pre", "resid_post"):  # elsewhere what is edited lies within the next layer
            above = [self.lm.layer(number) for number in range(self.depth, self.lm.n_layers)]
            for layer in above:
                restored.enter_context(diverted(layer, partial(_above, place, above if layer is above[0] else ())))

    @property
    def room(self) -> int:
        """Bytes that a recording under way may take, the other one's left out."""
        return self.limit_bytes - sum(one.size for one in self._recordings.values() if one.whole)


@dataclass(eq=False)
class Tapes:
    """Tapes of several runs, by number, that keep no more together than one may."""

    lm: LanguageModel
    point: HookPoint
    _by_number: dict[int, Tape] = field(default_factory=dict)

    def of(self, number: int) -> Tape:
        """The tape of this run, empty at first."""
        if number not in self._by_number:
            recordings = [one for tape in self._by_number.values() for one in tape._recordings.values()]
            if sum(one.size for one in recordings) > LIMIT_BYTES // 2:
                for one in recordings:
                    one.let_go()
            left = 0 if any(one.full for one in recordings) else LIMIT_BYTES - sum(one.size for one in recordings)
            self._by_number[number] = Tape(self.lm, self.point, left)
        return self._by_number[number]


@dataclass(eq=False)
class _Place:
    """How far a run has come, and what its pass under way asks for."""

    tape: Tape
    recording: _Recording
    played: bool
    number: int = -1
    asked: tuple[Tensor, Tensor | None] | None = None
    continues: bool = False
    rows: Tensor | None = None
    """Those that an edit changed, where not all are: they alone need run through the layers above."""
    edited: Tensor | None = None
    """What these rows go on with, where the layers above run on all rows first, as if there were no edit."""
    again: bool = False
    """Whether these rows run by themselves after that."""

    @property
    def under_way(self) -> _Pass:
        """The one under way."""
        return self.recording.passes[self.number]


def _noting(place: _Place, base: nn.Module, own: Forward) -> Forward:
    """Note what each pass asks for, and which pass of a played run it is."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        arguments = given_to(base, args, kwargs)
        place.number += 1
        place.asked = arguments["input_ids"], arguments.get("attention_mask")
        cache = arguments.get("past_key_values")
        place.continues = cache is not None and cache.get_seq_length() > 0
        if place.played:
            place.recording.require(place.number, *place.asked)
        place.rows, place.edited, place.again = None, None, False
        output = own(*args, **kwargs)
        if (rows := place.rows) is None:
            return output
        top = place.under_way.top
        if place.edited is not None:
            top = output[0]
            place.recording.keep_top(place.number, top, place.tape.room)
            if not len(rows):
                return output
            # Not with what runs first: how rows are put together must not hang on what was asked before
            place.again = True
            with paused():
                output = own(*args, **kwargs)
        assert top is not None
        every = top.index_copy(0, rows.to(top.device), output[0])
        if isinstance(output, tuple):
            return (every, *output[1:])
        output.last_hidden_state = every
        return output

    return forward


def _recording(place: _Place, layer: nn.Module, own: Forward) -> Forward:
    def forward(*args: Any, **kwargs: Any) -> Any:
        output = own(*args, **kwargs)
        assert place.asked is not None
        token_ids, attention_mask = (None if part is None else part.clone() for part in place.asked)
        assert token_ids is not None
        shared = dict(given_to(layer, args, kwargs).get(_SHARED) or {})
        place.recording.keep(_Pass(token_ids, attention_mask, output, shared), place.continues, place.tape.room)
        return output

    return forward


def _playing(place: _Place, number: int, last: bool, layer: nn.Module, own: Forward) -> Forward:
    """Compute nothing but the length that a cache must be believed to have."""
    if last and not place.played:
        own = _recording(place, layer, own)

    def forward(*args: Any, **kwargs: Any) -> Any:
        passed = place.under_way if place.played or place.again else None
        if passed is None or (output := passed.output) is None:
            return own(*args, **kwargs)
        given = given_to(layer, args, kwargs)
        hidden, cache = given["hidden_states"], given.get(place.tape.lm.family.cache_argument)
        if cache is not None and (number >= len(cache.layers) or isinstance(cache.layers[number], CacheLayerMixin)):
            nothing = hidden.new_zeros(len(hidden), 1, hidden.shape[1], 1)
            cache.update(nothing, nothing, number)  # a layer without keys, of a running state or none, has no length
        if last:
            if passed.shared:
                given[_SHARED].update(passed.shared)
            return output
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return forward


def _above(place: _Place, layers: Sequence[nn.Module], layer: nn.Module, own: Forward) -> Forward:
    """Compute the rows that an edit changed, and no other.

    Args:
        layers: All from here up, for the lowest of them, which finds out; none for the others.
    """

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = given_to(layer, args, kwargs)
        if layers and not place.again:
            _look(place, layers, given)
        if (rows := place.rows) is None:
            return own(*args, **kwargs)
        if place.edited is not None and not place.again:
            return own(**({**given, "hidden_states": place.under_way.hidden} if layers else given))
        assert place.asked is not None
        some = of_rows(given, len(place.asked[0]), rows)
        if layers and place.edited is not None:
            some["hidden_states"] = place.edited
        if len(rows):
            before = ROWS.set(rows)
            try:
                return own(**some)
            finally:
                ROWS.reset(before)
        output = place.under_way.output
        return (some["hidden_states"], *output[1:]) if isinstance(output, tuple) else some["hidden_states"]

    return forward


def _look(place: _Place, layers: Sequence[nn.Module], given: Mapping[str, Any]) -> None:
    """Find the rows of the pass under way that must run on, where not all must."""
    assert place.asked is not None
    passed, now = place.under_way, given["hidden_states"]
    if passed.hidden is None or place.recording.topped is None or not separable(layers, given, len(place.asked[0])):
        return
    changed = (now != passed.hidden).flatten(1).any(dim=1)  # true of NaN too
    if changed.all():
        return
    place.rows = changed.nonzero()[:, 0]
    if passed.top is None:
        place.edited = now[place.rows]


def _size(output: Tensor | tuple[Any, ...] | None) -> int:
    parts = output if isinstance(output, tuple) else (output,)
    return sum(part.numel() * part.element_size() for part in parts if isinstance(part, Tensor))
