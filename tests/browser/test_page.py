"""The page as a browser has it: ``make browser`` installs what this needs; where that is missing it is skipped."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
missing = [name for name in (CHROMIUM, "node") if shutil.which(name) is None]
missing += [str(path) for path in [HERE / "node_modules" / "axe-core"] if not path.exists()]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} missing: make browser"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a page of 65,536 latents did under a person's hands; ``PAGE`` names another to be held to the same."""
    from made_up import made_up

    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(made_up())
    page = os.environ.get("PAGE", str(path))
    command = ["node", "check.mjs", page, str(path)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_nothing_goes_wrong_and_nothing_is_asked_of_a_network(found: dict[str, Any]):
    assert found["faults"] == []


def test_axe_finds_no_serious_fault_in_light_in_dark_and_on_a_phone(found: dict[str, Any]):
    assert found["axe"] == []
    assert len({found["light_background"], found["dark_background"]}) == 2
    assert found["phone_too_wide"] <= 0 and found["light_too_wide"] <= 0


def test_every_plot_is_drawn(found: dict[str, Any]):
    assert found["drawn"]["inked"] > 1000 and found["drawn"]["bars"] == 48
    assert found["drawn"]["figures"]
    for width, height, shapes in found["drawn"]["figures"]:
        assert width > 200 and height > 100 and shapes > 5


def test_a_click_shows_the_latent_under_it_and_its_snippet(found: dict[str, Any]):
    assert len(found["clicks"]) >= 2 and any(one["expected"] for one in found["clicks"])
    for one in found["clicks"]:
        latent = one["label"].split()[1]
        assert one["hash"] == f"#latent-{latent}" and one["shown"]["title"] == f"Latent {latent}"
        if one["expected"]:  # a latent that has a card
            assert {name: one["shown"][name] for name in ("text", "peak")} == one["expected"]
            assert one["shown"]["shade"] not in ("rgba(0, 0, 0, 0)", "transparent")


def test_search_finds_a_latent_by_word_and_by_number(found: dict[str, Any]):
    search = found["search"]
    assert search["rare"]["latent"] in search["by_word"]
    assert search["by_number"] == [search["rare"]["latent"]]
    assert search["shown"]["title"] == found["linked"]["title"] == f"Latent {search['rare']['latent']}"
    assert search["nothing"] == []


def test_tables_sort_latents_are_picked_and_the_keyboard_does_all(found: dict[str, Any]):
    assert len(found["sorted"]) == 50 and found["sorted"] == sorted(found["sorted"], reverse=True)
    assert found["picked"]["value"] == ",".join(map(str, found["picked"]["rows"]))
    assert found["keyboard"]["before"] != found["keyboard"]["after"] and found["keyboard"]["focused"] == "card"
    values = [float(cell.split()[0]) for cell in found["methods"] if cell]
    assert values == sorted(values, reverse=True) and len(set(values)) > 1
    assert found["thousands"] == ["1,200", "900", "20"]
    assert found["texts"]["pairs"] > 0


def test_65536_latents_load_within_two_seconds_and_scroll_without_a_halt(found: dict[str, Any]):
    assert found["load"]["latents"] == 65_536
    assert found["load"]["cpu_ms"] <= 2000
    assert found["scroll"]["tasks"] > 20 and found["scroll"]["scrolled"] > 0
    assert found["scroll"]["longest_cpu_ms"] <= 50
