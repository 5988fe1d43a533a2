"""One task: add some inputs over one byte range, into a part of the result or a partial sum."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.gathering import Range
from gradshard_core.aggregation.kernel import Addition, NonFiniteSumError, Zone, clip_zones
from gradshard_core.aggregation.optimizer_step import Applier, NonFiniteModelError, Write
from gradshard_core.aggregation.sharding import (
    SLICE_BYTES,
    block_bytes,
    gathered_bytes,
    receive_buffer_bytes,
    sums_bytes,
)
from gradshard_core.errors import ChangedObjectError, PlanError, UnsentError
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.formats.layout import Layout
from gradshard_core.observability.memory import peak_memory_mb, reset_peak_memory
from gradshard_core.planning.plan import Output, Plan, Rejection, Task
from gradshard_core.rounds.overflow import element_at, reject_largest, reject_largest_step
from gradshard_core.s3.streams import GatheringStream, RangeStream, sleep_backoff
from gradshard_core.s3.task_client import StreamWriter, TaskS3Client

OPENERS = 8
"""Streams opened at once: enough to hide the requests' latency."""

SENDINGS = 3
"""Tries of a sum that S3 is too busy to take. The machine has more, each a new task."""


def aggregate_shard(
    wire: TaskS3Client, round_id: str, *, attempt: int, task: Task
) -> dict[str, Any]:
    """Do one task and report; safe to repeat, since what it writes overwrites itself.

    Parameters
    ----------
    wire
        The bucket.
    round_id, attempt
        Which plan.
    task
        As the plan lists it.

    Returns
    -------
    dict
        The report, which is also written for ``finalize_round``: seconds, memory, traffic, and
        the contributors that turned out to be bad.
    """
    keys = RoundKeys(round_id)
    started_at, wall, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    reset_peak_memory()
    wire.meter.take()
    plan = wire.get_json(keys.plan, Plan.from_json)
    if plan is None:
        raise PlanError(f"{keys.plan} is missing")
    if plan.attempt != attempt:
        # A straggler of an attempt that was given up; its upload is gone.
        return {"task": task.number, "attempt": attempt, "superseded_by": plan.attempt}
    rejected, is_written = _Worker(wire, keys, plan, task).run()
    wire.meter.add(puts=1)  # the report's own, which is too late to count itself
    report = {
        "level": task.level,
        "task": task.number,
        "attempt": attempt,
        "start": task.start,
        "end": task.end,
        "started_at": started_at.isoformat(timespec="milliseconds"),
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_mb": round(peak_memory_mb(), 1),
        **asdict(wire.meter.take()),
        "is_cold": _is_cold(),
        "is_written": is_written,
        "rejected": [vars(rejection) for rejection in rejected],
    }
    wire.put_json(keys.task_report(task.level, task.number), report)
    return report


def _is_cold() -> bool:
    """Whether this is the first task of its process."""
    global _has_run
    was_cold, _has_run = not _has_run, True
    return was_cold


_has_run = False


class _Worker:
    """A task at work.

    Parameters
    ----------
    wire, keys
        The bucket, and the names in it.
    plan, task
        What to do.
    """

    def __init__(self, wire: TaskS3Client, keys: RoundKeys, plan: Plan, task: Task) -> None:
        self._wire, self._keys, self._plan, self._task = wire, keys, plan, task
        self._inputs = plan.inputs(task)
        self._is_last = plan.is_last(task.level)
        self._gathers = task.level == 0 and not all(
            plan.contributors[index].runs.are_in_order for index in self._inputs
        )
        # One for all inputs, which are read one after another; what is not used takes no memory.
        room = gathered_bytes() if self._gathers else 0
        self._desk = memoryview(np.empty(SLICE_BYTES + room, np.uint8))
        self._pool = ThreadPoolExecutor(OPENERS)

    def run(self) -> tuple[list[Rejection], bool]:
        """Aggregate; if an update turns out to be bad, say whose, and leave the range unwritten.

        Returns
        -------
        list of Rejection
            The bad updates.
        bool
            Whether the sum was written: else the round is planned again.
        """
        with self._pool:
            return self._run()

    def _run(self) -> tuple[list[Rejection], bool]:
        try:
            rejected = self._sum()
        except ChangedObjectError:
            rejected = self._gone()
            if not rejected and not self._is_called_off():
                raise
            return rejected, False
        return rejected, not rejected

    def _sum(self) -> list[Rejection]:
        """Aggregate; return whose updates keep the sum, or what is made of it, from being finite.

        If there are any, nothing was written.
        """
        try:
            self._aggregate(self._addition())
        except NonFiniteSumError as error:
            return self._nonfinite(error.position)
        except NonFiniteModelError as error:
            return reject_largest_step(self._wire, self._plan, self._task, error.position)
        return []

    def _addition(self) -> Addition:
        plan, level = self._plan, self._task.level
        return Addition(
            order=plan.levels[level].order,
            of_sums=level > 0,
            to_sums=not self._is_last,
            divisor=plan.divisor if self._is_last else 1,
            allow_nonfinite=plan.allow_nonfinite,
            gathers=self._gathers,
        )

    def _aggregate(self, addition: Addition) -> None:
        """Aggregate, again where S3 does not take the sum: what was sent is not kept."""
        for failures in range(1, SENDINGS):
            try:
                return self._aggregate_once(addition)
            except UnsentError:
                self._wire.meter.add(retries=1)
                sleep_backoff(failures)
        return self._aggregate_once(addition)

    def _aggregate_once(self, addition: Addition) -> None:
        zones = self._zones(self._task.start)
        with (
            self._opened(self._task.start) as streams,
            self._writer() as writer,
            self._applied(writer.write) as write,
        ):
            kernel.aggregate(streams, zones, addition, self._plan.spans, write)

    def _zones(self, start: int) -> list[Zone]:
        """Return the weights of the task's inputs, from ``start`` on."""
        task = self._task
        if task.level > 0:
            return [Zone(start, task.end, [1.0] * len(self._inputs))]
        return [
            zone._replace(weights=[zone.weights[index] for index in self._inputs])
            for zone in clip_zones(self._plan.zones, start, task.end)
        ]

    def _writer(self) -> contextlib.AbstractContextManager[StreamWriter]:
        plan, task = self._plan, self._task
        if self._is_last:
            return self._part(plan.outputs[0], task.end - task.start)
        nbytes = sums_bytes(plan.spans, task.start, task.end)
        return self._wire.object(
            self._keys.partial_sum(plan.attempt, task.level, task.number), nbytes
        )

    @contextlib.contextmanager
    def _part(self, output: Output, nbytes: int) -> Iterator[StreamWriter]:
        """Write the task's part of an object; in the first one, its header comes first."""
        header = b""
        if self._task.number == 0:
            header = output.check_header(self._wire.get_bytes(output.header_key))
        part, whole = self._task.part, len(header) + nbytes
        with self._wire.part(output.key, output.upload_id, part, whole, header) as writer:
            yield writer

    @contextlib.contextmanager
    def _applied(self, write: Write) -> Iterator[Write]:
        """Have what is written of the update applied to the model, where the round does that."""
        new, start, end = self._plan.next_model, self._task.start, self._task.end
        if new is None or not self._is_last:
            yield write
            return
        spans, allow_nonfinite = self._plan.spans, self._plan.allow_nonfinite
        before, nbytes = sums_bytes(spans, 0, start), sums_bytes(spans, start, end)
        ranges = [(start, end), *([(before, before + nbytes)] * len(new.state))]
        streams = [
            RangeStream(self._wire, kept.source, [(kept.data_offset + a, kept.data_offset + b)])
            for kept, (a, b) in zip((new.model, *new.state), ranges, strict=True)
        ]
        _, model, *state = self._plan.outputs
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._all_open(streams))
            applier = Applier(
                new.server_optimizer,
                new.step,
                spans,
                new.buffers,
                start,
                model=streams[0],
                state=streams[1:],
                write_model=stack.enter_context(self._part(model, end - start)).write,
                write_state=[stack.enter_context(self._part(kept, nbytes)).write for kept in state],
                allow_nonfinite=allow_nonfinite,
            )

            def write_and_apply(data: memoryview) -> None:
                write(data)
                applier.write(data)

            yield write_and_apply

    @contextlib.contextmanager
    def _opened(self, start: int) -> Iterator[list[RangeStream | GatheringStream]]:
        """Give every input's bytes from ``start`` on."""
        self._wire.receive_buffer_bytes = receive_buffer_bytes(len(self._inputs))
        streams = [self._stream(index, start) for index in self._inputs]
        with self._all_open(streams):
            yield streams

    @contextlib.contextmanager
    def _all_open(self, streams: Sequence[RangeStream | GatheringStream]) -> Iterator[None]:
        """Make all streams' requests at once."""
        try:
            list(self._pool.map(lambda stream: stream.open(), streams))
            yield
        finally:
            for stream in streams:
                stream.close()

    def _stream(self, index: int, start: int) -> RangeStream | GatheringStream:
        plan, task = self._plan, self._task
        if task.level == 0:
            contributor = plan.contributors[index]
            return GatheringStream(
                self._wire,
                contributor.source,
                contributor.runs,
                [(start, task.end)] if contributor.runs.are_in_order else self._blocks(start),
                self._desk,
                self._pool,
            )
        nbytes = sums_bytes(plan.spans, task.start, task.end)
        # Any version will do: a task writes the same bytes whenever it runs.
        key = self._keys.partial_sum(plan.attempt, task.level - 1, index)
        return RangeStream(self._wire, ObjectVersion(key, "", "", nbytes), [(0, nbytes)])

    def _blocks(self, start: int) -> list[Range]:
        """Return the blocks in which the inputs are added, from ``start`` on."""
        addition = self._addition()
        size = block_bytes(len(self._inputs), addition.depth, gathers=self._gathers)
        blocks = kernel.blocks(self._zones(start), self._plan.spans, size)
        return [(first, stop) for _, first, stop in blocks]

    def _nonfinite(self, position: int) -> list[Rejection]:
        """Name who sent a NaN or an infinity from where the sum went bad, or makes it overflow."""
        plan, found = self._plan, dict[int, int]()
        if self._task.level == 0:
            with self._opened(position) as streams:
                found = kernel.find_nonfinite(
                    streams, self._zones(position), self._addition(), plan.spans
                )
        if not found:
            return reject_largest(self._wire, plan, self._task, position)
        layout = self._layout()
        rejected = []
        for index, byte in sorted(found.items()):
            contributor = plan.contributors[self._inputs[index]]
            tensor, element = element_at(layout, byte)
            reason = (
                f"{contributor.source.key}: tensor {tensor!r} holds a NaN or an infinity at "
                f"element {element}"
            )
            rejected.append(Rejection(contributor.client, reason, contributor.source.etag))
        return rejected

    def _layout(self) -> Layout:
        update = self._plan.outputs[0]
        return update.layout(self._wire.get_bytes(update.header_key))

    def _gone(self) -> list[Rejection]:
        """Find out whose planned version cannot be read any more."""
        rejected = []
        for index in self._inputs if self._task.level == 0 else ():
            contributor = self._plan.contributors[index]
            stream = self._stream(index, self._task.start)
            try:
                stream.open()
            except ChangedObjectError as error:
                reason = Rejection(contributor.client, str(error), contributor.source.etag)
                rejected.append(reason)
            finally:
                stream.close()
        return rejected

    def _is_called_off(self) -> bool:
        """Whether a partial sum is missing because of an update that was rejected below."""
        if self._task.level == 0:
            return False
        keys = (self._keys.task_report(self._task.level - 1, number) for number in self._inputs)
        reports = (self._wire.get_json(key) for key in keys)
        return any(
            r and r["attempt"] == self._plan.attempt and not r["is_written"] for r in reports
        )
