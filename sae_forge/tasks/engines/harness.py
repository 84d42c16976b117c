"""Tasks of EleutherAI's lm-evaluation-harness, whose requests the scorer here answers.

The harness finds a task, lays out its prompts and judges the answers; a model is asked through ``continuations`` and
``generation``, so that an edit's gate never sees padding as text and the options of a question share its context. Its
caches are not used: they know neither the model nor what is attached to it.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from lm_eval import tasks as shipped
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from sae_forge.errors import ConfigError, DataError
from sae_forge.models.chat import TEMPLATE_RAISES
from sae_forge.models.loading import LanguageModel
from sae_forge.models.tokens import bos_ids, max_input, text_ids
from sae_forge.tasks.engines.continuations import Done, Encoded, fitted, report, score
from sae_forge.tasks.engines.generation import Sampling, write
from sae_forge.tasks.engines.passes import forward, pad

FEWSHOT_SEED = 1234
"""The harness's own: which examples stand in front of a question."""
MAX_NEW_TOKENS = 256
"""Of a task that does not say; the harness's own."""
CODE = "!function"
"""How a description of the harness names Python that it runs."""
logging.getLogger("lm_eval").setLevel(logging.ERROR)


# ---- finding tasks ------------------------------------------------------------------------------


def load_tasks(name: str, folder: Path | None, *, code: bool = False, meant: str = "") -> dict[str, Any]:
    """The tasks of this name, or those of the group that it names, by name; with their data.

    Only the folders that may hold it are read, since all of them take many seconds.

    Args:
        folder: Descriptions of one's own, which win over those that the harness ships.
        code: Let the folder's descriptions run Python of their own.
        meant: What else may have been meant; then a name that is in no likely folder is not looked for in all.

    Raises:
        ConfigError: there is no such task, or its description runs code that nobody allowed.
        DataError: its data are not there.
    """
    if folder is not None and not folder.is_dir():
        raise ConfigError(f"--lm_eval_folder {folder} is no folder")
    if folder is not None and not code:
        refuse_code(folder)
    own: list[str | Path] = [folder] if folder else []
    near = _near(Path(shipped.__file__).parent, name)
    manager = shipped.TaskManager(include_path=[*near, *own], include_defaults=False)
    if name not in manager.all_tasks and meant:
        raise ConfigError(f"--tasks {name}: there is no task {name!r}{meant}")
    if name not in manager.all_tasks:
        manager = everything(own)
    if name not in manager.all_tasks:
        nearest = ", ".join(get_close_matches(name, manager.all_tasks, 3)) or "none is alike"
        raise ConfigError(
            f"--tasks {name}: there is no such task here (sae-forge eval --help) or in lm-eval (nearest: {nearest})"
        )
    try:
        return dict(manager.load([name])["tasks"])
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(
            f"the data of {name} could not be read ({type(error).__name__}: {said}); fetch its dataset on a machine "
            "with a network, or give --lm_eval_folder with a description whose dataset_path is local"
        ) from error


def everything(own: list[str | Path]) -> shipped.TaskManager:
    """All that the harness ships, and one's own; reading some 14,000 descriptions takes about eight seconds."""
    return shipped.TaskManager(include_path=own or None)


def refuse_code(folder: Path) -> None:
    """Raise for a folder whose descriptions run Python.

    Raises:
        ConfigError: one does; says which.
    """
    for path in sorted((*folder.rglob("*.yaml"), *folder.rglob("*.yml"), *folder.rglob("_*"))):
        if path.is_file() and any(CODE in line or line.lstrip().startswith("class:") for line in _lines(path)):
            raise ConfigError(f"{path} runs Python of its own; read it, and allow it with --lm_eval_code")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


def _near(root: Path, name: str) -> Iterator[Path]:
    """Folders called as the beginning of the name, longest first: ``wmdp_bio`` may be in ``wmdp``."""
    parts = name.split("_")
    for count in range(len(parts), 0, -1):
        if (place := root / "_".join(parts[:count])).is_dir():
            yield place
            return


# ---- asking -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepared:
    """One task of the harness, its requests laid out and encoded for a model."""

    task: Any = field(repr=False)
    requests: tuple[Instance, ...] = field(repr=False)
    docs: tuple[tuple[str, Any], ...] = field(repr=False)
    """Each document that is asked about, with its number in the task."""
    chances: tuple[float | None, ...]
    """Where guessing lies for each, where it has options."""

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        """By the harness's name of a measure."""
        return self.task.higher_is_better()


def documents(task: Any) -> int:
    """How many documents it asks about."""
    return len(task.eval_docs)


def prepare(lm: LanguageModel, task: Any, numbers: Sequence[int], *, shots: int | None, chat: bool) -> Prepared:
    """Lay out what is asked about these documents.

    Args:
        shots: Answered examples in front of each; None: as many as the task says, which stands above this where it
            says none.

    Raises:
        ConfigError: a chat is asked of a model without a template.
    """
    if chat and not lm.tokenizer.chat_template:
        raise ConfigError(f"--lm_eval_chat needs a chat template, and {lm.name} has none")
    if shots is not None and task.config.num_fewshot != 0:
        task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    asks = HarnessLM(lm, chat=chat)
    try:
        task.build_all_requests(
            samples=list(numbers), rank=0, world_size=1, apply_chat_template=chat,
            chat_template=asks.apply_chat_template if chat else None,
        )  # fmt: skip
    except TEMPLATE_RAISES as error:
        said = " ".join(str(error).split())[:160]
        raise DataError(f"{task.task_name} cannot lay out its prompts: {type(error).__name__}: {said}") from error
    docs = [doc for _, doc in task.doc_iterator(rank=0, limit=None, world_size=1, samples=list(numbers))]
    options = [
        len(task.doc_to_choice(doc)) if task.OUTPUT_TYPE == "multiple_choice" and task.config.doc_to_choice else 0
        for doc in docs
    ]
    return Prepared(
        task=task,
        requests=tuple(task.instances),
        docs=tuple(zip(map(str, numbers), docs, strict=True)),
        chances=tuple(1 / count if count else None for count in options),
    )


def judged(
    lm: LanguageModel, prepared: Prepared, *, chat: bool, batch_size: int, done: Done | None = None
) -> list[dict[str, Any]]:
    """What the harness makes of the model's answers: for each document its measures, by name."""
    task = prepared.task
    greedy = task.OUTPUT_TYPE == "loglikelihood" or "exact_match" in task.higher_is_better()
    asks = HarnessLM(lm, chat=chat, greedy=greedy, batch_size=batch_size)
    by_kind: dict[str, list[Instance]] = defaultdict(list)
    for request in prepared.requests:
        request.resps, request.filtered_resps = [], {}
        by_kind[request.request_type] += [request] * (request.repeats or 1)
    for kind, requests in by_kind.items():
        for request, answer in zip(requests, getattr(asks, kind)(requests), strict=True):
            request.resps.append(answer)
    task.apply_filters()
    of_doc: dict[int, list[Instance]] = defaultdict(list)
    for request in prepared.requests:
        of_doc[request.doc_id].append(request)  # pyright: ignore[reportArgumentType]
    rows = []
    for (_, doc), number in zip(prepared.docs, sorted(of_doc), strict=True):
        own = sorted(of_doc[number], key=lambda request: request.idx)
        first = next(iter(own[0].filtered_resps))
        rows.append(dict(task.process_results(doc, [request.filtered_resps[first] for request in own])))
    report(done, len(rows))
    return rows


class HarnessLM(LM):
    """A loaded model, edits included, as the harness asks one; may be handed to ``lm_eval.evaluate``.

    It has one process, no cache and no tokenizer that the harness could change.
    """

    def __init__(self, lm: LanguageModel, *, chat: bool = False, greedy: bool = True, batch_size: int = 32) -> None:
        """Ask ``lm`` in batches.

        Args:
            chat: What the model's template writes are control tokens.
            greedy: Find out whether a continuation is what the model would write, which takes passes of its own.
        """
        super().__init__()
        self.lm, self.chat, self.greedy, self.size = lm, chat, greedy, batch_size

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Log-prob of each continuation, and whether it is what the model would write."""
        asked: list[Any] = [request.args for request in requests]
        pairs = self._pairs(asked)
        of_context: dict[tuple[int, ...], list[int]] = {}
        for place, (context, _) in enumerate(pairs):
            of_context.setdefault(context, []).append(place)
        longest = max_input(self.lm)
        encoded = [
            self._fitted(context, [pairs[at][1] for at in places], longest) for context, places in of_context.items()
        ]
        scores = score(self.lm, encoded, batch_size=self.size)
        logprobs = {
            at: each.logprob for places, own in zip(of_context.values(), scores, strict=True)
            for at, each in zip(places, own, strict=True)
        }  # fmt: skip
        greedy = self._greedy(encoded, list(of_context.values())) if self.greedy else {}
        return [(logprobs[place], greedy.get(place, False)) for place in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Instance]) -> list[float]:
        """Log-prob of each text, every token predicted once with as much before it as the model takes."""
        windows: list[Encoded] = []
        owner: list[int] = []
        for number, request in enumerate(requests):
            (ids,) = text_ids(self.lm, [str(request.args[0])])
            rolling = get_rolling_token_windows(ids, self._prefix(), max_input(self.lm), 1)
            for context, target in map(make_disjoint_window, rolling):
                windows.append(Encoded(tuple(context), (tuple(target),)))
                owner.append(number)
        sums = [0.0] * len(requests)
        for number, (one,) in zip(owner, score(self.lm, windows, batch_size=self.size), strict=True):
            sums[number] += one.logprob
        return sums

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """What the model writes after each context, up to where the task says that an answer ends."""
        texts: dict[int, str] = {}
        by_draw: dict[Sampling, list[int]] = defaultdict(list)
        for place, request in enumerate(requests):
            said = _drawing(request)
            heat = float(said.get("temperature") or 0) if said.get("do_sample") else 0.0
            most = int(said.get("max_gen_toks") or MAX_NEW_TOKENS)
            by_draw[Sampling(max_new_tokens=most, temperature=heat)].append(place)
        for sampling, places in by_draw.items():
            contexts = [str(requests[place].args[0]) for place in places]
            for place, got in zip(places, write(self.lm, contexts, sampling, batch_size=self.size), strict=True):
                until = _drawing(requests[place]).get("until") or []
                stops = [until] if isinstance(until, str) else list(until)
                ends = [got.text.find(stop) for stop in stops if stop and stop in got.text]
                texts[place] = got.text[: min(ends, default=len(got.text))]
        return [texts[place] for place in range(len(requests))]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The turns in the words of the model's template; BOS is left to the tokenizer."""
        text = str(
            self.lm.tokenizer.apply_chat_template(
                chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )  # fmt: skip
        bos = self.lm.tokenizer.bos_token
        return text.removeprefix(bos) if bos_ids(self.lm) and isinstance(bos, str) else text

    def _pairs(self, asked: Sequence[tuple[str, str]]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Ids of each context, and of what follows it in the ids of both together, as the harness splits them."""
        texts: dict[str, None] = {}
        for context, continuation in asked:
            texts |= dict.fromkeys((context.rstrip(), context + continuation) if context else (continuation,))
        ids = dict(zip(texts, self._ids(list(texts)), strict=True))  # of a text that stands behind many once
        front = bos_ids(self.lm)
        pairs: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        for context, continuation in asked:
            if context:
                before, whole = ids[context.rstrip()], ids[context + continuation]
                pairs.append(((*front, *before), tuple(whole[len(before) :])))
            else:
                first, alone = self._prefix(), ids[continuation]
                pairs.append(((first,), tuple(alone if alone[:1] != [first] else alone[1:])))
        return pairs

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not self.chat:
            return text_ids(self.lm, texts)
        read = self.lm.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=False, verbose=False)
        return read["input_ids"]  # pyright: ignore[reportReturnType]

    def _fitted(self, context: tuple[int, ...], targets: Sequence[tuple[int, ...]], longest: int) -> Encoded:
        """The context as far as it fits before the longest continuation, its first token kept."""
        room = longest - max(map(len, targets))
        if room < 1 or not all(targets):
            raise DataError(f"a continuation of {max(map(len, targets))} tokens does not fit {self.lm.name}")
        return Encoded(fitted(context, room), tuple(targets), truncated=len(context) > room)

    def _prefix(self) -> int:
        """What stands before a text that nothing stands before: BOS, or EOS where there is none."""
        ids = bos_ids(self.lm) or [self.lm.tokenizer.eos_token_id]
        if not isinstance(ids[0], int):
            raise ConfigError(f"{self.lm.name} has neither BOS nor EOS, so the first token of a text cannot be scored")
        return ids[0]

    @torch.inference_mode()
    def _greedy(self, encoded: Sequence[Encoded], places: Sequence[list[int]]) -> dict[int, bool]:
        """Whether every token of a continuation is the likeliest after those before it."""
        rows = [
            (at, one.context, target)
            for one, own in zip(encoded, places, strict=True)
            for at, target in zip(own, one.targets, strict=True)
        ]
        rows.sort(key=lambda row: -len(row[1]) - len(row[2]))
        likeliest = {}
        for start in range(0, len(rows), self.size):
            batch = rows[start : start + self.size]
            ids, mask = pad([(*context, *target[:-1]) for _, context, target in batch], self.lm.pad_id, left=False)
            best = forward(self.lm, ids, mask).logits.argmax(-1).cpu()
            for row, (at, context, target) in enumerate(batch):
                written = best[row, len(context) - 1 : len(context) - 1 + len(target)].tolist()
                likeliest[at] = written == list(target)
        return likeliest


def _drawing(request: Instance) -> dict[str, Any]:
    """How a text is to be written: what stands beside its context."""
    _, said = request.args  # pyright: ignore[reportAssignmentType] (a pair, for requests that write)
    return dict(said)
