"""How text becomes packed tokens, and the held-out text of losses."""

from dataclasses import dataclass
from typing import Annotated, Literal

from sae_forge.config.model import ModelConfig

BosPolicy = Literal["row", "document", "none"]


@dataclass(frozen=True, kw_only=True)
class TextConfig(ModelConfig):
    """How text becomes packed tokens."""

    text_field: Annotated[str | None, "Column that holds the text. Unset: text, else the only text column."] = None
    split: Annotated[str, "Split of a datasets id."] = "train"
    ctx_len: Annotated[int, "Tokens a packed sequence holds."] = 1024
    bos: Annotated[BosPolicy, "Put BOS before each packed row, each document, or nowhere."] = "row"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(ctx_len=(self.ctx_len >= 2, "give at least 2 tokens"))


@dataclass(frozen=True, kw_only=True)
class HeldOutConfig(TextConfig):
    """Text the SAE has not seen, for losses in nats per token."""

    forget_eval: Annotated[tuple[str, ...], "Held-out text on what is forgotten, for the losses."] = ()
    retain_eval: Annotated[tuple[str, ...], "Held-out text on what is kept, for the losses."] = ()
    loss_tokens: Annotated[int, "Tokens per corpus for the losses."] = 50_000
    eval_batch_size: Annotated[int, "Sequences a forward pass takes when measuring."] = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            loss_tokens=(self.loss_tokens >= 1, "give at least 1 token"),
            eval_batch_size=(self.eval_batch_size >= 1, "give at least 1 sequence"),
        )
