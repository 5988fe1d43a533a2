"""Inner products are those of their definition, and depend on the updates alone."""

import itertools
import json
import math
import sys
import tracemalloc
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import block_sizes, kernel
from gradshard_core.aggregation.batchnorm_buffers import Stretches, is_in, split_spans
from gradshard_core.aggregation.kernel import NonFiniteSumError, Source, WeightedRange, aggregate
from gradshard_core.costs import memory_projection
from gradshard_core.formats.tensor_layout import Layout, Span
from gradshard_core.robust import inner_products
from gradshard_core.robust.inner_products import (
    ExactSum,
    Measuring,
    chunk_ranges,
    count_matrices,
    cut_chunks,
)
from tests import reference
from tests.blas import blas_threads
from tests.unit.aggregation.test_kernel import TENSOR, MemorySource, random_updates

Updates = Sequence[dict[str, reference.Array]]


def layout_of(updates: Updates) -> Layout:
    return Layout.pack((n, reference.NAMES[t.dtype], t.shape) for n, t in updates[0].items())


def measure(
    updates: Updates,
    shards: int = 1,
    buffers: Stretches = (),
    seed: int = 0,
    *,
    pairs: bool = True,
    at_once: int = 1,
) -> list[list[float]]:
    """Measure updates shard by shard, in any order and some twice, as tasks and finalize do."""
    layout = layout_of(updates)
    raw = [b"".join(update[t.name].tobytes() for t in layout.tensors) for update in updates]
    spans = split_spans(layout.spans, buffers)
    total = ExactSum(len(updates), pairs=pairs)
    cut = cut_chunks(layout.spans, layout.nbytes, shards)
    assert [cut[0].start, cut[-1].end] == [0, layout.nbytes]
    assert all(a.end == b.start for a, b in itertools.pairwise(cut))
    for shard in np.random.default_rng(seed).permutation(len(cut)):
        _, start, end = cut[shard]
        reduction = Measuring(len(updates), buffers, pairs=pairs)
        sources: list[Source] = [MemorySource(data[start:end]) for data in raw]
        chunks = chunk_ranges(layout.spans, layout.nbytes, start, end, at_once)
        weighted_ranges = [WeightedRange(*range_, [1.0] * len(updates)) for range_ in chunks]
        aggregate(sources, weighted_ranges, reduction, spans, lambda _: None)
        total.add_json(reduction.products.to_json())
    return total.rounded() if pairs else [total.rounded_diagonal()]


def by_definition(updates: Updates, chunk_bytes: int, buffers: Stretches = ()) -> list[list[float]]:
    """Round each chunk of each type as stated, and multiply in whole numbers."""
    layout = layout_of(updates)
    total = [[Fraction(0)] * len(updates) for _ in updates]
    spans = split_spans(layout.spans, buffers)
    raw = [b"".join(update[t.name].tobytes() for t in layout.tensors) for update in updates]
    for span in spans:
        numpy = reference.NUMPY[span.dtype]
        if numpy.kind in "iu" or is_in(buffers, span.start):
            continue
        chunk_of = [at // chunk_bytes for at in range(span.start, span.end, numpy.itemsize)]
        # The element that straddles a chunk's nominal start belongs to that chunk.
        ends = [
            (at + numpy.itemsize - 1) // chunk_bytes
            for at in range(span.start, span.end, numpy.itemsize)
        ]
        chunk_of = [max(pair) for pair in zip(chunk_of, ends, strict=True)]
        rows = [
            [float(x) for x in np.frombuffer(data[span.start : span.end], numpy)] for data in raw
        ]
        for chunk in sorted(set(chunk_of)):
            rounded = []
            for row in rows:
                values = [x for x, c in zip(row, chunk_of, strict=True) if c == chunk]
                step = _step(values, wide=numpy.itemsize == 8)
                rounded.append([round(Fraction(x) / step) * step for x in values])
            for i, a in enumerate(rounded):
                for j, b in enumerate(rounded):
                    total[i][j] += sum((x * y for x, y in zip(a, b, strict=True)), Fraction(0))
    return [[float(value) for value in row] for row in total]


def _step(values: Sequence[float], *, wide: bool) -> Fraction:
    """Return 2^(e - 18), 2^e being the power of two above the largest magnitude."""
    exponent = max(math.frexp(max(map(abs, values)))[1], -400 if wide else -100)
    return Fraction(2) ** (exponent - 18)


@settings(deadline=None, max_examples=100)
@given(
    tensors=st.lists(TENSOR, min_size=1, max_size=6).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    clients=st.integers(1, 5),
    shards=st.integers(1, 5),
    chunk=st.integers(2, 9),
    at_once=st.integers(1, 3),
    buffer=st.none() | st.integers(0, 5),
    scale=st.sampled_from([1.0, 1e-30, 1e30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_products_are_those_of_rounded_chunks_whatever_the_cut(
    tensors: list[tuple[str, tuple[int, ...]]],
    clients: int,
    shards: int,
    chunk: int,
    at_once: int,
    buffer: int | None,
    scale: float,
    seed: int,
) -> None:
    updates, _ = random_updates(tensors, clients, seed)
    for update in updates:
        for name, tensor in update.items():
            if tensor.dtype.kind not in "iu" and tensor.dtype.itemsize > 2:
                update[name] = tensor * tensor.dtype.type(scale)
    buffers = [(t.start, t.end) for i, t in enumerate(layout_of(updates).tensors) if i == buffer]
    buffers = [stretch for stretch in buffers if stretch[0] < stretch[1]]
    with pytest.MonkeyPatch.context() as patch:
        for module in (inner_products, block_sizes):
            patch.setattr(module, "ROW_BYTES", 8 * chunk)
        patch.setattr(inner_products, "MOST_ELEMENTS", 8 * chunk + 8)
        patch.setattr(kernel, "SLICE_BYTES", at_once * 8 * chunk + 8)
        found = measure(updates, shards, tuple(buffers), seed, at_once=at_once)
    assert found == by_definition(updates, 8 * chunk, tuple(buffers))


def test_large_updates_have_the_same_products_for_every_m_and_processor() -> None:
    rng = np.random.default_rng(5)
    updates = [
        {
            "w": rng.standard_normal(300_001).astype("f4") * np.float32(10.0**i),
            "h": rng.standard_normal(70_001).astype("f2"),
            "d": rng.standard_normal(30_001),
        }
        for i in range(-2, 3)
    ]
    found = [
        measure(updates, shards, seed=shards, at_once=at_once)
        for shards, at_once in ((1, 1), (1, 3), (2, 2), (3, 3), (7, 1), (20, 3))
    ]
    with blas_threads(2):
        found.append(measure(updates, 3, seed=3, at_once=3))
    assert all(other == found[0] for other in found)
    flat = np.stack([np.concatenate([t.astype("f8") for t in u.values()]) for u in updates])
    norms = np.linalg.norm(flat, axis=1)
    error = np.abs(np.array(found[0]) - flat @ flat.T) / np.outer(norms, norms)
    assert error.max() < 1e-6


@pytest.mark.parametrize("dtype", ["F32", "F64", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_update_that_is_not_finite_is_found(dtype: str, value: float) -> None:
    updates, _ = random_updates([(dtype, (70_000,)), ("F32", (5,))], 3, 1)
    updates[1]["t0"][66_001] = value
    with pytest.raises(NonFiniteSumError) as raised:
        measure(updates)
    assert raised.value.position == 66_001 * reference.NUMPY[dtype].itemsize


@pytest.mark.parametrize(("dtype", "value"), [("F32", 2.0**120), ("F64", -(2.0**480))])
def test_update_whose_norm_may_overflow_is_found(dtype: str, value: float) -> None:
    updates, _ = random_updates([(dtype, (70,))], 3, 1)
    updates[1]["t0"][61] = value
    with pytest.raises(NonFiniteSumError) as raised:
        measure(updates)
    assert raised.value.position == 61 * reference.NUMPY[dtype].itemsize
    updates[1]["t0"][61] = np.nextafter(updates[1]["t0"][61], updates[1]["t0"].dtype.type(0))
    assert math.isfinite(measure(updates)[1][1])


@given(
    values=st.lists(
        st.floats(-(2.0**900), 2.0**900, allow_subnormal=False), min_size=1, max_size=40
    )
)
def test_sum_is_exact_in_any_order(values: list[float]) -> None:
    results = set()
    for order in (values, values[::-1], sorted(values)):
        total = ExactSum(1)
        for value in order:
            total.add(np.array([[value]]))
        results.add(total.rounded()[0][0])
    assert results == {math.fsum(values)}


def test_report_that_is_not_finite_or_of_another_size_is_refused() -> None:
    for written in ([[1.0, math.inf, 1.0]], [[1.0]]):
        with pytest.raises(ValueError, match=r"\d sums of products"):
            ExactSum(2).add_json(written)


@pytest.mark.parametrize("shards", [1, 3])
def test_norms_alone_are_the_diagonal(shards: int) -> None:
    updates, _ = random_updates([("F32", (40_000,)), ("BF16", (9,)), ("F64", (500,))], 7, 11)
    norms = np.diag(measure(updates))
    assert measure(updates, shards, pairs=False) == [norms.tolist()]


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="json of 3.11 takes twice the memory; functions run on 3.13"
)
@pytest.mark.parametrize(("dtype", "most"), [("F32", 9), ("F64", 34)])
def test_exact_sums_and_their_json_take_no_more_than_is_projected(dtype: str, most: int) -> None:
    """Also if an attacker's chunks have every exponent that can be measured."""
    inputs, limits = 24, inner_products.LIMITS[f"float{dtype[1:]}"]
    rng = np.random.default_rng(0)
    last = math.frexp(limits.bound)[1] - 1
    tracemalloc.start()
    total = ExactSum(inputs)
    for exponent in range(limits.least_exponent, last + 1, 4):
        rows = np.ldexp(rng.integers(-(2**17), 2**17, (inputs, 20)).astype(float), exponent - 18)
        total.add(rows @ rows.T)
    assert json.dumps(total.to_json()).encode()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most - 1 <= len(total.components) <= most
    matrices = count_matrices([Span(dtype, 0, 8)], 1)
    assert peak <= memory_projection.PAIR_BYTES * matrices * inputs**2
    assert peak >= 0.5 * memory_projection.PAIR_BYTES * matrices * inputs**2
