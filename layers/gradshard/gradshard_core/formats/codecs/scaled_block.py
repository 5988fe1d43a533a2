"""The base of all block codecs: a block has 32 elements and one scale in BF16.

The blocks of the OCP Microscaling Formats specification (MX v1.0, 2023,
https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf) have a scale
that is a power of two. A scale in BF16 takes one byte more for each block, and the error is up to
half as large. Scale and elements stand in one piece, a *unit*, so an update can be cut between any
two units.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

BLOCK: Final = 32
"""Elements of a unit. A tensor's last unit is filled up with zeros, which are not read."""

SCALE_BYTES: Final = 2

_SHIFT: Final = 16
_HALF: Final = np.dtype("<u2")
_NAN_SCALE: Final = 0x7FC0
_MAGNITUDE: Final = np.int32(0x7FFFFFFF)


class BlockCodec(ABC):
    """A codec whose units are a scale and 32 values: an element is its scale times its value.

    Attributes
    ----------
    name
        As the header of an update has it.
    unit_bytes
        The size of a unit.
    largest
        The largest value, to which the largest element of a block is scaled.
    factor
        A value is this power of two times what :meth:`_values` writes.
    """

    name: str
    unit_bytes: int
    largest: float
    factor = 1.0
    unit = BLOCK

    def stored_shape(self, elements: int) -> tuple[int, int]:
        """Return the shape of a tensor with so many elements, as bytes."""
        return -(-elements // BLOCK), self.unit_bytes

    def stored_bytes(self, elements: int) -> int:
        """Return the size of a tensor with so many elements."""
        return math.prod(self.stored_shape(elements))

    def decode(self, stored: Array, out: Array) -> None:
        """Write the elements of whole units.

        Each element is the product of scale and value in float32, rounded once. A scale that is NaN
        or infinite makes NaN or infinities of its block. numpy may warn of such products: the
        caller decides with ``np.errstate``, which would cost more here, for each slice.

        Parameters
        ----------
        stored
            uint8, n units.
        out
            float32, 32 n elements.
        """
        units = stored.reshape(-1, self.unit_bytes)
        self._values(units[:, SCALE_BYTES:], out.reshape(-1, BLOCK))
        scales = _read_scales(units)
        if self.factor != 1:
            # There are fewer scales than values, and the product is the same: the factor
            # changes exponents alone. A scale that would overflow is left as it is.
            factors = np.multiply(scales, np.float32(self.factor))
            if np.isfinite(factors).all():
                scales = factors
            else:
                np.multiply(out, np.float32(self.factor), out=out)
        # One product of two rows. With a scale for each block, numpy would repeat it more slowly.
        np.multiply(out, scales.repeat(BLOCK), out=out)

    def encode(self, elements: Array, dither: Array | None = None) -> Array:
        """Return the units of elements.

        The scale of a block is its largest magnitude, divided by :attr:`largest` and rounded up to
        BF16. A block with a NaN or an infinity gets the scale NaN.

        Parameters
        ----------
        elements
            float32, 32 n elements.
        dither
            For stochastic rounding, uniform numbers in [0, 1), one for each element; None rounds to
            the nearest value, ties to even.

        Returns
        -------
        numpy.ndarray
            uint8, of shape (n, ``unit_bytes``).
        """
        units = np.empty((len(elements) // BLOCK, self.unit_bytes), np.uint8)
        with np.errstate(all="ignore"):
            scales = self._write_scales(units, _largest_magnitudes(elements))
            # As in :meth:`decode`, one quotient of two rows.
            scaled = elements / np.where(scales > 0, scales, 1).repeat(BLOCK)
            scaled = scaled.reshape(-1, BLOCK)
            is_finite = np.isfinite(scales)
            if not is_finite.all():
                scaled[~is_finite] = 0
            shaped = None
            if dither is not None:
                # A quotient exceeds the largest value by less than its 254th part, since only the
                # highest scale is rounded down. Rounding to the nearest value takes that away.
                np.clip(scaled, -self.largest, self.largest, out=scaled)
                shaped = dither.reshape(scaled.shape)
            self._store(scaled, shaped, units[:, SCALE_BYTES:])
        return units

    @cached_property
    def _highest_scale(self) -> np.float32:
        """The highest scale whose product with the largest value does not overflow."""
        most = np.finfo(np.float32).max / np.float32(self.largest)
        bits = most.view(np.uint32) >> _SHIFT << _SHIFT
        highest: np.float32 = bits.view(np.float32)
        return highest

    def _write_scales(self, units: Array, magnitudes: Array) -> Array:
        """Write the scales of blocks with these largest magnitudes; return them in float32."""
        highest = self._highest_scale.view(np.uint32) >> _SHIFT
        bits = (magnitudes / np.float32(self.largest)).view(np.uint32)
        kept = np.minimum((bits + 0xFFFF) >> _SHIFT, highest)
        kept[~np.isfinite(magnitudes)] = _NAN_SCALE
        units.view(_HALF)[:, 0] = kept
        widened: Array = (kept << _SHIFT).view(np.float32)
        return widened

    @abstractmethod
    def _values(self, stored: Array, out: Array) -> None:
        """Write the values of n blocks, of shape (n, 32), as float32, up to :attr:`factor`."""

    @abstractmethod
    def _store(self, scaled: Array, dither: Array | None, stored: Array) -> None:
        """Round scaled elements to values, and store them; ``scaled`` may be changed."""


def _largest_magnitudes(elements: Array) -> Array:
    """Return the largest magnitude of each block; NaN if there is one."""
    # Without its sign, a float32 is ordered as its bits are, and NaN is the largest. numpy compares
    # integers four times as fast, because it need not look for NaNs.
    bits = elements.view(np.int32) & _MAGNITUDE
    found: Array = np.maximum.reduceat(bits, np.arange(0, len(bits), BLOCK)) if len(bits) else bits
    return found.view(np.float32)


def _read_scales(units: Array) -> Array:
    """Return the scales in float32, of which BF16 is the upper half."""
    scales = np.zeros(len(units), np.float32)
    scales.view(_HALF)[1::2] = units.view(_HALF)[:, 0]
    return scales


def in_one_piece(stored: Array) -> Array:
    """Return the bytes of blocks' values without gaps: numpy then makes one loop of all blocks."""
    return stored.view(f"V{stored.shape[1]}").copy().view(np.uint8)


def round_to_integers(scaled: Array, dither: Array | None, largest: float) -> None:
    """Round to whole numbers: to the nearest, ties to even, or stochastically."""
    if dither is None:
        np.rint(scaled, out=scaled)
    else:
        np.add(scaled, dither, out=scaled)
        np.floor(scaled, out=scaled)
        # Adding the dither to a float32 may round up to the next whole number.
        np.clip(scaled, -largest, largest, out=scaled)
