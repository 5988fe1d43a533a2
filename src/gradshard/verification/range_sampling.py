"""Choose byte ranges of a result at random, and say how likely they are to show an error.

A layout is cut into *ranges* of nearly equal size. A sample is drawn uniformly and without
replacement, so the number of wrong ranges in it is hypergeometric: if k of R ranges are wrong, n
draws find one of them with the probability 1 - C(R - k, n) / C(R, n).
"""

import math
import random
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from gradshard_core.aggregation.sharding import cut_position
from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Span

WIDEST: Final = max(dtype.size for dtype in DTYPES.values())

RANGE_BYTES: Final = 64 * 1024
"""Size of a range. A smaller one would cost as many requests for fewer bytes."""

LEAST_RANGE_BYTES: Final = 4 * 1024

CONFIDENCES: Final = (50, 95, 99)
"""Probabilities in percent for which a report says how many wrong ranges are found with them."""


@dataclass(frozen=True)
class Detection:
    """The probability that a sample shows a wrong result.

    Parameters
    ----------
    ranges
        The number of ranges with a wrong byte.
    nbytes
        A number of wrong bytes that lie in at least that many ranges, wherever they are.
    probability
        The probability that at least one of those ranges is in the sample.
    """

    ranges: int
    nbytes: int
    probability: float


@dataclass(frozen=True)
class Sample:
    """Ranges of a layout, drawn at random.

    Parameters
    ----------
    spans, nbytes
        The layout.
    total
        The number of ranges into which it is cut.
    count
        The number of ranges in the sample.
    seed
        Decides which ones.
    """

    spans: Sequence[Span]
    nbytes: int
    total: int
    count: int
    seed: str

    @classmethod
    def of(
        cls, spans: Sequence[Span], nbytes: int, *, range_bytes: int, fraction: float, seed: str
    ) -> "Sample":
        """Make a sample of a fraction of the ranges, which have at most about ``range_bytes``.

        Raises
        ------
        SpecError
            The fraction is not over 0 and at most 1.
        """
        if not 0 < fraction <= 1:
            raise SpecError(f"sample is {fraction!r}, not a fraction over 0 and at most 1")
        total = -(-nbytes // range_bytes)
        # The fraction as it is written: 0.07 of 100 is 7, and not 8.
        count = math.ceil(Fraction(str(fraction)) * total)
        return cls(spans, nbytes, total, count, seed)

    def numbers(self) -> "array[int]":
        """Return the numbers of the ranges in the sample, in rising order.

        This is algorithm S of Knuth (The Art of Computer Programming, volume 2, 3.4.2). Its random
        numbers are those of Python's ``random.Random(seed).random()``, which Python promises to
        keep, so everybody draws the same ranges from the same seed.
        """
        generator = random.Random(self.seed)  # noqa: S311 - the seed is the secret, until it is told
        drawn = array("q")
        for number in range(self.total):
            wanted = self.count - len(drawn)
            if not wanted:
                break
            if generator.random() * (self.total - number) < wanted:
                drawn.append(number)
        return drawn

    def range_of(self, number: int) -> tuple[int, int]:
        """Return the bytes [start, end) of a range."""
        start, end = (
            cut_position(self.spans, 0, self.nbytes, self.total, piece)
            for piece in (number, number + 1)
        )
        return start, end

    @property
    def most_bytes(self) -> int:
        """The size that no range is over."""
        # Where a cut falls into an element, it moves to the element's begin.
        return -(-self.nbytes // self.total) + WIDEST - 1

    def probability(self, wrong: int) -> float:
        """Return the probability that the sample has at least one of so many wrong ranges.

        1 - C(R - k, n) / C(R, n), for n of R ranges, of which k are wrong. It is computed in whole
        numbers and rounded once.
        """
        missed, every = self._draws(wrong)
        return (every - missed) / every

    def _draws(self, wrong: int) -> tuple[int, int]:
        """Return two numbers whose ratio is the probability that no wrong range is drawn."""
        # C(R - k, n) / C(R, n) = C(R - n, k) / C(R, k), so the smaller of the two sets is counted.
        fewer, more = sorted((wrong, self.count))
        return math.perm(self.total - more, fewer), math.perm(self.total, fewer)

    def detections(self) -> Iterator[Detection]:
        """Yield the probability for one wrong range, and for as many as make it 50, 95 and 99 %."""
        least = dict.fromkeys([1, *map(self._least_wrong, CONFIDENCES)])
        for wrong in least:
            nbytes = (wrong - 1) * self.most_bytes + 1
            yield Detection(wrong, min(nbytes, self.nbytes), self.probability(wrong))

    def _least_wrong(self, percent: int) -> int:
        """Return the least number of wrong ranges that are found with a probability in percent."""
        high = 1
        while not self._suffices(high, percent):
            high *= 2
        return 1 + bisect_left(
            range(1, high), True, key=lambda wrong: self._suffices(wrong, percent)
        )

    def _suffices(self, wrong: int, percent: int) -> bool:
        """Whether so many wrong ranges are found with a probability in percent."""
        missed, every = self._draws(min(wrong, self.total))
        return 100 * missed <= (100 - percent) * every
