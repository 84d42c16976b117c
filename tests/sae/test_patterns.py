"""What one ``--sae`` stands for: a Hub repository is listed, a folder looked through, a slip told with what is near."""

from pathlib import Path

import pytest
from fakehub import FakeHub
from test_gemma_scope import PARAMS, RELEASE, hub, save_gemma_scope  # noqa: F401 (a fixture)

from sae_forge.errors import ConfigError, RemoteError
from sae_forge.sae import patterns
from sae_forge.sae.patterns import in_order, named_by

L0S = (142, 59, 9)


@pytest.fixture
def release(hub: FakeHub) -> FakeHub:  # noqa: F811
    """A release with SAEs of two layers and two widths; what they hold is not looked at."""
    names = [f"layer_{layer}/width_16k/average_l0_{l0}/{PARAMS}" for layer in (3, 12) for l0 in L0S]
    hub.repos.clear()
    hub.add_repo(RELEASE, files=dict.fromkeys((*names, f"layer_3/width_65k/average_l0_72/{PARAMS}", "README.md"), b""))
    return hub


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("layer_3/width_16k/*", [f"layer_3/width_16k/average_l0_{l0}" for l0 in (9, 59, 142)]),
        ("layer_*/width_16k/average_l0_59", [f"layer_{n}/width_16k/average_l0_59" for n in (3, 12)]),
        ("layer_3/width_*5k", ["layer_3/width_65k/average_l0_72"]),
        ("layer_[12]*/*/*_9", ["layer_12/width_16k/average_l0_9"]),
    ],
)  # fmt: skip
def test_a_pattern_is_every_sae_of_the_repository_that_fits(release: FakeHub, pattern: str, found: list[str]) -> None:
    assert named_by(f"{RELEASE}:{pattern}") == tuple(f"{RELEASE}:{name}" for name in found)
    asked = {request.path.split("?")[0] for request in release.requests}
    assert len(asked) == 1 and "/tree/main" in asked.pop(), "nothing is downloaded for it"
    revision = release.repos[RELEASE].main[-1].oid
    assert named_by(f"{RELEASE}@{revision}:{pattern}")[0] == f"{RELEASE}@{revision}:{found[0]}"


def test_what_fits_nothing_or_too_much_is_told_with_names(release: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError, match=r"fits none of the 7 there are; the nearest: \S*:layer_12/width_16k/average_l0_9, "
    ):
        named_by(f"{RELEASE}:layer_12/width_32k/*")
    monkeypatch.setattr(patterns, "MOST", 5)
    with pytest.raises(
        ConfigError, match=r"stands for 7 SAEs, and 5 are the most: \S*:layer_3/width_16k/average_l0_9, "
    ):
        named_by(f"{RELEASE}:layer_*")
    with pytest.raises(RemoteError, match="google/absent is not on the Hub"):
        named_by("google/absent:layer_3/*")
    with pytest.raises(ConfigError, match="fits nothing here, and is no pattern of the form owner/name:folder"):
        named_by("layer_3/*")


def test_a_folder_a_glob_and_a_list_are_several_and_one_stays_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = [save_gemma_scope(tmp_path / "released" / f"layer_3/l0_{l0}").parent for l0 in (10, 9)]
    (tmp_path / "released" / "notes.txt").write_text("no SAE")
    both = tuple(map(str, reversed(places)))
    assert named_by(str(tmp_path / "released")) == named_by(f"{tmp_path}/released/layer_*/*") == both
    assert named_by(f"{places[0]}, {places[1]}") == tuple(map(str, places))
    assert named_by(f"{places[1]},{RELEASE}:layer_3/a") == (str(places[1]), f"{RELEASE}:layer_3/a")
    for alone in (str(places[0]), str(places[0] / PARAMS), "release:a,b", f"{RELEASE}:layer_3/a,b=2", "absent"):
        assert named_by(alone) == (alone,)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a,b").mkdir()
    assert named_by("a,b") == ("a,b",), "a comma may stand in a name"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--sae empty/\* fits nothing here"):
        named_by("empty/*")


def test_numbers_count_as_numbers() -> None:
    assert in_order(["b10", "b9", "a2b", "a10a", "9", "b"]) == ["9", "a2b", "a10a", "b", "b9", "b10"]
