"""The first plan of a round, and the one that follows if tasks had to read the headers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from gradshard_core.aggregation.reordered_reads import ADVICE
from gradshard_core.costs.large_round_limits import READ_AT_ONCE
from gradshard_core.errors import PlanError
from gradshard_core.formats.long_lists import PIECE
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Runs
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
    Rejection,
    Stage,
)
from gradshard_core.rounds import (
    arrivals,
    buffered_round,
    contributors,
    quorum,
    rejections,
    waiting_record,
)
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.contributors import Admission
from gradshard_core.rounds.eager_stages import clients_in, divide_groups
from gradshard_core.rounds.header_survey import Facts, read_survey
from gradshard_core.rounds.plan_assembly import assemble, write_layout
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.specs.round_spec import RoundSpec


def first_plan(context: PlanContext) -> Plan:
    """Plan a round, or the first stage of an eager one.

    If there are too many updates, the plan's tasks read their headers first.

    Raises
    ------
    QuorumError
        There are too few good updates.
    PlanError
        They cannot be aggregated within the limits.
    """
    spec = context.spec
    addresses = buffered_round.addresses(context)
    answered = _known_to_have_answered(context) if addresses is None else sorted(addresses)
    if answered is None:
        answered = contributors.answered_clients(context.store, context.keys, spec)
    clients, rejected = contributors.limit_to_capacity(spec, answered)
    if len(clients) > READ_AT_ONCE:
        return _survey(context, clients, rejected, spec.missing(answered))
    stage = Stage(context.request.entered_at)
    if spec.eager:
        groups, awaited = divide_groups(context, answered, range(len(spec.groups())))
        stage = replace(stage, groups=groups, awaited=awaited)
        clients = clients_in(spec, groups, answered)
    settled, whose = context.model_layout()
    admitted = contributors.admit(
        context.store,
        context.keys,
        spec,
        clients,
        settled=settled,
        whose=whose,
        rejected=rejected,
        addresses=addresses,
    )
    # An update may have been deleted.
    found = {c.client for c in admitted.contributors} | {r.client for r in admitted.rejected}
    missing = () if stage.awaited else spec.missing(sorted(found))
    return _plan(context, admitted, stage, missing, addresses)


def _known_to_have_answered(context: PlanContext) -> list[str] | None:
    """Return the expected clients if the round goes on because all have answered.

    That saves a listing. None if only a listing can tell who has.
    """
    spec = context.spec
    if isinstance(spec.clients, int) or spec.enough_clients or spec.updates_from or spec.eager:
        return None
    if context.request.reason != waiting_record.COMPLETE or spec.expected > READ_AT_ONCE:
        return None
    return sorted(spec.clients)


def plan_surveyed(context: PlanContext, previous: Plan) -> Plan:
    """Plan a round by what tasks have read of its updates.

    Raises
    ------
    QuorumError, PlanError
        As :func:`first_plan`; or a task has not reported.
    """
    sent = arrivals.sent_to(context.keys, context.spec)
    addresses: dict[str, Address] = {}
    surveyed: dict[str, Facts] = {}
    for contributor, facts in read_survey(context.store, context.keys, previous):
        addresses[contributor.client] = Address(sent, contributor.source)
        surveyed[contributor.client] = facts
    settled, whose = context.model_layout()
    admitted = contributors.admit(
        context.store,
        context.keys,
        context.spec,
        list(addresses),
        settled=settled,
        whose=whose,
        rejected=previous.participants.rejected,
        addresses=addresses,
        surveyed=surveyed,
    )
    stage, missing = Stage(context.request.entered_at), previous.participants.missing
    return _plan(context, admitted, stage, missing, addresses)


def _plan(
    context: PlanContext,
    admitted: Admission,
    stage: Stage,
    missing: Sequence[str],
    addresses: Mapping[str, Address] | None,
) -> Plan:
    untold = admitted.rejected if addresses is None else ()
    with quorum.telling_if_it_fails(context.store, context.keys, untold):
        if not stage.awaited:
            quorum.check_quorum(admitted, context.spec, missing)
        layout = write_layout(context, admitted.layout)
        try:
            plan = assemble(context, admitted.contributors, layout, admitted.coverage)
        except PlanError as error:
            remaining = _without_disordered(context, admitted, addresses, str(error))
            if remaining is None:
                raise
            admitted = remaining
            plan = assemble(context, admitted.contributors, layout, admitted.coverage)
    participants = Participants(plan.contributors, admitted.rejected, missing)
    return replace(plan, stage=stage, participants=participants)


def _without_disordered(
    context: PlanContext,
    admitted: Admission,
    addresses: Mapping[str, Address] | None,
    error: str,
) -> Admission | None:
    """Reject updates in another order than the round's, for which tasks have no memory or time.

    Under a rule that holds all inputs, one such update costs a buffer for each input: one client
    could end the round for all.

    Returns
    -------
    Admission or None
        The others; None if there are no such updates, or too few others, or if clients were drawn
        in secret: what one of them adds must not depend on whether another was drawn.
    """
    if context.spec.is_drawn:
        return None
    disordered = [c for c in admitted.contributors if not c.runs.are_in_order]
    kept = [c for c in admitted.contributors if c.runs.are_in_order]
    if not disordered or len(kept) < context.spec.min_clients:
        return None
    rejected = [
        Rejection(
            c.client,
            f"{c.source.key}: its tensors stand in another order than the round's, and with it "
            f"{error}; {ADVICE}",
            c.source.etag,
        )
        for c in disordered
    ]
    if addresses is not None:  # as in admit
        told = context.keys if context.spec.inbox is None else None
        rejections.reject_all(
            context.store, rejected, lambda client: told or addresses[client].keys
        )
    return admitted._replace(
        contributors=tuple(kept),
        rejected=(*admitted.rejected, *rejected),
        coverage={c.client: admitted.coverage[c.client] for c in kept if admitted.coverage},
    )


def _survey(
    context: PlanContext,
    clients: Sequence[str],
    rejected: tuple[Rejection, ...],
    missing: Sequence[str],
) -> Plan:
    """Freeze the updates of clients in a plan whose tasks read their headers."""
    sent = arrivals.sent_to(context.keys, context.spec)
    newest = arrivals.newest_updates(context.store, sent, frozenset(clients))
    plan = _survey_plan(context.keys, context.spec, newest, Stage(context.request.entered_at))
    return replace(
        plan,
        participants=replace(plan.participants, rejected=rejected, missing=missing),
        attempt=context.request.attempt,
        opened_at=context.opened_at,
        planned_at=datetime.now(UTC).isoformat(),
    )


def _survey_plan(
    keys: RoundKeys, spec: RoundSpec, sources: Mapping[str, ObjectVersion], stage: Stage
) -> Plan:
    """Return a plan that freezes updates, and whose tasks read their headers.

    Parameters
    ----------
    keys, spec
        The round.
    sources
        The newest versions of the updates, by client, in the order of the clients.
    stage
        The stage that begins.
    """
    none = Runs(())
    found = tuple(Contributor(c, source, 0, 0.0, none) for c, source in sources.items())
    sizes = [min(PIECE, len(found) - first) for first in range(0, len(found), PIECE)]
    return Plan(
        keys.round_id,
        Participants(found, samples=0),
        Computation((Level.of_sizes(sizes),), weights=spec.weights, surveys=True),
        PlannedLayout(),
        stage=stage,
        assignments=spec.assignments and spec.assignments.to_json(),
    )
