"""What a killed run left in a folder of shards: whole shards, which are taken over, and the rest, which is deleted."""

import itertools
import stat
from collections.abc import Iterable
from dataclasses import replace

from sae_forge.data.manifest import (
    MANIFEST,
    Fingerprint,
    ShardInfo,
    Sidecar,
    check_chain,
    require_match,
    shard_name,
    shard_number,
    sidecar_path,
)
from sae_forge.data.shard_file import ShardFile
from sae_forge.errors import ShardError
from sae_forge.store import files
from sae_forge.store.remote import AnyPath, beside


def stands(folder: AnyPath, number: int) -> bool:
    """Whether a shard is whole, as far as names can say: it and its sidecar, which is published after it."""
    shard = folder / shard_name(number)
    return shard.exists() and files.is_there(sidecar_path(folder, shard.name))


def whole_shards(folder: AnyPath, fingerprint: Fingerprint) -> list[Sidecar]:
    """The sidecars of the shards that stand in an unbroken row from the first, every byte of them read.

    Of fewer tokens of the same text the last shard is left out, which ends where that text was cut off.

    Raises:
        ShardError: one is damaged, was made under other settings, or does not follow the one before it.
    """
    sidecars: list[Sidecar] = []
    while stands(folder, len(sidecars)):
        sidecar = Sidecar.read(folder, len(sidecars))
        if not fingerprint.extends(sidecar.fingerprint):
            require_match(folder, fingerprint, sidecar.fingerprint)
        ShardFile(folder, sidecar).verify()
        sidecars.append(sidecar)
    if sidecars and sidecars[-1].fingerprint != fingerprint:
        del sidecars[-1]
    try:
        check_chain([sidecar.shard for sidecar in sidecars])
    except ValueError as error:
        raise ShardError(f"{folder} cannot be resumed: {error}; start over with --fresh") from error
    return sidecars


def take_over(folder: AnyPath, fingerprint: Fingerprint, sidecars: Iterable[Sidecar]) -> list[ShardInfo]:
    """What these say of their shards; those of fewer tokens are written anew, as if all had been asked for at once."""
    shards = []
    for sidecar in sidecars:
        if sidecar.fingerprint != fingerprint:
            replace(sidecar, fingerprint=fingerprint).publish(folder)
        shards.append(sidecar.shard)
    return shards


def clear(folder: AnyPath, *, beyond: int, fresh: bool) -> None:
    """Delete all part files, and the shards from this number on: the last first, so that who is killed leaves no gap.

    Raises:
        ShardError: a whole shard would go, which is for ``fresh`` to do.
    """
    left: dict[int, list[AnyPath]] = {}  # by number, each shard's sidecar first
    for path in sorted(folder.glob("shard-*.*"), key=lambda path: path.name):
        number = shard_number(path.name)
        if number is not None and number >= beyond and stat.S_ISREG(path.lstat().st_mode):
            left.setdefault(number, []).append(path)
    if not fresh:
        _require_no_gap(folder, beyond, left)
    for number in sorted(left, reverse=True):
        for path in left[number]:
            path.unlink(missing_ok=True)
    for path in itertools.chain(folder.glob(".*.part"), beside(folder).glob(".*.part")):
        published = path.name.removeprefix(".").removesuffix(".part")
        if published == MANIFEST or shard_number(published) is not None:
            path.unlink(missing_ok=True)


def _require_no_gap(folder: AnyPath, gap: int, left: Iterable[int]) -> None:
    """Refuse to delete whole shards: each was published after the one before it, so no killed run left a gap."""
    later = next((number for number in sorted(left) if number > gap and stands(folder, number)), None)
    if later is None:
        return
    shard = folder / shard_name(gap)
    lost = sidecar_path(folder, shard.name) if shard.exists() else shard
    raise ShardError(
        f"{lost} is {'damaged' if lost.exists() else 'missing'}, and {shard_name(later)} after it is whole; "
        "restore it, or start over with --fresh"
    )
