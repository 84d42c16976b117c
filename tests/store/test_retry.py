"""Patience ends: after so many tries, or when the time is over."""

import time

import pytest

from sae_forge.store.retry import Patience


def test_waits_double_up_to_the_longest_and_end_with_the_tries() -> None:
    patience = Patience(tries=6, first=1.0, longest=5.0, seconds=100.0)
    assert [patience.next_wait() for _ in range(6)] == [1.0, 2.0, 4.0, 5.0, 5.0, None]
    assert patience.failed == 6


def test_what_the_other_side_asks_for_is_waited_and_fewer_tries_may_do() -> None:
    patience = Patience(tries=6, first=1.0, longest=5.0, seconds=100.0)
    assert patience.next_wait(asked=30.0) == 30.0
    assert patience.next_wait(tries=2) is None


@pytest.mark.parametrize("begun", [True, False])
def test_no_try_begins_after_the_end(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    patience = Patience(tries=99, first=1.0, longest=1.0, seconds=10.0, until=110.0 if begun else None)
    now[0] = 105.0
    assert patience.next_wait() == 1.0
    now[0] = 109.5
    assert patience.next_wait() == (None if begun else 1.0)
    now[0] = 114.5
    assert patience.next_wait() is None
    assert patience.next_wait(asked=0.0) == (None if begun else 0.0)
