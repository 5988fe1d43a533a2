"""The inputs of a task: their streams, and the weights with which they are added."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Protocol

import numpy as np

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.batchnorm_buffers import split_spans
from gradshard_core.aggregation.block_sizes import (
    SLICE_BYTES,
    chunks_at_once,
    receive_buffer_bytes,
    reorder_memory_bytes,
)
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.aggregation.kernel import Source, WeightedRange
from gradshard_core.aggregation.masked_sum import SUBTRACTED
from gradshard_core.aggregation.reordered_reads import Range
from gradshard_core.aggregation.sharding import count_elements, sums_bytes
from gradshard_core.formats.compressed_updates import EncodedRuns
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Runs, Span
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Task
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.privacy.noise_tree import CancellingNoise
from gradshard_core.records.noise_key import read_noise_key
from gradshard_core.robust.inner_products import chunk_ranges
from gradshard_core.s3.range_streams import RangeStream, ReorderedStream
from gradshard_core.s3.task_client import TaskS3Client

OPENERS = 8
"""Streams opened at once: enough to hide the requests' latency."""


class InputStream(Source, Protocol):
    """The bytes of one input, in the order of the layout."""

    def open(self) -> None:
        """Send the first request now; a failure is raised when it is read."""

    def close(self) -> None:
        """Close the connection."""


class DecodedStream(DecodedSource):
    """A compressed update, decoded while it is read."""

    def __init__(
        self, stream: InputStream, runs: EncodedRuns, start: int, end: int, buffers: DecodingMemory
    ) -> None:
        super().__init__(stream, runs, start, end, buffers)
        self._stream = stream

    def open(self) -> None:
        """Send the first request now; a failure is raised when it is read."""
        self._stream.open()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()


class TaskInputs:
    """The inputs of a task, which are updates at level 0 and partial sums above.

    Parameters
    ----------
    s3
        The bucket.
    plan, task
        The plan of the round, and the task in it.
    pool
        Opens streams; see :data:`OPENERS`.

    Attributes
    ----------
    keys
        The keys of the round.
    numbers
        The numbers of the inputs: of contributors, or of tasks one level below.
    contributors
        The contributors whose updates the task reads; none above level 0.
    spans
        The spans of the layout, split at buffers if the task measures.
    reduction
        The operation that combines the inputs.
    parts
        The ETag and size of the part that was written of each output, by its key.
    """

    def __init__(self, s3: TaskS3Client, plan: Plan, task: Task, pool: ThreadPoolExecutor) -> None:
        self.s3, self.plan, self.task, self._pool = s3, plan, task, pool
        self.keys = RoundKeys(plan.round_id)
        self.numbers = plan.inputs(task)
        self.contributors: list[Contributor] = []
        if task.level == 0:
            self.contributors = plan.group(task.first, task.stop)
        masking = plan.masking if plan.is_last(task.level) else None
        self.parts: dict[str, tuple[str, int]] = {}
        self._masks = [masking.answer] if masking is not None and masking.answer else []
        self._is_disordered = not all(c.runs.are_in_order for c in self.contributors)
        # One buffer for all inputs, since they are read one after another. Pages that are never
        # touched take no memory.
        gathered = reorder_memory_bytes() if self._is_disordered else 0
        self._buffer = memoryview(np.empty(SLICE_BYTES + gathered, np.uint8))
        self._decoding = DecodingMemory()
        self.spans: Sequence[Span] = plan.input_spans
        if plan.computation.measures:
            self.spans = split_spans(plan.layout.spans, plan.layout.buffers)
        robust = plan.computation.robust
        self._holds_all = plan.computation.measures or (robust is not None and robust.holds_all)
        self.reduction = plan.reduction(
            task.level, len(self.numbers), is_disordered=self._is_disordered
        )

    def weighted_ranges(self, start: int) -> Iterable[WeightedRange]:
        """Return the weights of the inputs, from byte ``start`` of the layout on."""
        weighted_ranges = self.plan.input_ranges(self.task, start)
        if self.plan.computation.measures:
            layout, at_once = self.plan.layout, chunks_at_once(len(self.numbers))
            return (
                WeightedRange(*chunk, weights)
                for first, stop, weights in weighted_ranges
                for chunk in chunk_ranges(layout.spans, layout.nbytes, first, stop, at_once)
            )
        if not self._masks:
            return weighted_ranges
        return [
            weighted_range._replace(weights=[*weighted_range.weights, SUBTRACTED])
            for weighted_range in weighted_ranges
        ]

    @contextlib.contextmanager
    def opened(self, start: int) -> Iterator[list[Source]]:
        """Open a stream of every input's bytes, from byte ``start`` of the layout on.

        The last one of a private sum is its noise.
        """
        inputs = len(self.numbers) + len(self._masks)
        self.s3.receive_buffer_bytes = receive_buffer_bytes(inputs)
        streams: list[InputStream]
        if self.task.level == 0:
            streams = [self.update_stream(c, start) for c in self.contributors]
        else:
            streams = [self._partial_sum_stream(number) for number in self.numbers]
        streams += [self._masked_stream(masks, 0, start) for masks in self._masks]
        with self.all_open(streams):
            yield [*streams, *self._noise(start)]

    def _noise(self, start: int) -> list[Source]:
        """Return the noise of a private sum, from byte ``start`` of the layout on."""
        dp, grid = self.plan.computation.dp, self.plan.grid
        if dp is None or grid is None or not self.plan.is_last(self.task.level):
            return []
        rounds = [self.keys, *map(RoundKeys, dp.cancels)]
        first = count_elements(self.spans, 0, start)
        own, *others = (
            NoiseSource(read_noise_key(self.s3, keys), grid.terms, first) for keys in rounds
        )
        return [CancellingNoise(own, others)]

    @contextlib.contextmanager
    def all_open(self, streams: Sequence[InputStream]) -> Iterator[None]:
        """Make the requests of all streams at once; close them in the end."""
        opening = [self._pool.submit(stream.open) for stream in streams]
        try:
            for opened in opening:
                opened.result()
            yield
        finally:
            # If one stream fails, others may still be opening: closed now, they would stay open.
            wait(opening)
            for stream in streams:
                stream.close()

    def update_stream(self, contributor: Contributor, start: int) -> InputStream:
        """Return a stream of a contributor's update, which is not open yet."""
        runs, end = contributor.runs, self.task.end
        if contributor.share is not None:
            return self._masked_stream(contributor.source, runs[0].offset, start)
        blocks = [(start, end)] if runs.are_in_order else self._blocks(start)
        if not isinstance(runs, EncodedRuns):
            return self._stored_stream(contributor, runs, blocks)
        stored = self._stored_stream(contributor, runs.read_from(start), blocks)
        return DecodedStream(stored, runs, start, end, self._decoding)

    def _stored_stream(
        self, contributor: Contributor, runs: Runs, blocks: list[Range]
    ) -> ReorderedStream:
        return ReorderedStream(
            self.s3, contributor.source, runs, blocks, self._reordering_memory(), self._pool
        )

    def _masked_stream(self, source: ObjectVersion, offset: int, start: int) -> InputStream:
        """Return a stream of elements of the ring, of which the object has all from ``offset``."""
        before = offset + sums_bytes(self.spans, 0, start)
        length = sums_bytes(self.spans, start, self.task.end)
        return RangeStream(self.s3, source, [(before, before + length)])

    def _partial_sum_stream(self, number: int) -> InputStream:
        task = self.task
        nbytes = self.plan.sums_bytes(task.start, task.end)
        key = self.keys.partial_sum(self.plan.attempt, task.level - 1, number)
        # Any version will do: a task writes the same bytes whenever it runs.
        return RangeStream(self.s3, ObjectVersion(key, "", "", nbytes), [(0, nbytes)])

    def _reordering_memory(self) -> memoryview:
        """Return the buffer of a stream; a rule that takes less at a time needs one for each."""
        if not self._holds_all:
            return self._buffer
        return memoryview(np.empty(SLICE_BYTES + reorder_memory_bytes(), np.uint8))

    def _blocks(self, start: int) -> list[Range]:
        """Return the blocks in which inputs are read, from ``start`` on."""
        size = reorder_memory_bytes()
        if not self._holds_all:
            size = self.reduction.block_bytes(len(self.numbers))
        blocks = kernel.blocks(self.weighted_ranges(start), self.plan.layout.spans, size)
        return [(first, stop) for _, first, stop in blocks]
