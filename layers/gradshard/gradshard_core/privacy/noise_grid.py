"""The grid of whole numbers in which a private sum and its noise are computed."""

import math
from typing import Final, NamedTuple

from gradshard_core.privacy import noise

FINENESS: Final = 2**7
"""Grid steps that a typical element of an update of length C has, where three terms suffice.
Rounding toward zero then takes half of 1/128 of it."""


class Grid(NamedTuple):
    """The whole numbers in which a private sum is computed.

    Parameters
    ----------
    step
        g, what one is worth.
    terms
        The terms of the noise.
    """

    step: float
    terms: int


def grid_of(length: float, multiplier: float, elements: int) -> Grid:
    """Return the grid for vectors of so many elements that are at most so long."""
    fitting = (
        terms
        for terms in range(1, noise.MAX_TERMS)
        if noise.deviation(terms) >= multiplier * FINENESS * math.sqrt(max(1, elements))
    )
    terms = next(fitting, noise.MAX_TERMS)
    return Grid(multiplier * length / noise.deviation(terms), terms)
