"""Open a round: check its terms, keep the callback token, schedule the deadline."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from gradshard_core.aggregation import batchnorm_buffers
from gradshard_core.errors import GradshardError, RoundExistsError, SpecError, StoreError
from gradshard_core.formats.long_lists import StoredList
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.records import model_registry, privacy_ledger
from gradshard_core.records.model_registry import Version
from gradshard_core.records.plan_and_manifest import piece_reader, read_plan
from gradshard_core.records.training_state import read_state, read_training_spec, synchronous_round
from gradshard_core.rounds import aws_requests, keeper_exchange, resume_round, waiting_record
from gradshard_core.rounds.updates_of_other_rounds import check_source
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import check_layout
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import check_averaged, check_compared, parse_new_spec
from gradshard_core.stragglers.layers import layers_of


def open_round(
    store: S3Store,
    round_id: str,
    fields: Mapping[str, Any],
    *,
    started: str,
    token: str,
    has_keeper: bool = False,
) -> dict[str, Any]:
    """Open a round, or let one wait again: for a group of clients, or its keeper; safe to repeat.

    Terms that make no sense fail the waiting execution with their :class:`GradshardError`.

    Parameters
    ----------
    store
        The bucket.
    round_id
        The id of the round, which is the name of the execution.
    fields
        The spec as the execution's input gives it.
    started
        The start of the execution, ISO 8601.
    token
        With which the execution is resumed.
    has_keeper
        Whether the stack has a mask keeper.
    """
    try:
        keys = RoundKeys(round_id)
        spec = parse_new_spec(fields, piece_reader(store, keys.expected))
        if spec.masked is not None and not has_keeper:
            raise SpecError(f"masked: {keeper_exchange.NO_KEEPER}")
        deadline_at = _write_spec(store, keys, spec, datetime.fromisoformat(started))
    except StoreError:
        raise  # no fault of the terms: the machine tries again
    except GradshardError as error:
        aws_requests.give_up(token, type(error).__name__, str(error))
        return {"round": round_id, "status": "rejected", "reason": str(error)}
    terms = spec if waiting_record.waits_once(spec) else None
    tokens = waiting_record.keep_token(store, keys, token, terms)
    if terms:
        waiting_record.end_if_over(store, keys)  # the machine may have taken this call for dead
    plan = read_plan(store, keys) if spec.masked is not None else None
    if plan is not None:
        return _await_keeper(store, keys, spec, plan, tokens)
    aws_requests.schedule_deadline(round_id, deadline_at, tokens)
    # Updates may have come before the spec was there to receive them; and an eager round waits
    # again after each group, maybe beyond its deadline.
    if spec.eager and store.head(keys.deadline) is not None:
        resumed = waiting_record.resume(store, keys, waiting_record.DEADLINE)
    else:
        resumed = resume_round.resume_if_due(store, keys, spec)
    return {"round": round_id, "status": "opened", "resumed": resumed}


def check_rule_of_model(store: S3Store, spec: RoundSpec, newest: Version) -> None:
    """Check that the rule of a round takes the updates of a model.

    Raises
    ------
    SpecError
        It does not.
    """
    if spec.server_optimizer is None or (spec.averages_all and not spec.takes_partial):
        return
    layout = model_registry.layout_of(store, newest.tensors)
    if spec.takes_partial:
        layers_of(layout, spec.layers)
    kept = newest.buffers_in(layout, spec.server_optimizer)
    check_averaged(spec, batchnorm_buffers.names_in(layout, kept))
    check_compared(spec, layout, kept)


def _check_asked(store: S3Store, keys: RoundKeys, spec: RoundSpec, version: int) -> None:
    """Check that a training asks for a round in a tree, or of drawn clients, exactly as it is.

    The ledger charges a client once for a tree, so it must not be invited to two of its rounds. And
    a version by others may have another layout, for which the same key makes other noise. Clients
    that somebody chose were not drawn.
    """
    stated = None if spec.dp is None else spec.dp.asked_for
    if stated is None:
        return
    training = TrainingKeys(stated.training)
    asked, state = read_training_spec(store, training), read_state(store, training)
    if asked is not None and state is not None and state.invitation is not None:
        invitation = state.invitation
        is_asked_for = (invitation.round_id, invitation.version) == (keys.round_id, version)
        whole = spec
        if isinstance(spec.clients, StoredList):  # too many for the machine's payload
            whole = replace(spec, clients=tuple(spec.clients))
        if is_asked_for and synchronous_round(training, asked, state) == whole:
            return
    what, option = ("draw", "secret_sample") if spec.is_drawn else ("tree", "noise_tree")
    raise SpecError(
        f"dp: training {training.name!r} does not ask for round {keys.round_id!r} of version "
        f"{version} with these options: leave out {what}, which is for rounds of a training with "
        f"{option}"
    )


def _await_keeper(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, plan: Plan, tokens: list[str]
) -> dict[str, Any]:
    """Let a masked round wait for its keeper, until its timeout has passed once more."""
    aws_requests.schedule_deadline(keys.round_id, keeper_exchange.deadline_of(plan, spec), tokens)
    # The answer may have come before there was a token to resume the round with.
    has_answered = keeper_exchange.has_answered(store, keys, plan, spec)
    is_resumed = has_answered and waiting_record.resume(store, keys, waiting_record.COMPLETE)
    return {"round": keys.round_id, "status": "awaiting_keeper", "resumed": is_resumed}


def _write_spec(store: S3Store, keys: RoundKeys, spec: RoundSpec, opened_at: datetime) -> datetime:
    deadline_at = opened_at + timedelta(seconds=spec.timeout)
    record: dict[str, Any] = {
        "round": keys.round_id,
        "spec": spec.to_json(),
        "opened_at": opened_at.isoformat(),
        "deadline_at": deadline_at.isoformat(),
    }
    base = {}
    check_source(store, spec)
    if spec.server_optimizer is not None:
        newest = model_registry.read_current(store, spec.server_optimizer.model)
        _check_asked(store, keys, spec, newest.number)
        if spec.server_optimizer.buffers:
            batchnorm_buffers.named(
                model_registry.layout_of(store, newest.tensors), spec.server_optimizer.buffers
            )
        if spec.masked is not None:
            layout = model_registry.layout_of(store, newest.tensors)
            check_layout(spec.masked, spec.expected, layout)
        check_rule_of_model(store, spec, newest)
        base = {"model_version": newest.number}
        at = record["opened_at"]
        privacy_ledger.enter(store, newest.model, keys.round_id, at, spec.dp, spec.expected)
    if not store.put_json(keys.spec, record | base, replaces=None):
        # From which version the round began was settled the first time.
        there = store.get_json(keys.spec, lambda there: {name: there.get(name) for name in record})
        if there != record:
            at = record["opened_at"]
            # Not that of the round that is there: a late call may know other options than it has.
            is_another = there is not None and there["opened_at"] != at
            if spec.server_optimizer is not None and is_another:
                privacy_ledger.release(store, spec.server_optimizer.model, keys.round_id, at)
            raise RoundExistsError(
                f"round {keys.round_id!r} was opened before; choose another name"
            )
    return deadline_at
