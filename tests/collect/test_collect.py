"""Collecting: shards hold what the model computes, for real tokens only, and a kill at any moment leaves no trace."""

import copy
import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared import ended, forked
from tiny_tokenizer import TEXT

from sae_forge import collect as verb
from sae_forge.collect import CollectReport, collect
from sae_forge.collect_plan import peak_bytes, plan
from sae_forge.config.collect import CollectConfig
from sae_forge.data.shards import Manifest, ShardReader, complete, find_shards
from sae_forge.errors import ConfigError, DataError, NumericalError, ResourceError, ShardError
from sae_forge.hookpoint import HookPoint
from sae_forge.models.hooks import capture, splice
from sae_forge.models.loading import load_model
from sae_forge.models.tokens import text_ids
from sae_forge.progress import SILENT
from sae_forge.store.tensors import DTYPES

DOCUMENTS = [f"{TEXT[i % 3]} Number {i}." for i in range(20)]


class Listener:
    """Progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: dict[str, int] = {}
        self.facts: dict[str, float | str] = {}

    def say(self, line: str) -> None:
        self.lines.append(line)

    @contextmanager
    def task(self, title, total, unit):
        self.title = title
        self.done[title] = 0
        self.total = total
        yield self

    def advance(self, amount: int, **facts: float | str) -> None:
        self.done[self.title] += amount
        self.facts = facts


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    root = tmp_path_factory.mktemp("corpora")
    for name, documents in {"saga": DOCUMENTS[:13], "rocks": DOCUMENTS[13:]}.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    return [("forget", str(root / "saga.jsonl")), ("retain", str(root / "rocks.jsonl"))]


def make_config(run_dir: Path, **settings) -> CollectConfig:
    given = {"layer": (1, 2), "ctx_len": 24, "model_batch_size": 3, "shard_rows": 150, "storage_dtype": "fp32"}
    return CollectConfig(**{"run_dir": run_dir, **given, **settings})


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder that was published, by path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def rows(folder: Path) -> dict[str, torch.Tensor]:
    blocks = list(ShardReader(folder).iter_blocks())
    return {name: torch.cat([getattr(block, name) for block in blocks]) for name in
            ("acts", "seq_ids", "positions", "token_ids")}  # fmt: skip


@pytest.mark.slow
def test_rows_are_the_activations_of_the_real_tokens(tiny_model, corpora, tmp_path):
    config = make_config(tmp_path, layer=(3, 1), site="mlp_out")
    report = collect(config, tiny_model, corpora)
    total = 0
    for folder in report.folders:
        point, stored = HookPoint.parse(folder.name), rows(folder)
        total += len(stored["acts"])
        for seq_id in stored["seq_ids"].unique():
            here = stored["seq_ids"] == seq_id
            positions = stored["positions"][here].long()
            row = torch.full((1, int(positions[-1]) + 1), tiny_model.tokenizer.eos_token_id)
            row[0, 0] = tiny_model.tokenizer.bos_token_id
            row[0, positions] = stored["token_ids"][here].long()
            x = capture(tiny_model, [point], row, torch.ones_like(row))[point]
            torch.testing.assert_close(stored["acts"][here], x[0, positions], rtol=1e-4, atol=1e-4)
        assert not set(stored["token_ids"].tolist()) & tiny_model.special_ids
    expected = sum(
        len(ids)
        for _, source in corpora
        for ids in tiny_model.tokenizer(
            [json.loads(line)["text"] for line in Path(source).read_text().splitlines()], add_special_tokens=False
        )["input_ids"]
    )
    assert total == 2 * expected
    assert report.tokens == report.collected == expected


@pytest.mark.slow
def test_report_and_folders(tiny_model, corpora, tmp_path):
    report = collect(make_config(tmp_path), tiny_model, corpora)
    assert [str(folder.relative_to(tmp_path)) for folder in report.folders] == [
        f"shards/{name}/blocks.{layer}.hook_resid_post" for name in ("forget-saga", "retain-rocks") for layer in (1, 2)
    ]
    assert set(find_shards(tmp_path)) == set(report.folders)
    manifests = [ShardReader(folder).manifest for folder in report.folders]
    assert report.shards == sum(len(manifest.shards) for manifest in manifests) > 4
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert report.tokens == manifests[0].rows + manifests[2].rows
    sequences = [int(rows(folder)["seq_ids"].max()) + 1 for folder in report.folders[::2]]
    separators = 12 + 6
    assert report.dropped == {"nan": 0, "infinite": 0, "special": sum(sequences) + separators}
    assert set(report.to_json()) == {
        "tokens",
        "bytes",
        "shards",
        "tokens_per_second",
        "dropped",
        "skipped_documents",
        "control_tokens_in_text",
        "rounding_fvu",
        "unmeasured",
    }
    assert set(report.to_json()["dropped"]) == {"nonfinite", "nan", "infinite", "special"}
    assert report.tokens_per_second > 0
    assert f"{report.tokens:,} tokens" in report.summary()
    for name, content in tree(tmp_path).items():
        assert str(tmp_path).encode() not in content, name
    noted = json.loads((report.folders[0] / "config.json").read_text())
    assert noted["settings"]["ctx_len"] == 24
    assert noted["model"] == tiny_model.fingerprint()
    assert noted["versions"]["torch"] == torch.__version__


@pytest.mark.slow
def test_one_pass_gives_what_a_pass_a_site_gives(tiny_model, corpora, tmp_path):
    collect(make_config(tmp_path / "together", layer=(0, 2)), tiny_model, corpora[:1])
    for layer in (0, 2):
        collect(make_config(tmp_path / "apart", layer=(layer,)), tiny_model, corpora[:1])
    assert tree(tmp_path / "together") == tree(tmp_path / "apart")


def test_nothing_above_the_highest_layer_runs(tiny_llama, corpora, tmp_path):
    def fail(x, real):
        raise RuntimeError("a layer ran that nobody needs")

    with splice(tiny_llama, HookPoint(2, "resid_pre"), fail):
        collect(make_config(tmp_path, layer=(1,)), tiny_llama, corpora[:1])
        with pytest.raises(RuntimeError, match="nobody needs"):
            collect(make_config(tmp_path, layer=(2,)), tiny_llama, corpora[:1])


@pytest.mark.parametrize("storage_dtype", ["bf16", "fp16"])
def test_storage_precision(tiny_llama, corpora, tmp_path, storage_dtype):
    config = make_config(tmp_path, layer=(1,), storage_dtype=storage_dtype)
    folder = collect(config, tiny_llama, corpora[1:]).folders[0]
    exact = collect(make_config(tmp_path / "exact", layer=(1,)), tiny_llama, corpora[1:]).folders[0]
    assert torch.equal(rows(folder)["acts"], rows(exact)["acts"].to(DTYPES[storage_dtype]))


def test_max_tokens_counts_text_and_not_special_tokens(tiny_llama, corpora, tmp_path):
    report = collect(make_config(tmp_path, max_tokens=101, layer=(1,)), tiny_llama, corpora)
    assert [ShardReader(folder).rows for folder in report.folders] == [101, 101]


@pytest.mark.slow
def test_complete_folders_are_left_alone_and_begun_again_on_demand(tiny_llama, corpora, tmp_path, monkeypatch):
    config = make_config(tmp_path)
    first = collect(config, tiny_llama, corpora)
    before, times = tree(tmp_path), {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    listener = Listener()
    with monkeypatch.context() as patched:
        patched.setattr(verb, "capture", None)
        again = collect(config, tiny_llama, corpora, listener)
    assert again == first
    assert (again.collected, again.tokens_per_second) == (0, 0.0)
    assert sum("is complete; skipped" in line for line in listener.lines) == 4
    assert not any("plan" in line for line in listener.lines)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")} == times

    wider = collect(make_config(tmp_path, layer=(0, 1)), tiny_llama, corpora)
    assert wider.collected == first.tokens, "only the new layer was missing"

    fresh = collect(make_config(tmp_path, resume=False), tiny_llama, corpora)
    assert fresh.collected == first.tokens
    assert {name: tree(tmp_path)[name] for name in before} == before


@pytest.mark.slow
def test_an_interrupted_run_ends_in_the_same_bytes(tiny_model, corpora, tmp_path, monkeypatch):
    collect(make_config(tmp_path / "whole"), tiny_model, corpora)
    resumed = make_config(tmp_path / "resumed")
    calls = 0

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls % 4 == 0:
            raise KeyboardInterrupt
        return capture(*args)

    monkeypatch.setattr(verb, "capture", interrupted)
    listener, stops = Listener(), 0
    for _ in range(60):
        try:
            collect(resumed, tiny_model, corpora, listener)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert any("tokens are there; going on" in line for line in listener.lines)
    assert tree(tmp_path / "resumed") == tree(tmp_path / "whole")


def test_hook_points_that_stopped_at_different_batches_are_both_finished(tiny_llama, corpora, tmp_path):
    config = make_config(tmp_path, layer=(0, 1, 2))
    folders = collect(config, tiny_llama, corpora[:1]).folders
    whole = tree(tmp_path)
    assert len(list(folders[0].glob("*.safetensors"))) >= 3
    for folder, kept in zip(folders, (1, 2, 3), strict=True):
        if kept < 3:
            (folder / "manifest.json").unlink()
            for shard in sorted(folder.glob("shard-*"))[2 * kept :]:
                shard.unlink()
    assert collect(config, tiny_llama, corpora[:1]).collected > 0
    assert tree(tmp_path) == whole


def test_tokenising_ahead_ends_with_its_reader_and_hands_on_errors():
    def numbers():
        yield from range(5)
        raise DataError("the text ends here")

    def tokenising() -> bool:
        return any(thread.name.startswith("tokenize") for thread in threading.enumerate())

    ahead = verb._made_ahead(numbers(), 3)
    assert [next(ahead) for _ in range(5)] == list(range(5))
    assert tokenising()
    with pytest.raises(DataError, match="ends here"):
        next(ahead)
    assert not tokenising()
    stopped = verb._made_ahead(numbers(), 3)
    next(stopped)
    stopped.close()
    assert not tokenising()


def test_a_killed_process_ends_in_the_same_bytes(model_folders, corpora, tmp_path, monkeypatch):
    lm = load_model(str(model_folders["gemma2"]), device="cpu")
    collect(make_config(tmp_path / "whole"), lm, corpora)
    (batches, told), read = os.pipe(), verb.capture

    def slowly(*args):
        os.write(told, b".")
        time.sleep(0.02)
        return read(*args)

    monkeypatch.setattr(verb, "capture", slowly)
    pid = forked(lambda: collect(make_config(tmp_path / "killed"), lm, corpora), tmp_path / "said")
    for _ in range(5):
        assert os.read(batches, 1) == b"."
    time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    monkeypatch.undo()
    begun = tmp_path / "killed" / "shards" / "forget-saga" / "blocks.1.hook_resid_post"
    assert not complete(begun)
    report = collect(make_config(tmp_path / "killed"), lm, corpora)
    assert 0 < report.collected < report.tokens
    assert tree(tmp_path / "killed") == tree(tmp_path / "whole")


# ---- the plan -----------------------------------------------------------------------------------


def test_the_plan_is_said_first_and_comes_true(tiny_llama, corpora, tmp_path):
    listener = Listener()
    config = make_config(tmp_path)
    jobs = plan(config, tiny_llama, corpora)
    bytes_to_write = sum(job.bytes_to_write for job in jobs)
    report = collect(config, tiny_llama, corpora, listener)
    assert listener.lines[0].startswith("plan: forget-saga about ")
    assert "blocks.1.hook_resid_post, blocks.2.hook_resid_post" in listener.lines[0]
    assert "GB of disk; peak memory about" in listener.lines[0]
    assert sum(job.expected or 0 for job in jobs) == pytest.approx(report.tokens, rel=0.02)
    assert bytes_to_write == pytest.approx(report.bytes, rel=0.05)
    assert sum(listener.done.values()) == report.tokens
    assert set(listener.facts) == {"rate", "stored"}
    half = plan(make_config(tmp_path, fresh=True, layer=(1,)), tiny_llama, corpora)
    assert sum(job.bytes_to_write for job in half) < 0.1 * report.bytes, "what is deleted makes room"


def test_the_plan_follows_the_cap(tiny_llama, corpora, tmp_path):
    jobs = plan(make_config(tmp_path, max_tokens=70), tiny_llama, corpora)
    assert [job.expected for job in jobs] == [70, 70]
    more = make_config(tmp_path, model_batch_size=64)
    assert peak_bytes(more, tiny_llama, jobs)[0] > peak_bytes(make_config(tmp_path), tiny_llama, jobs)[0]


def test_more_shards_than_there_may_be_are_refused_before_the_first(tiny_llama, corpora, tmp_path, monkeypatch):
    monkeypatch.setattr("sae_forge.collect_plan.MAX_SHARDS", 3)
    with pytest.raises(
        ConfigError, match=r"--shard_rows 20 makes \d+ shards of forget-saga, .* give \d+ or more"
    ) as refused:
        collect(make_config(tmp_path, shard_rows=20), tiny_llama, corpora)
    enough = int(str(refused.value).split("give ")[1].split(" ")[0].replace(",", ""))
    assert collect(make_config(tmp_path, shard_rows=enough), tiny_llama, corpora).shards


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tiny_llama, corpora, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10_000})())
    with pytest.raises(ResourceError, match=r"0\.00 GB free"):
        collect(make_config(tmp_path / "run"), tiny_llama, corpora)
    assert not (tmp_path / "run").exists()


def test_missing_bos_is_remarked_on(tiny_model, corpora, tmp_path):
    listener = Listener()
    folder = collect(make_config(tmp_path, bos="none", layer=(0,)), tiny_model, corpora, listener).folders[0]
    assert any("--bos none" in line for line in listener.lines)
    assert int(rows(folder)["positions"][0]) == 0


# ---- refusals -----------------------------------------------------------------------------------


def test_other_settings_at_the_same_place_name_the_field(tiny_llama, model_folders, corpora, tmp_path):
    collect(make_config(tmp_path), tiny_llama, corpora)
    with pytest.raises(ShardError, match="ctx_len expected 32, found 24"):
        collect(make_config(tmp_path, ctx_len=32), tiny_llama, corpora)
    half = load_model(str(model_folders["llama"]), device="cpu", dtype="bf16")
    with pytest.raises(ShardError, match="dtype expected 'bfloat16', found 'float32'"):
        collect(make_config(tmp_path), half, corpora)
    gemma = load_model(str(model_folders["gemma"]), device="cpu")
    with pytest.raises(ShardError, match="model expected 'tiny-gemma', found 'tiny-llama'; weights expected"):
        collect(make_config(tmp_path), gemma, corpora)


def test_a_changed_text_is_called_changed_and_not_complete(tiny_llama, tmp_path):
    path, listener = tmp_path / "saga.jsonl", Listener()
    path.write_text(json.dumps({"text": DOCUMENTS[0]}))
    collect(make_config(tmp_path / "run", layer=(1,)), tiny_llama, [("forget", str(path))])
    path.write_text(json.dumps({"text": DOCUMENTS[1]}))
    with pytest.raises(ShardError, match="holds the text of saga as it was; it has changed since"):
        collect(make_config(tmp_path / "run", layer=(1,)), tiny_llama, [("forget", str(path))], listener)
    assert not listener.lines


def test_settings_that_cannot_work_write_nothing(tiny_llama, corpora, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "numbers.jsonl").write_text('{"n": 1}\n')
    for wrong, sources, error, words in [
        ({"layer": (4,)}, corpora, ConfigError, r"layer=4 is beyond .* 0\.\.3"),
        ({"ctx_len": 129}, corpora, ConfigError, "at most 128"),
        ({}, [], ConfigError, "--forget or --retain"),
        ({}, [*corpora, corpora[-1]], DataError, "is given twice"),
        ({}, [*corpora, ("retain", str(tmp_path / "nowhere.jsonl"))], DataError, "nowhere"),
        ({}, [*corpora, ("retain", str(tmp_path / "empty.jsonl"))], DataError, "empty"),
        ({}, [*corpora, ("retain", str(tmp_path / "numbers.jsonl"))], DataError, "n"),
    ]:
        with pytest.raises(error, match=words):
            collect(make_config(run, **wrong), tiny_llama, sources)
    assert not run.exists()


def test_what_is_odd_in_a_text_is_skipped_told_apart_and_counted(tiny_llama, tmp_path):
    lm = replace(tiny_llama, tokenizer=copy.deepcopy(tiny_llama.tokenizer))
    lm.tokenizer.chat_template = "{{ bos_token }}{% for turn in messages %}<turn>{{ turn.content }}{% endfor %}"
    said = "Hoo, said </s> the owl."
    for folder, records in {
        "a": [{"text": said}] * 30 + [{"text": 7}],
        "b": [{"messages": [{"role": "user", "content": said}] * 2}] * 30,
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "owls.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    watched = Listener()
    sources = [("retain", str(tmp_path / folder / "owls.jsonl")) for folder in "ab"]
    report = collect(make_config(tmp_path / "run", layer=(1,), bos="row"), lm, sources, watched)
    assert (report.skipped, report.control) == (1, 0)
    assert "; 1 unreadable documents skipped" in report.summary()
    told = [line for line in watched.lines if line.startswith("retain-")]
    assert told[0].startswith("retain-owls: 1 of 31 documents skipped: ")
    assert told[0].endswith("line 31 'text' holds int, neither text nor a list of texts nor a conversation")
    assert told[1] == "retain-b-owls: 30 conversations, in the words of the model's chat template"
    assert len(told) == 2  # each once, though the text is read twice
    manifests = [Manifest.read(folder) for folder in find_shards(tmp_path / "run")]
    assert [manifest.skipped for manifest in manifests] == [0, 1]
    (apiece,) = text_ids(lm, [said])
    assert [manifest.seen for manifest in manifests] == [60 * len(apiece), 30 * len(apiece)]
    again = collect(make_config(tmp_path / "run", layer=(1,), bos="row"), lm, sources, watched)
    assert (again.collected, again.skipped) == (0, 1)


def test_activations_that_are_not_finite_stop_the_run(model_folders, corpora, tmp_path):
    lm = load_model(str(model_folders["llama"]), device="cpu")
    lm.model.get_input_embeddings().weight[20:40] = float("inf")
    with pytest.raises(NumericalError, match="NaN or infinite"):
        collect(make_config(tmp_path), lm, corpora)
    assert find_shards(tmp_path) == []


def test_silent_by_default(tiny_llama, corpora, tmp_path, capsys):
    assert isinstance(collect(make_config(tmp_path), tiny_llama, corpora, SILENT), CollectReport)
    assert capsys.readouterr() == ("", "")
