"""The mechanism of private rounds: what one client can change."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from gradshard_core.errors import SpecError
from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.privacy import noise
from gradshard_core.privacy.noise_grid import FINENESS
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.robust.whole_update_rules import Decision


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.1, 30.0])
@pytest.mark.parametrize("elements", [1, 1000, 10**6, 10**9])
def test_grid_is_fine_enough_and_its_sums_are_exact(multiplier: float, elements: int) -> None:
    grid = PrivacyMechanism(3.0, multiplier, 1e-5).grid(elements)
    assert grid.step * noise.deviation(grid.terms) == pytest.approx(multiplier * 3.0)
    typical = 3.0 / math.sqrt(elements)
    assert typical / grid.step >= FINENESS or grid.terms == noise.MAX_TERMS
    largest = 64 * 3.0 / grid.step + 14 * noise.deviation(grid.terms)
    assert largest < 2**53


def adaptive(clip: float = 1.0, **settings: float) -> PrivacyMechanism:
    stated = {"clip": clip, "noise_multiplier": 1.0, "delta": 1e-5, "quantile": 0.5}
    return parse_privacy(stated | settings)


@pytest.mark.parametrize(("start", "quantile"), [(0.05, 0.5), (50.0, 0.5), (1.0, 0.8)])
def test_adaptive_clip_finds_the_quantile_of_the_lengths(start: float, quantile: float) -> None:
    """As figure 1 of Andrew et al. 2021, with a lognormal distribution of lengths."""
    rng = np.random.default_rng(7)
    mechanism, seen = adaptive(start, quantile=quantile), []
    for number in range(120):
        lengths = rng.lognormal(0.0, 0.5, 100)
        gram = np.diag(lengths**2).tolist()
        key = number.to_bytes(noise.KEY_BYTES, "big")
        count = mechanism.noisy_count(mechanism.decide(gram, [1] * 100).whole, key)
        assert count is not None
        mechanism = replace(mechanism, clip=mechanism.next_clip(count, 100))
        seen.append(mechanism.clip)
    wanted = math.exp(0.5 * NormalDist().inv_cdf(quantile))
    assert np.mean(seen[60:]) == pytest.approx(wanted, rel=0.1)


def test_sums_of_the_most_clients_are_whole_numbers_in_float64() -> None:
    for elements in (1, 10**6, 10**12):
        grid = PrivacyMechanism(1.0, 0.01, 1e-5).grid(elements)
        assert MAX_CLIENTS * (1.0 / grid.step) + noise.largest(grid.terms) < 2**53


def whole_of(*factors: float) -> int:
    return Decision(factors, factors, (1.0,) * len(factors)).whole


def test_noisy_count_is_the_count_with_noise_of_its_own_deviation() -> None:
    mechanism = adaptive(count_deviation=3.0)
    whole = whole_of(1.0, 1.0, 0.999, 0.1, 1.0)
    drawn = np.array(
        [
            mechanism.noisy_count(whole, n.to_bytes(noise.KEY_BYTES, "big")) or 0.0
            for n in range(2000)
        ]
    )
    # Four standard errors of 2,000: of the mean 0.27, of the deviation 0.19.
    assert abs(drawn.mean() - 3.0) < 0.27
    assert abs(drawn.std() - 3.0) < 0.19
    assert mechanism.noisy_count(whole, bytes(32)) == mechanism.noisy_count(whole, bytes(32))


def test_a_client_changes_the_count_by_at_most_one() -> None:
    mechanism, key = adaptive(), bytes(32)
    for others in range(64):
        whole, clipped = (
            mechanism.noisy_count(whole_of(*([1.0] * others), factor), key) or 0.0
            for factor in (1.0, 0.5)
        )
        assert 0 < whole - clipped <= 1 + 1e-12  # of whole numbers, times the step


def test_cost_of_an_adaptive_clip_is_that_of_both_releases() -> None:
    assert adaptive().cost == pytest.approx(1 + 1 / 25)
    assert adaptive(noise_multiplier=2.0, count_deviation=4.0).cost == pytest.approx(1 / 4 + 1 / 16)


def test_no_noise_moves_the_clip_out_of_its_bounds() -> None:
    for count in (-1e9, 1e9):
        clip = adaptive(clip_rate=10.0).next_clip(count, 2)
        assert parse_privacy(adaptive(clip).to_json()).clip == clip


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"quantile": 1.0}, "dp: quantile is 1.0, not a number from 0.01 to 0.99"),
        ({"quantile": 0.5, "clip_rate": 0}, "dp: clip_rate is 0, not a number from 0.001 to 10"),
        ({"quantile": 0.5, "count_deviation": True}, "dp: count_deviation is True"),
        ({"clip_rate": 0.2}, "dp: clip_rate is for a clip that adapts .* give quantile, too"),
        ({"clip": 0}, "dp: clip is 0, not a number from"),
        ({"noise_multiplier": 0}, "dp: noise_multiplier is 0, not a number from 0.01 to 1000"),
        ({"noise": 1}, "dp is {.*}, not {clip: …, noise_multiplier: …, delta: …}"),
    ],
)
def test_settings_out_of_bounds_are_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_privacy({"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5} | changed)
