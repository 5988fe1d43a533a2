"""One task: add some inputs over one byte range, into a part of the result or a partial sum."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from gradshard import aggregation
from gradshard.aggregation import Addition, NonFiniteSumError, Zone, clip_zones
from gradshard.dtypes import DTYPES
from gradshard.errors import ChangedObjectError, PlanError
from gradshard.keys import ObjectVersion, RoundKeys
from gradshard.layout import PREFIX_BYTES, parse_header
from gradshard.memory import peak_memory_mb, reset_peak_memory
from gradshard.plan import Plan, Refusal, Task
from gradshard.planning import WHOLE, receive_buffer_bytes, sums_bytes
from gradshard.streams import RangeStream
from gradshard.wire import StreamWriter, Wire

OPENERS = 8
"""Streams opened at once: enough to hide the requests' latency."""


def aggregate_shard(wire: Wire, round_id: str, *, attempt: int, task: Task) -> dict[str, Any]:
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
    wall, cpu = time.perf_counter(), time.process_time()
    reset_peak_memory()
    wire.meter.take()
    fields = wire.get_json(keys.plan)
    if fields is None:
        raise PlanError(f"{keys.plan} is missing")
    plan = Plan.from_json(fields)
    if plan.attempt != attempt:
        # A straggler of an attempt that was given up; its upload is gone.
        return {"task": task.number, "attempt": attempt, "superseded_by": plan.attempt}
    refused, is_written = _Worker(wire, keys, plan, task).run()
    wire.meter.add(puts=1)  # the report's own, which is too late to count itself
    report = {
        "level": task.level,
        "task": task.number,
        "attempt": attempt,
        "start": task.start,
        "end": task.end,
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_mb": round(peak_memory_mb(), 1),
        **asdict(wire.meter.take()),
        "is_cold": _is_cold(),
        "is_written": is_written,
        "refused": [vars(refusal) for refusal in refused],
    }
    wire.put_json(keys.report(task.level, task.number), report)
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

    def __init__(self, wire: Wire, keys: RoundKeys, plan: Plan, task: Task) -> None:
        self._wire, self._keys, self._plan, self._task = wire, keys, plan, task
        self._inputs = plan.inputs(task)
        self._is_last = plan.is_last(task.level)

    def run(self) -> tuple[list[Refusal], bool]:
        """Aggregate; if an update turns out to be bad, say whose, and leave the range unwritten.

        Returns
        -------
        list of Refusal
            The bad updates.
        bool
            Whether the sum was written: else the round is planned again.
        """
        addition = self._addition()
        try:
            self._aggregate(addition)
        except NonFiniteSumError as error:
            refused = self._nonfinite(error.position)
            if not refused:
                # Every addend is finite and only their sum is not: then that is the result.
                self._aggregate(replace(addition, allow_nonfinite=True))
            return refused, not refused
        except ChangedObjectError:
            refused = self._gone()
            if not refused and not self._is_called_off():
                raise
            return refused, False
        return [], True

    def _addition(self) -> Addition:
        plan, level = self._plan, self._task.level
        of_sums = level > 0
        return Addition(
            order=plan.levels[level].order,
            of_sums=of_sums,
            to_sums=not self._is_last,
            divisor=plan.divisor if self._is_last else 1,
            # Updates are checked where they are read; a sum of finite ones is the result.
            allow_nonfinite=plan.allow_nonfinite or of_sums,
            whole=plan.hold == WHOLE,
        )

    def _aggregate(self, addition: Addition) -> None:
        header, zones = self._header(), self._zones(self._task.start)
        with self._opened(self._task.start) as streams, self._writer(len(header)) as writer:
            writer.write(header)
            aggregation.aggregate(streams, zones, addition, self._plan.spans, writer.write)

    def _zones(self, start: int) -> list[Zone]:
        """Return the weights of the task's inputs, from ``start`` on."""
        task = self._task
        if task.level > 0:
            return [Zone(start, task.end, [1.0] * len(self._inputs))]
        return [
            zone._replace(weights=[zone.weights[index] for index in self._inputs])
            for zone in clip_zones(self._plan.zones, start, task.end)
        ]

    def _header(self) -> bytes:
        """Return what stands before the range's bytes: in the first part, the result's header."""
        if not self._is_last or self._task.number > 0:
            return b""
        return self._plan.check_header(self._wire.get_bytes(self._keys.layout))

    def _writer(self, header_bytes: int) -> contextlib.AbstractContextManager[StreamWriter]:
        plan, task, keys = self._plan, self._task, self._keys
        if self._is_last:
            nbytes = header_bytes + task.end - task.start
            return self._wire.part(keys.result, plan.upload_id, task.part, nbytes)
        nbytes = sums_bytes(plan.spans, task.start, task.end)
        return self._wire.object(keys.partial(plan.attempt, task.level, task.number), nbytes)

    @contextlib.contextmanager
    def _opened(self, start: int) -> Iterator[list[RangeStream]]:
        """Give every input's bytes from ``start`` on, all requests made at once."""
        self._wire.receive_buffer_bytes = receive_buffer_bytes(len(self._inputs))
        streams = [self._stream(index, start) for index in self._inputs]
        try:
            # Who holds whole updates reads one after the other.
            if self._plan.hold != WHOLE:
                with ThreadPoolExecutor(OPENERS) as pool:
                    list(pool.map(RangeStream.open, streams))
            yield streams
        finally:
            for stream in streams:
                stream.close()

    def _stream(self, index: int, start: int) -> RangeStream:
        plan, task = self._plan, self._task
        if task.level == 0:
            contributor = plan.contributors[index]
            return RangeStream(self._wire, contributor.source, contributor.ranges(start, task.end))
        nbytes = sums_bytes(plan.spans, task.start, task.end)
        # Any version will do: a task writes the same bytes whenever it runs.
        key = self._keys.partial(plan.attempt, task.level - 1, index)
        return RangeStream(self._wire, ObjectVersion(key, "", "", nbytes), [(0, nbytes)])

    def _nonfinite(self, position: int) -> list[Refusal]:
        """Read on from where the sum went bad, and name client and tensor."""
        plan = self._plan
        with self._opened(position) as streams:
            found = aggregation.find_nonfinite(streams, self._zones(position), plan.spans)
        if not found:
            return []
        header = plan.check_header(self._wire.get_bytes(self._keys.layout))
        layout = parse_header(header[PREFIX_BYTES:], plan.header_bytes + plan.nbytes).layout
        refused = []
        for index, byte in sorted(found.items()):
            contributor, tensor = plan.contributors[self._inputs[index]], layout.tensor_at(byte)
            element = (byte - tensor.start) // DTYPES[tensor.dtype].size
            reason = (
                f"{contributor.source.key}: tensor {tensor.name!r} holds a NaN or an infinity at "
                f"element {element}"
            )
            refused.append(Refusal(contributor.client, reason, contributor.source.etag))
        return refused

    def _gone(self) -> list[Refusal]:
        """Find out whose planned version cannot be read any more."""
        refused = []
        for index in self._inputs if self._task.level == 0 else ():
            contributor = self._plan.contributors[index]
            stream = self._stream(index, self._task.start)
            try:
                stream.open()
            except ChangedObjectError as error:
                reason = Refusal(contributor.client, str(error), contributor.source.etag)
                refused.append(reason)
            finally:
                stream.close()
        return refused

    def _is_called_off(self) -> bool:
        """Whether a partial sum is missing because of an update that was refused below."""
        if self._task.level == 0:
            return False
        keys = (self._keys.report(self._task.level - 1, number) for number in self._inputs)
        reports = (self._wire.get_json(key) for key in keys)
        return any(
            r and r["attempt"] == self._plan.attempt and not r["is_written"] for r in reports
        )
