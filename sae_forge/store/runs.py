"""The run folder: which artefact lives where, and which run or artefact is the newest."""

import json
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_forge.errors import CheckpointError, ConfigError, DataError, RemoteError, ResourceError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.store import files, order, records
from sae_forge.store.remote import AnyPath, connect, is_url

CHECKPOINTS = Path("checkpoints")
POINTER = "source.json"
"""Stands in an SAE's folder in place of its weights, and says where those are: an SAE made elsewhere."""
PLACE = "place.json"
"""Stands in ``shards/`` and says where the shards are, when they are not there."""
TEXTS = "texts.json"
"""In ``logs/``, since no path of this machine stands outside: where the text of each corpus lies."""
BEGUN = "begun.json"
"""Stands beside it and lists the folders at that place in which this run found nothing: the only ones it may empty."""


@dataclass(frozen=True)
class _Place:
    """What ``place.json`` holds."""

    shards_dir: str

    def __post_init__(self) -> None:
        if "\0" in self.shards_dir:
            raise ValueError("it names no place that can be")


@dataclass(frozen=True)
class NotedText:
    """Where the text of a corpus lies."""

    role: str
    identity: str
    places: tuple[str, ...]
    """One that begins with ``..`` is seen from ``logs/``, in case all of it was moved."""


@dataclass(frozen=True)
class Run:
    """Paths of one model's artefacts; nothing here exists until a verb makes it."""

    folder: Path
    shards_dir: str | None = None
    """Where the user says its shards are, a folder or a URL; None: where a pointer says, else in ``shards/``."""

    @property
    def shards(self) -> AnyPath:
        """The folder that holds a folder for each corpus; every later command finds it without being told.

        Raises:
            ConfigError: the user names another place than the one where the shards of this run are.
            ShardError: the pointer to that place is damaged.
        """
        own, noted = self.folder / "shards", self._noted()
        asked = None if self.shards_dir is None else self._place(self.shards_dir)
        # one's own folder by another name is no other place
        if asked == own.resolve() or str(asked) == f"file://{own.resolve()}":
            asked = own
        if asked is not None and asked != (there := noted or own):
            try:
                holds_shards = any(there.glob("*/*/shard-*"))
            except RemoteError:  # a store that does not answer is taken to hold some
                holds_shards = True
            if holds_shards:
                raise ConfigError(
                    f"--shards_dir {asked}: the shards of {self.folder} are in {there}; leave the flag out, or "
                    "choose another --run_dir"
                )
        return asked or noted or own

    @property
    def elsewhere(self) -> bool:
        """Whether its shards are at a place that other runs may share."""
        return self.shards != self.folder / "shards"

    def require_place(self) -> None:
        """Refuse to collect where a pointer leads to nothing: what was collected is out of reach, not to be made anew.

        Raises:
            ShardError: names the pointer and the place.
            RemoteError: the store does not answer.
        """
        noted = self._noted() if self.shards_dir is None else None
        if noted is not None and not any(noted.glob("*/*/*")):
            raise ShardError(
                f"{self.folder / 'shards' / PLACE} says that the shards are in {noted}, and none are; bring them "
                "back, or say where they go with --shards_dir"
            )

    def note_shards(self) -> None:
        """Leave a pointer to the shards in the run folder, unless they are in it."""
        if self.shards_dir is None or (place := self.shards) == self._noted():
            return
        own = self.folder / "shards"
        if place == own:
            (own / PLACE).unlink(missing_ok=True)  # to a place where nothing was ever collected
            return
        if isinstance(place, Path):
            place = Path(os.path.relpath(place, own.resolve()))  # no absolute path stands outside logs/
        files.publish_json(own / PLACE, {"shards_dir": str(place)})

    def _noted(self) -> AnyPath | None:
        path = self.folder / "shards" / PLACE
        if not path.exists():
            return None
        what, hint = "a pointer to a run's shards", "delete it and repeat --shards_dir"
        named = records.read(_Place, path, error=ShardError, what=what, hint=hint).shards_dir
        return self._place(named if is_url(named) else str(path.parent.resolve() / named))

    def _place(self, named: str) -> AnyPath:
        """A folder or URL as somebody named it."""
        if is_url(named):
            return connect(named, self.folder / "shards")
        return Path(named).expanduser().resolve()

    @property
    def corpora(self) -> list[str]:
        """Folders of ``shards/`` that a collect has set out to fill, whether or not it came to its end."""
        return self._listed("corpora.json", "the list of a run's corpora")

    def plan_corpora(self, names: Iterable[str]) -> None:
        """Note what is about to be collected, so that a collect that was killed is finished before training."""
        planned = sorted({*self.corpora, *names})
        if planned != self.corpora:
            files.publish_json(self.folder / "shards" / "corpora.json", planned)

    @property
    def texts(self) -> dict[str, NotedText]:
        """What is noted of the text of each corpus, by the corpus's folder."""
        path, kind = self.logs / TEXTS, dict[str, NotedText]
        if not path.exists():
            return {}
        hint = "delete it and name them again"
        return records.read(kind, path, error=ShardError, what="the places of a run's texts", hint=hint)

    def note_texts(self, corpora: Mapping[str, tuple[str, str, str, str]]) -> None:
        """Keep of each corpus, by its folder, role and identity of its text, its place and what of that is meant."""
        with files.locked(self.logs, wait=True):  # collects of other corpora may run beside this one
            before = self.texts
            now = {**before}
            for name, (role, identity, place, meant) in corpora.items():
                places = (place,)
                if Path(place).is_absolute():
                    places = (place + meant, os.path.relpath(place, self.logs.resolve()) + meant)
                now[name] = NotedText(role, identity, places)
            if now != before:
                files.publish_json(self.logs / TEXTS, records.encode(now))

    @property
    def begun(self) -> list[str]:
        """Corpus and hook point of each folder that this run was the first to fill, where runs may share a place."""
        return self._listed(BEGUN, "the list of what a run began")

    def _listed(self, file: str, what: str) -> list[str]:
        """Names of folders, none of which leads out of the place of the shards."""
        path = self.folder / "shards" / file
        if not path.exists():
            return []
        hint = "restore it or delete it"
        names = records.read(list[str], path, error=ShardError, what=what, hint=hint)
        for name in names:
            # they are joined to the place of the shards, where --fresh deletes
            if not name.isprintable() or {"", ".", ".."}.intersection(name.split("/")):
                raise ShardError(f"{path} is not {what}: it holds {name[:60]!r}, which is no folder's name; {hint}")
        return names

    def begin(self, names: Collection[str], *, fresh: bool) -> None:
        """Before folders are filled: note those in which nothing is, where other runs may put theirs too.

        Args:
            names: ``forget-wizards/blocks.1.hook_resid_post`` and the like.
            fresh: What is in them is about to be deleted.

        Raises:
            ConfigError: it is not this run's to delete.
        """
        if not self.elsewhere:
            return
        place, listed = self.shards, self.begun
        known = listed if self._noted() == place else []  # of another place it says nothing
        empty = [name for name in names if name not in known and not any((place / name).glob("[!.]*"))]
        if fresh and (foreign := sorted({*names}.difference(known, empty))):
            raise ConfigError(
                f"{place}/{foreign[0]} was collected by another run, so --fresh of {self.folder} does not delete it; "
                "give another --shards_dir, or leave --fresh out"
            )
        if (begun := sorted({*known, *empty})) != listed:
            files.publish_json(self.folder / "shards" / BEGUN, begun)

    def saes(self, point: HookPoint | None = None) -> list[Path]:
        """Finished SAEs and pointers to SAEs made elsewhere, oldest first, of one hook point or of all."""
        place = f"saes/{point or '*'}/*"
        marked = (*self.folder.glob(f"{place}/cfg.json"), *self.folder.glob(f"{place}/{POINTER}"))
        return order.oldest_first(self.folder, {marker.parent for marker in marked})

    def note(self, *artefacts: Path) -> None:
        """Make SAEs, selections or reports of this run the newest of their kind, the last one last."""
        order.note(self.folder, artefacts)

    def sae(self, point: HookPoint, *, k: int, d_sae: int, seed: int, architecture: str = "") -> Path:
        """Where the SAE of these sizes goes; an architecture that is not TopK stands before them."""
        sizes = f"k{k}-d{d_sae}-s{seed}"
        return self.folder / "saes" / str(point) / (f"{architecture}-{sizes}" if architecture else sizes)

    def windows(self, point: HookPoint) -> Path:
        """Where shards of corpora that are never on disk whole come and go."""
        return self.folder / "windows" / str(point)

    def newest_sae(self, point: HookPoint | None, command: str) -> Path:
        """The SAE to use when none was named.

        Raises:
            CheckpointError: there is none; names the command that makes one.
            DataError: there are several, and the run does not say which is the newest.
        """
        if (newest := order.newest(self.folder, self.saes(point), "--sae")) is not None:
            return newest
        where = f" at {point}" if point else ""
        have = ", ".join(sorted({path.parent.name for path in self.saes()})) or "none"
        raise CheckpointError(f"no SAE{where} in {self.folder} (found: {have}); make one with: {command}")

    def selections(self, sae: Path) -> Path:
        """Folder of the selections made for one SAE."""
        return self.folder / "features" / _relative(sae)

    def selection_of(self, sae: Path) -> Path | None:
        """The newest selection made for one SAE, if there is one."""
        return order.newest(self.folder, [*self.selections(sae).glob("*.json")], "--selection, or features again")

    def newest_selection(self, sae: Path, command: str) -> Path:
        """The selection to use when none was named.

        Raises:
            DataError: there is none; names the command that makes one.
        """
        if (newest := self.selection_of(sae)) is None:
            raise DataError(f"no selection of latents for {sae}; make one with: {command}")
        return newest

    def evals(self, sae: Path) -> Path:
        """Folder of the reports on one SAE."""
        return self.folder / "eval" / _relative(sae)

    def newest_eval(self, sae: Path) -> Path | None:
        """The newest complete report on an SAE, if there is one."""
        reports = [report.parent for report in self.evals(sae).glob("*/eval.json")]
        return order.newest(self.folder, reports, "the eval command that made it, which returns it as it is")

    def holds(self, sae: Path) -> bool:
        """Whether an SAE folder is one of this run's own."""
        return (self.folder / "saes").resolve() in sae.resolve().parents

    @property
    def logs(self) -> Path:
        """Timings, rates and absolute paths: all that may differ between two equal runs."""
        return self.folder / "logs"

    @property
    def exists(self) -> bool:
        """Whether a collect or a training has made the folder a run."""
        return (self.folder / "run.json").exists()

    @property
    def model(self) -> str:
        """The model this run is about.

        Raises:
            DataError: the folder is not a run folder.
        """
        return self._description()["model"]

    @property
    def opening(self) -> Any:
        """What this run records that every text opens with; None: it was begun before that was recorded.

        Raises:
            DataError: the folder is not a run folder.
        """
        return self._description().get("opening")

    def _description(self) -> dict[str, Any]:
        value = files.read_json(self.folder / "run.json", kind=DataError, what="a run's description")
        if not isinstance(value, dict) or not isinstance(value.get("model"), str):
            raise DataError(f"{self.folder / 'run.json'} names no model; it is not a run folder of sae-forge")
        return value

    def open(self, model: str, digest: str = "", *, opening: Mapping[str, Any] | None = None) -> None:
        """Make the folder a run of ``model``, or let it go on under this name if it is of the same weights.

        Args:
            digest: What the model's weights are known by; empty: by its name alone.
            opening: What every text of a new run opens with.

        Raises:
            DataError: it already is a run of another model.
        """
        path, known = self.folder / "run.json", {"opening": opening} if opening else {}
        if path.exists():
            known = self._description()
            was, weights = known["model"], known.get("weights")
            # by its weights where both are known; else by name, a folder however it is spelled
            if (weights != digest) if weights and digest else Path(was).absolute() != Path(model).absolute():
                other = f"{was}, not of {model}" if was != model else f"other weights than {model} has now"
                raise DataError(f"{self.folder} is a run of {other}; choose another --run_dir or that --model")
        if (named := {**known, "model": model, **({"weights": digest} if digest else {})}) != known:
            files.publish_json(path, named)
        self.note_shards()

    def log(self, command: str, facts: dict[str, Any]) -> None:
        """Append one line about a finished command; also what makes this run the newest."""
        path = self.logs / order.COMMANDS
        line = json.dumps({"command": command, "at": time.time(), **facts}, default=str)
        # appended and never rewritten, so two commands at once keep both lines; one cut off is passed over when read
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ResourceError(f"the work is done but could not be noted in {path}: {error.strerror}") from error


def newest_run(root: Path = CHECKPOINTS) -> Run:
    """The run folder under ``root`` that was worked on last, as the logs of their commands say.

    Raises:
        DataError: there is none (names the command that makes one), or none of several says when it was worked on.
    """
    folders = sorted({path.parent for path in root.glob("*/run.json")})
    if not folders:
        raise DataError(
            f"no run folder under {root}/; make one with: sae-forge run --model tiny-llama, or give --run_dir"
        )
    times = {folder: order.last_command(folder) for folder in folders}
    newest = [folder for folder, time in times.items() if time == max(times.values())]
    if len(newest) > 1:
        names = ", ".join(map(str, newest))
        raise DataError(f"{names}: nothing says which was worked on last; name one with --run_dir")
    return Run(newest[0])


def _relative(sae: Path) -> Path:
    return Path(sae.parent.name) / sae.name
