"""Starting trainings, and listing them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Unpack

from gradshard.client.executions import Execution
from gradshard.client.round_options import RoundOptions
from gradshard.client.stack import Stack
from gradshard.client.training import Training
from gradshard.utils.polling import poll
from gradshard_core.errors import SpecError, TrainingExistsError, TrainingFailed, WaitTimeoutError
from gradshard_core.formats import json_records
from gradshard_core.formats.object_keys import TRAININGS, TrainingKeys, is_id
from gradshard_core.limits import aws_limits
from gradshard_core.records.training_state import (
    ENDED,
    PAUSED,
    RUNNING,
    TrainingState,
    read_state,
    read_training_spec,
)
from gradshard_core.specs.training_spec import OPTIONS
from gradshard_core.specs.training_spec_checks import parse_training_spec

STARTING_SECONDS: Final = 60.0
"""The seconds that starting a training waits for its state to appear in the bucket."""

PAUSED_ERROR: Final = "TrainingPaused"
"""With which federation.asl.json fails when a training has paused."""

STATES: Final = (RUNNING, PAUSED, ENDED)


class TrainingOptions(RoundOptions, total=False):
    """Keyword arguments of :meth:`gradshard.client.federation.Federation.train`.

    The options of a training, as in :class:`gradshard_core.specs.training_spec.TrainingSpec`,
    and those of its rounds.
    """

    mode: str | None
    updates_per_version: int | None
    updates_per_client: int | None
    max_staleness: int | None
    staleness_exponent: float | None
    sample: float | None
    over_selection: float | None
    seed: int | None
    noise_tree: int | None
    secret_sample: Mapping[str, Any] | None
    settings: Mapping[str, Any] | None
    evaluate_every: int | None
    stop: Mapping[str, Any] | None
    budget: Mapping[str, Any] | None
    repeats: int | None
    repeat_after: int | None
    poll_interval: float | None


class ListedTraining(NamedTuple):
    """A training in a list."""

    training: str
    state: TrainingState


def start_training(
    stack: Stack,
    name: str,
    *,
    rounds: int,
    clients: Sequence[str] | None,
    **options: Unpack[TrainingOptions],
) -> Training:
    """Start a training; starting it again with the same options gives the same training.

    Raises
    ------
    SpecError
        The options are not valid.
    TrainingExistsError
        There is such a training with other options, or there was one that is removed.
    TrainingFailed
        It could not be started.
    """
    of_rounds = {key: value for key, value in options.items() if key not in OPTIONS}
    of_training = {key: value for key, value in options.items() if key in OPTIONS}
    spec = parse_training_spec(
        {"rounds": rounds, "clients": clients, "round": of_rounds, **of_training}
    )
    keys = TrainingKeys(name)
    machine = stack.trainings
    is_new = machine.start(keys.execution(1), json_records.encode(spec.to_json()).decode())
    for _ in poll(STARTING_SECONDS):
        started = read_training_spec(stack.store, keys)
        if started is not None and started.to_json() != spec.to_json():
            raise TrainingExistsError(
                f"training {name!r} was started before, with other options; choose another name"
            )
        if started is not None and read_state(stack.store, keys) is not None:
            return Training(stack, name)
        execution = machine.execution(keys.execution(1))
        if execution is not None and execution.has_ended and not is_new and _has_run(execution):
            raise TrainingExistsError(
                f"training {name!r} was started before, and removed; choose another name: it ran "
                f"{execution.dates}, and Step Functions keeps a name for "
                f"{aws_limits.NAME_KEPT_DAYS} days after its execution has ended"
            )
        if execution is not None and execution.has_ended:
            again = "" if is_new else " when its name was first used; choose another name"
            raise TrainingFailed(
                f"training {name!r} could not be started{again}: {execution.reason}"
            )
    raise WaitTimeoutError(f"training {name!r} has not started within {STARTING_SECONDS:g} s")


def _has_run(execution: Execution) -> bool:
    """Return whether an execution has gone beyond the start of its training."""
    return execution.succeeded or execution.error == PAUSED_ERROR


def list_trainings(stack: Stack, status: str | None = None) -> Iterator[ListedTraining]:
    """Yield the trainings whose objects are there, by name.

    Parameters
    ----------
    stack
        The stack on which they run.
    status
        Only those that are ``running``, ``paused`` or ``ended``.

    Raises
    ------
    SpecError
        There is no such status.
    """
    if status is not None and status not in STATES:
        raise SpecError(f"status {status!r} is not one of {', '.join(STATES)}")
    for name in stack.store.list_folders(TRAININGS):
        if is_id("training", name):
            state = read_state(stack.store, TrainingKeys(name))
            if state is not None and status in {None, state.status}:
                yield ListedTraining(name, state)
