"""Central differential privacy: clip each update, add in fixed point, add discrete Gaussian noise.

The *mechanism* is that of McMahan et al. 2018 (https://arxiv.org/abs/1710.06963) with noise of
Canonne, Kamath and Steinke 2020 (https://arxiv.org/abs/2004.00010). Of n updates x with factors

    sᵢ = min(1, C / (‖xᵢ‖ · (1 + 2⁻¹⁰)))

it computes (Σ trunc(sᵢxᵢ / g) + noise) · g / n. The *grid* g is such that the noise's σ is zC, with
z the noise multiplier. Sums of whole numbers are exact in float64, so the result depends on no
order.

**Sensitivity.** ‖xᵢ‖ is measured (:mod:`gradshard_core.aggregation.gram`) of elements that are
rounded by at most 2⁻¹⁸ of the largest one of their chunk. A chunk has at most 32,776 elements, so
the measured norm is short of the true one by at most √32776 · 2⁻¹⁸ < 7·10⁻⁴ of it, for which 2⁻¹⁰
makes up. Rounding toward zero lengthens no update. So what one client adds to the sum is at most C
long: this is the change of the sum if a client had sent zeros instead. If it had sent another
update, the change is at most 2C.

**The guarantee** is that of the Gaussian mechanism in Rényi and concentrated differential privacy
(Canonne et al., theorem 14): the release is α / 2z² Rényi-DP of every order α > 1. Several releases
add up: Σ 1/z² is all that an accountant needs of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np

from gradshard_core.aggregation import arithmetic, noise
from gradshard_core.aggregation.gram_rules import Decision, Gram, norms_of
from gradshard_core.aggregation.kernel import Block, Piece, Source, pieces_of
from gradshard_core.aggregation.sharding import block_bytes
from gradshard_core.errors import SpecError

MARGIN: Final = 1 + 2.0**-10
"""The factor by which an update may be longer than it was measured."""

FINENESS: Final = 2**7
"""Grid steps that a typical element of an update of length C has, where three terms suffice.
Rounding toward zero then takes half of 1/128 of it."""

LEAST_CLIENTS: Final = 2

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "clip": (2.0**-40, 2.0**40),
    "noise_multiplier": (0.01, 1000.0),
    "delta": (1e-15, 0.1),
}


class Grid(NamedTuple):
    """The whole numbers in which a private sum is computed.

    Parameters
    ----------
    step
        g, what one is worth.
    terms
        The terms of the noise.
    """

    step: float
    terms: int


@dataclass(frozen=True)
class PrivacyMechanism:
    """Clip updates, and add noise to their sum.

    Parameters
    ----------
    clip
        C, the length to which updates are clipped.
    noise_multiplier
        z: the noise of the sum has the standard deviation zC.
    delta
        δ, at which ε is stated.
    """

    clip: float
    noise_multiplier: float
    delta: float

    name: ClassVar[str] = "dp"
    score: ClassVar[str] = "norm"
    pairs: ClassVar[bool] = False

    @property
    def cost(self) -> float:
        """1/z²: what a round adds to a model's ledger."""
        return 1 / self.noise_multiplier**2

    def grid(self, elements: int) -> Grid:
        """Return the grid for updates of so many elements."""
        fitting = (
            terms
            for terms in range(1, noise.MAX_TERMS)
            if noise.deviation(terms)
            >= self.noise_multiplier * FINENESS * math.sqrt(max(1, elements))
        )
        terms = next(fitting, noise.MAX_TERMS)
        return Grid(self.noise_multiplier * self.clip / noise.deviation(terms), terms)

    def decide(self, gram: Gram, samples: Sequence[int]) -> Decision:
        """Return the factors sᵢ; every client counts alike, whatever its number of samples."""
        norms = norms_of(gram)
        factors = tuple(
            1.0 if norm * MARGIN <= self.clip else self.clip / (norm * MARGIN) for norm in norms
        )
        return Decision(factors, norms, (1.0,) * len(samples), self.clip)

    def to_json(self) -> dict[str, Any]:
        """Return what :func:`parse_privacy` reads."""
        return {
            "clip": self.clip,
            "noise_multiplier": self.noise_multiplier,
            "delta": self.delta,
        }


def parse_privacy(stated: Any) -> PrivacyMechanism:
    """Read a mechanism from JSON: ``clip``, ``noise_multiplier`` and ``delta``.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    if not isinstance(stated, Mapping) or stated.keys() - _BOUNDS.keys():
        raise SpecError(f"dp is {stated!r}, not {{clip: …, noise_multiplier: …, delta: …}}")
    for name, (low, high) in _BOUNDS.items():
        value = stated.get(name)
        if value is None:
            raise SpecError(
                f"dp needs {name}, for example "
                '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
            )
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            raise SpecError(f"dp: {name} is {value!r}, not a number from {low:g} to {high:g}")
    return PrivacyMechanism(**{name: float(stated[name]) for name in _BOUNDS})


@dataclass(frozen=True)
class PrivateSum:
    """The reduction of a private round; the last source is the noise, of int64.

    Parameters
    ----------
    step
        g of the grid.
    contributors
        The number of updates, by which the sum is divided.
    gathers
        Whether some inputs have their tensors in another order.
    """

    step: float
    contributors: int
    gathers: bool = False
    of_sums: ClassVar[bool] = False
    accumulator: ClassVar[np.dtype[Any]] = np.dtype(np.float64)

    def rows(self, _inputs: int) -> int:
        """Return the number of arrays: the sum."""
        return 1

    def block_bytes(self, inputs: int) -> int:
        """Return the size of a block in bytes of the layout."""
        return block_bytes(inputs, gathers=self.gathers)

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Add a block of every input, with its factor sᵢ as weight, and the noise."""
        *updates, noises = sources
        for piece in pieces_of(block):
            piece.rows[0].fill(0)
        for source, weight in zip(updates, weights, strict=True):
            steps = (weight or 0.0) / self.step
            for slice_ in block:
                source.read_into(slice_.raw)
                for piece in slice_.pieces:
                    _add_truncated(piece, steps)
        for _, _, [total], scratch in pieces_of(block):
            noises.read_into(arithmetic.bytes_of(scratch))
            np.add(total, scratch.view(np.int64), out=total)

    def finish(self, piece: Piece, _position: int) -> memoryview:
        """Return the bytes of a piece of the average; what is too large becomes the largest."""
        dtype, [total], narrow = piece.dtype, piece.rows, piece.scratch
        np.multiply(total, self.step, out=total)
        np.divide(total, self.contributors, out=total)
        # Noise must not make an infinity, nor have a client rejected. A client's choice of numbers
        # has no part in what is done with the sum, so this costs no privacy.
        kind = dtype.accumulator.type
        largest = float(np.nextafter(kind(dtype.overflow), kind(0)))
        np.clip(total, -largest, largest, out=total)
        wide = narrow.view(dtype.accumulator)[: len(total)]
        np.copyto(wide, total, casting="same_kind")
        return arithmetic.finish(dtype, wide, total.view(dtype.accumulator)[: len(total)])


def _add_truncated(piece: Piece, steps: float) -> None:
    """Add trunc(x · steps) of each element x to the sum."""
    dtype, elements, [total], scratch = piece
    if dtype.name == "BF16":
        elements = arithmetic.widened(dtype, arithmetic.bytes_of(elements))
    np.multiply(elements, steps, out=scratch, dtype=np.float64)
    np.trunc(scratch, out=scratch)
    np.add(total, scratch, out=total)
