"""Fixed-point sums in a ring, against fractions and whole numbers of any size."""

import math
import re
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation.fixed_point import FixedPoint
from gradshard_core.errors import SpecError, UpdateError

TYPES = [np.float32, np.float16, np.float64, ml_dtypes.bfloat16]


def add(elements: Any, sums: Any) -> None:
    np.add(sums, elements, out=sums)


def subtract(elements: Any, sums: Any) -> None:
    np.subtract(sums, elements, out=sums)


def terms(**changes: Any) -> FixedPoint:
    fields = {"bound": 4.0, "bits": 16, "ring_bits": 32, "max_clients": 10, "max_samples": 1_000}
    return FixedPoint(**fields | changes)


def encode(fixed: FixedPoint, values: Any, samples: int = 1) -> np.ndarray[Any, Any]:
    out = np.full(len(values), 0xA5, fixed.dtype)
    fixed.encode(np.asarray(values), samples, out)
    return out


def by_hand(fixed: FixedPoint, value: float, samples: int) -> int:
    """Encode as the definition says, in fractions."""
    clipped = max(-Fraction(fixed.bound), min(Fraction(fixed.bound), Fraction(value)))
    modulus: int = 2**fixed.ring_bits
    return samples * round(clipped / Fraction(fixed.step)) % modulus


@pytest.mark.parametrize("bound", [1.0, 3.0, 0.1, 1e-30, 4.0, 1e30, 2.0**-126])
@pytest.mark.parametrize("bits", [2, 3, 16, 53])
def test_the_step_is_the_least_power_of_two_with_which_the_bound_fits(
    bound: float, bits: int
) -> None:
    step = terms(bound=bound, bits=bits, ring_bits=64, max_clients=1, max_samples=2).step
    assert math.frexp(step)[0] == 0.5
    assert Fraction(bound) / Fraction(step) <= 2 ** (bits - 1) - 1
    assert Fraction(bound) / Fraction(step / 2) > 2 ** (bits - 1) - 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_encoding_is_that_of_the_definition(dtype: Any, ring_bits: int) -> None:
    fixed = terms(ring_bits=ring_bits)
    rng = np.random.default_rng(0)
    ties = (np.arange(-9, 9) + 0.5) * fixed.step
    edges = [0.0, -0.0, 4.0, -4.0, 4.1, -1e4, fixed.step, fixed.step / 2]
    values = np.concatenate([rng.normal(0, 2, 500), ties, edges]).astype(dtype)
    found = encode(fixed, values, 777)
    assert found.dtype == fixed.dtype
    assert found.tolist() == [by_hand(fixed, float(value), 777) for value in values]


def test_clipped_values_are_counted() -> None:
    out = np.empty(5, "<u4")
    values = np.array([4.0, 4.5, -5, 0, -4], "f4")
    assert terms().encode(values, 1, out) == 2


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_an_average_is_off_by_half_a_step_at_most(data: st.DataObject) -> None:
    clients = data.draw(st.integers(1, 10))
    ring_bits = data.draw(st.sampled_from([32, 64]))
    bits = data.draw(st.integers(2, 18 if ring_bits == 32 else 40))
    bound = data.draw(st.sampled_from([0.001, 1.0, 3.0, 1e6]))
    fixed = terms(bound=bound, bits=bits, ring_bits=ring_bits, max_samples=1_000)
    samples = data.draw(st.lists(st.integers(1, 1_000), min_size=clients, max_size=clients))
    floats = st.floats(-bound, bound, width=64)
    updates = data.draw(
        st.lists(st.lists(floats, min_size=3, max_size=3), min_size=clients, max_size=clients)
    )
    sums = np.zeros(3, fixed.dtype)
    for update, count in zip(updates, samples, strict=True):
        add(encode(fixed, update, count), sums)
    total = sum(samples)
    found = fixed.decode(sums, total)
    for index, value in enumerate(found):
        exact = sum(
            count * Fraction(update[index]) for update, count in zip(updates, samples, strict=True)
        ) / Fraction(total)
        # The last digit of float64: one rounding of the sum beyond 2**53, and one division.
        slack = 2 * Fraction(np.spacing(abs(value)))
        assert abs(Fraction(float(value)) - exact) <= Fraction(fixed.max_error) + slack


def test_the_largest_sum_does_not_wrap_around() -> None:
    fixed = terms(bits=18, max_clients=16, max_samples=1_023)
    for sign in (1, -1):
        sums = np.zeros(1, fixed.dtype)
        for _ in range(16):
            add(encode(fixed, [sign * fixed.bound], 1_023), sums)
        assert fixed.decode(sums, 16 * 1_023).tolist() == [sign * fixed.bound]


def test_adding_and_subtracting_are_modulo_the_ring() -> None:
    for dtype in ("<u4", "<u8"):
        sums, mask = np.array([3], dtype), np.array([-5], "i8").astype(dtype)
        add(mask, sums)
        assert sums.view(dtype.replace("u", "i")).tolist() == [-2]
        subtract(mask, sums)
        assert sums.tolist() == [3]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_rejected_by_its_element(value: float) -> None:
    with pytest.raises(UpdateError, match=r"element 2 is (nan|inf|-inf): a masked update"):
        encode(terms(), np.array([0, 9e9, value, value], "f4"))


@pytest.mark.parametrize("samples", [0, -1, 1_001])
def test_samples_out_of_bounds_are_rejected(samples: int) -> None:
    with pytest.raises(UpdateError, match=f"num_samples is {samples}, not from 1 to 1000"):
        encode(terms(), [1.0], samples)


@pytest.mark.parametrize("total", [2, 3_001, -7])
def test_counts_that_clients_cannot_have_sent_are_rejected(total: int) -> None:
    assert terms().check_total(3_000, 3) == 3_000
    with pytest.raises(UpdateError, match=f"the counts of 3 clients add up to {total}, not to 3"):
        terms().check_total(total, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"bits": 19},
            "with 19 bits: take at most 18 bits, or a ring of 64 bits",
        ),
        ({"max_samples": 2**40}, "allow fewer samples or clients, or a ring of 64 bits"),
        ({"bits": 53, "ring_bits": 64}, "a ring of 64 bits has no room .* take at most 50 bits$"),
        ({"bits": 1}, "bits is 1, not from 2 to 53"),
        ({"bits": 54}, "bits is 54, not from 2 to 53"),
        ({"ring_bits": 16}, "ring_bits is 16, not 32 or 64"),
        ({"bound": math.inf}, "bound is inf, not a normal number"),
        ({"bound": 0.0}, "bound is 0.0, not a normal number"),
        ({"bound": math.nan}, "bound is nan, not a normal number"),
        ({"max_clients": 0}, "max_clients is 0, not a number above zero"),
    ],
)
def test_numbers_that_do_not_fit_are_rejected_with_those_that_do(
    changes: dict[str, Any], text: str
) -> None:
    with pytest.raises(SpecError, match=text):
        terms(**changes)


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("clients", [1, 7, 1_000])
@pytest.mark.parametrize("samples", [1, 60, 9_999])
def test_the_bits_that_are_advised_are_the_most_that_fit(
    ring_bits: int, clients: int, samples: int
) -> None:
    fields = {"ring_bits": ring_bits, "max_clients": clients, "max_samples": samples}
    fitting: list[int] = []
    for bits in range(2, 54):
        try:
            terms(**fields, bits=bits)
        except SpecError as error:
            advised = re.search(r"at most (\d+) bits", str(error))
            assert [int(advised[1])] == fitting[-1:] if advised else fitting == []
        else:
            fitting.append(bits)
