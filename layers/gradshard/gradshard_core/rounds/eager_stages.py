"""The stages of an eager round: the groups to add now, and the plan of a later stage."""

from collections.abc import Sequence
from dataclasses import replace

from gradshard_core.errors import PlanError
from gradshard_core.limits import state_machine_history
from gradshard_core.planning.client_weights import weigh
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Level, Participants, Stage
from gradshard_core.rounds import contributors, quorum, resume_round, waiting_record
from gradshard_core.rounds.plan_assembly import assemble, write_layout
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.specs.round_spec import RoundSpec


def divide_groups(
    context: PlanContext, answered: Sequence[str], awaited: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Divide the awaited groups into those to add now and those still awaited.

    Parameters
    ----------
    context
        The inputs of the planning.
    answered
        The clients that have sent an update.
    awaited
        The groups that no stage has added yet.
    """
    if context.request.reason == waiting_record.DEADLINE:
        return tuple(awaited), ()
    ready = resume_round.ready_groups(context.spec, answered, awaited)
    return tuple(ready), tuple(number for number in awaited if number not in ready)


def clients_in(spec: RoundSpec, groups: Sequence[int], answered: Sequence[str]) -> list[str]:
    """Return the clients of some groups that have answered."""
    members, present = spec.groups(), set(answered)
    return [client for number in groups for client in members[number] if client in present]


def next_stage(context: PlanContext, previous: Plan) -> Plan:
    """Plan the next stage of an eager round.

    Raises
    ------
    QuorumError
        No group is awaited any more, and there are too few good updates.
    PlanError
        The updates cannot be aggregated within the limits, or there were too many stages.
    """
    spec = context.spec
    _check_stages(context, previous)
    answered = contributors.answered_clients(context.store, context.keys, spec)
    groups, awaited = divide_groups(context, answered, previous.stage.awaited)
    settled, whose = context.model_layout()
    admitted = contributors.admit(
        context.store,
        context.keys,
        spec,
        clients_in(spec, groups, answered),
        settled=settled,
        whose=whose,
        held=previous.contributors,
    )
    admitted = admitted._replace(
        contributors=(*previous.contributors, *admitted.contributors),
        rejected=(*previous.participants.rejected, *admitted.rejected),
    )
    missing = () if awaited else spec.missing(answered)
    with quorum.telling_if_it_fails(context.store, context.keys, admitted.rejected):
        if not awaited:
            quorum.check_quorum(admitted, spec, missing)
        if previous.layout.nbytes:
            plan = _extend(spec, previous, groups, admitted.contributors)
        else:
            # All earlier updates were rejected, so there is no layout and nothing was added yet.
            layout = write_layout(context, admitted.layout)
            plan = assemble(context, admitted.contributors, layout, admitted.coverage)
    return replace(
        plan,
        stage=Stage(context.request.entered_at, previous.stage.number + 1, groups, awaited),
        participants=Participants(plan.contributors, admitted.rejected, missing),
    )


def _check_stages(context: PlanContext, previous: Plan) -> None:
    """Raise if the execution's history would become too long."""
    if previous.stage.number >= state_machine_history.MAX_STAGES:
        raise PlanError(
            f"round {context.round_id!r} was resumed {state_machine_history.MAX_STAGES} times, and "
            f"{len(previous.stage.awaited)} groups are still awaited; its execution's history "
            "would become too long. Average what was sent with another round (--updates-from)"
        )


def _extend(
    spec: RoundSpec, previous: Plan, groups: Sequence[int], contributors: tuple[Contributor, ...]
) -> Plan:
    """Append the contributors of some groups to the plan.

    The earlier contributors keep their numbers, so that a task that runs twice finds its inputs.
    """
    members, bounds = spec.groups(), list(previous.levels[0].groups)
    first = len(previous.contributors)
    for number in groups:
        stop = first + sum(c.client in members[number] for c in contributors[first:])
        bounds[number] = (first, stop)
        first = stop
    lowest = Level(tuple(bounds), previous.levels[0].order)
    return replace(
        previous,
        computation=replace(previous.computation, levels=(lowest, *previous.levels[1:])),
        participants=Participants(weigh(contributors, spec.weights)),
    )
