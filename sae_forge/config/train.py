"""``train``: shards to TopK SAEs."""

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, NamedTuple

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import distinct
from sae_forge.config.text import HeldOutConfig
from sae_forge.errors import ConfigError

Backend = Literal["auto", "reference", "cpu", "dense", "triton"]


MAX_GB = 1e6
"""What a limit in GB may be: no machine has more, and so many bytes are still a whole number."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CollectConfig, HeldOutConfig):
    """Shards to a TopK SAE."""

    k: Annotated[tuple[int, ...], "Latents kept per token; of several (16,32,64) each gives an SAE, from one read."] = (
        32,
    )
    expansion_factor: Annotated[tuple[int, ...], "Latents per input dimension: d_sae = expansion_factor x d_in."] = (8,)
    d_sae: Annotated[tuple[int, ...] | None, "Number of latents, one or several; overrides --expansion_factor."] = None
    sae_seeds: Annotated[tuple[int, ...] | None, "Seeds of the first weights, an SAE each. Unset: --seed."] = None
    epochs: Annotated[int, "Passes over the shards."] = 1
    max_steps: Annotated[int | None, "Stop after this many optimizer steps; overrides --epochs."] = None
    batch_size: Annotated[int, "Tokens an optimizer step takes."] = 4096
    shuffle_gb: Annotated[
        float,
        "GB of RAM the loader may take in each process. Tokens are shuffled within it, so it decides their order.",
    ] = 2.0
    lr: Annotated[float | None, "Peak learning rate of Adam. Unset: 2e-4 / sqrt(d_sae / 16384)."] = None
    lr_warmup: Annotated[float, "Share of the steps over which the rate rises from 0."] = 0.05
    lr_decay: Annotated[float, "Share of the steps over which it falls to 0 at the end."] = 0.2
    auxk_alpha: Annotated[float, "Weight of the AuxK loss that revives dead latents; 0 turns it off."] = 1 / 32
    dead_after: Annotated[int, "Tokens without firing after which a latent counts as dead."] = 10_000_000
    b_dec_init: Annotated[Literal["geometric_median", "mean", "zero"], "Where b_dec starts."] = "geometric_median"
    max_grad_norm: Annotated[float | None, "Clip the gradient's global norm. Unset: off."] = None
    sae_dtype: Annotated[Literal["fp32", "bf16"], "Precision of the SAE's products; its weights stay fp32."] = "fp32"
    backend: Annotated[Backend, "Kernel of the sparse decoder; one asked for by name is used or refused."] = "auto"
    cuda_graph: Annotated[bool, "On a GPU, record a step as one CUDA graph and play it."] = True
    include_forget: Annotated[bool, "Train on the forget corpus too."] = True
    checkpoint_every: Annotated[int, "Steps between resumable checkpoints."] = 1000
    accumulation: Annotated[
        int, "Parts a batch is taken in, one after the other, to save memory; gradients are summed."
    ] = 1
    max_disk_gb: Annotated[
        float | None,
        "For more tokens than disk: collect a window of at most so many GB, train on it, delete it, and so on.",
    ] = None
    shard_latents: Annotated[bool, "Over several ranks: each holds a part of the latents, not of the batch."] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            k=(distinct(self.k, least=1), "give each number of latents once, at least 1"),
            expansion_factor=(distinct(self.expansion_factor, least=1), "give each factor once, at least 1"),
            d_sae=(
                self.d_sae is None or distinct(self.d_sae, least=1),
                "give each number of latents once, at least 1",
            ),
            sae_seeds=(self.sae_seeds is None or distinct(self.sae_seeds, least=0), "give each seed once, 0 or more"),
            epochs=(self.epochs >= 1, "give at least 1"),
            max_steps=(self.max_steps is None or self.max_steps >= 1, "give at least 1"),
            batch_size=(self.batch_size >= 2, "give at least 2 tokens; one has no variance to explain"),
            shuffle_gb=(0 < self.shuffle_gb <= MAX_GB, f"give more than 0 and at most {MAX_GB:g} GB"),
            lr=(self.lr is None or self.lr > 0, "give a rate above 0"),
            lr_warmup=(0 <= self.lr_warmup <= 1, "give a share between 0 and 1"),
            lr_decay=(0 <= self.lr_decay <= 1 - self.lr_warmup, "warm-up and decay together must not exceed 1"),
            auxk_alpha=(self.auxk_alpha >= 0, "give 0 or more"),
            dead_after=(self.dead_after >= 1, "give at least 1 token"),
            max_grad_norm=(self.max_grad_norm is None or self.max_grad_norm > 0, "give a norm above 0"),
            checkpoint_every=(self.checkpoint_every >= 1, "give at least 1 step"),
            accumulation=(self.accumulation >= 1, "give at least 1 part"),
            max_disk_gb=(
                self.max_disk_gb is None or 0 < self.max_disk_gb <= MAX_GB,
                f"give more than 0 and at most {MAX_GB:g} GB",
            ),
            shards_dir=(
                self.shards_dir is None or self.max_disk_gb is None,
                "with --max_disk_gb shards come and go in --run_dir; leave one of the two out",
            ),
        )
        if self.d_sae is not None:
            _ = self.saes(1)  # more latents a token than there are is refused here

    def saes(self, d_in: int) -> tuple["SaeShape", ...]:
        """The SAEs asked for, on activations of this width: every k with every d_sae and every seed.

        Raises:
            ConfigError: a k exceeds a d_sae.
        """
        sizes = self.d_sae or tuple(factor * d_in for factor in self.expansion_factor)
        found = tuple(SaeShape(*each) for each in product(self.k, sizes, self.sae_seeds or (self.seed,)))
        for shape in found:
            if shape.k > shape.d_sae:
                raise ConfigError(f"k={shape.k} latents per token, but the SAE has only d_sae={shape.d_sae}")
        return found


class SaeShape(NamedTuple):
    """What tells the SAEs of one training command apart."""

    k: int
    """Latents kept per token."""
    d_sae: int
    """Number of latents."""
    seed: int
    """Of the first weights."""
