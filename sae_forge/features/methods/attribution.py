"""``attribution``: latents by what they do to answers, found by gradients, tested one at a time (arXiv 2410.19278).

Of the questions a model is sure of, each puts forward the latents whose firing on its words argues most for the right
answer. A latent stays if, clamped alone, it turns an answer of a question that put it forward, breaks few questions on
what is kept, and costs little loss on other text; what stays is ordered by that loss. The model is asked through what
the method is handed: a latent is all that it knows.

Latents that cause an answer need not be latents that detect a topic: a gate should watch others.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sae_forge.config.fields import Artefact, Setting, described
from sae_forge.config.model import ModelConfig
from sae_forge.errors import DataError
from sae_forge.features.methods.method import Ask, Found, SelectionMethod
from sae_forge.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from sae_forge.sae.dictionary import Dictionary

Sign = Literal["+", "-", "abs"]

PER_POSITION = 100
"""Latents a position puts forward at most."""
LOSS_SHARE = 0.05
"""Share of the latents left at the end that is dropped for the loss they add."""


@dataclass(frozen=True, kw_only=True)
class AttributionSettings(ModelConfig):
    """Which latents are put forward, and what they must pass."""

    heading: ClassVar[str] = "Selection of latents"
    decides: ClassVar[tuple[Artefact, ...]] = ("attribution",)

    attribution_sign: Annotated[
        Sign, "attribution: +: latents that argue for the right answer. -: against it. abs: either."
    ] = "+"
    attribution_candidates: Annotated[
        int,
        "attribution: latents each question puts forward.",
        Setting(at_least=1, wanted="give at least 1 latent"),
    ] = 20
    attribution_clamp: Annotated[
        float,
        "attribution: value a latent is set to where it fires, to test it alone.",
        Setting(at_most=0, finite=True, wanted="give a finite value of 0 or less"),
    ] = -20.0
    attribution_max_broken: Annotated[
        int,
        "attribution: retain questions that a latent may break.",
        Setting(at_least=0, wanted="give 0 or more"),
    ] = 3


@dataclass
class Candidate:
    """A latent put forward, and by which questions."""

    attribution: float = 0.0
    """The highest it had in any question, with the sign that was asked for; in logits, or nats under ``cloze``."""
    asked: list[int] = field(default_factory=list)
    """Numbers of the questions."""


def find(ask: Ask, sae: "Dictionary", config: Any, progress: Progress) -> Found:
    """The latents that pass every test, and how many each test removed.

    Raises:
        DataError: no latent passes.
    """
    nominated = put_forward(ask, sae, config, progress)
    passed, removed = try_each(ask, nominated, sae.d_sae, config, progress)
    told = ", ".join(f"{name} removed {count}" for name, count in removed.items())
    if not passed:
        raise DataError(
            f"no latent of {sae.d_sae} passes the tests of attribution ({told}); "
            "lower --attribution_clamp, or raise --attribution_candidates or --attribution_max_broken"
        )
    progress.say(f"attribution: {len(passed)} latents pass ({told})")
    flags = set(described(AttributionSettings)) - set(described(ModelConfig))
    own = {name: getattr(config, name) for name in sorted(flags)}
    decided = {"per_position": PER_POSITION, "loss_share": LOSS_SHARE, "num_features": max(config.num_features)}
    scores = {latent: nominated[latent].attribution for latent in passed}
    return Found(scores=scores, removed=removed, settings=own | decided | ask.settings)


def put_forward(ask: Ask, sae: "Dictionary", config: Any, progress: Progress) -> dict[int, Candidate]:
    """The latents that the questions put forward, in the order of their highest attribution."""
    candidates: dict[int, Candidate] = {}
    with progress.task("attribution: gradients", ask.questions, "questions") as task:
        for number, x, g in ask.gradients():
            task.advance(1)
            scores = attributions(sae, x, g, config.attribution_sign)
            best, latents = scores.topk(min(config.attribution_candidates, len(scores)))
            for score, latent in zip(best.tolist(), latents.tolist(), strict=True):
                if score > 0:
                    candidate = candidates.setdefault(latent, Candidate())
                    candidate.attribution = max(candidate.attribution, score)
                    candidate.asked.append(number)
    return dict(sorted(candidates.items(), key=lambda item: (-item[1].attribution, item[0])))


def attributions(sae: "Dictionary", x: "Tensor", g: "Tensor", sign: Sign) -> "Tensor":
    """For each latent ``[d_sae]`` the highest ``act * (direction . gradient)`` over the places that put it forward.

    A place puts forward its :data:`PER_POSITION` highest; under ``-`` the sign is turned first, under ``abs`` dropped.
    A latent that no place puts forward has 0.

    Args:
        x: Activations ``[places, d_in]``.
        g: The gradient there.
    """
    import torch

    with torch.no_grad():
        weights = sae.W_dec.detach()
        acts = sae.encode(x.to(weights.device, weights.dtype))
        indices = acts.indices.long()
        # act * (w . grad): what the answer would lose, to first order, if the latent were silent
        caused = acts.values * (g.to(weights.device, weights.dtype) @ weights.T).gather(-1, indices)
        signed = {"+": caused, "-": -caused, "abs": caused.abs()}[sign]
        best, chosen = signed.topk(min(PER_POSITION, signed.shape[-1]), dim=-1)
        latents = indices.gather(-1, chosen).flatten()
        return signed.new_zeros(sae.d_sae).scatter_reduce_(0, latents, best.flatten(), "amax").cpu()


def try_each(
    ask: Ask, nominated: dict[int, Candidate], d_sae: int, config: Any, progress: Progress
) -> tuple[list[int], dict[str, int]]:
    """The latents that pass every test, the cheapest in loss first, and how many each test removed."""
    costs: list[tuple[float, int]] = []
    idle = harmful = 0
    before = ask.loss()
    with progress.task("attribution: tests", len(nominated), "latents") as task:
        for latent, candidate in nominated.items():
            with ask.clamped(latent, config.attribution_clamp):
                if not any(ask.turned(number) for number in candidate.asked):
                    idle += 1
                elif ask.broken() > config.attribution_max_broken:
                    harmful += 1
                else:
                    costs.append((ask.loss() - before, latent))
            task.advance(1)
    kept = sorted(costs)[: len(costs) - round(LOSS_SHARE * len(costs))]
    return [latent for _, latent in kept], {
        "not_put_forward": d_sae - len(nominated),
        "turns_no_answer": idle,
        "attribution_max_broken": harmful,
        "loss_added": len(costs) - len(kept),
    }


ATTRIBUTION = SelectionMethod(
    name="attribution",
    words="argue most for right answers, turn them and little else",
    find=find,
    settings=AttributionSettings,
    rival=False,
    in_all=False,  # it asks a model
)
