"""Several SAEs under one ``--sae``: each as it would be alone, one table, and a row that says why where one fails."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_ranks import over_ranks
from tiny_run import SMALL, TinyRun

from sae_forge import ranks
from sae_forge.errors import DataError, ForgeError
from sae_forge.outcome import Outcome
from sae_forge.pipeline.bench import Bench
from sae_forge.pipeline.evaluate import evaluate
from sae_forge.pipeline.features import features
from sae_forge.pipeline.run import run as run_all
from sae_forge.pipeline.several import Each, on_each
from sae_forge.progress import SILENT
from sae_forge.results.report import load_report
from sae_forge.results.several import load_several
from sae_forge.settings import resolve
from sae_forge.study.settings import eval_config, features_config, run_config

pytestmark = pytest.mark.usefixtures("unpainted")

L0S = (59, 142)
ASKED: dict[str, Any] = {"methods": ("scale", "random"), "controls": ("isotropic",), "limit": 2, "num_features": (4,)}
CHOSEN: dict[str, Any] = {
    "num_features": (4,), "min_target_fires": 1, "max_freq": 1.0, "max_neutral_freq": 1.0, "min_ratio": 0.0,
    "retain_threshold": 1.0, "snippets": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(new_run: Callable[[], TinyRun]) -> TinyRun:
    return new_run()


@pytest.fixture(scope="module")
def saes(run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two SAEs of a release, and one that reads a wider model."""
    release = tmp_path_factory.mktemp("hub") / "gemma-scope-2b-pt-res" / "layer_1" / "width_1k"
    for seed, (name, d_in) in enumerate([*((f"average_l0_{l0}", run.lm.d_model) for l0 in L0S), ("average_l0_7", 13)]):
        draw = np.random.default_rng(seed).standard_normal
        W_dec = draw((64, d_in)).astype(np.float32)
        (release / name).mkdir(parents=True)
        zeros = {"b_enc": np.zeros(64, np.float32), "b_dec": np.zeros(d_in, np.float32)}
        np.savez(
            release / name / "params.npz", W_enc=W_dec.T, W_dec=W_dec, threshold=np.full(64, 1e-3, np.float32), **zeros
        )
    return release


def on(run: TinyRun, verb: Any, kind: Any, sae: str, **settings: Any) -> Outcome:
    config = resolve(kind, {"model": str(run.model), "run_dir": run.folder, "sae": sae, "layer": (1,), **settings})
    return on_each({evaluate: "eval", features: "features"}[verb], verb, config, Bench(config))


@pytest.mark.slow
def test_every_sae_is_measured_as_alone_and_stands_in_one_table(run: TinyRun, saes: Path) -> None:
    told = on(run, features, features_config(), str(saes), **CHOSEN)
    several = load_several(told.outputs["several"])  # pyright: ignore[reportArgumentType]
    assert [Path(row.sae).name for row in several.rows] == ["average_l0_7", "average_l0_59", "average_l0_142"]
    (sheet,) = told.tables
    assert sheet.columns == ("SAE", "reads", "latents", "L0 (forget text)", "selected", "why not")
    assert "the shards are 56 wide and the SAE reads 13" in sheet.rows[0][-1]
    assert [row[1:3] for row in sheet.rows[1:]] == [("blocks.1.hook_resid_post", "64")] * 2
    assert all(20 < (row.l0 or 0) < 44 for row in several.rows[1:]), "half of 64 latents fire on a token"

    alone = on(run, evaluate, eval_config(), str(saes / "average_l0_59"), **{**SMALL, **run.questions, **ASKED})
    told = on(run, evaluate, eval_config(), f"{saes}/*", **{**SMALL, **run.questions, **ASKED})
    failed, first, _ = load_several(told.outputs["several"]).rows  # pyright: ignore[reportArgumentType]
    assert failed.failed and "no selection of latents" in failed.failed
    assert run.folder / str(first.report) / "eval.json" == alone.outputs["report"]
    report = load_report(alone.outputs["report"])
    row = next(row for row in report.rows if row.name == "scale")
    (measured,) = first.measured
    assert measured.roles["forget"] == row.roles["forget"].estimates["accuracy"]
    assert measured.change == row.change.roles["forget"].estimates["accuracy"] if row.change else False
    under = [one.roles["forget"].estimates["accuracy"].value for one in report.rows if one.name == "random"]
    assert measured.controlled == (min(under), max(under))
    assert measured.setting == "scale -3, 4 latents"
    assert set(told.metrics["saes"]) == {row.sae for row in several.rows}
    again = on(run, evaluate, eval_config(), f"{saes}/*", **{**SMALL, **run.questions, **ASKED})
    assert again.tables == told.tables


def test_one_that_fails_on_one_rank_is_a_row_on_all_and_they_go_on(tmp_path: Path) -> None:
    def measured(config: Any) -> dict[str, Outcome]:
        team = ranks.here()
        if config.sae == "b" and team.rank == 1:
            raise DataError("no text")
        team.agree("SAEs", {"name": config.sae})
        return {}

    def work(rank: int) -> None:
        each = Each("?", ("a", "b", "c"))
        each.work(features_config()(), measured, SILENT)
        assert [*each.done] == ["a", "c"]
        assert {name: str(error) for name, error in each.failed.items()} == {"b": "rank 1: no text"}

    assert over_ranks(2, work, tmp_path / "said") == [0, 0]


@pytest.mark.slow
def test_ranks_leave_the_table_of_one_process(new_run: Callable[[], TinyRun], saes: Path, tmp_path: Path) -> None:
    def table(run: TinyRun) -> bytes:
        told = on(run, features, features_config(), str(saes), **CHOSEN)
        return Path(str(told.outputs["several"])).read_bytes() if ranks.here().leads else b""

    two = new_run()
    assert over_ranks(2, lambda rank: (tmp_path / str(rank)).write_bytes(table(two)), tmp_path / "said") == [0, 0]
    assert (tmp_path / "0").read_bytes() == table(new_run())


@pytest.mark.slow
def test_where_all_fail_the_first_says_why(run: TinyRun, saes: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(saes / "average_l0_7")
    with pytest.raises(ForgeError, match="the shards are 56 wide"):
        on(run, features, features_config(), f"{tmp_path}/?", **CHOSEN)


@pytest.mark.slow
def test_run_does_all_of_it_on_each(run: TinyRun, saes: Path) -> None:
    names = ",".join(str(saes / f"average_l0_{l0}") for l0 in (142, 7))
    given = {"model": str(run.model), "run_dir": run.folder, "sae": names}
    config = resolve(run_config(), {**SMALL, **run.questions, **given, **CHOSEN, **ASKED})
    told = run_all([config], SILENT)
    several = load_several(told.outputs[f"{run.model}/several"])  # pyright: ignore[reportArgumentType]
    measured, failed = several.rows
    assert failed.failed and "reads activations 13 wide" in failed.failed
    assert [one.setting for one in measured.measured] == ["scale -3, 4 latents"]
    assert told.metrics[f"{run.model} {failed.sae}"] == {"failed": failed.failed}
    assert told.tables[0].title == f"{run.model}: 2 SAEs of {names}"
