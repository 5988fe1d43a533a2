"""Nodes and weights of Gauss-Legendre quadrature."""

import math
from fractions import Fraction

import numpy as np
import pytest

from gradshard_core.stragglers.salf_integral import gauss_legendre


@pytest.mark.parametrize("count", [1, 2, 3, 10, 33])
def test_polynomials_below_twice_the_nodes_are_integrated_exactly(count: int) -> None:
    nodes, _, weights = gauss_legendre(count)
    pairs = [(Fraction(float(x)), Fraction(float(w))) for x, w in zip(nodes, weights, strict=True)]
    for power in range(2 * count):
        integral = sum(weight * node**power for node, weight in pairs)
        assert float(integral * (power + 1)) == pytest.approx(1.0, rel=1e-14, abs=0)


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_nodes_and_weights_are_those_of_numpy(count: int) -> None:
    nodes, distances, weights = gauss_legendre(count)
    theirs, their_weights = np.polynomial.legendre.leggauss(count)
    assert nodes == pytest.approx((theirs + 1) / 2, rel=0, abs=1e-15)
    assert distances == pytest.approx((1 - theirs) / 2, rel=0, abs=1e-15)
    assert weights == pytest.approx(their_weights / 2, rel=1e-10)


@pytest.mark.parametrize("count", [2047, 2048])
def test_thousands_of_nodes(count: int) -> None:
    nodes, distances, weights = gauss_legendre(count)
    assert len(nodes) == len(distances) == len(weights) == count
    assert np.all(np.diff(nodes) > 0)
    assert np.all(np.diff(distances) < 0)
    assert math.fsum(weights) == pytest.approx(1.0, rel=1e-15)
    for power in (1, 100, 2 * count - 1):
        # Near 1, t^k by the distance: the node itself has too few digits there.
        integral = math.fsum(weights * np.exp(power * np.log1p(-distances)))
        assert integral * (power + 1) == pytest.approx(1.0, rel=1e-11)
