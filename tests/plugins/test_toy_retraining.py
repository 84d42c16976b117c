"""A retraining of one's own in one file: this one, named with ``--plugin``."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from sae_forge.methods.method import Strength
from sae_forge.methods.weights.recipe import Pace, retraining

pytestmark = pytest.mark.usefixtures("unpainted")


@dataclass(frozen=True, kw_only=True)
class Shrink(Pace):
    """Descend on the forget text, through the first layer's projections."""

    name: ClassVar[str] = "shrink"

    def changed(self, lm: Any) -> list[str]:
        from sae_forge.models.projections import projections

        return [projection.weight for projection in projections(lm, 0)]

    def loss(self, lm: Any, frozen: Any, retain: Any, seed: int) -> Any:
        from sae_forge.methods.weights.objectives import nats_per_token

        return lambda forget_batch, _: nats_per_token(lm, forget_batch)


SHRINK = retraining(Shrink, axes=lambda *_: ({}, Strength("rate", 0.1, 10.0)))
METHODS = (SHRINK,)


@pytest.mark.slow
def test_eval_tunes_it_and_says_it(plugged_run: Any, command: Callable[..., str]) -> None:
    small = [*plugged_run.where, *plugged_run.asked, "--limit=4", "--configurations=8"]
    told = command("eval", "--plugin", __file__, *small, "--methods", "shrink", "--sweep", "--json")
    report = json.loads(told)["metrics"]
    baseline, row = report["methods"]
    tuned = report["sweep"]["methods"]["shrink"]
    assert (baseline["kind"], row["name"], row["kind"]) == ("baseline", "shrink", "weights")
    assert len({point["settings"]["lr"] for point in tuned["points"]}) == 8
    assert row["settings"] == tuned["chosen"]["settings"]
    assert report["sweep"]["domains"]["wizards"]["ids"] != report["domains"]["wizards"]["ids"]
    assert any(line.startswith("shrink: other weights, trained on a copy") for line in report["claims"])
    assert any(line.startswith(f"shrink, lr {row['settings']['lr']:g}: forget") for line in report["claims"])
    written = command("generate", "The wizard", *plugged_run.where, "--methods=scale", "--max_new_tokens=1", "--json")
    assert len(json.loads(written)["metrics"]["texts"]) == 2  # baseline and scale, without the plug-in
