"""A clip that follows the lengths of updates."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

from gradshard_core.privacy import noise
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy
from gradshard_core.robust.whole_update_rules import Decision


def adaptive(clip: float = 1.0, **settings: float) -> PrivacyMechanism:
    stated = {"clip": clip, "noise_multiplier": 1.0, "delta": 1e-5, "quantile": 0.5}
    return parse_privacy(stated | settings)


def whole_of(*factors: float) -> int:
    return Decision(factors, factors, (1.0,) * len(factors)).whole


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
