"""Invariant 1: the bits depend on contributors, weights, rule and order alone."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard import aggregation, planning
from gradshard.aggregation import NonFiniteSumError, aggregate, find_nonfinite
from gradshard.arithmetic import weights_of
from gradshard.layout import PREFIX_BYTES, encode_header, header_length, parse_header
from gradshard.planning import Shard, cut, cut_shards
from tests import reference


class MemorySource:
    """A contributor whose bytes are in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def read_into(self, buffer: memoryview) -> None:
        buffer[:] = self.data[: len(buffer)]
        self.data = self.data[len(buffer) :]


def run(blobs: Sequence[bytes], samples: Sequence[int], shards: int) -> bytes:
    """Aggregate whole objects, as the functions would with M = ``shards``."""
    headers = [
        parse_header(b[PREFIX_BYTES : PREFIX_BYTES + header_length(b, len(b))], len(b))
        for b in blobs
    ]
    layout = headers[0].layout
    runs = [layout.runs_in(h.layout, h.data_offset) for h in headers]
    bounds = cut(layout.spans, 0, layout.nbytes, shards)
    parts = [bytearray() for _ in range(shards)]
    parts[0] += encode_header(layout, {})
    for index in reversed(range(shards)):
        start, end = bounds[index], bounds[index + 1]
        sources = [
            MemorySource(
                b"".join(
                    blob[
                        r.offset + max(r.start, start) - r.start : r.offset
                        + min(r.end, end)
                        - r.start
                    ]
                    for r in of
                    if r.start < end and start < r.end
                )
            )
            for blob, of in zip(blobs, runs, strict=True)
        ]
        aggregate(
            sources,
            weights_of(list(samples)),
            layout.spans,
            Shard(index, start, end),
            parts[index].extend,
        )
    return b"".join(parts)


TENSOR = st.tuples(
    st.sampled_from(sorted(reference.NUMPY)),
    st.lists(st.integers(0, 7), max_size=3).map(tuple),
)


@settings(deadline=None, max_examples=150)
@given(
    tensors=st.lists(TENSOR, min_size=1, max_size=6).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    clients=st.integers(1, 6),
    shards=st.integers(1, 9),
    block=st.integers(2, 12),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_cut_gives_the_bits_of_a_plain_loop(
    tensors: list[tuple[str, tuple[int, ...]]],
    clients: int,
    shards: int,
    block: int,
    seed: int,
    data: st.DataObject,
) -> None:
    rng = np.random.default_rng(seed)
    updates = [
        {f"t{i}": reference.random_tensor(rng, *t) for i, t in enumerate(tensors)}
        for _ in range(clients)
    ]
    samples = [int(n) for n in rng.integers(1, 10_000, clients)]
    blobs = [
        reference.encode(update, order=data.draw(st.permutations(list(update))))
        for update in updates
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aggregation, "block_bytes", lambda _: 8 * block)
        patch.setattr(aggregation, "SLICE_BYTES", 8 * max(1, block // 2))
        result = reference.decode(run(blobs, samples, shards))
    expected = reference.average(updates, samples)
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert result[name].dtype == tensor.dtype
        assert result[name].shape == tensor.shape
        assert result[name].tobytes() == tensor.tobytes(), name


def test_real_block_sizes_and_an_unequal_end() -> None:
    rng = np.random.default_rng(3)
    shapes = [("F32", (300_001,)), ("BF16", (700_003,)), ("I8", (5,)), ("F64", (131_073,))]
    updates = [
        {f"t{i}": reference.random_tensor(rng, *t) for i, t in enumerate(shapes)} for _ in range(3)
    ]
    blobs = [reference.encode(update) for update in updates]
    expected = reference.average(updates, [5, 1, 3])
    results = [run(blobs, [5, 1, 3], shards) for shards in (1, 3, 11)]
    assert results[0] == results[1] == results[2]
    for name, tensor in reference.decode(results[0]).items():
        assert tensor.tobytes() == expected[name].tobytes()


def test_a_source_that_breaks_stops_the_task() -> None:
    blob = reference.encode({"w": np.ones(10, np.float32)})

    class Broken(MemorySource):
        def read_into(self, buffer: memoryview) -> None:
            raise OSError("reset")

    header = parse_header(blob[8 : 8 + header_length(blob, len(blob))], len(blob))
    with pytest.raises(OSError, match="reset"):
        aggregate([Broken(b"")], [1.0], header.layout.spans, Shard(0, 0, 40), bytearray().extend)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_who_sent_a_nan_is_found(dtype: str, bad: float) -> None:
    rng = np.random.default_rng(1)
    updates = [
        {"a": np.arange(7, dtype="i4"), "w": reference.random_tensor(rng, dtype, (400_000,))}
        for _ in range(3)
    ]
    updates[1]["w"][300_123] = bad
    blobs = [reference.encode(update) for update in updates]
    with pytest.raises(NonFiniteSumError) as caught:
        run(blobs, [1, 2, 3], 1)
    size = reference.NUMPY[dtype].itemsize
    assert caught.value.position <= 28 + 300_123 * size
    header = parse_header(blobs[0][8 : 8 + header_length(blobs[0], len(blobs[0]))], len(blobs[0]))
    start, end = caught.value.position, header.layout.nbytes
    sources = [MemorySource(blob[header.data_offset + start :]) for blob in blobs]
    assert find_nonfinite(sources, header.layout.spans, start, end) == {1: 28 + 300_123 * size}


def test_steps_end_on_elements() -> None:
    layout = parse_header(
        (blob := reference.encode({"a": np.zeros(3, "i1"), "b": np.zeros(9, "f8")}))[8:-75],
        len(blob),
    ).layout
    walked = list(aggregation.steps(layout.spans, 0, layout.nbytes, 16))
    assert walked[0] == (0, 11)
    assert walked[-1][1] == 75
    assert all((stop - 3) % 8 == 0 for _, stop in walked)


def test_shards_are_the_parts_from_one() -> None:
    spans = parse_header(
        (blob := reference.encode({"w": np.zeros(1000, "f4")}))[8:-4000], len(blob)
    ).layout.spans
    shards = cut_shards(spans, 4000, 3)
    assert [shard.part for shard in shards] == [1, 2, 3]
    assert (shards[0].start, shards[-1].end) == (0, 4000)
    assert planning.max_shards(4000) == 1
