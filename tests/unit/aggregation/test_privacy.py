"""The mechanism of private rounds: what one client can change."""

import math
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import noise
from gradshard_core.aggregation.gram import ExactSum, Measuring
from gradshard_core.aggregation.kernel import Zone, aggregate
from gradshard_core.aggregation.privacy import (
    FINENESS,
    PrivacyMechanism,
    PrivateSum,
    parse_privacy,
)
from gradshard_core.aggregation.robust_by_weight import Decision
from gradshard_core.errors import SpecError
from gradshard_core.formats.layout import Span
from gradshard_core.planning.option_parsers import MAX_CLIENTS


class Bytes:
    """A source of an array's bytes."""

    def __init__(self, array: np.ndarray) -> None:
        self._data, self._at = memoryview(np.ascontiguousarray(array)).cast("B"), 0

    def read_into(self, buffer: memoryview) -> None:
        buffer[:] = self._data[self._at : self._at + len(buffer)]
        self._at += len(buffer)


def measured(update: np.ndarray) -> float:
    """Return the length of an F32 update as tasks measure it."""
    reduction, total = Measuring(1, pairs=False), ExactSum(1, pairs=False)
    zones = [
        Zone(start, min(start + 65536, update.nbytes), [1.0])
        for start in range(0, update.nbytes, 65536)
    ]
    aggregate([Bytes(update)], zones, reduction, [Span("F32", 0, update.nbytes)], lambda _: None)
    total.add_json(reduction.products.to_json())
    return math.sqrt(total.rounded_diagonal()[0])


def private_sum(updates: list[np.ndarray], mechanism: PrivacyMechanism) -> np.ndarray:
    """Return the sum of clipped updates, truncated to whole numbers, without noise."""
    size = updates[0].size
    gram = [
        [measured(u) ** 2 if i == j else 0.0 for j in range(len(updates))]
        for i, u in enumerate(updates)
    ]
    weights = list(mechanism.decide(gram, [1] * len(updates)).weights)
    written = bytearray()
    zones = [Zone(0, updates[0].nbytes, weights)]
    sources = [*map(Bytes, updates), Bytes(np.zeros(size, np.int64))]
    # The step is one, so that the sums are whole numbers.
    aggregate(
        sources,
        zones,
        PrivateSum(1.0, 1),
        [Span("F32", 0, updates[0].nbytes)],
        written.extend,
    )
    assert len(written) == updates[0].nbytes
    return np.frombuffer(bytes(written), "f4")


shapes = st.sampled_from(["flat", "spike", "halves", "alternating", "subnormal", "steps"])


def update_of(shape: str, size: int, scale: float, seed: int) -> np.ndarray:
    """Return an update on which rounding might do harm."""
    rng = np.random.default_rng(seed)
    made = {
        "flat": np.full(size, 1.0),
        # Just over half of a step of 2⁻¹⁸ of the largest element: all are rounded up, or down.
        "spike": np.where(np.arange(size) == 0, 1.0, 2.0**-19 * (1 - 2.0**-10)),
        "halves": np.where(np.arange(size) % 2, 0.5 + 2.0**-20, 1.0),
        "alternating": rng.choice([-1.0, 1.0], size) * 2.0 ** rng.integers(-20, 1, size),
        "subnormal": np.full(size, 1e-30),
        "steps": rng.integers(-3, 4, size) * 2.0**-18 * 0.499,
    }[shape]
    return (made * scale).astype("f4")


@settings(deadline=None)  # a busy machine takes longer than the default
@given(shapes, st.integers(1, 40_000), st.floats(1e-6, 1e6), st.integers(0, 99))
def test_no_update_adds_more_than_the_clip(shape: str, size: int, scale: float, seed: int) -> None:
    update = update_of(shape, size, scale, seed)
    mechanism = PrivacyMechanism(1.0, 1.1, 1e-5)
    norm = measured(update)
    [factor] = mechanism.decide([[norm**2]], [1]).weights
    steps = np.trunc(update.astype(float) * (factor / mechanism.grid(size).step))
    # Exact, in integers.
    square = sum(int(step) ** 2 for step in steps)
    assert math.isqrt(square) <= 1.0 / mechanism.grid(size).step


@pytest.mark.parametrize("multiplier", [0.01, 0.5, 1.1, 30.0])
@pytest.mark.parametrize("elements", [1, 1000, 10**6, 10**9])
def test_grid_is_fine_enough_and_its_sums_are_exact(multiplier: float, elements: int) -> None:
    grid = PrivacyMechanism(3.0, multiplier, 1e-5).grid(elements)
    assert grid.step * noise.deviation(grid.terms) == pytest.approx(multiplier * 3.0)
    typical = 3.0 / math.sqrt(elements)
    assert typical / grid.step >= FINENESS or grid.terms == noise.MAX_TERMS
    largest = 64 * 3.0 / grid.step + 14 * noise.deviation(grid.terms)
    assert largest < 2**53


def test_sum_is_of_truncated_updates_in_any_order() -> None:
    rng = np.random.default_rng(1)
    updates = [(rng.standard_normal(70_000) * 10).astype("f4") for _ in range(5)]
    mechanism = PrivacyMechanism(1e4, 1.1, 1e-5)
    found = private_sum(updates, mechanism)
    assert found.tobytes() == np.sum([np.trunc(u) for u in updates], 0).astype("f4").tobytes()
    assert private_sum(updates[::-1], mechanism).tobytes() == found.tobytes()


def test_zero_updates_and_short_ones_are_not_clipped() -> None:
    mechanism = PrivacyMechanism(2.0, 1.1, 1e-5)
    decision = mechanism.decide([[0.0, 0.0], [0.0, 1.9**2]], [5, 500])
    assert decision.weights == (1.0, 1.0)
    assert decision.bound == 2.0


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
