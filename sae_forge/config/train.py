"""``train``: shards to SAEs."""

from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, ClassVar, Literal, NamedTuple

from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.text import HeldOutConfig, SinksConfig
from sae_forge.errors import ConfigError

Backend = Literal["auto", "reference", "cpu", "dense", "triton"]


MAX_GB = 1e6
"""What a limit in GB may be: no machine has more, and so many bytes are still a whole number."""
LEAST_STEPS, LEAST_BATCH, MOST_EPOCHS = 300, 1024, 20
"""What is made of little text: so many steps, of batches that are no smaller, in no more passes."""
GIGABYTES = Setting(above=0, at_most=MAX_GB, wanted=f"give more than 0 and at most {MAX_GB:g} GB")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(CollectConfig, HeldOutConfig, SinksConfig):
    """Shards to SAEs."""

    heading: ClassVar[str] = "Training"
    decides: ClassVar[tuple[Artefact, ...]] = ("sae",)

    k: Annotated[
        tuple[int, ...],
        "Latents kept per token; of several (16,32,64) each gives an SAE, from one read.",
        Setting(decides=(), distinct=True, at_least=1, wanted="give each number of latents once, at least 1"),
    ] = (32,)
    expansion_factor: Annotated[
        tuple[int, ...],
        "Latents per input dimension: d_sae = expansion_factor x d_in.",
        Setting(decides=(), distinct=True, at_least=1, wanted="give each factor once, at least 1"),
    ] = (8,)
    d_sae: Annotated[
        tuple[int, ...] | None,
        "Number of latents, one or several; overrides --expansion_factor.",
        Setting(decides=(), distinct=True, at_least=1, wanted="give each number of latents once, at least 1"),
    ] = None
    architecture: Annotated[
        str,
        "How latents compete: topk, k of every token; batchtopk, k a token in the mean of a batch, saved as JumpReLU.",
        Setting(decides=()),  # as said in ``Plan.settings``
    ] = "topk"
    sae_seeds: Annotated[
        tuple[int, ...] | None,
        "Seeds of the first weights, an SAE each. Unset: --seed.",
        Setting(decides=(), distinct=True, at_least=0, wanted="give each seed once, 0 or more"),
    ] = None
    epochs: Annotated[
        int,
        "Passes over the shards. Where neither it nor --max_steps or --batch_size is given, little text is taken in "
        "smaller batches, several times.",
        Setting(decides=(), at_least=1, wanted="give at least 1"),
    ] = 1
    max_steps: Annotated[
        int | None,
        "Stop after this many optimizer steps; overrides --epochs.",
        Setting(decides=(), at_least=1, wanted="give at least 1"),
    ] = None
    batch_size: Annotated[
        int,
        "Tokens an optimizer step takes.",
        Setting(at_least=2, wanted="give at least 2 tokens; one has no variance to explain"),
    ] = 4096
    shuffle_gb: Annotated[
        float,
        "GB of RAM the loader may take in each process. Tokens are shuffled within it, so it decides their order.",
        GIGABYTES,
    ] = 2.0
    lr: Annotated[
        float | None,
        "Peak learning rate of Adam. Unset: 2e-4 / sqrt(d_sae / 16384), times sqrt(32000 / steps) if that is 1 to 8.",
        Setting(decides=(), above=0, wanted="give a rate above 0"),
    ] = None
    lr_warmup: Annotated[
        float,
        "Share of the steps over which the rate rises from 0.",
        Setting(at_least=0, at_most=1, wanted="give a share between 0 and 1"),
    ] = 0.05
    lr_decay: Annotated[float, "Share of the steps over which it falls to 0 at the end."] = 0.2
    auxk_alpha: Annotated[
        float,
        "Weight of the AuxK loss that revives dead latents; 0 turns it off.",
        Setting(at_least=0, wanted="give 0 or more"),
    ] = 1 / 32
    dead_after: Annotated[
        int,
        "Tokens without firing after which a latent counts as dead.",
        Setting(at_least=1, wanted="give at least 1 token"),
    ] = 10_000_000
    b_dec_init: Annotated[Literal["geometric_median", "mean", "zero"], "Where b_dec starts."] = "geometric_median"
    max_grad_norm: Annotated[
        float | None,
        "Clip the gradient's global norm. Unset: off.",
        Setting(above=0, wanted="give a norm above 0"),
    ] = None
    sae_dtype: Annotated[Literal["fp32", "bf16"], "Precision of the SAE's products; its weights stay fp32."] = "fp32"
    backend: Annotated[
        Backend,
        "Kernel of the sparse decoder; one asked for by name is used or refused.",
        Setting(decides=()),
    ] = "auto"
    int8_topk: Annotated[
        bool,
        "On an x86 CPU: an int8 product names the candidates of the top k, where the encoder is large.",
        Setting(decides=()),
    ] = False
    cuda_graph: Annotated[bool, "On a GPU, record a step as one CUDA graph and play it.", Setting(decides=())] = True
    include_forget: Annotated[bool, "Train on the forget corpus too.", Setting(decides=())] = True
    checkpoint_every: Annotated[
        int,
        "Steps between resumable checkpoints.",
        Setting(decides=(), at_least=1, wanted="give at least 1 step"),
    ] = 1000
    track: Annotated[
        str | None,
        "Show the figures of training in a tracker too: trackio or wandb, :PROJECT may follow.",
        Setting(decides=(), local=True),
    ] = None
    accumulation: Annotated[
        int,
        "Parts a batch is taken in, one after the other, to save memory; gradients are summed.",
        Setting(decides=(), at_least=1, wanted="give at least 1 part"),
    ] = 1
    max_disk_gb: Annotated[
        float | None,
        "For more tokens than disk: collect a window of at most so many GB, train on it, delete it, and so on.",
        GIGABYTES,
    ] = None
    shard_latents: Annotated[
        bool, "Over several ranks: each holds a part of the latents, not of the batch.", Setting(decides=())
    ] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            lr_decay=(0 <= self.lr_decay <= 1 - self.lr_warmup, "warm-up and decay together must not exceed 1"),
            shards_dir=(
                self.shards_dir is None or self.max_disk_gb is None,
                "with --max_disk_gb shards come and go in --run_dir; leave one of the two out",
            ),
        )
        if self.d_sae is not None:  # else d_in decides, which is known once the shards are
            _ = self.saes(1)  # more latents a token than there are is refused here

    def fitted(self, rows: int) -> "TrainConfig":
        """The config with smaller batches and more epochs where so few rows would give too few steps to learn anything.

        Only where nobody set steps, epochs or batches; a corpus that is smaller than a batch is left to be refused.
        """
        alone = not {"epochs", "batch_size", "max_steps"} & self.spelled and self.max_steps is None
        if not alone or self.epochs > 1 or not self.batch_size <= rows < LEAST_STEPS * self.batch_size:
            return self
        batch = self.batch_size
        while batch > LEAST_BATCH and rows < LEAST_STEPS * batch:
            batch //= 2
        epochs = -(-LEAST_STEPS // (rows // batch))
        return replace(self, batch_size=batch, epochs=min(epochs, MOST_EPOCHS))

    @property
    def other_architecture(self) -> str:
        """The architecture; an empty text for the one there was before there was a choice, so that what was trained
        then is still what this command trains."""
        return "" if self.architecture == TrainConfig.architecture else self.architecture

    def saes(self, d_in: int) -> tuple["SaeShape", ...]:
        """The SAEs asked for, on activations of this width: every k with every d_sae and every seed.

        Raises:
            ConfigError: a k exceeds a d_sae.
        """
        sizes = self.d_sae or tuple(factor * d_in for factor in self.expansion_factor)
        shapes = tuple(SaeShape(*each) for each in product(self.k, sizes, self.sae_seeds or (self.seed,)))
        for shape in shapes:
            if shape.k > shape.d_sae:
                raise ConfigError(f"k={shape.k} latents per token, but the SAE has only d_sae={shape.d_sae}")
        return shapes


class SaeShape(NamedTuple):
    """What tells the SAEs of one training command apart."""

    k: int
    """Latents kept per token."""
    d_sae: int
    """Number of latents."""
    seed: int
    """Of the first weights."""
