"""The grid of private sums."""

import math

import pytest

from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.privacy import noise
from gradshard_core.privacy.noise_grid import FINENESS
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.1, 30.0])
@pytest.mark.parametrize("elements", [1, 1000, 10**6, 10**9])
def test_grid_is_fine_enough_and_its_sums_are_exact(multiplier: float, elements: int) -> None:
    grid = PrivacyMechanism(3.0, multiplier, 1e-5).grid(elements)
    assert grid.step * noise.deviation(grid.terms) == pytest.approx(multiplier * 3.0)
    typical = 3.0 / math.sqrt(elements)
    assert typical / grid.step >= FINENESS or grid.terms == noise.MAX_TERMS
    largest = 64 * 3.0 / grid.step + 14 * noise.deviation(grid.terms)
    assert largest < 2**53


def test_sums_of_the_most_clients_are_whole_numbers_in_float64() -> None:
    for elements in (1, 10**6, 10**12):
        grid = PrivacyMechanism(1.0, 0.01, 1e-5).grid(elements)
        assert MAX_CLIENTS * (1.0 / grid.step) + noise.largest(grid.terms) < 2**53
