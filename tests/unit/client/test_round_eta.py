"""How fast a round goes."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gradshard.client.round_eta import Pace, pace

PLANNED = datetime(2026, 3, 1, tzinfo=UTC)


def status(*done: int, of: tuple[int, ...] = (4,)) -> dict[str, Any]:
    return {
        "spec": {},
        "plan": {
            "nbytes": 1_000,
            "contributors": ["a", "b"],
            "tasks": sum(of),
            "tasks_by_level": list(of),
            "planned_at": PLANNED.isoformat(),
            "projected": {"memory_mb": 1024, "seconds": 20.0, "task_seconds": 10.0},
        },
        "tasks_done": sum(done),
        "tasks_done_by_level": list(done),
    }


def report(level: int = 0, seconds: float = 5.0) -> dict[str, Any]:
    return {"level": level, "seconds": seconds, "gets": 4, "puts": 2, "is_cold": True}


def judged(found: dict[str, Any], *tasks: dict[str, Any], after: float = 4.0) -> Pace:
    now = PLANNED + timedelta(seconds=after)
    return pace(found, list(tasks), now=now, architecture="arm64")


def test_throughput_is_of_the_finished_tasks() -> None:
    assert judged(status(2), report(), after=4)[:2] == (1_000, 250.0)


def test_sums_of_sums_read_no_updates() -> None:
    assert judged(status(4, 1, of=(4, 2)), report()).bytes_read == 2_000


def test_nothing_is_foretold_before_a_task_is_done() -> None:
    assert judged(status(0)) == (0, 0, None, None)


def test_time_left_is_as_projected_at_the_pace_of_the_tasks() -> None:
    # Tasks take half of what was projected: so does the round, of which 4 s are gone.
    assert judged(status(1), report(seconds=5), after=4).seconds_left == pytest.approx(6)


def test_time_left_of_a_slow_round_follows_its_progress() -> None:
    assert judged(status(3), report(seconds=5), after=12).seconds_left == pytest.approx(3)
    assert judged(status(4), report(seconds=5), after=12).seconds_left == 0


def test_tasks_without_a_read_record_cost_the_mean_of_the_others() -> None:
    some = judged(status(4), report(seconds=5), report(seconds=5)).dollars
    every = judged(status(4), *[report(seconds=5)] * 4).dollars
    assert some is not None
    assert some == pytest.approx(every)
    assert some > (judged(status(1), report()).dollars or 0)


def test_a_clock_that_goes_before_the_functions_does_no_harm() -> None:
    assert judged(status(1), report(), after=-5).bytes_per_second > 0
