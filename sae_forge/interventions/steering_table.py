"""What a steering CSV says, row by row, and the intervention that it is.

Two dialects. That of conditional clamping (arXiv 2503.11127) knows ``add``, ``clamp`` and ``clamp_cond`` of a latent's
act, and ``clamp_refusal``, which writes another latent where this one's act exceeds a threshold. That of lm-eval's
``steered`` model knows ``add`` and ``clamp``; its clamp sets the component along a direction on every token and asks no
encoder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sae_forge.config.editing import Tokens
from sae_forge.errors import ConfigError, DataError
from sae_forge.interventions.clamping import ClampFiring, SetTo
from sae_forge.interventions.gates.any import AnyFires
from sae_forge.interventions.gates.none import ALWAYS
from sae_forge.interventions.intervention import Intervention
from sae_forge.interventions.steering import AddConstant, SetProjection
from sae_forge.interventions.values import Value

Dialect = Literal["conditional", "lm_eval"]
ACTIONS: dict[Dialect, tuple[str, ...]] = {
    "conditional": ("add", "clamp", "clamp_cond", "clamp_refusal"),
    "lm_eval": ("add", "clamp"),
}


@dataclass(frozen=True)
class SteeringRow:
    """One latent's row, in either dialect."""

    latent: int
    action: str
    """``add``, ``clamp``, ``clamp_cond`` or ``clamp_refusal``; lm-eval knows the first two."""
    coefficient: float
    """The value written or added."""
    theta: float | None = None
    """Act that must be exceeded; None where the dialect or the action has none."""
    refusal: int | None = None
    sae_id: str = ""
    sae_release: str = ""
    """lm-eval's ``sparse_model``."""
    description: str = ""
    loader: str = ""
    hookpoint: str = ""
    head_index: str = ""


@dataclass(frozen=True)
class SteeringTable:
    """A steering CSV, as its rows say it."""

    dialect: Dialect
    rows: tuple[SteeringRow, ...]

    def intervention(self, tokens: Tokens = "attended") -> Intervention:
        """The edit that the rows make together.

        Args:
            tokens: Those it may touch: as the tools these files come from, all but padding.

        Raises:
            DataError: the rows make no one edit: their actions, thresholds or refusal latents differ, or a latent comes
                twice.
        """
        latents = tuple(row.latent for row in self.rows)
        if len(set(latents)) < len(latents):
            twice = next(latent for latent in latents if latents.count(latent) > 1)
            raise DataError(f"latent {twice} has two rows; keep one of them")
        values = tuple(row.coefficient for row in self.rows)
        value: Value = values[0] if len(set(values)) == 1 else values
        match self.dialect, self._same("action"):
            case _, "add":
                return Intervention("steer", latents, AddConstant(value), tokens=tokens)
            case "lm_eval", "clamp":
                return Intervention("set_projection", latents, SetProjection(value), tokens=tokens)
            case _, "clamp":
                return Intervention("clamp", latents, ClampFiring(value), tokens=tokens)
            case _, "clamp_cond":
                edit = ClampFiring(value, self._same("theta") or 0.0)
                return Intervention("conditional_clamp", latents, edit, tokens=tokens)
            case _, "clamp_refusal":
                edit, gate = SetTo(self._same("coefficient")), AnyFires(self._same("theta") or 0.0)
                refusal = (self._same("refusal"),)
                return Intervention("refusal_clamp", latents, edit, writes=refusal, gate=gate, tokens=tokens)
            case dialect, action:
                raise DataError(f"action {action!r} is unknown; those known are {', '.join(ACTIONS[dialect])}")

    def _same(self, name: str) -> Any:
        """The one value that all rows have in a field."""
        first, *others = (getattr(row, name) for row in self.rows)
        for other in others:
            if other != first:
                raise DataError(f"rows with {name} {first!r} and {other!r} make no one edit; give a file for each")
        return first

    def require_sae(self, sae_id: str | None, sae_release: str | None = None) -> None:
        """The rows are about this SAE; a row that names none is trusted, and None is not asked.

        Raises:
            DataError: a row is about another, whose latents mean something else.
        """
        for row in self.rows:
            for said, wanted in ((row.sae_id, sae_id), (row.sae_release, sae_release)):
                if said and wanted is not None and said != wanted:
                    raise DataError(f"latent {row.latent} is one of the SAE {said!r}, not of {wanted!r}; use its own")


def steering_table(
    intervention: Intervention,
    *,
    dialect: Dialect = "conditional",
    sae_id: str = "",
    sae_release: str = "",
    hookpoint: str = "",
    loader: str = "sae_lens",
    descriptions: Mapping[int, str] | None = None,
) -> SteeringTable:
    """The rows that say what an intervention does, for tools that then do the same on every attended token.

    Raises:
        ConfigError: the dialect cannot say it.
    """
    action, values, theta, refusal = _said(intervention, dialect)
    known = descriptions or {}
    rows = tuple(
        SteeringRow(
            latent, action, value, theta, refusal, sae_id, sae_release, known.get(latent, ""),
            *((loader, hookpoint) if dialect == "lm_eval" else ()),
        )
        for latent, value in zip(intervention.targets, values, strict=True)
    )  # fmt: skip
    return SteeringTable(dialect, rows)


def _said(intervention: Intervention, dialect: Dialect) -> tuple[str, tuple[float, ...], float | None, int | None]:
    """Action, value for each target, threshold and refusal latent."""
    count, own = len(intervention.targets), intervention.written == intervention.targets
    always, one = own and intervention.gate == ALWAYS, not own and len(intervention.written) == 1
    match dialect, intervention.edit, intervention.gate:
        case _, AddConstant(alpha), _ if always:
            return "add", _each(alpha, count), None, None
        case "lm_eval", SetProjection(value), _ if always:
            return "clamp", _each(value, count), None, None
        case "conditional", ClampFiring(value, 0.0), _ if always:
            return "clamp", _each(value, count), None, None
        case "conditional", ClampFiring(value, theta), _ if always:
            return "clamp_cond", _each(value, count), theta, None
        case "conditional", SetTo(value), AnyFires(theta) if one and not isinstance(value, tuple):
            return "clamp_refusal", _each(value, count), theta, intervention.written[0]
    raise ConfigError(
        f"a steering CSV of the {dialect} kind cannot say {intervention.name}; it knows {', '.join(ACTIONS[dialect])}, "
        "and no gate over a text"
    )


def _each(value: Value, count: int) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,) * count
