"""What a folder of shards says of itself: whose activations these are, which files hold them, and their hashes.

Each shard has a sidecar beside it; the manifest is made from the sidecars alone, last, so its presence means
the folder is whole. Both stand under the seal of ``store/seal.py``. xxh3 finds accidents, not tampering.
"""

import re
from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from sae_forge.data.rounding import STORED, Rounding, is_rounded
from sae_forge.errors import ConfigError, ShardError
from sae_forge.store import files, records
from sae_forge.store.remote import AnyPath

FORMAT = 2
BLOCK_ROWS = 256
"""Rows that are hashed, read and shuffled as one piece; a shard's last block may be shorter."""

MANIFEST = "manifest.json"
MAX_SHARDS = 2**15
"""Shards of a folder: their list must stay within what any JSON file here may hold (``files.MAX_JSON_BYTES``)."""
_SHARD = re.compile(r"shard-([0-9]{5})\.(?:json|safetensors)")
REASONS = ("nan", "infinite", "special")
"""Why a token may have no row; counts of these names stand in :class:`ShardInfo`."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Every setting that decides which numbers the shards hold; two folders with equal ones are interchangeable."""

    model: str
    """Model as it was named: a Hub id, a folder's name, or a built-in."""
    weights: str
    """sha256 or commit of its weights."""
    tokenizer: str
    """sha256 of its tokenizer."""
    hook_point: str
    """Where the activations were read: ``blocks.15.hook_resid_post``."""
    d_in: int
    """Width of a row."""
    storage_dtype: str
    """bf16, fp16, fp32, or int8 with a scale a row."""
    ctx_len: int
    """Tokens a packed sequence holds."""
    bos: str
    """BOS policy: row, document or none."""
    batch_size: int
    """Sequences of a forward batch; batches of another size round differently."""
    max_tokens: int | None
    """Corpus tokens taken at most."""
    corpus: str
    """Name of the corpus, as in its folder."""
    source: str
    """What the text was, without any path of this machine (``corpus.corpus_identity``)."""
    role: str
    """forget or retain."""
    split: str = "train"
    """Split of a ``datasets`` source."""
    text_field: str | None = None
    """Column asked for; None: the default one."""
    normalize_text: bool = False
    """Whether the text was brought to one form first."""
    first_batch: int = 0
    """Forward batches of the corpus before the first of these: above 0 in a window of a corpus too large to keep."""
    end_batch: int | None = None
    """The forward batch before which these end; None: with the corpus."""
    format: int = FORMAT
    """Version of the layout on disk."""

    def __post_init__(self) -> None:
        if self.storage_dtype not in STORED:
            named = self.storage_dtype[:40]  # it may come from a file
            raise ConfigError(f"storage_dtype={named!r} is unknown; choose one of {', '.join(STORED)}")
        for name in ("d_in", "ctx_len", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1")

    def differences(self, other: "Fingerprint") -> list[tuple[str, Any, Any]]:
        """(field, expected, there) of each field in which ``other`` is not what this one says."""
        pairs = [(field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]
        return [(name, expected, there) for name, expected, there in pairs if expected != there]

    def extends(self, other: "Fingerprint") -> bool:
        """Whether this one asks for all that ``other`` has and more of the same text."""
        longer = other.max_tokens is not None and (self.max_tokens is None or self.max_tokens > other.max_tokens)
        return longer and [name for name, *_ in self.differences(other)] == ["max_tokens"]


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One shard: where it stands in the corpus and what was left out of it."""

    file: str
    rows: int
    first_row: int
    """Rows of the shards before it."""
    batches: int
    """Forward batches it holds, whole."""
    first_batch: int
    """Forward batches of the shards before it."""
    bytes: int
    """Length of the file."""
    nan: int
    """Rows dropped because a number in them was NaN."""
    infinite: int
    """Rows dropped because a number in them was infinite and none was NaN: as stored, or, for int8, before rounding."""
    special: int
    """Tokens not stored because they are no real tokens."""
    hashes: str
    """sha256 of the hashes in the sidecar."""


@dataclass(frozen=True, kw_only=True)
class Hashes:
    """xxh3_64, in hex, of every byte of a shard, each byte once."""

    header: str
    """The safetensors header with its length prefix."""
    acts: tuple[str, ...]
    """``acts`` of each block, and its ``scales`` after them where there are any."""
    origins: tuple[str, ...]
    """``seq_ids``, ``positions`` and ``token_ids`` of each block, one after the other."""


@dataclass(frozen=True)
class Sidecar:
    """What stands beside a shard and proves it."""

    fingerprint: Fingerprint
    shard: ShardInfo
    hashes: Hashes
    rounding: Rounding | None = None
    """What rounding its rows to int8 did; None where they were not."""

    def publish(self, folder: AnyPath) -> None:
        """Write it; from here on the shard counts as whole."""
        files.publish_json(sidecar_path(folder, self.shard.file), _as_written(self))

    @classmethod
    def read(cls, folder: AnyPath, index: int) -> "Sidecar":
        """The sidecar of shard ``index``.

        Raises:
            ShardError: missing, altered, or something else; the message names the file.
        """
        path, what = sidecar_path(folder, shard_name(index)), "the sidecar of a shard"
        body = files.read_json(path, kind=ShardError, what=what, proven=True)
        try:
            sidecar = _decoded(cls, body, {"fingerprint", "shard", "hashes", "rounding"})
            blocks = -(-sidecar.shard.rows // BLOCK_ROWS)
            if not len(sidecar.hashes.acts) == len(sidecar.hashes.origins) == blocks:
                raise ValueError(f"{sidecar.shard.rows} rows need the hashes of {blocks} blocks")
            if sidecar.shard.file != shard_name(index) or sidecar.shard.hashes != files.digest(asdict(sidecar.hashes)):
                raise ValueError(f"it does not belong to {shard_name(index)}")
            if files.canonical(_as_written(sidecar)) != files.canonical(body):  # 1 is no 1.0 on disk
                raise ValueError("it lacks a field, or a whole number stands for a float")
        except ValueError as error:
            raise ShardError(f"{path} is not {what}: {error}") from error
        return sidecar


@dataclass(frozen=True)
class Manifest:
    """A complete folder of shards."""

    fingerprint: Fingerprint
    shards: tuple[ShardInfo, ...]
    rounding: Rounding | None = None
    """What rounding to int8 did to all rows: the sum of what the sidecars say; None where nothing was rounded."""
    skipped: int = 0
    """Documents of the corpus that could not be read, on the way to where these end."""
    control: int = 0
    """Control tokens in its text, where the tokenizer cannot read their spelling as text."""

    def __post_init__(self) -> None:
        check_chain(self.shards)

    @property
    def rows(self) -> int:
        """Activations stored."""
        return sum(shard.rows for shard in self.shards)

    @property
    def dropped(self) -> dict[str, int]:
        """Tokens that were seen and not stored, by reason."""
        return {reason: sum(getattr(shard, reason) for shard in self.shards) for reason in REASONS}

    @property
    def seen(self) -> int:
        """Real tokens that went through the model: those stored, and those dropped as not finite."""
        return self.rows + sum(self.dropped[reason] for reason in ("nan", "infinite"))

    @property
    def rounding_fvu(self) -> float | None:
        """Share of the variance about the mean row that rounding took; None where nothing was, or all rows are one."""
        return self.rounding and self.rounding.unexplained(self.rows)

    @property
    def sha256(self) -> str:
        """Names this content: it changes with any setting, any count and any stored byte."""
        return files.digest(self._body())

    def publish(self, folder: AnyPath) -> None:
        """Write it; from here on the folder counts as complete."""
        files.publish_json(folder / MANIFEST, self._body())

    @classmethod
    def read(cls, folder: AnyPath) -> "Manifest":
        """The manifest of a complete folder.

        Raises:
            ShardError: the folder is missing, unfinished, altered, or something else.
        """
        path = folder / MANIFEST
        if not files.is_there(path):
            raise ShardError(_why_incomplete(folder))
        body = files.read_json(path, kind=ShardError, what="a shard manifest", proven=True)
        try:
            manifest = _decoded(cls, body, {"fingerprint", "shards", "rounding", "skipped", "control"})
            if files.canonical(manifest._body()) != files.canonical(body):
                raise ValueError("it lacks a field, or its totals are not those of its shards")
        except ValueError as error:
            raise ShardError(f"{path} is not a shard manifest: {error}") from error
        return manifest

    def _body(self) -> dict[str, Any]:
        shards = [asdict(shard) for shard in self.shards]
        odd = {"skipped": self.skipped, "control": self.control}
        return {
            "fingerprint": _as_written(self)["fingerprint"],
            "shards": shards,
            "rounding": self.rounding and asdict(self.rounding),
            "rows": self.rows,
            "dropped": self.dropped,
            **{name: count for name, count in odd.items() if count},
        }


Proof = TypeVar("Proof", Sidecar, Manifest)


# ---- names and folders --------------------------------------------------------------------------


def shard_name(index: int) -> str:
    """File name of the shard with this number; names are never taken from a file's content."""
    return f"shard-{index:05d}.safetensors"


def shard_number(file: str) -> int | None:
    """The number of the shard that a file of this name is, or is the sidecar of; None: it is neither."""
    match = _SHARD.fullmatch(file)
    return int(match[1]) if match else None


def sidecar_path(folder: AnyPath, shard: str) -> AnyPath:
    """The sidecar that stands beside a shard."""
    return (folder / shard).with_suffix(".json")


def complete(folder: AnyPath) -> bool:
    """Whether collecting into this folder was finished."""
    path = folder / MANIFEST
    return path.is_file() and files.is_there(path)


def find_shards(run_folder: Path, point: str | None = None, *, shards: AnyPath | None = None) -> list[AnyPath]:
    """The complete shard folders of a run, in order of name: of one hook point, or of all.

    Args:
        shards: Where they are, unless in the run's own ``shards/``.
    """
    place = run_folder / "shards" if shards is None else shards
    return sorted((path for path in place.glob(f"*/{point or '*'}") if complete(path)), key=str)


def require_match(folder: AnyPath, expected: Fingerprint, there: Fingerprint) -> None:
    """Refuse shards made under other settings.

    Raises:
        ShardError: names each field that differs, with both values; where only the text does, says that it has changed.
    """
    if differences := expected.differences(there):
        if [name for name, _, _ in differences] == ["source"]:
            raise ShardError(
                f"{folder} holds the text of {there.corpus} as it was; it has changed since (then {there.source}, now "
                f"{expected.source}). Restore it, collect it again with --fresh, or choose another --run_dir"
            )
        pairs = [f"{name} expected {_brief(want)}, found {_brief(have)}" for name, want, have in differences]
        told = "; ".join(pairs[:4]) + (f"; and {len(pairs) - 4} more" if len(pairs) > 4 else "")
        raise ShardError(
            f"{folder} was collected under other settings: {told}. "
            "Repeat those settings, choose another --run_dir or --shards_dir, or start over with --fresh"
        )


def total_rounding(sidecars: Iterable[Sidecar]) -> Rounding | None:
    """What rounding did to the rows of all these shards; None where nothing was rounded."""
    roundings = (sidecar.rounding for sidecar in sidecars)
    total = next(roundings, None)
    for rounding in roundings:
        total = total and rounding and total + rounding
    return total


def check_chain(shards: Iterable[ShardInfo]) -> None:
    """Raise ValueError unless these shards follow one another from row and batch 0 without a gap."""
    rows = batches = 0
    for index, shard in enumerate(shards):
        if (shard.file, shard.first_row, shard.first_batch) != (shard_name(index), rows, batches):
            raise ValueError(f"{shard.file[:40]} does not follow the shards before it")
        if min(shard.rows, shard.bytes, *(getattr(shard, reason) for reason in REASONS)) < 0 or shard.batches < 1:
            raise ValueError(f"{shard.file} claims counts that are impossible")
        rows, batches = rows + shard.rows, batches + shard.batches


def _why_incomplete(folder: AnyPath) -> str:
    begun = sum(shard_number(path.name) is not None for path in folder.glob("shard-*.json"))
    if begun:
        return (
            f"{folder} is unfinished ({begun} shards, no {MANIFEST}); run the same collect command again to finish it"
        )
    return f"{folder} holds no shards; make them with: sae-forge collect"


def _as_written(proof: "Sidecar | Manifest") -> dict[str, Any]:
    """All that it holds, JSON-ready, but for what older versions did not know where it is as it was then."""
    body = asdict(proof)
    if not proof.fingerprint.normalize_text:
        del body["fingerprint"]["normalize_text"]
    return body


def _decoded(kind: type[Proof], body: Any, names: Set[str]) -> Proof:
    """A sidecar or a manifest from what its file holds under these names.

    Raises:
        ValueError: it is none of this format, or tells more or less of rounding than rows of its kind have to say.
    """
    if not isinstance(body, dict) or not isinstance(body.get("fingerprint"), dict):
        raise ValueError("it has no fingerprint")
    if (written := body["fingerprint"].get("format")) != FORMAT:
        raise ValueError(f"its format is {str(written)[:20]} and this version reads {FORMAT}")
    proof = records.decode(kind, {name: value for name, value in body.items() if name in names})
    fingerprint, rounding = proof.fingerprint, proof.rounding
    if (rounding is None) == is_rounded(fingerprint.storage_dtype):
        raise ValueError(f"its rounding is not that of rows stored as {fingerprint.storage_dtype}")
    if rounding and len(rounding.sums) != fingerprint.d_in:
        raise ValueError(f"its rounding sums rows {len(rounding.sums)} wide, not {fingerprint.d_in}")
    return proof


def _brief(value: Any) -> str:
    """Long enough for a sha256 and too short to fill a screen."""
    return text if len(text := repr(value)) <= 80 else f"{text[:80]}…"
