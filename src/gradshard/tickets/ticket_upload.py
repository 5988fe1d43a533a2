"""The upload of one update with a ticket: in one PUT, or in parts if the ticket is for large ones.

A ticket uploads once. So a repeated upload of the same update must be recognised: the first one may
have succeeded although its answer was lost.

A ticket cannot sign a checksum before there is an update, so S3 cannot reject bytes that were
damaged on the way. It says what it has stored instead: its answers have the CRC-64/NVME.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutObject.html (2026-11)
"""

import re
from functools import cached_property
from typing import IO, Any, Final

from gradshard.tickets.http_client import Response
from gradshard.tickets.part_urls import PartUrls, encode_completion, parse_part_list
from gradshard.tickets.round_ticket import Ticket
from gradshard.tickets.url_requests import CHECKSUM_HEADER, TicketRequests
from gradshard.updates.upload_source import Content
from gradshard.updates.uploads import (
    Progress,
    UnseekableBody,
    checksum_of,
    crc_of,
    has_etag,
    holds_by_etag,
    send_parts,
)
from gradshard_core.errors import TicketError, TicketUnansweredError
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.retries import Retries

UPLOAD_ATTEMPTS: Final = 3
"""Attempts to send a whole update."""

# S3 then rejects a request before the body is sent. botocore looks for the value in bytes.
_EXPECT_CONTINUE: Final = {"Expect": b"100-continue"}
"""So that S3 can answer 412 before the body is sent; AWS does not state that it does."""

_CHECKSUM: Final = re.compile(rb"<ChecksumCRC64NVME>([A-Za-z0-9+/=]{12})<")


class TicketUpload:
    """The upload of one update.

    Parameters
    ----------
    requests, ticket
        Sends the ticket's requests, and the ticket.
    content
        The update, padded to a length that the ticket takes.
    """

    def __init__(self, requests: TicketRequests, ticket: Ticket, content: Content) -> None:
        self._requests, self._ticket, self._content = requests, ticket, content

    def is_done(self) -> bool:
        """Return whether S3 has this update already.

        Raises
        ------
        TicketError
            S3 has another one.
        """
        response = self._requests.describe(self._ticket.uploaded_url)
        if response is None:
            return False
        is_same = self._is_same(response)
        if is_same:
            return True
        ticket, nbytes = self._ticket, self._requests.content_length(response)
        used = f"the ticket of client {ticket.client!r} was used already: "
        if is_same is None:
            raise TicketError(
                f"{used}an update of {nbytes} bytes is in round {ticket.round_id!r}; whether it is "
                "this one cannot be told, since it is under a KMS key and S3 gives no CRC-64/NVME"
            )
        damaged = ", or this one was damaged on the way" if nbytes == self._content.nbytes else ""
        raise TicketError(
            f"{used}another update, of {nbytes} bytes, is in round {ticket.round_id!r}{damaged}; "
            f"a ticket uploads once; {self._advice}"
        )

    def send(self, progress: Progress) -> None:
        """Upload the update.

        Raises
        ------
        TicketError
            S3 rejects the ticket, went on failing, or has stored other bytes than were sent.
        UpdateError
            The update changed meanwhile.
        """
        if self._ticket.parts:
            self._send_parts(self._ticket.parts, progress)
        else:
            self._put(progress)

    def _put(self, progress: Progress) -> None:
        content = self._content
        headers: dict[str, Any] = {
            "Content-Length": str(content.nbytes),
            "If-None-Match": "*",
            **_EXPECT_CONTINUE,
        }
        url = self._ticket.upload_url(content.nbytes)
        retries = Retries(attempts=UPLOAD_ATTEMPTS)
        while True:
            body = UnseekableBody(content, progress)
            progress(0, content.nbytes)
            try:
                response = self._requests.http.send("PUT", url, headers, body)
                if response.status_code == 200:
                    self._requests.check_is_s3(response)
                    return self._check_stored(response.headers.get(CHECKSUM_HEADER))
                if response.status_code == 412:
                    return self._check_is_done()
                self._requests.fail(response)
            except OSError as error:
                reason = str(error)
            body.raise_failure()
            retries.record_failure(
                reason,
                lambda times, reasons: TicketUnansweredError(
                    f"uploading to round {self._ticket.round_id!r} broke {times} times; "
                    f"submit it again ({reasons})"
                ),
            )

    def _send_parts(self, urls: PartUrls, progress: Progress) -> None:
        """Send the parts that S3 does not have yet, and make the update of all."""
        ranges = urls.ranges(self._content.nbytes)
        response = self._requests.ask("GET", urls.listing)
        if response is None:
            raise self._upload_is_gone()
        stored = parse_part_list(response.content)
        held = [part for part in stored if holds_by_etag(self._content, part, ranges)]

        def send(number: int, body: IO[bytes], nbytes: int) -> Part:
            return self._put_part(urls.part_url(number, nbytes), number, body, ranges[number - 1])

        parts = send_parts(self._content, ranges, held, send, progress)
        self._complete(urls, encode_completion(parts))

    def _put_part(self, url: str, number: int, body: IO[bytes], range_: tuple[int, int]) -> Part:
        nbytes = range_[1] - range_[0]
        headers = {"Content-Length": str(nbytes), **_EXPECT_CONTINUE}
        retries = Retries()
        while True:
            try:
                response = self._requests.http.send("PUT", url, headers, body)
                if response.status_code == 404:
                    raise self._upload_is_gone()
                if response.status_code != 200:
                    self._requests.fail(response)
                self._requests.check_is_s3(response)
                if self._is_intact(response, range_):
                    return Part(number, self._requests.header(response, "ETag"), nbytes)
                reason = "S3 stored other bytes than were sent"
            except OSError as error:
                reason = str(error)
            retries.record_failure(
                reason,
                lambda times, reasons: TicketUnansweredError(
                    f"uploading part {number} to round {self._ticket.round_id!r} broke {times} "
                    f"times; submit again: what has arrived is not sent again ({reasons})"
                ),
            )
            body.seek(0)

    def _complete(self, urls: PartUrls, body: bytes) -> None:
        retries = Retries()
        while True:
            try:
                response = self._requests.http.send(
                    "POST", urls.completion, {"If-None-Match": "*"}, body
                )
                if self._is_completed(response):
                    return
            except OSError as error:
                reason = str(error)
            retries.record_failure(
                reason,
                lambda times, reasons: TicketUnansweredError(
                    f"S3 did not finish the upload to round {self._ticket.round_id!r}, {times} "
                    f"times in a row; submit again: what has arrived is not sent again ({reasons})"
                ),
            )

    def _is_completed(self, response: Response) -> bool:
        """Return whether S3 has made the update; raise an OSError if a retry may succeed."""
        # S3 sends the status before it is done, so the body may still contain an error.
        if response.status_code == 200 and not response.code:
            self._requests.check_is_s3(response)
            found = _CHECKSUM.search(response.content)
            self._check_stored(found and found[1].decode())
            return True
        # 404 or 412: an earlier attempt may have succeeded although its answer was lost.
        if response.status_code in {404, 412}:
            self._check_is_done()
            return True
        if response.status_code == 400:
            raise TicketError(
                f"S3 cannot put the parts of client {self._ticket.client!r} in round "
                f"{self._ticket.round_id!r} together ({response.code}): another program sent some "
                "with the same ticket meanwhile; submit again"
            )
        if response.status_code != 200:
            self._requests.fail(response)
        raise OSError(f"S3 answered {response.code}")

    def _is_same(self, response: Response) -> bool | None:
        """Return whether the update that S3 has is this one; None if a HEAD does not tell."""
        if self._requests.content_length(response) != self._content.nbytes:
            return False
        if found := response.headers.get(CHECKSUM_HEADER):
            return bool(found == self._checksum)
        if response.headers.get("x-amz-server-side-encryption", "").startswith("aws:kms"):
            return None
        parts = self._ticket.parts
        ranges = parts.ranges(self._content.nbytes) if parts else None
        return has_etag(self._content, self._requests.header(response, "ETag"), ranges)

    @cached_property
    def _checksum(self) -> str:
        return checksum_of(self._content)

    def _is_intact(self, response: Response, range_: tuple[int, int]) -> bool:
        """Return whether S3 has stored a part as it was sent, as far as its answer says."""
        found = response.headers.get(CHECKSUM_HEADER)
        return not found or found == crc_of(self._content, range_)

    def _check_stored(self, found: str | None) -> None:
        """Check that S3 has stored the update that was sent, by the CRC that its answer gives."""
        if found:
            is_same: bool | None = found == self._checksum
        else:
            # S3 leaves it out if it joins parts under a KMS key. Other stores may have none.
            response = self._requests.describe(self._ticket.uploaded_url)
            if response is None:
                raise self._taken_away()
            found = response.headers.get(CHECKSUM_HEADER)
            is_same = self._is_same(response)
        if is_same is False:
            raise TicketError(
                f"S3 has stored other bytes in round {self._ticket.round_id!r} than this machine "
                f"has sent as client {self._ticket.client!r} (CRC-64/NVME {found or 'unknown'}, "
                f"not {self._checksum}): they were damaged on the way, or the update changed while "
                f"it was sent; {self._advice}"
            )

    @property
    def _advice(self) -> str:
        """What lets the client upload again."""
        if self._ticket.parts:
            return "ask its operator for another ticket"
        return "have its operator delete that update, and submit again"

    def _check_is_done(self) -> None:
        # S3 has an update: of an earlier attempt, or of someone else who has the ticket.
        if not self.is_done():
            raise self._taken_away()

    def _taken_away(self) -> TicketError:
        return TicketError(
            f"the update of client {self._ticket.client!r} in round {self._ticket.round_id!r} "
            "was taken away meanwhile; ask the round's operator"
        )

    def _upload_is_gone(self) -> TicketError:
        return TicketError(
            f"the upload of client {self._ticket.client!r} to round {self._ticket.round_id!r} that "
            "the ticket was made for is gone: its update was taken away, or it lay unfinished for "
            "too long; ask the round's operator for another ticket"
        )
