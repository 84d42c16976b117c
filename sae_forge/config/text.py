"""How text becomes packed tokens, and the held-out text of losses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting
from sae_forge.config.model import ModelConfig

Packing = Literal["row", "document", "none"]
BosPolicy = Literal["auto", Packing]


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """How text becomes packed tokens."""

    heading: ClassVar[str] = "Text"
    decides: ClassVar[tuple[Artefact, ...]] = ("shards", "report")

    text_field: Annotated[
        str | None, "Column that holds the text where the source names none. Unset: text, else the only one."
    ] = None
    normalize_text: Annotated[
        bool, "Bring all text to one form first: straight quotes, plain dashes, a paragraph a line, no mark-up."
    ] = False
    split: Annotated[str, "Split of a dataset, or of a folder whose files name several."] = "train"
    ctx_len: Annotated[int, "Tokens a packed sequence holds.", Setting(at_least=2, wanted="give at least 2 tokens")] = (
        1024
    )
    bos: Annotated[
        BosPolicy, "Put BOS before each packed row, each document, or nowhere. auto: row where the tokenizer adds BOS."
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class SinksConfig(ModelConfig):
    """What becomes of tokens whose activation dwarfs all others."""

    heading: ClassVar[str] = "Text"
    decides: ClassVar[tuple[Artefact, ...]] = ("selection", "report")

    keep_sinks: Annotated[
        bool, "Train on, select by, and edit sinks too: tokens whose activation is over 8 times as long as the median."
    ] = False


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(TextConfig):
    """Text the SAE has not seen, for losses in nats per token."""

    heading: ClassVar[str] = "Held-out text"
    decides: ClassVar[tuple[Artefact, ...]] = ("report",)

    forget_eval: Annotated[
        tuple[str, ...], "Held-out text on what is forgotten, for the losses.", Setting(names_items=True)
    ] = ()
    retain_eval: Annotated[
        tuple[str, ...], "Held-out text on what is kept, for the losses.", Setting(names_items=True)
    ] = ()
    loss_tokens: Annotated[
        int, "Tokens per corpus for the losses.", Setting(at_least=1, wanted="give at least 1 token")
    ] = 50_000
    eval_batch_size: Annotated[
        int,
        "Sequences a forward pass takes when measuring.",
        Setting(at_least=1, wanted="give at least 1 sequence", heading="Text"),
    ] = 16
