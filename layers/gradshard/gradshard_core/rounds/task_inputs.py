"""The inputs of a task: their streams, and the weights with which they are added."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.gathering import Range
from gradshard_core.aggregation.kernel import Addition, Zone, clip_zones
from gradshard_core.aggregation.sharding import (
    SLICE_BYTES,
    block_bytes,
    gathered_bytes,
    receive_buffer_bytes,
    sums_bytes,
)
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.planning.plan import Contributor, Plan, Task
from gradshard_core.s3.streams import GatheringStream, RangeStream
from gradshard_core.s3.task_client import TaskS3Client

OPENERS = 8
"""Streams opened at once: enough to hide the requests' latency."""

InputStream = RangeStream | GatheringStream


class TaskInputs:
    """The inputs of a task, which are updates at level 0 and partial sums above.

    Parameters
    ----------
    wire
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
    addition
        The rule of the addition.
    """

    def __init__(
        self, wire: TaskS3Client, plan: Plan, task: Task, pool: ThreadPoolExecutor
    ) -> None:
        self.wire, self.plan, self.task, self._pool = wire, plan, task, pool
        self.keys = RoundKeys(plan.round_id)
        self.numbers = plan.inputs(task)
        self.contributors: list[Contributor] = []
        if task.level == 0:
            self.contributors = [plan.contributors[number] for number in self.numbers]
        self._gathers = not all(c.runs.are_in_order for c in self.contributors)
        # One buffer for all inputs, since they are read one after another. Pages that are never
        # touched take no memory.
        gathered = gathered_bytes() if self._gathers else 0
        self._buffer = memoryview(np.empty(SLICE_BYTES + gathered, np.uint8))
        is_last = plan.is_last(task.level)
        self.addition = Addition(
            order=plan.levels[task.level].order,
            of_sums=task.level > 0,
            to_sums=not is_last,
            divisor=plan.divisor if is_last else 1,
            allow_nonfinite=plan.computation.allow_nonfinite,
            gathers=self._gathers,
        )

    def zones(self, start: int) -> list[Zone]:
        """Return the weights of the inputs, from byte ``start`` of the layout on."""
        if self.task.level > 0:
            return [Zone(start, self.task.end, [1.0] * len(self.numbers))]
        return [
            zone._replace(weights=[zone.weights[number] for number in self.numbers])
            for zone in clip_zones(self.plan.zones, start, self.task.end)
        ]

    @contextlib.contextmanager
    def opened(self, start: int) -> Iterator[list[InputStream]]:
        """Open a stream of every input's bytes, from byte ``start`` of the layout on."""
        self.wire.receive_buffer_bytes = receive_buffer_bytes(len(self.numbers))
        if self.task.level == 0:
            streams = [self.update_stream(c, start) for c in self.contributors]
        else:
            streams = [self._partial_sum_stream(number) for number in self.numbers]
        with self.all_open(streams):
            yield streams

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
        is_in_order = contributor.runs.are_in_order
        return GatheringStream(
            self.wire,
            contributor.source,
            contributor.runs,
            [(start, self.task.end)] if is_in_order else self._blocks(start),
            self._buffer,
            self._pool,
        )

    def _partial_sum_stream(self, number: int) -> InputStream:
        task = self.task
        nbytes = sums_bytes(self.plan.layout.spans, task.start, task.end)
        key = self.keys.partial_sum(self.plan.attempt, task.level - 1, number)
        # Any version will do: a task writes the same bytes whenever it runs.
        return RangeStream(self.wire, ObjectVersion(key, "", "", nbytes), [(0, nbytes)])

    def _blocks(self, start: int) -> list[Range]:
        """Return the blocks in which the inputs are added, from ``start`` on."""
        size = block_bytes(len(self.numbers), self.addition.depth, gathers=self._gathers)
        blocks = kernel.blocks(self.zones(start), self.plan.layout.spans, size)
        return [(first, stop) for _, first, stop in blocks]
