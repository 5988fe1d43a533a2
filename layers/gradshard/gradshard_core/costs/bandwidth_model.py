"""A model of the rate at which a function reads or writes S3."""

import math
from dataclasses import dataclass, replace
from typing import Final

from gradshard_core.costs import assumed_speeds


@dataclass(frozen=True)
class Bandwidth:
    """A function's network.

    Parameters
    ----------
    name
        The name that people read.
    bytes_per_second
        Sustained.
    latency_seconds
        The seconds from a request to its first byte.
    burst_bytes, burst_bytes_per_second
        The bytes of a burst at the beginning, and their rate.
    """

    name: str
    bytes_per_second: float
    latency_seconds: float = 0.0
    burst_bytes: float = 0.0
    burst_bytes_per_second: float = math.inf

    def seconds(self, nbytes: float) -> float:
        """Return the seconds that ``nbytes`` take, latency aside."""
        burst = min(nbytes, self.burst_bytes)
        return burst / self.burst_bytes_per_second + (nbytes - burst) / self.bytes_per_second

    def scaled(self, factor: float) -> "Bandwidth":
        """Return the same, ``factor`` times as fast in bytes per second."""
        return replace(
            self,
            name=f"{self.name} {factor - 1:+.0%}" if factor != 1 else self.name,
            bytes_per_second=self.bytes_per_second * factor,
            burst_bytes_per_second=self.burst_bytes_per_second * factor,
        )


BURST: Final = Bandwidth(
    "burst",
    assumed_speeds.SUSTAINED_BYTES_PER_SECOND,
    burst_bytes=assumed_speeds.BURST_BYTES,
    burst_bytes_per_second=assumed_speeds.BURST_BYTES_PER_SECOND,
)
"""The planner's: sustained after a burst."""
