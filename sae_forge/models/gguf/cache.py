"""GGUF files as folders that load like any model: dequantised once into a cache, whole or not at all.

A folder of the cache is named by the content of the file it was made from. It appears under its name by one rename,
with a record of its files; each file is compared with it before it is loaded.
"""

import importlib.util
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import xxhash
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor
from transformers import GenerationConfig

from sae_forge.config.model import expanded
from sae_forge.errors import UnsupportedModelError
from sae_forge.models.gguf import packaged
from sae_forge.models.gguf.header import architecture_in, is_gguf, read_header
from sae_forge.models.gguf.tokenizer import tokenizer_of
from sae_forge.models.gguf.weights import architecture_called, config_of, names_of, require_whole, stored_as, tensors_of
from sae_forge.store import files
from sae_forge.store.cache import cache_folder

CONVERSION = 1
"""Goes up when the same file would become another folder."""
RECORD = "gguf.json"
_SHARD_BYTES = 2 * 2**30
"""Weights held in memory at a time, and the size of a weight file."""


@dataclass(frozen=True)
class Converted:
    """A GGUF model in the cache."""

    folder: Path
    name: str
    """As it was named, or the file's name."""
    stored: str
    """How its weights were stored, in words: ``4-bit (Q4_1 GGUF)``."""


def converted(name: str) -> Converted | None:
    """The folder that loads as the GGUF model ``name``, made now if it is not there; None if that names none.

    Args:
        name: A name of ``packaged.MODELS``, or a path to a GGUF file.

    Raises:
        UnsupportedModelError: a package is missing, terms are not accepted, or the file is damaged, cut short or of an
            unknown architecture; no weight has been read then. Or a file of the cache is not what was written.
        ResourceError: the disk does not hold it.
    """
    path = expanded(name)
    if name in packaged.MODELS and not ((path / "config.json").exists() or path.is_file()):  # a run may be called so
        packaged.require_accepted(name)
        folder = _place(packaged.MODELS[name].sha256)
        if not folder.exists():
            parts = packaged.parts_of(name)
            _require_gguf(name)
            with _alone(folder) as absent:
                if absent:
                    whole = folder.with_name(f".{name}.gguf")  # what a killed process left of it is written over
                    files.require_disk(folder, sum(part.stat().st_size for part in parts))
                    try:
                        packaged.write_whole(name, parts, whole)
                        _convert(whole, folder)
                    finally:
                        whole.unlink(missing_ok=True)
        return _checked(folder, name)
    if not is_gguf(path):
        return None
    architecture_called(architecture_in(path), path)  # named before anything is hashed, or taken into memory
    _require_gguf(name)
    folder = _place(_xxh3(path))
    with _alone(folder) as absent:
        if absent:
            _convert(path, folder)
    return _checked(folder, path.name)


def _place(content: str) -> Path:
    return cache_folder() / "gguf" / f"{content}-{CONVERSION}"


def _require_gguf(name: str) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedModelError(
            f"{name} needs the package gguf, which is not installed: pip install 'sae-forge[real]'"
        )


@contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether the folder is to be made, by this process alone; another that is making it is waited for."""
    if folder.exists():
        yield False
        return
    with files.locked(folder.parent, wait=True):
        files.discard_rest(files.scratch_of(folder))  # what a killed conversion left
        yield not folder.exists()


def _convert(source: Path, folder: Path) -> None:
    header = read_header(source)
    config = config_of(header)
    require_whole(header)
    names = names_of(header, config)
    tokenizer = tokenizer_of(header)
    sizes = {name: 4 * math.prod(header.tensors[stored].shape) for name, stored in names.items()}
    files.require_disk(folder, sum(sizes.values()))
    with files.publish_folder(folder) as scratch:
        config.save_pretrained(scratch)
        GenerationConfig.from_model_config(config).save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        _save_weights(tensors_of(header, names), sizes, scratch)
        record = {
            "name": source.name.removeprefix("."),
            "architecture": header.architecture,
            "stored": stored_as(header),
            "files": {path.name: _xxh3(path) for path in sorted(scratch.iterdir())},
        }
        files.publish_json(scratch / RECORD, record)


def _save_weights(tensors: Iterable[tuple[str, Float[Tensor, "..."]]], sizes: Mapping[str, int], folder: Path) -> None:
    """Write the weights as they come, as many to a file as memory is to hold."""
    groups: list[list[str]] = [[]]
    room = _SHARD_BYTES
    for name, size in sizes.items():
        if groups[-1] and size > room:
            groups.append([])
            room = _SHARD_BYTES
        groups[-1].append(name)
        room -= size
    coming, where = iter(tensors), {}
    for number, group in enumerate(groups, 1):
        file = "model.safetensors" if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
        save_file(dict(islice(coming, len(group))), folder / file, {"format": "pt"})
        where |= dict.fromkeys(group, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _checked(folder: Path, name: str) -> Converted:
    """What stands in the cache, every byte of it compared with what was written."""
    how = f"delete {folder}, and the same command makes it again"
    record = files.read_json(folder / RECORD, kind=UnsupportedModelError, what="the record of a converted model")
    match record:
        case {"stored": str() as stored, "files": {**written}}:
            pass
        case _:
            raise UnsupportedModelError(f"the cache of {name} is damaged ({RECORD}): {how}")
    for file, digest in written.items():
        path = folder / Path(file).name
        if not path.is_file() or _xxh3(path) != digest:
            raise UnsupportedModelError(f"the cache of {name} is damaged ({file}): {how}")
    return Converted(folder, name, stored)


def _xxh3(path: Path) -> str:
    """A file's content, read once by this process while nothing writes to it."""
    said = path.stat()
    return _xxh3_of(path.resolve(), said.st_ino, said.st_size, said.st_mtime_ns, said.st_ctime_ns)


@cache
def _xxh3_of(path: Path, *state: int) -> str:
    del state  # another state is another content
    seen = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(2**22):
            seen.update(block)
    return seen.hexdigest()
