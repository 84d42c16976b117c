"""An edit of one's own in one file: this one, named with ``--plugin``; controls, sweep and words come by themselves."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sae_forge.methods.method import Method, Settings, Strength, titled

pytestmark = pytest.mark.usefixtures("unpainted")


def build_nudge(settings: Settings, materials: Any) -> Any:
    from sae_forge.interventions.edit import Edit
    from sae_forge.interventions.intervention import Intervention
    from sae_forge.interventions.steering import AddConstant
    from sae_forge.methods.subjects import Edited

    edit = Intervention("nudge", materials.selection.indices[:1], AddConstant(settings["push"]))
    return Edited((Edit(materials.point, materials.sae, edit),))


NUDGE = Method(
    name="nudge",
    kind="hook",
    title=titled("nudge", "push"),
    from_flags=lambda *_: [{"push": 2.0}],
    axes=lambda *_: ({}, Strength("push", 0.1, 4.0)),
    build=build_nudge,
)
METHODS = (NUDGE,)


@pytest.mark.slow
def test_eval_tunes_it_controls_it_and_says_it(new_run: Callable[[], Any], command: Callable[..., str]) -> None:
    run = new_run()  # of its own: a page draws every report of its run
    small = [*run.where, *run.asked, "--limit=4", "--configurations=8"]
    told = command("eval", "--plugin", __file__, *small, "--methods", "nudge,random", "--sweep", "--json")
    report = json.loads(told)["metrics"]
    rows = {row["name"]: row for row in report["methods"] if row["name"] != "random"}
    tuned = report["sweep"]["methods"]["nudge"]
    assert tuned["configurations"] == 8
    assert rows["nudge"]["settings"] == tuned["chosen"]["settings"]
    assert report["sweep"]["domains"]["wizards"]["ids"] != report["domains"]["wizards"]["ids"]  # DEV, then TEST
    kinds = {one["settings"]["kind"] for one in report["controls"] if one["settings"]["of"] == "nudge"}
    assert kinds == {"latents", "isotropic", "direction"}  # it edits every token, so there are no other places
    title = f"nudge, push {rows['nudge']['settings']['push']:g}"
    assert any(line.startswith(f"{title}: forget questions") for line in report["claims"])
    command("report", *run.where)
    assert "nudge" in (run.folder / "report.html").read_text()
    assert "nudge" in command("push", "you/nudged", "--dry_run", *run.where)
