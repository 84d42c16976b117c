"""What a selection amounts to beyond the counts it was made by: does it tell the corpora apart, token by token?

A second pass, over whole sequences spread evenly through each corpus and about ``SAMPLE_TOKENS`` tokens of it, encodes
the chosen latents alone. Kept are one number a token (the strongest chosen activation) and, for correlations, sums of
products of the ``CORRELATED`` best latents, so memory does not grow with corpora or dictionary.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_forge.data.shards import ShardReader
from sae_forge.features.stats import iter_rows, require_width
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.statistics.ranking import auroc

SAMPLE_TOKENS = 200_000
"""Tokens of a corpus that the second pass looks at, about. The standard error of an AUROC over as many independent
tokens on both sides is below 0.001; tokens of one sequence are not independent, so the real one is larger."""

CORRELATED = 256
"""Latents, best first, whose correlations are taken."""


@dataclass(frozen=True)
class Separation:
    """How well a selection's strongest activation on a token tells forget tokens from retain tokens."""

    tokens: dict[str, int]
    """Tokens looked at: of ``forget``, and of each retain corpus after ``retain ``."""
    auroc: float
    """Chance that it is higher on a forget token than on a retain token, all retain corpora pooled by their sampled
    tokens; a tie, such as silence on both, counts half."""
    auroc_by_corpus: dict[str, float]
    """The same against each retain corpus."""
    mean_correlation: float | None
    """Mean of |Pearson's r| over pairs of chosen latents, on the tokens of all corpora; None without such a pair.
    A latent that never fires there has no correlation and makes no pair."""
    max_correlation: float | None


@dataclass(frozen=True)
class Analysis:
    """A selection beside the corpora and beside what other methods would have taken."""

    separation: Separation
    overlap: dict[str, float]
    """Jaccard overlap with the latents each other method takes from the same counts when asked for as many."""

    def flaw(self) -> str | None:
        """What makes these numbers impossible, if anything does."""
        separation = self.separation
        shares = (separation.auroc, *separation.auroc_by_corpus.values(), *self.overlap.values())
        correlations = (separation.mean_correlation or 0.0, separation.max_correlation or 0.0)
        if any(not 0 <= share <= 1 for share in (*shares, *correlations)):
            return "a number of its analysis is outside [0, 1]"
        return None


def separations(
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    sae: Dictionary,
    selections: Mapping[str, Int[Tensor, "_"]],
    *,
    sample_tokens: int = SAMPLE_TOKENS,
    sink_norm: float | None = None,
    progress: Progress = SILENT,
) -> dict[str, Separation]:
    """The separation of every selection, from one pass over a sample of each corpus."""
    union = torch.cat(list(selections.values())).unique()
    trackers = {name: _Tracker(torch.searchsorted(union, chosen)) for name, chosen in selections.items()}
    readers = {"forget": forget} | {f"retain {name}": reader for name, reader in retain.items()}
    for corpus, reader in readers.items():
        every = max(1, math.ceil(reader.rows / sample_tokens))
        with progress.task(f"analyse {corpus}", math.ceil(reader.rows / every), "tokens") as task:
            for acts, _ in iter_acts(reader, sae, union, every=every, sink_norm=sink_norm):
                for tracker in trackers.values():
                    tracker.add(corpus, acts)
                task.advance(len(acts))
    return {name: tracker.separation() for name, tracker in trackers.items()}


def traces(
    reader: ShardReader,
    sae: Dictionary,
    latents: Int[Tensor, "n"],
    limit: int,
    *,
    sink_norm: float | None = None,
) -> tuple[Float[Tensor, "_ n"], ...]:
    """The activations of ``latents``, in that order, on each of at most ``limit`` sequences spread evenly.

    A sequence holds its real tokens in order: what a gate would have seen of it.
    """
    sequences = int(reader.read_origins(reader.block_count - 1)["seq_ids"][-1]) + 1 if reader.block_count else 0
    every = max(1, math.ceil(sequences / limit))
    parts: dict[int, list[Tensor]] = {}
    for acts, seq_ids in iter_acts(reader, sae, latents, every=every, sink_norm=sink_norm):
        runs, lengths = torch.unique_consecutive(seq_ids, return_counts=True)
        for seq_id, part in zip(runs.tolist(), acts.split(lengths.tolist()), strict=True):
            parts.setdefault(seq_id, []).append(part)
    return tuple(torch.cat(parts[seq_id]) for seq_id in sorted(parts))


def iter_acts(
    reader: ShardReader,
    sae: Dictionary,
    latents: Int[Tensor, "n"],
    *,
    every: int = 1,
    sink_norm: float | None = None,
) -> Iterator[tuple[Float[Tensor, "tokens n"], Int[Tensor, "tokens"]]]:
    """Activations of the chosen latents on every ``every``-th sequence, with the sequence of each token.

    Raises:
        ShardError: the activations are not as wide as the SAE reads.
    """
    require_width(reader, sae, reader.fingerprint.corpus)
    home = sae.b_dec
    chosen = latents.to(home.device)
    for x, seq_ids, _ in iter_rows(reader, every=every, sink_norm=sink_norm):
        with torch.no_grad():
            acts = sae.latent_acts(x.to(home.device, home.dtype), chosen)
        yield acts.float().cpu(), seq_ids


def jaccard(one: Int[Tensor, "_"], other: Int[Tensor, "_"]) -> float:
    """Latents in both over latents in either; 0 where there are none."""
    a, b = set(one.tolist()), set(other.tolist())
    return len(a & b) / len(a | b) if a | b else 0.0


@dataclass
class _Tracker:
    """Running sums of one selection over the sample."""

    columns: Int[Tensor, "n"]
    """Where its latents stand among those that are encoded."""
    strongest: dict[str, list[Tensor]] = field(default_factory=dict)
    count: int = 0
    sums: Tensor = field(init=False)
    products: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n = min(len(self.columns), CORRELATED)
        self.sums = torch.zeros(n, dtype=torch.double)
        self.products = torch.zeros(n, n, dtype=torch.double)

    def add(self, corpus: str, acts: Float[Tensor, "tokens m"]) -> None:
        mine = acts[:, self.columns]
        self.strongest.setdefault(corpus, []).append(mine.amax(1))
        best = mine[:, :CORRELATED]
        self.count += len(best)
        self.sums += best.double().sum(0)
        self.products += (best.T @ best).double()

    def separation(self) -> Separation:
        """What was added so far, summed up."""
        strongest = {corpus: torch.cat(parts).numpy() for corpus, parts in self.strongest.items()}
        forget = strongest.pop("forget")
        mean, largest = self._correlations()
        return Separation(
            tokens={"forget": len(forget)} | {corpus: len(values) for corpus, values in strongest.items()},
            auroc=auroc(forget, np.concatenate(list(strongest.values()))),
            auroc_by_corpus={name.removeprefix("retain "): auroc(forget, it) for name, it in strongest.items()},
            mean_correlation=mean,
            max_correlation=largest,
        )

    def _correlations(self) -> tuple[float | None, float | None]:
        # E[ab] - E[a] E[b], from sums that were taken chunk by chunk
        covariance = self.products / self.count - self.sums.outer(self.sums) / self.count**2
        moves = covariance.diagonal() > 1e-6 * self.products.diagonal() / self.count  # products are summed in fp32
        deviation = covariance.diagonal()[moves].sqrt()
        correlation = (covariance[moves][:, moves] / deviation.outer(deviation)).abs().clamp(max=1.0)
        pairs = correlation[tuple(torch.triu_indices(len(deviation), len(deviation), 1))]
        return (float(pairs.mean()), float(pairs.max())) if len(pairs) else (None, None)
