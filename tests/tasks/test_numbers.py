"""What `make run` promises of the built-in world, measured anew with the default settings of both models.

Most rows of a default report are its controls, which are reported and have no bound: the suite measures the edit alone,
and `make test-slow` the whole default run of both models.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sae_forge import builtin


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flags"),
    [
        pytest.param(builtin.MODELS[0], ["--methods", "scale"], id=builtin.MODELS[0]),
        *(pytest.param(name, [], id=f"all of {name}", marks=pytest.mark.long) for name in builtin.MODELS),
    ],
)
def test_the_default_run_forgets_one_domain_and_keeps_the_others(model: str, flags: list[str], tmp_path: Path) -> None:
    """Bounds are those the README's numbers stand on."""
    command = [sys.executable, "-m", "sae_forge", "run", "--model", model, "--run_dir", str(tmp_path / "run"), "--json"]
    done = subprocess.run(
        [*command, *flags], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    stages = json.loads(done.stdout)["metrics"][model]
    assert stages["train"]["fvu"] <= 0.05
    assert stages["train"]["dead_share"] <= 0.05
    assert stages["train"]["ce_recovered"] >= 0.95
    base, edit = (
        next(row for row in stages["eval"]["methods"] if row["name"] == name) for name in ("baseline", "scale")
    )
    for name, domain in stages["eval"]["domains"].items():
        before, after = (row["domains"][name]["accuracy"] for row in (base, edit))
        assert domain["items"] >= 200
        assert before["value"] >= 0.95
        if (
            domain["role"] == "forget"
        ):  # another machine rounds otherwise and trains another SAE: 0.16 to 0.39 were seen
            assert after["low"] <= 0.35
            assert after["high"] >= 0.15
            assert after["value"] <= 0.45
        if domain["role"] == "retain":
            assert after["value"] >= before["value"] - 0.01
    assert edit["loss"]["retain"]["value"] <= base["loss"]["retain"]["value"] + 0.02
