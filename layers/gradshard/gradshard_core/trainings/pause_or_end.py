"""Decide whether a training pauses or ends: after a round that failed, and by its stop rule."""

from dataclasses import replace
from datetime import datetime, timedelta

from gradshard_core.privacy.noise_tree import NoiseTree
from gradshard_core.records.training_state import ENDED, PAUSED, Best, Invitation, TrainingState
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.trainings.round_outcome import Outcome


def paused(state: TrainingState, cause: str) -> TrainingState:
    """Return a state in which the training waits for its operator."""
    return replace(state, status=PAUSED, cause=cause, waits_until=None, tree=_forgotten(state))


def ended(state: TrainingState, cause: str) -> TrainingState:
    """Return the last state of a training."""
    return replace(state, status=ENDED, cause=cause, waits_until=None, tree=_forgotten(state))


def stopped(state: TrainingState) -> TrainingState:
    """Return the last state of a training whose operator has asked for its end."""
    return ended(state, f"stopped: {state.reason}")


def _forgotten(state: TrainingState) -> NoiseTree | None:
    """Return the tree without noise that is to be taken out: no key is kept for later."""
    invitation = state.invitation
    is_under_way = invitation is not None and not invitation.is_evaluation
    return state.tree and state.tree.forget(is_under_way=is_under_way)


def repeat_or_pause(
    spec: TrainingSpec,
    state: TrainingState,
    invitation: Invitation,
    outcome: Outcome,
    now: datetime,
) -> TrainingState:
    """Return the state after a round that failed: it is repeated, or the training pauses."""
    # In buffered mode a bad update, which has to be sent anew each time, does not stop a training.
    is_of_senders = spec.is_buffered and bool(outcome.bad)
    failures = state.failures + (not is_of_senders)
    state = replace(state, repetition=state.repetition + 1)
    said = f"round {invitation.round_id!r} failed ({outcome.error}): {outcome.cause}"
    if outcome.error in {"ModelStateError", "PrivacyBudgetError"}:
        return paused(replace(state, failures=0), said)
    if spec.terms.masked is not None and outcome.is_planned:
        # A second sum over nearly the same updates tells more than the average of either.
        return paused(
            replace(state, failures=0),
            f"{said}. The keeper was asked for its masks, and may answer: nothing is repeated by "
            "itself. Resume the training to have clients train anew for another round",
        )
    if failures > spec.repeats:
        times = "" if failures == 1 else f" It was tried {failures} times."
        return paused(replace(state, failures=0), said + times)
    # Other clients may answer; the same ones give the same bits.
    redraws = state.redraws + (outcome.error == "QuorumError")
    until = (now + timedelta(seconds=spec.repeat_after)).isoformat()
    return replace(state, failures=failures, redraws=redraws, waits_until=until)


def apply_stop_rule(
    spec: TrainingSpec, state: TrainingState, version: int, outcome: Outcome
) -> TrainingState:
    """Compare a version with the best one, and end the training if its rule says so."""
    rule = spec.stop
    if rule is None:
        return state
    value = outcome.metrics.get(rule.metric)
    if value is None:
        sent = ", ".join(outcome.metrics) or "none at all"
        return paused(
            state,
            f"no client sent the metric {rule.metric!r}, by which the training stops; those that "
            f"they sent: {sent}. Stop the training, and start one with another rule",
        )
    best = state.best
    if rule.is_better(value, best.value if best else None):
        best = Best(version, state.completed, rule.metric, value)
        state = replace(state, best=best, values_since_best=0)
    else:
        state = replace(state, values_since_best=state.values_since_best + 1)
    if rule.is_reached(value):
        return ended(state, f"{rule.metric} is {value:g} after round {state.completed}")
    if rule.patience is not None and state.values_since_best >= rule.patience and best is not None:
        return ended(
            state,
            f"{rule.metric} has not become better than {best.value:g}, that of version "
            f"{best.version}, {state.values_since_best} times in a row",
        )
    return state
