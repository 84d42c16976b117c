"""CRISP (arXiv 2508.13650) with the loss of its released code: adapters are trained until latents fall silent.

``(1 - beta) unlearn + beta (retain + gamma coherence)``. To the pre-act of a selected latent on each token where it
fires in the given model, ``|alpha m|`` is added, where ``m`` is the token's mean pre-act over the dictionary, in the
model under training; the dictionary's own threshold follows, and ``unlearn`` is the mean of all selected acts that are
above 0 then. ``retain`` and ``coherence`` are mean squared changes, of the activations where latents are read and of
the last layer's, over every position of the batch, where BOS and padding count as unchanged. With beta at its default
of 0.99 the unlearning term weighs 0.01. The paper's own sentences are not shipped: those of the coherence term are
written by the given model, unless some are named.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, cast, runtime_checkable

from sae_forge.config.fields import Setting
from sae_forge.errors import ConfigError, DataError, ForgeError
from sae_forge.methods.edits.latents import latents_of, parts
from sae_forge.methods.method import Settings, Strength
from sae_forge.methods.weights.adapters import AdapterPace, Suppressed, without_peft
from sae_forge.methods.weights.recipe import PaceSettings, paced, retraining

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.methods.materials import Materials
    from sae_forge.methods.weights.objectives import Loss
    from sae_forge.methods.weights.texts import TextBatch, Texts
    from sae_forge.models.loading import LanguageModel


@dataclass(frozen=True, kw_only=True)
class CRISPSettings(PaceSettings):
    """Which layers CRISP adapts."""

    heading: ClassVar[str] = "Retraining"
    decides_when: ClassVar[str] = "method"

    crisp_layers: Annotated[
        tuple[int, ...] | None,
        "CRISP: layers that get adapters, 3-9 in its code. Unset: all up to the SAE's.",
        Setting(at_least=0, distinct=True, wanted="give layers, each once"),
    ] = None
    crisp_sentences: Annotated[
        tuple[str, ...],
        "CRISP: files of {text} records whose last hidden states are held, as its code holds fixed ones. "
        "Unset: what the given model writes.",
        Setting(names_items=True, younger=True),
    ] = ()


@runtime_checkable
class Shiftable(Protocol):
    """A dictionary whose pre-acts can be changed before its activation function sees them."""

    def pre_acts(self, x: "Tensor") -> "Tensor":
        """What every latent answers, ``[*batch, d_sae]``."""
        ...

    def activated(self, pre_acts: "Tensor") -> "Tensor":
        """The dense acts that pre-acts become."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class CRISP(AdapterPace):
    """``(1 - beta) unlearn + beta (retain + gamma coherence)``, through adapters of rank ``rank``."""

    name: ClassVar[str] = "crisp"

    def __post_init__(self) -> None:
        super().__post_init__()
        for entry in self.suppressed:
            if not isinstance(entry.sae, Shiftable):
                raise ConfigError(
                    f"crisp adds to the pre-acts of latents, and a {type(entry.sae).__name__} has none to add to; "
                    "suppress trains latents to rest by their acts"
                )

    def loss(self, lm: "LanguageModel", frozen: "LanguageModel", retain: "Texts", seed: int) -> "Loss":
        coherence = self.sentences(frozen, retain, seed)

        def of(forget_batch: "TextBatch", retain_batch: "TextBatch") -> "Tensor":
            forgotten = unlearning(lm, frozen, self, forget_batch)
            kept = retaining(lm, frozen, self, retain_batch)
            if coherence is not None:
                kept = kept + self.gamma * cohering(lm, frozen, next(coherence)).to(kept.device)
            return (1 - self.beta) * forgotten + self.beta * kept

        return of


def unlearning(lm: "LanguageModel", frozen: "LanguageModel", recipe: CRISP, forget: "TextBatch") -> "Tensor":
    """Mean of the selected acts above 0, once what fired in ``frozen`` was lifted; 0 where there is none."""
    import torch

    from sae_forge.methods.weights.objectives import without_sinks
    from sae_forge.models.hooks import capture, capture_with_gradients

    points, valid = recipe.points, _valid(forget)
    before = capture(frozen, points, *forget)
    after = capture_with_gradients(lm, points, *forget)
    means = []
    for entry in recipe.suppressed:
        weights = entry.sae.W_dec
        sae, latents = cast("Shiftable", entry.sae), torch.tensor(entry.latents, device=weights.device)
        dtype = torch.promote_types(after[entry.point].dtype, weights.dtype)
        with torch.no_grad():
            fired = entry.sae.latent_acts(before[entry.point].to(weights.device, dtype), latents) > 0
        pre_acts = sae.pre_acts(after[entry.point].to(weights.device, dtype))  # [batch, seq, d_sae]
        lift = torch.where(fired, (recipe.alpha * pre_acts.mean(-1, keepdim=True)).abs(), 0.0)
        acts = sae.activated(pre_acts.index_add(-1, latents, lift))[..., latents]
        inside = without_sinks(valid, before[entry.point], entry.sink_norm)
        counted = acts[(acts > 0) & inside.to(acts.device)[..., None]]
        means.append((counted.mean() if len(counted) else counted.sum()).to(valid.device))
    return torch.stack(means).mean()


def retaining(lm: "LanguageModel", frozen: "LanguageModel", recipe: CRISP, retain: "TextBatch") -> "Tensor":
    """Mean squared change of the retain text's activations, over every position."""
    import torch

    from sae_forge.methods.weights.objectives import without_sinks
    from sae_forge.models.hooks import capture, capture_with_gradients

    points = recipe.points
    before = capture(frozen, points, *retain)
    after = capture_with_gradients(lm, points, *retain)
    changes = []
    for point, norm in recipe.sink_norms.items():
        counted = without_sinks(_valid(retain), before[point], norm)
        changes.append(_change(after[point], before[point], counted).cpu())
    return torch.stack(changes).mean().to(lm.device)


def cohering(lm: "LanguageModel", frozen: "LanguageModel", sentences: "TextBatch") -> "Tensor":
    """Mean squared change of what the last layer hands to the head, over every position."""
    import torch

    from sae_forge.methods.weights.objectives import last_hidden

    with torch.no_grad():
        before = last_hidden(frozen, sentences)
    return _change(last_hidden(lm, sentences), before, _valid(sentences))


def _valid(batch: "TextBatch") -> "Tensor":
    """Attended tokens but a text's first."""
    return batch.attention_mask & (batch.attention_mask.long().cumsum(-1) > 1)


def _change(after: "Tensor", before: "Tensor", counted: "Tensor") -> "Tensor":
    import torch

    squared = (after.float() - before.float()).square().mean(-1)
    return torch.where(counted.to(squared.device), squared, 0.0).mean()


# ---- the method ---------------------------------------------------------------------------------


def _from_flags(size: int, materials: "Materials") -> list[Settings]:
    return [{"num_features": size} | _layers(materials) | paced(CRISP, materials)]


def _finished(point: Settings, materials: "Materials") -> Settings:
    rate = paced(CRISP, materials, rate=point["rate"])
    return {name: value for name, value in point.items() if name != "rate"} | _layers(materials) | rate


def _layers(materials: "Materials") -> Settings:
    layers = materials.setting(CRISPSettings).crisp_layers
    return {} if layers is None else {"layers": list(layers)}


def _sentences(materials: "Materials") -> tuple[str, ...]:
    """Those that are named.

    Raises:
        DataError: a file of them is missing or malformed.
    """
    from sae_forge.tasks.records import load, read_passage

    sources = materials.setting(CRISPSettings).crisp_sentences
    return tuple(one.text for one in load(sources, read_passage, main="text"))


def _missing(materials: "Materials") -> ForgeError | None:
    """What is wrong before anything is trained."""
    try:
        _sentences(materials)
    except DataError as error:
        return error
    return without_peft()


METHOD = retraining(
    CRISP,
    axes=lambda size, _: ({"num_features": parts(size, 2), "beta": [0.5, 0.99]}, Strength("rate", 1.0, 10.0)),
    from_flags=_from_flags,
    finished=_finished,
    needs=_missing,
    build=lambda settings, materials: CRISP(
        suppressed=(Suppressed(materials.point, materials.sae, latents_of(settings, materials), materials.sink_norm),),
        layers=tuple(settings["layers"]) if "layers" in settings else None,
        fixed=_sentences(materials),
        **{name: value for name, value in settings.items() if name not in ("num_features", "layers")},
    ),
    settings=CRISPSettings,
)
