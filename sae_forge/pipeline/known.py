"""What a run knows of itself: what it was collected from, and how, is the default of every later command on it.

Settings are read off the folders of shards, so that runs of before know them too. Where the text lies is noted in
``logs/``, since no path of this machine stands outside; of a run that came without them the text must be named again.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sae_forge import builtin
from sae_forge.config.collect import CollectConfig
from sae_forge.config.fields import described
from sae_forge.config.model import ModelConfig, one_spelling, shown
from sae_forge.data.texts.sources import corpus_identity, named
from sae_forge.errors import DataError, RemoteError, ShardError
from sae_forge.progress import Progress
from sae_forge.settings import parse_value
from sae_forge.store import files
from sae_forge.store.runs import Run

ConfigT = TypeVar("ConfigT", bound=ModelConfig)
ROLES = ("forget", "retain")


@dataclass(frozen=True)
class Text:
    """A corpus of the run."""

    role: str
    identity: str
    """Name and hash of the content, or an id."""
    places: tuple[str, ...] = ()
    """Where it may lie, as far as that was noted."""

    @property
    def source(self) -> str | None:
        """Under which name it can be read again; None when it is gone, or is another text by now."""
        return next((place for place in self.places if corpus_identity(place) == self.identity), None)

    def lost(self) -> str:
        """Why it cannot be read again."""
        if there := list(filter(_is_there, self.places)):
            return f"{there[0]} has changed since it was collected"
        if self.places:
            return f"{self.places[0]}, which was collected, is gone"
        return f"nothing says where the text of {self.identity.partition(' xxh3:')[0]} is"


def as_collected(config: ConfigT, run: Run, progress: Progress) -> ConfigT:
    """The config with what the run was collected with, and from, in place of what nobody spelled out.

    What was spelled out and is another is said. Text that is gone is said and left out.
    """
    kind = type(config)
    own = [record["settings"] for _, record in _records(run) if isinstance(record.get("settings"), dict)]
    first = own[0] if own else {}
    # what folders of shards disagree on is no property of the run
    agreed = [name for name in described(kind) if name in first and all(one.get(name) == first[name] for one in own)]
    recorded = {name: parse_value(kind, name, first[name]) for name in agreed}
    others = {name: value for name, value in recorded.items() if getattr(config, name) != value}
    taken = {name: value for name, value in others.items() if name not in config.spelled}
    if not config.starts_over:
        for name in sorted(others.keys() - taken.keys()):
            asked, was = shown(getattr(config, name)), shown(others[name])
            progress.say(f"--{name} {asked}: {run.folder} was collected with {was}")
    if isinstance(config, CollectConfig):
        taken |= _sources(config, texts_of(run), progress)
    return replace(config, **taken) if taken else config


def texts_of(run: Run) -> list[Text]:
    """Every corpus of the run, shorter names first; also one that was only set out to be collected.

    So texts of one name get the folders again that they were told apart by, since only the first has none before it.
    """
    texts: dict[str, Text] = {}
    for name, record in _records(run):
        identity = str(record.get("corpus", ""))
        content = identity.partition(" xxh3:")[0]
        # an identity without a hash is a name that can be read from anywhere: of the Hub, or built in
        readable = builtin.is_builtin(identity) or content == identity
        texts[name] = Text(str(record.get("role", "")), identity, (content,) if readable else ())
    for name, noted in run.texts.items():
        places = []
        for place in noted.places:
            source = str(run.logs.resolve() / place) if place.startswith("..") else place
            if _is_there(source) and not builtin.is_builtin(source):  # as one would write it in this working directory
                source = one_spelling(named(source).place) + named(source).said
            places.append(source)
        text = Text(noted.role, noted.identity, tuple(places))
        if texts.get(name, text).identity == text.identity:  # the shards say what was collected, notes only where from
            texts[name] = text
    return [texts[name] for name in sorted(texts, key=lambda name: (len(name), name))]


def _is_there(source: str) -> bool:
    try:
        return named(source).files is not None
    except DataError:
        return False


def _sources(config: CollectConfig, texts: Sequence[Text], progress: Progress) -> dict[str, Any]:
    """Forget and retain text of the run for a config that names none, and what of it cannot be read again."""
    of_role: dict[str, Any] = {}
    for role in ROLES:
        own = [text for text in texts if text.role == role]
        if role in config.spelled or not own:
            continue
        if config.starts_over:  # whatever it holds by now
            sources = [next(filter(_is_there, text.places), text.source) for text in own]
        else:
            sources = [text.source for text in own]
            for text, source in zip(own, sources, strict=True):
                if source is None:
                    progress.say(text.lost())
        readable = tuple(source for source in sources if source is not None)
        of_role[role] = readable if role == "retain" else next(iter(readable), None)
    return of_role


def _records(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    """What stands beside the shards of each corpus that is no refusal text; nothing where a store does not answer."""
    with suppress(RemoteError, ShardError):
        place = run.shards
        below = [place / name for name in run.corpora] if run.elsewhere else [place]
        pattern = "*/config.json" if run.elsewhere else "*/*/config.json"
        for path in sorted((path for folder in below for path in folder.glob(pattern)), key=str):
            record = files.read_json(path, kind=ShardError, what="the settings of a shard folder")
            if isinstance(record, dict) and record.get("role") in ROLES:
                yield path.parent.parent.name, record
