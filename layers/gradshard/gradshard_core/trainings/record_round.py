"""Write the record of a round of a training that has ended, and make the state after it."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import datetime
from typing import Any

from gradshard_core.formats.client_metrics import MAX_KEPT
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys, base_version, sender_of
from gradshard_core.privacy.noise_tree import NoiseTree
from gradshard_core.records.inbox import short_etag
from gradshard_core.records.noise_key import delete_noise_key
from gradshard_core.records.plan_and_manifest import store_kept
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.trainings.pause_or_end import apply_stop_rule, paused, repeat_or_pause
from gradshard_core.trainings.round_outcome import Outcome


def record_ended_round(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    state: TrainingState,
    outcome: Outcome,
    now: datetime,
) -> TrainingState:
    """Record a round that has ended, and return the state of the training after it."""
    invitation = state.invitation
    assert invitation is not None  # noqa: S101 - for mypy: a round has ended
    record = _record(store, keys, spec, invitation, outcome, now)
    store.put_json(keys.record(invitation.round_id), record)
    kind = "evaluate" if invitation.is_evaluation else "train"
    after = replace(
        state,
        invitation=None,
        silent=_silent(state, invitation, outcome),
        dollars=state.dollars + outcome.dollars,
        tree=_in_tree(spec, state, outcome),
        drawn=() if spec.secret_sample is None else invitation.clients,
    )
    if not outcome.is_completed:
        return _after_failure(spec, after, invitation, outcome, now)
    after = replace(
        after,
        failures=0,
        repetition=0,
        redraws=0,
        last_dollars={**state.last_dollars, kind: outcome.dollars},
    )
    if invitation.is_evaluation:
        after = replace(after, evaluated=invitation.number)
        return apply_stop_rule(spec, after, invitation.version, outcome)
    return _after_version(spec, state, after, invitation, outcome)


def _after_failure(
    spec: TrainingSpec,
    after: TrainingState,
    invitation: Invitation,
    outcome: Outcome,
    now: datetime,
) -> TrainingState:
    """Return the state after a round that failed; a buffered training takes its updates again."""
    if spec.is_buffered:
        after = replace(
            after,
            repeated_round=invitation.round_id if outcome.is_planned else after.repeated_round,
            suspects=tuple(sorted({*after.suspects, *map(sender_of, outcome.bad)})),
        )
    return repeat_or_pause(spec, after, invitation, outcome, now)


def _after_version(
    spec: TrainingSpec,
    before: TrainingState,
    after: TrainingState,
    invitation: Invitation,
    outcome: Outcome,
) -> TrainingState:
    """Return the state after a round that completed, and ought to have made the next version."""
    made = outcome.version
    if made is None:
        return paused(
            replace(after, repetition=invitation.repetition),
            f"round {invitation.round_id!r} made no version of model "
            f"{spec.server_optimizer.model!r}: others opened a round of that name just before the "
            "training did. Resume the training to go on with a round of another name",
        )
    after = replace(
        after,
        completed=invitation.number,
        version=made,
        last_round=invitation.round_id,
        clip=outcome.next_clip,
        drawn=(),
        counted=_counted(spec, before, outcome),
        repeated_round=None,
        suspects=(),
    )
    if made != invitation.version + 1:
        return paused(
            replace(after, first_version=made),
            f"round {invitation.round_id!r} was to make version {invitation.version + 1} of model "
            f"{spec.server_optimizer.model!r} and made {made}: others changed the model just "
            "before it was opened, or opened a round of that name. Resume the training to go on "
            "from the current version",
        )
    if spec.evaluate_every is None:
        return apply_stop_rule(spec, after, made, outcome)
    return after


def _in_tree(spec: TrainingSpec, state: TrainingState, outcome: Outcome) -> NoiseTree | None:
    """Return where a training is in its tree of noise, after a round.

    Of a round that was planned, noise may have been drawn: neither it nor its clients serve again.
    """
    tree, invitation = state.tree, state.invitation
    if tree is None or spec.noise_tree is None or invitation is None or invitation.is_evaluation:
        return tree
    if not outcome.is_planned:
        return replace(tree, is_forgotten=False)
    return tree.after(
        invitation.round_id,
        invitation.clients,
        spec.noise_tree,
        is_completed=outcome.is_completed,
    )


def _counted(
    spec: TrainingSpec, state: TrainingState, outcome: Outcome
) -> Mapping[str, Mapping[str, str]]:
    """Return which updates of a buffered training have counted."""
    if not spec.is_buffered:
        return {}
    counted = {version: dict(clients) for version, clients in state.counted.items()}
    for update in outcome.updates:
        version = base_version(update.key)
        client = sender_of(update.client)
        counted.setdefault(str(version), {})[client] = short_etag(update.etag)
    return counted


def dropping_keys(before: TrainingState, after: TrainingState) -> TrainingState:
    """Return the state after another one, with the keys of noise that are not needed any more."""
    return replace(after, dropped_keys=tuple(sorted(before.noise_rounds - after.noise_rounds)))


def delete_dropped_keys(store: S3Store, state: TrainingState) -> None:
    """Delete the keys of noise that are not taken out of the model later; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    state
        A state that has been written. Another one, which a late call would write, may drop keys
        that later rounds need.
    """
    for round_id in state.dropped_keys:
        delete_noise_key(store, RoundKeys(round_id))


def _record(
    store: S3Store,
    keys: TrainingKeys,
    spec: TrainingSpec,
    invitation: Invitation,
    outcome: Outcome,
    now: datetime,
) -> dict[str, Any]:
    stated = asdict(outcome)
    updates = stated.pop("updates")
    kept = {*list(outcome.metrics)[:MAX_KEPT], spec.stop and spec.stop.metric}
    stated["metrics"] = {n: mean for n, mean in outcome.metrics.items() if n in kept}
    if more := len(outcome.metrics) - len(stated["metrics"]):
        stated["notes"] += (f"{more} more metrics, which fewer clients sent, are not kept",)
    for name in ("contributors", "rejected", "bad"):
        stated[name] = store_kept(store, keys, stated[name])
    return {
        **invitation.to_json(),
        **stated,
        "staleness": {update["client"]: update["staleness"] for update in updates},
        "base_version": invitation.version,
        "closed_at": now.isoformat(),
    }


def _silent(state: TrainingState, invitation: Invitation, outcome: Outcome) -> dict[str, int]:
    """Count the invitations in a row that clients have missed."""
    silent = dict(state.silent)
    if not (outcome.is_completed or outcome.is_planned or outcome.error == "QuorumError"):
        return silent  # it did not wait for them: it was not opened, or was cancelled
    answered = outcome.answered
    # With over-selection a round does not wait for the slower clients: they have missed nothing.
    is_cut_short = len(answered) >= invitation.awaited
    for client in invitation.clients:
        if client in answered:
            silent.pop(client, None)
        elif not is_cut_short:
            silent[client] = silent.get(client, 0) + 1
    return silent
