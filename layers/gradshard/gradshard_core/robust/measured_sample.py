"""Measure a random sample of the elements instead of all.

The layout's chunks (:mod:`gradshard_core.robust.inner_products`) are divided into *strata* of
``one_in`` stretches, and one stretch of each stratum is measured. The stretch is drawn from a seed
and the number of its stratum, so M and retries change nothing. Every element is measured with the
same probability, so ``one_in`` times the products of the sample is an unbiased estimate of those of
all elements (Cochran 1977, Sampling Techniques, section 5.3). The seed is drawn when the updates
are frozen: a client that knew it could hide what it does in elements that are not measured.

The *standard error* follows from how much stretches that are next to each other differ (Wolter
2007, Introduction to Variance Estimation, section 8.2, estimator v₂).
"""

import hashlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Self

from gradshard_core.aggregation.block_sizes import ROW_BYTES
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.robust.inner_products import chunk_start

MOST_CHUNKS: Final = 128
"""Chunks of a stretch at most: 8 MiB. In a small function, the transfer of 12 costs as much as a
request."""

LEAST_STRATA: Final = 32
"""Fewer say too little about the error: then everything is measured."""


class Sample(NamedTuple):
    """The stretches of a layout that are measured.

    Parameters
    ----------
    one_in
        The number of stretches of a stratum, of which one is measured.
    chunks
        The number of chunks of a stretch.
    seed
        From which the stretches are drawn.
    """

    one_in: int
    chunks: int
    seed: str

    @classmethod
    def of(cls, nbytes: int, one_in: int, seed: str) -> Self | None:
        """Return a sample of a layout; None if it is too small for one."""
        chunks = nbytes // ROW_BYTES // (one_in * LEAST_STRATA)
        return cls(one_in, min(chunks, MOST_CHUNKS), seed) if chunks else None

    @property
    def together(self) -> int:
        """The number of chunks of a stratum."""
        return self.one_in * self.chunks

    def strata(self, nbytes: int) -> int:
        """Return the number of strata of a layout."""
        return -(-nbytes // (self.together * ROW_BYTES))

    def stretches(
        self, spans: Sequence[Span], nbytes: int, start: int, end: int
    ) -> list[tuple[int, int]]:
        """Return what is measured of the strata that begin in [start, end).

        There is one stretch for each stratum. In the last stratum, which may be shorter, it may be
        empty.
        """
        found = []
        for stratum in range(self.strata(nbytes)):
            first = stratum * self.together
            if start <= chunk_start(spans, nbytes, first) < end:
                chunk = first + self._drawn(stratum) * self.chunks
                ends = (chunk, chunk + self.chunks)
                found.append(tuple(chunk_start(spans, nbytes, c) for c in ends))
        return [(low, high) for low, high in found]

    def _drawn(self, stratum: int) -> int:
        """Return the number of a stratum's stretch that is measured."""
        drawn = hashlib.sha256(f"{self.seed} {stratum}".encode()).digest()
        return int.from_bytes(drawn, "big") % self.one_in

    def to_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return self._asdict()

    @classmethod
    def from_json(cls, written: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(**written)


def relative_errors(squares: Sequence[Sequence[float]], one_in: int) -> list[float]:
    """Return the standard error of each update's measured norm, divided by the norm.

    Parameters
    ----------
    squares
        Of each stratum, the squared norms of the updates' stretches.
    one_in
        The number of stretches of a stratum.
    """
    strata = len(squares)
    errors = []
    for of_update in zip(*squares, strict=True):
        total = math.fsum(of_update) or 1.0
        # Of shares of the total, since squares of squared norms may be beyond float64.
        shares = [square / total for square in of_update]
        differences = math.fsum((a - b) ** 2 for a, b in itertools.pairwise(shares))
        variance = strata / (2 * (strata - 1)) * differences * (1 - 1 / one_in)
        # The norm is a square root, which halves relative errors.
        errors.append(math.sqrt(variance) / 2)
    return errors
