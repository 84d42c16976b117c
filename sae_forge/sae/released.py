"""SAEs others released, by name: what a Hub reference such as ``google/gemma-scope-2b-pt-res:layer_3/…`` says, and
the one file it stands for.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sae_forge.errors import CheckpointError
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.formats.gemma_scope import PARAMS
from sae_forge.store import hub_errors
from sae_forge.store.hub_errors import READING, Asked

_WRITTEN = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?:(?P<path>[\w./-]+)")
_RELEASE = re.compile(r"gemma-scope-(?P<size>2b|9b|27b)-(?P<tuning>pt|it)-(?P<site>\w+)")
_LAYER = re.compile(r"layer_(\d+)")


@dataclass(frozen=True)
class Reference:
    """A folder of a Hub repository that holds one ``params.npz``."""

    repo: str
    path: str
    revision: str | None = None
    """Branch, tag or commit; None is main."""

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
            raise CheckpointError(f"--sae {text}: after the colon comes the folder of a {PARAMS}, as layer_3/width_16k")
        return cls(match["repo"], path, match["revision"])

    @property
    def name(self) -> str:
        """One readable folder name: slashes become ``--``."""
        return f"{self.repo}/{self.path}".replace("/", "--")

    def at(self, revision: str) -> "Reference":
        """The same, pinned."""
        return Reference(self.repo, self.path, revision)

    def __str__(self) -> str:
        return f"{self.repo}{f'@{self.revision}' if self.revision else ''}:{self.path}"


def model_of(text: str) -> str:
    """The model that a Gemma Scope release, named somewhere in ``text``, was trained on; empty when none is named."""
    match = _RELEASE.search(text)
    return f"google/gemma-2-{match['size']}{'-it' if match['tuning'] == 'it' else ''}" if match else ""


def point_of(text: str) -> HookPoint | None:
    """Where an SAE of this path reads: ``layer_3`` is the output of block 3. None when no layer is named.

    Raises:
        CheckpointError: the release reads somewhere else than a block's output.
    """
    release, layers = _RELEASE.search(text), _LAYER.findall(text)
    if release and release["site"] != "res":
        raise CheckpointError(
            f"{text} reads the site {release['site']!r}; of Gemma Scope only -res (blocks' outputs) is supported"
        )
    return HookPoint(int(layers[-1]), "resid_post") if layers else None


def fetch(reference: Reference) -> tuple[Path, str | None]:
    """The local copy of the reference's ``params.npz`` and the commit it is of; downloaded once, by the Hub's client.

    Raises:
        RemoteError: the Hub refused, does not have it, or cannot be reached.
        ResourceError: the disk is full.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    asked = Asked(
        name=reference.repo,
        page=f"huggingface.co/{reference.repo}",
        flag="--sae",
        revision=reference.revision or "main",
        instead=f"; or give --sae a local folder that holds its {PARAMS}",
        words={
            **READING,
            "file": f"{{name}} holds no {reference.path}/{PARAMS}; look up the folders at {{page}}/tree/main",
        },
        kinds={"name": CheckpointError},
    )
    try:
        with hub_errors.without_bars():
            path = Path(hf_hub_download(reference.repo, f"{reference.path}/{PARAMS}", revision=reference.revision))
    except (OSError, ValueError, HTTPError) as error:
        raise hub_errors.told(error, asked) from error
    parts = path.parts
    return path, parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
