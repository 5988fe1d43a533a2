"""Jobs side by side: what they return, what they raise, and that nobody has to wait for them."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from gradshard.utils import parallel
from gradshard.utils.parallel import run_parallel


def test_returns_the_results_of_jobs() -> None:
    jobs = [partial(pow, n, 2) for n in range(50)]
    assert sorted(run_parallel(jobs, 4, threading.Event())) == [n * n for n in range(50)]
    assert list(run_parallel([], 4, threading.Event())) == []


def test_does_only_so_many_at_a_time() -> None:
    under_way, most = 0, 0
    lock = threading.Lock()

    def job() -> None:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.01)
        with lock:
            under_way -= 1

    list(run_parallel([job] * 20, 3, threading.Event()))
    assert most == 3


def test_after_a_failure_running_jobs_end_and_none_begins() -> None:
    ended: list[int] = []

    def fail() -> None:
        raise OSError("broken")

    def take_time() -> None:
        time.sleep(0.1)
        ended.append(1)

    with pytest.raises(OSError, match="broken"):
        list(run_parallel([take_time, fail, *[take_time] * 20], 2, threading.Event()))
    assert ended == [1]


def test_an_interruption_does_not_wait_for_jobs_that_do_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(parallel, "GRACE_SECONDS", 0.1)
    dead_line, stop = threading.Event(), threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    jobs: list[Callable[[], Any]] = [dead_line.wait, interrupt]
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(run_parallel(jobs, 2, stop))
    assert stop.is_set()
    assert time.monotonic() - began < 5
    dead_line.set()


def test_an_interruption_waits_for_jobs_that_stop() -> None:
    stop, ended = threading.Event(), threading.Event()

    def interrupt() -> None:
        raise KeyboardInterrupt

    def heed() -> None:
        stop.wait()
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        list(run_parallel([heed, interrupt], 2, stop))
    assert ended.is_set()
