"""Bounds that keep the history of a round's execution below what Step Functions takes.

Step Functions fails an execution at its 25,000th event (``MAX_EVENTS`` of ``aws_limits``), without
any Retry or Catch, so that no cause is recorded.
Two things repeat: the *stages* of an eager round, each of which plans some of its groups, and the
*attempts* of any round, one more each time contributors were rejected while they were read.
With these bounds the history is short enough even if every call is tried as often as
``round.asl.json`` allows; ``unit/limits/test_state_machine_history.py`` counts the events.
"""

from typing import Final

STAGES: Final = 48
"""An eager round with more groups than this plans several of them in each stage."""

MAX_STAGES: Final = 64
"""More than ``STAGES``: a call that timed out and still ran may resume a round once too often."""


def most_attempts(levels: int) -> int:
    """Return how often a round whose plans have so many levels may be planned.

    One attempt finds all updates that hold a NaN, so more than a few are a sign of an attack.
    """
    return max(10, 50 // levels)


def stage_size(groups: int) -> int:
    """Return how many groups of an eager round must be complete before it goes on."""
    return -(-groups // STAGES)
