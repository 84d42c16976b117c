"""Who judges a text: a language model here, or one behind an OpenAI-compatible address. What each said is kept.

A judge is asked for one reply to one prompt. Every reply is a file of its own as soon as it is there, called by the
judge and the whole prompt, so a run that was stopped, or another row with the same answer, asks nothing twice.
"""

import json
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol, runtime_checkable
from urllib.parse import urlsplit

from sae_forge.data.texts.sources import corpus_identity
from sae_forge.errors import ConfigError, DataError, RemoteError
from sae_forge.models.chat import Rendered, prompt_ids
from sae_forge.models.loading import LanguageModel, load_model
from sae_forge.models.tokens import room_after
from sae_forge.progress import Progress
from sae_forge.store import files
from sae_forge.store.retry import Patience
from sae_forge.store.secrets import scrubbed
from sae_forge.tasks.engines.chat import turn
from sae_forge.tasks.engines.generation import Sampling, write

TRIES, FIRST_WAIT, LONGEST_WAIT, PATIENCE = 6, 1.0, 30.0, 180.0
"""How often one prompt is sent, the seconds before the second time, the most between two, and until none begins."""
TIMEOUT = 60.0
"""Seconds for one reply."""
GIVES_UP = 3
"""Prompts in a row without a reply after which the rest of a row is not sent."""
MAX_REPLY_BYTES = 2**20
MAX_KEPT = 2000
"""Characters of a reply that are kept, of a longer one half from each end: the verdict stands in one of them."""
WHAT = "a judge's reply"
LOCAL = ("localhost", "127.0.0.1", "::1")


@runtime_checkable
class Judge(Protocol):
    """One that replies to prompts; a reply that could not be had is None."""

    @property
    def identity(self) -> str:
        """What its replies hang on beside the prompt."""
        ...

    def replies(self, prompts: Sequence[str], keep: Callable[[str, str], None], progress: Progress) -> None:
        """Hand ``keep`` each prompt with its reply, as soon as it is there."""
        ...


def judge_of(name: str, *, tokens: int, key_variable: str, at_once: int, batch_size: int, device: str) -> Judge:
    """The judge of this name: ``URL#MODEL``, or a language model as ``--model`` names one.

    Args:
        tokens: A reply's most.
        key_variable: The environment variable that holds the key of an address.

    Raises:
        ConfigError: the address is none, or a key would go unencrypted.
    """
    if "://" not in name:
        return Local(name=name, tokens=tokens, batch_size=batch_size, device=device)
    return Endpoint.of(name, tokens=tokens, key=os.environ.get(key_variable, "").strip(), at_once=at_once)


@dataclass(frozen=True)
class Asked:
    """A judge, and the replies of it that are there already."""

    judge: Judge
    folder: Path

    def replies(self, prompts: Sequence[str], progress: Progress) -> list[str | None]:
        """What the judge says to each prompt; None where it does not reply.

        Raises:
            RemoteError: it refuses every prompt alike.
            DataError: a file of an earlier reply is damaged.
        """
        known: dict[str, str] = {}
        for prompt in dict.fromkeys(prompts):
            if self._path(prompt).exists():
                known[prompt] = self._kept(prompt)

        def keep(prompt: str, reply: str) -> None:
            half = MAX_KEPT // 2
            kept = reply if len(reply) <= MAX_KEPT else f"{reply[:half]} … {reply[-half:]}"
            # another rank may ask the same of another row: of two replies the first counts for both
            files.publish_once(self._path(prompt), {"reply": kept})
            known[prompt] = self._kept(prompt)

        if unknown := [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]:
            self.judge.replies(unknown, keep, progress)
        return [known.get(prompt) for prompt in prompts]

    def _kept(self, prompt: str) -> str:
        return files.read_json(self._path(prompt), kind=DataError, what=WHAT, proven=True)["reply"]

    def _path(self, prompt: str) -> Path:
        name = files.digest([self.judge.identity, prompt])
        return self.folder / name[:2] / f"{name[2:34]}.json"


# ---- a language model here ----------------------------------------------------------------------


@dataclass(frozen=True)
class Local:
    """A language model of its own, whatever is done to the one that is judged; loaded when it is first needed."""

    name: str
    tokens: int
    batch_size: int
    device: str

    @property
    def identity(self) -> str:
        """A folder by its content, another model by its name."""
        return f"{self.content} {self.tokens}"

    @cached_property
    def content(self) -> str:
        """Its name, with a hash of what a folder holds."""
        return corpus_identity(self.name)

    @cached_property
    def lm(self) -> LanguageModel:
        """The model."""
        return load_model(self.name, device=self.device)

    def replies(self, prompts: Sequence[str], keep: Callable[[str, str], None], progress: Progress) -> None:
        """The likeliest words, in a turn of its chat template where it has one; none to what does not fit."""
        fitting: dict[str, str | Rendered] = {}
        for prompt in prompts:
            said = turn(self.lm, prompt) if self.lm.tokenizer.chat_template else prompt
            try:
                room_after(self.lm, prompt_ids(self.lm, said), self.tokens)
            except DataError as error:
                progress.say(f"--judge {self.name}: {error}")
                continue
            fitting[prompt] = said
        greedy = Sampling(max_new_tokens=self.tokens, temperature=0)
        every = list(fitting)
        for start in range(0, len(every), self.batch_size):
            batch = every[start : start + self.batch_size]
            written = write(self.lm, [fitting[prompt] for prompt in batch], greedy, batch_size=self.batch_size)
            for prompt, got in zip(batch, written, strict=True):
                keep(prompt, got.text)


# ---- one behind an address ----------------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points."""

    def redirect_request(self, *args: Any, **also: Any) -> None:
        """No request, so the redirect itself is what was answered."""


@dataclass(frozen=True)
class Endpoint:
    """A model that is asked by ``POST URL/chat/completions``, at temperature 0."""

    url: str
    model: str
    tokens: int
    at_once: int
    key: str = field(default="", repr=False)
    silent: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)
    """It was given up on: until it replies again, nothing is sent to it twice."""

    @classmethod
    def of(cls, name: str, *, tokens: int, key: str, at_once: int) -> "Endpoint":
        """The one that ``URL#MODEL`` names.

        Raises:
            ConfigError: no model is named, the URL is none of the web or holds a login, or the key would be readable
                on its way.
        """
        url, _, model = name.partition("#")
        try:
            parts = urlsplit(url)
            host, secret = parts.hostname, parts.username or parts.password or parts.query
        except ValueError:
            host, secret, parts = None, None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host or not model:
            raise ConfigError(f"--judge {scrubbed(name)}: give https://HOST/v1#MODEL, or a language model's name")
        if secret:
            raise ConfigError(f"--judge {host}: no login and no query in the address; the key goes into a variable")
        if key and parts.scheme == "http" and host not in LOCAL:
            raise ConfigError(
                f"--judge http://{host}: a key is sent over https alone; unset its variable, or use https"
            )
        return cls(url.rstrip("/"), model, tokens, at_once, key)

    @property
    def identity(self) -> str:
        """Address and model; what stands behind them may change unseen."""
        return f"{self.url}#{self.model} {self.tokens}"

    def replies(self, prompts: Sequence[str], keep: Callable[[str, str], None], progress: Progress) -> None:
        """Several at a time; one without a reply is sent again, later and later, until patience ends."""
        waiting = _Waiting(progress, self.model, self.silent)

        def one(prompt: str) -> None:
            if (reply := self._reply(prompt, waiting)) is not None:
                keep(prompt, reply)

        pool = ThreadPoolExecutor(self.at_once)
        try:
            for done in [pool.submit(one, prompt) for prompt in prompts]:
                done.result()
        finally:  # at an interrupt nobody waits for a thread that waits for a judge
            waiting.over.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, prompt: str, waiting: "_Waiting") -> str | None:
        tries = 1 if self.silent.is_set() else TRIES
        patience = Patience(tries=tries, first=FIRST_WAIT, longest=LONGEST_WAIT, seconds=PATIENCE)
        while not waiting.over.is_set():
            asked, said = None, ""
            try:
                reply = self._once(prompt)
                waiting.replied()
                return reply
            except urllib.error.HTTPError as error:
                said = f"HTTP {error.code}: {_told(error, self.key)}"
                if error.code in (401, 403, 404) or 300 <= error.code < 400:
                    judge = f"--judge {self.url}#{self.model}"
                    raise RemoteError(f"{judge} refused: {said}; check address, model and key") from None
                if error.code not in (408, 409, 425, 429) and error.code < 500:  # this prompt alone
                    waiting.without(said)
                    return None
                asked = _seconds(error.headers.get("Retry-After"))
            except (OSError, HTTPException, ValueError) as error:  # no answer in time, or none that can be read
                said = scrubbed(f"{type(error).__name__}: {error}", self.key)
            if (wait := patience.next_wait(asked=asked)) is None:
                waiting.without(said)
                return None
            waiting.over.wait(wait)
        return None

    def _once(self, prompt: str) -> str:
        """One reply.

        Raises:
            OSError: none came.
            ValueError: what came is no reply.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self.tokens,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        whole = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/chat/completions", whole, headers)  # noqa: S310 (see ``of``)
        near = [urllib.request.ProxyHandler({})] if urlsplit(self.url).hostname in LOCAL else []
        with urllib.request.build_opener(_NoRedirect, *near).open(request, timeout=TIMEOUT) as response:
            content = response.read(MAX_REPLY_BYTES + 1)
        if len(content) > MAX_REPLY_BYTES:
            raise ValueError(f"a reply of more than {MAX_REPLY_BYTES} bytes")
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (LookupError, TypeError, RecursionError) as error:
            raise ValueError(f"no choices[0].message.content: {content[:80]!r}") from error
        if not isinstance(text, str):
            raise ValueError(f"choices[0].message.content is no text: {content[:80]!r}")
        return text


class _Waiting:
    """What several threads know together of a judge that does not reply."""

    def __init__(self, progress: Progress, name: str, silent: threading.Event) -> None:
        self.over, self._lock, self._in_vain = threading.Event(), threading.Lock(), 0
        self._progress, self._name, self._silent = progress, name, silent

    def replied(self) -> None:
        with self._lock:
            self._in_vain = 0
            self._silent.clear()

    def without(self, said: str) -> None:
        """One prompt has no reply and is not sent again."""
        with self._lock:
            self._in_vain += 1
            enough = self._in_vain >= GIVES_UP and not self.over.is_set()
            if self._in_vain == 1:
                self._progress.say(f"--judge {self._name} does not reply ({said}); what it does not judge is counted")
            if enough:
                self._progress.say(f"--judge {self._name}: {GIVES_UP} in a row without a reply; the rest is not sent")
                self._silent.set()
                self.over.set()


def _told(error: urllib.error.HTTPError, key: str) -> str:
    try:
        return scrubbed(error.read(400).decode(errors="replace"), key)
    except (OSError, HTTPException):
        return scrubbed(str(error.reason), key)


def _seconds(header: str | None) -> float | None:
    """What ``Retry-After`` asks for, where it is a number of seconds."""
    try:
        wait = float(header or "")
    except ValueError:
        return None
    return wait if 0 <= wait <= PATIENCE else None
