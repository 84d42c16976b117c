"""``collect``: corpus and model to shards."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.ranks import RanksConfig
from sae_forge.config.text import TextConfig
from sae_forge.store.remote import check_url, is_url

StorageDtype = Literal["bf16", "fp16", "fp32", "int8"]


DEFAULT_RETAIN = ("Salesforce/wikitext:wikitext-2-raw-v1", "roneneldan/TinyStories")


@dataclass(frozen=True, kw_only=True)
class CollectConfig(TextConfig, RanksConfig):
    """Corpus and model to shards."""

    heading: ClassVar[str] = "Activations"
    decides: ClassVar[tuple[Artefact, ...]] = ("shards",)

    forget: Annotated[
        str | None,
        "Text to forget: a file, folder, glob or datasets id; @split, :column and [:1%] may follow.",
        Setting(decides=(), names_items=True, heading="Text"),
    ] = None
    retain: Annotated[
        tuple[str, ...],
        "Text to keep: one source or several, separated by commas.",
        Setting(decides=("attribution",), names_items=True, heading="Text"),
    ] = DEFAULT_RETAIN
    max_tokens: Annotated[
        int | None,
        "Tokens to take from each corpus at most.",
        Setting(at_least=1, wanted="give at least 1 token", heading="Text"),
    ] = 1_000_000
    model_batch_size: Annotated[
        int, "Sequences a forward pass takes.", Setting(at_least=1, wanted="give at least 1 sequence")
    ] = 8
    storage_dtype: Annotated[
        StorageDtype, "Precision of stored activations; int8 keeps a scale a row and says what rounding lost."
    ] = "bf16"
    shard_rows: Annotated[
        int,
        "Tokens a shard holds, rounded up to whole forward batches.",
        Setting(at_least=1, wanted="give at least 1 token"),
    ] = 65_536
    shards_dir: Annotated[
        str | None,
        "Where shards go: a folder or an fsspec URL (s3://…). Unset: shards/ in the run folder.",
        Setting(decides=()),
    ] = None
    resume: Annotated[bool, "Continue what is there; --no_resume is --fresh.", Setting(decides=())] = True
    fresh: Annotated[bool, "Start over, deleting what is there.", Setting(decides=())] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(shards_dir=(self.shards_dir != "", "give a folder or a URL"))
        if self.shards_dir is not None and is_url(self.shards_dir):
            check_url(self.shards_dir, "--shards_dir")
