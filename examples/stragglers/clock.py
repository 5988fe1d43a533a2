"""Devices of unequal speeds on a virtual clock: nobody waits for them.

What is modelled is the training alone; sending an update takes no time here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

SAMPLE_SECONDS: Final = 0.001
"""Seconds that a device of speed 1 takes for an image, forward and back."""

STEP_SECONDS: Final = 0.008
"""Further seconds that it takes for a step, as long as for eight images.

A large batch is therefore faster per image, which assignments do not know."""


@dataclass(frozen=True)
class Device:
    """A device.

    Parameters
    ----------
    speed
        The speed, as a multiple of that of a device of speed 1.
    """

    speed: float

    def seconds(self, samples: int, batch_size: int, epochs: int) -> float:
        """Return how long it trains."""
        steps = epochs * steps_per_epoch(samples, batch_size)
        return (steps * STEP_SECONDS + epochs * samples * SAMPLE_SECONDS) / self.speed


class Clock:
    """Virtual time, in rounds that end when the slowest device does."""

    def __init__(self) -> None:
        self.now = 0.0
        self._busy = 0.0
        self._available = 0.0

    def round(self, seconds: Mapping[str, float]) -> None:
        """Let a round pass in which each client trains for so long."""
        longest = max(seconds.values())
        self.now += longest
        self._busy += sum(seconds.values())
        self._available += longest * len(seconds)

    @property
    def idle_share(self) -> float:
        """The share of the devices' time so far that they waited."""
        return 1.0 - self._busy / self._available


def steps_per_epoch(samples: int, batch_size: int) -> int:
    """Return the number of batches, the last one perhaps smaller."""
    return -(-samples // batch_size)


def devices(clients: list[str], fastest: float, seed: int) -> dict[str, Device]:
    """Give clients devices of speed 1 to ``fastest``, in equal ratios, at random."""
    speeds = np.random.default_rng(seed).permutation(np.geomspace(1.0, fastest, len(clients)))
    return {client: Device(speed) for client, speed in zip(clients, speeds.tolist(), strict=True)}
