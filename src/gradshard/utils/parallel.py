"""Parallel jobs that the user can interrupt at any time.

The threads of :mod:`concurrent.futures` keep the process alive until each has finished: one that
waits for a dead connection keeps it for minutes after Ctrl-C. The threads here end with the
process.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn, TypeVar

GRACE_SECONDS: Final = 2.0
"""Seconds that jobs may take to end by themselves after the user's interruption."""

Outcome = TypeVar("Outcome")


def run_parallel(
    jobs: Sequence[Callable[[], Outcome]], threads: int, stop: threading.Event
) -> Iterator[Outcome]:
    """Run a number of jobs at a time, and yield what each returns, in the order in which they end.

    After a failure, which is raised, no further job is begun, and running jobs are awaited. When
    the user interrupts, ``stop`` is set, and running jobs are awaited for some seconds only.
    """
    waiting: queue.SimpleQueue[Callable[[], Outcome]] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Callable[[], Outcome]] = queue.SimpleQueue()
    no_more_jobs = threading.Event()
    for job in jobs:
        waiting.put(job)
    workers = [
        threading.Thread(target=_work, args=(waiting, ended, no_more_jobs), daemon=True)
        for _ in range(min(threads, len(jobs)))
    ]
    for thread in workers:
        thread.start()
    deadline: float | None = None
    try:
        for _ in jobs:
            yield ended.get()()
    except KeyboardInterrupt:
        stop.set()
        deadline = time.monotonic() + GRACE_SECONDS
        raise
    finally:
        no_more_jobs.set()
        for thread in workers:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))


def _work(
    waiting: "queue.SimpleQueue[Callable[[], Outcome]]",
    ended: "queue.SimpleQueue[Callable[[], Outcome]]",
    no_more_jobs: threading.Event,
) -> None:
    """Run jobs while there are any; put a function that returns, or raises, each one's outcome."""
    while not no_more_jobs.is_set():
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            ended.put(_returning(job()))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            no_more_jobs.set()
            ended.put(_raising(error))


def _returning(outcome: Outcome) -> Callable[[], Outcome]:
    return lambda: outcome


def _raising(error: BaseException) -> Callable[[], NoReturn]:
    def again() -> NoReturn:
        raise error

    return again
