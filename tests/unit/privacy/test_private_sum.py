"""The sum of a private round: no update adds more than the clip, in any order."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation.kernel import WeightedRange, aggregate
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism
from gradshard_core.privacy.private_sum import PrivateSum
from gradshard_core.robust.inner_products import ExactSum, Measuring


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
    weighted_ranges = [
        WeightedRange(start, min(start + 65536, update.nbytes), [1.0])
        for start in range(0, update.nbytes, 65536)
    ]
    aggregate(
        [Bytes(update)], weighted_ranges, reduction, [Span("F32", 0, update.nbytes)], lambda _: None
    )
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
    weighted_ranges = [WeightedRange(0, updates[0].nbytes, weights)]
    sources = [*map(Bytes, updates), Bytes(np.zeros(size, np.int64))]
    # The step is one, so that the sums are whole numbers.
    aggregate(
        sources,
        weighted_ranges,
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
