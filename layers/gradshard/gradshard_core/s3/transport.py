"""The interface of a transport, which sends a store's requests, and the errors it raises."""

import contextlib
from collections.abc import Iterator
from typing import Any, Final, Protocol

from gradshard_core.errors import StoreError, UnreadableObjectError
from gradshard_core.s3.error_hints import explain_denial
from gradshard_core.s3.traffic import Meter

_UNREADABLE: Final = {"AccessDenied", "InvalidObjectState"}


class ResponseError(Exception):
    """S3 answered a request with an error.

    Attributes
    ----------
    code
        S3's code; the number of the status if the answer has no body, as the answer to a HEAD.
    operation
        The name of the operation.
    """

    def __init__(self, code: str, operation: str, text: str) -> None:
        super().__init__(text)
        self.code, self.operation = code, operation


class Transport(Protocol):
    """Sends requests to S3: in functions over ``http.client``, in the client library over boto3."""

    meter: Meter

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Send a request, with retries after transient failures; return the response's fields.

        Operations, parameters and fields have boto3's names. ``Body`` of ``get_object`` has not
        been read; it has the methods of :class:`~gradshard_core.s3.range_streams.Body`, and
        ``read``.

        Raises
        ------
        ResponseError
            S3 rejects the request.
        StoreError
            S3 cannot be reached, or kept failing.
        """

    def close(self) -> None:
        """Close the connections that are kept for further requests."""


@contextlib.contextmanager
def translated(key: str, *expected: str) -> Iterator[None]:
    """Turn errors that S3 answers into gradshard's errors, which say what to do.

    Responses with the codes ``expected``, which the caller handles, stay a :class:`ResponseError`.
    """
    try:
        yield
    except ResponseError as error:
        if error.code in expected:
            raise
        is_unreadable = error.code in _UNREADABLE and error.operation == "get_object"
        failure = UnreadableObjectError if is_unreadable else StoreError
        raise failure(f"{key}: {error}{explain_denial(error.code)}") from None
    except KeyError as error:
        raise StoreError(f"{key}: S3's answer has no {error}") from error
