"""Signed requests to an AWS service over the standard library's HTTP.

boto3 with one client takes 55 MiB and 0.3 CPU-seconds of a cold start; this module takes 10 MiB.
Functions use it for all of their requests. A task also reads from the socket into its own buffer,
where boto3 copies the received bytes once more.
"""

import contextlib
import http.client
import io
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from http import HTTPStatus
from typing import NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

from gradshard_core.errors import StoreError
from gradshard_core.s3 import range_streams, timeouts
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.sigv4 import Credentials, presign, sign
from gradshard_core.s3.traffic import Meter
from gradshard_core.s3.transient_errors import TRANSIENT_CODES, TRANSIENT_STATUSES

T = TypeVar("T")


class Request(NamedTuple):
    """A request: path and query not yet encoded, ``timeout`` in seconds for each read or write.

    ``about`` says in an error what the request was for. The body is None if it is not known yet.
    """

    method: str
    path: str
    about: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None = b""
    timeout: float | None = None


class Failure(NamedTuple):
    """A service's description of an error."""

    code: str
    text: str


class Response:
    """A response whose body has not been read, and its connection."""

    def __init__(
        self,
        requests: "HttpRequests",
        connection: http.client.HTTPConnection,
        raw: http.client.HTTPResponse,
    ) -> None:
        self.requests, self.connection, self.raw = requests, connection, raw
        self.status = raw.status
        self.header = raw.getheader

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes of the body; 0 at its end."""
        with _failing_as_os_errors():
            return self.raw.readinto(buffer)

    def read(self) -> bytes:
        """Read the whole body."""
        with _failing_as_os_errors():
            return self.raw.read()

    def direct(self) -> "Response":
        """Return the fastest reader of the body, which also bounds the time of a read."""
        is_kept = self.connection.sock is not None
        return _Direct(self) if is_kept and self.raw.length else self

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end."""
        if self.raw.isclosed() and not self.raw.will_close:
            self.requests.keep(self.connection)
        else:
            self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Direct(Response):
    """A response whose body is read from the socket itself.

    Through http.client each TLS record of 16 KiB takes three more calls, a twentieth of a task's
    processor time. The body must have a known length, on a connection that is kept.
    """

    def __init__(self, response: Response) -> None:
        super().__init__(response.requests, response.connection, response.raw)
        self._left = self.raw.length or 0
        self._early: io.BytesIO | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        if self._early is None:
            # All bytes that http.client has read beyond the head.
            self._early = io.BytesIO(self.raw.read1(io.DEFAULT_BUFFER_SIZE))
        filled, wanted = self._early.readinto(buffer), len(buffer)
        receive = self.connection.sock.recv_into
        # The socket's timeout applies to one call, and a single byte ends a call.
        give_up = time.monotonic() + timeouts.READ_SECONDS
        # With the number given, a TLS socket does not create a view to find it out.
        while filled < wanted and (count := receive(buffer[filled:], wanted - filled)):
            filled += count
            if time.monotonic() >= give_up:
                break
        self._left -= filled
        if self._left == 0:
            self.raw.close()
        return filled

    def read(self) -> bytes:
        return range_streams.read_whole(self, self._left)


class HttpRequests:
    """Sends signed requests to one service; several threads may use one.

    Parameters
    ----------
    service
        Its name in signatures, such as ``s3``.
    url
        The URL of the service.
    meter
        Counts the retries.
    explain
        Returns what a response that is an error says.

    Attributes
    ----------
    receive_buffer_bytes
        Size of the kernel's buffer for each connection used from now on; 0 for the kernel's choice.
    """

    def __init__(
        self, service: str, url: str, meter: Meter, explain: Callable[[Response], Failure]
    ) -> None:
        parts = urlsplit(url)
        self._tls = _tls() if parts.scheme == "https" else None
        self._service, self._host = service, parts.netloc
        self._meter, self._explain = meter, explain
        self.receive_buffer_bytes = 0
        self.idle: list[http.client.HTTPConnection] = []

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection that is ready for another request."""
        self.idle.append(connection)

    def close(self) -> None:
        """Close the connections that are kept for further requests."""
        # Another thread may take the last one.
        with contextlib.suppress(IndexError):
            while True:
                self.idle.pop().close()

    def send(
        self,
        request: Request,
        accept: Callable[[Response], T],
        reject: Callable[[Failure], Exception],
    ) -> T:
        """Send a request, with retries after transient failures.

        Parameters
        ----------
        request
            The request to send.
        accept
            Makes the result from a response that is no error. Its ``OSError`` counts as a transient
            failure.
        reject
            Makes an error from what the service says.

        Raises
        ------
        StoreError
            The service kept failing.
        """
        retries = Retries(self._meter)
        while True:
            try:
                response = self._exchange(request)
                if response.status < HTTPStatus.MULTIPLE_CHOICES:
                    return accept(response)
            except (OSError, http.client.HTTPException) as error:
                named = type(error) is not OSError
                reason = f"{type(error).__name__}: {error}" if named else str(error)
            else:
                with response:
                    failure = self._explain(response)
                if (
                    response.status not in TRANSIENT_STATUSES
                    and failure.code not in TRANSIENT_CODES
                ):
                    raise reject(failure)
                reason = f"{self.answered} {response.status} {failure.code}"
            retries.record_failure(
                reason,
                lambda times, reasons: StoreError(
                    f"{request.about}: {request.method} failed {times} times in a row: {reasons}"
                ),
            )

    def sign(self, request: Request) -> tuple[str, dict[str, str]]:
        """Return the encoded target of a request, and all of its headers."""
        return sign(
            request.method,
            self._host,
            request.path,
            request.query,
            request.headers,
            request.body,
            service=self._service,
            region=os.environ["AWS_REGION"],
            credentials=_credentials(),
            now=datetime.now(UTC),
        )

    def presign(self, method: str, path: str, headers: Mapping[str, str], seconds: int) -> str:
        """Return a URL with which anyone may send a request to S3 for a time."""
        target = presign(
            method,
            self._host,
            path,
            headers,
            seconds=seconds,
            region=os.environ["AWS_REGION"],
            credentials=_credentials(),
            now=datetime.now(UTC),
        )
        return f"{'http' if self._tls is None else 'https'}://{self._host}{target}"

    def new_connection(self, timeout: float) -> http.client.HTTPConnection:
        """Return a connection that is not open yet."""
        if self._tls is None:
            return http.client.HTTPConnection(self._host, timeout=timeout)
        return http.client.HTTPSConnection(self._host, timeout=timeout, context=self._tls)

    @property
    def answered(self) -> str:
        """The beginning of a sentence about a response."""
        return f"{'S3' if self._service == 's3' else self._host} answered"

    def _exchange(self, request: Request) -> Response:
        """Send a request once; more often only on connections that had been closed meanwhile."""
        while True:
            connection = self._connection()
            reused = connection.sock is not None
            target, headers = self.sign(request)
            try:
                if not reused:
                    connection.connect()
                self._prepare(connection.sock, request.timeout)
                connection.request(request.method, target, request.body or None, headers)
                return Response(self, connection, connection.getresponse())
            except (OSError, http.client.HTTPException):
                connection.close()
                if not reused:
                    raise
                # The service closes idle connections, most likely the other ones, too.
                self.close()

    def _prepare(self, connected: socket.socket, timeout: float | None) -> None:
        connected.settimeout(timeouts.ANSWER_SECONDS if timeout is None else timeout)
        # Otherwise the kernel lets each grow to several MB, which are the function's memory.
        if self.receive_buffer_bytes:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)

    def _connection(self) -> http.client.HTTPConnection:
        try:
            return self.idle.pop()
        except IndexError:
            return self.new_connection(timeouts.READ_SECONDS)


def endpoint_url(service: str) -> str | None:
    """Return the URL that the environment gives for a service, as it does for boto3.

    An empty one is none: the template's ``EndpointUrl`` is empty on AWS.
    """
    given = os.environ.get(f"AWS_ENDPOINT_URL_{service}") or os.environ.get("AWS_ENDPOINT_URL")
    return given or None


@cache
def _tls() -> ssl.SSLContext:
    """Return the one context of all connections: its certificates take a MB or two."""
    return ssl.create_default_context()


def _credentials() -> Credentials:
    # Lambda gives a function its role's credentials in these variables.
    return Credentials(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_SESSION_TOKEN", ""),
    )


@contextlib.contextmanager
def _failing_as_os_errors() -> Iterator[None]:
    try:
        yield
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
