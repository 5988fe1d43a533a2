"""Retries of requests to S3: their number, their pauses, and the error at the end."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from gradshard_core.errors import StoreError
from gradshard_core.s3.traffic import Meter

MAX_ATTEMPTS: Final = 6
"""Attempts at a request. A stream may fail this often in a row without receiving a byte."""

TASK_WRITE_ATTEMPTS: Final = 3
"""Attempts of a task to write a sum that S3 is too busy to take.

The state machine then starts the task again."""

MAX_CONDITIONAL_WRITES: Final = 16
"""Attempts at a conditional write: more than there can be concurrent writers of one object."""

_LONGEST_EXPONENT_OF_WRITES: Final = 4
"""Conditional writes wait for other writers, which are quick, so their pauses stop growing."""

GiveUp = Callable[[int, str], Exception]


class Retries:
    """Counts the failed attempts at one request and decides whether to try again.

    Parameters
    ----------
    meter
        The meter that counts retries, if any.
    attempts
        The number of attempts, the first one included.
    """

    def __init__(self, meter: Meter | None = None, *, attempts: int = MAX_ATTEMPTS) -> None:
        self._meter = meter
        self._attempts = attempts
        self._failures: list[str] = []

    def record_failure(self, reason: str, give_up: GiveUp) -> None:
        """Wait before the next attempt, or raise what ``give_up`` makes if this was the last one.

        Parameters
        ----------
        reason
            The error of the attempt.
        give_up
            Makes an error from the number of attempts and a summary of what they met.
        """
        self._failures.append(reason)
        failed = len(self._failures)
        if failed >= self._attempts:
            raise give_up(failed, summarize(self._failures))
        if self._meter is not None:
            self._meter.add(retries=1)
        sleep_backoff(failed)

    def reset(self) -> None:
        """Forget the failures so far, because an attempt made progress."""
        self._failures.clear()


def conditional_write_attempts(key: str) -> Iterator[int]:
    """Yield the numbers of attempts at a conditional write, from 0, with pauses between them.

    Each attempt reads the object and writes it on the condition that it is still the same. The
    caller leaves the loop when a write succeeds.

    Parameters
    ----------
    key
        The object that is written.

    Raises
    ------
    StoreError
        All attempts failed.
    """
    for failures in range(MAX_CONDITIONAL_WRITES):
        # No pause after the first attempt: it fails wherever the object exists already, which is
        # no sign of another writer.
        if failures > 1:
            sleep_backoff(min(failures - 1, _LONGEST_EXPONENT_OF_WRITES))
        yield failures
    raise StoreError(
        f"{key}: {MAX_CONDITIONAL_WRITES} conditional writes in a row were rejected, though each "
        "was for the object as it had just been read: either others keep writing it, or the "
        "storage does not honour If-Match and If-None-Match"
    )


def sleep_backoff(failures: int) -> None:
    """Sleep for a random time, whose bound doubles with each failure."""
    time.sleep(random.uniform(0, 0.1 * 2**failures))  # noqa: S311 - not a secret


def summarize(failures: Iterable[str]) -> str:
    """Return each reason once, with its count, in the order in which they first occurred."""
    return "; ".join(
        f"{number} × {reason}" if number > 1 else reason
        for reason, number in Counter(failures).items()
    )
