"""Noise for the sum of the masks: discrete Gaussian, as elements of the ring.

Its key is made of the seeds of all masks that are summed, so it is drawn once for a sum, whatever
is repeated, and nobody has to keep it: who knows all seeds but one cannot tell the key from a
random one. It is gone with the seeds.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from gradshard_core.aggregation.fixed_point import RINGS
from gradshard_core.privacy.noise import NoiseSource

_LABEL: Final = b"gradshard noise 1"


def noise_key(seeds: Sequence[bytes]) -> bytes:
    """Return the key of the noise of a sum of masks: the SHA-256 of a label and their seeds.

    Parameters
    ----------
    seeds
        32 bytes each, in the order of the clients' ids.
    """
    return hashlib.sha256(_LABEL + b"".join(seeds)).digest()


class RingNoise:
    """Bytes [start, …) of the noise of a sum of masks: a source of the kernel.

    The last element of the sum is that of the counts, which are public and get none.

    Parameters
    ----------
    key, terms
        Of :class:`gradshard_core.privacy.noise.NoiseSource`.
    start
        In bytes of the sum.
    elements
        The number of the sum's elements, with the last one.
    ring_bits
        32 or 64.
    """

    def __init__(self, key: bytes, terms: int, start: int, elements: int, ring_bits: int) -> None:
        self._dtype = RINGS[ring_bits]
        first = start // self._dtype.itemsize
        self._left = elements - first
        self._noise = NoiseSource(key, terms, first)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the noise of the next elements."""
        target = np.frombuffer(buffer, self._dtype)
        drawn = np.empty(len(target), np.int64)
        self._noise.read_into(memoryview(drawn).cast("B"))
        self._left -= len(target)
        if self._left <= 0:
            drawn[-1] = 0
        # Two's complement: a negative number wraps around to its place in the ring.
        target[:] = drawn.astype(self._dtype)
