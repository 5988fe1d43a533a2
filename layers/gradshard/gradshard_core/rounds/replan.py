"""Plan a round again: after it was measured, or without updates that turned out to be bad."""

from collections.abc import Sequence
from dataclasses import replace

from gradshard_core.errors import PlanError
from gradshard_core.limits import state_machine_history
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.records.plan_and_manifest import read_replan
from gradshard_core.rounds import quorum
from gradshard_core.rounds.contributors import Admission
from gradshard_core.rounds.plan_assembly import assemble
from gradshard_core.rounds.plan_context import PlanContext
from gradshard_core.rounds.robust_measurement import decide, last_measurement
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.layers import Coverage


def replan(context: PlanContext, previous: Plan) -> Plan:
    """Plan a round again with the remaining contributors, in the versions that were frozen.

    Raises
    ------
    QuorumError
        Too few contributors remain.
    PlanError
        They cannot be aggregated within the limits, or the round was planned too often.
    """
    rejected = _read_rejections(context, previous)
    _check_attempts(context, previous, rejected)
    bad = {rejection.client for rejection in rejected}
    pool = sorted(previous.good, key=lambda contributor: contributor.client)
    remaining = Admission(
        tuple(c for c in pool if c.client not in bad),
        None,
        (*previous.participants.rejected, *rejected),
        {client: held for client, held in _coverage(previous).items() if client not in bad},
    )
    missing = previous.participants.missing
    quorum.check_quorum(remaining, context.spec, missing)
    measured, decided = last_measurement(previous, rejected), None
    if measured is not None and remaining.contributors:
        layers = previous.layout.layers
        decided = decide(context, remaining.contributors, measured, layers, remaining.coverage)
    plan = assemble(context, remaining.contributors, previous.layout, remaining.coverage, decided)
    return replace(
        plan,
        participants=replace(plan.participants, rejected=remaining.rejected, missing=missing),
    )


def _coverage(plan: Plan) -> dict[str, Coverage]:
    """Return which layers of partial updates each contributor has; nothing of whole ones."""
    layers = plan.computation.layers
    if not layers:  # contributors of a large round are read but once
        return {}
    covered = {
        contributor.client: tuple(layer.weights[index] is not None for layer in layers)
        for index, contributor in enumerate(plan.contributors)
    }
    # A plan has no weights of those that a rule left out, but where their layers are.
    covered |= {
        contributor.client: tuple(layer.is_in(contributor.runs) for layer in plan.layout.layers)
        for contributor in plan.participants.left_out
    }
    return covered


def _read_rejections(context: PlanContext, plan: Plan) -> tuple[Rejection, ...]:
    """Read the contributors that the tasks of a plan found to be bad.

    The rejections that clients read are of any upload, so they may be of an older or a later one
    than the version in the plan.
    """
    written = read_replan(context.store, context.keys, plan.attempt)
    if written is None:
        raise PlanError(f"{context.keys.replan(plan.attempt)} is missing")
    return tuple(written)


def _check_attempts(context: PlanContext, previous: Plan, rejected: Sequence[Rejection]) -> None:
    """Raise if rejected contributors have had the round planned again too often."""
    most = state_machine_history.most_attempts(len(previous.levels))
    if context.request.attempt < most or not rejected:
        return
    everybody = [*previous.participants.rejected, *rejected]
    names = quorum.first_of([rejection.client for rejection in everybody], ", ")
    others = len(previous.contributors) - len(rejected)
    raise PlanError(
        f"round {context.round_id!r} was planned {most} times, and each "
        f"time updates were rejected while they were read, {len(everybody)} in all: "
        f"{names}; the last: {rejected[0].reason}. {_advice(context.spec, others)}"
    )


def _advice(spec: RoundSpec, others: int) -> str:
    """Say what can be done with the updates that were not rejected."""
    if spec.inbox is not None:
        return f"The training repeats the round, and takes the {others} others first"
    if spec.dp is not None:
        return (
            f"Open another round for the {others} others, by their ids (--client): they have to "
            "send again, since updates to a private round serve for that round alone"
        )
    return (
        f"Average the {others} others with another round, opened for them by their ids (--client, "
        "--updates-from)"
    )
