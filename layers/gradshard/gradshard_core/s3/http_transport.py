"""S3's operations over :mod:`gradshard_core.s3.http_connections`, for functions."""

import contextlib
import http.client
import os
import re
from typing import Any, Final

from gradshard_core.s3 import timeouts
from gradshard_core.s3.http_connections import (
    Failure,
    HttpRequests,
    Request,
    Response,
    endpoint_url,
)
from gradshard_core.s3.request_formats import (
    OPERATIONS,
    body_of,
    fields_of_body,
    fields_of_headers,
    headers_of,
    query_of,
)
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.traffic import Meter
from gradshard_core.s3.transport import ResponseError

IF_NONE: Final = {"If-None-Match": "*"}

CHECKSUM_MODE: Final = {"x-amz-checksum-mode": "ENABLED"}
"""The header with which a HEAD of an object asks for its checksum."""


class HttpTransport:
    """Sends requests to one bucket; several threads may use one.

    Parameters
    ----------
    bucket
        Its name.
    host
        Its host name at AWS, such as ``bucket.s3.eu-central-1.amazonaws.com``. Not used if
        ``AWS_ENDPOINT_URL`` or ``AWS_ENDPOINT_URL_S3`` is set.

    Attributes
    ----------
    meter
        Counts the requests.
    requests
        Its connections.
    """

    def __init__(self, bucket: str, host: str) -> None:
        self.meter = Meter()
        elsewhere = endpoint_url("S3")
        # Other endpoints than AWS have no host name for each bucket.
        self._root = f"/{bucket}/" if elsewhere else "/"
        self.requests = HttpRequests("s3", elsewhere or f"https://{host}", self.meter, explain)

    def path(self, key: str) -> str:
        """Return the path of an object."""
        return self._root + key

    def close(self) -> None:
        """Close the connections that are kept for further requests."""
        self.requests.close()

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Send a request, as :meth:`~gradshard_core.s3.transport.Transport.call` says."""
        known = OPERATIONS[operation]
        key = parameters.get("Key", "")
        body = body_of(operation, parameters)
        request = Request(
            known.method,
            self.path(key) if key else self._root.removesuffix("/") or "/",
            key or parameters.get("Prefix", ""),
            query_of(operation, parameters),
            headers_of(operation, parameters, body),
            body,
            # A task waits for these bytes, and S3 for the part that it writes meanwhile.
            timeouts.READ_SECONDS if operation == "get_object" else None,
        )

        def accept(response: Response) -> dict[str, Any]:
            if operation == "get_object":
                return _fields_of_headers(response) | {"Body": response.direct()}
            with response:
                said = response.read()
            if operation == "head_object":
                return _fields_of_headers(response)
            return fields_of_body(said) if known.has_fields_in_body else {}

        def reject(failure: Failure) -> ResponseError:
            text = f"S3 answered {known.method} with {failure.text}"
            return ResponseError(failure.code, operation, text)

        return self.requests.send(request, accept, reject)


def _fields_of_headers(response: Response) -> dict[str, Any]:
    return fields_of_headers({name.lower(): value for name, value in response.raw.headers.items()})


class HttpPresigner:
    """Signs URLs of one bucket's objects, with the credentials of the function that runs this.

    Parameters
    ----------
    transport
        Of the bucket.
    """

    def __init__(self, transport: HttpTransport) -> None:
        self._transport = transport

    def presign_new(self, key: str, nbytes: int, seconds: int) -> str:
        """Sign a PUT, as :meth:`~gradshard_core.records.ticket_urls.Presigner.presign_new`."""
        return self._presign("PUT", key, seconds, {"Content-Length": str(nbytes)} | IF_NONE)

    def presign_empty(self, key: str, seconds: int) -> str:
        """Sign a PUT, as :meth:`~gradshard_core.records.ticket_urls.Presigner.presign_empty`."""
        return self._presign("PUT", key, seconds, {"Content-Length": "0"})

    def presign_read(self, key: str, seconds: int, *, head: bool = False) -> str:
        """Sign a GET, as :meth:`~gradshard_core.records.ticket_urls.Presigner.presign_read`."""
        return self._presign("HEAD" if head else "GET", key, seconds, {})

    def presign_checksum(self, key: str, seconds: int) -> str:
        """Sign a HEAD: :meth:`~gradshard_core.records.ticket_urls.Presigner.presign_checksum`."""
        return self._presign("HEAD", key, seconds, CHECKSUM_MODE)

    def _presign(self, method: str, key: str, seconds: int, headers: dict[str, str]) -> str:
        return self._transport.requests.presign(method, self._transport.path(key), headers, seconds)


def function_transport(variable: str = "GRADSHARD_BUCKET") -> HttpTransport:
    """Return the transport to the bucket that an environment variable of the function names."""
    return HttpTransport(os.environ[variable], os.environ[f"{variable}_HOST"])


def function_store(variable: str = "GRADSHARD_BUCKET") -> S3Store:
    """Return the bucket that an environment variable of the function names: its own, or another."""
    return S3Store(os.environ[variable], function_transport(variable))


def explain(response: Response | http.client.HTTPResponse) -> Failure:
    """Return the code of S3's error, and a text that describes it."""
    body = b""
    with contextlib.suppress(OSError, http.client.HTTPException):
        body = response.read()
    found = re.search(rb"<Code>(\w+)</Code>", body)
    message = re.search(rb"<Message>([^<]*)</Message>", body)
    code = found[1].decode() if found else str(int(response.status))
    said = f": {message[1].decode(errors='replace')}" if message else ""
    return Failure(code, f"{int(response.status)} {code}{said}")
