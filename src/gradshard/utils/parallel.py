"""Jobs side by side, from which the user can always walk away.

The threads of :mod:`concurrent.futures` keep the process until each has finished: one that waits
for a line that is dead keeps it for minutes after Ctrl-C. These end with the process.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn, TypeVar

PATIENCE_SECONDS: Final = 2.0
"""How long jobs have, after the user's interruption, to note that and end by themselves."""

Outcome = TypeVar("Outcome")


def run_parallel(
    jobs: Sequence[Callable[[], Outcome]], threads: int, stop: threading.Event
) -> Iterator[Outcome]:
    """Do some jobs at a time and give what each returns, as they end.

    After a failure, which is raised, no job is begun, and those under way are awaited. When the
    user interrupts, ``stop`` is set, and they are awaited for some seconds only.
    """
    waiting: queue.SimpleQueue[Callable[[], Outcome]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Callable[[], Outcome]] = queue.SimpleQueue()
    enough = threading.Event()
    for job in jobs:
        waiting.put(job)
    crew = [
        threading.Thread(target=_work, args=(waiting, ended, enough), daemon=True)
        for _ in range(min(threads, len(jobs)))
    ]
    for thread in crew:
        thread.start()
    until: float | None = None
    try:
        for _ in jobs:
            yield ended.get()()
    except KeyboardInterrupt:
        stop.set()
        until = time.monotonic() + PATIENCE_SECONDS
        raise
    finally:
        enough.set()
        for thread in crew:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))


def _work(
    waiting: "queue.SimpleQueue[Callable[[], Outcome]]",
    ended: "queue.SimpleQueue[Callable[[], Outcome]]",
    enough: threading.Event,
) -> None:
    """Do jobs while there are any; put what gives, or raises, what came of each."""
    while not enough.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            ended.put(_given(job()))
        except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
            enough.set()
            ended.put(_raised(error))


def _given(outcome: Outcome) -> Callable[[], Outcome]:
    return lambda: outcome


def _raised(error: BaseException) -> Callable[[], NoReturn]:
    def again() -> NoReturn:
        raise error

    return again
