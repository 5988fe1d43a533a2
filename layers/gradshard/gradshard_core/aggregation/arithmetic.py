"""Weighted addition of raw tensor bytes, one element type at a time.

The order of floating-point operations is part of a result's definition: here it is
``acc ← p·x`` for the first input and ``acc ← acc + p·x`` for each further one, multiply
and add rounded separately (numpy's ufuncs; a fused multiply-add or a BLAS call rounds
otherwise). The caller brings the inputs in their order; these functions never reorder.
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradshard_core.formats.dtypes import DType

Array = npt.NDArray[Any]

SHARES: Final = "shares"
COUNTS: Final = "counts"
STEPS: Final = "steps"
EQUAL: Final = "equal"
MEASURED: Final = "measured"
WEIGHTS: Final = (SHARES, COUNTS, STEPS)
"""Weights of updates: see :class:`gradshard_core.specs.round_spec.RoundSpec`."""

_BF16_SHIFT: Final = 16
_BF16_QUIET: Final = np.uint32(0x40)


def shares_of(samples: list[int]) -> list[float]:
    """Return pᵢ = nᵢ / Σn, each one correctly rounded float64 division.

    Rounding on to the accumulator's type happens once, where the weight is applied.
    """
    total = sum(samples)
    return [n / total for n in samples]


def add(
    dtype: DType, elements: Array, weight: float, accumulator: Array, scratch: Array, *, first: bool
) -> None:
    """Add ``weight`` × ``elements`` to ``accumulator``.

    Parameters
    ----------
    dtype
        The type of the elements.
    elements
        n of them as they stand in a safetensors object, in ``dtype.storage``.
    weight
        Rounded to the accumulator's type before the multiplication.
    accumulator
        n numbers of ``dtype.accumulator``; overwritten when ``first``.
    scratch
        Room for n numbers of ``dtype.accumulator``; its contents are lost.
    first
        Whether this is the first of its group.
    """
    factor = dtype.accumulator.type(weight)
    product = accumulator if first else scratch
    if elements.dtype is accumulator.dtype:
        np.multiply(elements, factor, out=product)
    else:
        _widen(dtype, elements, product)
        np.multiply(product, factor, out=product)
    if not first:
        np.add(accumulator, product, out=accumulator)


def fold(sums: Array, accumulator: Array, *, first: bool) -> None:
    """Add a group's sum to the accumulator of the groups; overwrite it when ``first``.

    The same bits as if the sum were written as a partial sum, read, and added with weight one.
    """
    if first:
        np.copyto(accumulator, sums)
    else:
        np.add(accumulator, sums, out=accumulator)


def divide(dtype: DType, accumulator: Array, divisor: int) -> None:
    """Divide by the divisor, rounded to the accumulator's type first."""
    np.divide(accumulator, dtype.accumulator.type(divisor), out=accumulator)


def finish(dtype: DType, accumulator: Array, scratch: Array) -> memoryview:
    """Return the accumulator's numbers as elements of ``dtype``; spoils it and ``scratch``.

    Floating-point types round to nearest, ties to even; integers likewise, and are held within
    their type's bounds. Where accumulators and elements are of one type nothing is copied.

    Parameters
    ----------
    dtype
        The type of the elements.
    accumulator
        n numbers of ``dtype.accumulator``.
    scratch
        Room for as many.

    Returns
    -------
    memoryview
        The elements' bytes, in the memory of one of the two.
    """
    if dtype.storage == accumulator.dtype:
        return bytes_of(accumulator)
    target = scratch.view(dtype.storage)[: len(accumulator)]
    if dtype.name == "BF16":
        _narrow_to_bf16(accumulator, target)
    elif dtype.is_integer:
        bounds = np.iinfo(dtype.storage.name)
        # The largest 64-bit integers have no float64: stay at the one below.
        highest = np.nextafter(2.0 ** (8 * dtype.size - (bounds.min < 0)), 0)
        np.rint(accumulator, out=accumulator)
        np.clip(accumulator, bounds.min, min(highest, float(bounds.max)), out=accumulator)
        np.copyto(target, accumulator, casting="unsafe")
    else:
        np.copyto(target, accumulator, casting="same_kind")
    return bytes_of(target)


def bytes_of(numbers: Array) -> memoryview:
    """Return the memory of an array."""
    return numbers.view(np.uint8).data


def widened(dtype: DType, elements: memoryview) -> Array:
    """Return elements as they stand in a safetensors object in their accumulator's type.

    If both types are the same, nothing is copied.
    """
    stored = np.frombuffer(elements, dtype.storage)
    if dtype.storage == dtype.accumulator:
        return stored
    wide = np.empty(len(stored), dtype.accumulator)
    _widen(dtype, stored, wide)
    return wide


def first_overflow(numbers: Array, bound: float) -> int | None:
    """Return the index of the first number that is a NaN or not under a bound.

    Parameters
    ----------
    numbers
        The numbers, in the accumulator's type.
    bound
        The least magnitude that is too large: ``dtype.overflow`` where the numbers become
        elements, infinity where they are written as they are.
    """
    # The numbers of every sum go through this: one pass where that will do, else two without memory
    # of their own. A NaN is the least and the largest number, and compares as false.
    if bound == math.inf:
        is_good = np.isfinite(numbers).all()
    else:
        is_good = numbers.min(initial=0) > -bound and numbers.max(initial=0) < bound
    if is_good:
        return None
    return int(overflows(numbers, bound).argmax())


def overflows(numbers: Array, bound: float) -> npt.NDArray[np.bool_]:
    """Tell of each number whether it is a NaN or not under a bound."""
    return ~(np.abs(numbers) < bound)


def first_nonfinite(dtype: DType, elements: Array, bound: float = math.inf) -> int | None:
    """Return the index of the first element that is a NaN or not under a bound.

    The elements are as a client sent them. Without a bound, it is the first NaN or infinity.
    """
    if dtype.is_integer:
        return None
    if dtype.name == "BF16":
        wide = np.empty(elements.shape, np.float32)
        _widen(dtype, elements, wide)
        elements = wide
    bad = overflows(elements, bound)
    return int(bad.argmax()) if bad.any() else None


def _widen(dtype: DType, elements: Array, out: Array) -> None:
    if dtype.name == "BF16":
        bits = out.view(np.uint32)
        np.copyto(bits, elements)
        np.left_shift(bits, _BF16_SHIFT, out=bits)
    else:
        # Integers beyond 2**53 round to the nearest float64 here.
        np.copyto(out, elements, casting="same_kind" if elements.dtype.kind == "f" else "unsafe")


def _narrow_to_bf16(accumulator: Array, target: Array) -> None:
    bits = accumulator.view(np.uint32)
    not_a_number = np.isnan(accumulator)
    # Ties to even: add half a unit in the last place, less one if the kept bits are even.
    kept = np.right_shift(bits, _BF16_SHIFT)
    rounded = bits + np.uint32(0x7FFF) + (kept & np.uint32(1))
    np.right_shift(rounded, _BF16_SHIFT, out=rounded)
    # A NaN's low bits may be all that make it one; rounding must not turn it into an infinity.
    np.copyto(rounded, kept | _BF16_QUIET, where=not_a_number)
    np.copyto(target, rounded, casting="unsafe")
