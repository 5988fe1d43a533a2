"""Find out whether the updates that a client sent in a training count, or why not."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from gradshard.client.training_participant import ClientRound, TrainingAccess
from gradshard_core.errors import TicketError, TicketUnansweredError
from gradshard_core.records.inbox import has_counted
from gradshard_core.records.training_state import ENDED, Invitation, TrainingState

logger = logging.getLogger("gradshard")

SETTLE_SECONDS: Final = 10.0
"""A function says within this time that an update came too late: it runs at the event of the
upload, which takes seconds, while the training may go on at once."""


@dataclass(frozen=True)
class RejectedUpdate:
    """An update, or the metrics of an evaluation, that did not count.

    Parameters
    ----------
    round_id
        The round, or the inbox of a buffered training.
    number, is_evaluation
        Those of its invitation.
    reason
        Why it was rejected.
    """

    round_id: str
    number: int
    is_evaluation: bool
    reason: str


OnRejection = Callable[[RejectedUpdate], None]
"""Called when the client reads that one of its updates was rejected."""


@dataclass
class _Sent:
    """An update of which the client does not know yet whether it counts."""

    round: ClientRound
    invitation: Invitation
    at: float
    is_asked: bool = False
    """Whether it was asked for since its round is over."""

    @property
    def is_recent(self) -> bool:
        """Whether its rejection may still be on the way."""
        return time.monotonic() - self.at < SETTLE_SECONDS


class RejectionWatch:
    """Follows the updates that a client has sent, until it is known whether they count.

    Those of a buffered training may be rejected at any time, and their state names the ones that
    have counted. Of those sent to a round it asks when the round is over.

    Parameters
    ----------
    access
        The training, for the client.
    on_rejection
        Called with each rejected update.
    """

    def __init__(self, access: TrainingAccess, on_rejection: OnRejection | None = None) -> None:
        self._access, self._on_rejection = access, on_rejection
        self._sent: dict[str, _Sent] = {}
        self._ended_at: float | None = None
        self.rejected: list[RejectedUpdate] = []

    @property
    def is_waiting(self) -> bool:
        """Whether it is not known yet what has become of an update."""
        return bool(self._sent)

    def add(self, round_: ClientRound, invitation: Invitation) -> None:
        """Follow the update that was sent in answer to an invitation."""
        self._sent[round_.id] = _Sent(round_, invitation, time.monotonic())

    def check(self, state: TrainingState) -> None:
        """Ask whether updates were rejected, those that may have been, and tell it."""
        if state.status == ENDED and self._ended_at is None:
            self._ended_at = time.monotonic()
        for name, sent in list(self._sent.items()):
            invitation, is_last = sent.invitation, self._is_last(sent.invitation)
            is_settled = is_last or self._is_settled(invitation, state)
            # One that came too late may be rejected a little later.
            is_over = is_settled and (is_last or not sent.is_recent)
            reason = None
            if self._has_counted(invitation, state):
                is_over = True
            elif is_over or (is_settled and not sent.is_asked) or invitation.is_open:
                reason = self._reason(sent)
                sent.is_asked = is_settled
            if reason is not None or is_over:
                del self._sent[name]
            if reason is not None:
                self._tell(sent, reason)

    def _is_last(self, invitation: Invitation) -> bool:
        """Whether the training has ended, and rejects the answer to an invitation no more.

        A buffered training rejects the updates that wait once the state of its end is written.
        """
        if self._ended_at is None:
            return False
        return not invitation.is_open or time.monotonic() - self._ended_at >= SETTLE_SECONDS

    def _is_settled(self, invitation: Invitation, state: TrainingState) -> bool:
        """Whether the answer to an invitation has counted, or was rejected by now."""
        if not invitation.is_open:
            current = state.invitation
            return current is None or current.round_id != invitation.round_id
        return self._has_counted(invitation, state) or invitation.version < state.settled_before

    def _has_counted(self, invitation: Invitation, state: TrainingState) -> bool:
        """Whether an update of a buffered training has counted, as far as the state says it."""
        client, version = self._access.client, invitation.version
        return invitation.is_open and has_counted(state.counted, client, version) is not None

    def _reason(self, sent: _Sent) -> str | None:
        try:
            return sent.round.rejection()
        except TicketUnansweredError:
            raise
        except TicketError as error:
            logger.warning("%s: whether the update counts is not known: %s", sent.round.id, error)
            return None

    def _tell(self, sent: _Sent, reason: str) -> None:
        invitation = sent.invitation
        logger.warning("%s: the update was rejected: %s", sent.round.id, reason)
        found = RejectedUpdate(sent.round.id, invitation.number, invitation.is_evaluation, reason)
        self.rejected.append(found)
        if self._on_rejection is not None:
            self._on_rejection(found)
