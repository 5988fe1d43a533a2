"""Invariant 1: the bits depend on contributors, weights, rule and order alone."""

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation import addition_order, kernel, reordered_reads
from gradshard_core.aggregation.kernel import (
    Addition,
    NonFiniteSumError,
    Source,
    WeightedRange,
    aggregate,
    find_nonfinite,
)
from gradshard_core.aggregation.sharding import sums_bytes
from gradshard_core.formats.headers import header_length, parse_header
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, encode_header
from gradshard_core.planning.client_weights import weigh
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
    Task,
)
from gradshard_core.s3 import range_streams
from gradshard_core.s3.range_streams import ReorderedStream
from gradshard_core.s3.traffic import Meter
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import reference


class MemorySource:
    """A contributor whose bytes are in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = memoryview(data)

    def read_into(self, buffer: memoryview) -> None:
        buffer[:] = self.data[: len(buffer)]
        self.data = self.data[len(buffer) :]


class MemoryOpener:
    """Where ranges come from: an object in memory."""

    def __init__(self, blob: bytes) -> None:
        self.blob = blob
        self.meter = Meter()

    def get_body(self, _: ObjectVersion, start: int, end: int) -> io.BytesIO:
        return io.BytesIO(self.blob[start:end])


def sources_of(plan: Plan, task: Task, blobs: Sequence[bytes]) -> tuple[list[Source], bool]:
    """Open contributors' bytes of a task's range as aggregate_shard does; is any disordered?"""
    contributors = [(plan.contributors[index], blobs[index]) for index in plan.inputs(task)]
    is_disordered = not all(contributor.runs.are_in_order for contributor, _ in contributors)
    depth = max(1, len(plan.levels[0].order))
    # As the test at hand has made it.
    size = vars(kernel)["block_bytes"](len(contributors), depth, is_disordered=is_disordered)
    weighted_range = WeightedRange(task.start, task.end, [])
    blocks = [(a, b) for _, a, b in kernel.blocks([weighted_range], plan.layout.spans, size)]
    memory = memoryview(bytearray(vars(range_streams)["SLICE_BYTES"] + size))
    return [
        ReorderedStream(
            MemoryOpener(blob),
            contributor.source,
            contributor.runs,
            [(task.start, task.end)] if contributor.runs.are_in_order else blocks,
            memory,
        )
        for contributor, blob in contributors
    ], is_disordered


def make_plan(
    blobs: Sequence[bytes],
    samples: Sequence[int],
    *,
    topology: str = "shards",
    fan_in: int | None = None,
    order: str | None = None,
    weights: str = "shares",
    shards: int = 1,
) -> Plan:
    """Plan for these objects as plan_round does, with M whatever S3 would say."""
    fields = {"topology": topology, "fan_in": fan_in, "order": order, "weights": weights}
    spec = parse_spec({"clients": len(blobs)} | {k: v for k, v in fields.items() if v is not None})
    headers = [
        parse_header(b[PREFIX_BYTES : PREFIX_BYTES + header_length(b, len(b))], len(b))
        for b in blobs
    ]
    layout = headers[0].layout
    contributors = [
        Contributor(
            f"c{i:03d}",
            ObjectVersion("", "", "", len(blobs[i])),
            n,
            0.0,
            layout.runs_in(headers[i].layout, headers[i].data_offset),
        )
        for i, n in enumerate(samples)
    ]
    name, sizes = spec.levels(len(blobs))
    found = spec.order if spec.order is not None else addition_order.natural_order(sizes)
    levels = tuple(map(Level.of_sizes, sizes, addition_order.split_order(found, sizes)))
    order_text = addition_order.format_order(found)
    return Plan(
        "r",
        Participants(weigh(contributors, weights)),
        Computation(levels, shards, topology=name, order=order_text, weights=weights),
        PlannedLayout.of(layout),
    )


def execute(plan: Plan, blobs: Sequence[bytes]) -> bytes:
    """Do a plan's tasks in memory, level by level, last ones first; return the result's data."""
    written: dict[int, bytes] = {}
    for number, level in enumerate(plan.levels):
        below, written = written, {}
        for task in reversed(plan.tasks(number)):
            sources: list[Source] = [MemorySource(below[i]) for i in plan.inputs(task) if number]
            is_disordered = False
            if not number:
                sources, is_disordered = sources_of(plan, task, blobs)
            weights = [1.0 if number else plan.contributors[i].weight for i in plan.inputs(task)]
            addition = Addition(
                order=level.order,
                of_sums=number > 0,
                to_sums=not plan.is_last(number),
                divisor=plan.divisor if plan.is_last(number) else 1,
                is_disordered=is_disordered,
            )
            out = bytearray()
            weighted_range = WeightedRange(task.start, task.end, weights)
            aggregate(sources, [weighted_range], addition, plan.layout.spans, out.extend)
            written[task.number] = bytes(out)
            if not plan.is_last(number):
                assert len(out) == sums_bytes(plan.layout.spans, task.start, task.end)
    return b"".join(written[task.number] for task in plan.tasks(len(plan.levels) - 1))


def run(blobs: Sequence[bytes], samples: Sequence[int], shards: int, **options: Any) -> bytes:
    """Aggregate whole objects, as the functions would with M = ``shards``."""
    plan = make_plan(blobs, samples, shards=shards, **options)
    layout = parse_header(
        blobs[0][PREFIX_BYTES : PREFIX_BYTES + header_length(blobs[0], len(blobs[0]))],
        len(blobs[0]),
    ).layout
    return encode_header(layout, {}) + execute(plan, blobs)


def random_updates(
    tensors: Sequence[tuple[str, tuple[int, ...]]], clients: int, seed: int
) -> tuple[list[dict[str, reference.Array]], list[int]]:
    """Return an update of such tensors for each client, and numbers of samples."""
    rng = np.random.default_rng(seed)
    updates = [
        {f"t{i}": reference.random_tensor(rng, *t) for i, t in enumerate(tensors)}
        for _ in range(clients)
    ]
    return updates, [int(n) for n in rng.integers(1, 10_000, clients)]


def assert_average(blob: bytes, expected: dict[str, reference.Array]) -> None:
    result = reference.decode(blob)
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert (result[name].dtype, result[name].shape) == (tensor.dtype, tensor.shape)
        assert result[name].tobytes() == tensor.tobytes(), name


TENSOR, SMALL_TENSOR = (
    st.tuples(
        st.sampled_from(sorted(reference.NUMPY)),
        st.lists(st.integers(0, longest), max_size=3).map(tuple),
    )
    for longest in (7, 4)
)


@settings(deadline=None, max_examples=150)
@given(
    tensors=st.lists(TENSOR, min_size=1, max_size=6).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    clients=st.integers(1, 6),
    shards=st.integers(1, 9),
    block=st.integers(2, 12),
    grouped=st.integers(1, 5),
    gap=st.integers(0, 60),
    seed=st.integers(0, 2**32 - 1),
    data=st.data(),
)
def test_any_cut_gives_the_bits_of_a_plain_loop(
    tensors: list[tuple[str, tuple[int, ...]]],
    clients: int,
    shards: int,
    block: int,
    grouped: int,
    gap: int,
    seed: int,
    data: st.DataObject,
) -> None:
    updates, samples = random_updates(tensors, clients, seed)
    blobs = [
        reference.encode(update, order=data.draw(st.permutations(list(update))))
        for update in updates
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "block_bytes", lambda *_, **__: 8 * block)
        patch.setattr(kernel, "SLICE_BYTES", 8 * max(1, block // 2))
        patch.setattr(range_streams, "SLICE_BYTES", block)
        patch.setattr(reordered_reads, "GROUPED", grouped)
        patch.setattr(reordered_reads, "GAP_BYTES", gap)
        result = run(blobs, samples, shards)
    assert_average(result, reference.average(updates, samples))


@settings(deadline=None, max_examples=150)
@given(
    tensors=st.lists(SMALL_TENSOR, min_size=1, max_size=3).filter(
        lambda ts: any(int(np.prod(shape)) for _, shape in ts)
    ),
    clients=st.integers(1, 40),
    fan_in=st.none() | st.integers(2, 9),
    shards=st.integers(1, 5),
    block=st.integers(2, 12),
    weights=st.sampled_from(["shares", "counts"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_in_the_same_order_every_topology_gives_the_same_bits(
    tensors: list[tuple[str, tuple[int, ...]]],
    clients: int,
    fan_in: int | None,
    shards: int,
    block: int,
    weights: str,
    seed: int,
) -> None:
    updates, samples = random_updates(tensors, clients, seed)
    blobs = [reference.encode(update) for update in updates]
    options: dict[str, Any] = {"weights": weights}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "block_bytes", lambda *_, **__: 8 * block)
        patch.setattr(kernel, "SLICE_BYTES", 8 * max(1, block // 2))
        for topology, m in (("lambda_fl", 1), ("lifl", 1), ("grid", shards)):
            tree = make_plan(blobs, samples, topology=topology, fan_in=fan_in, shards=m, **options)
            data = execute(tree, blobs)
            # In the topology's natural order, one task over all contributors does the same.
            alone = make_plan(
                blobs, samples, order=tree.computation.order, shards=shards, **options
            )
            assert len(alone.levels) == 1
            assert execute(alone, blobs) == data
            # Another topology with the same order does so, too.
            grid = make_plan(
                blobs, samples, topology="grid", order=tree.computation.order, **options
            )
            assert execute(grid, blobs) == data
            expected = reference.average(
                updates,
                samples,
                tree=addition_order.parse_order(tree.computation.order),
                counts=weights == "counts",
            )
            assert data == b"".join(
                np.ascontiguousarray(expected[name]).tobytes() for name in updates[0]
            )


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
        aggregate(
            [Broken(b"")],
            [WeightedRange(0, 40, [1.0])],
            Addition(),
            header.layout.spans,
            bytearray().extend,
        )


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_sender_of_a_nan_is_found(dtype: str, bad: float) -> None:
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
    weighted_range = WeightedRange(start, end, [1.0] * 3)
    assert find_nonfinite(sources, [weighted_range], Addition(), header.layout.spans) == {
        1: 28 + 300_123 * size
    }


@pytest.mark.parametrize(("dtype", "value"), [("F32", 3e38), ("F16", 6e4), ("BF16", 3e38)])
def test_written_values_are_finite_or_reported(dtype: str, value: float) -> None:
    """Finite updates whose weights add up to more than one, in the last element of a block."""
    update = {"a": np.ones(300_000, "f4"), "w": np.ones(99, reference.NUMPY[dtype])}
    update["w"][98] = value
    blobs = [reference.encode(update)] * 2
    plan = make_plan(blobs, [1, 1], topology="lambda_fl", fan_in=2)
    heavy = [replace(contributor, weight=0.9) for contributor in plan.contributors]
    with pytest.raises(NonFiniteSumError) as caught:
        execute(replace(plan, participants=Participants(tuple(heavy))), blobs)
    assert caught.value.position == 1_200_000 + 98 * reference.NUMPY[dtype].itemsize
    assert execute(plan, blobs) == blobs[0][-plan.layout.nbytes :]


def test_steps_end_on_elements() -> None:
    layout = parse_header(
        (blob := reference.encode({"a": np.zeros(3, "i1"), "b": np.zeros(9, "f8")}))[8:-75],
        len(blob),
    ).layout
    walked = list(kernel.steps(layout.spans, 0, layout.nbytes, 16))
    assert walked[0] == (0, 11)
    assert walked[-1][1] == 75
    assert all((stop - 3) % 8 == 0 for _, stop in walked)
