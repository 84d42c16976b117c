"""The five kinds of file that a stranger may hand us, each whole, with its reader, and with a forger.

A forger spoils a file knowingly and then mends the hashes that would give it away, so that the checks behind the hashes
are tried too. Readers are those the verbs call.
"""

import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import xxhash

from sae_forge.config.run import RunConfig
from sae_forge.config.train import TrainConfig
from sae_forge.data.manifest import MANIFEST, Fingerprint, shard_name, sidecar_path
from sae_forge.data.shards import ShardReader, ShardWriter
from sae_forge.errors import CheckpointError
from sae_forge.features.analysis import Analysis, Separation
from sae_forge.features.selection import Corpus, CorpusStats, SelectedLatent, Selection
from sae_forge.features.snippets import Snippet
from sae_forge.hookpoint import HookPoint
from sae_forge.sae.named import load_dictionary
from sae_forge.sae.store import CFG, WEIGHTS, Provenance, save_sae
from sae_forge.sae.topk import TopKSAE
from sae_forge.settings import read_config_file, resolve
from sae_forge.store import files
from sae_forge.store.runs import Run
from sae_forge.store.seal import sealed, sealed_json
from sae_forge.training.state import TrainState, load_checkpoint, save_checkpoint
from tests.acceptance.mutations import spoil_bytes, spoil_settings, spoil_tensors, spoil_tree

POINT = HookPoint(1)


@dataclass(frozen=True)
class Specimen:
    """Files to spoil, and what reads them."""

    folder: Path
    files: tuple[Path, ...]
    """Those that are spoilt, one at a time."""
    read: Callable[[Path], object]
    """Reads what the spoilt file belongs to; raises what it raises."""
    forge: Callable[[Path, Random], None]
    """Spoils a file knowingly."""
    names: tuple[str, ...] = ()
    """Words besides file names of which a refusal may name one instead: of settings, their flags."""

    def spoil(self, path: Path, draw: Random, *, knowingly: bool) -> None:
        """Change one file on disk."""
        if knowingly:
            self.forge(path, draw)
        else:
            path.write_bytes(spoil_bytes(path.read_bytes(), draw))


def shards(folder: Path) -> Specimen:
    """Two shards of activations; the first one and its records are spoilt."""
    _write_shards(folder)
    return Specimen(folder, (folder / shard_name(0),), _read_shards, forge_shard)


def records(folder: Path) -> Specimen:
    """The manifest of a folder of shards, and a sidecar."""
    _write_shards(folder)
    listed = (folder / MANIFEST, sidecar_path(folder, shard_name(0)))
    return Specimen(folder, listed, _read_shards, forge_record)


def saes(folder: Path) -> Specimen:
    """An SAE as ``--sae`` names it, and a checkpoint of its training."""
    sae = TopKSAE(5, 11, 2)
    save_sae(folder / "sae", sae, Provenance(model="tiny-llama", hook_point=str(POINT)))
    with torch.random.fork_rng():
        step = save_checkpoint(folder / "checkpoints", replace(TrainState.start(sae, 1.5), step=3, tokens=90))
    listed = (folder / "sae" / CFG, folder / "sae" / WEIGHTS, *sorted(step.iterdir()))
    kept = {path: path.read_bytes() for path in step.iterdir()}

    def read(path: Path) -> None:
        if path.parent.name == "sae":
            load_dictionary(path.parent, Run(folder / "run"), model="tiny-llama")
            return
        said: list[str] = []
        try:
            if load_checkpoint(folder / "checkpoints", TopKSAE(5, 11, 2), _Sayings(said)) is None:
                raise CheckpointError(said[0])  # a spoilt checkpoint is told of, dropped, and the one before it taken
        finally:
            step.mkdir(exist_ok=True)
            for file, content in kept.items():
                file.write_bytes(content)

    return Specimen(folder, listed, read, forge_sae)


def selections(folder: Path) -> Specimen:
    """A selection of latents, as ``--selection`` names it."""
    path = folder / "inlp-0.json"
    selection().save(path)
    return Specimen(folder, (path,), Selection.load, forge_json)


def settings(folder: Path) -> Specimen:
    """A TOML file, as ``--config`` names it, read for several verbs."""
    path, lines = folder / "forge.toml", _LINES
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))
    names = sorted({*_SETTINGS, *(line.partition(" ")[0] for line in lines)})

    def read(at: Path) -> None:
        for kind in (TrainConfig, RunConfig):
            resolve(kind, read_config_file(at, kind))

    def forge(at: Path, draw: Random) -> None:
        at.write_bytes(spoil_settings(lines, names, draw))

    return Specimen(folder, (path,), read, forge, tuple(word for name in names for word in (f"--{name}", f"{name}=")))


KINDS: dict[str, Callable[[Path], Specimen]] = {
    "shard": shards,
    "manifest": records,
    "checkpoint": saes,
    "features": selections,
    "config": settings,
}


# ---- shards -------------------------------------------------------------------------------------


def fingerprint(**changed: Any) -> Fingerprint:
    """That of the made-up shards."""
    settings: dict[str, Any] = {
        "model": "made-up", "weights": "w", "tokenizer": "t", "hook_point": str(POINT), "d_in": 8,
        "storage_dtype": "bf16", "ctx_len": 30, "bos": "row", "batch_size": 4, "max_tokens": None, "corpus": "forget-x",
        "source": "x", "role": "forget",
    }  # fmt: skip
    return Fingerprint(**{**settings, **changed})


def _write_shards(folder: Path) -> None:
    with ShardWriter(folder, fingerprint(), shard_rows=300) as writer:
        for index in range(5):
            made = torch.Generator().manual_seed(index)
            writer.write_batch(
                index,
                acts=torch.randn(115, 8, generator=made),
                seq_ids=torch.arange(115) // 30 + 4 * index,
                positions=(torch.arange(115) % 30).int(),
                token_ids=torch.randint(0, 300, (115,), generator=made).int(),
                special=5,
            )
        writer.finish()


def _read_shards(path: Path) -> None:
    for _ in ShardReader(path.parent).iter_blocks():
        pass


def forge_shard(path: Path, draw: Random) -> None:
    """A spoilt shard; half of them with a length and a header that its records vouch for."""
    content = spoil_tensors(path.read_bytes(), draw)
    path.write_bytes(content)
    if draw.randrange(2):
        length = min(struct.unpack_from("<Q", content)[0], len(content))
        record = sidecar_path(path.parent, path.name)
        body = json.loads(record.read_text())
        body["shard"]["bytes"] = len(content)
        body["hashes"]["header"] = xxhash.xxh3_64_hexdigest(content[: 8 + length])
        body["shard"]["hashes"] = files.digest(body["hashes"])
        vouch(record, body)
        agree(path.parent, body)


def forge_record(path: Path, draw: Random) -> None:
    """A spoilt record with a right seal; half of the sidecars with a manifest that agrees."""
    body = json.loads(path.read_text())
    text = spoil_tree(body, draw)
    try:
        found = files.parse_json(text)
        if path.name != MANIFEST and draw.randrange(2):
            found["shard"]["hashes"] = files.digest(found["hashes"])
            agree(path.parent, found)
        vouch(path, found)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        path.write_bytes(text)  # no JSON any more, or no record: no hash of it is to be had


def vouch(path: Path, body: dict[str, Any]) -> None:
    """Write a record under the right seal."""
    text = json.dumps(body, sort_keys=True, allow_nan=False)  # ASCII, so a name may be no Unicode
    path.write_bytes(sealed(text.encode()))


def agree(folder: Path, sidecar: dict[str, Any]) -> None:
    """Make the manifest say of the first shard what its sidecar says."""
    body = json.loads((folder / MANIFEST).read_text())
    before = body["shards"][0]
    body["fingerprint"], body["shards"][0] = sidecar["fingerprint"], sidecar["shard"]
    body["rows"] += sidecar["shard"]["rows"] - before["rows"]
    for reason in body["dropped"]:
        body["dropped"][reason] += sidecar["shard"][reason] - before[reason]
    vouch(folder / MANIFEST, body)


# ---- SAEs and selections ------------------------------------------------------------------------


class _Sayings:
    """A Progress that keeps what it is told."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, line: str) -> None:
        self._said.append(line)

    def task(self, title: str, total: int | None, unit: str) -> Any:
        raise AssertionError(f"reading a file began {title}")


def forge_sae(path: Path, draw: Random) -> None:
    if path.suffix == ".json":
        return forge_json(path, draw)
    path.write_bytes(spoil_tensors(path.read_bytes(), draw))
    found = files.file_sha256(path)
    if path.name == WEIGHTS:
        cfg = path.parent / CFG
        record = json.loads(cfg.read_text())
        record["sae_forge"]["weights_sha256"] = found
        return cfg.write_bytes(sealed_json(record)) and None
    state = path.parent / "state.json"
    record = json.loads(state.read_text())
    record["files"][path.name] = found
    return state.write_bytes(sealed_json(record)) and None


def forge_json(path: Path, draw: Random) -> None:
    """Spoilt JSON, under a right seal or without one."""
    text = spoil_tree(json.loads(path.read_text()), draw)
    path.write_bytes(sealed(text) if draw.randrange(2) else text)


def rename_inside(path: Path, name: str) -> None:
    """Make a sidecar and its manifest, or a checkpoint's state, call a file by another name; every seal is right."""
    record = json.loads(path.read_text())
    if path.name == "state.json":
        record["files"][name] = record["files"].pop("weights.safetensors")
        path.write_bytes(sealed_json(record) if name.isprintable() else json.dumps(record).encode())
        return
    record["shard"]["file"] = name
    vouch(path, record)
    agree(path.parent, record)


def selection(indices: Iterable[int] = (4, 2)) -> Selection:
    """A small one with every part that a selection may have."""
    stats = CorpusStats(5, 0.5, 0.75, 3.0)
    latents = tuple(
        SelectedLatent(
            index, 1.5, 2.0, 0.25, 4.0, 0.125, 0.01, stats, {"stones": stats}, (Snippet("a «b» c", 3.0, 1, 2),)
        )
        for index in indices
    )
    corpus = Corpus("wizards", 99, "ab", 1)
    separation = Separation({"forget": 50, "retain stones": 60}, 0.75, {"stones": 0.75}, 0.1, 0.2)
    return Selection(
        sae=f"{POINT}/k2-d11-s0",
        weights="0" * 64,
        d_sae=11,
        method="inlp",
        settings={"sort_by": "score", "num_features": 2},
        forget_corpus=corpus,
        retain_corpora={"stones": replace(corpus, name="stones")},
        requested=2,
        candidates=5,
        filtered={"rare": 6},
        latents=latents,
        retain_rates={"stones": (0.0, 0.5)},
        dead=(0, 3),
        analysis=Analysis(separation, {"frequency": 0.5}),
    )


# ---- settings -----------------------------------------------------------------------------------

_LINES = [
    "layer = [1]", 'site = "resid_post"', "seed = 3", 'dtype = "fp32"', 'forget = "a.jsonl"', "ctx_len = 64",
    "max_tokens = 1000", 'storage_dtype = "bf16"', "k = 8", "d_sae = 64", "epochs = 1", "batch_size = 256",
    "lr = 1e-3", "max_grad_norm = 1.0",
]  # fmt: skip
_SETTINGS = [
    "model",
    "run_dir",
    "revision",
    "quantize",
    "k",
    "lr",
    "methods",
    "num_features",
    "sae",
    "scale",
    "revision",
]
