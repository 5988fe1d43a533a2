"""Secret draws: what their proof says of discrete noise, and the parser."""

import math
from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import SpecError
from gradshard_core.privacy.privacy_mechanism import parse_privacy
from gradshard_core.privacy.secret_client_sampling import SecretSample, parse_secret_sample

DRAW = {"training": "t", "draw": "2026 1", "probability": 0.1, "divisor": 5}
DP = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}


def gaussian(deviation: float, at: np.ndarray) -> np.ndarray:
    """Return the discrete Gaussian's probabilities, by its definition."""
    density = np.exp(-(at.astype("f16") ** 2) / (2 * np.longdouble(deviation) ** 2))
    return np.asarray(density / density.sum())


def moment(p: np.ndarray, q: np.ndarray, order: int) -> float:
    """Return exp((α - 1) · D_α(p‖q)) of the Rényi divergence."""
    return float((q * (p / q) ** order).sum())


@pytest.mark.parametrize("deviation", [0.7, 1.5, 4.0])
@pytest.mark.parametrize("probability", [0.01, 0.3, 0.9])
@pytest.mark.parametrize("shift", [1, 3])
def test_drawn_discrete_noise_tells_no_more_than_gaussian_noise_in_both_directions(
    deviation: float, probability: float, shift: int
) -> None:
    # So far that the tails that are cut off weigh nothing at the largest order.
    at = np.arange(-90, 91)
    without, with_client = gaussian(deviation, at), gaussian(deviation, at - shift)
    drawn = (1 - probability) * without + probability * with_client
    for order in (2, 3, 5, 8):
        bound = math.fsum(
            math.comb(order, k)
            * probability**k
            * (1 - probability) ** (order - k)
            * math.exp(k * (k - 1) * shift**2 / (2 * deviation**2))
            for k in range(order + 1)
        )
        assert moment(drawn, without, order) <= bound * (1 + 1e-9)
        assert moment(without, drawn, order) <= bound * (1 + 1e-9)


def test_a_draw_divides_by_its_own_number_and_is_read_back() -> None:
    dp = parse_privacy(DP | {"draw": DRAW})
    assert (dp.divisor(3), dp.divisor(0), dp.deviation(1)) == (5, 5, 2 / 5)
    assert parse_privacy(dp.to_json()) == dp


@pytest.mark.parametrize("probability", [0.001, 0.05, 0.5, 0.99])
def test_nobody_beside_a_client_is_drawn_with_a_negligible_probability(probability: float) -> None:
    fewest = SecretSample(probability, 2).fewest
    assert (1 - probability) ** (fewest - 1) <= 2.0**-44 * (1 + 1e-9)
    assert (1 - probability) ** (fewest - 2) > 2.0**-44


@pytest.mark.parametrize(
    "sample",
    [
        0.5,
        {},
        {"probability": 0.5},
        {"probability": 0.5, "divisor": 5, "seed": 1},
        {"probability": 0, "divisor": 5},
        {"probability": 1, "divisor": 5},
        {"probability": 1.0, "divisor": 5},
        {"probability": math.nan, "divisor": 5},
        {"probability": 5e-324, "divisor": 5},
        {"probability": "0.5", "divisor": 5},
        {"probability": 0.5, "divisor": 1},
        {"probability": 0.5, "divisor": 5.0},
        {"probability": 0.5, "divisor": True},
        {"probability": 0.5, "divisor": 100_001},
    ],
)
def test_samples_that_make_no_sense_are_refused(sample: Any) -> None:
    with pytest.raises(SpecError, match="secret_sample"):
        parse_secret_sample(sample)
    with pytest.raises(SpecError, match="dp: draw"):
        parse_privacy(DP | {"draw": sample})


def test_a_draw_goes_with_a_fixed_clip_alone() -> None:
    tree = {"training": "t", "tree": "1", "leaf": 1, "cancels": [], "divisor": 3}
    for more in ({"quantile": 0.5}, {"tree": tree}):
        with pytest.raises(SpecError, match="drawn in secret for rounds with a fixed clip"):
            parse_privacy(DP | {"draw": DRAW} | more)
