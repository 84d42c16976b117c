"""A wrapper of one's own in one file: this one, named with ``--plugin``; it is done to whatever is named beside it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from sae_forge.methods.method import Wrapper, on_each

pytestmark = pytest.mark.usefixtures("unpainted")


@dataclass(frozen=True, eq=False)
class Coarse:
    """A subject with its projections rounded to 2 bits."""

    inner: Any
    changes_weights: bool = True

    @property
    def edits(self) -> Any:
        return self.inner.edits

    def weights(self, lm: Any, progress: Any = None) -> Any:
        from sae_forge.methods.wrappers.quantised import quantised
        from sae_forge.progress import SILENT

        return quantised(self.inner.weights(lm, progress or SILENT), 2)


COARSE = Wrapper(
    name="coarse",
    title=lambda _: "coarse",
    from_flags=lambda _: {"level": 1},
    wrap=lambda inner, settings, materials: Coarse(inner),
    over=on_each,
)
METHODS = (COARSE,)


@pytest.mark.slow
def test_eval_wraps_what_a_sweep_chose(plugged_run: Any, command: Callable[..., str]) -> None:
    small = [*plugged_run.where, *plugged_run.asked, "--limit=4", "--configurations=8"]
    told = command("eval", "--plugin", __file__, *small, "--methods", "scale,coarse,random", "--sweep", "--json")
    report = json.loads(told)["metrics"]
    rows = {row["name"]: row for row in report["methods"] if row["name"] != "random"}
    assert [*rows] == ["baseline", "scale", "scale+coarse"]
    chosen = report["sweep"]["methods"]["scale"]["chosen"]["settings"]
    assert [*report["sweep"]["methods"]] == ["scale"]  # the wrapper is measured at what was chosen inside it
    assert rows["scale"]["settings"] == chosen
    assert rows["scale+coarse"]["settings"] == chosen | {"level": 1}
    assert rows["scale+coarse"]["title"] == f"{rows['scale']['title']}, coarse"
    assert rows["scale+coarse"]["domains"] != rows["scale"]["domains"]
    assert any(line.startswith(f"{rows['scale']['title']}, coarse: forget") for line in report["claims"])
    assert {one["settings"]["of"] for one in report["controls"]} == {"scale"}
