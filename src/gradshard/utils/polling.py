"""The pauses between two looks at a round that goes on."""

import time
from typing import Final

FIRST_PAUSE_SECONDS: Final = 0.2
LONGEST_PAUSE_SECONDS: Final = 2.0


def sleep_before_poll(looks: int, give_up: float | None) -> None:
    """Sleep a little longer each time, but not past ``give_up``."""
    seconds = min(FIRST_PAUSE_SECONDS * 1.2 ** min(looks, 50), LONGEST_PAUSE_SECONDS)
    if give_up is not None:
        seconds = min(seconds, max(0.0, give_up - time.monotonic()))
    time.sleep(seconds)
