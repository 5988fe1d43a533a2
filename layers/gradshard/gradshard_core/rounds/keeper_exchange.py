"""The wait of a masked round for its keeper: the request, and what becomes of the answer."""

import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from gradshard_core.errors import KeeperError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import state_machine_history
from gradshard_core.mask_keeper.request import Refusal, Request, SealedSeed
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Participants, Rejection
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds import quorum
from gradshard_core.rounds.contributors import Admission
from gradshard_core.rounds.plan_assembly import assemble
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import Masking
from gradshard_core.specs.round_spec import RoundSpec

NO_KEEPER: Final = (
    "this stack has no mask keeper: deploy it with KeeperBucket, the bucket of the keeper's stack"
)


def has_keeper() -> bool:
    """Return whether this stack was deployed with a mask keeper."""
    return bool(os.environ.get("GRADSHARD_KEEPER_BUCKET"))


def send_request(store: S3Store, keeper: S3Store | None, plan: Plan) -> None:
    """Send the keeper the sealed seeds of the contributors; twice is once.

    Raises
    ------
    KeeperError
        The stack has no keeper.
    """
    if keeper is None:
        raise KeeperError(NO_KEEPER)
    opened = read_spec(store, RoundKeys(plan.round_id))
    if opened is None:
        raise KeeperError(f"the spec of round {plan.round_id!r} is missing")
    request = request_of(plan, opened[0])
    keeper.put_json(request.key, request.to_json())


def request_of(plan: Plan, spec: RoundSpec) -> Request:
    """Return what the keeper is asked in a round."""
    masking = _masking(plan)
    return Request(
        plan.round_id,
        () if isinstance(spec.clients, int) else tuple(spec.clients),
        spec.min_clients,
        masking.encoding,
        tuple(
            SealedSeed(c.client, c.share.sealed_seed, c.share.signature)
            for c in plan.contributors
            if c.share is not None
        ),
    )


def deadline_of(plan: Plan, spec: RoundSpec) -> datetime:
    """Return when the round stops waiting for the keeper: its timeout after it asked."""
    return datetime.fromisoformat(plan.planned_at) + timedelta(seconds=spec.timeout)


def next_plan(context: PlanContext, previous: Plan) -> Plan:
    """Return the plan after a wait: with the answer, or one that waits on.

    If the keeper names clients whose seeds cannot be used, the plan asks again without them: it has
    answered nothing yet, so it answers for the rest.

    Raises
    ------
    KeeperError
        The keeper has refused, or has not answered in time.
    QuorumError
        Too few contributors remain.
    UpdateError
        The sum of the counts cannot be that of the contributors.
    """
    store, keys = context.store, context.keys
    number = previous.stage.number + 1
    if number > state_machine_history.MAX_STAGES:
        raise KeeperError(f"the round was resumed {number} times, and has no answer to go on with")
    stage = replace(previous.stage, number=number, entered_at=context.request.entered_at)
    answered = _with_answer(store, keys, previous)
    if answered is not None:
        return replace(answered, stage=stage)
    refusal = store.get_json(keys.refusal, Refusal.from_json)
    asked = request_of(previous, context.spec).digest
    if refusal is not None and refusal.request == asked:
        # A name that is no contributor's would have the round ask the same again, and again.
        if not refusal.bad.keys() & {c.client for c in previous.contributors}:
            raise KeeperError(f"the mask keeper refused: {refusal.reason}")
        return replace(_without_bad(context, previous, refusal), stage=stage)
    deadline = deadline_of(previous, context.spec)
    if datetime.now(UTC) >= deadline:
        raise KeeperError(
            f"the mask keeper has not answered by {deadline:%Y-%m-%d %H:%M:%S} UTC, "
            f"{context.spec.timeout} seconds after it was asked for the sum of "
            f"{len(previous.contributors)} masks. Clients must train anew and send to a new round: "
            "the keeper may still answer this one"
        )
    return replace(previous, stage=stage)


def _with_answer(store: S3Store, keys: RoundKeys, plan: Plan) -> Plan | None:
    """Return the plan with the keeper's answer, if that is there, and with the sum of counts."""
    masking = _masking(plan)
    answer = store.head(keys.masks)
    if answer is None:
        return None
    expected = masking.answer_bytes
    if answer.nbytes != expected:
        raise KeeperError(
            f"{keys.masks} has {answer.nbytes} bytes, not {expected}: the mask keeper is of "
            "another version, or does not keep to the protocol"
        )
    last = store.get_range(answer, expected - masking.terms.ring_bits // 8, expected)
    counts = [c.share.masked_count for c in plan.contributors if c.share is not None]
    total = masking.total_of(counts, last)
    return replace(plan, masking=masking._replace(answer=answer, total=total))


def _without_bad(context: PlanContext, previous: Plan, refusal: Refusal) -> Plan:
    etags = {c.client: c.source.etag for c in previous.contributors}
    rejected = tuple(
        Rejection(client, f"the mask keeper: {reason}", etags.get(client, ""))
        for client, reason in sorted(refusal.bad.items())
    )
    remaining = Admission(
        tuple(c for c in previous.contributors if c.client not in refusal.bad),
        None,
        (*previous.participants.rejected, *rejected),
        {},
    )
    missing = previous.participants.missing
    with quorum.telling_if_it_fails(context.store, context.keys, rejected):
        quorum.check_quorum(remaining, context.spec, missing)
        plan = assemble(context, remaining.contributors, previous.layout, {})
    participants = Participants(plan.contributors, remaining.rejected, missing)
    return replace(plan, participants=participants)


def _masking(plan: Plan) -> Masking:
    if plan.masking is None:
        raise TypeError(f"round {plan.round_id!r} is not masked")
    return plan.masking


def has_answered(store: S3Store, keys: RoundKeys, plan: Plan, spec: RoundSpec) -> bool:
    """Return whether the keeper has answered or refused what it was asked last."""
    if store.head(keys.masks) is not None:
        return True
    refusal = store.get_json(keys.refusal, Refusal.from_json)
    return refusal is not None and refusal.request == request_of(plan, spec).digest
