"""The first plan of a round."""

from dataclasses import replace

from gradshard_core.planning.plan import Participants, Plan, Stage
from gradshard_core.rounds import admission, inbox
from gradshard_core.rounds.eager_stages import clients_in, divide_groups
from gradshard_core.rounds.plan_assembly import assemble, write_layout
from gradshard_core.rounds.plan_context import PlanContext


def first_plan(context: PlanContext) -> Plan:
    """Plan a round, or the first stage of an eager one.

    Raises
    ------
    QuorumError
        There are too few good updates.
    PlanError
        They cannot be aggregated within the limits.
    """
    spec = context.spec
    addresses = inbox.addresses(context)
    answered = (
        admission.answered_clients(context.store, context.keys, spec)
        if addresses is None
        else sorted(addresses)
    )
    stage, clients = Stage(context.request.entered_at), answered
    if spec.eager:
        groups, awaited = divide_groups(context, answered, range(len(spec.groups())))
        stage = replace(stage, groups=groups, awaited=awaited)
        clients = clients_in(spec, groups, answered)
    settled, whose = context.model_layout()
    admitted = admission.admit(
        context.store,
        context.keys,
        spec,
        clients,
        settled=settled,
        whose=whose,
        addresses=addresses,
    )
    missing = () if stage.awaited else spec.missing(answered)
    if not stage.awaited:
        admission.check_quorum(admitted, spec, missing)
    layout = write_layout(context, admitted.layout)
    plan = assemble(context, admitted.contributors, layout, admitted.coverage)
    participants = Participants(plan.contributors, admitted.rejected, missing)
    return replace(plan, stage=stage, participants=participants)
