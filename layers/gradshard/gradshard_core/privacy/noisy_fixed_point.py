"""Fixed-point numbers for masked rounds with noise: clipped updates on the grid of the noise.

A client shortens its update x to the length C, as a private round does
(:mod:`gradshard_core.privacy.privacy_mechanism`), by a factor s, and encodes each element as
trunc(s · x / g). The *grid* g is such that noise with the standard deviation zC has that of the
noise's table, counted in g. Rounding toward zero lengthens nothing, so what a client adds to the
sum of whole numbers is at most C / g long. The keeper adds discrete Gaussian noise
(:mod:`gradshard_core.privacy.noise`) to the sum of the masks. Every client counts alike: its count
is 1.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from gradshard_core.aggregation.fixed_point import RINGS, SLICE_ELEMENTS, Array, RingEncoding
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.privacy import noise
from gradshard_core.privacy.noise_grid import Grid
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism


@dataclass(frozen=True)
class NoisyFixedPoint(RingEncoding):
    """The encoding of updates whose sum gets noise.

    Parameters
    ----------
    dp
        Clip and noise multiplier.
    elements
        The number of an update's elements.
    ring_bits
        k: sums are modulo 2ᵏ; 32 or 64.
    max_clients
        The most clients.

    Raises
    ------
    SpecError
        The ring is too small for the sum and the noise.
    """

    dp: PrivacyMechanism
    elements: int
    ring_bits: int
    max_clients: int
    max_samples: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        """Check that no sum wraps around, with the largest noise that the table has."""
        if self.ring_bits not in RINGS:
            raise SpecError(f"ring_bits is {self.ring_bits!r}, not 32 or 64")
        largest = self.max_clients * self._longest + noise.largest(self.grid.terms)
        if largest >= 2 ** (self.ring_bits - 1):
            advice = "allow fewer clients, or more noise"
            if self.ring_bits == 32:
                advice = f"take a ring of 64 bits, or {advice}"
            raise SpecError(
                f"a ring of {self.ring_bits} bits has no room for {self.max_clients} clients with "
                f"updates of up to {self._longest} steps, and the noise: {advice}"
            )

    @cached_property
    def grid(self) -> Grid:
        """The grid, and the terms of its noise."""
        return self.dp.grid(self.elements)

    @property
    def step(self) -> float:
        """The value of the encoded number 1: the step of the grid."""
        return self.grid.step

    @property
    def max_error(self) -> float:
        """The most by which an average of updates that are not clipped is off without the noise."""
        return self.step

    @property
    def _longest(self) -> int:
        """The most steps that an element of a clipped update has."""
        return math.floor(self.dp.clip / self.step)

    def encode(self, values: Array, scale: float, out: Array) -> int:
        """Encode some elements of an update.

        Parameters
        ----------
        values
            n floats of any width.
        scale
            s / g.
        out
            n elements of the ring, which are overwritten.

        Returns
        -------
        int
            0: :meth:`scale` shortens whole updates.

        Raises
        ------
        UpdateError
            A value is a NaN, or so large that the update has another length than was measured.
        """
        for first in range(0, len(values), SLICE_ELEMENTS):
            wide = values[first : first + SLICE_ELEMENTS].astype(np.float64)
            np.multiply(wide, scale, out=wide)
            np.trunc(wide, out=wide)
            if not max(-wide.min(), wide.max()) <= self._longest:
                raise UpdateError(
                    f"an element from {first} on is no number, or larger than the norm that was "
                    "measured: the update has changed meanwhile"
                )
            integers = wide.astype(f"<i{self.dtype.itemsize}")
            out[first : first + SLICE_ELEMENTS] = integers.view(self.dtype)
        return 0

    def count(self, _samples: int) -> int:
        """Return 1, whatever the client states."""
        return 1

    def scale(self, _samples: int, norm: float) -> float:
        """Return s / g for an update of the length ``norm``.

        Raises
        ------
        UpdateError
            The update has a NaN or an infinity, or its length is beyond float64.
        """
        if not math.isfinite(norm):
            raise UpdateError(
                f"the norm of the update is {norm}: it has a NaN, or too large values"
            )
        return self.dp.clip_factor(norm) / self.step
