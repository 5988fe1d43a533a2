"""The noise of private rounds: its distribution, and that any range of it can be made."""

import hashlib
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.privacy import noise
from gradshard_core.privacy.noise import BLOCK, NoiseSource, deviation, draw, table

KEY = bytes(range(32))


def made(key: bytes, terms: int, start: int, count: int) -> np.ndarray:
    found = np.empty(count, np.int64)
    NoiseSource(key, terms, start).read_into(memoryview(found).cast("B"))
    return found


def by_hand(key: bytes, terms: int, number: int) -> int:
    """Return the noise of one element, with Python's integers alone."""
    block, at = divmod(number, BLOCK)
    suffix = block.to_bytes(8, "big")
    words = hashlib.shake_128(key + b"terms" + suffix).digest(4 * BLOCK * terms)
    cells = [int.from_bytes(words[4 * i : 4 * i + 4], "little") for i in range(BLOCK * terms)]
    first, tie, alias = (list(map(int, column)) for column in table())
    tied = [i for i, word in enumerate(cells) if word % 2**16 == first[word >> 17]]
    extra = hashlib.shake_128(key + b"ties." + suffix).digest(8 * len(tied))
    total = 0
    for term in range(terms):
        index = term * BLOCK + at
        word, cell = cells[index], cells[index] >> 17
        threshold = first[cell] * 2**64 + tie[cell]
        value = word % 2**16 * 2**64
        if index in tied:
            which = tied.index(index)
            value += int.from_bytes(extra[8 * which : 8 * which + 8], "little")
        magnitude = cell if value < threshold else alias[cell]
        total += (-magnitude if word >> 16 & 1 else magnitude) * 512**term
    return total


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_every_element_is_what_its_bits_say(terms: int) -> None:
    found = made(KEY, terms, 0, 3 * BLOCK)
    for number in [*range(5), BLOCK - 1, BLOCK, 2 * BLOCK + 17]:
        assert found[number] == by_hand(KEY, terms, number)


def test_table_has_the_probabilities_of_the_discrete_gaussian() -> None:
    first, tie, alias = table()
    unit = Fraction(1, len(first) * 2**80)
    found = [Fraction(0)] * len(first)
    for cell, (high, low, other) in enumerate(zip(first, tie, alias, strict=True)):
        threshold = int(high) * 2**64 + int(low)
        found[cell] += threshold * unit
        found[int(other)] += (2**80 - threshold) * unit
    assert sum(found) == 1
    # In floats the densities are right to 2⁻⁵⁰ of themselves.
    exact = [(1 if x == 0 else 2) * math.exp(-(x**2) / 2 / 2480**2) for x in range(len(first))]
    total = math.fsum(exact)
    for x in [0, 1, 2, 100, 2480, 9999, 20_000]:
        assert float(found[x]) == pytest.approx(exact[x] / total, rel=1e-12, abs=2**-94)
    distance = sum(abs(float(f) - e / total) for f, e in zip(found, exact, strict=True)) / 2
    assert distance < 1e-14
    assert float(found[-1]) < 2**-120


def test_ties_are_decided_by_further_bits() -> None:
    first, tie, alias = table()
    cell = next(c for c in range(100, len(first)) if alias[c] != c and 0 < tie[c] < 2**64 - 1)
    word = np.array([cell << 17 | int(first[cell])], np.uint32)
    for bits, expected in ((tie[cell] - np.uint64(1), cell), (tie[cell], alias[cell])):
        assert draw(word, np.full(1, bits).repeat)[0] == expected
    assert draw(word | np.uint32(1 << 16), lambda _: tie[cell : cell + 1])[0] == -int(alias[cell])


@given(
    st.integers(1, 3),
    st.lists(st.integers(0, 3 * BLOCK), min_size=2, max_size=6).map(sorted),
)
def test_any_range_in_any_pieces_is_the_same(terms: int, cuts: list[int]) -> None:
    start, end = cuts[0], cuts[-1]
    whole = made(KEY, terms, 0, end)[start:]
    source = NoiseSource(KEY, terms, start)
    found = np.empty(end - start, np.int64)
    for first, stop in itertools.pairwise(cuts):
        source.read_into(memoryview(found[first - start : stop - start]).cast("B"))
    assert found.tobytes() == whole.tobytes()


SAMPLES = 1 << 20


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_moments_are_those_of_a_gaussian(terms: int) -> None:
    found = made(KEY, terms, 0, SAMPLES) / deviation(terms)
    # Standard errors of the moments 1 to 4 of a Gaussian; five of each are allowed.
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        error = math.sqrt(variance / SAMPLES)
        assert abs((found**power).mean() - expected) < 5 * error, power


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_kolmogorov_smirnov(terms: int) -> None:
    found = np.sort(made(KEY, terms, 0, SAMPLES)) / deviation(terms)
    grid = found[:: SAMPLES // 4096]
    expected = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in grid])
    counted = np.searchsorted(found, grid, side="right") / SAMPLES
    # The largest distance of the two functions exceeds 1.95 / √n with probability 0.001; steps of
    # the samples and of a single term add a little.
    allowed = 1.95 / math.sqrt(SAMPLES) + 1 / SAMPLES + 0.4 / deviation(terms)
    assert np.abs(counted - expected).max() < allowed


@pytest.mark.slow
def test_elements_blocks_and_keys_are_independent() -> None:
    other = bytes(31) + b"\x01"
    one, two = made(KEY, 2, 0, SAMPLES), made(other, 2, 0, SAMPLES)
    scale = deviation(2) ** 2 * math.sqrt(SAMPLES)
    assert abs(float(one.astype(float) @ two)) < 5 * scale
    for lag in (1, 2, 17, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK):
        assert abs(float(one[lag:].astype(float) @ one[:-lag])) < 5 * scale, lag
        squares = one.astype(float) ** 2 / deviation(2) ** 2 - 1
        assert abs(float(squares[lag:] @ squares[:-lag])) < 5 * 2 * math.sqrt(SAMPLES), lag
    assert len(np.unique(one)) > 0.7 * SAMPLES


def test_wrong_keys_and_terms_are_refused() -> None:
    with pytest.raises(ValueError, match="has 32 bytes, not 16"):
        NoiseSource(bytes(16), 2, 0)
    with pytest.raises(ValueError, match="1 to 3 terms, not 4"):
        NoiseSource(KEY, noise.MAX_TERMS + 1, 0)
