"""The base of all classes that send requests to one bucket."""

from typing import TYPE_CHECKING

from gradshard_core.s3.traffic import Meter

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


class Bucket:
    """A bucket and the client that sends requests to it.

    Attributes
    ----------
    bucket
        The name of the bucket.
    meter
        Counts the requests.
    """

    def __init__(self, bucket: str, client: "S3Client") -> None:
        self.bucket = bucket
        self.meter = Meter()
        self._s3 = client
