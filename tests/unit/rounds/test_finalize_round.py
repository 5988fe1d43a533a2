"""The reports of tasks that finalize_round reads."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from gradshard_core.costs import assumed_speeds, large_round_limits
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.rounds import finalize_round
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS


class InWaves:
    """A bucket in which a read ends when so many are under way as there are readers."""

    def __init__(self) -> None:
        self.waves = 0
        self._wave = threading.Barrier(SMALL_OBJECT_READERS, self._count, timeout=10)

    def _count(self) -> None:
        self.waves += 1

    def get_json(self, _key: str, _parse: Any) -> dict[str, Any]:
        self._wave.wait()
        return {"attempt": 0}


@pytest.mark.parametrize("waves", [1, 5, 130])
def test_reports_take_the_time_that_is_planned_for_them(waves: int) -> None:
    tasks = [
        SimpleNamespace(level=0, number=number) for number in range(waves * SMALL_OBJECT_READERS)
    ]
    plan: Any = SimpleNamespace(
        levels=[None],
        tasks=lambda _level: tasks,
        attempt=0,
        computation=SimpleNamespace(measures=False),
    )
    store: Any = InWaves()
    reports = list(finalize_round._read_reports(store, RoundKeys("r"), plan))
    assert len(reports) == len(tasks)
    assert store.waves == waves
    # The first wave is in the time that every round takes around its tasks.
    expected = (waves - 1) * assumed_speeds.REQUEST_SECONDS
    assert large_round_limits.report_seconds(len(tasks)) == pytest.approx(expected)
