"""What every text opens with: the tokenizer decides, for checkpoints depart from the habit of their architecture.

A Qwen 2 distilled from R1 opens with BOS, SmolLM and Yi are Llamas that do not. Packed rows, questions, held-out text
and prompts all ask here.
"""

from dataclasses import dataclass
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from sae_forge.errors import DataError
from sae_forge.models.families import Family

_PROBE = "a river and 7 stones"


@dataclass(frozen=True)
class Opening:
    """The tokens in front of every text, and who says so."""

    ids: tuple[int, ...]
    """BOS, or nothing."""
    by: Literal["tokenizer", "family", "earlier run"]
    rows: bool
    """Whether packed rows open with BOS unless told otherwise; apart from ``ids`` only in a run of before."""

    def sentence(self) -> str:
        """For screen and page."""
        who = {
            "tokenizer": "as its tokenizer writes it" if self.ids else "since its tokenizer adds none",
            "family": "as its family was trained; the tokenizer does not tell",
            "earlier run": "as this run was begun, before the tokenizer decided",
        }
        return f"every text opens {f'with BOS ({self.ids[0]})' if self.ids else 'without BOS'}, {who[self.by]}"

    def to_json(self) -> dict[str, Any]:
        """As a run records it."""
        return {"ids": list(self.ids), "by": self.by, "rows": self.rows}

    def told(self) -> dict[str, Any]:
        """As a report has it: for machines and for people."""
        return {**self.to_json(), "words": self.sentence()}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, family: Family) -> "Opening":
        """What the tokenizer itself puts in front of a text; the family's habit if that is something else than BOS."""
        bos: Any = tokenizer.bos_token_id
        bare: list[int] = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
        whole: list[int] = tokenizer(_PROBE)["input_ids"]  # pyright: ignore[reportAssignmentType]
        for front in ((), (bos,)):
            if tuple(whole[: len(front) + len(bare)]) == (*front, *bare):  # an EOS may follow
                return cls(front, "tokenizer", bool(front))
        front = (bos,) if family.needs_bos and isinstance(bos, int) else ()
        return cls(front, "family", bool(front))

    @classmethod
    def before(cls, tokenizer: PreTrainedTokenizerBase, family: Family) -> "Opening":
        """What a run was begun with that records nothing: the family decided, and rows opened with BOS."""
        bos: Any = tokenizer.bos_token_id
        return cls((bos,) if family.needs_bos and isinstance(bos, int) else (), "earlier run", isinstance(bos, int))

    @classmethod
    def read(cls, value: Any, place: str) -> "Opening":
        """What a run recorded.

        Raises:
            DataError: it is something else.
        """
        match value:
            case {"ids": [*ids], "by": ("tokenizer" | "family" | "earlier run") as by, "rows": bool() as rows}:
                if all(type(index) is int and index >= 0 for index in ids):
                    return cls(tuple(ids), by, rows)
        raise DataError(f"{place} does not say what texts open with; restore it, or begin another --run_dir")
