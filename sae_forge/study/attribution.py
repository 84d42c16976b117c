"""Latents by what they do to answers: put forward by gradients, then tested one at a time (arXiv 2410.19278, app. F).

Of the questions a model is sure of (right in every order of the options), each puts forward the latents whose firing
on its words argues most for the right answer. A latent stays if, clamped alone, it turns an answer of a question that
put it forward, breaks few questions on what is kept, and costs little loss on other text; what stays is ordered by
that loss. Only questions of the dev half are asked, so reports on the test half stay clean.

Latents that cause an answer need not be latents that detect a topic: a gate should watch others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_forge.config.features import FeaturesConfig
from sae_forge.config.text import HeldOutConfig
from sae_forge.data.corpus import corpus_identity
from sae_forge.data.shards import ShardReader
from sae_forge.errors import DataError
from sae_forge.features.select import Decode, choose, measure
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.models.loading import LanguageModel
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.dictionary import Dictionary
from sae_forge.store import files
from sae_forge.study.causes import LOSS_SHARE, PER_POSITION, Tested, Trial, put_forward, try_each
from sae_forge.study.gradients import Known, encode_known
from sae_forge.tasks.engines.losses import Corpus, load_corpus
from sae_forge.tasks.engines.orders import ask_orders, orders_file
from sae_forge.tasks.item import Role
from sae_forge.tasks.records import Domain, domain_name, half_of, load_questions

METHOD = "attribution"
QUESTIONS = 300
"""Questions of either side that are asked at most; of more, those whose names hash lowest."""
LOSS_TOKENS = 10_000
"""Tokens of each retain corpus that the loss is measured on."""


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
    trial = Trial(lm, sae, point, config)
    nominated = put_forward(trial, sure["forget"], progress)
    left, removed = try_each(trial, nominated, sure, retain_text, progress)
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
    return tuple(Domain(name=domain_name(source), role=role, questions=load_questions(source)) for source in sources)


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
            orders = ask_orders(
                lm, dev, config.scoring, batch_size=size, path=path, fresh=config.starts_over, progress=progress
            )
            progress.say(orders.summary())
            right = set(orders.ids("correct"))
            kept = [item for item in dev.questions if item.id in right]
            found += encode_known(lm, kept, config.scoring, domain.name)
    return sorted(found, key=lambda known: files.digest([known.domain, known.question.id]))[:QUESTIONS]
