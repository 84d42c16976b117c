"""The measures of TOFU (arXiv 2401.06121) as open-unlearning computes them: made-up authors, answered or no longer.

Four sides: what is forgotten, and three that are kept, ever further away. The paper's text averages the wrong answers'
probabilities; the released code averages their log-probs, and its numbers are the published ones, so the paper's form
stands under a name of its own. Nothing is tuned on these, so they are not split into halves.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError, DataError
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.statistics.truth import (
    TINY,
    harmonic_mean,
    not_told_apart,
    told_apart,
    truth_ratio,
    truth_ratio_of_means,
)
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked, Done

if TYPE_CHECKING:
    from sae_forge.models.chat import Rendered
    from sae_forge.models.loading import LanguageModel
    from sae_forge.statistics.bootstrap import Bootstrap
    from sae_forge.statistics.estimate import Estimate
    from sae_forge.tasks.engines.continuations import Encoded, Score
    from sae_forge.tasks.records import Record

KEPT = ("retain", "real_authors", "world_facts")
SIDES = ("forget", *KEPT)
REFERENCE = "reference"
"""Where the truth ratios of a model that never saw the forget text stand among the items."""
NEVER_SEEN = "forget_truth_ratio"
"""Key of those truth ratios in open-unlearning's ``TOFU_EVAL.json``."""
NEW_TOKENS = 200
FRAME = "Question: {question}\nAnswer:"


# ---- measures -----------------------------------------------------------------------------------


def quality(items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    """Forget quality: p of the Kolmogorov-Smirnov test that truth ratios are those of a model that never saw the text.

    High is good, as no difference is found; few items find none either. The interval resamples the facts of both
    sides, each apart: ties among resampled values pull it down, so it may lie below the value.
    """
    import numpy as np

    from sae_forge.statistics.bootstrap import interval
    from sae_forge.statistics.ranking import kolmogorov_smirnov

    now, never = (
        np.array([item.values["truth_ratio"] for item in items if item.domain == side], dtype=float)
        for side in ("forget", REFERENCE)
    )
    drawn = bootstrap.draws(len(now)), replace(bootstrap, seed=bootstrap.seed + 1).draws(len(never))
    few = min(len(drawn[0]), QUALITY_RESAMPLES)
    # a draw says how often each fact was taken, so values are repeated and not indexed
    resampled = [
        kolmogorov_smirnov(now.repeat(ours.astype(int)), never.repeat(theirs.astype(int))).p_value
        for ours, theirs in zip(drawn[0][:few], drawn[1][:few], strict=True)
    ]
    return interval(kolmogorov_smirnov(now, never).p_value, np.array(resampled))


QUALITY_RESAMPLES = 200
"""Of them the test is run on; at TOFU's 400 questions an exact one takes a millisecond."""


def utility(items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    """Model utility: harmonic mean of probability, ROUGE-L recall and truth ratio on the three sides that are kept."""
    import numpy as np

    from sae_forge.statistics.bootstrap import interval

    means, replicates = [], []
    for number, side in enumerate(KEPT):
        apart = replace(bootstrap, seed=bootstrap.seed + number)
        for name in _utility_parts(side):
            kept = [(item.cluster, item.values[name]) for item in items if name in item.values]
            mean, drawn = apart.replicates([v for _, v in kept], np.ones(len(kept)), [c for c, _ in kept])  # pyright: ignore
            means.append(mean)
            replicates.append(drawn)
    every = [harmonic_mean(values) for values in zip(*replicates, strict=True)]
    return interval(harmonic_mean(means), np.array(every))


def _utility_parts(side: str) -> tuple[str, str, str]:
    return f"{side}_probability", f"{side}_rouge", f"{side}_truth_ratio"


QUALITY = Measure(
    name="forget_quality", words="forget quality", digits=3, aggregate=quality, needs=("truth_ratio",),
    note="p of the test that it answers like a model that never saw the forget text: 1 is no difference found",
)  # fmt: skip
UTILITY = Measure(
    name="model_utility", words="model utility", better="up", aggregate=utility,
    needs=tuple(part for side in KEPT for part in _utility_parts(side)),
)  # fmt: skip
PAPER = Measure(
    name="forget_truth_ratio_paper", words="forget truth ratio in the paper's form", shown="in the file",
    note="arithmetic mean of the wrong answers' probabilities",
)  # fmt: skip


def _of_side(side: str) -> tuple[Measure, ...]:
    better: Literal["up", "neither"] = "neither" if side == "forget" else "up"
    shown: Literal["always", "in full"] = "always" if side in SIDES[:2] else "in full"
    called = side.replace("_", " ")
    both = partial(Measure, better=better, shown=shown)
    return (
        both(name=f"{side}_probability", words=f"probability of {called} answers"),
        both(name=f"{side}_rouge", words=f"ROUGE-L recall of {called} answers"),
        both(name=f"{side}_truth_ratio", words=f"truth ratio of {called} answers"),
    )


OF_SIDE = {side: _of_side(side) for side in SIDES}


# ---- the task -----------------------------------------------------------------------------------

ITEMS = Setting(names_items=True)


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """Files of each side, in TOFU's schema."""

    heading: ClassVar[str] = "TOFU"
    decides_when: ClassVar[str] = "named"

    tofu_forget: Annotated[
        tuple[str, ...],
        "TOFU: files of {question, answer, paraphrased_answer, perturbed_answer} records on what is forgotten.",
        ITEMS,
    ] = ()
    tofu_retain: Annotated[tuple[str, ...], "TOFU: the same on what is kept.", ITEMS] = ()
    tofu_real_authors: Annotated[
        tuple[str, ...], "TOFU: files of {question, answer, perturbed_answer} records on real authors.", ITEMS
    ] = ()
    tofu_world_facts: Annotated[tuple[str, ...], "TOFU: the same on facts of the world.", ITEMS] = ()
    tofu_reference: Annotated[
        tuple[str, ...],
        "TOFU: truth ratios of a model that never saw the forget text, for forget quality: TOFU_EVAL.json of "
        "open-unlearning, or items.parquet of an eval of such a model.",
        Setting(names_items=True, most=1, wanted="give one file"),
    ] = ()
    tofu_frame: Annotated[
        Literal["question", "chat"],
        "TOFU: how a question is put: after 'Question:', or in a turn of the model's chat template.",
    ] = "question"

    tofu_summaries: Annotated[
        tuple[str, ...],
        "TOFU, MUSE: TOFU_SUMMARY.json or MUSE_SUMMARY.json of open-unlearning, to lay beside the rows here.",
        Setting(names_items=True, younger=True),
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tofu_reference and not self.tofu_forget:
            raise ConfigError("--tofu_reference is compared with answers on what is forgotten; give --tofu_forget too")


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question, its answer, and wrong answers beside it."""

    id: str
    fact: str
    question: str
    answer: str
    right: str
    """What the wrong ones are compared with: a paraphrase of the answer, or itself."""
    wrong: tuple[str, ...]


Sides = Mapping[str, Sequence[Answered]]


@dataclass(frozen=True, kw_only=True)
class Tofu:
    """Probability, ROUGE-L recall and truth ratio on each side that is named, and what they come to."""

    name: str = "tofu"
    title: str = "TOFU"
    group: str | None = "tofu"
    measures: tuple[Measure, ...] = (QUALITY, UTILITY, *(each for side in OF_SIDE.values() for each in side), PAPER)
    settings: type | None = Settings
    tuned_on: bool = False
    writes: bool = True

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """What the config names, at most ``limit`` questions a side; one part is read, and one is written.

        Raises:
            ConfigError: the frame is a chat and the model has no template, or NLTK is missing.
            DataError: a file is missing or malformed.
        """
        sides = {side: items for side in SIDES if (items := _read(side, getattr(config, f"tofu_{side}"), limit))}
        if not sides:
            return ()
        stem = stemmer()
        never = _reference(Path(config.tofu_reference[0])) if config.tofu_reference else ()
        encoded = {side: [_encoded(lm, item, config.tofu_frame) for item in items] for side, items in sides.items()}
        summed = (UTILITY,) if all(side in sides for side in KEPT) else ()
        of_forget = (PAPER, *((QUALITY,) if never else ())) if "forget" in sides else ()
        said = {
            "items": {side: len(items) for side, items in sides.items()},
            "ids": {side: [item.id for item in items] for side, items in sides.items()},
            "frame": config.tofu_frame,
            "family": "open-unlearning",
            "max_new_tokens": NEW_TOKENS,
            "reference": len(never),
        }
        prompts = [_prompt(lm, item.question, config.tofu_frame) for items in sides.values() for item in items]
        each = [(side, item) for side, items in sides.items() for item in items]
        both = partial(Asked.of, self, [item for _, item in each], protocol={str(self.group): said})
        read = tuple(m for side in sides for m in OF_SIDE[side] if not m.name.endswith("_rouge"))
        written = tuple(m for side in sides for m in OF_SIDE[side] if m.name.endswith("_rouge"))
        cut = sum(one.truncated for rows in encoded.values() for one in rows)
        return (
            both(
                kind="answers", reads=True, truncated=cut, measures=(*read, *of_forget, *summed),
                content=(sides, encoded, never),
            ),
            both(kind="texts", measures=(*written, *summed), content=(each, prompts, stem)),
        )  # fmt: skip

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """For each question how likely its answers are, or what the model writes."""
        if asked.kind == "texts":
            return self._written(lm, asked, batch_size, done)
        from sae_forge.tasks.engines.continuations import score

        _, encoded, never = asked.content
        # forget quality is summed up from items alone, so the ratios it is compared with are items too
        references = [
            Item(
                task=self.name, domain=REFERENCE, role="", id=str(number), fact=str(number), values={"truth_ratio": one}
            )
            for number, one in enumerate(never)
        ]
        items = []
        for side, rows in encoded.items():
            for got in score(lm, rows, batch_size=batch_size, done=done):
                values, weights = _values(side, got), {"tokens": got[0].tokens}
                items.append(asked.answered(len(items), values, weights, domain=side, role=_role(side)))
        return [*references, *items]

    def _written(self, lm: "LanguageModel", asked: Asked, batch_size: int, done: Done | None) -> list[Item]:
        from sae_forge.tasks.engines.generation import Sampling, write
        from sae_forge.tasks.engines.texts import rouge_l_recall

        each, prompts, stem = asked.content
        greedy = Sampling(max_new_tokens=NEW_TOKENS, temperature=0)
        items = []
        for (side, item), got in zip(each, write(lm, prompts, greedy, batch_size=batch_size, done=done), strict=True):
            values = {f"{side}_rouge": rouge_l_recall(got.text, item.answer, stem)}
            place = {"domain": side, "role": _role(side)}
            items.append(asked.answered(len(items), values, {"tokens": got.tokens}, text=got.text, **place))
        return items


def _role(side: str) -> str:
    return "forget" if side == "forget" else "retain"


def _values(side: str, scores: "Sequence[Score]") -> dict[str, float]:
    """From the scores of the answer, of the right one and of the wrong ones, in this order."""
    answer, right, *wrong = (-score.mean for score in scores)
    ratio, probability = truth_ratio(right, wrong), math.exp(-answer)
    if side not in SIDES[:2]:  # plain answers among wrong ones, so the probability is that among them
        probability /= probability + sum(math.exp(-loss) for loss in wrong) + TINY
    of_means = truth_ratio_of_means(right, wrong)
    return {
        f"{side}_probability": probability,
        f"{side}_truth_ratio": not_told_apart(ratio) if side == "forget" else told_apart(ratio),
        "truth_ratio": ratio,
        "truth_ratio_of_means": of_means,
        **({PAPER.name: not_told_apart(of_means)} if side == "forget" else {}),
    }


# ---- loading ------------------------------------------------------------------------------------


def _read(side: str, sources: Sequence[str], limit: int | None) -> tuple[Answered, ...]:
    from sae_forge.tasks.records import choose, load

    read = partial(_read_answered, paraphrased=side in SIDES[:2])
    return choose(load(sources, read, main="question"), "all", limit, f"tofu_{side}")


def _read_answered(record: "Record", where: str, *, paraphrased: bool) -> Answered:
    from sae_forge.tasks.records import record_names, text_field

    question, answer = text_field(record, "question", where), text_field(record, "answer", where)
    right = text_field(record, "paraphrased_answer", where) if paraphrased else answer
    wrong = record.get("perturbed_answer")
    if not isinstance(wrong, list) or not wrong:
        raise DataError(f"{where} needs 'perturbed_answer' as a list of texts, found {wrong!r:.40}")
    texts = tuple(text_field({"perturbed_answer": text}, "perturbed_answer", where) for text in wrong)
    name, fact = record_names(record, where, [question, answer, right, *texts])
    return Answered(id=name, fact=fact, question=question, answer=answer, right=right, wrong=texts)


def _reference(path: Path) -> tuple[float, ...]:
    """Truth ratios on the forget side, from open-unlearning's log or from the items of a report."""
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            wanted = [("task", "==", "tofu"), ("domain", "==", "forget"), ("method", "==", "baseline")]
            column = pyarrow.parquet.read_table(path, columns=["truth_ratio"], filters=wanted)["truth_ratio"]
            ratios = [value for value in column.to_pylist() if value is not None]
        else:
            rows = json.loads(path.read_text())[NEVER_SEEN]["value_by_index"]
            ratios = [row["score"] for row in rows.values()]
    except OSError as error:
        raise DataError(f"--tofu_reference {path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wanted_keys = f"{NEVER_SEEN}.value_by_index.N.score, or items.parquet of an eval with --tofu_forget"
        raise DataError(f"--tofu_reference {path} holds no truth ratios: give {wanted_keys}") from error
    if not ratios or not all(isinstance(ratio, int | float) and math.isfinite(ratio) for ratio in ratios):
        raise DataError(f"--tofu_reference {path} holds {len(ratios)} truth ratios, and all must be finite numbers")
    return tuple(map(float, ratios))


def _prompt(lm: "LanguageModel", question: str, frame: str) -> "str | Rendered":
    from sae_forge.tasks.engines.chat import turn

    return turn(lm, question) if frame == "chat" else FRAME.format(question=question)


def _encoded(lm: "LanguageModel", item: Answered, frame: str) -> "Encoded":
    """Its answers after its question; each ends in EOS, which is one of its tokens (as in TOFU's training data)."""
    from sae_forge.tasks.engines.chat import encode_answers
    from sae_forge.tasks.engines.continuations import encode, end_ids

    answers = (item.answer, item.right, *item.wrong)
    if frame == "chat":
        return encode_answers(lm, item.question, answers)
    (encoded,) = encode(lm, [(FRAME.format(question=item.question), answers)], end=end_ids(lm))
    return encoded


def stemmer() -> Callable[[str], str]:
    """Porter's, with NLTK's extensions, as rouge_score has it.

    Raises:
        ConfigError: NLTK is not installed.
    """
    from sae_forge.tasks.engines.texts import porter

    if (stem := porter()) is None:
        raise ConfigError("TOFU compares stems of words, with NLTK; pip install 'sae-forge[tofu]'")
    return stem
