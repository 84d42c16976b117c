"""How every edit of a report is made, whichever method it is."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig

GatePolicy = Literal["prompt", "streaming", "per_token"]
ValueUnits = Literal["absolute", "relative"]
Tokens = Literal["real", "attended", "all_but_first"]
"""``real``: text alone, no special token and no padding. ``attended``: all but padding. ``all_but_first``: all of these
but the first of a text, which is BOS where there is one."""


@dataclass(frozen=True, kw_only=True)
class TouchingConfig(ModelConfig):
    """Which tokens an edit may touch."""

    heading: ClassVar[str] = "Edits"

    tokens: Annotated[
        Tokens,
        "Tokens an edit may touch. real: text; attended: BOS, EOS and turn tokens too; all_but_first: these but BOS.",
        Setting(younger=True),
    ] = "real"


@dataclass(frozen=True, kw_only=True)
class EditingConfig(TouchingConfig):
    """What holds for every edit of a report, and is therefore repeated in its protocol."""

    heading: ClassVar[str] = "Edits"

    gate: Annotated[str, "When an edit is in force. own: as the method's paper has it."] = "own"
    gate_policy: Annotated[
        GatePolicy, "Sequence gates: decide on the prompt and hold, on all text so far, or per token."
    ] = "prompt"
    gate_percentile: Annotated[
        float,
        "Sequence gates open above this percentile of the retain sequences.",
        Setting(at_least=0, at_most=100, wanted="give a percentile between 0 and 100"),
    ] = 95.0
    gate_tokens: Annotated[
        Tokens,
        "Tokens that sequence gates count; beyond real, one that the edit may not touch counts as silent.",
        Setting(younger=True),
    ] = "real"
    theta: Annotated[
        float,
        "conditional_clamp, refusal_clamp, --gate: what an act must exceed to fire.",
        Setting(at_least=0, finite=True, wanted="give 0 or more", tuned=lambda _: True),
    ] = 0.0
    keep_error: Annotated[bool, "Keep what the SAE cannot rebuild; --no_keep_error shows what dropping it costs."] = (
        True
    )
    value_units: Annotated[ValueUnits, "relative: clamp_value times the median residual norm over the edit's norm."] = (
        "relative"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        known = getattr(type(self), "catalogue", None)  # a config that was composed knows the gates
        for kind in known.gates if known else ():
            if kind.name == self.gate and (error := kind.refused(self)):
                raise error
