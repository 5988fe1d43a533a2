"""Complete the upload of the result, and write the manifest last."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from gradshard_core.aggregation.batchnorm_buffers import names_in
from gradshard_core.aggregation.topologies import MAX_FAN_IN
from gradshard_core.errors import PlanError, ReplacedPartError, ServiceError, StoreError
from gradshard_core.formats.long_lists import ListWriter
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, StoredTensors
from gradshard_core.planning.output_objects import Output
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Rejection, Task
from gradshard_core.records import model_registry
from gradshard_core.records.assignment import write_assignments
from gradshard_core.records.manifest_status import COMPLETED
from gradshard_core.records.model_registry import Version
from gradshard_core.records.noise_key import delete_noise_key
from gradshard_core.records.plan_and_manifest import (
    list_writer,
    read_manifest,
    read_plan,
    store_replan,
)
from gradshard_core.records.robust_decision import read_decision
from gradshard_core.records.training_state import keeps_noise_key
from gradshard_core.robust.inner_products import count_matrices
from gradshard_core.rounds import aws_requests, rejections
from gradshard_core.rounds.manifest_json import Work, completed_manifest
from gradshard_core.rounds.robust_measurement import Measured, left_out, summary
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.option_parsers import parse_assignment_spec
from gradshard_core.stragglers.client_report import Report

READ_AT_A_TIME = 1024
PRODUCTS_AT_A_TIME: Final = SMALL_OBJECT_READERS * MAX_FAN_IN**2
"""Products in all reports that are read at a time: as many as of one for each reader without
layers."""

NOT_IN_MANIFEST = {"attempt", "rejected", "is_written", "updates", "layouts", "parts"}
SUMMED = (
    "gets",
    "puts",
    "retries",
    "bytes_read",
    "bytes_written",
    "seconds",
    "cpu_seconds",
)
NEXT_LEVEL = "next_level"
REPLAN = "replan"
AWAITING = "awaiting"
BRANCHES: Final = {NEXT_LEVEL: "NextLevel", REPLAN: "Replan", AWAITING: "Awaiting"}
"""The errors by which the state machine goes on, by the status of a round that has not ended."""


def finalize_round(
    store: S3Store, round_id: str, next_level: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Complete the round's upload and record the round; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The id of the round.
    next_level
        Tasks that add up what the last ones have written; none after the last level. The state
        machine asks here whether there are any, because a choice would be a transition of every
        round.

    Returns
    -------
    dict
        ``status`` ``completed``; or ``next_level`` while tasks are left; or ``awaiting`` in an
        eager round while groups are missing, and in a masked one while its keeper has not answered;
        or ``replan`` with the next ``attempt`` and the ``rejected`` contributors, when some turned
        out to be bad while they were read.

    Raises
    ------
    PlanError
        A task has not reported.
    StoreError
        The result is not what the tasks were to make of it.
    """
    if next_level:
        return {"status": NEXT_LEVEL}
    keys = RoundKeys(round_id)
    plan = read_plan(store, keys)
    if plan is None:
        raise PlanError(f"{keys.plan} is missing")
    if not plan.is_complete:
        return {"status": AWAITING}
    tally = _Tally(list_writer(store, keys))
    measured = Measured(plan)
    for report in _read_reports(store, keys, plan):
        measured.add(report)
        tally.note_count(report.pop("whole", None))
        tally.add(report)
    rejected = tally.rejected()
    if rejected:
        bad = {rejection.client for rejection in rejected}
        sources = {c.client: c.source.key for c in plan.contributors if c.client in bad}
        rejections.reject_all(
            store, rejected, lambda client: rejections.rejection_keys(keys, sources[client])
        )
        # Apart from what clients read, which a later upload of theirs replaces.
        store_replan(store, keys, plan.attempt, rejected)
        return {
            "status": REPLAN,
            "reason": REPLAN,
            "attempt": plan.attempt + 1,
            "rejected": [vars(rejection) for rejection in rejected],
        }
    if not plan.computation.has_outputs:
        return _go_on(store, keys, plan, tally, measured)
    _conclude(store, keys, plan, tally)
    return {"status": COMPLETED}


def tell_machine(token: str, outcome: Mapping[str, Any]) -> None:
    """End the machine's state with an outcome of :func:`finalize_round`; safe to repeat.

    A round that has not ended leaves the state by an error, because a choice after it would be a
    transition of every round.
    """
    if outcome["status"] == COMPLETED:
        aws_requests.succeed(token, outcome)
    else:
        aws_requests.give_up(token, BRANCHES[outcome["status"]], json.dumps(outcome))


def _go_on(
    store: S3Store, keys: RoundKeys, plan: Plan, tally: "_Tally", measured: Measured
) -> dict[str, Any]:
    """Write what was measured, if it was, and have the next pass planned."""
    if plan.computation.measures:
        spent = {"tasks": tally.tasks(), "totals": tally.totals()}
        store.put_json(keys.measurement(plan.attempt), measured.to_json() | spent)
    store_replan(store, keys, plan.attempt, [])
    return {"status": REPLAN, "reason": REPLAN, "attempt": plan.attempt + 1, "rejected": []}


class _Tally:
    """The totals of all tasks. The single reports are not kept."""

    def __init__(self, listed: ListWriter[dict[str, Any]]) -> None:
        self._sums: dict[str, float] = dict.fromkeys(("tasks", *SUMMED, "cold_starts"), 0)
        self._peak_mb = self._longest = 0.0
        self._rejected: dict[str, Rejection] = {}
        self._listed = listed
        self.whole: float | None = None
        self._parts: dict[int, list[list[Any]]] = {}

    def note_count(self, whole: float | None) -> None:
        """Note the noisy number of updates that were not clipped, which one task reports."""
        self.whole = self.whole if whole is None else whole

    def add(self, report: dict[str, Any]) -> None:
        for name in SUMMED:
            self._sums[name] += report[name]
        self._sums["tasks"] += 1
        self._sums["cold_starts"] += report["is_cold"]
        self._peak_mb = max(self._peak_mb, report["peak_mb"])
        self._longest = max(self._longest, report["seconds"])
        for rejection in report["rejected"]:
            # The first shard that found a client's update bad says why.
            self._rejected.setdefault(rejection.client, rejection)
        if "parts" in report:
            self._parts[report["task"]] = report["parts"]
        self._listed.add({name: report[name] for name in report if name not in NOT_IN_MANIFEST})

    def rejected(self) -> list[Rejection]:
        """One rejection a client."""
        return [self._rejected[client] for client in sorted(self._rejected)]

    def parts(self, output: int) -> list[Part]:
        """Return the parts of an output, by its place among the outputs, as tasks wrote them."""
        return [Part(number + 1, *self._parts[number][output]) for number in sorted(self._parts)]

    def tasks(self) -> Any:
        """Return what a manifest holds of the list of each task's record."""
        return self._listed.to_json()

    def totals(self) -> dict[str, Any]:
        return {**self._sums, "peak_mb": self._peak_mb, "longest_seconds": self._longest}


def _conclude(store: S3Store, keys: RoundKeys, plan: Plan, tally: _Tally) -> None:
    """Have everything appear: the objects, what they mean for the model, the manifest."""
    if plan.assignments is not None:
        _assign(store, keys, plan, plan.assignments)
    measuring = {}
    if plan.computation.measured is not None:
        decision = read_decision(store, keys, plan.attempt)
        sources = {c.client: c.source.key for c in plan.participants.left_out}
        rejections.reject_all(
            store,
            left_out(plan, decision),
            lambda client: rejections.rejection_keys(keys, sources[client]),
        )
        measuring = {"measuring": summary(store, keys, plan, decision)}
    result, *made = (
        _complete(store, output, tally.parts(number), plan.computation.shards)
        for number, output in enumerate(plan.outputs)
    )
    version = _next_version(store, plan, [source for source, _ in made])
    if version is not None:
        version = model_registry.reserve(store, version)
    work = Work(tally.tasks(), tally.totals(), tally.whole)
    manifest = completed_manifest(store, keys, plan, result, work, version, measuring)
    if not store.put_json(keys.manifest, manifest, replaces=None):
        manifest = read_manifest(store, keys) or manifest
        if manifest["status"] != COMPLETED:
            # The round was given up while this function was at work: nothing may be seen of it.
            for output in plan.outputs:
                store.delete(output.key)
            raise PlanError(f"round {plan.round_id!r} was given up: {manifest['cause']}")
    if version is not None:
        model_registry.note_current(store, version.model)
    _delete_intermediate(store, keys, plan)
    # At the deadline of a round that has ended nothing is done: this only saves the call.
    with contextlib.suppress(ServiceError):
        aws_requests.cancel_deadline(plan.round_id)
    aws_requests.publish("RoundCompleted", {"round": plan.round_id, "bucket": store.bucket})


def _delete_intermediate(store: S3Store, keys: RoundKeys, plan: Plan) -> None:
    """Delete for good what only tasks have needed."""
    if len(plan.levels) > 1:
        store.delete_versions(keys.partial_sums)
    dp = plan.computation.dp
    if dp is not None and not keeps_noise_key(store, keys.round_id, dp):
        delete_noise_key(store, keys)


def _read_reports(store: S3Store, keys: RoundKeys, plan: Plan) -> Iterator[dict[str, Any]]:
    tasks = [task for level in range(len(plan.levels)) for task in plan.tasks(level)]
    if plan.computation.measures:
        # Group by group, so that what was measured of a group need not be kept.
        groups = len(plan.levels[0].groups)
        tasks.sort(key=lambda task: task.number % groups)

    def read(task: Task) -> dict[str, Any]:
        report = store.get_json(keys.task_report(task.level, task.number), _checked)
        if report is None or report["attempt"] != plan.attempt:
            raise PlanError(
                f"task {task.number} of level {task.level} has not been done, of {len(tasks)} tasks"
            )
        return report

    with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
        # All at once would be as many futures, and reports waiting to be looked at.
        window = _window(plan)
        for first in range(0, len(tasks), window):
            yield from pool.map(read, tasks[first : first + window])


def _window(plan: Plan) -> int:
    """Return how many reports are read at a time.

    A report of a task that compares partial updates has the products of each layer in its range,
    which may be all.
    """
    if not plan.computation.measures:
        return READ_AT_A_TIME
    if not plan.decides_by_layer:
        return SMALL_OBJECT_READERS
    matrices = count_matrices(plan.layout.spans, len(plan.layout.layers))
    return max(
        1, min(SMALL_OBJECT_READERS, PRODUCTS_AT_A_TIME // (matrices * len(plan.contributors) ** 2))
    )


def _checked(report: dict[str, Any]) -> dict[str, Any]:
    """Return a report if it has what is added up of it."""
    sum(report[name] for name in (*SUMMED, "attempt", "is_cold", "peak_mb"))
    return report | {"rejected": [Rejection(**rejection) for rejection in report["rejected"]]}


def _assign(store: S3Store, keys: RoundKeys, plan: Plan, terms: dict[str, Any]) -> None:
    """Decide what clients should do next, from what they said of their training."""
    contributors = plan.contributors
    if plan.stage.groups is not None:
        # In an eager round they are sorted within each group only.
        contributors = sorted(contributors, key=lambda contributor: contributor.client)

    def reports() -> Iterator[tuple[str, Report]]:
        return ((c.client, c.report) for c in contributors if c.report)

    write_assignments(store, keys, parse_assignment_spec(terms), reports)


def _complete(
    store: S3Store, output: Output, parts: Sequence[Part], shards: int
) -> tuple[ObjectVersion, str]:
    """Complete an upload; return its object, and the CRC-64/NVME that S3 keeps of it.

    ``parts`` are those of the tasks' records. If a task ran twice, S3 may have another one.
    """
    key, expected_bytes = output.key, output.header.nbytes + output.nbytes
    _check_parts(output, parts, shards)
    try:
        store.complete_upload(key, output.upload_id, parts)
    except ReplacedPartError:
        held = store.list_parts(key, output.upload_id)
        if held is not None:
            _check_parts(output, held, shards)
            store.complete_upload(key, output.upload_id, held)
    # It may have been completed before, and only the answer was lost.
    found = store.describe(key)
    if found is None or found[0].nbytes != expected_bytes:
        raise StoreError(
            f"{key} has {found[0].nbytes if found else 'no'} bytes, not {expected_bytes}"
        )
    return found


def _check_parts(output: Output, parts: Sequence[Part], shards: int) -> None:
    expected_bytes = output.header.nbytes + output.nbytes
    nbytes = sum(part.nbytes for part in parts)
    if len(parts) != shards or nbytes != expected_bytes:
        raise StoreError(
            f"{output.key}: {len(parts)} parts of {nbytes} bytes were uploaded, "
            f"not {shards} of {expected_bytes}"
        )


def _next_version(store: S3Store, plan: Plan, made: Sequence[ObjectVersion]) -> Version | None:
    """Return the version of the model that the round made, if it applied its update."""
    new = plan.next_model
    if new is None:
        return None
    update, *outputs = plan.outputs
    tensors, *state = (
        StoredTensors(source, output.header.nbytes)
        for source, output in zip(made, outputs, strict=True)
    )
    layout = update.read_layout(store)
    return Version(
        new.server_optimizer.model,
        new.version,
        tensors,
        round_id=plan.round_id,
        optimizer=new.server_optimizer.to_json(),
        steps=new.step,
        state=dict(zip(new.server_optimizer.state, state, strict=True)),
        buffers=names_in(layout, plan.layout.buffers),
    )
