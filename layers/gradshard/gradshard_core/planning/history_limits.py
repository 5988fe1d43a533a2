"""Bounds that keep the history of a round's execution below what Step Functions takes.

Step Functions fails an execution at its 25,000th event, past every Retry and Catch, so that nobody
would say why (https://docs.aws.amazon.com/step-functions/latest/dg/bp-history-limit.html, 2026-11).
What repeats are the *waves* of an eager round, in each of which some of its groups are planned, and
the *attempts* of any round, one more each time contributors were rejected while they were read.
With these bounds the history is short enough even if every call is tried as often as
``round.asl.json`` allows; ``unit/planning/test_history_limits.py`` counts the events.
"""

from typing import Final

MAX_EVENTS: Final = 25_000

MAX_ATTEMPTS: Final = 50
"""One finds all updates that hold a NaN, so more than a few are a sign of an attack."""

WAVES: Final = 48
"""Into how many an eager round's groups are divided, if there are more groups."""

MAX_WAVES: Final = 64
"""A call that was taken for dead may resume a round once more than was due."""


def wave_size(groups: int) -> int:
    """Return how many groups of an eager round have to be complete before it goes on."""
    return -(-groups // WAVES)
