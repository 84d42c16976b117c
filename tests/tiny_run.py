"""A run folder small enough to evaluate everything on: shards, an SAE of random weights, a selection, questions."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from cli.app import build
from sae_forge.data.shards import ShardReader
from sae_forge.features.selection import Selection
from sae_forge.hookpoint import HookPoint
from sae_forge.interventions.edit import Edit
from sae_forge.methods.materials import Materials, Shards
from sae_forge.methods.method import Method, Settings, Wrapper
from sae_forge.methods.subjects import Edited
from sae_forge.methods.table import METHODS
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.progress import SILENT, Progress
from sae_forge.sae.named import NamedSAE, load_dictionary
from sae_forge.sae.store import Provenance, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.store.runs import Run
from sae_forge.study.run import EvalReport, evaluate
from sae_forge.study.settings import eval_config
from sae_forge.tasks.engines.multiple_choice import answer, encode_questions
from sae_forge.tasks.records import Question

EvalConfig = eval_config()

POINT = HookPoint(1)
LATENTS = 24
FORGET = [f"The wizard of the north tower keeps a silver owl and {n} books of weather." for n in range(60)]
RETAIN = {
    "stones": [f"Granite is a rock of quartz, feldspar and mica; {n} of it cools slowly." for n in range(40)],
    "rivers": [f"The river Arn runs past {n} towns: Bel, Corvo, Dun, Esk, Fal, Gorm!" for n in range(40)],
}
REFUSAL = [f"I cannot help with that, question {n}." for n in range(40)]
CHOICES = ("a silver owl", "a book of weather", "granite", "the river Arn")
SMALL: dict[str, Any] = {
    "num_features": (LATENTS,), "scoring": "cloze", "ctx_len": 24, "limit": 6, "bootstrap": 100, "configurations": 12,
    "baseline_steps": 2, "baseline_batch": 20, "max_new_tokens": 4, "eval_batch_size": 64,
}  # fmt: skip
"""Settings under which a whole sweep takes seconds."""
NAMED = {method.name: method for method in METHODS if isinstance(method, Method)}


def made(name: str, settings: Settings, materials: Materials) -> Edit:
    """The one edit that a method is at these settings."""
    subject = NAMED[name].build(settings, materials)
    assert isinstance(subject, Edited)
    (edit,) = subject.edits
    return edit


def forge(*args: str, code: int = 0) -> str:
    """What a command prints, after checking its exit code; an error must be one line without a traceback."""
    result = CliRunner().invoke(build(only=args[0]), list(args))
    assert result.exit_code == code, f"exit {result.exit_code}: {result.output}{result.exception!r}"
    if code:
        assert result.output.count("error: ") == 1, result.output
        assert "Traceback" not in result.output
    return result.stdout if code == 0 else result.output


@dataclass(frozen=True)
class TinyRun:
    """What is in the run folder, loaded."""

    folder: Path
    model: Path
    lm: LanguageModel
    named: NamedSAE
    selection: Selection
    shards: Shards
    questions: dict[str, tuple[str, ...]]
    """Question files of the three roles, by the setting that takes them."""
    texts: Path
    """Folder of the texts that were collected: one jsonl each."""

    @property
    def sae(self) -> TopKSAE:
        assert isinstance(self.named.sae, TopKSAE)
        return self.named.sae

    @property
    def where(self) -> list[str]:
        """Flags that name the model and the folder."""
        return ["--model", str(self.model), "--run_dir", str(self.folder)]

    @property
    def asked(self) -> list[str]:
        """Flags of ``SMALL`` and of the questions."""
        settings = {**SMALL, **self.questions}
        return [f"--{name}={_flag(value)}" for name, value in settings.items()]

    def materials(self, selection: Selection | None = None, *, bare: bool = False, **settings: Any) -> Materials:
        """What methods are made from; ``bare``: without shards."""
        config = eval_config()(**{**SMALL, **settings})
        chosen, shards = selection or self.selection, None if bare else self.shards
        return Materials(self.lm, self.sae, POINT, chosen, config, shards)

    def evaluate(
        self,
        selection: Selection | None = None,
        *,
        progress: Progress = SILENT,
        also: Sequence[Edit] = (),
        rivals: Sequence[Selection] = (),
        folder: Path | None = None,
        table: Sequence[Method | Wrapper] | None = None,
        **settings: Any,
    ) -> EvalReport:
        """A report on the questions."""
        config = eval_config()(**{**SMALL, **self.questions, **settings})
        chosen = selection or self.selection
        return evaluate(
            self.lm, self.sae, chosen, config, POINT, progress,
            collected=self.shards, also=also, rivals=rivals, folder=folder, table=table,
        )  # fmt: skip


def make_run(folder: Path, model: Path) -> None:
    """A run of the saved model: every artefact made by the commands, but for the SAE, whose weights are random."""
    run, retain = Run(folder / "run"), [_texts(folder / f"{name}.jsonl", texts) for name, texts in RETAIN.items()]
    where = ["--model", str(model), "--run_dir", str(run.folder), "--layer", str(POINT.layer)]
    corpora = ["--forget", _texts(folder / "wizards.jsonl", FORGET), "--retain", ",".join(retain)]
    forge("collect", *where, *corpora, "--ctx_len", "24", "--storage_dtype", "fp32")
    lm = load_model(str(model), device="cpu")
    place = run.folder / "saes" / str(POINT) / "k6-d280-s4"
    provenance = Provenance(model=model.name, hook_point=str(POINT), weights=lm.fingerprint()["weights"])
    save_sae(place, TopKSAE(lm.d_model, 280, 6, seed=4), provenance)
    (place / "report.json").write_text('{"steps": 0, "tokens": 0, "fvu": 1.0, "l0": 0.0, "dead_share": 0.0}')
    chosen = ["--num_features", str(LATENTS), "--snippets", "0", "--min_target_fires", "1", "--max_freq", "1"]
    chosen += ["--max_neutral_freq", "0.03", "--min_ratio", "1"]
    refusal = ["--refusal", _texts(folder / "refusals.jsonl", REFUSAL)]
    forge("features", *where, *chosen, *refusal)
    _write_questions(folder / "questions", lm)


def open_run(made: Path, folder: Path, model: Path) -> TinyRun:
    """A copy of the run that was made, loaded; its texts and questions stay where they are."""
    run = Run(Path(shutil.copytree(made / "run", folder / "run")))
    lm = load_model(str(model), device="cpu")
    (place,), (selection,) = run.folder.glob("saes/*/*"), run.folder.glob("features/*/*/*.json")
    named = load_dictionary(place, run, model=model.name, asked=POINT, device="cpu", progress=SILENT)
    readers = [ShardReader(found) for found in sorted(run.folder.glob(f"shards/*/{POINT}"))]
    by_role = {role: [one for one in readers if one.fingerprint.role == role] for role in ("forget", "retain")}
    shards = Shards(by_role["forget"][0], {one.fingerprint.corpus: one for one in by_role["retain"]})
    questions = {f"{role}_questions": (str(made / f"questions/{topic}.jsonl"),) for role, topic in TOPICS.items()}
    return TinyRun(run.folder, model, lm, named, Selection.load(selection), shards, questions, texts=made)


def _texts(path: Path, texts: Sequence[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


TOPICS = {"forget": "wizards", "neighbour": "owls", "retain": "stones"}
"""Of what the questions of each role ask."""


def _write_questions(folder: Path, lm: LanguageModel) -> None:
    """Questions of which the model as it is gets three in four right: their answers are its own."""
    folder.mkdir()
    for topic in TOPICS.values():
        asked = tuple(
            Question(id=f"{topic}{n}", fact=f"{topic} {n}", question=f"Of {topic} {n} it", choices=CHOICES, answer=0)
            for n in range(24)
        )
        got = answer(lm, asked, encode_questions(lm, asked, "cloze", topic), batch_size=64, done=lambda *_, **__: None)
        records = [
            vars(one) | {"answer": (said.chosen + (number % 4 == 0)) % 4}
            for number, (one, said) in enumerate(zip(asked, got, strict=True))
        ]
        (folder / f"{topic}.jsonl").write_text("\n".join(map(json.dumps, records)))


def _flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
