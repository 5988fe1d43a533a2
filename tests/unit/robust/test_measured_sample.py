"""A sample of the elements: what is measured, and how far the estimate is off."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from gradshard_core.aggregation.block_sizes import ROW_BYTES
from gradshard_core.aggregation.kernel import WeightedRange, aggregate
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.robust.inner_products import ExactSum, Measuring, chunk_ranges, cut_chunks
from gradshard_core.robust.measured_sample import LEAST_STRATA, Sample, relative_errors
from tests.unit.aggregation.test_kernel import MemorySource


def measure(
    updates: Sequence[np.ndarray], sample: Sample, shards: int
) -> tuple[list[list[float]], list[list[float]]]:
    """Return the products of a sample, and its squared norms, measured in so many tasks."""
    nbytes = updates[0].nbytes
    spans, total, squares = [Span("F32", 0, nbytes)], ExactSum(len(updates)), []
    for _, first, last in cut_chunks(spans, nbytes, shards, sample.together):
        for start, end in sample.stretches(spans, nbytes, first, last):
            reduction = Measuring(len(updates))
            ones = [1.0] * len(updates)
            weighted_ranges = [
                WeightedRange(*c, ones) for c in chunk_ranges(spans, nbytes, start, end)
            ]
            sources = [MemorySource(u.tobytes()[start:end]) for u in updates]
            aggregate(sources, weighted_ranges, reduction, spans, lambda _: None)
            total.add_sum(reduction.products)
            squares.append(reduction.products.rounded_diagonal())
    return total.rounded(), squares


@pytest.mark.parametrize("one_in", [2, 3])
def test_sample_is_the_same_for_every_m(one_in: int) -> None:
    rng = np.random.default_rng(1)
    updates = [rng.standard_normal(50 * ROW_BYTES // 4 + 7).astype("f4") for _ in range(3)]
    sample = Sample(one_in, 1, "seed")
    found = [measure(updates, sample, shards) for shards in (1, 2, 5, 40)]
    assert all(other == found[0] for other in found)
    assert len(found[0][1]) == sample.strata(updates[0].nbytes)
    # By definition: of each stratum the stretch that the seed draws.
    flat = np.stack([u.astype(float) for u in updates])
    wanted = np.zeros((3, 3))
    for stratum in range(sample.strata(updates[0].nbytes)):
        chunk = stratum * one_in + sample._drawn(stratum)
        part = flat[:, chunk * ROW_BYTES // 4 : (chunk + 1) * ROW_BYTES // 4]
        wanted += part @ part.T
    assert np.allclose(found[0][0], wanted, rtol=1e-6, atol=1e-2)


@pytest.mark.parametrize(("nbytes", "chunks"), [(10**7, None), (21 * 2**20, 1), (10**10, 128)])
def test_size_of_a_stretch_follows_from_the_layout(nbytes: int, chunks: int | None) -> None:
    sample = Sample.of(nbytes, 10, "s")
    assert (sample and sample.chunks) == chunks
    if sample is not None:
        assert sample.strata(nbytes) >= LEAST_STRATA


def test_strata_are_measured_once_each_and_every_chunk_equally_often() -> None:
    nbytes, counts = 64 * ROW_BYTES, np.zeros(64)
    spans = [Span("F32", 0, nbytes)]
    for seed in range(2000):
        for stratum, (start, end) in enumerate(
            Sample(4, 1, str(seed)).stretches(spans, nbytes, 0, nbytes)
        ):
            assert stratum * 4 * ROW_BYTES <= start < end <= (stratum + 1) * 4 * ROW_BYTES
            counts[start // ROW_BYTES] += 1
    # Binomial with p = ¼: five standard deviations are 97.
    assert abs(counts - 500).max() < 97


def test_stated_error_covers_the_true_one() -> None:
    """Norms of 300 updates whose layers have different scales, each with its own sample."""
    rng = np.random.default_rng(3)
    one_in, strata, within, ratios = 5, 40, 0, []
    for _ in range(300):
        scales = np.repeat(rng.lognormal(0, 1, 8), one_in * strata // 8)
        by_chunk = scales * rng.lognormal(0, 0.5, one_in * strata)
        drawn = by_chunk.reshape(strata, one_in)[range(strata), rng.integers(0, one_in, strata)]
        [error] = relative_errors(drawn[:, None].tolist(), one_in)
        off = np.sqrt(one_in * drawn.sum() / by_chunk.sum()) - 1
        within += abs(off) <= 2 * error
        ratios.append(off)
    assert within / 300 > 0.93  # of a Gaussian 0.954
    assert abs(np.mean(ratios)) < 0.02  # without a bias


def test_zero_updates_have_no_error() -> None:
    assert relative_errors([[0.0, 1.0]] * 3, 4) == [0.0, 0.0]


@pytest.mark.parametrize("length", [2.0**-960, 1.0, 2.0**990])
def test_longest_and_shortest_updates_that_are_measured_have_an_error(length: float) -> None:
    [found] = relative_errors([[v * length] for v in (4.0, 1.0, 3.0)], 2)
    assert found == relative_errors([[4.0], [1.0], [3.0]], 2)[0]


def test_pairs_of_neighbours_give_the_error_by_definition() -> None:
    values = [4.0, 1.0, 3.0]
    [found] = relative_errors([[v] for v in values], 2)
    squares = sum((a - b) ** 2 for a, b in itertools.pairwise(values))
    # Of the estimate 2 · Σ, whose norm has half of its relative error.
    assert found == pytest.approx((2 * (3 / 4 * squares * 0.5) ** 0.5) / (2 * 8.0) / 2)
