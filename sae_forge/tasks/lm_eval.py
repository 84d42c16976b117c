"""Tasks of EleutherAI's lm-evaluation-harness, by the names it knows them by: ``--tasks wmdp_bio,mmlu_anatomy``.

Prompts, examples in front and measures are the harness's own; a model is asked by the scorer here, so that an edited,
a retrained and the given model answer alike. A group stands for its tasks, a domain each.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from sae_forge.config.fields import Setting
from sae_forge.config.model import ModelConfig
from sae_forge.config.questions import Half
from sae_forge.errors import ConfigError, DataError
from sae_forge.progress import Progress
from sae_forge.results.measure import Measure
from sae_forge.tasks.choice import Choice
from sae_forge.tasks.item import Item
from sae_forge.tasks.task import Asked, Done

if TYPE_CHECKING:
    from sae_forge.models.loading import LanguageModel
    from sae_forge.statistics.bootstrap import Bootstrap
    from sae_forge.statistics.estimate import Estimate

FORGOTTEN = "wmdp"
"""Tasks whose names hold this are on what is to be forgotten, unless ``--forget_tasks`` says which are."""

DATA_FOLDER = r"""(?m)(?:dataset_path|data_dir):\s*['"]?([^'"\s,}#]+)"""
"""Where a description says which folder its data are in."""
NUMBERS = r"\d+(?:-\d+)?(?:\+\d+(?:-\d+)?)*"


# ---- measures -----------------------------------------------------------------------------------


def _perplexity(name: str, items: Sequence[Item], bootstrap: "Bootstrap") -> "Estimate":
    kept = [item for item in items if name in item.values]
    sums, counts = [-item.values[name] for item in kept], [item.weights[name] for item in kept]  # pyright: ignore
    return bootstrap.ratio(sums, counts, [item.cluster for item in kept]).transformed(math.exp)


def _per(name: str) -> Measure:
    return Measure(
        name=name, words=name.replace("_", " "), better="down", needs=(name,),
        aggregate=lambda items, bootstrap: _perplexity(name, items, bootstrap),
    )  # fmt: skip


ACCURACY = Measure(
    name="accuracy", words="accuracy", better="up", needs=("correct",),
    read=lambda item: (item.values["correct"], 1.0),
)  # fmt: skip
KNOWN = {
    "acc": ACCURACY,
    "acc_norm": Measure(name="acc_norm", words="accuracy by log-prob a character", better="up", shown="in full"),
    "exact_match": Measure(name="exact_match", words="exact match", better="up"),
    "word_perplexity": _per("word_perplexity"),
    "byte_perplexity": _per("byte_perplexity"),
    "bits_per_byte": Measure(
        name="bits_per_byte", words="bits per byte", better="down",
        read=lambda item: (-item.values["bits_per_byte"] / math.log(2), item.weights["bits_per_byte"]),
    ),
}  # fmt: skip
"""What measures of the harness are called here, and how those that are no plain mean are summed up."""


def measure_of(name: str, *, higher_is_better: bool) -> Measure:
    """A measure of the harness by its name there."""
    words = name.replace("_", " ")
    return KNOWN.get(name) or Measure(name=name, words=words, better="up" if higher_is_better else "down")


# ---- the task -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Settings(ModelConfig):
    """How tasks of the harness are asked; ``--tasks`` names them."""

    heading: ClassVar[str] = "lm-eval"
    decides_when: ClassVar[str] = "chosen"

    forget_tasks: Annotated[
        tuple[str, ...],
        "lm-eval: those of --tasks that ask about what is forgotten; unset, those called wmdp.",
    ] = ()
    lm_eval_folder: Annotated[
        tuple[str, ...],
        "lm-eval: a folder of task descriptions (YAML) of your own.",
        Setting(names_items=True, most=1, wanted="give one folder"),
    ] = ()
    lm_eval_shots: Annotated[
        int | None, "lm-eval: answered examples in front; unset, as the task says.", Setting(at_least=0)
    ] = None
    lm_eval_chat: Annotated[bool, "lm-eval: ask in turns of the model's chat template."] = False
    lm_eval_code: Annotated[bool, "lm-eval: let the folder's descriptions run Python of their own."] = False


@dataclass(frozen=True, kw_only=True)
class LmEval:
    """One task or group of lm-eval; without a name, the door to them all."""

    name: str = "lm_eval"
    title: str = "lm-eval"
    group: str | None = None
    measures: tuple[Measure, ...] = (ACCURACY,)
    settings: type | None = Settings
    tuned_on: bool = True
    writes: bool = False
    meant: str = ""
    """What else the name may have been meant for."""
    numbers: tuple[int, ...] | None = None
    """Documents that are asked about, halves and limits aside; None: those of the half, as many as the limit."""

    def called(self, name: str, part: str, meant: str) -> Choice:
        """The task of this name, which may be none of the harness's: that shows when it is loaded.

        Args:
            part: Numbers of documents, ``0-19+31``; or one task of a group.

        Raises:
            ConfigError: the harness is not installed.
        """
        if find_spec("lm_eval") is None:
            needs = "no task here; those of lm-eval need pip install 'sae-forge[lm-eval]'"
            raise ConfigError(f"--tasks {name}: {needs}{meant}")
        own = replace(self, name=name, title=name, meant=meant)
        if re.fullmatch(NUMBERS, part):
            spans = [[int(end) for end in span.split("-")] for span in part.split("+")]
            numbers = sorted({n for span in spans for n in range(span[0], span[-1] + 1)})
            return Choice(task=replace(own, numbers=tuple(numbers)))
        return Choice(task=own, part=part)

    def reads(self, config: Any) -> tuple[str, ...]:
        """Data on this disk that the folder's descriptions name and that lie outside it: they decide a report too."""
        folders = [Path(name).resolve() for name in config.lm_eval_folder]
        descriptions = [path for folder in folders for path in folder.rglob("*.y*ml") if path.is_file()]
        data = set()
        for text in (path.read_text(encoding="utf-8", errors="replace") for path in descriptions):
            # YAML is not parsed here: any word that is a file is taken for data, a folder where data are named
            data |= {word for word in re.split(r"""[\s'"\[\]{},]+""", text) if _is_data(word)}
            data |= {place for place in re.findall(DATA_FOLDER, text) if _is_data(place, folder=True)}
        return tuple(sorted(n for n in data if not any(Path(n).resolve().is_relative_to(one) for one in folders)))

    def load(
        self, lm: "LanguageModel", config: Any, *, half: Half, limit: int | None, progress: Progress
    ) -> tuple[Asked, ...]:
        """Every task that the name stands for, laid out; halves and limits count documents by their numbers.

        Raises:
            ConfigError: there is no such task, or it runs code that nobody allowed.
            DataError: its data are not there.
        """
        if self.name == LmEval.name:
            return ()
        from sae_forge.tasks.engines.harness import documents, load_tasks, prepare
        from sae_forge.tasks.records import Passage

        folder = Path(config.lm_eval_folder[0]) if config.lm_eval_folder else None
        every = []
        for name, task in load_tasks(self.name, folder, code=config.lm_eval_code, meant=self.meant).items():
            forgotten = {self.name, name} & set(config.forget_tasks) if config.forget_tasks else FORGOTTEN in name
            numbers = self._numbers(name, documents(task), half, limit)
            prepared = prepare(lm, task, numbers, shots=config.lm_eval_shots, chat=config.lm_eval_chat)
            measures = tuple(
                measure_of(key, higher_is_better=better) for key, better in prepared.higher_is_better.items()
            )
            written = task.OUTPUT_TYPE == "generate_until"
            every.append(
                Asked.of(
                    replace(self, measures=measures, writes=written, tuned_on=not written),
                    [Passage(id=number, fact=number, text="") for number, _ in prepared.docs],
                    domain=name,
                    role="forget" if forgotten else "retain",
                    kind="document",
                    measures=measures,
                    protocol={"lm_eval": {name: _described(task, chat=config.lm_eval_chat)}},
                    content=(prepared, config.lm_eval_chat),
                )
            )
        return tuple(every)

    def _numbers(self, name: str, count: int, half: Half, limit: int | None) -> list[int]:
        from sae_forge.tasks.records import Passage, choose

        if self.numbers is not None:
            if self.numbers and self.numbers[-1] < count:
                return list(self.numbers)
            raise DataError(f"--tasks {self.name}: {name} holds documents 0 to {count - 1}, not {self.numbers[-1]}")
        if not count:
            raise DataError(f"{name} holds no documents")
        numbered = [Passage(id=f"{name}/{number}", fact=f"{name}/{number}", text="") for number in range(count)]
        return [int(one.id.rpartition("/")[2]) for one in choose(numbered, half, limit, name)]

    def ask(self, lm: "LanguageModel", asked: Asked, *, batch_size: int, done: Done | None) -> list[Item]:
        """For each document what the harness measures of the model's answer."""
        from sae_forge.tasks.engines.harness import judged

        prepared, chat = asked.content
        rows = judged(lm, prepared, chat=chat, batch_size=batch_size, done=done)
        items = []
        for number, (row, chance) in enumerate(zip(rows, prepared.chances, strict=True)):
            values, weights = {} if chance is None else {"chance": chance}, {}
            for name, value in row.items():
                if isinstance(value, tuple) and len(value) == 2:  # a sum, and what it counts over
                    values[name], weights[name] = float(value[0]), float(value[1])
                elif isinstance(value, int | float):
                    values["correct" if name == "acc" else name] = float(value)
            items.append(asked.answered(number, values, weights))
        return items


def _is_data(place: str, *, folder: bool = False) -> bool:
    """Whether there is a file or folder of this name, or a glob; seen from the working folder, as the harness does."""
    from sae_forge.data.texts.sources import named

    try:
        if folder or "*" not in place:
            return Path(place).is_dir() if folder else Path(place).is_file()
        return bool(named(place).files)
    except DataError:  # a glob of nothing
        return False
    except (OSError, ValueError):  # too long a name, or a null character
        return False


def _described(task: Any, *, chat: bool) -> dict[str, Any]:
    """What one must know to ask the same elsewhere."""
    version = getattr(task, "VERSION", None)
    return {"version": version, "num_fewshot": task.config.num_fewshot or 0, "chat": chat, "type": task.OUTPUT_TYPE}
