"""Requests with a ticket's URLs, and what their responses mean for the ticket."""

from collections.abc import Mapping
from functools import cached_property
from typing import Final, NoReturn

from urllib3.exceptions import HTTPError

from gradshard.tickets.http_client import MAX_RESPONSE_BYTES, HttpClient, Response
from gradshard.tickets.ticket_validity import AnyTicket, invalid
from gradshard_core.errors import ChangedObjectError, TicketError, TicketUnansweredError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from gradshard_core.s3.range_streams import Body
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.traffic import Meter

TRANSIENT_CODES: Final = frozenset(
    {"RequestTimeout", "ConditionalRequestConflict", "OperationAborted"}
)
"""Errors of S3 that a retry may not meet: of a slow connection, or of two requests at once."""

CHECKSUM_HEADER: Final = "x-amz-checksum-crc64nvme"

_MAX_LENGTH_DIGITS: Final = 15


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

    def ask(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> Response | None:
        """Send a request without a body, with retries; return None if there is no object."""
        response = self.send(method, url, headers or {})
        if response.status_code != 404 and response.status_code >= 300:
            self.reject(response)
        self.check_is_s3(response)
        return None if response.status_code == 404 else response

    def describe(self, url: str) -> Response | None:
        """Ask for an object's headers with its checksum; return None if there is no object."""
        return self.ask("HEAD", url, CHECKSUM_MODE)

    def send(
        self, method: str, url: str, headers: Mapping[str, str], *, stream: bool = False
    ) -> Response:
        """Send a request without a body, with retries; return any response but of a failure."""
        retries = Retries()
        while True:
            try:
                response = self.http.send(method, url, headers, stream=stream)
                if response.status_code < 500:
                    return response
                if stream:
                    response.raw.close()
                reason = f"S3 answered {response.status_code}"
            except OSError as error:
                reason = str(error)
            retries.record_failure(
                reason,
                lambda times, reasons: TicketUnansweredError(
                    f"S3 does not answer for {self.ticket.about}, {times} times in a "
                    f"row; see whether this machine is connected, and try again ({reasons})"
                ),
            )

    def fail(self, response: Response) -> NoReturn:
        """Raise an OSError if a retry may succeed, else a TicketError."""
        is_transient = response.code in TRANSIENT_CODES or response.status_code == 409
        if response.status_code < 500 and not is_transient:
            self.reject(response)
        raise OSError(f"S3 answered {response.code or response.status_code}")

    def reject(self, response: Response) -> NoReturn:
        """Say why S3 does not take the ticket; of its response only the code, which is plain."""
        if not (response.is_of_s3 or response.code):
            raise self.not_s3(str(response.status_code))
        raise invalid(self.ticket, response.code or str(response.status_code))

    def check_is_s3(self, response: Response) -> None:
        """Check that an answer comes from S3.

        Raises
        ------
        TicketError
            The answer does not come from S3.
        """
        if not response.is_of_s3:
            raise self.not_s3(f"{response.status_code} without a request's id")

    def header(self, response: Response, name: str) -> str:
        """Return a header that S3 always sends."""
        found = response.headers.get(name)
        if not found:
            raise self.not_s3(f"no {name}")
        return found

    def content_length(self, response: Response) -> int:
        """Return the length of the object that an answer is about."""
        return self.parse_length(self.header(response, "Content-Length"), "no length")

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
        response = self._head()
        if response is None:
            return None
        etag = self._requests.header(response, "ETag")
        return ObjectVersion(key, "", etag, self._requests.content_length(response))

    def checksum(self, _key: str, *, etag: str | None = None) -> str | None:
        """Return the CRC-64/NVME that S3 keeps of the object of that ETag, in base64.

        Returns
        -------
        str or None
            Empty if S3 keeps none, and None if there is no such object.
        """
        response = self._head()
        if response is None or etag not in {None, response.headers.get("ETag")}:
            return None
        return response.headers.get(CHECKSUM_HEADER, "")

    def _head(self) -> Response | None:
        self.meter.add(gets=1)
        return self._requests.describe(self._head_url)

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of the object."""
        self.meter.add(gets=1)
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": source.etag}
        response = self._requests.http.send("GET", self._url, headers, stream=True)
        if response.status_code in {404, 412}:
            raise ChangedObjectError(f"{source.key}: it changed while it was fetched")
        if 400 <= response.status_code < 500:
            self._requests.reject(response)
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if response.headers.get("Content-Range") != expected:
            response.raw.close()
            raise OSError(f"S3 answered {response.status_code}")
        return ResponseBody(response)


class ResponseBody:
    """An answer's body, whose errors do not contain its URL."""

    def __init__(self, response: Response) -> None:
        self._raw = response.raw
        self.close = response.raw.close

    def readinto(self, buffer: memoryview, /) -> int:
        """Read into a buffer; return how many bytes, 0 at the end."""
        try:
            count: int = self._raw.readinto(buffer)
        except HTTPError as error:
            raise OSError(f"the connection broke ({type(error).__name__})") from None
        return count

    def read(self) -> bytes:
        """Read what is left, at most what an answer at once may have."""
        body = bytearray(MAX_RESPONSE_BYTES + 1)
        left = memoryview(body)
        while left and (count := self.readinto(left)):
            left = left[count:]
        if not len(left):
            raise OSError(f"the answer is longer than {MAX_RESPONSE_BYTES} bytes")
        return bytes(body[: len(body) - len(left)])
