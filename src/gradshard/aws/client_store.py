"""The store of the client library: all of the store, large uploads, and presigned URLs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

from botocore.exceptions import HTTPClientError, UnseekableStreamError

from gradshard.aws import boto_errors
from gradshard.aws.boto_client import credentials_of
from gradshard.aws.boto_transport import BotoTransport
from gradshard_core.errors import StoreError
from gradshard_core.s3.http_transport import CHECKSUM_MODE, IF_NONE
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.sigv4 import presign
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.transport import ResponseError, translated

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_NONE: Final[Mapping[str, str]] = MappingProxyType({})


class ClientStore(S3Store):
    """A federation's bucket, over boto3.

    Parameters
    ----------
    bucket
        Its name.
    client
        The S3 client (:func:`gradshard.aws.boto_client.make_client`).
    """

    def __init__(self, bucket: str, client: "S3Client") -> None:
        super().__init__(bucket, BotoTransport(client))
        self._client = client

    def upload_part(
        self,
        key: str,
        upload_id: str,
        number: int,
        body: IO[bytes],
        nbytes: int,
        crc64nvme: str = "",
    ) -> Part:
        """Upload one part, which S3 checks if it has its CRC; the same number is overwritten.

        Raises
        ------
        StoreError
            S3 rejects, or the upload is completed, aborted or unknown.
        """
        self.meter.add(puts=1)
        checked: dict[str, Any] = {"ChecksumCRC64NVME": crc64nvme} if crc64nvme else {}
        try:
            with translated(key, "NoSuchUpload"):
                response = self.call(
                    "upload_part",
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=body,
                    **checked,
                )
                part = Part(number, response["ETag"], nbytes, crc64nvme)
        except ResponseError:
            raise StoreError(
                f"{key}: this upload was aborted, most likely by another one; submit again"
            ) from None
        self.meter.add(bytes_written=nbytes)
        return part

    def put_stream(
        self, key: str, body: IO[bytes], nbytes: int, *, content_type: str, crc64nvme: str
    ) -> bool:
        """Write a large object in one request, read as it is sent; S3 checks its CRC.

        A failure before the body is sent is retried or raised, as with other requests. After that
        botocore cannot retry, because the body cannot be rewound.

        Returns
        -------
        bool
            False if the connection broke, or S3 failed, on the way; the object may be there or not.
        """
        self.meter.add(puts=1)
        with translated(key), boto_errors.translated(key, "put_object"):
            try:
                self._client.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=body,
                    ContentLength=nbytes,
                    ContentType=content_type,
                    ChecksumCRC64NVME=crc64nvme,
                )
            except (UnseekableStreamError, HTTPClientError):
                return False
        self.meter.add(bytes_written=nbytes)
        return True

    def presign_new(self, key: str, nbytes: int, seconds: int) -> str:
        """Return a URL with which anyone may PUT an object of just this length, if there is none.

        The request must have both in its headers, ``Content-Length`` and ``If-None-Match: *``: they
        are signed.
        """
        return self._presign("PUT", key, seconds, {"Content-Length": str(nbytes)} | IF_NONE)

    def presign_empty(self, key: str, seconds: int) -> str:
        """Return a URL with which anyone may PUT an empty object, whether or not there is one.

        ``Content-Length`` is signed.
        """
        return self._presign("PUT", key, seconds, {"Content-Length": "0"})

    def presign_part(self, key: str, upload_id: str, number: int, nbytes: int, seconds: int) -> str:
        """Return a URL with which anyone may PUT one part, of just this length, to an upload.

        ``Content-Length`` is signed.
        """
        part = {"uploadId": upload_id, "partNumber": str(number)}
        return self._presign("PUT", key, seconds, {"Content-Length": str(nbytes)}, part)

    def presign_parts(self, key: str, upload_id: str, seconds: int) -> str:
        """Return a URL with which anyone may GET the list of an upload's first thousand parts."""
        return self._presign("GET", key, seconds, query={"uploadId": upload_id})

    def presign_completion(self, key: str, upload_id: str, seconds: int) -> str:
        """Return a URL with which anyone may POST an upload's completion, if there is no object.

        ``If-None-Match: *`` is signed.
        """
        return self._presign("POST", key, seconds, IF_NONE, {"uploadId": upload_id})

    def presign_read(self, key: str, seconds: int, *, head: bool = False) -> str:
        """Return a URL with which anyone may GET an object's newest version, or only HEAD it."""
        return self._presign("HEAD" if head else "GET", key, seconds)

    def presign_checksum(self, key: str, seconds: int) -> str:
        """Return a URL with which anyone may HEAD an object and its checksum.

        ``x-amz-checksum-mode: ENABLED`` is signed.
        """
        return self._presign("HEAD", key, seconds, CHECKSUM_MODE)

    def presign_version(self, key: str, version: str, seconds: int) -> str:
        """Return a URL with which anyone may GET this version of an object; '' is the newest."""
        return self._presign("GET", key, seconds, query={"versionId": version} if version else {})

    def _presign(
        self,
        method: str,
        key: str,
        seconds: int,
        headers: Mapping[str, str] = _NONE,
        query: Mapping[str, str] = _NONE,
    ) -> str:
        # A ticket has a thousand URLs: 26 ms of a processor, and 220 with botocore.
        with boto_errors.translated(key, "generate_presigned_url"):
            address, credentials = self._address, credentials_of(self._client)
        target = presign(
            method,
            address.host,
            f"{address.path}{key}",
            headers,
            query,
            seconds=seconds,
            region=address.region,
            credentials=credentials,
            now=datetime.now(UTC),
        )
        return f"{address.scheme}://{address.host}{target}"

    @cached_property
    def _address(self) -> "_Address":
        """Where the bucket's objects are, as botocore finds it."""
        key = "key"
        url = self._client.generate_presigned_url(
            "get_object", {"Bucket": self.bucket, "Key": key}, 1
        )
        parts = urlsplit(url)
        [credential] = parse_qs(parts.query)["X-Amz-Credential"]
        region = credential.split("/")[-3]
        return _Address(parts.scheme, parts.netloc, parts.path.removesuffix(key), region)


class _Address(NamedTuple):
    """The beginning of the URLs of a bucket's objects; ``path`` ends with a slash."""

    scheme: str
    host: str
    path: str
    region: str
