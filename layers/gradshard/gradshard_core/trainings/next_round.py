"""Decide whether a training has a next round, and invite clients to it."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.formats import client_metrics
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.training_state import (
    PAUSE,
    PAUSED,
    RUNNING,
    STOP,
    Invitation,
    TrainingState,
    list_members,
    synchronous_round,
)
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import DEFAULT_TIMEOUT, RoundSpec
from gradshard_core.specs.round_spec_checks import default_quorum, parse_new_spec
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.trainings import client_sampling, training_cost
from gradshard_core.trainings.pause_or_end import ended, paused, stopped

LOOKS_FOR_MEMBERS: Final = 60
"""The number of looks for enough members before the training pauses."""


def next_round(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    now: datetime,
    aggregator: LambdaConfig,
) -> TrainingState:
    """Return a state with the next invitation, or in which the training waits, pauses or ends."""
    if state.status == PAUSED and state.request == STOP:
        # Cancelling a round makes it fail, maybe once too often.
        return stopped(state)
    if state.status != RUNNING:
        return state
    settled = _asked_to_end(spec, state, now)
    if settled is not None:
        return settled
    if state.waits_until is not None and now < datetime.fromisoformat(state.waits_until):
        return state
    model = spec.server_optimizer.model
    current = model_registry.read_current(store, model)
    if state.version not in {None, current.number}:
        return paused(
            state,
            f"version {current.number} of model {model!r} was made by others while the training "
            f"ran, whose last version is {state.version}. Resume the training to go on from there",
        )
    state = replace(state, version=current.number, waits_until=None)
    is_evaluation = evaluation_is_due(spec, state)
    if spec.is_buffered and not is_evaluation:
        following = _await_updates(store, keys, spec, state, current)
        return _within_budget(keys, spec, following, current, aggregator)
    members = spec.clients if spec.clients is not None else list_members(store, keys)
    if state.tree is not None and not is_evaluation:
        # Its noise hides one update of each client.
        members = tuple(sorted({*members}.difference(state.tree.taken)))
    if len(members) < spec.needed():
        return _wait_for_members(spec, state, len(members), now)
    number = state.completed if is_evaluation else state.completed + 1
    if spec.secret_sample is not None and len(members) > spec.most_drawn:
        return paused(
            state,
            f"{len(members)} clients have joined, and all may be drawn for a round, which has "
            f"{spec.most_drawn} at most: have some leave, and resume the training",
        )
    drawn, awaited = _drawn(spec, state, members, f"{keys.name} {number} {is_evaluation}")
    state = _with_free_name(store, keys, state, number, is_evaluation=is_evaluation)
    invitation = Invitation(
        keys.round_id(number, state.repetition, is_evaluation=is_evaluation),
        number,
        state.repetition,
        is_evaluation,
        drawn,
        awaited,
        current.number,
        _settings(spec, number),
    )
    there = {*members, *(state.tree.taken if state.tree else ())}
    silent = {client: missed for client, missed in state.silent.items() if client in there}
    following = replace(
        state, invitation=invitation, lacks_members_since=None, silent=silent, drawn=()
    )
    return _within_budget(keys, spec, following, current, aggregator)


def _with_free_name(
    store: S3Store, keys: TrainingKeys, state: TrainingState, number: int, *, is_evaluation: bool
) -> TrainingState:
    """Return the state with a repetition of the next round that no round has the name of.

    Others may have opened such a round, or an earlier training of the same name, which was removed.
    A round that was given up before it was opened has a manifest alone.
    """
    repetition = state.repetition
    while True:
        round_ = RoundKeys(keys.round_id(number, repetition, is_evaluation=is_evaluation))
        if store.head(round_.spec) is None and store.head(round_.manifest) is None:
            return replace(state, repetition=repetition)
        repetition += 1


def _drawn(
    spec: TrainingSpec, state: TrainingState, members: Sequence[str], which: str
) -> tuple[Sequence[str], int]:
    """Return the clients that a round invites, and how many of them it awaits."""
    if spec.secret_sample is not None:
        drawn = state.drawn or client_sampling.draw_in_secret(
            members, spec.secret_sample.probability
        )
        return drawn, len(drawn)
    invited, awaited = client_sampling.count_invited(spec, len(members))
    seed = f"{spec.seed} {which} {state.redraws}"
    return client_sampling.draw(members, invited, seed=seed, silent=state.silent), awaited


def _settings(spec: TrainingSpec, number: int) -> dict[str, Any]:
    return {name: schedule.at(number) for name, schedule in (spec.settings or {}).items()}


def _await_updates(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    current: Version,
) -> TrainingState:
    """Return a state in which everybody trains the current version, and a round awaits updates."""
    number = state.completed + 1
    if state.last_round is None or current.round_id != state.last_round:
        # An update that was trained before belongs to another model.
        state = replace(state, first_version=current.number)
    state = _with_free_name(store, keys, state, number, is_evaluation=False)
    invitation = Invitation(
        keys.round_id(number, state.repetition),
        number,
        state.repetition,
        is_evaluation=False,
        clients=(),
        awaited=spec.updates_per_version or 1,
        version=current.number,
        settings=_settings(spec, number),
    )
    return replace(state, invitation=invitation, lacks_members_since=None)


def training_round(keys: TrainingKeys, spec: TrainingSpec, state: TrainingState) -> RoundSpec:
    """Return the spec of the round to which a state invites."""
    invitation = state.invitation
    assert invitation is not None  # noqa: S101 - for mypy: the callers have looked
    if invitation.is_evaluation:
        return evaluation_spec(spec, invitation.clients, invitation.awaited)
    if spec.is_buffered:
        oldest = state.oldest_version(spec.staleness)
        return spec.buffered_round_spec(keys.name, oldest, state.repeated_round)
    return synchronous_round(keys, spec, state)


def evaluation_is_due(spec: TrainingSpec, state: TrainingState) -> bool:
    """Return whether clients evaluate the model next, instead of training it."""
    if spec.evaluate_every is None or state.completed <= state.evaluated:
        return False
    is_last = state.completed >= spec.rounds
    return is_last or state.completed % spec.evaluate_every == 0


def evaluation_spec(spec: TrainingSpec, clients: Sequence[str], awaited: int) -> RoundSpec:
    """Return the spec of a round in which clients send metrics and no tensors of the model."""
    fields: dict[str, Any] = {
        "clients": list(clients),
        "min_clients": spec.round.get("min_clients") or default_quorum(awaited),
        "timeout": spec.round.get("timeout"),
        # Stated, so that no majority of clients decides on it.
        "layout": client_metrics.EVALUATION_LAYOUT,
    }
    if awaited < len(clients):
        fields["enough_clients"] = awaited
    return parse_new_spec(fields)


def _asked_to_end(spec: TrainingSpec, state: TrainingState, now: datetime) -> TrainingState | None:
    """Return the state of a training that does not go on; None if it does."""
    if state.request == STOP:
        return stopped(state)
    if state.request == PAUSE:
        return paused(replace(state, request=None, reason=None), f"paused: {state.reason}")
    if state.completed >= spec.rounds and not evaluation_is_due(spec, state):
        return ended(state, f"all {spec.rounds} rounds have completed")
    most = spec.budget and spec.budget.seconds
    passed = (now - datetime.fromisoformat(state.started_at)).total_seconds()
    if most is not None and passed >= most:
        return ended(state, f"{passed:.0f} s have passed, of a budget of {most:g} s")
    return None


def _wait_for_members(
    spec: TrainingSpec, state: TrainingState, members: int, now: datetime
) -> TrainingState:
    """Return a state that waits for clients to join, as long as for their updates."""
    since = state.lacks_members_since or now.isoformat()
    timeout = int(spec.round.get("timeout") or DEFAULT_TIMEOUT)
    if (now - datetime.fromisoformat(since)).total_seconds() >= timeout:
        return paused(
            replace(state, lacks_members_since=None),
            f"too few clients have joined{_taken(state)}: {members}, and a round needs "
            f"{spec.needed()}; it was waited for {timeout} s. Resume the training when enough have "
            "joined",
        )
    until = now + timedelta(seconds=max(spec.poll_interval, timeout / LOOKS_FOR_MEMBERS))
    return replace(state, lacks_members_since=since, waits_until=until.isoformat())


def _taken(state: TrainingState) -> str:
    """Say how many clients cannot be invited, because they were in this tree of noise."""
    if state.tree is None or not state.tree.taken:
        return ""
    return f" besides the {len(state.tree.taken)} that were invited in this tree of noise"


def _within_budget(
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    current: Version,
    aggregator: LambdaConfig,
) -> TrainingState:
    """Return the state, or that of a training whose next round would cost more than is left."""
    most = spec.budget and spec.budget.dollars
    invitation = state.invitation
    if most is None or invitation is None:
        return state
    kind = "evaluate" if invitation.is_evaluation else "train"
    expected = state.last_dollars.get(kind)
    if expected is None:
        # An evaluation's updates are metrics: no more bytes than the least.
        nbytes = 1 if invitation.is_evaluation else current.tensors.source.nbytes
        expected = training_cost.projected(training_round(keys, spec, state), nbytes, aggregator)
    if state.dollars + expected <= most:
        return state
    return ended(
        replace(state, invitation=None),
        f"the next round is expected to cost ${expected:.6f}, and ${state.dollars:.6f} of a "
        f"budget of ${most:g} are spent",
    )
