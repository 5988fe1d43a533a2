"""One task: average one shard of all contributors into one part of the result."""

import contextlib
import resource
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gradshard import aggregation
from gradshard.aggregation import NonFiniteSumError
from gradshard.dtypes import DTYPES
from gradshard.errors import ChangedObjectError, PlanError
from gradshard.keys import RoundKeys
from gradshard.layout import PREFIX_BYTES, parse_header
from gradshard.plan import Plan, Refusal
from gradshard.planning import Shard, receive_buffer_bytes
from gradshard.streams import RangeStream
from gradshard.wire import Wire

OPENERS = 8
"""Streams opened at once: enough to hide the requests' latency."""


def aggregate_shard(wire: Wire, round_id: str, *, attempt: int, shard: Shard) -> dict[str, Any]:
    """Average one shard and report; safe to repeat, since a part overwrites itself.

    Parameters
    ----------
    wire
        The bucket.
    round_id, attempt
        Which plan.
    shard
        The task, as the plan lists it.

    Returns
    -------
    dict
        The report, which is also written for ``finalize_round``: seconds, memory, traffic, and
        the contributors that turned out to be bad.
    """
    keys = RoundKeys(round_id)
    wall, cpu = time.perf_counter(), time.process_time()
    _reset_peak_memory()
    wire.meter.take()
    fields = wire.get_json(keys.plan)
    if fields is None:
        raise PlanError(f"{keys.plan} is missing")
    plan = Plan.from_json(fields)
    if plan.attempt != attempt:
        # A straggler of an attempt that was given up; its upload is gone.
        return {"shard": shard.number, "attempt": attempt, "superseded_by": plan.attempt}
    refused = _write_shard(wire, keys, plan, shard)
    report = {
        "shard": shard.number,
        "attempt": attempt,
        "start": shard.start,
        "end": shard.end,
        "seconds": round(time.perf_counter() - wall, 3),
        "cpu_seconds": round(time.process_time() - cpu, 3),
        "peak_mb": round(peak_memory_mb(), 1),
        **asdict(wire.meter.take()),
        "refused": [vars(refusal) for refusal in refused],
    }
    wire.put_json(keys.report(shard.number), report)
    return report


def _reset_peak_memory() -> None:
    """Forget the peak of a warm function's earlier tasks, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return the most memory this process has had resident, in MB of 1024² bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose figure outlives exec and so may be the parent's.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def _write_shard(wire: Wire, keys: RoundKeys, plan: Plan, shard: Shard) -> list[Refusal]:
    """Aggregate; if an update turns out to be bad, say whose, and leave the shard unfinished."""
    header = b""
    if shard.number == 0:
        header = wire.get_bytes(keys.layout) or b""
        if len(header) != plan.header_bytes:
            raise PlanError(
                f"{keys.layout} has {len(header)} bytes, not the planned {plan.header_bytes}"
            )
    weights = [contributor.weight for contributor in plan.contributors]

    def aggregate(*, allow_nonfinite: bool) -> None:
        nbytes = len(header) + shard.end - shard.start
        with (
            _opened(wire, plan, shard.start, shard.end) as streams,
            wire.part(keys.result, plan.upload_id, shard.part, nbytes) as part,
        ):
            part.write(header)
            aggregation.aggregate(
                streams, weights, plan.spans, shard, part.write, allow_nonfinite=allow_nonfinite
            )

    try:
        aggregate(allow_nonfinite=plan.allow_nonfinite)
    except NonFiniteSumError as error:
        refused = _nonfinite(wire, keys, plan, error.position, shard.end)
        if not refused:
            # Every addend is finite and only their sum is not: then that is the result.
            aggregate(allow_nonfinite=True)
        return refused
    except ChangedObjectError:
        refused = _gone(wire, plan, shard)
        if not refused:
            raise
        return refused
    return []


@contextlib.contextmanager
def _opened(wire: Wire, plan: Plan, start: int, end: int) -> Iterator[list[RangeStream]]:
    """Give every contributor's bytes [start, end) of the layout, all requests made at once."""
    wire.receive_buffer_bytes = receive_buffer_bytes(len(plan.contributors))
    streams = [
        RangeStream(wire, contributor.source, contributor.ranges(start, end))
        for contributor in plan.contributors
    ]
    try:
        with ThreadPoolExecutor(OPENERS) as pool:
            list(pool.map(RangeStream.open, streams))
        yield streams
    finally:
        for stream in streams:
            stream.close()


def _nonfinite(wire: Wire, keys: RoundKeys, plan: Plan, position: int, end: int) -> list[Refusal]:
    """Read on from where the sum went bad, and name client and tensor."""
    with _opened(wire, plan, position, end) as streams:
        found = aggregation.find_nonfinite(streams, plan.spans, position, end)
    if not found:
        return []
    header = wire.get_bytes(keys.layout) or b""
    layout = parse_header(header[PREFIX_BYTES:], plan.header_bytes + plan.nbytes).layout
    refused = []
    for index, byte in sorted(found.items()):
        source, tensor = plan.contributors[index].source, layout.tensor_at(byte)
        element = (byte - tensor.start) // DTYPES[tensor.dtype].size
        reason = (
            f"{source.key}: tensor {tensor.name!r} holds a NaN or an infinity at element {element}"
        )
        refused.append(Refusal(plan.contributors[index].client, reason, source.etag))
    return refused


def _gone(wire: Wire, plan: Plan, shard: Shard) -> list[Refusal]:
    """Find out whose planned version cannot be read any more."""
    refused = []
    for contributor in plan.contributors:
        stream = RangeStream(wire, contributor.source, contributor.ranges(shard.start, shard.end))
        try:
            stream.open()
        except ChangedObjectError as error:
            refused.append(Refusal(contributor.client, str(error), contributor.source.etag))
        finally:
            stream.close()
    return refused
