"""One task: add inputs over one byte range, into a part of the average or a partial sum."""

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import Any

from gradshard_core.aggregation import kernel
from gradshard_core.aggregation.kernel import NonFiniteSumError
from gradshard_core.aggregation.optimizer_step import Applier, NonFiniteModelError, Write
from gradshard_core.aggregation.sharding import sums_bytes
from gradshard_core.errors import ChangedObjectError, PlanError, UnsentError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.observability.memory import peak_memory_mb, reset_peak_memory
from gradshard_core.planning.output_objects import Output
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Rejection, Task
from gradshard_core.records.noise_key import read_noise_key
from gradshard_core.records.plan_and_manifest import read_plan
from gradshard_core.records.robust_decision import read_decision, with_weights
from gradshard_core.robust.inner_products import ExactSum, Measuring
from gradshard_core.rounds.bad_inputs import is_rejected_below, reject_nonfinite, reject_unreadable
from gradshard_core.rounds.header_survey import survey
from gradshard_core.rounds.sum_overflow import reject_largest_step
from gradshard_core.rounds.task_inputs import OPENERS, TaskInputs
from gradshard_core.s3.range_streams import RangeStream
from gradshard_core.s3.retries import TASK_WRITE_ATTEMPTS, Retries
from gradshard_core.s3.task_client import StreamWriter, TaskS3Client


def aggregate_shard(s3: TaskS3Client, round_id: str, *, attempt: int, task: Task) -> dict[str, Any]:
    """Do one task and report; safe to repeat, since what it writes overwrites itself.

    Parameters
    ----------
    s3
        The bucket.
    round_id, attempt
        The plan: its round, and its attempt.
    task
        The task, as the plan lists it.

    Returns
    -------
    dict
        The report, which is also written for ``finalize_round``: seconds, memory, traffic, and
        the contributors that turned out to be bad.
    """
    keys = RoundKeys(round_id)
    started_at, wall, cpu = datetime.now(UTC), time.perf_counter(), time.process_time()
    reset_peak_memory()
    s3.meter.take()
    plan = read_plan(s3, keys)
    if plan is None:
        raise PlanError(f"{keys.plan} is missing")
    if plan.attempt != attempt:
        # A late task of an earlier attempt, whose uploads were aborted.
        return {"task": task.number, "attempt": attempt, "superseded_by": plan.attempt}
    decision = {}
    if plan.computation.measured is not None:
        decision = read_decision(s3, keys, plan.attempt)
        plan = with_weights(plan, decision)
    with ThreadPoolExecutor(OPENERS) as pool:
        rejected, is_written, found = _do(s3, plan, task, pool)
    s3.meter.add(puts=1)  # the report itself, whose PUT comes after it was counted
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
        **asdict(s3.meter.take()),
        "is_cold": _is_cold(),
        "is_written": is_written,
        "rejected": [vars(rejection) for rejection in rejected],
    }
    # Too much for a state of the machine, to which the report goes.
    found["whole"] = _noisy_count(s3, plan, task, decision)
    s3.put_json(keys.task_report(task.level, task.number), report | found)
    return report


def _do(
    s3: TaskS3Client, plan: Plan, task: Task, pool: ThreadPoolExecutor
) -> tuple[list[Rejection], bool, dict[str, Any]]:
    """Do a task's work, stretch by stretch if it measures a sample.

    Returns
    -------
    list of Rejection, bool
        As :func:`_aggregate_or_reject`.
    dict
        If it measures, ``products`` by layer; and of a sample ``squares``, the squared norms by
        stretch. If it reads headers, what :func:`gradshard_core.rounds.header_survey.survey`
        returns. If it writes outputs, ``parts``: the ETag and size of its part of each, in order.
    """
    if plan.computation.surveys:
        return [], True, survey(s3, plan, task)
    products: dict[int, ExactSum] = {}
    squares = []
    parts: dict[str, tuple[str, int]] = {}
    for start, end in plan.stretches(task):
        inputs = TaskInputs(s3, plan, task._replace(start=start, end=end), pool)
        rejected, is_written = _aggregate_or_reject(inputs)
        if not is_written:
            return rejected, False, {}
        parts = inputs.parts
        if isinstance(inputs.reduction, Measuring):
            if plan.computation.sample is not None:
                squares.append(inputs.reduction.products.rounded_diagonal())
            for layer, found in inputs.reduction.sums.items():
                products.setdefault(layer, found.of_same_size()).add_sum(found)
    if not plan.computation.measures:
        return [], True, {"parts": [parts[o.key] for o in plan.outputs]} if parts else {}
    report: dict[str, Any] = {"products": {n: total.to_json() for n, total in products.items()}}
    return [], True, report if plan.computation.sample is None else report | {"squares": squares}


def _noisy_count(
    s3: TaskS3Client, plan: Plan, task: Task, decision: dict[str, Any]
) -> float | None:
    """Return how many updates of a private round were not clipped, with noise; from one task.

    It has the decision and may read the key; plan_round and finalize_round may not.
    """
    dp = plan.computation.dp
    is_first = plan.is_last(task.level) and task.number == 0
    if dp is None or dp.adaptation is None or plan.computation.measures or not is_first:
        return None
    key = read_noise_key(s3, RoundKeys(plan.round_id))
    return dp.noisy_count(decision["whole"], key)


_has_run = False


def _is_cold() -> bool:
    """Return whether this is the first task of its process."""
    global _has_run
    was_cold, _has_run = not _has_run, True
    return was_cold


def _aggregate_or_reject(inputs: TaskInputs) -> tuple[list[Rejection], bool]:
    """Write the sum, or find the bad updates because of which it cannot be written.

    Returns
    -------
    list of Rejection
        The bad updates.
    bool
        Whether the sum was written. If not, the round is planned again.
    """
    if inputs.plan.masking is not None:
        # Nobody can be rejected: the keeper has summed the masks of all contributors.
        try:
            _aggregate(inputs)
        except NonFiniteModelError as error:
            raise PlanError(
                f"the server optimizer makes a NaN or an infinity of the average ({error}): take "
                "a smaller learning rate"
            ) from None
        return [], True
    try:
        rejected = _aggregate_finite(inputs)
    except ChangedObjectError:
        rejected = reject_unreadable(inputs)
        if not rejected and not is_rejected_below(inputs):
            raise
        return rejected, False
    return rejected, not rejected


def _aggregate_finite(inputs: TaskInputs) -> list[Rejection]:
    """Write the sum if it is finite and the next model too; else return the updates to reject."""
    try:
        _aggregate(inputs)
    except NonFiniteSumError as error:
        return reject_nonfinite(inputs, error.position)
    except NonFiniteModelError as error:
        if inputs.plan.computation.dp is not None:
            # A client that would be rejected has sent a long update: everybody would learn that.
            raise PlanError(
                f"byte {error.position} of the model would be a NaN or an infinity after the step "
                "with the private average: open the round with a lower learning rate or less noise"
            ) from error
        return reject_largest_step(inputs.s3, inputs.plan, inputs.task, error.position)
    return []


def _aggregate(inputs: TaskInputs) -> None:
    """Write the sum; if S3 is too busy to take it, read and add everything again."""
    retries = Retries(inputs.s3.meter, attempts=TASK_WRITE_ATTEMPTS)
    while True:
        try:
            return _aggregate_once(inputs)
        except UnsentError as error:
            retries.record_failure(str(error), partial(_last_error, error))


def _last_error(error: UnsentError, _attempts: int, _reasons: str) -> UnsentError:
    return error


def _aggregate_once(inputs: TaskInputs) -> None:
    start = inputs.task.start
    weighted_ranges = inputs.weighted_ranges(start)
    if inputs.plan.computation.measures:
        with inputs.opened(start) as streams:
            kernel.aggregate(streams, weighted_ranges, inputs.reduction, inputs.spans, _drop)
        return
    with (
        inputs.opened(start) as streams,
        _open_output(inputs) as writer,
        _apply_to_model(inputs, writer.write) as write,
    ):
        kernel.aggregate(streams, weighted_ranges, inputs.reduction, inputs.spans, write)


def _drop(_nothing: memoryview) -> None:
    """Take what a task that measures writes."""


def _open_output(inputs: TaskInputs) -> contextlib.AbstractContextManager[StreamWriter]:
    """Open what the task writes: its part of the average, or a partial sum."""
    plan, task = inputs.plan, inputs.task
    if plan.is_last(task.level):
        return _open_part(inputs, plan.outputs[0], task.end - task.start)
    key = inputs.keys.partial_sum(plan.attempt, task.level, task.number)
    return inputs.s3.object(key, plan.sums_bytes(task.start, task.end))


@contextlib.contextmanager
def _open_part(inputs: TaskInputs, output: Output, nbytes: int) -> Iterator[StreamWriter]:
    """Open the task's part of an output; the first part starts with the header."""
    s3, task = inputs.s3, inputs.task
    header = b""
    if task.number == 0:
        header = output.read_header(s3)
    part_bytes = len(header) + nbytes
    with s3.part(output.key, output.upload_id, task.part, part_bytes, header) as writer:
        yield writer
    inputs.parts[output.key] = writer.etag, part_bytes


@contextlib.contextmanager
def _apply_to_model(inputs: TaskInputs, write: Write) -> Iterator[Write]:
    """Return what writes the average and, if the round makes a model, applies it to the model."""
    plan, start, end = inputs.plan, inputs.task.start, inputs.task.end
    new, spans = plan.next_model, plan.layout.spans
    if new is None or not plan.is_last(inputs.task.level):
        yield write
        return
    before, nbytes = sums_bytes(spans, 0, start), sums_bytes(spans, start, end)
    ranges = [(start, end), *([(before, before + nbytes)] * len(new.state))]
    streams = [
        RangeStream(
            inputs.s3,
            stored.source,
            [(stored.data_offset + first, stored.data_offset + stop)],
        )
        for stored, (first, stop) in zip((new.model, *new.state), ranges, strict=True)
    ]
    _, model, *state = plan.outputs
    with contextlib.ExitStack() as stack:
        stack.enter_context(inputs.all_open(streams))
        model_writer = stack.enter_context(_open_part(inputs, model, end - start))
        state_writers = [stack.enter_context(_open_part(inputs, s, nbytes)) for s in state]
        applier = Applier(
            new.server_optimizer,
            new.step,
            spans,
            plan.layout.buffers,
            start,
            model=streams[0],
            state=streams[1:],
            write_model=model_writer.write,
            write_state=[writer.write for writer in state_writers],
            allow_nonfinite=plan.computation.allow_nonfinite,
        )

        def write_and_apply(data: memoryview) -> None:
            write(data)
            applier.write(data)

        yield write_and_apply
