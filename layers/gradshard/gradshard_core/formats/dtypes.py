"""The element types an update may hold, and the type each is accumulated in."""

import math
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class DType:
    """One safetensors element type.

    numpy is loaded when it is first needed: who only reads layouts does without.

    Parameters
    ----------
    name
        The name in a safetensors header.
    size
        Bytes per element.
    storage_code
        numpy's code of the type that holds the bytes; for BF16, which numpy lacks, its 16 bits.
    accumulator_code
        numpy's code of the type the weighted sum is formed in. F16 and BF16 sum in F32;
        integers in F64, which is exact for values below 2**53.
    overflow
        The least magnitude of an accumulator that becomes an infinity as an element.
    """

    name: str
    size: int
    storage_code: str
    accumulator_code: str
    overflow: float

    @cached_property
    def storage(self) -> "np.dtype[np.generic]":
        """The numpy type that holds the bytes."""
        return _numpy_type(self.storage_code)

    @cached_property
    def accumulator(self) -> "np.dtype[np.generic]":
        """The numpy type the weighted sum is formed in."""
        return _numpy_type(self.accumulator_code)

    @property
    def is_integer(self) -> bool:
        """Whether the mean is rounded, half to even."""
        return self.name[0] in "IU"


def _numpy_type(code: str) -> "np.dtype[np.generic]":
    import numpy as np

    return np.dtype(code)


_NARROW: Final = {"F16": float.fromhex("0x1.ffep15"), "BF16": float.fromhex("0x1.ffp127")}
"""Half a unit above the largest element: ties go to even, which is the infinity."""


def _dtype(name: str, storage: str, accumulator: str) -> DType:
    return DType(name, int(storage[-1]), storage, accumulator, _NARROW.get(name, math.inf))


_RING: Final = "+ring"


def in_ring(name: str, ring_bits: int) -> str:
    """Return the name of the type of masked elements: ``F32+ring64`` is F32 in a ring of 2⁶⁴."""
    return f"{name}{_RING}{ring_bits}"


def unmasked(dtype: DType) -> DType:
    """Return the type that masked elements are decoded to."""
    return DTYPES[dtype.name.partition(_RING)[0]]


class _DTypes(dict[str, DType]):
    """The types of headers; and when one is asked for, the type of their masked elements.

    Those have their place in the layout, where they take as many bytes as unmasked ones. Inputs and
    sums hold them as elements of the ring. No header names them, so they are not listed.
    """

    def __missing__(self, name: str) -> DType:
        element, ring, bits = name.partition(_RING)
        if not ring or element not in self or bits not in {"32", "64"}:
            raise KeyError(name)
        return _in_ring(name, self[element].size, f"<u{int(bits) // 8}")


@cache
def _in_ring(name: str, size: int, code: str) -> DType:
    return DType(name, size, code, code, math.inf)


DTYPES: Final[dict[str, DType]] = _DTypes(
    (dtype.name, dtype)
    for dtype in (
        _dtype("F64", "<f8", "f8"),
        _dtype("F32", "<f4", "f4"),
        _dtype("F16", "<f2", "f4"),
        _dtype("BF16", "<u2", "f4"),
        _dtype("I64", "<i8", "f8"),
        _dtype("I32", "<i4", "f8"),
        _dtype("I16", "<i2", "f8"),
        _dtype("I8", "i1", "f8"),
        _dtype("U64", "<u8", "f8"),
        _dtype("U32", "<u4", "f8"),
        _dtype("U16", "<u2", "f8"),
        _dtype("U8", "u1", "f8"),
    )
)
