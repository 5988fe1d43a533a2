"""S3's operations over boto3, for the client library."""

from typing import TYPE_CHECKING, Any

from botocore.exceptions import IncompleteReadError, ReadTimeoutError, ResponseStreamingError

from gradshard.aws.boto_errors import translated
from gradshard_core.s3.traffic import Meter

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client


class _Body:
    """botocore's body, which raises every failure as an :class:`OSError`."""

    def __init__(self, body: "StreamingBody") -> None:
        self._body = body
        self.close = body.close

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            # Any buffer works; botocore's type hints name files only.
            count: int = self._body.readinto(buffer)  # type: ignore[arg-type]
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            raise OSError(str(error)) from error
        return count

    def read(self) -> bytes:
        try:
            return self._body.read()
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            raise OSError(str(error)) from error


class BotoTransport:
    """Sends a store's requests with one of boto3's S3 clients.

    Parameters
    ----------
    client
        The client (:func:`gradshard.aws.boto_client.make_client`).
    """

    def __init__(self, client: "S3Client") -> None:
        self.client = client
        self.meter = Meter()

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def call(self, operation: str, /, **parameters: Any) -> dict[str, Any]:
        """Send a request, as :meth:`~gradshard_core.s3.transport.Transport.call` says."""
        with translated(parameters.get("Key") or parameters.get("Prefix", ""), operation):
            response: dict[str, Any] = getattr(self.client, operation)(**parameters)
        if "Body" in response:
            response["Body"] = _Body(response["Body"])
        return response
