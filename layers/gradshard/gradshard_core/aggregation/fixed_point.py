"""Fixed-point numbers in the ring of the integers modulo 2³² or 2⁶⁴, and their weighted sums.

A client encodes an element x of its update as n · round(x / step), with n its number of samples and
ties rounded to even. Sums in the ring are exact, so their bits depend on no order. The weighted
average is the sum, read as a signed integer, times the step, divided by the sum of the n, which is
encoded as one more element.

The step is a power of two, so x / step is exact and is rounded once. The encoding of x is off by at
most half a step if |x| is at most the bound, and so is the average, whatever the weights and the
number of clients: it is Σ nᵢ eᵢ / Σ nᵢ off, with each |eᵢ| at most half a step. Decoding rounds
once more, in float64.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradshard_core.errors import SpecError, UpdateError

Array = npt.NDArray[Any]

RINGS: Final[Mapping[int, np.dtype[Any]]] = {32: np.dtype("<u4"), 64: np.dtype("<u8")}
"""The elements of each ring, by its number of bits: as they are stored, least byte first."""

MAX_BITS: Final = 53
"""Integers of so many bits are exact in float64."""

SLICE_ELEMENTS: Final = 8 * 1024

_LEAST_BOUND: Final = float(np.finfo(np.float32).tiny)


class _NonFiniteError(Exception):
    """The element at an index is a NaN or an infinity."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at


class RingEncoding(ABC):
    """An encoding of updates as elements of a ring, and of their sum's average.

    Attributes
    ----------
    ring_bits
        k: sums are modulo 2ᵏ; 32 or 64.
    max_clients, max_samples
        The most clients, and the most samples that one of them counts.
    """

    ring_bits: int
    max_clients: int
    max_samples: int

    @property
    @abstractmethod
    def step(self) -> float:
        """The value of the encoded number 1."""

    @property
    @abstractmethod
    def max_error(self) -> float:
        """The most by which an average is off, before it is rounded to its type."""

    @abstractmethod
    def encode(self, values: Array, scale: float, out: Array) -> int:
        """Encode some elements of an update; return how many of them were clipped."""

    @abstractmethod
    def count(self, samples: int) -> int:
        """Return how many of the samples that a client states are counted."""

    @abstractmethod
    def scale(self, samples: int, norm: float) -> float:
        """Return the factor of a client's elements; ``norm`` is its update's length."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the ring's elements."""
        return RINGS[self.ring_bits]

    def check_total(self, total: int, clients: int) -> int:
        """Return the sum of the counts, as it was decoded from its element of the ring.

        Raises
        ------
        UpdateError
            The sum cannot come from this number of clients: a client has sent garbage, or the masks
            that were subtracted are not those that were added.
        """
        if not clients <= total <= clients * self.max_samples:
            raise UpdateError(
                f"the counts of {clients} clients add up to {total}, not to {clients} to "
                f"{clients * self.max_samples}: a client has sent something else than an encoded "
                "update, or the masks are not those of these clients"
            )
        return total

    def decode(self, sums: Array, total: int) -> npt.NDArray[np.float64]:
        """Return the weighted average of some elements.

        Parameters
        ----------
        sums
            n elements of the ring: sums of what clients have encoded.
        total
            The sum of the clients' counts.
        """
        signed = sums.view(sums.dtype.newbyteorder("=").str.replace("u", "i"))
        # Exact up to 2⁵³, and rounded once beyond; then scaled exactly, and divided.
        return signed.astype(np.float64) * self.step / np.float64(total)


@dataclass(frozen=True)
class FixedPoint(RingEncoding):
    """The encoding of the elements of updates, one of the terms of a masked round.

    Parameters
    ----------
    bound
        C: values beyond ±C are clipped to it.
    bits
        b: an encoded value of weight one is from -(2ᵇ⁻¹ - 1) to 2ᵇ⁻¹ - 1.
    ring_bits
        k: sums are modulo 2ᵏ; 32 or 64.
    max_clients, max_samples
        The most clients, and the most samples that one of them may state.

    Raises
    ------
    SpecError
        A number is out of its bounds, or the ring is too small; the text has the numbers that fit.
    """

    bound: float
    bits: int
    ring_bits: int
    max_clients: int
    max_samples: int

    def __post_init__(self) -> None:
        """Check that no sum of what clients may send wraps around."""
        if not (math.isfinite(self.bound) and self.bound >= _LEAST_BOUND):
            raise SpecError(f"bound is {self.bound!r}, not a normal number above zero")
        if not 2 <= self.bits <= MAX_BITS:
            raise SpecError(f"bits is {self.bits!r}, not from 2 to {MAX_BITS}")
        if self.ring_bits not in RINGS:
            raise SpecError(f"ring_bits is {self.ring_bits!r}, not 32 or 64")
        for name in ("max_clients", "max_samples"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name} is {getattr(self, name)!r}, not a number above zero")
        if self._largest(self.bits) >= 2 ** (self.ring_bits - 1):
            raise SpecError(self._too_small())

    def _largest(self, bits: int) -> int:
        """Return the largest magnitude of a sum, of values or of counts."""
        return self.max_clients * self.max_samples * ((1 << (bits - 1)) - 1)

    def _too_small(self) -> str:
        clients, samples = self.max_clients, self.max_samples
        room = (2 ** (self.ring_bits - 1) - 1) // (clients * samples)
        fits = min((room + 1).bit_length(), MAX_BITS)
        advice = f"take at most {fits} bits" if fits >= 2 else "allow fewer samples or clients"
        larger = ", or a ring of 64 bits" if self.ring_bits == 32 else ""
        return (
            f"a ring of {self.ring_bits} bits has no room for {clients} clients of up to {samples} "
            f"samples with {self.bits} bits: {advice}{larger}"
        )

    @property
    def step(self) -> float:
        """The least power of two in which the bound has at most 2ᵇ⁻¹ - 1 steps."""
        steps = 2 ** (self.bits - 1) - 1
        _, exponent = math.frexp(self.bound / steps)
        step = math.ldexp(1.0, exponent - 1)
        return step if self.bound <= steps * step else 2 * step

    @property
    def max_error(self) -> float:
        """The most by which an average is off, before it is rounded to its type."""
        return self.step / 2

    def encode(self, values: Array, scale: float, out: Array) -> int:
        """Encode some elements of an update.

        Parameters
        ----------
        values
            n floats of any width.
        scale
            The client's number of samples.
        out
            n elements of the ring, which are overwritten.

        Returns
        -------
        int
            The number of clipped values.

        Raises
        ------
        UpdateError
            A value is a NaN or an infinity, or the number of samples is out of its bounds.
        """
        samples = self.count(int(scale))
        clipped = 0
        # So few at a time stay in the processor's cache.
        for first in range(0, len(values), SLICE_ELEMENTS):
            part = slice(first, first + SLICE_ELEMENTS)
            try:
                clipped += self._encode(values[part], samples, out[part])
            except _NonFiniteError as error:
                raise UpdateError(
                    f"element {first + error.at} is {values[first + error.at]}: a masked update "
                    "has finite values only"
                ) from None
        return clipped

    def _encode(self, values: Array, samples: int, out: Array) -> int:
        wide = values.astype(np.float64)
        # A NaN is the largest of all.
        largest = max(-wide.min(), wide.max())
        clipped = 0
        if not largest <= self.bound:
            bad = ~np.isfinite(wide)
            if bad.any():
                raise _NonFiniteError(int(bad.argmax()))
            clipped = int(np.count_nonzero(np.abs(wide) > self.bound))
            np.clip(wide, -self.bound, self.bound, out=wide)
        np.multiply(wide, 1 / self.step, out=wide)  # exact, as the step is a power of two
        np.rint(wide, out=wide)
        # Two's complement: a negative number wraps around to its place in the ring.
        integers = wide.astype(f"<i{self.dtype.itemsize}").view(self.dtype)
        np.multiply(integers, self.dtype.type(samples), out=out)
        return clipped

    def scale(self, samples: int, _norm: float) -> float:
        """Return the factor of a client's elements: its number of samples."""
        return self.count(samples)

    def count(self, samples: int) -> int:
        """Return a client's number of samples.

        Raises
        ------
        UpdateError
            It is out of its bounds.
        """
        if not 1 <= samples <= self.max_samples:
            raise UpdateError(
                f"num_samples is {samples}, not from 1 to {self.max_samples}, the most that the "
                "round allows"
            )
        return samples
