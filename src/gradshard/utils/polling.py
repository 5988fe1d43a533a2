"""Polling: look again and again, with pauses, until a timeout."""

import itertools
import time
from collections.abc import Iterator
from typing import Final

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 2.0
PAUSE_GROWTH: Final = 1.2


def poll(timeout: float | None, pause: float | None = None) -> Iterator[int]:
    """Yield the number of each poll, from 0, with a pause between two; end at the timeout.

    The last poll is at the timeout, so there is always at least one.

    Parameters
    ----------
    timeout
        Seconds; None to poll without end.
    pause
        Seconds between two polls. By default, pauses grow from :data:`FIRST_PAUSE_SECONDS` to
        :data:`LONGEST_PAUSE_SECONDS`.
    """
    end = None if timeout is None else time.monotonic() + timeout
    seconds = FIRST_PAUSE_SECONDS if pause is None else pause
    for number in itertools.count():
        yield number
        now = time.monotonic()
        if end is not None and now >= end:
            return
        time.sleep(seconds if end is None else min(seconds, end - now))
        if pause is None:
            seconds = min(seconds * PAUSE_GROWTH, LONGEST_PAUSE_SECONDS)
