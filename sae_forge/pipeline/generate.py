"""``generate``: prompts continued by the model as it is and under edits, and what a conversation stands on."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.config.fields import described
from sae_forge.config.generate import GenerateConfig, WritingConfig
from sae_forge.errors import ConfigError, DataError
from sae_forge.features.selection import Selection
from sae_forge.interventions.edit import read_ahead
from sae_forge.live.conversation import Conversation
from sae_forge.live.session import Session, Token
from sae_forge.live.subjects import BASELINE, Subjects
from sae_forge.methods.materials import Materials
from sae_forge.methods.subjects import AsItIs, Subject, in_force
from sae_forge.models.chat import Rendered, prompt_ids, render
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import room_after
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.collected import shards_of
from sae_forge.progress import SILENT, Progress
from sae_forge.results.report import Report, load_report
from sae_forge.results.sheets import Sheet
from sae_forge.settings import parse_value
from sae_forge.store import files
from sae_forge.study.run import REPORT_FILE
from sae_forge.study.settings import catalogue_of, eval_config
from sae_forge.tasks.engines.generation import Sampling, Written
from sae_forge.tasks.records import iter_records, text_field

AT_ONCE = 8
"""Prompts that go through the model together."""
MARKED = 8
"""Edited tokens that a table names; the JSON names all."""

Watch = Callable[[str, str, Token], None]
"""Is told the prompt, under what it is continued, and each token when it is read or written."""


@dataclass(frozen=True)
class Opened:
    """What is written with: the subjects of a run, those asked for, and the file that names their latents."""

    subjects: Subjects
    chosen: dict[str, Subject]
    """By title, without the baseline."""
    selection: Path

    def conversation(self, config: WritingConfig, progress: Progress = SILENT, *, compare: bool) -> Conversation:
        """One held under these edits; through the chat template where the model has one."""
        chat = config.chat or bool(self.subjects.materials.lm.tokenizer.chat_template)
        return Conversation(
            self.subjects,
            sampling_of(config),
            chat,
            progress,
            self.chosen,
            compare=compare,
            latents=self.subjects.materials.selection.indices[: max(config.num_features)],
            factor=config.ablation_scale[0],
        )


def opened(config: WritingConfig, bench: Bench, *, any_method: bool = False) -> Opened:
    """The model, the SAE, the selection and the methods that the config names; a report's settings where one is there.

    Args:
        any_method: Other methods may be asked for later, so the report is looked for in any case.

    Raises:
        ConfigError: a method is unknown.
        DataError: there is no selection, or a method lacks what it is made from.
    """
    named = bench.sae(config.sae, partly=True)
    bench.require_same_model(named)
    bench.progress.say(bench.lm.opening.sentence())
    folder, measured = None, None
    if (config.methods or any_method) and config.selection is None:
        with nullcontext() if config.methods else suppress(DataError):  # where no method was named, none must be there
            folder, measured = bench.evaluated(named.folder)
    path = measured or bench.selection(config.selection, named.folder)
    selection = Selection.load(path, weights=named.weights)
    settings = _measured_under(config, folder)
    shards = shards_of(selection, bench.run, named.point)
    materials = Materials(bench.lm, named.sae, named.point, selection, settings, shards)
    report: Report | None = None if folder is None else load_report(folder / REPORT_FILE)
    subjects = Subjects(materials, report, catalogue_of(config).methods)
    if config.methods:
        chosen = subjects.named(config.methods)
    else:
        if max(config.num_features) > len(selection.indices):
            bench.progress.say(
                f"{max(config.num_features)} latents were asked for and {len(selection.indices)} are selected"
            )
        chosen = {
            title: subject
            for count in config.num_features
            for factor in config.ablation_scale
            for title, subject in subjects.scaled(selection.indices[:count], factor).items()
        }
    read_ahead(named.sae, [edit for subject in chosen.values() for edit in subject.edits])
    return Opened(subjects, {title: one for title, one in chosen.items() if title != BASELINE}, path)


def _measured_under(config: WritingConfig, folder: Path | None) -> Any:
    """The settings of the report, gate and units among them, but for what was spelled out here; else the defaults."""
    kind = eval_config(catalogue_of(config))
    known = described(kind)
    own = {name: getattr(config, name) for name in described(WritingConfig) if name in known and name != "methods"}
    if folder is None:
        return kind(**own)
    record = files.read_json(folder / "config.json", kind=DataError, what="the settings of a report")
    record.pop("methods", None)  # those of a plug-in may not be known here
    measured = {name: parse_value(kind, name, value) for name, value in record.items() if name in known}
    return kind(**{**own, **measured, **{name: own[name] for name in own.keys() & config.spelled}})


def generate(config: GenerateConfig, bench: Bench, prompts: Sequence[str], watch: Watch | None = None) -> Outcome:
    """What the model writes after each prompt: as it is, then under each edit, drawn with the same numbers.

    Raises:
        ConfigError: there is no prompt.
        DataError: a prompt leaves no room to write after it.
    """
    config = bench.settle(config)
    said = [*prompts, *_of_files(config, bench)]
    if not said:
        raise ConfigError("there is no prompt; give one or more, - to read lines, --prompts FILE, or --interactive")
    sampling = sampling_of(config)
    under = opened(config, bench)
    subjects = {**({BASELINE: AsItIs()} if config.compare else {}), **under.chosen}
    read = [_read(bench.lm, prompt, chat=config.chat) for prompt in said]
    rooms = _rooms(bench, read, sampling)
    written: list[dict[str, dict[str, Any]]] = [{} for _ in said]
    at_once = AT_ONCE if watch is None else 1  # who watches reads one text at a time
    for title, subject in subjects.items():
        with in_force(bench.lm, subject, bench.progress) as (lm, log):
            for start in range(0, len(said), at_once):
                tokens: list[list[Token]] = [[] for _ in said[start : start + at_once]]
                for token in Session(lm, log).stream(read[start : start + at_once], sampling, first=start):
                    tokens[token.text].append(token)
                    if watch is not None:
                        watch(said[start + token.text], title, token)
                for place, of_one in enumerate(tokens, start):
                    written[place][title] = _told(said[place], of_one)
    each = [
        {"prompt": prompt, "prompt_tokens": len(prompt_ids(bench.lm, ids)), "max_new_tokens": room, "texts": texts}
        for prompt, ids, room, texts in zip(said, read, rooms, written, strict=True)
    ]
    return Outcome(
        run=bench.run,
        outputs={"selection": under.selection},
        metrics=each[0] if len(each) == 1 else {"prompts": each},
        summary="removing the hook restores the baseline: an edit lives in the forward pass, not in the weights",
        then=bench.next("report"),
        tables=() if watch is not None else tuple(map(_sheet, each)),
    )


def sampling_of(config: WritingConfig) -> Sampling:
    """How the config has text drawn."""
    return Sampling(
        max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p, seed=config.seed
    )


def marks(token: Token) -> str:
    """The latents that fired on a token an edit changed, strongest first: ``12, 55``; empty on any other."""
    if not token.edited:
        return ""
    return ", ".join(str(one.latent) for one in sorted(token.fired, key=lambda one: (-one.act, one.latent)))


def _of_files(config: GenerateConfig, bench: Bench) -> list[str]:
    records = (each for source in config.prompts for each in iter_records(source, "prompt", bench.progress))
    return [text_field(record, "prompt", where) for where, record in records]


def _read(lm: LanguageModel, prompt: str, *, chat: bool) -> str | Rendered:
    if not chat:
        return prompt
    if not lm.tokenizer.chat_template:
        raise ConfigError(f"--chat: the tokenizer of {lm.name} has no chat template; leave the flag out")
    return render(lm, [{"role": "user", "content": prompt}], to_go_on=True)


def _rooms(bench: Bench, read: Sequence[str | Rendered], sampling: Sampling) -> list[int]:
    """How many tokens are written at most after each; said where that is fewer than asked for."""
    rooms = []
    for prompt in read:
        ids = prompt_ids(bench.lm, prompt)
        rooms.append(room := room_after(bench.lm, ids, sampling.max_new_tokens))
        if room < sampling.max_new_tokens:
            bench.progress.say(
                f"the prompt is {len(ids)} of the {len(ids) + room} tokens that {bench.lm.name} takes, so {room} are "
                f"written at most, not {sampling.max_new_tokens}"
            )
    return rooms


def _told(prompt: str, tokens: Sequence[Token]) -> dict[str, Any]:
    """One continuation, JSON-ready: its text, the repetition in it, and the tokens that were edited, with latents."""
    written = [token for token in tokens if token.written]
    text = "".join(token.piece for token in written)
    edited = [
        {"token": place, "text": token.piece, "latents": {str(one.latent): one.act for one in token.fired}}
        for place, token in enumerate(written)
        if token.edited
    ]
    measures = Written(prompt, text, len(written)).measures()
    return {"text": text, **measures, "tokens": len(written), "edited_tokens": len(edited), "edited": edited}


def _sheet(of: dict[str, Any]) -> Sheet:
    """The continuations of one prompt under each other, and on which tokens the edit fired, with its latents."""
    rows = []
    for title, one in of["texts"].items():
        edited = [f"{each['text'].strip()} ({', '.join(each['latents'])})" for each in one["edited"]]
        more = [f"and {len(edited) - MARKED} more"] if len(edited) > MARKED else []
        rows.append((title, one["text"], "; ".join([*edited[:MARKED], *more])))
    return Sheet(of["prompt"], ("edit", "continuation", "edited tokens (latents)"), tuple(rows))
