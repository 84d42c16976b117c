"""How good a trained SAE is: measured on a fresh pass with the weights as saved, never on the last minibatch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.data.sinks import are_sinks
from sae_forge.errors import CheckpointError
from sae_forge.progress import Progress
from sae_forge.sae.jumprelu import JumpReLUSAE
from sae_forge.sae.topk import TopKSAE
from sae_forge.store import files, records
from sae_forge.training.explained import Explained
from sae_forge.training.sharded import ShardedSAE
from sae_forge.training.verdict import Verdict, judged

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
    """Fraction of variance unexplained: of the model's own activations on held-out text, where it was there to run.
    Sinks are left out of this and all that follows, unless they were kept."""
    l0: float
    """Mean number of latents that fire on a token."""
    dead_share: float
    """Share of latents that fire on no token of the measuring pass."""
    ce_recovered: float | None = None
    """(CE_zero − CE_sae) / (CE_zero − CE_base); needs the language model, so the pipeline fills it in."""
    fvu_stored: float | None = None
    """Fraction of variance unexplained over the measuring pass, of activations as the shards hold them; None while that
    is what ``fvu`` says."""
    fvu_pca: float | None = None
    """What a PCA of rank k leaves unexplained of the same rows."""
    fvu_with_sinks: float | None = None
    """``fvu`` with sinks among the rows; None where there is none."""
    ce_recovered_with_sinks: float | None = None
    """``ce_recovered`` where sinks are rebuilt, and silenced, as well; None where there is none."""
    falling: float | None = None
    """Fall of the training FVU over the last tenth of the steps at the full rate, as a share of it; None: unknown."""
    tokens_per_second: float | None = None
    """Of the training loop in this process, collecting apart; never stored, None for a stored report."""

    def summary(self) -> str:
        """One line for a person."""
        recovered = "" if self.ce_recovered is None else f", CE recovered {self.ce_recovered:.3f}"
        stored = "" if self.fvu_stored is None else f" ({self.fvu_stored:.4f} of what it was trained on)"
        speed = "" if self.tokens_per_second is None else f", {self.tokens_per_second:,.0f} tokens/s"
        sinks = "" if self.fvu_with_sinks is None else f" (with sinks {self.fvu_with_sinks:.4f})"
        pca = "" if self.fvu_pca is None else f", where a PCA of rank k leaves {self.fvu_pca:.4f}"
        return (
            f"{self.steps} steps on {self.tokens:,} tokens: FVU {self.fvu:.4f}{stored}{sinks}{pca}, L0 {self.l0:.1f}, "
            f"{self.dead_share:.1%} dead{recovered}{speed}. As an SAE it is {self.verdict.said}"
        )

    @property
    def verdict(self) -> Verdict:
        """Whether it is fit to be used, and what would help."""
        return judged(
            fvu=self.fvu, fvu_pca=self.fvu_pca, ce_recovered=self.ce_recovered, dead_share=self.dead_share,
            falling=self.falling, steps=self.steps, tokens=self.tokens,
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The architecture's ``train`` metrics, with the timing."""
        return asdict(self) | {"fit": self.verdict.fit, "verdict": self.verdict.said}


def save_report(folder: Path, report: TrainReport) -> None:
    """Keep the report beside the SAE, without the timing, so that equal runs give equal bytes."""
    stored = asdict(report)
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
    sae: TopKSAE | JumpReLUSAE | ShardedSAE,
    batches: Iterator[Float[Tensor, "batch d_in"]],
    tokens: int,
    progress: Progress,
    sink_norm: float = 0.0,
    *,
    k: int,
) -> TrainReport:
    """What the next ``tokens`` tokens say of an SAE: FVU, L0, and the share of latents that fired on none of them.

    Args:
        k: Directions of the PCA beside it.
    """
    meter, seen = Explained(sae.d_in, sae.W_dec.device, sink_norm), 0
    fired = torch.zeros(sae.d_sae, dtype=torch.bool, device=sae.W_dec.device)
    with progress.task("measure the SAE", tokens, "token") as task:
        while seen < tokens:
            x = next(batches).to(sae.W_dec.device, torch.float32)
            x_hat, acts = sae.reconstruct(x)
            meter.add(x, x_hat, acts.values)
            fired[acts.indices[(acts.values > 0) & ~are_sinks(x, sink_norm)[:, None]]] = True
            seen += len(x)
            task.advance(len(x))
    return TrainReport(
        steps=0,
        tokens=0,
        fvu=meter.ordinary.fvu,
        l0=meter.ordinary.l0,
        dead_share=1.0 - float(fired.double().mean()),
        fvu_pca=meter.fvu_pca(min(k, sae.d_in)),
        fvu_with_sinks=meter.fvu_with_sinks,
    )
