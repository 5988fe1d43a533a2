"""Discrete Gaussian noise from a key: any range of its elements can be made, by any task.

The noise of element n is a function of the key and of n. A task that runs again adds the same
noise, and the number of shards changes nothing. Samples are whole numbers, so attacks on the low
bits of floating-point noise (Mironov 2012, https://doi.org/10.1145/2382196.2382264) do not apply.

**The distribution** is the discrete Gaussian of Canonne, Kamath and Steinke 2020
(https://arxiv.org/abs/2004.00010): P(x) ∝ exp(-x² / 2σ²) on the integers. A sample is
x₁ + k·x₂ + k²·x₃, of which each *term* is a discrete Gaussian with σ₁ = 2480 from a table, and
k = 512. One to three terms give σ = σ₁ √(1 + k² + k⁴).

The sum of two terms is that distribution: P(x₁ + k·x₂ = n) is the Gaussian's density at n, times
the sum of a Gaussian with deviation τ over a shifted lattice of the integers. By Poisson's formula
that sum is the same for every n but for a factor of at most 1 ± 4 exp(-2π²τ²). Here τ > 4.7, so
the factor is 1 ± 2⁻⁶²⁸ (compare Micciancio and Walter 2017, https://eprint.iacr.org/2017/259,
theorem 4).

**The table** gives a magnitude up to 32,767 by Walker's alias method, with thresholds of 80 bits.
Their rounding, and the tail of 2⁻¹²⁵ beyond the table, change the distribution of a term by a total
variation of at most 2⁻⁸⁰. For all elements of a model of 2³³ elements that is 2⁻⁴⁵, which
(1 + e^ε) times would be added to δ.

**The random bits** are SHAKE128 (FIPS 202) of key, label and block number, in blocks of 4,096
elements: a keyed sponge, https://keccak.team/files/SpongePRF.pdf. 32 bits make a term: 15 for a
cell of the table, a sign, and 16 that are compared with the cell's threshold. If these 16 are equal
to the threshold's, 64 more decide.
"""

import functools
import hashlib
import itertools
import math
from collections.abc import Callable
from decimal import Context, Decimal
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

KEY_BYTES: Final = 32

BLOCK: Final = 4096
"""Elements that are made at a time."""

CELL_BITS: Final = 15
FIRST_BITS: Final = 16
TIE_BITS: Final = 64
TERM_DEVIATION: Final = 2480
"""σ₁. 32,767 is 13.2 times as much."""
FACTOR: Final = 512
"""k."""
MAX_TERMS: Final = 3

_PRECISION: Final = 256
"""Bits after the point, of the probabilities from which the table is made."""
_DIGITS: Final = Context(prec=100)

Integers = npt.NDArray[np.int64]


def deviation(terms: int) -> float:
    """Return σ of the noise of so many terms."""
    return TERM_DEVIATION * math.sqrt(sum(FACTOR ** (2 * term) for term in range(terms)))


def largest(terms: int) -> int:
    """Return the largest magnitude of the noise of so many terms, which ends with the table."""
    return ((1 << CELL_BITS) - 1) * int(sum(FACTOR**term for term in range(terms)))


class Table(NamedTuple):
    """Walker's alias table of a magnitude: cell i gives i under its threshold, else its alias.

    Parameters
    ----------
    first, tie
        The threshold's first 16 bits, and the 64 after them.
    alias
        The other magnitude of each cell.
    """

    first: npt.NDArray[np.uint16]
    tie: npt.NDArray[np.uint64]
    alias: npt.NDArray[np.uint16]


@functools.cache
def table() -> Table:
    """Return the table of a term."""
    thresholds, aliases = _alias(_masses(1 << CELL_BITS))
    first = np.array([t >> TIE_BITS for t in thresholds], np.uint16)
    tie = np.array([t & ((1 << TIE_BITS) - 1) for t in thresholds], np.uint64)
    return Table(first, tie, np.array(aliases, np.uint16))


def _masses(cells: int) -> list[int]:
    """Return the probabilities of |x| in units of 2⁻⁹⁵, which add up to one."""
    one = 1 << _PRECISION
    ratio, shrink = (
        int(_DIGITS.exp(-Decimal(exponent) / TERM_DEVIATION**2 / 2) * one) for exponent in (1, 2)
    )
    # exp(-(x + 1)² / 2σ²) = exp(-x² / 2σ²) · exp(-(2x + 1) / 2σ²); twice, but for zero.
    weight, weights = 2 * one, [one]
    for _ in range(cells - 1):
        weight = weight * ratio >> _PRECISION
        ratio = ratio * shrink >> _PRECISION
        weights.append(weight)
    total, unit = sum(weights), cells << (FIRST_BITS + TIE_BITS)
    # Rounded so that they add up: each is the difference of two rounded sums.
    sums = [0, *itertools.accumulate(weights)]
    marks = [(unit * below + total // 2) // total for below in sums]
    return [upper - lower for lower, upper in itertools.pairwise(marks)]


def _alias(masses: list[int]) -> tuple[list[int], list[int]]:
    """Divide masses among cells of one size, of at most two values each (Vose 1991)."""
    size = 1 << (FIRST_BITS + TIE_BITS)
    thresholds, aliases = [0] * len(masses), list(range(len(masses)))
    left = list(masses)
    small = [cell for cell, mass in enumerate(left) if mass < size]
    large = [cell for cell, mass in enumerate(left) if mass >= size]
    while small:
        cell, giver = small.pop(), large[-1]
        thresholds[cell], aliases[cell] = left[cell], giver
        left[giver] -= size - left[cell]
        if left[giver] < size:
            small.append(large.pop())
    # The remaining masses fill their cells, which are their own aliases.
    return thresholds, aliases


class NoiseSource:
    """Noise of the elements [start, …): a source of the kernel, of int64.

    Parameters
    ----------
    key
        32 secret random bytes, which serve for one sum.
    terms
        From 1 to 3; they decide σ (:func:`deviation`).
    start
        The number of the first element.

    Raises
    ------
    ValueError
        The key has another length, or there are no such terms.
    """

    def __init__(self, key: bytes, terms: int, start: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of noise has {KEY_BYTES} bytes, not {len(key)}")
        if not 1 <= terms <= MAX_TERMS:
            raise ValueError(f"noise has 1 to {MAX_TERMS} terms, not {terms}")
        self._key, self._terms = key, terms
        self._number, skipped = divmod(start, BLOCK)
        self._rest = self._make()[skipped:] if skipped else np.empty(0, np.int64)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the noise of the next elements, 8 bytes each."""
        target = np.frombuffer(buffer, np.int64)
        filled = 0
        while filled < len(target):
            if not len(self._rest):
                self._rest = self._make()
            taken = min(len(self._rest), len(target) - filled)
            target[filled : filled + taken] = self._rest[:taken]
            self._rest = self._rest[taken:]
            filled += taken

    def _make(self) -> Integers:
        """Return the noise of the next block."""
        count = self._terms * BLOCK
        drawn = np.frombuffer(self._bits(b"terms", 4 * count), "<u4")
        terms = draw(drawn, lambda ties: np.frombuffer(self._bits(b"ties.", 8 * ties), "<u8"))
        noise = terms[:BLOCK]
        for term in range(1, self._terms):
            noise += terms[term * BLOCK : (term + 1) * BLOCK] * FACTOR**term
        self._number += 1
        return noise

    def _bits(self, label: bytes, count: int) -> bytes:
        """Return random bytes of the block; labels are equally long, so inputs never coincide."""
        return hashlib.shake_128(self._key + label + self._number.to_bytes(8, "big")).digest(count)


def draw(drawn: npt.NDArray[np.uint32], more: Callable[[int], npt.NDArray[np.uint64]]) -> Integers:
    """Make terms of 32 random bits each.

    Parameters
    ----------
    drawn
        n times 32 bits.
    more
        Returns as many times 64 random bits as there are ties.

    Returns
    -------
    array
        n samples of the discrete Gaussian with σ₁.
    """
    first, tie, alias = table()
    cells = drawn >> np.uint32(32 - CELL_BITS)
    compared = drawn.astype(np.uint16)
    thresholds = first[cells]
    is_kept = compared < thresholds
    ties = np.flatnonzero(compared == thresholds)
    if len(ties):
        is_kept[ties] = more(len(ties)) < tie[cells[ties]]
    magnitudes = np.where(is_kept, cells, alias[cells]).astype(np.int64)
    signs = ((drawn >> np.uint32(FIRST_BITS)) & np.uint32(1)).astype(np.int64)
    # Two's complement: (x ^ -1) + 1 is -x.
    np.bitwise_xor(magnitudes, -signs, out=magnitudes)
    return np.add(magnitudes, signs, out=magnitudes)
