"""The sum in a ring as a reduction of the kernel: any cut gives the same bits."""

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.fixed_point import FixedPoint
from gradshard_core.aggregation.kernel import WeightedRange
from gradshard_core.aggregation.masked_sum import ADDED, SUBTRACTED, Decoding, RingSum, ring_spans
from gradshard_core.aggregation.sharding import aligned, sums_bytes
from gradshard_core.formats.dtypes import DTYPES, in_ring, unmasked
from gradshard_core.formats.tensor_layout import Layout

SHAPES = [("a", "F32", [70_001]), ("b", "BF16", [3]), ("c", "F64", [11]), ("d", "F32", [5])]
LAYOUT = Layout.pack(SHAPES)
ELEMENTS = sum(shape[0] for _, _, shape in SHAPES)


class InMemory:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)

    def read_into(self, buffer: memoryview) -> None:
        assert len(buffer) <= len(self._data)
        buffer[:], self._data = self._data[: len(buffer)], self._data[len(buffer) :]


def summed(
    inputs: list[np.ndarray[Any, Any]],
    weights: list[float],
    reduction: RingSum,
    cuts: list[int],
    layout: Layout = LAYOUT,
) -> bytes:
    """Run the kernel over each range between two cuts; return what was written."""
    bits = 8 * inputs[0].itemsize
    spans, out = ring_spans(layout.spans, bits), bytearray()
    for start, end in itertools.pairwise(cuts):
        first = sums_bytes(spans, 0, start)
        length = sums_bytes(spans, start, end)
        sources = [InMemory(data.tobytes()[first : first + length]) for data in inputs]
        weighted_ranges = [WeightedRange(start, end, weights)] if start < end else []
        kernel.aggregate(sources, weighted_ranges, reduction, spans, out.extend)
    return bytes(out)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_cut_gives_the_sum_modulo_the_ring(data: st.DataObject) -> None:
    bits = data.draw(st.sampled_from([32, 64]))
    count = data.draw(st.integers(1, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kind = np.dtype(f"<u{bits // 8}")
    inputs = [rng.integers(0, 2**bits, ELEMENTS, dtype=kind) for _ in range(count + 1)]
    places = data.draw(st.lists(st.integers(0, LAYOUT.nbytes - 1), max_size=5))
    inner = sorted(aligned(LAYOUT.spans, place) for place in places)
    found = summed(inputs, [ADDED] * count + [SUBTRACTED], RingSum(), [0, *inner, LAYOUT.nbytes])
    exact = sum(a.astype(object) for a in inputs[:-1]) - inputs[-1].astype(object)
    assert np.array_equal(np.frombuffer(found, kind), (exact % 2**bits).astype(kind))


@pytest.mark.parametrize("bits", [32, 64])
def test_decoding_gives_each_tensor_its_type(bits: int) -> None:
    fixed = FixedPoint(4.0, 16, bits, 4, 1000)
    rng = np.random.default_rng(0)
    values = rng.normal(0, 3, ELEMENTS)
    encoded = np.empty(ELEMENTS, fixed.dtype)
    fixed.encode(values, 3, encoded)
    found = summed([encoded], [ADDED], RingSum(Decoding(fixed, 3)), [0, LAYOUT.nbytes])
    expected = np.clip(np.rint(values / fixed.step), -4 / fixed.step, 4 / fixed.step) * fixed.step
    expected += 0.0  # a ring has no negative zero
    types: dict[str, Any] = {"F32": np.float32, "F64": np.float64, "BF16": ml_dtypes.bfloat16}
    position = 0
    for tensor in LAYOUT.tensors:
        kind = types[tensor.dtype]
        part = np.frombuffer(found[tensor.start : tensor.end], kind)
        wide = np.float64 if tensor.dtype == "F64" else np.float32
        numbers = expected[position : position + len(part)].astype(wide).astype(kind)
        assert part.tobytes() == numbers.tobytes()
        position += len(part)


def test_averages_of_f16_are_rounded_to_f32_first() -> None:
    fixed = FixedPoint(4.0, 40, 64, 1, 3)
    layout = Layout.pack([("a", "F16", [1])])
    # A third of a step above the middle of two elements; F32 has nothing between the two.
    encoded = np.array([3 * (1 + 2**-11) / fixed.step + 1], fixed.dtype)
    found = summed([encoded], [ADDED], RingSum(Decoding(fixed, 3)), [0, layout.nbytes], layout)
    assert np.frombuffer(found, np.float16) == 1.0
    assert fixed.decode(encoded, 3).astype(np.float16) == 1.0 + 2**-10


def test_types_of_masked_elements_are_in_no_header() -> None:
    name = in_ring("BF16", 64)
    assert DTYPES[name].size == 2
    assert DTYPES[name].accumulator == np.dtype("<u8")
    assert unmasked(DTYPES[name]) is DTYPES["BF16"]
    assert name not in DTYPES
    assert name not in list(DTYPES)
    for wrong in ("F32+ring16", "F31+ring32", "F32+ring", "F9"):
        with pytest.raises(KeyError):
            DTYPES[wrong]
