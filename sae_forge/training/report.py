"""How good a trained SAE is: measured on a fresh pass with the weights as saved, never on the last minibatch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.errors import CheckpointError
from sae_forge.progress import Progress
from sae_forge.sae.losses import FvuMeter
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files, records
from sae_forge.training.sharded import ShardedSAE

REPORT = "report.json"
MIN_WINDOW = 262_144
"""Tokens the measuring pass takes at least, where the shards have them."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What training came to."""

    steps: int
    """Optimizer steps."""
    tokens: int
    """Tokens trained on, repeats counted."""
    fvu: float
    """Fraction of variance unexplained: of the model's own activations on held-out text, where it was there to run."""
    l0: float
    """Mean number of latents that fire on a token."""
    dead_share: float
    """Share of latents that fire on no token of the measuring pass."""
    ce_recovered: float | None = None
    """(CE_zero − CE_sae) / (CE_zero − CE_base); needs the language model, so the pipeline fills it in."""
    fvu_stored: float | None = None
    """Fraction of variance unexplained over the measuring pass, of activations as the shards hold them; None while that
    is what ``fvu`` says."""
    tokens_per_second: float | None = None
    """Of the training loop in this process, collecting apart; never stored, None for a stored report."""

    def summary(self) -> str:
        """One line for a person."""
        recovered = "" if self.ce_recovered is None else f", CE recovered {self.ce_recovered:.3f}"
        stored = "" if self.fvu_stored is None else f" ({self.fvu_stored:.4f} of what was stored)"
        speed = "" if self.tokens_per_second is None else f", {self.tokens_per_second:,.0f} tokens/s"
        return (
            f"{self.steps} steps on {self.tokens:,} tokens: FVU {self.fvu:.4f}{stored}, L0 {self.l0:.1f}, "
            f"{self.dead_share:.1%} dead{recovered}{speed}"
        )

    def to_json(self) -> dict[str, Any]:
        """The architecture's ``train`` metrics, with the timing."""
        return asdict(self)


def save_report(folder: Path, report: TrainReport) -> None:
    """Keep the report beside the SAE, without the timing, so that equal runs give equal bytes."""
    stored = replace(report, tokens_per_second=None).to_json()
    del stored["tokens_per_second"]
    files.publish_json(folder / REPORT, stored)


def load_report(folder: Path) -> TrainReport | None:
    """The report beside a finished SAE, or None when training has not come to its end there."""
    path = folder / REPORT
    if not path.exists():
        return None
    what, hint = "a training report", "start over with --fresh"
    return records.read(TrainReport, path, error=CheckpointError, what=what, hint=hint)


def measuring_window(rows_per_epoch: int, dead_after: int) -> int:
    """Tokens the measuring pass takes: ``dead_after`` of them and at least ``MIN_WINDOW``, at most one epoch.

    A latent that fires on none of them is dead by the definition training uses, or fires nowhere in the corpus.
    """
    return min(rows_per_epoch, max(dead_after, MIN_WINDOW))


@torch.no_grad()
def measure(
    sae: TopKSAE | ShardedSAE, batches: Iterator[Float[Tensor, "batch d_in"]], tokens: int, progress: Progress
) -> tuple[FvuMeter, float]:
    """FVU and L0 over the next ``tokens`` tokens, and the share of latents that fired on none of them."""
    meter = FvuMeter(sae.d_in, sae.W_dec.device)
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.W_dec.device)
    with progress.task("measure the SAE", tokens, "token") as task:
        while meter.tokens < tokens:
            x = next(batches).to(sae.W_dec.device, torch.float32)
            x_hat, acts = sae.reconstruct(x)
            meter.add(x, x_hat, acts.values)
            fired[acts.indices[acts.values > 0]] = True
            task.advance(len(x))
    return meter, 1.0 - float(fired.double().mean())
