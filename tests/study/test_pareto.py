"""The trade-off by hand numbers, and the front against a brute-force definition."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_forge.statistics.estimate import Estimate
from sae_forge.store import files, records
from sae_forge.study.pareto import Point, best_at, choose, floors, front, hypervolume, spares
from sae_forge.study.sweep import Journal


def point(forget: float, utility: float, neighbour: float | None = None, alignment: float = 0.0) -> Point:
    settings = {"forget": forget, "utility": utility}
    return Point(settings=settings, forget=forget, utility=utility, neighbour=neighbour, alignment=alignment)


def test_front_holds_what_nothing_dominates():
    points = [point(0.9, 1.0), point(0.5, 0.9), point(0.5, 0.8), point(0.3, 0.9), point(0.95, 1.0), point(0.3, 0.9)]
    assert [(one.forget, one.utility) for one in front(points)] == [(0.9, 1.0), (0.3, 0.9)]


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12))
def test_front_is_the_definition(pairs):
    points = [point(forget / 6, utility / 6) for forget, utility in pairs]
    kept = {(one.forget, one.utility) for one in front(points)}
    for one in points:
        beaten = any(
            other.forget <= one.forget and other.utility >= one.utility
            and (other.forget, other.utility) != (one.forget, one.utility)
            for other in points
        )  # fmt: skip
        assert ((one.forget, one.utility) in kept) is not beaten


def test_best_at_takes_the_lowest_forget_accuracy_above_the_floor():
    points = [point(0.2, 0.97), point(0.4, 0.99), point(0.6, 1.0)]
    assert best_at(points, 0.99) is points[1]
    assert best_at(points, 0.98) is points[1]
    assert best_at(points, 1.01) is None
    beside = [point(0.2, 1.0, 0.9), point(0.4, 1.0, 0.98), point(0.3, 0.9, 1.0)]
    assert best_at(beside, 0.99, 0.95) is beside[1]
    assert best_at(beside, 0.99, 0.99) is None


def test_hypervolume_by_hand():
    # reference (forget 0.9, utility 0.25): a step of 0.4 x 0.75 and one of 0.2 x 0.35
    assert hypervolume([point(0.5, 1.0), point(0.3, 0.6)], 0.9) == pytest.approx(0.4 * 0.75 + 0.2 * 0.35)
    assert hypervolume([point(0.95, 1.0), point(0.1, 0.2)], 0.9) == 0.0


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=8))
def test_hypervolume_counts_the_dominated_cells(pairs):
    points = [point(forget / 20, utility / 20) for forget, utility in pairs]
    cells = sum(
        any(one.forget <= f / 20 and one.utility >= (u + 1) / 20 for one in points)
        for f in range(18)
        for u in range(5, 20)
    )
    assert hypervolume(points, 18 / 20) == pytest.approx(cells / 400)


def test_choice_follows_the_floors_in_order():
    strict, loose, wild = point(0.5, 0.995, 0.9), point(0.3, 0.985, 0.9), point(0.1, 0.5, 0.9, alignment=0.2)
    assert choose([strict, loose, wild], 1.0) == (strict, "utility_99")
    assert choose([loose, wild], 1.0) == (point(0.1, 0.5, 0.9, alignment=0.2), "alignment")
    assert floors(0.5) == {"utility_99": pytest.approx(0.495), "utility_1pt": pytest.approx(0.49)}
    assert choose([point(0.3, 0.492)], 0.5)[1] == "utility_1pt"


def changed(point: Point, **changes: tuple[float, float]) -> Point:
    """The point with a change and the upper end of its interval, a role each."""
    told = {role: Estimate(value, value - 0.1, high) for role, (value, high) in changes.items()}
    return replace(point, changes=told)


def test_what_is_spared_is_told_by_the_interval_of_its_change():
    idle = changed(point(0.9, 1.0), forget=(0, 0), retain=(0, 0))
    useful = changed(point(0.4, 0.97), forget=(-0.5, -0.3), retain=(-0.03, 0.0))
    rough = changed(point(0.2, 0.9), forget=(-0.7, -0.5), retain=(-0.1, -0.02))
    assert choose([idle, useful, rough], 1.0) == (idle, "utility_99")
    assert choose([idle, useful, rough], 1.0, rule="spared") == (useful, "spared")
    # a point lost counts as none, however sure; and the neighbours are to be spared as well
    assert spares(changed(point(0.4, 0.99), retain=(-0.01, -0.005)))
    assert not spares(changed(point(0.4, 0.97, 0.8), retain=(-0.03, 0.0), neighbour=(-0.2, -0.1)))
    lost = replace(rough, alignment=0.3)
    assert choose([lost], 1.0, rule="spared") == (lost, "alignment")


def test_the_floor_is_a_share_of_the_base_where_saebench_has_one_for_all():
    """A base that knows 70 %: no point keeps 0.99, so SAEBench's score is 0; the best of ours has 0.4 left."""
    tried = [point(0.4, 0.70, 0.9), point(0.2, 0.69, 0.9)]
    assert best_at(tried, 0.99) is None
    found = best_at(tried, floors(0.7)["utility_99"])
    assert found is not None
    assert 1 - found.forget == pytest.approx(0.6)


def test_below_chance_counts_as_chance_and_the_neighbours_decide():
    inverted, gentle = point(0.05, 1.0, 0.7), point(0.24, 1.0, 0.99)
    assert choose([inverted, gentle], 1.0)[0] is gentle
    assert choose([point(0.4, 1.0, 0.9), point(0.3, 0.99, 0.5)], 1.0)[0].forget == 0.3


def test_a_point_measured_before_changes_were_kept_does_not_stand_in_the_way_of_its_successor(tmp_path: Path):
    """Neither one of a sweep that came to its end nor one of a sweep that was stopped."""
    new = changed(point(0.4, 0.98), retain=(-0.02, 0.01))
    key = files.digest(["scale", new.settings])
    old = {name: value for name, value in records.encode(new).items() if name != "changes"}
    for path in (tmp_path / "sweep.json", tmp_path / "measured" / "points" / f"{key[:16]}.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.publish_json(path, {key: old})
    journal = Journal.open(tmp_path)
    assert journal.find("scale", new.settings) is None
    journal.keep("scale", new)
    assert Journal.open(tmp_path).find("scale", new.settings) == new
