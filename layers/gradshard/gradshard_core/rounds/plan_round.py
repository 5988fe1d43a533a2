"""Plan a round: freeze the contributors, divide the work into tasks, create the uploads."""

from typing import Any

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import PlanError, StoreError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import plan_to_json
from gradshard_core.records.manifest_status import FAILED
from gradshard_core.records.plan_and_manifest import piece_writer, read_manifest, read_plan
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds.eager_stages import next_stage
from gradshard_core.rounds.first_plan import first_plan, plan_surveyed
from gradshard_core.rounds.keeper_exchange import next_plan, send_request
from gradshard_core.rounds.plan_context import PlanContext, PlanRequest, read_context
from gradshard_core.rounds.rejections import reject_all, reject_overlooked, withdraw_outdated
from gradshard_core.rounds.replan import replan
from gradshard_core.rounds.waiting_record import end_waiting, waits_once
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec


def plan_round(
    store: S3Store,
    round_id: str,
    request: PlanRequest,
    *,
    aggregator: LambdaConfig,
    keeper: S3Store | None = None,
) -> dict[str, Any]:
    """Plan a round, or the next stage of an eager one; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    request
        The request of the state machine.
    aggregator
        The functions that the tasks will run on.
    keeper
        The bucket of the mask keeper, if the stack has one.

    Returns
    -------
    dict
        ``attempt``, M, and for each level the object that lists its tasks.

    Raises
    ------
    QuorumError
        There are too few good updates.
    PlanError
        They cannot be aggregated within the limits, or the round has ended meanwhile.
    KeeperError
        The mask keeper has refused, or has not answered in time.
    """
    keys = RoundKeys(round_id)
    store.meter.take()
    # The ETag is read before the plan: if another planning replaces the plan in between, writing
    # ours fails.
    head = store.head(keys.plan)
    previous = read_plan(store, keys) if head else None
    if previous is not None and _answers(previous, request):
        # The call that wrote the plan may have died before it looked: abort_round, which saw no
        # plan, has refunded a private round.
        ended = read_manifest(store, keys)
        if ended is not None and ended["status"] == FAILED:
            raise _given_up(store, keys, previous)
        opened = read_spec(store, keys)
        spec = opened and opened[0]
        _tell_rejected(store, keys, spec, previous, None)
        return _hand_out(store, keys, spec, previous, request, aggregator, keeper)
    context = read_context(store, keys, request, aggregator)
    if request.attempt == 0 and waits_once(context.spec):
        # Before the plan is there: who arrives from now on looks for it.
        end_waiting(store, keys)
    plan = _make_plan(context, previous)
    written = plan_to_json(plan, piece_writer(store, keys))
    is_ours = store.put_json(keys.plan, written, replaces=head.etag if head else None)
    if is_ours and previous is not None:
        _abort_uploads(store, previous, unless_in=plan)
    if not is_ours:
        # Two plannings ran at once, and the other one's plan was written first.
        _abort_uploads(store, plan, unless_in=previous)
        plan = _read_plan(store, keys)
    _tell_rejected(store, keys, context.spec, plan, previous)
    # abort_round writes the manifest and then looks for uploads. Here it is the other way round, so
    # that whichever function comes later sees what the other one did.
    if store.head(keys.manifest) is not None:
        raise _given_up(store, keys, plan)
    return _hand_out(store, keys, context.spec, plan, request, aggregator, keeper)


def _given_up(store: S3Store, keys: RoundKeys, plan: Plan) -> PlanError:
    """Abort the uploads of a plan that was written too late; return the error that says so."""
    _abort_uploads(store, plan)
    return PlanError(f"round {keys.round_id!r} has ended: there is nothing to plan")


def _tell_rejected(
    store: S3Store, keys: RoundKeys, spec: RoundSpec | None, plan: Plan, previous: Plan | None
) -> None:
    """Tell the senders of updates that a plan leaves out, once it is written.

    Those whose updates are frozen in an earlier plan, or taken from the inboxes of a buffered
    training, were told before (:func:`gradshard_core.rounds.contributors.admit`).
    """
    if plan.attempt > 0 or spec is None or spec.inbox is not None:
        return
    told = {found.client for found in previous.participants.rejected} if previous else set()
    untold = [found for found in plan.participants.rejected if found.client not in told]
    reject_all(store, untold, lambda _: keys)


def _hand_out(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec | None,
    plan: Plan,
    request: PlanRequest,
    aggregator: LambdaConfig,
    keeper: S3Store | None,
) -> dict[str, Any]:
    """Tell clients that were overlooked, and write the tasks of a plan that is written."""
    # The call before may have been killed between its uploads and its plan. Or S3 began an upload,
    # its answer was lost, and the request was sent again.
    is_doubtful = request.is_repeated or store.meter.take().retries > 0
    if is_doubtful and plan.computation.has_outputs:
        for output in plan.outputs:
            store.abort_open_uploads(output.key, but=output.upload_id)
    if request.is_repeated and spec is not None and spec.inbox is None:
        withdraw_outdated(store, keys, plan)
    if plan.attempt == 0 and plan.is_complete and spec is not None:
        if waits_once(spec):
            # Again: a late call of open_round may have looked for the plan before it was there.
            end_waiting(store, keys)
        reject_overlooked(store, keys, spec, plan)
    return _write_tasks(store, keys, plan, aggregator, keeper)


def _answers(plan: Plan, request: PlanRequest) -> bool:
    """Return whether a plan is the one that a request asks for, or a later one."""
    if plan.attempt == request.attempt:
        # Times in ISO 8601: an earlier one is that of a repetition that came late.
        return plan.is_complete or plan.stage.entered_at >= request.entered_at
    return plan.attempt > request.attempt


def _make_plan(context: PlanContext, previous: Plan | None) -> Plan:
    if previous is None:
        return first_plan(context)
    if previous.computation.surveys:
        return plan_surveyed(context, previous)
    if context.request.attempt > previous.attempt:
        return replan(context, previous)
    if previous.awaits_keeper:
        return next_plan(context, previous)
    return next_stage(context, previous)


def _read_plan(store: S3Store, keys: RoundKeys) -> Plan:
    plan = read_plan(store, keys)
    if plan is None:
        raise StoreError(f"{keys.plan} is missing, and was there a moment ago")
    return plan


def _abort_uploads(store: S3Store, plan: Plan, *, unless_in: Plan | None = None) -> None:
    """Abort the uploads of a plan, unless another plan has the same ones."""
    if not plan.computation.has_outputs:
        return
    if unless_in is not None and unless_in.upload_id == plan.upload_id:
        return
    for output in plan.outputs:
        store.abort_upload(output.key, output.upload_id)


def _write_tasks(
    store: S3Store,
    keys: RoundKeys,
    plan: Plan,
    aggregator: LambdaConfig,
    keeper: S3Store | None,
) -> dict[str, Any]:
    """Write each level's tasks; return the first level with the next one nested in it.

    A plan that waits for the mask keeper has none yet, and asks it.

    They are written anew even if the plan exists: the function that made it may have been killed
    before it wrote them.
    """
    if plan.awaits_keeper:
        send_request(store, keeper, plan)
    written: list[dict[str, Any]] = []
    for level, tasks in enumerate(plan.next_tasks()):
        items = [
            {"round": plan.round_id, "attempt": plan.attempt, "task": task._asdict()}
            for task in tasks
        ]
        batches = [
            {"tasks": items[first : first + aggregator.batch]}
            for first in range(0, len(items), aggregator.batch)
        ] or [{"tasks": []}]  # one batch of none: AWS documents no map over an empty object
        store.put_json(keys.tasks(level), batches)
        written.append({"bucket": store.bucket, "key": keys.tasks(level)})
    # Nested, so that the state machine goes on to the next level without a counter.
    following: dict[str, Any] = {}
    for tasks in reversed(written):
        following = {
            "tasks": tasks,
            "concurrency": aggregator.concurrency // aggregator.batch,
            "next": following,
        }
    return {"attempt": plan.attempt, "shards": plan.computation.shards, **following}
