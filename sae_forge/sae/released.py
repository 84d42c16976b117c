"""SAEs others released, by name: ``owner/name[@revision]:folder`` on the Hub, and the files it stands for."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path, PurePosixPath

from sae_forge.errors import CheckpointError
from sae_forge.sae.formats import table
from sae_forge.sae.formats.format import Format, Found
from sae_forge.sae.formats.gemma_scope import PARAMS
from sae_forge.store import hub_errors
from sae_forge.store.hub_errors import READING, Asked, Trouble

_WRITTEN = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<path>[\w.,:=+/-]+)")
_MAX_LISTED = 10_000


@dataclass(frozen=True)
class Reference:
    """An SAE in a Hub repository: its folder, or its one file."""

    repo: str
    path: str
    revision: str | None = None
    """Branch, tag or commit; None is main."""
    format: str = ""
    """Name of its format, where that is known before it is looked at."""
    file: str = ""
    """Its weights file in the repository, where that is known."""

    @classmethod
    def parse(cls, text: str) -> "Reference | None":
        """Read ``owner/name:path`` or ``owner/name@revision:path``; None when the text is something else.

        Raises:
            CheckpointError: its path leads out of the repository.
        """
        if (match := _WRITTEN.fullmatch(text)) is None:
            return None
        path = match["path"].removesuffix(PARAMS).strip("/")
        if not path or {".", "..", ""} & set(path.split("/")):
            raise CheckpointError(f"--sae {text}: after the colon comes the folder of an SAE, as layer_3/width_16k")
        return cls(match["repo"], path, match["revision"])

    @property
    def name(self) -> str:
        """One readable folder name: slashes become ``--``."""
        return f"{self.repo}/{self.path}".replace("/", "--").replace(":", "-")

    def at(self, revision: str) -> "Reference":
        """The same, pinned."""
        return replace(self, revision=revision)

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}:{self.path}"


def fetch(reference: Reference) -> tuple[Found, str | None]:
    """The local copy of the reference's files and the commit it is of; downloaded once, by the Hub's client.

    Of a repository that says its format in its name only the files are asked for; of another, what its folder holds.

    Raises:
        RemoteError: the Hub refused, does not have it, or cannot be reached.
        CheckpointError: what is there is no SAE of a format that is read.
        ResourceError: the disk is full.
    """
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    asked = _asked(reference)
    try:
        with hub_errors.without_bars():
            entry, folder, weights = _known(reference) or _looked_up(reference)
            asked = replace(asked, words=_words(weights))
            return _downloaded(reference, entry, folder, weights)
    except (OSError, ValueError, HTTPError) as error:
        raise hub_errors.told(error, asked) from error


def listed(reference: Reference, most: int) -> list[str]:
    """The files of a repository below the reference's path, at most so many; of all of it, where there is no such path.

    Raises:
        RemoteError: the Hub refused, does not have it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        tree = HfApi().list_repo_tree(
            reference.repo, reference.path or None, revision=reference.revision, recursive=True
        )
        return [entry.path for entry in islice(tree, most)]
    except EntryNotFoundError as error:
        if not reference.path:
            raise hub_errors.told(error, _asked(reference)) from error
        return listed(replace(reference, path=""), most)
    except (OSError, ValueError, HTTPError) as error:
        raise hub_errors.told(error, _asked(reference)) from error


def _asked(reference: Reference) -> Asked:
    return Asked(
        name=reference.repo,
        page=f"huggingface.co/{reference.repo}",
        flag="--sae",
        revision=reference.revision or "main",
        instead="; or give --sae a local folder that holds it",
        words=_words(reference.path),
        kinds={"name": CheckpointError},
    )


def _words(path: str) -> Mapping[Trouble, str]:
    shown = path.replace("{", "{{").replace("}", "}}")
    return {**READING, "file": f"{{name}} holds no {shown}; look up the folders at {{page}}/tree/main"}


def _known(reference: Reference) -> tuple[Format, str, str] | None:
    """Format, folder and weights file of a reference whose repository or file name says them."""
    for entry in table.BY_NAME.values():
        named = entry.repository and re.search(entry.repository, reference.repo)
        if reference.format == entry.name or (named and not reference.format):
            if "*" not in entry.weights:
                file = reference.file or f"{reference.path}/{entry.weights}"
                return entry, str(PurePosixPath(*PurePosixPath(file).parts[: -1 - entry.depth])), file
            if reference.file or PurePosixPath(reference.path).suffix:
                file = reference.file or reference.path
                return entry, str(PurePosixPath(file).parent), file
    return None


def _looked_up(reference: Reference) -> tuple[Format, str, str]:
    """The same by what the folder holds.

    Raises:
        CheckpointError: no SAE of a format that is read, or several.
    """
    from huggingface_hub import HfApi

    folder = PurePosixPath(reference.path)
    if folder.suffix in table.TENSORS:  # a file, though some folders are called so too
        folder = folder.parent
    inside = None if str(folder) == "." else str(folder)
    tree = HfApi().list_repo_tree(reference.repo, inside, revision=reference.revision, recursive=True)
    names = [entry.path for entry in islice(tree, _MAX_LISTED)]
    is_file = reference.path in names
    if not is_file:
        names = [name for name in names if name.startswith(f"{reference.path}/")]
    recognised = table.matching(names, reference.path if is_file else None)
    return table.the_one(recognised, str(reference), names)


def _downloaded(reference: Reference, entry: Format, folder: str, weights: str) -> tuple[Found, str | None]:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    def download(name: str) -> Path:
        return Path(hf_hub_download(reference.repo, name, revision=reference.revision))

    for beside in entry.beside:
        download(str(PurePosixPath(folder, beside)))
    for beside in entry.perhaps:
        try:
            download(str(PurePosixPath(folder, beside)))
        except EntryNotFoundError:
            continue
    path = download(weights)
    return Found(entry, path.parents[entry.depth], path, str(reference)), in_cache(path)[0]


def in_cache(path: Path) -> tuple[str | None, str]:
    """Commit and path in its repository of a file in the Hub's cache; None and nothing of a file elsewhere."""
    parts = path.parts  # …/models--owner--name/snapshots/<commit>/<path in the repository>
    for place, (owner, part) in enumerate(pairwise(parts), 2):
        if owner.startswith("models--") and part == "snapshots":
            return parts[place], "/".join(parts[place + 1 :])
    return None, ""


# ---- one model, many spellings ------------------------------------------------------------------

_SHORT = {"gpt2-small": "gpt2", "mistral-7b": "mistral-7b-v0.1", "pythia-70m-deduped-v0": "pythia-70m-deduped"}
"""Names of TransformerLens that are not the last part of the Hub's."""


def same_model(one: str, other: str) -> bool:
    """Whether two names are spellings of one model: with or without owner, shortened as TransformerLens has it."""
    return _spelled(one) == _spelled(other)


def _spelled(name: str) -> str:
    short = name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-").removesuffix("-hf")
    return _SHORT.get(short, short)


def is_tuned_form_of(model: str, base: str) -> bool:
    """Whether ``model`` is the instruction-tuned form of ``base``, by their names."""
    return _spelled(model) in {f"{_spelled(base).removesuffix('-pt')}{end}" for end in ("-it", "-instruct", "-chat")}
