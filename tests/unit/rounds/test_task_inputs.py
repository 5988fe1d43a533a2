"""The streams of a task's inputs are closed whatever happens."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Computation, Level, Participants, PlannedLayout, Task
from gradshard_core.rounds.task_inputs import TaskInputs


class FakeStream:
    """A stream that fails to open, or opens when another one has failed."""

    def __init__(self, failing: threading.Event, *, fails: bool) -> None:
        self._failing, self._fails = failing, fails
        self.events: list[str] = []

    def open(self) -> None:
        if self._fails:
            self._failing.set()
            raise OSError("refused")
        self._failing.wait()
        self.events.append("open")

    def close(self) -> None:
        self.events.append("close")


def test_stream_that_opens_after_another_failed_is_closed() -> None:
    plan = Plan("r", Participants(), Computation((Level.of_sizes([0]),)), PlannedLayout())
    failing = threading.Event()
    streams = [FakeStream(failing, fails=True), FakeStream(failing, fails=False)]
    with ThreadPoolExecutor(2) as pool:
        inputs = TaskInputs(None, plan, Task(0, 0, 0, 0, 0, 0), pool)  # type: ignore[arg-type]
        with pytest.raises(OSError, match="refused"), inputs.all_open(streams):  # type: ignore[arg-type]
            pass
    assert streams[1].events == ["open", "close"]
