"""Sequence gates: open where a token gate is open *and* a statistic of the text exceeds a threshold.

The statistic counts real tokens only, so neither padding nor batching moves it, and what it needs to remember fits
in its state, so neither does cached generation.

Three policies say what the statistic of a token is:

- ``prompt``: that of all tokens of the text's first call, decided there and held for every later cached call. It is the
  published form, and like it not causal within the prompt. Without a cache every call is a text of its own.
- ``streaming``: the running statistic of the tokens up to this one, those of earlier calls among them. A mean over a
  text's first few tokens is coarse; a window or a sum is not.
- ``per_token``: that of the token alone. A guardrail that divides by the length of each call does this by accident
  once a cache is in use.

A share of a window or a sum that rises and falls survives what a mean over the whole text does not: harmless text put
in front of a forbidden question.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_forge.errors import ConfigError
from sae_forge.interventions.protocol import Gate, State
from sae_forge.interventions.token_gates import ANY_FIRES, TokenGate
from sae_forge.interventions.values import checked

Policy = Literal["prompt", "streaming", "per_token"]


@runtime_checkable
class SequenceGate(Gate, Protocol):
    """A token gate and a statistic of the text that must exceed a threshold."""

    @property
    def inside(self) -> TokenGate: ...
    @property
    def policy(self) -> Policy: ...
    @property
    def limit(self) -> float:
        """The threshold; the gate is shut at exactly this value."""
        ...

    def signal(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq"]:
        """What the statistic is made of, token by token, in float64."""
        ...

    def running(
        self, signal: Float[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Float[Tensor, "batch seq"], State]:
        """The statistic of the tokens up to each one; a token that is not real leaves it as it was."""
        ...

    def alone(self, signal: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
        """The statistic of each token alone."""
        ...

    def overall(self, running: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        """The statistic of a text, from the running one."""
        ...


@dataclass(frozen=True)
class MeanRate:
    """Open in texts that fire often: the share of real tokens on which ``inside`` is open exceeds ``tau`` (DSG)."""

    tau: float
    """In [0, 1]; below 0 the statistic never shuts the gate."""
    inside: TokenGate = ANY_FIRES
    """The token gate that is counted, and that must be open as well."""
    policy: Policy = "prompt"

    def __post_init__(self) -> None:
        _check(self, "tau")

    @property
    def limit(self) -> float:
        return self.tau

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        return _decide(self, acts, real, state)

    def signal(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq"]:
        return _opens(self.inside, acts)

    def running(
        self, signal: Float[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Float[Tensor, "batch seq"], State]:
        hits, tokens = _counts(signal, real, None if state is None else (state[0], state[1]))
        return hits / tokens.clamp(min=1), (hits[:, -1], tokens[:, -1])

    def alone(self, signal: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
        return signal

    def overall(self, running: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        return running[:, -1]


@dataclass(frozen=True)
class WindowRate:
    """Open where firing is dense: of the last ``width`` real tokens a share above ``tau`` opens ``inside``.

    The share is of ``width`` from the first token on, so that one early hit is no rate of 1; of a text it is the
    highest of any window.
    """

    tau: float
    width: int
    """Real tokens; no more than the shortest text that should be able to open the gate."""
    inside: TokenGate = ANY_FIRES
    """The token gate that is counted, and that must be open as well."""
    policy: Policy = "streaming"

    def __post_init__(self) -> None:
        _check(self, "tau")
        if self.width < 1:
            raise ConfigError(f"width={self.width} holds no token; give 1 or more")

    @property
    def limit(self) -> float:
        return self.tau

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        return _decide(self, acts, real, state)

    def signal(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq"]:
        return _opens(self.inside, acts)

    def running(
        self, signal: Float[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Float[Tensor, "batch seq"], State]:
        batch, seq = signal.shape
        recent = signal.new_zeros(batch, self.width) if state is None else state[0]
        seen = real.long().cumsum(dim=-1)
        line = torch.cat([recent, signal.new_zeros(batch, seq + 1)], dim=-1)  # real tokens in a row; last: the others
        line = line.scatter(1, torch.where(real, self.width - 1 + seen, self.width + seq), signal)
        sums = torch.nn.functional.pad(line.cumsum(dim=-1), (1, 0))
        hits = sums.gather(1, self.width + seen) - sums.gather(1, seen)
        latest = seen[:, -1:] + torch.arange(self.width, device=seen.device)
        return hits / self.width, (line.gather(1, latest),)

    def alone(self, signal: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
        return signal

    def overall(self, running: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        return running.amax(dim=-1)


@dataclass(frozen=True)
class Cusum:
    """Open while evidence is high: a sum that hits raise and ``drift`` lowers, never below 0, exceeds ``threshold``.

    ``S = max(0, S + hit - drift)`` over real tokens. Of a text the sum is the highest it reached.
    """

    threshold: float
    """Hits in excess of the drift, in tokens."""
    drift: float
    """Share of tokens that fire in harmless text; what lies above it is evidence."""
    inside: TokenGate = ANY_FIRES
    """The token gate whose openings are the hits, and that must be open as well."""
    policy: Policy = "streaming"

    def __post_init__(self) -> None:
        _check(self, "threshold")
        if not 0 <= self.drift < 1:
            raise ConfigError(f"drift={self.drift} is not in [0, 1); take a rate of harmless text, 0.1 for example")

    @property
    def limit(self) -> float:
        return self.threshold

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        return _decide(self, acts, real, state)

    def signal(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq"]:
        return _opens(self.inside, acts)

    def running(
        self, signal: Float[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Float[Tensor, "batch seq"], State]:
        # From whole counts, the sum is the same to the bit however the text is cut into calls.
        hits, tokens = _counts(signal, real, None if state is None else (state[0], state[1]))
        walk = hits - self.drift * tokens
        lowest = walk.cummin(dim=-1).values.clamp(max=0.0)
        if state is not None:
            lowest = torch.minimum(lowest, state[2][:, None])
        return walk - lowest, (hits[:, -1], tokens[:, -1], lowest[:, -1])

    def alone(self, signal: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
        return (signal - self.drift).clamp(min=0.0)

    def overall(self, running: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        return running.amax(dim=-1)


@dataclass(frozen=True)
class Peak:
    """Open once the topic was unmistakable: the strongest targeted act of the text so far exceeds ``tau``.

    Running, it latches: what was open for one token is open, as far as this statistic goes, for all that follow.
    """

    tau: float
    """An act, in the SAE's units."""
    inside: TokenGate = ANY_FIRES
    """The token gate that must be open as well."""
    policy: Policy = "streaming"

    def __post_init__(self) -> None:
        _check(self, "tau")

    @property
    def limit(self) -> float:
        return self.tau

    def decide(
        self, acts: Float[Tensor, "batch seq n"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Bool[Tensor, "batch seq"], State]:
        return _decide(self, acts, real, state)

    def signal(self, acts: Float[Tensor, "batch seq n"]) -> Float[Tensor, "batch seq"]:
        return acts.detach().double().amax(dim=-1)

    def running(
        self, signal: Float[Tensor, "batch seq"], real: Bool[Tensor, "batch seq"], state: State | None
    ) -> tuple[Float[Tensor, "batch seq"], State]:
        strongest = torch.where(real, signal, 0.0).cummax(dim=-1).values
        if state is not None:
            strongest = torch.maximum(strongest, state[0][:, None])
        return strongest, (strongest[:, -1],)

    def alone(self, signal: Float[Tensor, "batch seq"]) -> Float[Tensor, "batch seq"]:
        return signal

    def overall(self, running: Float[Tensor, "batch seq"]) -> Float[Tensor, " batch"]:
        return running[:, -1]


# ---- what they share ----------------------------------------------------------------------------


def _check(gate: SequenceGate, threshold: str) -> None:
    checked(threshold, gate.limit)
    if gate.policy not in get_args(Policy):
        raise ConfigError(f"policy={gate.policy!r} is unknown; choose one of {', '.join(get_args(Policy))}")


def _decide(gate: SequenceGate, acts: Tensor, real: Tensor, state: State | None) -> tuple[Tensor, State]:
    inside, _ = gate.inside.decide(acts, real, None)
    signal = gate.signal(acts)
    match gate.policy:
        case "per_token":
            return inside & (gate.alone(signal) > gate.limit), ()
        case "streaming":
            statistic, state = gate.running(signal, real, state)
            return inside & (statistic > gate.limit), state
        case "prompt":
            if state is None:
                state = (gate.overall(gate.running(signal, real, None)[0]) > gate.limit,)
            return inside & state[0][:, None], state


def _opens(gate: TokenGate, acts: Tensor) -> Tensor:
    everywhere = torch.ones(acts.shape[:-1], dtype=torch.bool, device=acts.device)
    return gate.decide(acts, everywhere, None)[0].double()


def _counts(signal: Tensor, real: Tensor, before: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Hits and real tokens up to each token, as whole numbers in float64."""
    hits, tokens = torch.where(real, signal, 0.0).cumsum(dim=-1), real.double().cumsum(dim=-1)
    if before is not None:
        hits, tokens = hits + before[0][:, None], tokens + before[1][:, None]
    return hits, tokens
