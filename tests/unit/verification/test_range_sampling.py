"""Samples of a layout's ranges: which ones, and the probability of finding a wrong one."""

import itertools
import time
from collections import Counter

import pytest

from gradshard.verification.range_sampling import Sample
from gradshard_core.errors import SpecError
from gradshard_core.formats.tensor_layout import Span

SPANS = (Span("F64", 0, 8_000), Span("I8", 8_000, 8_003), Span("F32", 8_003, 100_003))


def sample(
    fraction: float, seed: str = "s", *, nbytes: int = 100_003, range_bytes: int = 1_000
) -> Sample:
    return Sample.of(SPANS, nbytes, range_bytes=range_bytes, fraction=fraction, seed=seed)


def test_ranges_cover_the_layout_and_end_on_element_boundaries() -> None:
    found = sample(1.0)
    assert found.total == found.count == 101
    ranges = [found.range_of(number) for number in found.numbers()]
    assert [ranges[0][0], ranges[-1][1]] == [0, 100_003]
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
    assert max(end - start for start, end in ranges) <= found.most_bytes <= 1_000
    for start, _ in ranges:
        span = next(span for span in SPANS if span.start <= start < span.end)
        assert (start - span.start) % {"F64": 8, "I8": 1, "F32": 4}[span.dtype] == 0


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.01, 2), (1e-9, 1), (0.5, 51), (0.999, 101), (1.0, 101)]
)
def test_a_sample_has_the_fraction_of_the_ranges_and_at_least_one(
    fraction: float, count: int
) -> None:
    numbers = sample(fraction).numbers()
    assert len(set(numbers)) == len(numbers) == sample(fraction).count == count
    assert list(numbers) == sorted(numbers)


def test_a_fraction_is_taken_as_it_is_written() -> None:
    assert sample(0.07, nbytes=100_000).count == 7


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_fraction_out_of_bounds_is_rejected(fraction: float) -> None:
    with pytest.raises(SpecError, match="not a fraction over 0 and at most 1"):
        sample(fraction)


def test_the_same_seed_draws_the_same_ranges_on_every_machine() -> None:
    # These numbers are part of every published verification: they must never change.
    assert list(sample(0.1, "beacon").numbers()) == [0, 3, 5, 18, 28, 33, 55, 63, 75, 78, 100]
    assert list(sample(0.1, "beacon").numbers()) != list(sample(0.1, "bacon").numbers())


def test_every_pair_of_ranges_is_drawn_as_often_as_any_other() -> None:
    draws = 6_000
    pairs = Counter(tuple(sample(0.4, str(seed), nbytes=5_000).numbers()) for seed in range(draws))
    assert set(pairs) == set(itertools.combinations(range(5), 2))
    # Chi-square with 9 degrees of freedom: 27.9 is exceeded in one case of a thousand.
    expected = draws / 10
    assert sum((n - expected) ** 2 / expected for n in pairs.values()) < 27.9


@pytest.mark.parametrize("count", [1, 2, 5, 7])
@pytest.mark.parametrize("wrong", [1, 2, 3, 6, 7])
def test_the_probability_is_that_of_all_draws_counted(count: int, wrong: int) -> None:
    found = Sample(SPANS, 7_000, 7, count, "s")
    draws = [set(draw) for draw in itertools.combinations(range(7), count)]
    hits = sum(bool(draw & set(range(wrong))) for draw in draws)
    assert found.probability(wrong) == hits / len(draws)


def test_detections_name_the_least_wrong_ranges_for_each_confidence() -> None:
    found = Sample((Span("F32", 0, 65_536_000_000),), 65_536_000_000, 1_000_000, 10_000, "s")
    detections = list(found.detections())
    assert [d.ranges for d in detections] == [1, 69, 299, 459]
    assert detections[0].probability == 0.01
    for detection, confidence in zip(detections[1:], (0.50, 0.95, 0.99), strict=True):
        assert found.probability(detection.ranges) >= confidence
        assert found.probability(detection.ranges - 1) < confidence
    # 458 ranges can hold 458 times the size of a range; one byte more is in a 459th.
    assert detections[-1].nbytes == 458 * found.most_bytes + 1


@pytest.mark.parametrize("count", [1, 10, 2_000, 500_000, 999_999])
def test_the_probabilities_of_a_large_result_take_little_time(count: int) -> None:
    found = Sample((Span("F32", 0, 65_536_000_000),), 65_536_000_000, 1_000_000, count, "s")
    began = time.process_time()
    assert next(d.ranges for d in found.detections()) == 1
    assert time.process_time() - began < 5


def test_a_whole_result_leaves_nothing_to_chance() -> None:
    [detection] = sample(1.0).detections()
    assert (detection.ranges, detection.nbytes, detection.probability) == (1, 1, 1.0)
