"""Metrics of clients, and their means."""

import math
from fractions import Fraction

import numpy as np
import pytest

from gradshard_core.aggregation.metric_means import average

LARGEST = 1.7976931348623157e308


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_mean_of_the_largest_numbers_is_such_a_number(sign: float) -> None:
    # The rounded shares of these add up to more than one.
    samples = [233, 46912405, 12836579, 7, 497526177, 1, 2756537825, 111596851563, 16312312]
    samples += [188126887803, 29732977359727, 2959321, 2235121, 297, 1248691086, 389341294176192]
    samples += [99, 5330256, 3289, 385666779600044]
    found = average((n, {"loss": sign * LARGEST}) for n in samples)
    assert found["loss"] == pytest.approx(sign * LARGEST)


def test_a_mean_is_that_of_the_definition() -> None:
    rng = np.random.default_rng(2)
    for _ in range(200):
        sent = [(int(rng.integers(1, 2**53)), float(rng.normal(0, 1e3))) for _ in range(7)]
        exact = sum(Fraction(value) * n for n, value in sent) / sum(n for n, _ in sent)
        [found] = average((n, {"loss": value}) for n, value in sent).values()
        assert math.isclose(found, exact, rel_tol=1e-12, abs_tol=1e-9)
