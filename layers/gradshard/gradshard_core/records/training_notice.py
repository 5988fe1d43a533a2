"""The notice of a client without AWS credentials: what a training tells the holder of its ticket.

It has the training's state without the other clients, the ticket of the round to which the client
is invited, and URLs with which the holder reads the notice and asks for it again. They are signed
with a function's credentials, which end after some hours.

- ``trainings/TRAINING/notices/CLIENT.notice`` is JSON: ``notice``, the format's version;
  ``client``; ``poll_interval``, in seconds; ``updates``, "models" or "deltas"; ``state``, as in
  ``state.json``; ``ticket``, of the round; ``urls``, newer ones; ``signed_at``. The last four are
  null or empty until a function has written it.
- ``trainings/TRAINING/renewals/CLIENT.renewal``: an empty PUT (``Content-Length: 0``, which is
  signed) asks for a new notice.
- The file of a training's ticket is JSON: ``training_ticket``, the format's version; ``training``;
  ``client``; ``expires_at``; and ``urls``, newest first, a list of ``notice`` for a GET and
  ``renewal`` for that PUT.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple, Self

from gradshard_core.records.training_state import TrainingState

VERSION: Final = 1


class NoticeUrls(NamedTuple):
    """URLs of a notice; they are secrets.

    Parameters
    ----------
    notice
        The URL for a GET of the notice.
    renewal
        The URL for a PUT by which its holder asks for it to be written anew.
    """

    notice: str
    renewal: str


@dataclass(frozen=True)
class Notice:
    """The content of a client's notice.

    Parameters
    ----------
    client
        The client.
    poll_interval, updates
        The seconds between two looks, and the content of an update: models or changes of them.
    state
        The training's state, in which only this client appears.
    ticket
        The ticket of the round to which it is invited, as JSON.
    urls
        The notice's own.
    signed_at
        The time at which it was written, ISO 8601; empty if no function has written it yet.
    """

    client: str
    poll_interval: float = 0.0
    updates: str = ""
    state: TrainingState | None = None
    ticket: Mapping[str, Any] | None = None
    urls: NoticeUrls | None = None
    signed_at: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "notice": VERSION,
            "client": self.client,
            "poll_interval": self.poll_interval,
            "updates": self.updates,
            "state": self.state and self.state.to_json(),
            "ticket": self.ticket,
            "urls": self.urls and self.urls._asdict(),
            "signed_at": self.signed_at,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        ValueError
            It is of another version, or its time or its pause is none.
        """
        given = dict(fields)
        if given.pop("notice") != VERSION:
            raise ValueError("a notice of another version")
        state, urls = given["state"], given["urls"]
        given["state"] = state and TrainingState.from_json(state)
        given["urls"] = urls and NoticeUrls(**urls)
        read = cls(**given)
        if read.signed_at and datetime.fromisoformat(read.signed_at).tzinfo is None:
            raise ValueError("a time without a zone")
        if not 0 <= read.poll_interval < math.inf:
            raise ValueError("a pause without an end")
        return read
