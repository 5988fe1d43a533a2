"""Check and write a training's options, and the state from which it begins."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from gradshard_core.aggregation import batchnorm_buffers
from gradshard_core.errors import SpecError, TrainingExistsError, TrainingStateError
from gradshard_core.formats.object_keys import ModelKeys, TrainingKeys
from gradshard_core.limits.own_limits import MAX_CLIENTS
from gradshard_core.privacy.noise_tree import NoiseTree
from gradshard_core.records import model_registry, privacy_ledger
from gradshard_core.records.training_state import ENDED, RUNNING, TrainingState, read_state
from gradshard_core.rounds.keeper_exchange import NO_KEEPER
from gradshard_core.rounds.open_round import check_rule_of_model
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import check_layout
from gradshard_core.specs.training_spec_checks import parse_training_spec
from gradshard_core.trainings.client_sampling import count_invited

STARTING_SECONDS: Final = 900
"""A training that has a model but no state after this time has failed to start. All retries of
federation.asl.json take less."""


def start_training(
    store: S3Store,
    name: str,
    fields: Mapping[str, Any],
    *,
    started: str,
    has_keeper: bool = False,
) -> dict[str, Any]:
    """Start a training; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    name
        Its id, that of the execution.
    fields
        The spec as the execution's input has it.
    started
        The time at which the execution started, ISO 8601.
    has_keeper
        Whether the stack has a mask keeper.

    Returns
    -------
    dict
        ``training``, ``run`` and ``step``: what the machine goes on with.

    Raises
    ------
    SpecError
        The options make no sense.
    ModelNotFoundError
        There is no such model.
    PrivacyBudgetError
        The model has a budget that the first round would exceed.
    TrainingExistsError
        A training of this name was started before, with other options.
    TrainingStateError
        Another training has the model.
    """
    keys, spec = TrainingKeys(name), parse_training_spec(fields)
    optimizer = spec.server_optimizer
    newest = model_registry.read_current(store, optimizer.model)
    if optimizer.buffers:
        batchnorm_buffers.named(model_registry.layout_of(store, newest.tensors), optimizer.buffers)
    if (masked := spec.terms.masked) is not None:
        if not has_keeper:
            raise SpecError(f"masked: {NO_KEEPER}")
        layout = model_registry.layout_of(store, newest.tensors)
        check_layout(masked, spec.terms.expected, layout)
    if not spec.is_buffered:  # whose rounds take no rule that compares partial updates
        # All whom a round may invite, whoever joins later.
        invited, _ = count_invited(spec, MAX_CLIENTS if spec.clients is None else len(spec.clients))
        check_rule_of_model(store, replace(spec.terms, clients=invited), newest)
    ledger = privacy_ledger.read_ledger(store, optimizer.model)
    privacy_ledger.check_budget(ledger, optimizer.model, spec.terms.dp)
    record = {"training": name, "spec": spec.to_json(), "started_at": started}
    if not store.put_json(keys.spec, record, replaces=None) and (
        store.get_json(keys.spec) != record
    ):
        raise TrainingExistsError(f"training {name!r} was started before; choose another name")
    _take_model(store, optimizer.model, name, started)
    first = newest.number
    tree = None if spec.noise_tree is None else NoiseTree()
    state = TrainingState(
        RUNNING, 1, 0, first, started, started, first_version=first, settled_before=first, tree=tree
    )
    store.put_json(keys.state, state.to_json(), replaces=None)
    return {"training": name, "run": 1, "step": 0}


def _take_model(store: S3Store, model: str, name: str, started: str) -> None:
    """Note that a training has a model, unless another one has it that has not ended."""
    key, record = ModelKeys(model).training, {"training": name, "started_at": started}
    for _ in conditional_write_attempts(key):
        if store.put_json(key, record, replaces=None):
            return
        head = store.head(key)
        taken = store.get_json(key)
        if head is None or taken is None:
            continue
        if taken == record:
            return
        if taken["training"] != name:  # else of one of this name, which was removed
            _check_ended(store, model, taken, started)
        if store.put_json(key, record, replaces=head.etag):
            return


def _check_ended(store: S3Store, model: str, taken: Mapping[str, Any], started: str) -> None:
    """Check that the training which has taken a model has ended, or has failed to start."""
    other = taken["training"]
    state = read_state(store, TrainingKeys(other))
    if state is not None and state.status != ENDED:
        raise TrainingStateError(
            f"model {model!r} is that of training {other!r}, which is {state.status}: stop "
            "that one first (gradshard train stop), or train another model"
        )
    if state is None and _seconds_between(taken["started_at"], started) < STARTING_SECONDS:
        raise TrainingStateError(
            f"model {model!r} is that of training {other!r}, which is starting: stop that one "
            "first (gradshard train stop), or train another model"
        )


def _seconds_between(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
