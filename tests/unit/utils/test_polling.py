"""Polling until a timeout."""

import itertools

import pytest

from gradshard.utils.polling import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, poll


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr("time.sleep", clock.sleep)
    return clock


def test_pauses_grow_to_a_bound(clock: Clock) -> None:
    assert list(itertools.islice(poll(None), 30)) == [*range(30)]
    assert clock.pauses[0] == FIRST_PAUSE_SECONDS
    assert clock.pauses == sorted(clock.pauses)
    assert clock.pauses[-1] == LONGEST_PAUSE_SECONDS


def test_the_last_poll_is_at_the_timeout(clock: Clock) -> None:
    assert list(poll(1.0, pause=0.4)) == [0, 1, 2, 3]
    assert clock.now == pytest.approx(101.0)


def test_a_timeout_of_zero_is_one_poll(clock: Clock) -> None:
    assert list(poll(0)) == [0]
    assert clock.pauses == []
