"""A client's loop: wait for invitations of a training, train, submit, until it has ended."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from gradshard.client.rejection_watch import (
    SETTLE_SECONDS,
    OnRejection,
    RejectedUpdate,
    RejectionWatch,
)
from gradshard.client.training_participant import ClientRound, TrainingAccess
from gradshard.updates.compression import SEEDS, Compression
from gradshard.updates.deltas import change_of
from gradshard.updates.mask import Mask
from gradshard.updates.tensors import Array
from gradshard_core.aggregation.server_optimizers import MODELS
from gradshard_core.errors import (
    ModelNotFoundError,
    RoundFailed,
    RoundNotFoundError,
    RoundStateError,
    ServiceError,
    StoreError,
    TicketError,
    TicketUnansweredError,
    UnreadableObjectError,
    UpdateError,
)
from gradshard_core.formats.client_metrics import EVALUATION, check_metrics
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
    rejected
        Those of them that did not count, with the reasons.
    state
        The training's last state.
    """

    trained: tuple[int, ...]
    evaluated: tuple[int, ...]
    rejected: tuple[RejectedUpdate, ...]
    state: TrainingState


def participate(
    access: TrainingAccess,
    train: Train,
    evaluate: Evaluate | None = None,
    *,
    on_rejection: OnRejection | None = None,
    codec: str | Compression | None = None,
    mask: Mask | None = None,
    patience: float = DEFAULT_PATIENCE_SECONDS,
) -> Participation:
    """Take part in a training until it has ended.

    The loop keeps nothing on this machine: if it is stopped and started again, it goes on with the
    round that is under way. While the connection is lost it tries again.

    Parameters
    ----------
    access
        The training, for this client.
    train, evaluate
        Called for each invitation. Without ``evaluate`` the client sends nothing in evaluations.
    on_rejection
        Called with each :class:`~gradshard.client.rejection_watch.RejectedUpdate`, when the client
        reads why one of its updates did not count. It is logged in any case.
    codec
        Compress the updates; to a seed the number of the round is added.
    mask
        Mask the updates; they then have no metrics and no report, and evaluations get nothing.
        Nothing is sent to rounds that are not masked, or have another keeper.
    patience
        The seconds that a lost connection may last.

    Raises
    ------
    TrainingNotFoundError
        There is no such training.
    UpdateError
        The value that ``train`` or ``evaluate`` returned could not be averaged.
    TicketError
        S3 rejects the client's ticket.
    StoreError, ServiceError
        S3 rejects the client's requests, or cannot be reached for longer than ``patience``.
    """
    done: dict[bool, list[int]] = {False: [], True: []}
    pause = _persistently(access.poll_interval, patience)
    _join(access, patience)
    rejection_watch = RejectionWatch(access, on_rejection)
    worker = _persistently(
        lambda: _Worker(access, rejection_watch, train, evaluate, codec, mask), patience
    )
    for state in _states(access, pause, patience):
        invitation = state.invitation
        # The end of a training rejects the updates that wait.
        _persistently(lambda: rejection_watch.check(state), patience)  # noqa: B023 - called at once
        if state.status == ENDED and rejection_watch.is_waiting:
            continue
        if state.status == ENDED:
            rejected = tuple(rejection_watch.rejected)
            return Participation(tuple(done[False]), tuple(done[True]), rejected, state)
        if invitation is None:
            continue
        if not _persistently(lambda: access.is_invited(invitation), patience):  # noqa: B023 - called at once
            continue
        if _persistently(lambda: worker.answer(invitation), patience):  # noqa: B023 - called at once
            done[invitation.is_evaluation].append(invitation.number)
    raise AssertionError("states end with that of the end")


def _join(access: TrainingAccess, patience: float) -> None:
    """Join the training, unless it has ended: then the loop sees that."""
    if _persistently(access.state, patience).status != ENDED:
        _persistently(access.join, patience)


class _Worker:
    """Answers invitations."""

    def __init__(
        self,
        access: TrainingAccess,
        rejection_watch: RejectionWatch,
        train: Train,
        evaluate: Evaluate | None,
        codec: str | Compression | None,
        mask: Mask | None,
    ) -> None:
        self._access, self._rejection_watch, self._mask = access, rejection_watch, mask
        self._updates = access.updates()
        self._train, self._evaluate, self._codec = train, evaluate, codec
        self._answered = ""
        self._made: tuple[str, dict[str, Any]] | None = None

    def answer(self, invitation: Invitation) -> bool:
        """Train or evaluate and submit, unless that is done; return whether it was done now."""
        try:
            round_ = self._access.round(invitation)
        except RoundNotFoundError:
            return False  # the holder of a ticket has none for it yet
        if round_.id == self._answered:
            return False
        # Metrics are sent in the clear, which a client that masks its updates does not want.
        if invitation.is_evaluation and (self._evaluate is None or self._mask is not None):
            self._answered = round_.id
            return False
        try:
            return self._send(round_, invitation)
        except (RoundStateError, RoundFailed, RoundNotFoundError, ModelNotFoundError) as error:
            if isinstance(error, RoundNotFoundError) or "just being opened" in str(error):
                return False  # in a moment it will be there
            logger.warning("%s: %s", round_.id, error)
            self._answered = round_.id
            return False
        except TicketUnansweredError:
            raise
        except TicketError:
            if not self._access.renew():
                raise
            return False  # with the new URLs, if it is invited still

    def _send(self, round_: ClientRound, invitation: Invitation) -> bool:
        """Make what is submitted and submit it, unless that is done."""
        has_sent = round_.has_sent()
        if has_sent or round_.has_ended():
            if has_sent:  # by this client before it was started again
                self._rejection_watch.add(round_, invitation)
            self._answered = round_.id
            return False
        if self._made is None or self._made[0] != round_.id:
            # Kept while the connection is lost: training again would take as long again.
            self._made = round_.id, self._make(round_, invitation)
        round_.submit(**self._made[1])
        self._answered = round_.id
        self._made = None
        self._rejection_watch.add(round_, invitation)
        return True

    def _make(self, round_: ClientRound, invitation: Invitation) -> dict[str, Any]:
        """Return what is submitted."""
        if invitation.is_evaluation:
            assert self._evaluate is not None  # noqa: S101 - for mypy: the caller has looked
            metrics, samples = self._evaluate(round_.fetch_model(), invitation)
            found = check_metrics(metrics)
            if not found:
                raise UpdateError("evaluate returned no metrics")
            return {"update": EVALUATION, "samples": samples, "metrics": found}
        if self._mask is not None:
            round_.check_mask(self._mask)
        before = round_.fetch_model()
        # Training may change the arrays that it gets.
        given = {name: tensor.copy() for name, tensor in before.items()}
        invitation = self._access.assigned(invitation)
        started = time.monotonic()
        trained, samples, *measured = self._train(given, invitation)
        report = {
            "train_seconds": max(1e-6, time.monotonic() - started),
            **_work_of(invitation, samples),
        }
        update = trained if self._updates == MODELS else change_of(before, trained)
        if self._mask is not None:
            return {"update": update, "samples": samples, "mask": self._mask}
        return {
            "update": update,
            "samples": samples,
            "codec": _codec_of(self._codec, invitation.number),
            "training": report,
            "metrics": measured[0] if measured else None,
        }


def _work_of(invitation: Invitation, samples: object) -> dict[str, float]:
    """Return the work that the settings state: a client's speed and its steps follow from it."""
    stated = {name: invitation.settings.get(name) for name in ("batch_size", "epochs")}
    work = {name: count for name, count in stated.items() if type(count) is int and count >= 1}
    if len(work) == len(stated) and type(samples) is int and samples >= 1:
        work["steps"] = work["epochs"] * -(-samples // work["batch_size"])
    return {**work}


def _codec_of(codec: str | Compression | None, number: int) -> str | Compression | None:
    """Return how an update is compressed in a round: with a seed of its own, if it has one."""
    if not isinstance(codec, Compression) or codec.seed is None:
        return codec
    return replace(codec, seed=(codec.seed + number) % SEEDS)


def _states(access: TrainingAccess, pause: float, patience: float) -> Iterator[TrainingState]:
    while True:
        state = _persistently(access.state, patience)
        yield state
        # After the end, it is only awaited what has become of the last update.
        time.sleep(min(pause, SETTLE_SECONDS) if state.status == ENDED else pause)


def _persistently(request: Callable[[], Any], patience: float) -> Any:
    """Repeat what fails for want of a connection, as long as patience lasts."""
    give_up = time.monotonic() + patience
    pause = FIRST_PAUSE_SECONDS
    while True:
        try:
            return request()
        except UnreadableObjectError:
            raise
        except (StoreError, ServiceError, TicketUnansweredError) as error:
            if time.monotonic() + pause > give_up or _is_rejected(error):
                raise
            logger.warning("trying again in %.0f s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_rejected(error: Exception) -> bool:
    """Whether trying again does not help: credentials or region are missing, or do not do."""
    codes = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch")
    missing = ("no AWS credentials", "no AWS region")
    return any(text in str(error) for text in (*codes, *missing))
