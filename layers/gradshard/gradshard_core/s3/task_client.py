"""The bucket of a task: all of the store, and objects that are sent while they are computed."""

import contextlib
import http.client
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from http import HTTPStatus

from gradshard_core.errors import StoreError, UnsentError
from gradshard_core.s3 import timeouts
from gradshard_core.s3.error_hints import explain_denial
from gradshard_core.s3.http_connections import Request
from gradshard_core.s3.http_transport import HttpTransport, explain
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.transient_errors import TRANSIENT_CODES, TRANSIENT_STATUSES


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
        self.etag = ""
        """The ETag of what was written, once S3 has all of it."""

    def write(self, data: bytes | memoryview) -> None:
        """Send the next bytes."""
        with self._explained():
            if not self._has_begun:
                self._begin()
            self._send(data)

    def end(self) -> http.client.HTTPResponse:
        """Return S3's response to the request."""
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
            if (response := self._early_response(error)) is not None:
                raise _rejected(self._name, response) from error
            raise UnsentError(
                f"{self._name}: the connection broke after {self._sent} bytes: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _early_response(self, error: Exception) -> http.client.HTTPResponse | None:
        """Return S3's response if it rejected the request before the whole body was sent."""
        if isinstance(error, BrokenPipeError | ConnectionResetError):
            with contextlib.suppress(OSError, http.client.HTTPException):
                return self._connection.getresponse()
        return None


class TaskS3Client(S3Store):
    """A federation's bucket, for tasks, which also write while they compute.

    Parameters
    ----------
    bucket, host
        As of :class:`~gradshard_core.s3.http_transport.HttpTransport`.
    """

    def __init__(self, bucket: str, host: str = "") -> None:
        self._http = HttpTransport(bucket, host)
        super().__init__(bucket, self._http)

    @property
    def receive_buffer_bytes(self) -> int:
        """Size of the kernel's buffer for each connection used from now on; 0 for its choice."""
        return self._http.requests.receive_buffer_bytes

    @receive_buffer_bytes.setter
    def receive_buffer_bytes(self, size: int) -> None:
        self._http.requests.receive_buffer_bytes = size

    def part(
        self, key: str, upload_id: str, number: int, nbytes: int, start: bytes = b""
    ) -> AbstractContextManager[StreamWriter]:
        """Upload one part while it is being computed; it replaces a part of the same number.

        As :meth:`object`, for a part of a multipart upload. The part begins with ``start``, which
        its ``nbytes`` include.
        """
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._writing(key, query, nbytes, f"{key} part {number}", start)

    def object(self, key: str, nbytes: int) -> AbstractContextManager[StreamWriter]:
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
    ) -> Iterator[StreamWriter]:
        self.meter.add(puts=1)
        requests = self._http.requests
        connection = requests.new_connection(timeouts.ANSWER_SECONDS)

        def head() -> tuple[str, dict[str, str]]:
            request = Request("PUT", self._http.path(key), name, query, {}, body=None)
            target, headers = requests.sign(request)
            return target, headers | {"content-length": str(nbytes)}

        writer = StreamWriter(connection, name, head, start)
        try:
            yield writer
            response = writer.end()
            if response.status != HTTPStatus.OK:
                raise _rejected(key, response)
            response.read()
            writer.etag = response.headers.get("ETag", "")
        finally:
            # Never reused, because a PUT on a connection that S3 has closed could not be repeated;
            # and never kept, or a warm function would have one more with every task.
            connection.close()
        self.meter.add(bytes_written=nbytes)


def _rejected(key: str, response: http.client.HTTPResponse) -> StoreError:
    failure = explain(response)
    # RequestTimeout: S3 got no bytes for some time, because the inputs did not arrive either.
    is_transient = response.status in TRANSIENT_STATUSES or failure.code in TRANSIENT_CODES
    rejected = UnsentError if is_transient else StoreError
    return rejected(f"{key}: S3 answered PUT with {failure.text}{explain_denial(failure.code)}")
