"""Gauss-Legendre quadrature, with the same bits on every machine.

Nodes come from additions, multiplications and divisions of float64, which are rounded alike
everywhere. numpy's ``leggauss``, which is tested up to 100 nodes, solves an eigenvalue problem
first: its time grows with the cube of their number, its last bits depend on the machine's linear
algebra.
"""

import math
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_NEWTON_STEPS: Final = 8
"""From guesses that are 2 % off, five are enough for all digits."""


@lru_cache(maxsize=1)
def gauss_legendre(count: int) -> tuple[Floats, Floats, Floats]:
    """Return nodes and weights with which a sum is an integral from 0 to 1.

    Σ weight · f(node) is the integral of f, for every polynomial f of degree below 2 · ``count``.

    Parameters
    ----------
    count
        The number of nodes, at least one.

    Returns
    -------
    numpy.ndarray
        The nodes, ascending.
    numpy.ndarray
        One minus each node: near 1 it has more digits than the node itself.
    numpy.ndarray
        The weights, whose sum is 1.
    """
    half = -(-count // 2)
    # Distances from 1 of the nodes in the upper half; the lower half mirrors it. A guess has ten
    # digits, so that no library's last digit of a sine decides on the result.
    guesses = [
        float(f"{math.sin(math.pi * (4 * k + 3) / (8 * count + 4)) ** 2:.9e}") for k in range(half)
    ]
    distance = np.array(guesses)
    for _ in range(_NEWTON_STEPS):
        value, slope = _legendre(count, distance)
        distance = distance - value * distance * (1.0 - distance) * 2.0 / slope
    _, slope = _legendre(count, distance)
    weight = 4.0 * distance * (1.0 - distance) / (slope * slope)
    other = 1.0 - distance
    mirrored = count // 2
    found = (
        np.concatenate([distance[:mirrored], other[::-1]]),
        np.concatenate([other[:mirrored], distance[::-1]]),
        np.concatenate([weight[:mirrored], weight[::-1]]),
    )
    for array in found:
        array.flags.writeable = False  # they are kept for the next caller
    return found


def _legendre(degree: int, distance: Floats) -> tuple[Floats, Floats]:
    """Evaluate a Legendre polynomial P at x = 1 - 2 · ``distance``.

    Returns
    -------
    numpy.ndarray
        P(x).
    numpy.ndarray
        (x² - 1) · P'(x).
    """
    twice = 2.0 * distance
    value, difference = np.ones_like(distance), np.zeros_like(distance)
    # The recurrence in differences of neighbours, which does not cancel near x = 1.
    for k in range(degree):
        difference = (k * difference - (2 * k + 1) * twice * value) / (k + 1)
        value = value + difference
    return value, degree * (difference - twice * value)
