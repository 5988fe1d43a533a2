"""A clip that follows a quantile of the updates' lengths (Andrew et al. 2021)."""

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.errors import SpecError
from gradshard_core.privacy import noise
from gradshard_core.privacy.noise_grid import grid_of

COUNT_ELEMENT: Final = 2**62
"""The number of the noise's element that is added to the number of updates that were not clipped:
no update has as many elements."""

DEFAULT_RATE: Final = 0.2
"""η of Andrew et al. 2021, section 3.1."""

COUNT_FACTOR: Final = 5
"""σ_b / z by default: the count then makes a round 4 % more costly."""

_CLIP_DIGITS: Final = 9
"""Significant digits of an adapted clip: the same on processors whose exp differs in the last."""

CLIPS: Final = (2.0**-40, 2.0**40)
"""The least and the largest clip."""

SETTINGS: Final[Mapping[str, tuple[float, float]]] = {
    "quantile": (0.01, 0.99),
    "clip_rate": (0.001, 10.0),
    "count_deviation": (0.01, 1e6),
}


class Adaptation(NamedTuple):
    """How the clip follows the lengths of updates.

    Parameters
    ----------
    quantile
        q, the share of updates that are to stay whole.
    clip_rate
        η, by which the clip moves.
    count_deviation
        σ_b, the deviation of the noise of the number of updates that were not clipped.
    """

    quantile: float
    clip_rate: float
    count_deviation: float

    def noisy_count(self, whole: int, key: bytes) -> float:
        """Return how many updates were not clipped, with noise.

        Parameters
        ----------
        whole
            How many were not clipped.
        key
            The key of the round's noise.
        """
        grid = grid_of(1.0, self.count_deviation, 1)
        drawn = np.empty(1, np.int64)
        source = noise.NoiseSource(key, grid.terms, COUNT_ELEMENT)
        source.read_into(arithmetic.bytes_of(drawn))
        return float(whole * math.trunc(1 / grid.step) + int(drawn[0])) * grid.step

    def next_clip(self, clip: float, count: float, contributors: int) -> float:
        """Return C · exp(-η(b - q)), within :data:`CLIPS`.

        b is the share of updates that were not clipped, from the noisy count.
        """
        away = count / contributors - self.quantile
        # exp must not overflow, however large the noise.
        moved = max(-50.0, min(50.0, -self.clip_rate * away))
        low, high = CLIPS
        return max(low, min(high, float(f"{clip * math.exp(moved):.{_CLIP_DIGITS}g}")))


def adaptation_of(given: Mapping[str, Any]) -> Adaptation | None:
    """Return how the clip adapts, by default with a count of :data:`COUNT_FACTOR` times z."""
    if "quantile" not in given:
        for name in given.keys() & SETTINGS.keys():
            raise SpecError(
                f"dp: {name} is for a clip that adapts to a quantile of the norms: give "
                'quantile, too, for example "quantile": 0.5'
            )
        return None
    by_default = COUNT_FACTOR * float(given["noise_multiplier"])
    return Adaptation(
        float(given["quantile"]),
        float(given.get("clip_rate", DEFAULT_RATE)),
        float(given.get("count_deviation", by_default)),
    )
