"""Rounding, type by type, at its edges."""

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from gradshard_core.aggregation.arithmetic import (
    add,
    finish,
    first_nonfinite,
    first_overflow,
    shares_of,
)
from gradshard_core.formats.dtypes import DTYPES
from tests import reference


def mean(dtype: str, values: list[npt.NDArray[np.generic]], weights: list[float]) -> bytes:
    kind = DTYPES[dtype]
    accumulator = np.empty(len(values[0]), kind.accumulator)
    scratch = np.empty_like(accumulator)
    with np.errstate(all="ignore"):
        for index, (value, weight) in enumerate(zip(values, weights, strict=True)):
            elements = np.frombuffer(value.tobytes(), kind.storage)
            add(kind, elements, weight, accumulator, scratch, first=index == 0)
        return bytes(finish(kind, accumulator, scratch))


def test_weights_are_correctly_rounded_quotients() -> None:
    assert shares_of([1, 2]) == [1 / 3, 2 / 3]
    assert shares_of([2**53, 1]) == [2**53 / (2**53 + 1), 1 / (2**53 + 1)]


def test_the_first_product_is_not_added_to_zero() -> None:
    assert mean("F32", [np.array([-0.0], "f4")], [1.0]) == np.array([-0.0], "f4").tobytes()


def test_integers_round_half_to_even() -> None:
    values = [np.array([0, 1, 2, -1, -3], "i8"), np.array([1, 2, 3, 0, -2], "i8")]
    assert np.frombuffer(mean("I64", values, [0.5, 0.5]), "i8").tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize("dtype", ["I64", "U64", "I32", "U8", "I8"])
def test_integers_stay_within_their_bounds(dtype: str) -> None:
    bounds = np.iinfo(reference.NUMPY[dtype])
    extremes = np.array([bounds.max, bounds.min], reference.NUMPY[dtype])
    result = np.frombuffer(mean(dtype, [extremes] * 3, [1 / 3] * 3), reference.NUMPY[dtype])
    exact = 2**53 if bounds.max > 2**53 else 1
    assert abs(int(result[0]) - bounds.max) <= bounds.max // exact
    assert int(result[1]) == bounds.min


def test_bfloat16_rounds_as_ml_dtypes_does() -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    bits = np.concatenate([bits, (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000])
    values = bits.view(np.float32)
    with np.errstate(all="ignore"):
        out = finish(DTYPES["BF16"], values.copy(), np.empty_like(values))
        expected = values.astype(ml_dtypes.bfloat16)
    result = np.frombuffer(out, ml_dtypes.bfloat16)
    numbers = ~np.isnan(values)
    assert result[numbers].tobytes() == expected[numbers].tobytes()
    assert np.isnan(result[~numbers].astype("f4")).all()


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_finds_the_first_nonfinite(dtype: str) -> None:
    values = np.zeros(9, reference.NUMPY[dtype])
    kind = DTYPES[dtype]
    assert first_nonfinite(kind, np.frombuffer(values.tobytes(), kind.storage)) is None
    values[5] = np.inf
    values[7] = np.nan
    assert first_nonfinite(kind, np.frombuffer(values.tobytes(), kind.storage)) == 5


@pytest.mark.parametrize(("dtype", "bound"), [("F64", 2.0**480), ("F32", 2.0**120), ("BF16", 9)])
def test_finds_the_first_that_is_too_large(dtype: str, bound: float) -> None:
    kind, element = DTYPES[dtype], reference.NUMPY[dtype].type
    values = np.array([element(bound * 0.9)] * 9)
    values[4] = element(-bound)
    assert first_nonfinite(kind, np.frombuffer(values.tobytes(), kind.storage), bound) == 4
    values[4] = 0
    assert first_nonfinite(kind, np.frombuffer(values.tobytes(), kind.storage), bound) is None


def test_integers_are_always_finite() -> None:
    assert first_nonfinite(DTYPES["I8"], np.array([-1], "i1")) is None


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
def test_a_value_that_rounds_to_infinity_is_an_overflow(dtype: str) -> None:
    kind, stored = DTYPES[dtype], reference.NUMPY[dtype]
    most, wide = float(ml_dtypes.finfo(stored).max), kind.accumulator
    below = most
    if np.isfinite(kind.overflow):
        below = float(np.nextafter(np.array(kind.overflow, wide), np.array(0, wide)))
    values = np.array([0, most, -most, below, -below], wide)
    assert first_overflow(values, kind.overflow) is None
    assert np.isfinite(values.astype(stored).astype("f8")).all()
    with np.errstate(all="ignore"):
        for bad in (kind.overflow, -kind.overflow, np.inf, -np.inf, np.nan):
            spoiled = np.append(values, np.array([bad, bad], wide))
            assert first_overflow(spoiled, kind.overflow) == 5
            assert not np.isfinite(spoiled.astype(stored).astype("f8"))[5]
    assert first_overflow(np.empty(0, wide), kind.overflow) is None
