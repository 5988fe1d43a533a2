"""Recompute a byte range of a round's result from the updates, with the kernel of the tasks."""

from collections.abc import Callable
from contextlib import closing
from functools import partial

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.block_sizes import SLICE_BYTES
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.aggregation.kernel import Source
from gradshard_core.aggregation.masked_sum import SUBTRACTED
from gradshard_core.aggregation.optimizer_step import Applier
from gradshard_core.aggregation.sharding import sums_bytes
from gradshard_core.formats.compressed_updates import EncodedRuns
from gradshard_core.formats.object_keys import ObjectVersion, StoredTensors
from gradshard_core.planning.output_objects import NextModel
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Task
from gradshard_core.s3.range_streams import RangeStream, ReorderedStream
from gradshard_core.s3.store import S3Store


class _LazyBytes:
    """Bytes that are made when the first of them is read, and given up after the last.

    The kernel reads one input after another, so few inputs are in memory at a time.
    """

    def __init__(self, make: Callable[[], memoryview]) -> None:
        self._make = make
        self._left: memoryview | None = None

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes."""
        if self._left is None:
            self._left = self._make()
        buffer[:], self._left = self._left[: len(buffer)], self._left[len(buffer) :]


class RangeRecomputer:
    """Recomputes byte ranges of what a round published.

    Parameters
    ----------
    store
        The bucket.
    plan
        The plan that makes the result from the updates, as one shard.
    """

    def __init__(self, store: S3Store, plan: Plan) -> None:
        self._store, self._plan = store, plan

    def average(self, start: int, end: int) -> bytearray:
        """Return bytes [start, end) of the average, computed from the updates.

        Raises
        ------
        NonFiniteSumError
            They are not finite, and the round allows no such result.
        ChangedObjectError
            An update is gone.
        """
        return self._sum(len(self._plan.levels) - 1, 0, start, end)

    def model(self, new: NextModel, start: int, end: int, average: bytearray) -> list[bytearray]:
        """Return bytes [start, end) of the next model, and the same elements of each state.

        Raises
        ------
        NonFiniteModelError
            They are not finite, and the round allows no such result.
        ChangedObjectError
            The version of the model that the round began from is gone.
        """
        plan, spans = self._plan, self._plan.layout.spans
        model, *state = (bytearray() for _ in range(1 + len(new.server_optimizer.state)))
        Applier(
            new.server_optimizer,
            new.step,
            spans,
            plan.layout.buffers,
            start,
            model=self._stored(new.model, start, end),
            state=[self._stored(s, *self.state_range(start, end)) for s in new.state],
            write_model=model.extend,
            write_state=[values.extend for values in state],
            allow_nonfinite=plan.computation.allow_nonfinite,
        ).write(memoryview(average))
        return [model, *state]

    def read(self, stored: StoredTensors, start: int, end: int) -> bytearray:
        """Read bytes [start, end) of an object's tensors."""
        data = bytearray(end - start)
        ranges = [(stored.data_offset + start, stored.data_offset + end)]
        with closing(RangeStream(self._store, stored.source, ranges)) as stream:
            stream.read_into(memoryview(data))
        return data

    def state_range(self, start: int, end: int) -> tuple[int, int]:
        """Return where the optimizer's state has the elements of a range of the layout."""
        spans = self._plan.layout.spans
        before = sums_bytes(spans, 0, start)
        return before, before + sums_bytes(spans, start, end)

    def _sum(self, level: int, group: int, start: int, end: int) -> bytearray:
        """Add a range of what a group of a level adds: updates, or the sums of the level below."""
        plan = self._plan
        task = Task(level, group, start, end, *plan.levels[level].groups[group])
        numbers = plan.inputs(task)
        sources: list[Source] = [
            _LazyBytes(partial(self._input, level, number, start, end)) for number in numbers
        ]
        total = bytearray()
        weighted_ranges = plan.input_ranges(task, start)
        reduction = plan.reduction(level, len(sources))
        if plan.masking is not None and plan.masking.answer is not None and plan.is_last(level):
            masks = partial(self._masked, plan.masking.answer, 0, start, end)
            sources.append(_LazyBytes(masks))
            weighted_ranges = [
                weighted_range._replace(weights=[*weighted_range.weights, SUBTRACTED])
                for weighted_range in weighted_ranges
            ]
        kernel.aggregate(sources, weighted_ranges, reduction, plan.input_spans, total.extend)
        return total

    def _input(self, level: int, number: int, start: int, end: int) -> memoryview:
        if level > 0:
            return memoryview(self._sum(level - 1, number, start, end))
        return self._update(self._plan.contributors[number], start, end)

    def _update(self, contributor: Contributor, start: int, end: int) -> memoryview:
        """Read what an update has of a range of the layout, decoded."""
        runs = contributor.runs
        if contributor.share is not None:
            return self._masked(contributor.source, runs[0].offset, start, end)
        data = memoryview(bytearray(sum(high - low for _, low, high in runs.clip(start, end))))
        stored = runs.read_from(start) if isinstance(runs, EncodedRuns) else runs
        room = 0
        if not runs.are_in_order:
            # A range may need units that are larger than its elements.
            room = SLICE_BYTES + sum(stop - first for first, stop in stored.ranges(start, end))
        gathered = memoryview(bytearray(room))
        stream = ReorderedStream(self._store, contributor.source, stored, [(start, end)], gathered)
        with closing(stream):
            source: Source = stream
            if isinstance(runs, EncodedRuns):
                source = DecodedSource(stream, runs, start, end, DecodingMemory())
            source.read_into(data)
        return data

    def _masked(self, source: ObjectVersion, offset: int, start: int, end: int) -> memoryview:
        """Read the elements of the ring of a range of the layout; an object has all in a row."""
        spans = self._plan.input_spans
        before = sums_bytes(spans, 0, start)
        stored = StoredTensors(source, offset)
        return memoryview(self.read(stored, before, before + sums_bytes(spans, start, end)))

    def _stored(self, stored: StoredTensors, start: int, end: int) -> Source:
        return _LazyBytes(lambda: memoryview(self.read(stored, start, end)))
