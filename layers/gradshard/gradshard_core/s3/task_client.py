"""The few S3 requests of a task, over the standard library's HTTP.

A task reads ranges and writes parts, and its memory is paid for by the second. boto3 with an S3
client takes 55 MiB and copies the received bytes once more; this module takes 10 MiB and reads from
the socket into the task's buffer. Task records are read with it, too, because a request takes a
third of boto3's processor time. All other requests use :mod:`gradshard_core.s3.store`.
"""

import contextlib
import http.client
import io
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlsplit

from gradshard_core.errors import ChangedObjectError, StoreError, UnsentError
from gradshard_core.formats import json_records
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.s3 import streams
from gradshard_core.s3.json_reads import JsonReads
from gradshard_core.s3.retries import GiveUp, Retries
from gradshard_core.s3.sigv4 import Credentials, sign
from gradshard_core.s3.streams import explain_denial
from gradshard_core.s3.traffic import Meter

TIMEOUT_SECONDS: Final = 30
"""For S3 to take or to answer what is sent. Reads have a shorter timeout."""

_TRANSIENT: Final = {
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_GONE: Final = {
    HTTPStatus.NOT_FOUND,
    HTTPStatus.PRECONDITION_FAILED,
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
}


class _Answer:
    """An answer whose body has not been read, and its connection."""

    def __init__(
        self,
        client: "TaskS3Client",
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        self.client, self.connection, self.response = client, connection, response
        self.status = response.status
        self.header = response.getheader

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            return self.response.readinto(buffer)
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def read(self) -> bytes:
        try:
            return self.response.read()
        except http.client.HTTPException as error:
            raise OSError(f"{type(error).__name__}: {error}") from error

    def direct(self) -> "_Answer":
        """Return the fastest reader of the body, which also bounds the time of a read."""
        is_kept = self.connection.sock is not None
        return _Direct(self) if is_kept and self.response.length else self

    def close(self) -> None:
        """Keep the connection for the next request if the body was read to its end."""
        if self.response.isclosed() and not self.response.will_close:
            self.client.keep(self.connection)
        else:
            self.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Direct(_Answer):
    """An answer whose body is read from the socket itself.

    Through http.client each TLS record of 16 KiB takes three more calls, a twentieth of a task's
    processor time. The body must have a known length, on a connection that is kept.
    """

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.client, answer.connection, answer.response)
        self._left = self.response.length or 0
        self._early: io.BytesIO | None = None

    def readinto(self, buffer: memoryview, /) -> int:
        if self._early is None:
            # All bytes that http.client has read beyond the head.
            self._early = io.BytesIO(self.response.read1(io.DEFAULT_BUFFER_SIZE))
        filled, wanted = self._early.readinto(buffer), len(buffer)
        receive = self.connection.sock.recv_into
        # The socket's timeout applies to one call, and a single byte ends a call.
        give_up = time.monotonic() + streams.PATIENCE_SECONDS
        # With the number given, a TLS socket does not create a view to find it out.
        while filled < wanted and (count := receive(buffer[filled:], wanted - filled)):
            filled += count
            if time.monotonic() >= give_up:
                break
        self._left -= filled
        if self._left == 0:
            self.response.close()
        return filled


class StreamWriter:
    """Writes the body of one PUT while it is being computed.

    The request is sent with the first byte: S3 closes a connection that sends nothing for about
    20 s (``RequestTimeout``), and the first sum may take longer.
    """

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        name: str,
        head: Callable[[], tuple[str, dict[str, str]]],
        start: bytes,
    ) -> None:
        self._connection, self._name = connection, name
        self._head, self._start = head, start
        self._has_begun = False
        self._sent = 0

    def write(self, data: bytes | memoryview) -> None:
        """Send the next bytes."""
        with self._explained():
            if not self._has_begun:
                self._begin()
            self._send(data)

    def end(self) -> http.client.HTTPResponse:
        """Return S3's answer to the request."""
        with self._explained():
            if not self._has_begun:
                self._begin()
            return self._connection.getresponse()

    def _begin(self) -> None:
        self._has_begun = True
        target, headers = self._head()
        self._connection.putrequest("PUT", target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            self._connection.putheader(name, value)
        self._connection.endheaders()
        self._send(self._start)

    def _send(self, data: bytes | memoryview) -> None:
        self._connection.send(data)
        self._sent += len(data)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, http.client.HTTPException) as error:
            if (answer := self._early_answer(error)) is not None:
                raise _rejected("PUT", self._name, answer) from error
            raise UnsentError(
                f"{self._name}: the connection broke after {self._sent} bytes: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _early_answer(self, error: Exception) -> http.client.HTTPResponse | None:
        """Return S3's answer if it rejected the request before the whole body was sent."""
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._connection.getresponse()
        return None


class TaskS3Client(JsonReads):
    """A federation's bucket, for tasks; several threads may use one client.

    Parameters
    ----------
    bucket
        The name of the bucket.
    host
        Its host name at AWS, such as ``bucket.s3.eu-central-1.amazonaws.com``. Not used if
        ``AWS_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL_S3`` is set.

    Attributes
    ----------
    meter
        Counts the requests.
    receive_buffer_bytes
        Size of the kernel's buffer for each connection used from now on; 0 for the kernel's choice.
    """

    def __init__(self, bucket: str, host: str = "") -> None:
        self.bucket = bucket
        self.meter = Meter()
        self.receive_buffer_bytes = 0
        elsewhere = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        url = urlsplit(elsewhere or f"https://{host}")
        # One for all connections: its certificates take a MB or two.
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._host = url.netloc
        # Other endpoints than AWS have no host name for each bucket.
        self._root = f"/{bucket}/" if elsewhere else "/"
        self._idle: list[http.client.HTTPConnection] = []

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection that is ready for another request."""
        self._idle.append(connection)

    def close(self) -> None:
        """Close the connections that are kept for further requests."""
        while self._idle:
            self._idle.pop().close()

    def get_body(self, source: ObjectVersion, start: int, end: int) -> _Answer:
        """Open bytes [start, end) of an object version.

        Raises
        ------
        ChangedObjectError
            The version is gone, has another ETag, or is shorter than the range.
        StoreError
            S3 rejects the request.
        OSError
            S3 answered with another range.
        """
        self.meter.add(gets=1)
        query = {"versionId": source.version} if source.version else {}
        headers = {"range": f"bytes={start}-{end - 1}"}
        if source.etag:
            headers["if-match"] = source.etag
        answer = self._request("GET", source.key, query, headers)
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            if (got := answer.header("Content-Range")) == expected:
                return answer.direct()
            answer.close()
            raise OSError(f"got {got!r} instead of {expected!r}")
        with answer:
            if answer.status in _GONE:
                raise ChangedObjectError(
                    f"{source.key}: the planned version is gone ({_code(answer)})"
                )
            raise _rejected("GET", source.key, answer)

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; None if there is none."""
        self.meter.add(gets=1)
        retries = Retries(self.meter)
        while True:
            with self._request("GET", key) as answer:
                if answer.status == HTTPStatus.NOT_FOUND:
                    return None
                if answer.status != HTTPStatus.OK:
                    raise _rejected("GET", key, answer)
                try:
                    body = streams.read_whole(answer.direct(), answer.response.length or 0)
                except OSError as error:
                    reason = str(error)
                else:
                    self.meter.add(bytes_read=len(body))
                    return body
            retries.record_failure(reason, _giving_up("GET", key))

    def put_json(self, key: str, value: Any) -> None:
        """Write a JSON object."""
        body = json_records.encode(value)
        self.meter.add(puts=1)
        headers = {"content-type": "application/json"}
        with self._request("PUT", key, headers=headers, body=body) as answer:
            if answer.status != HTTPStatus.OK:
                raise _rejected("PUT", key, answer)
            answer.read()
        self.meter.add(bytes_written=len(body))

    def part(
        self, key: str, upload_id: str, number: int, nbytes: int, start: bytes = b""
    ) -> AbstractContextManager["StreamWriter"]:
        """Upload one part while it is being computed; it replaces a part of the same number.

        As :meth:`object`, for a part of a multipart upload. The part begins with ``start``, which
        its ``nbytes`` include.
        """
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._writing(key, query, nbytes, f"{key} part {number}", start)

    def object(self, key: str, nbytes: int) -> AbstractContextManager["StreamWriter"]:
        """Upload one object while it is being computed.

        This does not retry, because sent bytes are not kept. After an error nothing is stored, and
        the object has to be computed again.

        Parameters
        ----------
        key
            The key of the object.
        nbytes
            The number of bytes that will be written, which S3 requires at the beginning.

        Raises
        ------
        UnsentError
            S3 is busy, or the connection broke.
        StoreError
            S3 rejects the request.
        """
        return self._writing(key, {}, nbytes, key)

    @contextlib.contextmanager
    def _writing(
        self, key: str, query: Mapping[str, str], nbytes: int, name: str, start: bytes = b""
    ) -> Iterator["StreamWriter"]:
        self.meter.add(puts=1)
        connection = self._new_connection(TIMEOUT_SECONDS)

        def head() -> tuple[str, dict[str, str]]:
            target, headers = self._sign("PUT", key, query, {}, None)
            return target, headers | {"content-length": str(nbytes)}

        writer = StreamWriter(connection, name, head, start)
        try:
            yield writer
            answer = _Answer(self, connection, writer.end())
            if answer.status != HTTPStatus.OK:
                raise _rejected("PUT", key, answer)
            answer.read()
        finally:
            # Never reused, because a PUT on a connection that S3 has closed could not be repeated;
            # and never kept, or a warm function would have one more with every task.
            connection.close()
        self.meter.add(bytes_written=nbytes)

    def _request(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> _Answer:
        """Send a request, with retries after transient failures."""
        retries = Retries(self.meter)
        while True:
            connection = self._connection()
            reused = connection.sock is not None
            target, signed = self._sign(method, key, query or {}, headers or {}, body)
            try:
                if not reused:
                    connection.connect()
                self._bound_receive_buffer(connection.sock)
                connection.request(method, target, body or None, signed)
                answer = _Answer(self, connection, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                if reused:
                    # S3 closes idle connections, most likely the other ones, too.
                    self.close()
                    continue
                reason = f"{type(error).__name__}: {error}"
            else:
                if answer.status not in _TRANSIENT:
                    return answer
                with answer:
                    reason = f"S3 answered {answer.status} {_code(answer)}"
            retries.record_failure(reason, _giving_up(method, key))

    def _bound_receive_buffer(self, connected: socket.socket) -> None:
        # Otherwise the kernel lets each grow to several MB, which are the function's memory.
        if self.receive_buffer_bytes:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer_bytes)

    def _sign(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: bytes | None,
    ) -> tuple[str, dict[str, str]]:
        return sign(
            method,
            self._host,
            self._root + key,
            query,
            headers,
            body,
            region=os.environ["AWS_REGION"],
            credentials=_credentials(),
            now=datetime.now(UTC),
        )

    def _connection(self) -> http.client.HTTPConnection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._new_connection(streams.PATIENCE_SECONDS)

    def _new_connection(self, timeout: float) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, timeout=timeout)
        return http.client.HTTPSConnection(self._host, timeout=timeout, context=self._tls)


def _giving_up(method: str, key: str) -> GiveUp:
    return lambda times, reasons: StoreError(
        f"{key}: {method} failed {times} times in a row: {reasons}"
    )


def _credentials() -> Credentials:
    # Lambda gives a function its role's credentials in these variables.
    return Credentials(
        os.environ["AWS_ACCESS_KEY_ID"],
        os.environ["AWS_SECRET_ACCESS_KEY"],
        os.environ.get("AWS_SESSION_TOKEN", ""),
    )


def _code(answer: _Answer) -> str:
    return _describe(answer)[0]


def _describe(answer: _Answer | http.client.HTTPResponse) -> tuple[str, str]:
    """Return the code of S3's error, and a text that describes it."""
    body = b""
    with contextlib.suppress(OSError):
        body = answer.read()
    found = re.search(rb"<Code>(\w+)</Code>", body)
    message = re.search(rb"<Message>([^<]*)</Message>", body)
    code = found[1].decode() if found else str(answer.status)
    said = f": {message[1].decode(errors='replace')}" if message else ""
    return code, f"{answer.status} {code}{said}{explain_denial(code)}"


def _rejected(method: str, key: str, answer: _Answer | http.client.HTTPResponse) -> StoreError:
    code, reason = _describe(answer)
    # RequestTimeout: S3 got no bytes for some time, because the inputs did not arrive either.
    is_transient = answer.status in _TRANSIENT or code == "RequestTimeout"
    rejected = UnsentError if is_transient else StoreError
    return rejected(f"{key}: S3 answered {method} with {reason}")
