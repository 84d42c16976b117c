"""Answers judged by another model: what it writes to prompts, put into one of a rubric's categories.

Without a rubric the categories are those of INLP_PROJECT: does the text bring facts of a topic that its prompt does not
hold, or only the topic's air, or a word of it by chance, or nothing? The words of the prompt are our own. Each text is
judged twice, the categories once in reverse, so that what hangs on their order is seen; whether a verdict can be told
from the length of a text alone is a number of the report too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError
from sae_forge.progress import Progress
from sae_forge.results.measure import PART, Measure
from sae_forge.tasks.item import Item
from sae_forge.tasks.rubric import INLP, Rubric, read_rubric
from sae_forge.tasks.task import Asked, Done
from sae_forge.tasks.wrapped import PLAIN, Wording

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel
    from sae_forge.statistics.bootstrap import Bootstrap
    from sae_forge.statistics.estimate import Estimate
    from sae_forge.tasks.engines import judges
    from sae_forge.tasks.records import Prompt, Record

FOLDER = "judged"
"""Of a run: the replies of its judges."""


# ---- measures -----------------------------------------------------------------------------------


def _length(items: Sequence[Item], bootstrap: "Bootstrap", number: int) -> "Estimate":
    from sae_forge.statistics.ranking import auroc_estimate

    first, others = (
        [float(item.values[side]) for item in items if side in item.values]  # pyright: ignore[reportArgumentType]
        for side in (f"words_of_first{_of(number)}", f"words_of_others{_of(number)}")
    )
    return auroc_estimate(first, others, bootstrap)


def _kappa(items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    from sae_forge.statistics.agreement import cohen_kappa

    both = [item for item in items if "both_judged" in item.values]
    one, other = (
        [int(item.values[f"verdict{_of(number)}"]) for item in both]  # pyright: ignore[reportArgumentType]
        for number in range(2)
    )
    return cohen_kappa(one, other, [item.cluster for item in both], bootstrap)


def _of(number: int) -> str:
    """How the values of a judge end: the first one's in nothing."""
    return f"_{number + 1}" if number else ""


def measures_of(rubric: Rubric, names: Sequence[str], words: int | None) -> tuple[Measure, ...]:
    """What is measured with these judges; the measures of the first come first.

    Raises:
        ConfigError: a category goes by a name that something else has here.
    """
    every: list[Measure] = []
    for number, name in enumerate(names):
        end, by = _of(number), f" by {name}" if len(names) > 1 else ""
        share = partial(Measure, unit="share", digits=2, shown="in full")
        every += [
            Measure(
                name=one.key + end, words=f"judged {one.name}{by}", unit=PART, yes_or_no=True,
                shown="in full" if number else "always",
            )
            for one in rubric.categories
        ]  # fmt: skip
        if rubric.categories[0].score is not None:
            every.append(Measure(name=f"judged_score{end}", words=f"score of {rubric.name}{by}", better="up"))
        if words is not None:
            every += [
                share(name=f"{one.key}_cut{end}", words=f"judged {one.name} by the first {words} words{by}")
                for one in rubric.categories
            ]
        first = rubric.categories[0].name
        every += [
            share(name=f"unreadable{end}", words=f"replies that name no category{by}", shown="always"),
            share(name=f"not_judged{end}", words=f"answers without a reply{by}", shown="always"),
            share(name=f"order_changes{end}", words=f"verdicts that hang on the categories' order{by}"),
            Measure(
                name=f"length_tells{end}", words=f"telling {first} by the answer's length alone{by}", chance=0.5,
                shown="in full", aggregate=partial(_length, number=number),
                needs=(f"words_of_first{end}", f"words_of_others{end}"), note="0.5 is no telling",
            ),
        ]  # fmt: skip
    every.append(Measure(name="words", words="words an answer has", digits=1, shown="in full"))
    if len(names) > 1:
        kappa = Measure(
            name="kappa", words="agreement of the judges beyond chance", note="Cohen's kappa", aggregate=_kappa,
            needs=("both_judged",),
        )  # fmt: skip
        every.append(kappa)
    if doubled := [name for name, times in Counter(one.name for one in every).items() if times > 1]:
        raise ConfigError(f"the rubric {rubric.name} gives two measures the name {doubled[0]}; rename the category")
    return tuple(every)


# ---- the task -----------------------------------------------------------------------------------

ITEMS = Setting(names_items=True, younger=True)


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """Who judges what, by which rubric."""

    heading: ClassVar[str] = "Judge"
    decides_when: ClassVar[str] = "named"

    judge: Annotated[
        tuple[str, ...],
        "Judge: a language model, or https://HOST/v1#MODEL (OpenAI's chat completions); two: with their agreement.",
        Setting(names_items=True, younger=True, most=2, distinct=False, wanted="give one judge or two"),
    ] = ()
    judge_prompts: Annotated[
        tuple[str, ...], "Judge: files of {prompt} or {question} records, whose answers are judged.", ITEMS
    ] = ()
    judge_rubric: Annotated[
        tuple[str, ...],
        "Judge: TOML or JSON file with categories of your own. Unset: INLP's Explicit, Thematic, Accidental, None.",
        Setting(names_items=True, younger=True, most=1, wanted="give one file"),
    ] = ()
    judge_topic: Annotated[str | None, "Judge: what is forgotten, in the rubric's words: 'Harry Potter'."] = None
    judge_words: Annotated[
        int | None,
        "Judge: the first N words of each answer that has so many as well, so that lengths are alike.",
        Setting(at_least=1, wanted="give at least 1 word"),
    ] = None
    judge_tokens: Annotated[int, "Judge: tokens of a reply at most.", Setting(at_least=1, wanted="give 1 or more")] = 64
    judge_key_variable: Annotated[
        str, "Judge: environment variable with the key of an address.", Setting(decides=())
    ] = "OPENAI_API_KEY"
    judge_at_once: Annotated[
        int, "Judge: prompts that an address is sent at a time.", Setting(decides=(), at_least=1, at_most=64)
    ] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.judge) != bool(self.judge_prompts):
            missing = "judge_prompts" if self.judge else "judge"
            raise ConfigError(f"a judge judges answers to prompts; give --{missing} too")
        if self.judge_rubric and not self.judge:
            raise ConfigError("--judge_rubric is for a judge; give --judge and --judge_prompts too")
        if len(set(self.judge)) < len(self.judge):
            raise ConfigError(f"--judge {self.judge[0]} twice agrees with itself; give another")


@dataclass(frozen=True)
class Judged:
    """What is judged, by whom."""

    prompts: tuple[str, ...]
    """As the model is given them."""
    shown: tuple[str, ...]
    """As the judge is shown them."""
    sampling: Any
    judges: "tuple[judges.Asked, ...]"
    rubric: Rubric
    topic: str
    words: int | None
    progress: Progress


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Sampled answers of every row, random controls among them, in the categories of a rubric."""

    name: str = "judge"
    title: str = "Judged answers"
    group: str | None = "judge"
    measures: tuple[Measure, ...] = measures_of(INLP, ("",), None)
    settings: type | None = Settings
    tuned_on: bool = False
    writes: bool = True
    wording: Wording = PLAIN

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """The prompts of each file, with the judges, none of which is loaded or asked yet.

        Raises:
            ConfigError: a judge or the rubric is none.
            DataError: a file is missing or malformed.
        """
        from sae_forge.tasks.engines import judges
        from sae_forge.tasks.engines.generation import Sampling, shortened
        from sae_forge.tasks.records import choose, load, sources_by_domain

        if not config.judge_prompts:
            return ()
        rubric = read_rubric(Path(config.judge_rubric[0])) if config.judge_rubric else INLP
        topic = config.judge_topic or ""
        if not topic and "{topic}" in rubric.instruction:
            raise ConfigError("the rubric asks about a topic; say which with --judge_topic")
        how = {
            "tokens": config.judge_tokens, "key_variable": config.judge_key_variable, "at_once": config.judge_at_once,
            "batch_size": config.eval_batch_size, "device": config.model_device,
        }  # fmt: skip
        folder = config.run_folder / FOLDER
        asked_of = tuple(judges.Asked(judges.judge_of(name, **how), folder) for name in config.judge)
        names = ("max_new_tokens", "temperature", "top_p", "seed")
        sampling = Sampling(**{name: getattr(config, name) for name in names})
        own: Any = replace(self, measures=measures_of(rubric, config.judge, config.judge_words))
        every = []
        for name, source in sources_by_domain(config.judge_prompts).items():
            prompts = choose(load([source], _read, progress), "all", limit, name)
            shown = tuple(self.wording.said(one.prompt) for one in prompts)
            said = tuple(self.wording.around(text) for text in shown)
            told = {
                "judges": list(config.judge), "rubric": rubric.name, "topic": topic, "orders": 2,
                "categories": [one.name for one in rubric.categories], "words": config.judge_words, **vars(sampling),
            }  # fmt: skip
            every.append(
                Asked.of(
                    own, prompts, domain=name, kind="answer", shortened=shortened(lm, said, sampling.max_new_tokens),
                    counted=str(self.group), measures=own.measures, of_controls=True,
                    protocol={str(self.group): told, f"{self.group}_prompts": {name: len(prompts)}},
                    content=Judged(said, shown, sampling, asked_of, rubric, topic, config.judge_words, progress),
                )
            )  # fmt: skip
        return tuple(every)

    def rehearsed(self, asked: Asked) -> Asked:
        """What the model writes alone: a judge may be paid for, and what it says is kept."""
        return replace(asked, content=replace(asked.content, judges=()))

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """What the model writes, and what each judge makes of it.

        Raises:
            RemoteError: a judge refuses to be asked at all.
        """
        from sae_forge.tasks.engines.generation import write

        told: Judged = asked.content
        written = write(lm, told.prompts, told.sampling, batch_size=batch_size, done=done)
        values = [{"words": float(len(got.text.split()))} for got in written]
        for number, judge in enumerate(told.judges):
            verdicts = _verdicts(told, judge, [got.text for got in written])
            for known, its in zip(values, verdicts, strict=True):
                known |= _values(told.rubric, its, known["words"], _of(number))
        for known in values:
            if {"verdict", "verdict_2"} <= set(known):
                known["both_judged"] = 1.0
        return [
            asked.answered(number, known, {"tokens": got.tokens}, text=got.text)
            for number, (known, got) in enumerate(zip(values, written, strict=True))
        ]


@dataclass(frozen=True)
class Verdicts:
    """What one judge made of one answer: of each prompt that was sent the reply, read and as it was."""

    whole: tuple[int | None, ...]
    """By order of the categories: as they are, and in reverse."""
    replied: tuple[bool, ...]
    cut: int | None = None


def _verdicts(told: Judged, judge: "judges.Asked", texts: Sequence[str]) -> list[Verdicts]:
    """All of a row in one go, so that many prompts are under way at a time."""
    backwards = (False, True)
    pairs = list(zip(told.shown, texts, strict=True))
    whole = [told.rubric.prompt(*pair, told.topic, backwards=order) for pair in pairs for order in backwards]
    begun = {n: text.split()[: told.words] for n, text in enumerate(texts) if told.words is not None}
    long = {n: words for n, words in begun.items() if len(words) == told.words}
    cut = [told.rubric.prompt(told.shown[n], " ".join(w), told.topic, backwards=False) for n, w in long.items()]
    replies = judge.replies([*whole, *cut], told.progress)
    read = [None if reply is None else told.rubric.verdict(reply) for reply in replies]
    of_cut = dict(zip(long, read[len(whole) :], strict=True))
    return [
        Verdicts(tuple(read[2 * n : 2 * n + 2]), tuple(one is not None for one in replies[2 * n : 2 * n + 2]),
                 of_cut.get(n))
        for n in range(len(texts))
    ]  # fmt: skip


def _values(rubric: Rubric, verdicts: Verdicts, words: float, end: str) -> dict[str, float]:
    """The values of one item: a category has the share of the orders in which it was chosen."""
    read = [one for one in verdicts.whole if one is not None]
    replied = sum(verdicts.replied)
    values = {f"not_judged{end}": 1 - replied / len(verdicts.whole)}
    if replied:
        values[f"unreadable{end}"] = 1 - len(read) / replied
    if not read:
        return values
    for number, one in enumerate(rubric.categories):
        values[one.key + end] = read.count(number) / len(read)
        if verdicts.cut is not None:
            values[f"{one.key}_cut{end}"] = float(verdicts.cut == number)
    scores = [rubric.categories[number].score for number in read]
    if scores[0] is not None:
        values[f"judged_score{end}"] = sum(score or 0.0 for score in scores) / len(scores)
    if len(read) == len(verdicts.whole):
        values[f"order_changes{end}"] = float(len(set(read)) > 1)
    if verdicts.whole[0] is not None:
        values[f"verdict{end}"] = verdicts.whole[0]
        side = "others" if verdicts.whole[0] else "first"
        values[f"words_of_{side}{end}"] = words
    return values


def _read(record: "Record", where: str) -> "Prompt":
    """A record ``{prompt}`` or ``{question}``, or one whose ``prompt`` holds the text beside other things."""
    from sae_forge.tasks.records import Prompt, record_names, text_field

    inner = record["prompt"] if isinstance(record.get("prompt"), dict) else record
    text = text_field(inner, "question" if "question" in inner and "prompt" not in inner else "prompt", where)
    name, fact = record_names(record, where, [text])
    return Prompt(id=name, fact=fact, prompt=text, target="")
