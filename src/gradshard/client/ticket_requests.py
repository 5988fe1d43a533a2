"""Requests with a ticket's URLs, and what their answers mean for the ticket."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from typing import Final, NoReturn, Protocol

from urllib3.exceptions import HTTPError

from gradshard.client.presigned import MAX_ANSWER_BYTES, Answer, HttpClient
from gradshard_core.errors import ChangedObjectError, TicketError, TicketUnansweredError
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.streams import Body
from gradshard_core.s3.traffic import Meter

TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "ConditionalRequestConflict", "OperationAborted"}
)
"""Errors of S3 that a retry may not meet: of a slow connection, or of two requests at once."""

_MAX_LENGTH_DIGITS: Final = 15


class AnyTicket(Protocol):
    """A ticket, as far as its requests are concerned."""

    @property
    def client(self) -> str:
        """The client that it is for."""

    @property
    def about(self) -> str:
        """The round or training of the ticket, in errors."""

    @property
    def expires_at(self) -> datetime:
        """The time at which S3 rejects it."""

    @property
    def host(self) -> str:
        """The host of its requests."""


class TicketRequests:
    """Sends a ticket's requests and turns S3's rejections into errors that say what to do.

    Parameters
    ----------
    ticket
        The ticket. Its host is checked at the first request.
    """

    def __init__(self, ticket: AnyTicket) -> None:
        self.ticket = ticket

    @cached_property
    def http(self) -> HttpClient:
        """The client of the ticket's host; it sends a request once."""
        return HttpClient(f"{self.ticket.host}/")

    def ask(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Answer | None:
        """Send a request without a body, with retries; return None if there is no object."""
        answer = self.send(method, url, headers or {})
        if answer.status_code != 404 and answer.status_code >= 300:
            self.reject(answer)
        self.check_is_s3(answer)
        return None if answer.status_code == 404 else answer

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, stream: bool = False
    ) -> Answer:
        """Send a request without a body, with retries; return any answer but of a failure."""
        retries = Retries()
        while True:
            try:
                answer = self.http.send(method, url, headers, stream=stream)
                if answer.status_code < 500:
                    return answer
                if stream:
                    answer.raw.close()
                reason = f"S3 answered {answer.status_code}"
            except OSError as error:
                reason = str(error)
            retries.record_failure(
                reason,
                lambda times, reasons: TicketUnansweredError(
                    f"S3 does not answer for {self.ticket.about}, {times} times in a "
                    f"row; see whether this machine is connected, and try again ({reasons})"
                ),
            )

    def fail(self, answer: Answer) -> NoReturn:
        """Raise an OSError if a retry may succeed, else a TicketError."""
        is_transient = answer.code in TRANSIENT_CODES or answer.status_code == 409
        if answer.status_code < 500 and not is_transient:
            self.reject(answer)
        raise OSError(f"S3 answered {answer.code or answer.status_code}")

    def reject(self, answer: Answer) -> NoReturn:
        """Say why S3 does not take the ticket; of its answer only the code, which is plain."""
        if not (answer.is_of_s3 or answer.code):
            raise self.not_s3(str(answer.status_code))
        ticket = self.ticket
        if datetime.now(UTC) >= ticket.expires_at:
            why = f"it expired at {ticket.expires_at.isoformat(timespec='seconds')}"
        else:
            why = (
                f"S3 answered {answer.code or answer.status_code}: the credentials "
                "it was made with have ended, or may not do this"
            )
        raise TicketError(
            f"the ticket of client {ticket.client!r} in {ticket.about} is not valid: "
            f"{why}; ask its operator for another"
        )

    def check_is_s3(self, answer: Answer) -> None:
        """Check that an answer comes from S3.

        Raises
        ------
        TicketError
            The answer does not come from S3.
        """
        if not answer.is_of_s3:
            raise self.not_s3(f"{answer.status_code} without a request's id")

    def header(self, answer: Answer, name: str) -> str:
        """Return a header that S3 always sends."""
        found = answer.headers.get(name)
        if not found:
            raise self.not_s3(f"no {name}")
        return found

    def content_length(self, answer: Answer) -> int:
        """Return the length of the object that an answer is about."""
        return self.parse_length(self.header(answer, "Content-Length"), "no length")

    def parse_length(self, text: str, otherwise: str) -> int:
        """Read a length in an answer; ``otherwise`` says what is wrong if it is not one."""
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_LENGTH_DIGITS):
            raise self.not_s3(otherwise)
        return int(text)

    def not_s3(self, what: str) -> TicketError:
        """Return the error for an answer that S3 does not give."""
        return TicketError(
            f"{self.ticket.host} does not answer as S3 does ({what}): something between may answer "
            "instead, such as a network that asks for a login; open a web page, or use another "
            "network"
        )


class UrlReader:
    """Opens ranges of the object that one of a ticket's URLs reads.

    Parameters
    ----------
    requests
        Sends the ticket's requests.
    url, head_url
        The URLs for GETs of the object, and for a HEAD of it with its checksum.
    """

    def __init__(self, requests: TicketRequests, url: str, head_url: str) -> None:
        self.meter = Meter()
        self._requests, self._url, self._head_url = requests, url, head_url

    def head(self, key: str) -> ObjectVersion | None:
        """Return the object under a name for errors; None if there is none."""
        answer = self._head()
        if answer is None:
            return None
        etag = self._requests.header(answer, "ETag")
        return ObjectVersion(key, "", etag, self._requests.content_length(answer))

    def checksum(self, _key: str, *, etag: str | None = None) -> str | None:
        """Return the CRC-64/NVME that S3 keeps of the object of that ETag, in base64.

        Returns
        -------
        str or None
            Empty if S3 keeps none, and None if there is no such object.
        """
        answer = self._head()
        if answer is None or etag not in {None, answer.headers.get("ETag")}:
            return None
        return answer.headers.get("x-amz-checksum-crc64nvme", "")

    def _head(self) -> Answer | None:
        self.meter.add(gets=1)
        return self._requests.ask("HEAD", self._head_url, CHECKSUM_MODE)

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of the object."""
        self.meter.add(gets=1)
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": source.etag}
        answer = self._requests.http.send("GET", self._url, headers, stream=True)
        if answer.status_code in {404, 412}:
            raise ChangedObjectError(f"{source.key}: it changed while it was fetched")
        if 400 <= answer.status_code < 500:
            self._requests.reject(answer)
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if answer.headers.get("Content-Range") != expected:
            answer.raw.close()
            raise OSError(f"S3 answered {answer.status_code}")
        return AnswerBody(answer)


class AnswerBody:
    """An answer's body, whose errors do not contain its URL."""

    def __init__(self, answer: Answer) -> None:
        self._raw = answer.raw
        self.close = answer.raw.close

    def readinto(self, buffer: memoryview, /) -> int:
        """Read into a buffer; return how many bytes, 0 at the end."""
        try:
            count: int = self._raw.readinto(buffer)
        except HTTPError as error:
            raise OSError(f"the connection broke ({type(error).__name__})") from None
        return count

    def read(self) -> bytes:
        """Read what is left, at most what an answer at once may have."""
        body = bytearray(MAX_ANSWER_BYTES + 1)
        left = memoryview(body)
        while left and (count := self.readinto(left)):
            left = left[count:]
        if not len(left):
            raise OSError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
        return bytes(body[: len(body) - len(left)])
