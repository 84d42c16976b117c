"""How well a model predicts text that the SAE has not seen: loss in nats per token, and perplexity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_forge.config.questions import Half
from sae_forge.config.text import HeldOutConfig
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked, Done, Standing

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel
    from sae_forge.statistics.bootstrap import Bootstrap
    from sae_forge.statistics.estimate import Estimate


STRETCH = 128
"""Tokens whose loss is one item, by which texts are resampled: a short text is one or two sequences of a long context,
and an interval over so few says nothing."""


def _perplexity(items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    # exp of the mean over all tokens, and not the mean of each text's perplexity
    nats, tokens = zip(*(_loss(item) for item in items), strict=True)
    return bootstrap.ratio(nats, tokens, [item.cluster for item in items]).transformed(math.exp)


def _loss(item: Item) -> tuple[float, float]:
    return -item.values["logprob"], item.weights["tokens"]  # pyright: ignore[reportOperatorIssue, reportReturnType]


MEASURES = (
    Measure(name="loss", words="loss", unit="nats per token", better="down", digits=3, read=_loss),
    Measure(
        name="perplexity", words="perplexity", better="down", heading="perplexity", aggregate=_perplexity, derived=True
    ),
)
STANDING = Standing(headings=("loss", "perplexity"), protocol=lambda _: {"loss_tokens": {}})


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out text, sequence by sequence so that sequences can be resampled."""

    name: str = "held_out"
    title: str = "Loss on held-out text"
    group: str | None = "loss"
    measures: tuple[Measure, ...] = MEASURES
    settings: type | None = HeldOutConfig
    tuned_on: bool = False
    writes: bool = False
    standing: Standing = STANDING

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """The beginning of each text; neither halves nor limits cut it, but ``loss_tokens``.

        Raises:
            DataError: a source is missing, holds nothing to predict, or is called as another.
        """
        from sae_forge.data.texts.sources import told_apart
        from sae_forge.tasks.engines.losses import load_corpus

        texts = {"forget": config.forget_eval, "retain": config.retain_eval}
        corpora = [
            load_corpus(lm, source, role, config, name)
            for role, sources in texts.items()
            for source, name in zip(sources, told_apart(sources), strict=True)
        ]
        for remark in (remark for corpus in corpora for remark in corpus.remarks):
            progress.say(remark)
        return tuple(
            Asked(
                task=self,
                domain=corpus.name,
                role=corpus.role,
                kind="sequence",
                units=corpus.rows,
                counted=corpus.role,
                protocol={"loss_tokens": {corpus.key: corpus.predicted}},
                content=corpus.batches,
            )
            for corpus in corpora
        )

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """The log-prob of each stretch of a sequence, summed over its real tokens."""
        from sae_forge.tasks.engines.losses import sequence_losses

        losses = sequence_losses(lm, asked.content, stretch=STRETCH, done=done)
        return [
            asked.answered(number, {"logprob": -nats}, {"tokens": tokens})
            for number, (nats, tokens) in enumerate(zip(losses.nats, losses.tokens, strict=True))
        ]
