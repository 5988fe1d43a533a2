"""Taking part in a round with a ticket, without AWS credentials."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradshard.client.round_participant import RoundAccess, Source
from gradshard.tickets.round_ticket import Ticket
from gradshard.tickets.ticket_upload import TicketUpload
from gradshard.tickets.url_requests import TicketRequests, UrlReader
from gradshard.updates.compression import Compression, compressed, decoded, keep_residual
from gradshard.updates.mask import Mask, check_unmasked, check_unreported, masked
from gradshard.updates.upload_source import Content, PaddedContent, check_finite, content_of
from gradshard.updates.uploads import Progress, ignore_progress
from gradshard_core.errors import RoundFailed, RoundStateError, UpdateError
from gradshard_core.formats.compressed_updates import check_taken
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys


class TicketRound(RoundAccess):
    """A round that the holder of a ticket takes part in.

    Parameters
    ----------
    ticket
        The ticket.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self._requests = TicketRequests(ticket)

    @property
    def id(self) -> str:
        """The round's id."""
        return self.ticket.round_id

    @property
    def client(self) -> str:
        """The client that the ticket is for."""
        return self.ticket.client

    def submit(
        self,
        update: Mapping[str, Any] | str | Path,
        samples: int | None = None,
        *,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Upload the client's update, which the ticket allows once.

        Submitting the same update again is no error. If the connection breaks, a PUT is sent again
        from its beginning, at most three times. Of an upload in parts only the broken part is sent
        again, and parts that have arrived stay for the next submission.

        Parameters
        ----------
        update, samples, codec, mask, training, metrics, progress
            As in :meth:`gradshard.client.round.Round.submit`.

        Raises
        ------
        UpdateError
            The update could not be averaged, or is too large; nothing was sent.
        RoundStateError
            The round has ended.
        TicketError
            The ticket was used for another update, or S3 does not accept it any more.
        """
        ticket = self.ticket
        if mask is not None:
            check_unreported(training, metrics, codec)
        with content_of(update, samples, training, metrics) as given:
            fitted = self._fit(given, ticket.required_layout(), allow_nonfinite=True)
            check_taken(fitted.layout, ticket.codecs)
            content = self._as_sent(fitted, codec, mask)
            # The length is checked first: it costs nothing.
            if content.nbytes > ticket.max_bytes:
                raise UpdateError(
                    f"the update is {content.nbytes} bytes, over the {ticket.max_bytes} of the "
                    "ticket; ask for one for larger updates"
                )
            if not ticket.allow_nonfinite:
                check_finite(decoded(fitted))
            padded = PaddedContent(content, ticket.padded_length(content.nbytes))
            upload = TicketUpload(self._requests, ticket, padded)
            if upload.is_done():
                # Again, since the program may have died between sending it and this.
                keep_residual(content)
                return
            if self.has_ended():
                raise RoundStateError(
                    f"round {self.id!r} has ended; ask for a ticket of the next one"
                )
            upload.send(progress or ignore_progress)
            keep_residual(content)

    def _as_sent(
        self, fitted: Content, codec: str | Compression | None, mask: Mask | None
    ) -> Content:
        """Return an update that is compressed or masked while it is read."""
        ticket = self.ticket
        agreement = ticket.agreement()
        if mask is not None:
            layout = ticket.required_layout()
            return masked(fitted, agreement, layout, mask, ticket.client, self.id)
        check_unmasked(agreement, self.id)
        return compressed(fitted, codec, ticket.codecs, self.id)

    def check_mask(self, mask: Mask) -> None:
        """Check that the round takes what this mask makes, before the client trains for it.

        Raises
        ------
        UpdateError
            The round is not masked, has another keeper, or too small a quorum.
        """
        mask.check(self.ticket.agreement(), self.client, self.id)

    def rejection(self) -> str | None:
        """Return the reason why the client's update was rejected or late, or None."""
        response = self._requests.ask("GET", self.ticket.rejection_url)
        if response is None:
            return None
        try:
            return str(json.loads(response.content)["reason"])
        except (ValueError, LookupError, TypeError, RecursionError):
            what = f"{len(response.content)} bytes that give no reason"
            raise self._requests.not_s3(what) from None

    def has_sent(self) -> bool:
        """Return whether there is an update of the client."""
        return self._requests.describe(self.ticket.uploaded_url) is not None

    def has_ended(self) -> bool:
        """Return whether the round has ended, completed or failed."""
        return self._requests.ask("HEAD", self.ticket.ended_url) is not None

    def status(self) -> dict[str, Any]:
        """Return the state of the round as far as the ticket shows it, as JSON.

        ``state`` is ``open``, ``completed`` or ``failed``; ``uploaded`` has the bytes of the
        client's update, and ``reason`` the reason of its rejection, or None.
        """
        response = self._requests.describe(self.ticket.uploaded_url)
        state = "open"
        if self.has_ended():
            state = "failed" if self._find_average() is None else "completed"
        return {
            "round": self.id,
            "client": self.client,
            "state": state,
            "uploaded": None if response is None else self._requests.content_length(response),
            "reason": self.rejection(),
            "expires_at": self.ticket.expires_at.isoformat(timespec="seconds"),
            "max_bytes": self.ticket.max_bytes,
        }

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the round has completed.

        Parameters
        ----------
        timeout
            The longest wait, in seconds.

        Raises
        ------
        RoundFailed
            The round failed.
        WaitTimeoutError
            The round has not ended within the timeout.
        """
        self._wait(timeout, lambda _: self.has_ended() or None)
        self._ended_average()

    def _average(self) -> Source:
        if not self.has_ended():
            raise self._not_ended()
        return self._result, self._ended_average(), ""

    def _model(self) -> Source:
        model = self.ticket.model
        if model is None:
            raise self._makes_no_version()
        name = f"the model of round {self.id!r}"
        source = ObjectVersion(name, "", model["etag"], model["nbytes"])
        return UrlReader(self._requests, model["url"], model["head_url"]), source, ""

    def _ended_average(self) -> ObjectVersion:
        source = self._find_average()
        if source is None:
            raise RoundFailed(
                f"round {self.id!r} failed; its operator can see why (gradshard show {self.id})"
            )
        return source

    def _find_average(self) -> ObjectVersion | None:
        """Return the average's object; None if there is none."""
        return self._result.head(RoundKeys(self.id).result)

    @property
    def _result(self) -> UrlReader:
        return UrlReader(self._requests, self.ticket.result_url, self.ticket.result_head_url)
