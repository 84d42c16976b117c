"""Latents by what they do to answers: put forward by gradients, then tested one at a time (arXiv 2410.19278, app. F).

Of the questions a model is sure of (right in every order of the options), each puts forward the latents whose firing
on its words argues most for the right answer. A latent stays if, clamped alone, it turns an answer of a question that
put it forward, breaks few questions on what is kept, and costs little loss on other text; what stays is ordered by
that loss. Only questions of the dev half are asked, so reports on the test half stay clean.

Latents that cause an answer need not be latents that detect a topic: a gate should watch others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from sae_forge import files
from sae_forge.config import AttributionSign, FeaturesConfig, HeldOutConfig
from sae_forge.data.corpus import corpus_identity
from sae_forge.data.shards import ShardReader
from sae_forge.errors import DataError
from sae_forge.evals.gradients import Known, encode_known, iter_gradients
from sae_forge.evals.items import Domain, Role, half_of, load_questions
from sae_forge.evals.language_modeling import Corpus, load_corpus, sequence_losses
from sae_forge.evals.metrics import LETTERS
from sae_forge.evals.multiple_choice import answer
from sae_forge.evals.orders import ORDERS, ask_orders, orders_file, reordered
from sae_forge.evals.records import resolve
from sae_forge.features.select import Decode, choose, measure
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.apply import applied
from sae_forge.interventions.clamping import ClampFiring
from sae_forge.interventions.intervention import Intervention
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary

METHOD = "attribution"
PER_POSITION = 100
"""Latents a position puts forward at most."""
LOSS_SHARE = 0.05
"""Share of the latents left at the end that is dropped for the loss they add."""
QUESTIONS = 300
"""Questions of either side that are asked at most; of more, those whose names hash lowest."""
LOSS_TOKENS = 10_000
"""Tokens of each retain corpus that the loss is measured on."""
ROTATIONS = tuple((*ORDERS[0][turn:], *ORDERS[0][:turn]) for turn in range(len(LETTERS)))
"""The orders a latent is tested in: in the four of them every option stands behind every letter once."""


@dataclass(frozen=True, kw_only=True)
class Tested:
    """A latent that some question put forward."""

    latent: int
    attribution: float
    """The highest it had in any question, with the sign that was asked for; in logits, or nats under ``cloze``."""
    loss_added: float = 0.0
    """Nats per token of retain text that clamping it alone costs."""


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """The latents that passed every test, the cheapest in loss first."""

    latents: tuple[Tested, ...]
    removed: dict[str, int]
    """Latents that each test removed; with those that passed they sum to the SAE's."""
    settings: dict[str, Any]
    """What decided the result, JSON-ready, and how many questions it rests on."""

    @property
    def indices(self) -> tuple[int, ...]:
        """The latents, best first."""
        return tuple(found.latent for found in self.latents)


# ---- the verb -----------------------------------------------------------------------------------


def attribute(
    lm: LanguageModel,
    sae: Dictionary,
    point: HookPoint,
    config: FeaturesConfig,
    questions: Sequence[Domain],
    retain_questions: Sequence[Domain],
    retain_text: Sequence[Corpus],
    forget: ShardReader,
    retain: Mapping[str, ShardReader],
    decode: Decode | None = None,
    progress: Progress = SILENT,
    *,
    name: str,
    weights: str,
    folder: Path | None = None,
) -> Selection:
    """:func:`find`, then the statistics of what was found from the shards, as for every other method.

    Args:
        name: The SAE's folder relative to the run's ``saes``.
        weights: sha256 of its weights file.
        folder: Run folder, where the answers in all orders are kept.
    """
    found = find(lm, sae, point, config, questions, retain_questions, retain_text, progress, folder=folder)
    listed = taken(found, config)
    measured = measure(forget, retain, sae, listed, progress)
    chosen = choose(measured, forget, retain, sae, listed, decode, progress, name=name, weights=weights)
    return recorded(found, chosen["given"], config)


def taken(found: Attribution, config: FeaturesConfig) -> FeaturesConfig:
    """The settings under which ``features`` measures and chooses just these latents."""
    return replace(config, latents=found.indices[: max(config.num_features)])


def recorded(found: Attribution, given: Selection, config: FeaturesConfig) -> Selection:
    """The selection made from a list of latents, as what it is: attribution's, with its scores and settings."""
    scores = {tested.latent: tested.attribution for tested in found.latents}
    return replace(
        given,
        method=METHOD,
        settings={**{name: value for name, value in given.settings.items() if name != "latents"}, **found.settings},
        requested=max(config.num_features),
        candidates=len(found.latents),
        filtered=found.removed,
        latents=tuple(replace(latent, score=scores[latent.index]) for latent in given.latents),
    )


def find(
    lm: LanguageModel,
    sae: Dictionary,
    point: HookPoint,
    config: FeaturesConfig,
    questions: Sequence[Domain],
    retain_questions: Sequence[Domain],
    retain_text: Sequence[Corpus],
    progress: Progress = SILENT,
    *,
    folder: Path | None = None,
) -> Attribution:
    """The latents that pass every test, and how many each test removed.

    Raises:
        DataError: the model is sure of no question to forget or of none to keep, or no latent passes.
    """
    asked = {"forget": questions, "retain": retain_questions}
    sure = {role: _sure(lm, domains, config, folder, progress) for role, domains in asked.items()}
    for role, exam in sure.items():
        if not exam:
            total = sum(half_of(item.fact) == "dev" for domain in asked[role] for item in domain.questions)
            raise DataError(
                f"{lm.name} is right in every order of the options on none of the {total} {role} questions of the dev "
                f"half under --scoring {config.scoring}, so attribution has nothing to explain; "
                "give others with --forget_questions and --retain_questions, or another --scoring"
            )
    bench = _Bench(lm, sae, point, config)
    nominated = _put_forward(bench, sure["forget"], progress)
    left, removed = _tested(bench, nominated, sure, retain_text, progress)
    told = ", ".join(f"{name} removed {count}" for name, count in removed.items())
    if not left:
        raise DataError(
            f"no latent of {sae.d_sae} passes the tests of attribution ({told}); "
            "lower --attribution_clamp, or raise --attribution_candidates or --attribution_max_broken"
        )
    progress.say(f"attribution: {len(left)} latents pass ({told})")
    asked_of = {role: len(exam) for role, exam in sure.items()}
    return Attribution(latents=left, removed=removed, settings=_settings(config) | {"questions": asked_of})


# ---- what is asked ------------------------------------------------------------------------------


def load_asked(config: FeaturesConfig) -> tuple[tuple[Domain, ...], tuple[Domain, ...]]:
    """The questions on what is forgotten and on what is kept that the config names.

    Raises:
        DataError: it names none of either, or a file is missing or malformed.
    """
    if not config.forget_questions or not config.retain_questions:
        raise DataError(
            "--method attribution asks the model questions; name them with --forget_questions and --retain_questions"
        )
    return _domains(config.forget_questions, "forget"), _domains(config.retain_questions, "retain")


def load_retain_text(lm: LanguageModel, config: FeaturesConfig) -> tuple[Corpus, ...]:
    """The beginning of each retain corpus, for the loss that a latent adds."""
    shared = {name: getattr(config, name) for name in ("model", "text_field", "split", "ctx_len", "bos")}
    held = HeldOutConfig(**shared, loss_tokens=LOSS_TOKENS, eval_batch_size=config.model_batch_size)
    return tuple(load_corpus(lm, source, "retain", held) for source in config.retain)


def _domains(sources: Sequence[str], role: Role) -> tuple[Domain, ...]:
    paths = [resolve(source) for source in sources]
    return tuple(Domain(name=path.stem, role=role, questions=load_questions(path)) for path in paths)


def _settings(config: FeaturesConfig) -> dict[str, Any]:
    """All that decides the latents; question files count by their content."""
    sources = {name: getattr(config, name) for name in ("forget_questions", "retain_questions")}
    return {
        "attribution_sign": config.attribution_sign,
        "attribution_candidates": config.attribution_candidates,
        "attribution_clamp": config.attribution_clamp,
        "attribution_max_broken": config.attribution_max_broken,
        "scoring": config.scoring,
        "half": "dev",
        "at_most": QUESTIONS,
        "per_position": PER_POSITION,
        "loss_share": LOSS_SHARE,
        "loss_tokens": LOSS_TOKENS,
        "num_features": max(config.num_features),
        **{name: [corpus_identity(source) for source in named] for name, named in sources.items()},
    }


def _sure(
    lm: LanguageModel, domains: Sequence[Domain], config: FeaturesConfig, folder: Path | None, progress: Progress
) -> list[Known]:
    """The questions of the dev half that the model is sure of, at most :data:`QUESTIONS`."""
    found: list[Known] = []
    for domain in domains:
        dev = replace(domain, questions=tuple(item for item in domain.questions if half_of(item.fact) == "dev"))
        if dev.questions:
            path = None if folder is None else orders_file(folder, domain.name, config.scoring)
            size = config.model_batch_size
            orders = ask_orders(lm, dev, config.scoring, batch_size=size, path=path, progress=progress)
            progress.say(orders.summary())
            right = set(orders.ids("correct"))
            kept = [item for item in dev.questions if item.id in right]
            found += encode_known(lm, kept, config.scoring, domain.name)
    return sorted(found, key=lambda known: files.digest([known.domain, known.question.id]))[:QUESTIONS]


# ---- candidates --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Bench:
    """What every test runs on."""

    lm: LanguageModel
    sae: Dictionary
    point: HookPoint
    config: FeaturesConfig

    def clamped(self, latent: int):
        """The model with one latent clamped where it fires."""
        edit = Intervention(METHOD, (latent,), ClampFiring(self.config.attribution_clamp))
        return applied(self.lm, self.sae, self.point, edit)


@dataclass
class _Candidate:
    """A latent put forward, and by which questions."""

    attribution: float = 0.0
    asked: list[int] = field(default_factory=list)
    """Places in the list of questions."""


def _put_forward(bench: _Bench, exam: Sequence[Known], progress: Progress) -> dict[int, _Candidate]:
    """The latents that the questions put forward, in the order of their highest attribution."""
    found: dict[int, _Candidate] = {}
    config = bench.config
    with progress.task("attribution: gradients", len(exam), "questions") as task:
        number = {(known.domain, known.question.id): place for place, known in enumerate(exam)}
        size = config.model_batch_size
        for traced in iter_gradients(bench.lm, bench.point, exam, config.scoring, batch_size=size):
            task.advance(1)
            x, g = traced.x[traced.places], traced.gradient[traced.places]
            scores = attributions(bench.sae, x, g, config.attribution_sign)
            best, latents = scores.topk(min(config.attribution_candidates, len(scores)))
            for score, latent in zip(best.tolist(), latents.tolist(), strict=True):
                if score > 0:
                    candidate = found.setdefault(latent, _Candidate())
                    candidate.attribution = max(candidate.attribution, score)
                    candidate.asked.append(number[traced.known.domain, traced.known.question.id])
    return dict(sorted(found.items(), key=lambda item: (-item[1].attribution, item[0])))


def attributions(
    sae: Dictionary, x: Float[Tensor, "places d_in"], g: Float[Tensor, "places d_in"], sign: AttributionSign
) -> Float[Tensor, "d_sae"]:
    """For each latent the highest ``act * (direction . gradient)`` over the places that put it forward, else 0.

    A place puts forward its :data:`PER_POSITION` highest; under ``-`` the sign is turned first, under ``abs`` dropped.
    """
    weights = sae.W_dec.detach()
    acts = sae.encode(x.to(weights.device, weights.dtype))
    along = (g.to(weights.device, weights.dtype) @ weights.T).gather(-1, acts.indices)
    signed = {"+": acts.values * along, "-": -acts.values * along, "abs": (acts.values * along).abs()}[sign].detach()
    best, chosen = signed.topk(min(PER_POSITION, signed.shape[-1]), dim=-1)
    latents = acts.indices.gather(-1, chosen).flatten()
    return signed.new_zeros(sae.d_sae).scatter_reduce_(0, latents, best.flatten(), "amax").cpu()


# ---- tests of a latent --------------------------------------------------------------------------


def _tested(
    bench: _Bench,
    nominated: Mapping[int, _Candidate],
    exams: Mapping[str, Sequence[Known]],
    texts: Sequence[Corpus],
    progress: Progress,
) -> tuple[tuple[Tested, ...], dict[str, int]]:
    """The latents that pass every test, the cheapest in loss first, and how many each test removed."""
    found: list[Tested] = []
    idle = harmful = 0
    before, turned = _loss(bench.lm, texts), [_turned(bench, known) for known in exams["forget"]]
    with progress.task("attribution: tests", len(nominated), "latents") as task:
        for latent, candidate in nominated.items():
            with bench.clamped(latent):
                if not any(_broken(bench, turned[place]) for place in candidate.asked):
                    idle += 1
                elif _broken(bench, exams["retain"]) > bench.config.attribution_max_broken:
                    harmful += 1
                else:
                    added = _loss(bench.lm, texts) - before
                    found.append(Tested(latent=latent, attribution=candidate.attribution, loss_added=added))
            task.advance(1)
    found.sort(key=lambda tested: (tested.loss_added, tested.latent))
    kept = found[: len(found) - round(LOSS_SHARE * len(found))]
    return tuple(kept), {
        "not_put_forward": bench.sae.d_sae - len(nominated),
        "turns_no_answer": idle,
        "attribution_max_broken": harmful,
        "loss_added": len(found) - len(kept),
    }


def _turned(bench: _Bench, known: Known) -> list[Known]:
    """A question in the orders that a latent is tested in."""
    orders = ROTATIONS[:1] if bench.config.scoring == "cloze" else ROTATIONS
    questions = [reordered(known.question, order) for order in orders]
    return encode_known(bench.lm, questions, bench.config.scoring, known.domain)


def _broken(bench: _Bench, exam: Sequence[Known]) -> int:
    """Questions that the model as it stands gets wrong, in the order of options they are given in."""
    size = bench.config.model_batch_size
    questions, encoded = [known.question for known in exam], [known.encoded for known in exam]
    return sum(not found.correct for found in answer(bench.lm, questions, encoded, batch_size=size))


def _loss(lm: LanguageModel, texts: Sequence[Corpus]) -> float:
    """Nats per token of all texts together; 0 where there are none."""
    found = [sequence_losses(lm, corpus.batches) for corpus in texts]
    tokens = sum(sum(losses.tokens) for losses in found)
    return sum(sum(losses.nats) for losses in found) / tokens if tokens else 0.0
