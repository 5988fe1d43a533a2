"""A client's loop: wait for invitations of a training, train, submit, until it has ended."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gradshard.client.compression import SEEDS, Compression
from gradshard.client.deltas import change_of
from gradshard.client.inbox import Inbox
from gradshard.client.model import Model
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard.client.tensors import Array
from gradshard.client.training import Training
from gradshard_core.aggregation.server_optimizers import MODELS
from gradshard_core.errors import (
    ModelNotFoundError,
    RoundFailed,
    RoundNotFoundError,
    RoundStateError,
    ServiceError,
    StoreError,
    UnreadableObjectError,
    UpdateError,
)
from gradshard_core.formats.metrics import check_metrics
from gradshard_core.records.inbox import has_counted
from gradshard_core.records.training_state import ENDED, Invitation, TrainingState

logger = logging.getLogger("gradshard")

FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
"""Between attempts while the connection is lost."""

DEFAULT_PATIENCE_SECONDS: Final = 24 * 3600.0

Weights = Mapping[str, Any]
Trained = tuple[Weights, int] | tuple[Weights, int, Mapping[str, float]]
Train = Callable[[dict[str, Array], Invitation], Trained]
"""Gets the model and the invitation; returns the trained tensors, the number of samples and, if
there are any, metrics."""

Evaluate = Callable[[dict[str, Array], Invitation], tuple[Mapping[str, float], int]]
"""Gets the model and the invitation; returns metrics and the number of samples."""


@dataclass(frozen=True)
class Participation:
    """The record of a client's part in a training.

    Parameters
    ----------
    trained, evaluated
        The numbers of the rounds to which it sent updates, or metrics, since it was started.
    state
        The training's last state.
    """

    trained: tuple[int, ...]
    evaluated: tuple[int, ...]
    state: TrainingState


def participate(
    stack: Stack,
    training: Training,
    client: str,
    train: Train,
    evaluate: Evaluate | None = None,
    *,
    codec: str | Compression | None = None,
    patience: float = DEFAULT_PATIENCE_SECONDS,
) -> Participation:
    """Take part in a training until it has ended.

    The loop keeps nothing on this machine: if it is stopped and started again, it goes on with the
    round that is under way. While the connection is lost it tries again.

    Parameters
    ----------
    stack, training
        The training.
    client
        The client's id.
    train, evaluate
        Called for each invitation. Without ``evaluate`` the client sends nothing in evaluations.
    codec
        Compress the updates; to a seed the number of the round is added.
    patience
        The seconds that a lost connection may last.

    Raises
    ------
    TrainingNotFoundError
        There is no such training.
    UpdateError
        The value that ``train`` or ``evaluate`` returned could not be averaged.
    StoreError, ServiceError
        S3 rejects the client's requests, or cannot be reached for longer than ``patience``.
    """
    done: dict[bool, list[int]] = {False: [], True: []}
    spec = _persistently(training.spec, patience)
    _join(training, client, patience)
    worker = _Worker(stack, training, client, train, evaluate, codec)
    for state in _states(training, spec.poll_seconds, patience):
        invitation = state.invitation
        if state.status == ENDED:
            return Participation(tuple(done[False]), tuple(done[True]), state)
        _persistently(lambda: worker.follow_up(state), patience)  # noqa: B023 - called at once
        if invitation is None or not worker.is_invited(invitation):
            continue
        if _persistently(lambda: worker.answer(invitation), patience):  # noqa: B023 - called at once
            done[invitation.is_evaluation].append(invitation.number)
    raise AssertionError("states end with that of the end")


def _join(training: Training, client: str, patience: float) -> None:
    """Join the training, unless it has ended: then the loop sees that."""
    if _persistently(training.state, patience).status != ENDED:
        _persistently(lambda: training.join(client), patience)


class _Worker:
    """Answers invitations."""

    def __init__(
        self,
        stack: Stack,
        training: Training,
        client: str,
        train: Train,
        evaluate: Evaluate | None,
        codec: str | Compression | None,
    ) -> None:
        self._stack, self._client = stack, client
        self._keys, self._spec = training.keys, training.spec()
        self._optimizer = self._spec.server_optimizer
        self._train, self._evaluate, self._codec = train, evaluate, codec
        self._answered = ""
        self._made: tuple[str, dict[str, Any]] | None = None
        self._sent: int | None = None

    def is_invited(self, invitation: Invitation) -> bool:
        """Return whether the client is invited; to train in a buffered training, everybody is."""
        is_open = self._spec.is_buffered and not invitation.is_evaluation
        return is_open or self._client in invitation.clients

    def follow_up(self, state: TrainingState) -> None:
        """Tell why the update was rejected that was last sent to a buffered training."""
        if self._sent is None:
            return
        reason = self._inbox(self._sent).rejection(self._client)
        if reason is not None:
            logger.warning("the update from version %d was rejected: %s", self._sent, reason)
        if reason is not None or has_counted(state.counted, self._client, self._sent) is not None:
            self._sent = None

    def _inbox(self, version: int) -> Inbox:
        return Inbox(self._stack, self._keys, self._spec, version)

    def _round(self, invitation: Invitation) -> Round:
        """Return what the client submits to."""
        if self._spec.is_buffered and not invitation.is_evaluation:
            return self._inbox(invitation.version)
        return Round(self._stack, invitation.round_id)

    def answer(self, invitation: Invitation) -> bool:
        """Train or evaluate and submit, unless that is done; return whether it was done now."""
        round_ = self._round(invitation)
        if round_.id == self._answered:
            return False
        if round_.store.head(round_.keys.update(self._client)) is not None or round_.has_ended():
            self._answered = round_.id
            return False
        if invitation.is_evaluation and self._evaluate is None:
            self._answered = round_.id
            return False
        try:
            if self._made is None or self._made[0] != round_.id:
                # Kept while the connection is lost: training again would take as long again.
                self._made = round_.id, self._make(round_, invitation)
            round_.submit(self._client, **self._made[1])
        except (RoundStateError, RoundFailed, RoundNotFoundError, ModelNotFoundError) as error:
            if isinstance(error, RoundNotFoundError) or "just being opened" in str(error):
                return False  # in a moment it will be there
            logger.warning("%s: %s", round_.id, error)
            self._answered = round_.id
            return False
        self._answered = round_.id
        self._made = None
        if isinstance(round_, Inbox):
            self._sent = invitation.version
        return True

    def _make(self, round_: Round, invitation: Invitation) -> dict[str, Any]:
        """Return what is submitted."""
        if invitation.is_evaluation:
            assert self._evaluate is not None  # noqa: S101 - for mypy: the caller has looked
            model = Model(self._stack, self._optimizer.model)
            metrics, samples = self._evaluate(model.fetch(version=invitation.version), invitation)
            found = check_metrics(metrics)
            if not found:
                raise UpdateError("evaluate returned no metrics")
            return {"update": found, "samples": samples}
        before = round_.fetch_model()
        # Training may change the arrays that it gets.
        given = {name: tensor.copy() for name, tensor in before.items()}
        started = time.monotonic()
        trained, samples, *measured = self._train(given, invitation)
        report = {"train_seconds": max(1e-6, time.monotonic() - started)}
        update = trained if self._optimizer.updates == MODELS else change_of(before, trained)
        return {
            "update": update,
            "samples": samples,
            "codec": _codec_of(self._codec, invitation.number),
            "training": report,
            "metrics": measured[0] if measured else None,
        }


def _codec_of(codec: str | Compression | None, number: int) -> str | Compression | None:
    """Return how an update is compressed in a round: with a seed of its own, if it has one."""
    if not isinstance(codec, Compression) or codec.seed is None:
        return codec
    return replace(codec, seed=(codec.seed + number) % SEEDS)


def _states(training: Training, pause: float, patience: float) -> Iterator[TrainingState]:
    while True:
        yield _persistently(training.state, patience)
        time.sleep(pause)


def _persistently(request: Callable[[], Any], patience: float) -> Any:
    """Repeat what fails for want of a connection, as long as patience lasts."""
    give_up = time.monotonic() + patience
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return request()
        except UnreadableObjectError:
            raise
        except (StoreError, ServiceError) as error:
            if time.monotonic() + pause > give_up or _is_rejected(error):
                raise
            logger.warning("trying again in %.0f s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_rejected(error: Exception) -> bool:
    """Whether trying again does not help: the credentials do not allow what was asked for."""
    codes = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "no AWS credentials")
    return any(code in str(error) for code in codes)
