"""int8 shards: no number moves by more than half a scale, what that loses is counted right, and all else stays true."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_collect import corpora, make_config, rows  # noqa: F401 (a fixture)
from test_ranks import over_ranks
from test_shards import BATCHES, D_IN, abandon, flip, make_batch, make_fingerprint, read_everything, tree, write_all
from tiny_run import forge

from sae_forge import ranks
from sae_forge.collect import collect
from sae_forge.data.finite import largest
from sae_forge.data.rounding import Rounding, dequantise, quantise
from sae_forge.data.shards import ShardReader, ShardWriter, buffer_bytes
from sae_forge.data.stream import ActivationStream
from sae_forge.errors import ConfigError, NumericalError, ShardError
from sae_forge.store import files

INT8 = make_fingerprint(storage_dtype="int8")
SHARD = "shard-00001.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete folder of int8 shards, not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    write_all(folder, INT8)
    return folder


def round_trip(acts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, Rounding]:
    """What becomes of rows, their scales, and what is said of the loss."""
    q, scales = torch.empty(acts.shape, dtype=torch.int8), torch.empty(len(acts))
    found = quantise(acts, largest(acts), q, scales)
    return dequantise(q, scales, torch.empty(acts.shape)), scales, found


def unexplained(acts: torch.Tensor, rounded: torch.Tensor) -> float:
    """The loss, computed from all rows at once."""
    x, x_hat = acts.double(), rounded.double()
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


# ---- one row ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 150), st.integers(1, 9), st.sampled_from([0, 1, 100, 200, 253]))
def test_no_number_moves_by_more_than_half_a_scale_and_none_stops_being_finite(
    seed: int, count: int, d_in: int, least: int
) -> None:
    draw = np.random.default_rng(seed)
    bits = draw.integers(0, 2**23, (count, d_in)) | draw.integers(least, 255, (count, d_in)) << 23  # every exponent
    bits = (bits | draw.integers(0, 2, (count, d_in)) << 31).astype(np.uint32)
    acts = torch.from_numpy(bits.view(np.float32))
    rounded, scales, _ = round_trip(acts)
    assert rounded.isfinite().all()
    assert ((acts.double() - rounded.double()).abs() <= scales[:, None].double() / 2 * (1 + 4e-5)).all()
    peaks = acts.abs().amax(1)
    ordinary = (peaks > 1e-30) & (peaks < 3e38)
    assert torch.equal(scales[ordinary], peaks[ordinary] / 127)
    assert ((scales == 0) == (peaks == 0)).all()


def test_the_largest_number_is_kept_halves_go_to_even_and_a_row_of_zeros_stays_one() -> None:
    acts = torch.tensor([[254.0, 1.0, -3.0, 5.0], [0.0, -0.0, 0.0, 0.0], [-127.0, 0.4, 0.6, -2.0]])
    rounded, scales, found = round_trip(acts)
    assert rounded.tolist() == [[254, 0, -4, 4], [0, 0, 0, 0], [-127, 0, 1, -2]]
    assert scales.tolist() == [2, 0, 1]
    assert found.error == pytest.approx(3 + 0.32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_of_16_bits_are_rounded_as_the_same_numbers_in_fp32(dtype: torch.dtype) -> None:
    acts = torch.randn(300, 21, generator=torch.Generator().manual_seed(0)).to(dtype)
    for one, other in zip(round_trip(acts), round_trip(acts.float()), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


# ---- what is lost -------------------------------------------------------------------------------


def test_the_loss_in_the_manifest_is_that_of_the_rows_dropped_ones_apart(tmp_path: Path) -> None:
    acts = 3 + torch.randn(9000, D_IN, generator=torch.Generator().manual_seed(0))
    acts[[5, 2100, 8999], 4] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    with ShardWriter(tmp_path, replace(INT8, ctx_len=256), shard_rows=2000) as writer:
        for index, part in enumerate(acts.split(900)):
            ids = torch.arange(len(part))
            writer.write_batch(index, part, ids, ids, ids)
        manifest = writer.finish()
    found, kept = read_everything(tmp_path)["acts"], acts[acts.isfinite().all(1)]
    assert manifest.dropped == {"nan": 1, "infinite": 2, "special": 0}
    assert len(found) == len(kept)
    assert manifest.rounding_fvu == pytest.approx(unexplained(kept, found), rel=1e-6)


def test_collect_says_what_the_rows_it_would_have_stored_in_fp32_lost(tiny_llama, corpora, tmp_path):  # noqa: F811
    exact = collect(make_config(tmp_path / "exact", layer=(1,)), tiny_llama, corpora)
    report = collect(make_config(tmp_path / "int8", layer=(1,), storage_dtype="int8"), tiny_llama, corpora)
    lost = []
    for one, other in zip(exact.folders, report.folders, strict=True):
        x, x_hat = rows(one), rows(other)
        assert x_hat["acts"].dtype == torch.float32
        lost.append(unexplained(x["acts"], x_hat["acts"]))
        assert ShardReader(other).manifest.rounding_fvu == pytest.approx(lost[-1], rel=1e-6)
        assert all(torch.equal(x[name], x_hat[name]) for name in x if name != "acts")
    assert report.rounding_fvu == pytest.approx(max(lost), rel=1e-6)
    assert report.to_json()["rounding_fvu"] == report.rounding_fvu
    assert f"int8 rounding leaves at most {max(lost):.2g} of the variance unexplained" in report.summary()
    assert exact.rounding_fvu is None
    assert "rounding" not in exact.summary()
    assert report.bytes < exact.bytes / 2


def test_the_larger_one_number_of_a_row_the_more_the_others_lose() -> None:
    """What the docstring of ``rounding.py`` says, to the first digit."""
    normal = torch.randn(2000, 512, generator=torch.Generator().manual_seed(0))
    spread = torch.randn(2000, generator=torch.Generator().manual_seed(1))

    def lost(acts: torch.Tensor) -> float | None:
        found = round_trip(acts)[2].unexplained(len(acts))
        return found and float(f"{found:.0e}")

    def beside(large: float | torch.Tensor) -> torch.Tensor:
        acts = normal.clone()
        acts[:, 3] = large
        return acts

    assert lost(normal) == 6e-5
    assert [lost(beside(large)) for large in (10, 30, 100)] == [5e-4, 5e-3, 5e-2]
    one, every = normal.clone(), beside(1000)
    one[7, 3] = 1000
    varied = beside(1000 + 100 * spread)
    assert (lost(one), lost(every), lost(varied)) == (3e-4, 1.0, 0.05)
    for acts, row in ((one, 7), (every, 0), (varied, 0)):
        assert round_trip(acts)[0][row].count_nonzero() < 0.01 * 512


def test_rows_that_do_not_vary_have_no_share_to_tell() -> None:
    assert round_trip(torch.zeros(3, 4))[2].unexplained(3) is None
    assert Rounding.none(4).unexplained(0) is None


# ---- on disk ------------------------------------------------------------------------------------


def test_a_shard_holds_a_byte_a_number_and_a_scale_a_row(whole: Path) -> None:
    found = load_file(whole / SHARD)
    assert {name: (tensor.dtype, tensor.ndim) for name, tensor in found.items()} == {
        "acts": (torch.int8, 2),
        "scales": (torch.float32, 1),
        "seq_ids": (torch.int64, 1),
        "positions": (torch.int32, 1),
        "token_ids": (torch.int32, 1),
    }


def test_every_way_of_reading_gives_the_same_rows(whole: Path) -> None:
    reader = ShardReader(whole)
    written = torch.cat([make_batch(index)["acts"] for index in range(BATCHES)])
    expected = round_trip(written)[0]
    assert torch.equal(read_everything(whole)["acts"], expected)
    scratch = reader.make_scratch()
    for cached in (True, False):
        found = [acts.clone() for acts in reader.iter_acts(range(reader.block_count), scratch, cached=cached)]
        assert torch.equal(torch.cat(found), expected)
    batches = ActivationStream([reader], batch_size=reader.rows // 2, seed=0).batches()
    given_out = torch.cat([next(batches), next(batches)])
    batches.close()
    left_over = reader.rows % 2
    assert len({tuple(row) for row in expected.tolist()} - {tuple(row) for row in given_out.tolist()}) == left_over


def test_the_writer_needs_the_memory_it_announces(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, INT8, shard_rows=600) as writer:
        for index in range(BATCHES):
            writer.write_batch(index, **make_batch(index))
        buffers = [*writer._buffers.values(), *writer._others.values()]
    assert sum(buffer.nbytes for buffer in buffers) == buffer_bytes(INT8, 600)


@pytest.mark.parametrize("after", (0, 6, 7, 14))
def test_an_interrupted_run_resumes_to_the_same_bytes(whole: Path, tmp_path: Path, after: int) -> None:
    abandon(tmp_path, after, INT8)
    write_all(tmp_path, INT8)
    assert tree(tmp_path) == tree(whole)


def test_ranks_leave_the_bytes_of_one_process(whole: Path, tmp_path: Path) -> None:
    def write(rank: int) -> None:
        with ShardWriter(tmp_path / "ranks", INT8, shard_rows=600, team=ranks.here()) as writer:
            for index in range(BATCHES):
                batch = make_batch(index)
                if writer.is_own(writer.begun):
                    writer.write_batch(index, **batch, special=128 - len(batch["acts"]))
                else:
                    writer.pass_over(index, len(batch["acts"]))
            writer.finish()

    assert over_ranks(2, write, tmp_path / "said") == [0, 0], (tmp_path / "said").read_text()
    assert tree(tmp_path / "ranks") == tree(whole)


def test_a_flipped_bit_in_numbers_or_scales_is_noticed_by_every_reader(whole: Path, tmp_path: Path) -> None:
    write_all(tmp_path, INT8)
    reader, path = ShardReader(tmp_path), tmp_path / SHARD
    info = reader.manifest.shards[1]
    content, draw = path.read_bytes(), random.Random(0)
    acts = info.bytes - info.rows * D_IN  # the narrowest dtype comes last
    scales = content.index(load_file(path)["scales"].numpy().tobytes())
    for first, size in ((acts, info.rows * D_IN), (scales, 4 * info.rows)):
        for _ in range(12):
            flip(path, first + draw.randrange(size), draw.randrange(8))
            for read in (
                lambda: list(reader.iter_blocks()),
                lambda: list(reader.iter_acts(range(reader.block_count), reader.make_scratch())),
                lambda: [shard.verify() for shard in reader._shards],
            ):
                with pytest.raises(ShardError, match=f"{SHARD} is damaged in rows"):
                    read()
            path.write_bytes(content)


def test_a_loss_that_the_shards_do_not_have_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path, INT8, stop=8)
    for name in ("manifest.json", "shard-00000.json"):
        content = (tmp_path / name).read_bytes()
        body = json.loads(content)
        lost = body["rounding"]
        assert Rounding(**{**lost, "sums": tuple(lost["sums"])}).error > 0
        for forged in (
            None,
            {**lost, "error": lost["error"] * (1 + 2**-50)},
            {**lost, "error": -lost["error"]},
            {**lost, "error": 1},
            {**lost, "squares": True},
            {**lost, "sums": lost["sums"][1:]},
            {**lost, "sums": [*lost["sums"][1:], 3]},
            {**lost, "sums": lost["sums"][0]},
            {name: lost[name] for name in ("error", "squares")},
        ):
            files.publish_json(tmp_path / name, body | {"rounding": forged})
            with pytest.raises(ShardError, match=f"{name}|sidecars disagree"):
                ShardReader(tmp_path)
        (tmp_path / name).write_bytes(content)
    ShardReader(tmp_path)


def test_too_many_rows_that_are_not_finite_stop_the_run_before_they_are_rounded(tmp_path: Path) -> None:
    batch = make_batch(0)
    batch["acts"][:3, 0] = torch.inf
    with (
        ShardWriter(tmp_path, replace(INT8, max_tokens=1000), shard_rows=600) as writer,
        pytest.raises(NumericalError, match=r"3 of \d+ activations .*NaN or infinite before rounding"),
    ):
        writer.write_batch(0, **batch)


@pytest.mark.parametrize("outlier", [0.0, 300.0])
def test_what_one_large_channel_would_cost_is_refused_with_its_numbers_at_once(tmp_path: Path, outlier: float) -> None:
    """A channel that is large in every row: half a scale is then more than the other channels vary by."""
    batch = make_batch(0)
    batch["acts"][:, 3] += outlier * batch["acts"].std()
    count = len(batch["acts"])
    batches = {name: torch.cat([part] * 40) for name, part in batch.items()}
    fingerprint = replace(INT8, batch_size=INT8.batch_size * 40)
    with ShardWriter(tmp_path, fingerprint, shard_rows=60 * count) as writer:
        if not outlier:
            writer.write_batch(0, **batches)
            assert writer.finish().rounding_fvu < 0.001
            return
        with pytest.raises(ConfigError, match=r"lose \d+\.\d% of the variance .*channel 3 is .*--storage_dtype bf16"):
            writer.write_batch(0, **batches)


# ---- the commands -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_sae_trains_on_int8_shards_and_its_features_are_found(tmp_path: Path) -> None:
    where = ["--model", "tiny-llama", "--run_dir", str(tmp_path / "run")]
    small = ["--max_tokens", "3000", "--model_batch_size", "8", "--storage_dtype", "int8", "--max_steps", "30"]
    small += ["--batch_size", "512", "--expansion_factor", "2", "--loss_tokens", "500"]
    trained = json.loads(forge("train", *where, *small, "--json"))
    assert trained["metrics"]["fvu"] < 0.9
    chosen = ["--num_features", "4", "--max_neutral_freq", "0.2", "--min_ratio", "1", "--min_target_fires", "2"]
    forge("features", *where, *chosen, "--snippets", "1", "--max_freq", "1")
    verified = json.loads(forge("verify", *where[2:], "--json"))["metrics"]
    assert verified["damaged"] == []
    stored = [ShardReader(folder).fingerprint.storage_dtype for folder in (tmp_path / "run").glob("shards/*/*")]
    assert stored == ["int8"] * len(stored) != []


@pytest.mark.parametrize("constant", [1e4, 1e5])
def test_the_loss_is_exact_where_the_mean_is_large(constant: float) -> None:
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((600, 64)).astype(np.float32))
    rows[:, 7] = constant
    q, scales = torch.empty(600, 64, dtype=torch.int8), torch.empty(600)
    found = quantise(rows, rows.abs().amax(1), q, scales).unexplained(600)
    exact, back = rows.double(), (scales[:, None] * q).double()
    wanted = (exact - back).square().sum() / (exact - exact.mean(0)).square().sum()
    assert found == pytest.approx(float(wanted), rel=0.01)
