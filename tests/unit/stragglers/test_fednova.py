"""Local steps: their bounds, and weights that allow for them."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.errors import SpecError
from gradshard_core.stragglers.fednova import (
    bounded_steps,
    normalised_weights,
    note_bounded_steps,
    plain_steps,
)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_plain_steps_are_how_far_constant_gradients_carry(momentum: float) -> None:
    velocity = position = 0.0
    for _ in range(7):
        velocity = momentum * velocity + 1.0
        position += velocity

    assert plain_steps(7, 0.5, momentum) == pytest.approx(0.5 * position, rel=1e-12)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=8))
def test_normalised_weights_are_fednovas(clients: Sequence[tuple[int, int]]) -> None:
    samples, steps = zip(*clients, strict=True)
    updates = [float(index + 1) for index in range(len(clients))]

    weights = normalised_weights(samples, steps)

    # x - τ' Σ p d with d = Δ / τ, as the paper has it.
    shares = [n / sum(samples) for n in samples]
    mean_steps = sum(p * tau for p, tau in zip(shares, steps, strict=True))
    direction = sum(p * x / tau for p, x, tau in zip(shares, updates, steps, strict=True))
    result = sum(w * x for w, x in zip(weights, updates, strict=True))
    assert result == pytest.approx(mean_steps * direction, rel=1e-9)


def test_normalised_weights_of_equal_steps_are_the_plain_ones() -> None:
    assert normalised_weights([1, 3], [5, 5]) == [0.25, 0.75]


def test_normalising_ends_at_the_optimum_that_was_meant() -> None:
    """Two quadratic losses, one client taking ten steps for each of the other's."""

    def end(normalised: bool) -> float:
        x, optima, steps = 0.0, (0.0, 1.0), (1, 10)
        for _ in range(2000):
            moved = [
                (1 - 0.01) ** tau * (x - o) + o - x for tau, o in zip(steps, optima, strict=True)
            ]
            weights = normalised_weights([1, 1], steps) if normalised else [0.5, 0.5]
            x += sum(w * delta for w, delta in zip(weights, moved, strict=True))
        return x

    assert end(normalised=True) == pytest.approx(0.5, abs=0.02)
    assert end(normalised=False) > 0.9


@given(
    honest=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 30)), min_size=2, max_size=12),
    claim=st.tuples(st.integers(1, 2**53), st.integers(1, 2**53)),
    place=st.integers(0, 12),
)
def test_one_client_cannot_scale_the_average_by_the_steps_it_claims(
    honest: list[tuple[int, int]], claim: tuple[int, int], place: int
) -> None:
    clients = [*honest[:place], claim, *honest[place:]]
    samples, steps = zip(*clients, strict=True)
    rng = np.random.default_rng(place)
    updates = rng.standard_normal((len(clients), 5))
    updates /= np.linalg.norm(updates, axis=1, keepdims=True)

    counted = bounded_steps(steps)
    weights = np.array(normalised_weights(samples, counted))

    least, most = min(tau for _, tau in honest), max(tau for _, tau in honest)
    assert all(least / 10 <= tau <= most * 10 for tau in counted)
    shares = np.array(samples) / sum(samples)
    assert (weights <= 100 * shares * (1 + 1e-9)).all()
    assert weights.sum() <= (10 + 1 / 10) ** 2 / 4 * (1 + 1e-9)
    assert np.linalg.norm(weights @ updates) <= 25.6
    if least == most:
        assert weights.sum() <= 11**2 / 40 * (1 + 1e-9)


def test_steps_near_their_median_are_not_clipped() -> None:
    assert bounded_steps([100, 10, 1000]) == [100, 10, 1000]
    assert bounded_steps([100, 9, 1001, 100]) == [100, 10, 1000, 100]
    assert bounded_steps([3]) == [3]
    # The lower median of two is the smaller one.
    assert bounded_steps([1, 2**53]) == [1, 10]
    assert bounded_steps([]) == []


def test_a_client_with_clipped_steps_is_noted() -> None:
    assert note_bounded_steps({"a": 5, "b": 50, "c": 7}) == []
    assert note_bounded_steps({"a": 5, "eve": 2**53, "z": 7}) == [
        "steps count within a factor of 10 of their median: eve 9007199254740992 as 70"
    ]
    [note] = note_bounded_steps({f"c{i:02}": 1 if i < 30 else 100 for i in range(60 - 1)})
    assert note.endswith("c49 100 as 10 and 9 more")


@pytest.mark.parametrize("steps", [0, -1, math.inf, math.nan])
def test_steps_that_are_none_cannot_be_normalised(steps: float) -> None:
    with pytest.raises(SpecError, match="contributor 1 made"):
        normalised_weights([1, 1], [1, steps])
