"""The base of all classes that send requests to one bucket."""

from collections.abc import Iterator
from typing import Any

from gradshard_core.s3.transport import Transport, translated


class Bucket:
    """A bucket and what sends requests to it.

    Attributes
    ----------
    bucket
        The name of the bucket.
    meter
        Counts the requests.
    """

    def __init__(self, bucket: str, transport: Transport) -> None:
        self.bucket = bucket
        self.transport = transport
        self.meter = transport.meter

    def close(self) -> None:
        """Close the connections that are kept for further requests."""
        self.transport.close()

    def call(self, operation: str, **parameters: Any) -> dict[str, Any]:
        """Send a request to this bucket (:meth:`~gradshard_core.s3.transport.Transport.call`)."""
        return self.transport.call(operation, Bucket=self.bucket, **parameters)

    def pages(self, operation: str, **parameters: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing.

        An answer without ``IsTruncated``, which every listing has, is a :class:`StoreError`: empty,
        it would look like a prefix without objects.
        """
        while True:
            self.meter.add(puts=1)  # a LIST is priced as a PUT
            with translated(parameters.get("Key") or parameters["Prefix"], "NoSuchUpload"):
                page = self.call(operation, **parameters)
                is_truncated = page["IsTruncated"]
            yield page
            if not is_truncated:
                return
            following = {
                name.removeprefix("Next"): value
                for name, value in page.items()
                if name.startswith("Next") and value != ""
            }
            parameters |= following
