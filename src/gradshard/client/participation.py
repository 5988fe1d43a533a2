"""A client's loop: wait for invitations of a training, train, submit, until it has ended."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from gradshard.client.deltas import change_of
from gradshard.client.tensors import Array
from gradshard.client.training_access import ClientRound, TrainingAccess
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
from gradshard_core.formats.metrics import check_metrics
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
    """What a client did in a training.

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
    access: TrainingAccess,
    train: Train,
    evaluate: Evaluate | None = None,
    *,
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
    patience
        How many seconds a lost connection may last.

    Raises
    ------
    TrainingNotFoundError
        There is no such training.
    UpdateError
        What ``train`` or ``evaluate`` returned could not be averaged.
    TicketError
        S3 rejects the client's ticket.
    StoreError, ServiceError
        S3 rejects the client's requests, or cannot be reached for longer than ``patience``.
    """
    done: dict[bool, list[int]] = {False: [], True: []}
    pause = _persistently(access.poll_seconds, patience)
    _join(access, patience)
    worker = _persistently(lambda: _Worker(access, train, evaluate), patience)
    for state in _states(access, pause, patience):
        invitation = state.invitation
        if state.status == ENDED:
            return Participation(tuple(done[False]), tuple(done[True]), state)
        if invitation is None or access.client not in invitation.clients:
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

    def __init__(self, access: TrainingAccess, train: Train, evaluate: Evaluate | None) -> None:
        self._access = access
        self._updates = access.updates()
        self._train, self._evaluate = train, evaluate
        self._answered = ""
        self._made: tuple[str, dict[str, Any]] | None = None

    def answer(self, invitation: Invitation) -> bool:
        """Train or evaluate and submit, unless that is done; return whether it was done now."""
        if invitation.round_id == self._answered:
            return False
        if invitation.is_evaluation and self._evaluate is None:
            self._answered = invitation.round_id
            return False
        try:
            round_ = self._access.round(invitation)
            if round_.has_sent() or round_.has_ended():
                self._answered = invitation.round_id
                return False
            if self._made is None or self._made[0] != invitation.round_id:
                # Kept while the connection is lost: training again would take as long again.
                self._made = invitation.round_id, self._make(round_, invitation)
            round_.submit(**self._made[1])
        except (RoundStateError, RoundFailed, RoundNotFoundError, ModelNotFoundError) as error:
            if isinstance(error, RoundNotFoundError) or "just being opened" in str(error):
                return False  # in a moment it will be there
            logger.warning("%s: %s", invitation.round_id, error)
            self._answered = invitation.round_id
            return False
        except TicketUnansweredError:
            raise
        except TicketError:
            if not self._access.renew():
                raise
            return False  # with the new URLs, if it is invited still
        self._answered = invitation.round_id
        self._made = None
        return True

    def _make(self, round_: ClientRound, invitation: Invitation) -> dict[str, Any]:
        """Return what is submitted."""
        if invitation.is_evaluation:
            assert self._evaluate is not None  # noqa: S101 - for mypy: the caller has looked
            metrics, samples = self._evaluate(round_.fetch_model(), invitation)
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
        update = trained if self._updates == MODELS else change_of(before, trained)
        return {
            "update": update,
            "samples": samples,
            "training": report,
            "metrics": measured[0] if measured else None,
        }


def _states(access: TrainingAccess, pause: float, patience: float) -> Iterator[TrainingState]:
    while True:
        yield _persistently(access.state, patience)
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
        except (StoreError, ServiceError, TicketUnansweredError) as error:
            if time.monotonic() + pause > give_up or _is_rejected(error):
                raise
            logger.warning("trying again in %.0f s: %s", pause, error)
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _is_rejected(error: Exception) -> bool:
    """Whether trying again does not help: the credentials do not allow what was asked for."""
    codes = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "no AWS credentials")
    return any(code in str(error) for code in codes)
