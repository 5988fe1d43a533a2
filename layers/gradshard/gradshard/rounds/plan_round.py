"""Freeze who contributes, cut the update into shards, and start the upload of the result."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from gradshard import planning
from gradshard.agreement import agree
from gradshard.errors import GradshardError, PlanError
from gradshard.keys import RoundKeys
from gradshard.layout import Layout, encode_header
from gradshard.plan import Contributor, Plan, Refusal, weigh
from gradshard.rounds import arrivals
from gradshard.rounds.arrivals import Update
from gradshard.spec import MAX_CLIENTS, RoundSpec
from gradshard.store import Store


class QuorumError(GradshardError):
    """Fewer good updates than the round's ``min_clients``."""


class Aggregator(NamedTuple):
    """How the aggregator function is deployed."""

    memory_mb: int
    architecture: str


class _Entrants(NamedTuple):
    """Who takes part, and who does not."""

    contributors: tuple[Contributor, ...]
    layout: Layout | None
    refused: tuple[Refusal, ...]
    missing: tuple[str, ...]


def plan_round(
    store: Store,
    round_id: str,
    *,
    attempt: int,
    refused: Sequence[Refusal],
    aggregator: Aggregator,
) -> dict[str, Any]:
    """Plan a round; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The round.
    attempt
        0 the first time; one more each time contributors were refused while they were read.
    refused
        Whom the attempt before found to be bad.
    aggregator
        What the tasks will run on.

    Returns
    -------
    dict
        ``status`` ``planned`` with the object that lists the tasks; or ``failed`` with ``error``
        and ``cause``.
    """
    keys = RoundKeys(round_id)
    # Looked at before it is read: if another planning replaces it meanwhile, writing ours fails.
    head = store.head(keys.plan) if attempt else None
    previous = store.get_json(keys.plan)
    if previous is not None and previous["attempt"] >= attempt:
        return _planned(store, keys, Plan.from_json(previous))
    try:
        plan = _make_plan(store, keys, attempt, refused, aggregator, previous)
        if not store.put_json(keys.plan, plan.to_json(), replaces=head.etag if head else None):
            # A planning that runs twice at once is settled here; the loser leaves nothing behind.
            store.abort_upload(keys.result, plan.upload_id)
            plan = Plan.from_json(store.get_json(keys.plan))
        elif previous is not None:
            store.abort_upload(keys.result, previous["upload_id"])
    except GradshardError as error:
        return {"status": "failed", "error": type(error).__name__, "cause": str(error)}
    return _planned(store, keys, plan)


def _planned(store: Store, keys: RoundKeys, plan: Plan) -> dict[str, Any]:
    # Always those of the plan in force, whoever made it and whatever was killed since.
    store.put_json(keys.tasks, plan.tasks())
    return {
        "status": "planned",
        "attempt": plan.attempt,
        "shards": len(plan.shards),
        "tasks": {"bucket": store.bucket, "key": keys.tasks},
    }


def _make_plan(
    store: Store,
    keys: RoundKeys,
    attempt: int,
    refused: Sequence[Refusal],
    aggregator: Aggregator,
    previous: dict[str, Any] | None,
) -> Plan:
    opened = arrivals.read_spec(store, keys)
    if opened is None:
        raise PlanError(f"round {keys.round_id!r} was never opened: {keys.spec} is missing")
    spec, record = opened
    if previous is None:
        entrants = _admit(store, keys, spec)
    else:
        entrants = _readmit(Plan.from_json(previous), refused)
    _check_quorum(spec, entrants)
    return _frozen(store, keys, attempt, spec, record["opened_at"], entrants, aggregator, previous)


def _admit(store: Store, keys: RoundKeys, spec: RoundSpec) -> _Entrants:
    """Check every update that is there, and find out which layout the round has."""
    there = arrivals.arrived(store, keys)
    entitled = [client for client in there if spec.expects(client)]
    refused = [
        Refusal(client, f"the round takes {MAX_CLIENTS} clients, and others come before this one")
        for client in entitled[MAX_CLIENTS:]
    ]
    updates: dict[str, Update] = {}
    for update in arrivals.check_updates(store, keys, entitled[:MAX_CLIENTS]):
        if isinstance(update, Update):
            updates[update.client] = update
        elif update is not None:
            refused.append(update)
    layouts = {client: update.header.layout for client, update in updates.items()}
    layout, differences = agree(layouts, spec.layout)
    for client, difference in differences.items():
        source = updates.pop(client).source
        refused.append(Refusal(client, f"{source.key}: {difference}", source.etag))
    for refusal in refused:
        arrivals.refuse(store, keys, refusal)
    contributors = [
        Contributor(
            client=update.client,
            source=update.source,
            samples=update.samples,
            weight=0.0,
            runs=layout.runs_in(update.header.layout, update.header.data_offset),
        )
        for update in updates.values()
        if layout is not None
    ]
    return _Entrants(weigh(contributors), layout, tuple(refused), spec.missing(there))


def _readmit(previous: Plan, refused: Sequence[Refusal]) -> _Entrants:
    """Leave out who was refused; versions frozen once stay frozen, and nobody is added."""
    out = {refusal.client for refusal in refused}
    return _Entrants(
        weigh([c for c in previous.contributors if c.client not in out]),
        None,
        previous.refused + tuple(refused),
        previous.missing,
    )


def _check_quorum(spec: RoundSpec, entrants: _Entrants) -> None:
    count = len(entrants.contributors)
    if count >= spec.min_clients:
        return
    text = f"{count} good updates, but min_clients is {spec.min_clients}"
    if entrants.missing:
        text += f"; missing: {', '.join(entrants.missing)}"
    if entrants.refused:
        reasons = "; ".join(f"{refusal.client}: {refusal.reason}" for refusal in entrants.refused)
        text += f"; refused: {reasons}"
    raise QuorumError(text)


def _frozen(
    store: Store,
    keys: RoundKeys,
    attempt: int,
    spec: RoundSpec,
    opened_at: str,
    entrants: _Entrants,
    aggregator: Aggregator,
    previous: dict[str, Any] | None,
) -> Plan:
    if previous is not None:
        plan = Plan.from_json(previous)
        nbytes, spans = plan.nbytes, plan.spans
        tensors, header_bytes = plan.tensors, plan.header_bytes
    else:
        layout = entrants.layout
        if layout is None:
            raise PlanError("no update has arrived")
        nbytes, spans, tensors = layout.nbytes, layout.spans, len(layout.tensors)
        header = encode_header(layout, {})
        header_bytes = len(header)
        store.put_bytes(keys.layout, header, content_type="application/octet-stream")
    projection, notes = planning.choose(
        nbytes,
        len(entrants.contributors),
        memory_mb=aggregator.memory_mb,
        architecture=aggregator.architecture,
        shards=spec.shards,
        within=spec.within,
        plan_bytes=sum(64 * len(c.runs) + 512 for c in entrants.contributors) + 64 * len(spans),
    )
    upload_id = store.create_upload(keys.result, {"gradshard-round": keys.round_id})
    return Plan(
        round_id=keys.round_id,
        attempt=attempt,
        contributors=entrants.contributors,
        spans=spans,
        nbytes=nbytes,
        tensors=tensors,
        header_bytes=header_bytes,
        upload_id=upload_id,
        shards=tuple(planning.cut_shards(spans, nbytes, projection.shards)),
        allow_nonfinite=spec.allow_nonfinite,
        refused=entrants.refused,
        missing=entrants.missing,
        notes=tuple(notes),
        projected=projection.to_json(),
        opened_at=opened_at,
        planned_at=datetime.now(UTC).isoformat(),
    )
