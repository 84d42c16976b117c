"""Latents that answers hang on: put forward by the gradient of the answer, then clamped one at a time."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from sae_forge.config.features import AttributionSign, FeaturesConfig
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import EditLog, applied
from sae_forge.interventions.clamping import ClampFiring
from sae_forge.interventions.intervention import Intervention
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tape import Tape
from sae_forge.progress import Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.study.gradients import Known, encode_known, iter_gradients
from sae_forge.tasks.engines.losses import Corpus, sequence_losses
from sae_forge.tasks.engines.multiple_choice import answer
from sae_forge.tasks.engines.orders import reordered, rotations

PER_POSITION = 100
"""Latents a position puts forward at most."""
LOSS_SHARE = 0.05
"""Share of the latents left at the end that is dropped for the loss they add."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A latent that some question put forward."""

    latent: int
    attribution: float
    """The highest it had in any question, with the sign that was asked for; in logits, or nats under ``cloze``."""
    loss_added: float = 0.0
    """Nats per token of retain text that clamping it alone costs."""


# ---- candidates --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """What every test runs on."""

    lm: LanguageModel
    sae: Dictionary
    point: HookPoint
    config: FeaturesConfig

    def clamped(self, latent: int) -> AbstractContextManager[EditLog]:
        """The model with one latent clamped where it fires."""
        edit = Intervention("attribution", (latent,), ClampFiring(self.config.attribution_clamp))
        return applied(self.lm, self.sae, self.point, edit)


@dataclass
class Candidate:
    """A latent put forward, and by which questions."""

    attribution: float = 0.0
    asked: list[int] = field(default_factory=list)
    """Places in the list of questions."""


def put_forward(trial: Trial, exam: Sequence[Known], progress: Progress) -> dict[int, Candidate]:
    """The latents that the questions put forward, in the order of their highest attribution."""
    found: dict[int, Candidate] = {}
    config = trial.config
    with progress.task("attribution: gradients", len(exam), "questions") as task:
        number = {(known.domain, known.question.id): place for place, known in enumerate(exam)}
        size = config.model_batch_size
        for traced in iter_gradients(trial.lm, trial.point, exam, config.scoring, batch_size=size):
            task.advance(1)
            x, g = traced.x[traced.places], traced.gradient[traced.places]
            scores = attributions(trial.sae, x, g, config.attribution_sign)
            best, latents = scores.topk(min(config.attribution_candidates, len(scores)))
            for score, latent in zip(best.tolist(), latents.tolist(), strict=True):
                if score > 0:
                    candidate = found.setdefault(latent, Candidate())
                    candidate.attribution = max(candidate.attribution, score)
                    candidate.asked.append(number[traced.known.domain, traced.known.question.id])
    return dict(sorted(found.items(), key=lambda item: (-item[1].attribution, item[0])))


@torch.no_grad()
def attributions(
    sae: Dictionary, x: Float[Tensor, "places d_in"], g: Float[Tensor, "places d_in"], sign: AttributionSign
) -> Float[Tensor, "d_sae"]:
    """For each latent the highest ``act * (direction . gradient)`` over the places that put it forward, else 0.

    A place puts forward its :data:`PER_POSITION` highest; under ``-`` the sign is turned first, under ``abs`` dropped.
    """
    weights = sae.W_dec.detach()
    acts = sae.encode(x.to(weights.device, weights.dtype))
    indices = acts.indices.long()
    caused = acts.values * (g.to(weights.device, weights.dtype) @ weights.T).gather(-1, indices)
    signed = {"+": caused, "-": -caused, "abs": caused.abs()}[sign]
    best, chosen = signed.topk(min(PER_POSITION, signed.shape[-1]), dim=-1)
    latents = indices.gather(-1, chosen).flatten()
    return signed.new_zeros(sae.d_sae).scatter_reduce_(0, latents, best.flatten(), "amax").cpu()


# ---- tests of a latent --------------------------------------------------------------------------


def try_each(
    trial: Trial,
    nominated: Mapping[int, Candidate],
    exams: Mapping[str, Sequence[Known]],
    texts: Sequence[Corpus],
    progress: Progress,
) -> tuple[tuple[Tested, ...], dict[str, int]]:
    """The latents that pass every test, the cheapest in loss first, and how many each test removed."""
    found: list[Tested] = []
    idle = harmful = 0
    turned = [_turned(trial, known) for known in exams["forget"]]
    answers, losses = Tape(trial.lm, trial.point), Tape(trial.lm, trial.point)  # layers below the edit run once
    with losses.running():
        before = _loss(trial.lm, texts)
    with progress.task("attribution: tests", len(nominated), "latents") as task:
        for latent, candidate in nominated.items():
            with trial.clamped(latent):
                if not any(_broken(trial, turned[place]) for place in candidate.asked):
                    idle += 1
                elif _broken(trial, exams["retain"], answers) > trial.config.attribution_max_broken:
                    harmful += 1
                else:
                    with losses.running():
                        added = _loss(trial.lm, texts) - before
                    found.append(Tested(latent=latent, attribution=candidate.attribution, loss_added=added))
            task.advance(1)
    found.sort(key=lambda tested: (tested.loss_added, tested.latent))
    kept = found[: len(found) - round(LOSS_SHARE * len(found))]
    return tuple(kept), {
        "not_put_forward": trial.sae.d_sae - len(nominated),
        "turns_no_answer": idle,
        "attribution_max_broken": harmful,
        "loss_added": len(found) - len(kept),
    }


def _turned(trial: Trial, known: Known) -> list[Known]:
    """A question in the orders that a latent is tested in: every option stands behind every letter once."""
    turns = rotations(len(known.question.choices))
    orders = turns[:1] if trial.config.scoring == "cloze" else turns
    questions = [reordered(known.question, order) for order in orders]
    return encode_known(trial.lm, questions, trial.config.scoring, known.domain)


def _broken(trial: Trial, exam: Sequence[Known], tape: Tape | None = None) -> int:
    """Questions that the model as it stands gets wrong, in the order of options they are given in."""
    size = trial.config.model_batch_size
    questions, encoded = [known.question for known in exam], [known.encoded for known in exam]
    with nullcontext() if tape is None else tape.running():
        answers = answer(trial.lm, questions, encoded, batch_size=size)
    return sum(not found.correct for found in answers)


def _loss(lm: LanguageModel, texts: Sequence[Corpus]) -> float:
    """Nats per token of all texts together; 0 where there are none."""
    found = [sequence_losses(lm, corpus.batches) for corpus in texts]
    tokens = sum(sum(losses.tokens) for losses in found)
    return sum(sum(losses.nats) for losses in found) / tokens if tokens else 0.0
