"""Places of shards that runs share, lose or mistype: nobody else's files are deleted, or taken for the run's own."""

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from test_shards import BATCHES, abandon, make_fingerprint, tree, write_all
from tiny_run import forge

from sae_forge.config.train import TrainConfig
from sae_forge.data.shards import ShardWriter
from sae_forge.errors import ConfigError, ShardError
from sae_forge.pipeline.verify import verify
from sae_forge.store.remote import AnyPath
from sae_forge.store.runs import Run

SMALL = ["--model", "tiny-llama", "--max_tokens", "600", "--shard_rows", "300", "--ctx_len", "64"]
TRAIN = ["--model", "tiny-llama", "--max_steps", "2", "--batch_size", "64", "--expansion_factor", "2"]
TRAIN += ["--loss_tokens", "64"]


def collect(run: Path, *flags: str, code: int = 0) -> str:
    return forge("collect", *SMALL, "--run_dir", str(run), *flags, code=code)


def train(run: Path, *flags: str, code: int = 0) -> str:
    return forge("train", *TRAIN, "--run_dir", str(run), *flags, code=code)


def contents(place: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(place)): path for path in place.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name != ".lock"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a first run has put its shards."""
    collect(tmp_path / "first", "--shards_dir", f"file://{tmp_path}/place")
    return tmp_path / "place"


@pytest.fixture
def text(tmp_path: Path) -> str:
    """A corpus that only one run collects."""
    (tmp_path / "granite.txt").write_text("\n".join(f"Granite {n} cools slowly in the north." for n in range(80)))
    return str(tmp_path / "granite.txt")


# ---- what may be deleted ------------------------------------------------------------------------


def unfinished(kind: str, tmp_path: Path) -> AnyPath:
    """A folder of some whole shards, on this machine or on a store."""
    folder = tmp_path / "place"
    write_all(folder)
    (folder / "manifest.json").unlink()
    assert len(list(folder.glob("shard-*.json"))) >= 3
    return folder if kind == "folder" else Run(tmp_path / "run", f"file://{folder}").shards


@pytest.mark.parametrize("kind", ["folder", "url"])
@pytest.mark.parametrize("name", ["shard-00000.json", "shard-00001.json", "shard-00001.safetensors"])
def test_a_shard_lost_before_whole_ones_is_named_and_they_stay(kind: str, name: str, tmp_path: Path) -> None:
    folder = unfinished(kind, tmp_path)
    (tmp_path / "place" / name).unlink()
    before = contents(tmp_path / "place")
    with pytest.raises(ShardError, match=f"{name} is missing, and shard-0000[12].safetensors after it is whole"):
        write_all(folder)  # pyright: ignore[reportArgumentType]
    assert contents(tmp_path / "place") == before
    write_all(folder, fresh=True)  # pyright: ignore[reportArgumentType]


def test_the_tail_of_a_record_may_be_damaged_on_a_store_too(tmp_path: Path) -> None:
    folder, record = unfinished("url", tmp_path), tmp_path / "place" / "shard-00000.json"
    record.write_bytes(record.read_bytes()[:-1] + b"!")
    before = contents(tmp_path / "place")
    with pytest.raises(ShardError, match=r"shard-00000\.json is (damaged|not)"):
        write_all(folder)  # pyright: ignore[reportArgumentType]
    assert contents(tmp_path / "place") == before


def test_starting_over_may_be_stopped_between_any_two_deletions(tmp_path: Path, monkeypatch) -> None:
    write_all(tmp_path / "whole")
    unlink, left = Path.unlink, 0

    def maybe(path: Path, *args: Any, **settings: Any) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        unlink(path, *args, **settings)

    for deletions in range(1, 7):
        folder = tmp_path / str(deletions)
        shutil.copytree(tmp_path / "whole", folder)
        left = deletions
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(Path, "unlink", maybe)
            write_all(folder, fresh=True)
        write_all(folder)
        assert tree(folder) == tree(tmp_path / "whole")


STRAYS = ["shard-mine.json", "shard-00001-of-00002.safetensors", "shard-1.json", "shard-000001.json", "notes.txt"]
STRAYS += ["shard-notes.safetensors", ".mine.part", ".shard-notes.safetensors.part"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("kind", ["folder", "url"])
def test_what_lies_beside_shards_stays(kind: str, fresh: bool, tmp_path: Path) -> None:
    place = tmp_path / "place"
    abandon(place, BATCHES)
    for name in STRAYS:
        (place / name).write_text("mine")
    (place / "shard-00777.json").mkdir()
    (place / "shard-dir.json").mkdir()
    folder = place if kind == "folder" else Run(tmp_path / "run", f"file://{place}").shards
    (place / "shard-00009.safetensors").write_text("left by a run that was killed")
    with ShardWriter(folder, make_fingerprint(), shard_rows=600, fresh=fresh):
        assert not (place / "shard-00009.safetensors").exists()
        assert (place / "shard-00000.json").exists() != fresh
    assert {path.read_text() for path in map(place.joinpath, STRAYS)} == {"mine"}
    assert (place / "shard-00777.json").is_dir()
    assert (place / "shard-dir.json").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_starting_over_deletes_what_this_run_began_alone(scheme: str, tmp_path: Path) -> None:
    place, where = tmp_path / "place", ["--shards_dir", f"{scheme}{tmp_path}/place"]
    collect(tmp_path / "first", *where)
    before = contents(place)
    said = collect(tmp_path / "second", *where, "--fresh", code=2)
    assert "was collected by another run" in said
    assert "give another --shards_dir" in said
    said = collect(tmp_path / "second", *where, "--max_tokens", "500", code=2)
    assert "max_tokens expected 500, found 600" in said
    collect(tmp_path / "second", *where, "--max_tokens", "500", "--fresh", code=2)
    collect(tmp_path / "third", *where)  # it takes what is there, which makes it no more its own
    collect(tmp_path / "third", *where, "--fresh", code=2)
    assert contents(place) == before
    collect(tmp_path / "second", "--shards_dir", f"{tmp_path}/other")  # which a refusal has not tied it from
    collect(tmp_path / "first", "--max_tokens", "500", "--fresh")
    assert contents(place) != before


@pytest.mark.slow
def test_what_a_run_began_at_one_place_is_not_its_own_at_another(place: Path, tmp_path: Path) -> None:
    run, before = tmp_path / "second", contents(place)
    collect(run, "--shards_dir", f"file:///proc/nope{tmp_path}", code=5)
    assert Run(run).begun
    collect(run, "--shards_dir", f"file://{place}", "--fresh", code=2)
    collect(run, "--shards_dir", f"file://{place}")
    assert "was collected by another run" in collect(run, "--fresh", code=2)
    assert contents(place) == before


# ---- what is taken for a run's own --------------------------------------------------------------


def test_shards_of_another_model_are_not_trained_on(place: Path, tmp_path: Path) -> None:
    flags = ["--model", "tiny-gemma2", "--layer", "1", "--shards_dir", f"file://{place}"]
    said = train(tmp_path / "second", *flags, code=2)
    assert "was collected from tiny-llama" in said
    assert "than tiny-gemma2 has" in said
    assert not (tmp_path / "second" / "saes").exists()


@pytest.mark.slow
def test_a_run_trains_on_its_own_corpora_where_others_are_too(place: Path, text: str, tmp_path: Path) -> None:
    collect(tmp_path / "second", "--retain", text, "--shards_dir", f"file://{place}")
    shard = next(place.glob("retain-minerals/*/shard-00000.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"!")
    assert [verify(Run(tmp_path / run)).exit_code for run in ("first", "second")] == [2, 0]
    trained = json.loads(train(tmp_path / "second", "--json"))["outputs"]
    cfg = json.loads((Path(next(iter(trained.values()))) / "cfg.json").read_text())
    assert "granite" in json.dumps(cfg)
    assert "minerals" not in json.dumps(cfg)


@pytest.mark.slow
def test_what_a_run_has_trained_on_stays_its_own_when_more_is_collected(place: Path, text: str, tmp_path: Path) -> None:
    run, before = tmp_path / "second", Run(tmp_path / "first").corpora
    train(run, "--shards_dir", f"file://{place}")
    assert Run(run).corpora == before
    collect(tmp_path / "third", "--retain", text, "--shards_dir", f"file://{place}")
    train(run)  # refused, if what it trains on were another now
    assert len(list(run.glob("saes/*/*/cfg.json"))) == 1


class Forgetful(LocalFileSystem):
    """A store whose listings lack the corpora to forget."""

    protocol = "forgetful"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return LocalFileSystem._strip_protocol(str(path).replace("forgetful://", "file://"))

    def ls(self, path: Any, detail: bool = False, **settings: Any) -> Any:
        found = super().ls(path, detail=True, **settings)
        kept = [entry for entry in found if "/forget-" not in entry["name"]]
        return kept if detail else [entry["name"] for entry in kept]


fsspec.register_implementation("forgetful", Forgetful, clobber=True)


@pytest.mark.slow
def test_a_corpus_that_a_listing_lacks_is_trained_on(tmp_path: Path) -> None:
    collect(tmp_path / "run", "--shards_dir", f"forgetful://{tmp_path}/place")
    trained = json.loads(train(tmp_path / "run", "--json"))["outputs"]
    cfg = json.loads((Path(next(iter(trained.values()))) / "cfg.json").read_text())
    assert "wizards" in json.dumps(cfg)


# ---- places that are gone, or never were --------------------------------------------------------


def test_corpora_that_are_gone_are_found_missing(place: Path, tmp_path: Path) -> None:
    assert verify(Run(tmp_path / "first")).exit_code == 0
    lost = next(place.glob("forget-*"))
    shutil.rmtree(lost)
    found = verify(Run(tmp_path / "first"))
    assert [entry["file"] for entry in found.metrics["unproven"]] == [f"file://{lost}"]
    shutil.rmtree(place)
    found = verify(Run(tmp_path / "first"))
    assert found.exit_code == 2
    assert f"file://{lost}" in [entry["file"] for entry in found.metrics["damaged"]]


def test_a_shard_missing_before_others_is_damage_in_an_unfinished_folder(tmp_path: Path) -> None:
    folder = tmp_path / "shards" / "retain-gnomes" / "blocks.1.hook_resid_post"
    write_all(folder)
    for name in ("manifest.json", "shard-00000.json"):
        (folder / name).unlink()
    assert [entry["file"][-16:] for entry in verify(Run(tmp_path)).metrics["damaged"]] == ["shard-00000.json"]


@pytest.mark.slow
def test_a_run_that_was_moved_away_from_its_shards_says_so(tmp_path: Path) -> None:
    collect(tmp_path / "run", "--shards_dir", str(tmp_path / "place"))
    (tmp_path / "deep").mkdir()
    moved = (tmp_path / "run").rename(tmp_path / "deep" / "run")
    for verb in (train, collect):
        said = verb(moved, code=2)
        assert f"says that the shards are in {tmp_path}/deep/place, and none are" in said
    assert not (tmp_path / "deep" / "place").exists()
    train(moved, "--shards_dir", str(tmp_path / "place"))
    assert Run(moved).shards == tmp_path / "place"


@pytest.mark.slow
def test_a_place_that_was_mistyped_can_be_told_anew(tmp_path: Path) -> None:
    run, wrong = tmp_path / "run", tmp_path / "file"
    wrong.write_text("no folder")
    for _ in range(2):
        assert "Traceback" not in collect(run, "--shards_dir", f"file:///proc/nope{tmp_path}", code=5)
        collect(run, "--shards_dir", str(tmp_path / "place"))
        assert Run(run).shards == tmp_path / "place"
        assert "the shards of" in collect(run, "--shards_dir", str(tmp_path / "other"), code=2)
        (run / "shards" / "place.json").unlink()
        shutil.rmtree(tmp_path / "place")
    collect(run, "--shards_dir", str(run / "shards"))
    assert "the shards of" in collect(run, "--shards_dir", str(tmp_path / "place"), code=2)


@pytest.mark.parametrize("listed", ["[3]", '["../a"]', '{"a": 1}', '["/etc"]'])
def test_a_list_of_corpora_that_is_none_is_refused(listed: str, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "corpora.json").write_text(listed)
    with pytest.raises(ShardError, match=r"corpora\.json is not"):
        _ = Run(tmp_path).corpora


# ---- refused at once ----------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["shuffle_gb", "max_disk_gb"])
@pytest.mark.parametrize("value", [1e300, float("inf"), float("nan")])
def test_more_than_any_machine_has_is_refused(setting: str, value: float) -> None:
    settings: dict[str, Any] = {setting: value}
    with pytest.raises(ConfigError, match="at most 1e"):
        TrainConfig(**settings)


def test_too_small_a_pool_is_refused_before_anything_is_collected(tmp_path: Path) -> None:
    said = train(tmp_path / "run", "--shuffle_gb", "0.0001", code=2)
    assert "--shuffle_gb 0.0001 is too little" in said
    assert not (tmp_path / "run").exists()
