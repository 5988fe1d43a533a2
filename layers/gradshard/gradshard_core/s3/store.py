"""The store: a bucket for everything but tasks, which use :mod:`gradshard_core.s3.task_client`."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import (
    ClientError,
    HTTPClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    UnseekableStreamError,
)

from gradshard_core.errors import ChangedObjectError, StoreError
from gradshard_core.formats import json_records
from gradshard_core.formats.digests import parts_of
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.s3.boto_client import CONNECTIONS, make_client
from gradshard_core.s3.boto_errors import check_listing, error_code, translated
from gradshard_core.s3.json_reads import JsonReads
from gradshard_core.s3.multipart import MultipartUploads
from gradshard_core.s3.presigned_urls import PresignedUrls
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.streams import Body, RangeStream

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

ANYTHING: Final = "*"
"""For a write without a condition."""

# Numbers are the codes of answers without a body.
_GONE: Final = ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "412", "404")

_CONFLICT: Final = "ConditionalRequestConflict"
_CONDITION_FAILED: Final = ("PreconditionFailed", "NoSuchKey")
"""Answers to a write whose condition does not hold; the second if the object does not exist."""


class ListedObject(NamedTuple):
    """An object as a listing shows it."""

    key: str
    etag: str
    nbytes: int
    modified: datetime


class _Body:
    """botocore's body, which raises every failure as an :class:`OSError`.

    ``parts`` are the sizes by which the object can be checked
    (:mod:`gradshard_core.formats.digests`).
    """

    def __init__(self, body: "StreamingBody", parts: tuple[int, ...] | None) -> None:
        self._body = body
        self.parts = parts
        self.close = body.close

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            # Any buffer works; botocore's type hints name files only.
            count: int = self._body.readinto(buffer)  # type: ignore[arg-type]
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            raise OSError(str(error)) from error
        return count


class S3Store(MultipartUploads, PresignedUrls, JsonReads):
    """A federation's bucket, for everything except tasks.

    Parameters
    ----------
    bucket
        The name of the bucket.
    connections
        The number of connections that may be open at once.
    client
        An S3 client to use instead of one made from the environment.
    """

    def __init__(
        self, bucket: str, *, connections: int = CONNECTIONS, client: "S3Client | None" = None
    ) -> None:
        super().__init__(bucket, client or make_client(connections))

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of an object version.

        Raises
        ------
        ChangedObjectError
            The version is gone, has another ETag, or is shorter than the range.
        """
        self.meter.add(gets=1)
        version: Any = {"VersionId": source.version} if source.version else {}
        try:
            with translated(source.key, *_GONE):
                response = self._s3.get_object(
                    Bucket=self.bucket,
                    Key=source.key,
                    Range=f"bytes={start}-{end - 1}",
                    IfMatch=source.etag,
                    **version,
                )
        except ClientError as error:
            raise ChangedObjectError(
                f"{source.key}: the planned version is gone ({error_code(error)})"
            ) from None
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if response.get("ContentRange") != expected:
            response["Body"].close()
            # An OSError, so that a stream retries as after a broken connection.
            raise OSError(f"got {response.get('ContentRange')!r} instead of {expected!r}")
        parts = parts_of(
            source.etag,
            source.nbytes,
            response.get("Metadata", {}),
            response.get("ServerSideEncryption", ""),
        )
        return _Body(response["Body"], parts)

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion] | None:
        """Read the first ``nbytes`` bytes of the newest version; None if there is no object."""
        while True:
            try:
                body, response = self._get(key, nbytes)
                break
            except ClientError as error:
                if error_code(error) == "NoSuchKey":
                    return None
                # An empty object has no ranges. If another one has taken its place meanwhile, that
                # one is read.
                found = self.head(key)
                if found is None or found.nbytes == 0:
                    return b"", found or ObjectVersion(key, "", "", 0)
        size = int(response["ContentRange"].rpartition("/")[2])
        return body, ObjectVersion(key, response.get("VersionId", ""), response["ETag"], size)

    def _get(self, key: str, nbytes: int | None = None) -> tuple[bytes, "GetObjectOutputTypeDef"]:
        """Read an object, or its first bytes, in one request, with retries."""
        wanted: Any = {} if nbytes is None else {"Range": f"bytes=0-{nbytes - 1}"}
        retries = Retries(self.meter)
        while True:
            self.meter.add(gets=1)
            with translated(key, "NoSuchKey", "InvalidRange"):
                response = self._s3.get_object(Bucket=self.bucket, Key=key, **wanted)
                try:
                    body = response["Body"].read()
                    _check_first(response, body, nbytes)
                except (
                    IncompleteReadError,
                    ReadTimeoutError,
                    ResponseStreamingError,
                    OSError,
                ) as error:
                    # botocore retries a request, but not the reading of its response's body.
                    reason = str(error)
                else:
                    self.meter.add(bytes_read=len(body))
                    return body, response
            retries.record_failure(
                reason,
                lambda times, reasons: StoreError(
                    f"{key}: reading broke {times} times in a row: {reasons}"
                ),
            )

    def get_range(self, source: ObjectVersion, start: int, end: int) -> bytes:
        """Read bytes [start, end) of an object version."""
        data = bytearray(end - start)
        RangeStream(self, source, [(start, end)]).read_into(memoryview(data))
        return bytes(data)

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; None if there is none."""
        try:
            return self._get(key)[0]
        except ClientError:  # NoSuchKey: without a range none is invalid
            return None

    def head(self, key: str) -> ObjectVersion | None:
        """Return the newest version of an object; None if there is none."""
        found = self._head(key)
        return found and found[0]

    def checksum(self, key: str, *, etag: str | None = None) -> str | None:
        """Return the SHA-256 with which S3 checked an object, in base64; empty if there was none.

        Of an upload in parts it is the SHA-256 of the parts' digests, with a hyphen and their
        number. An ETag cannot be used: under a KMS key it is not the MD5 of the bytes.

        Returns
        -------
        str or None
            None if there is no object, or another than that of ``etag``.
        """
        found = self._head(key, ChecksumMode="ENABLED")
        return None if found is None or etag not in {None, found[0].etag} else found[1]

    def _head(self, key: str, **options: Any) -> tuple[ObjectVersion, str] | None:
        """Return the newest version of an object, and its SHA-256 if the options ask for it."""
        self.meter.add(gets=1)
        try:
            with translated(key, "404", "NoSuchKey", "403"):
                found = self._s3.head_object(Bucket=self.bucket, Key=key, **options)
                version = found.get("VersionId", "")
                source = ObjectVersion(key, version, found["ETag"], found["ContentLength"])
        except ClientError as error:
            if error_code(error) != "403":
                return None
            # The answer to a HEAD has no body that says why; the answer to a GET has one.
            with translated(key):
                self._s3.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")
            raise StoreError(f"{key}: S3 answered {error}") from None
        return source, found.get("ChecksumSHA256", "")

    def put_bytes(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        replaces: str | None = ANYTHING,
        sha256: str = "",
    ) -> bool:
        """Write a small object, on the condition that it is still what the caller read.

        Parameters
        ----------
        key, body, content_type
            The object.
        replaces
            :data:`ANYTHING`; None to write only where there is no object; or the ETag of the
            one that may be replaced.
        sha256
            The SHA-256 of the body in base64, which S3 checks and keeps.

        Returns
        -------
        bool
            False if there is another object than ``replaces``.
        """
        condition: dict[str, Any] = {}
        checked: dict[str, Any] = {"ChecksumSHA256": sha256} if sha256 else {}
        if replaces is None:
            condition = {"IfNoneMatch": "*"}
        elif replaces != ANYTHING:
            condition = {"IfMatch": replaces}
        fields: Any = {"Body": body, "ContentType": content_type, **condition, **checked}
        # The object may be of this very write, if the answer to its first attempt was lost.
        if not self._put(key, fields) and self.get_bytes(key) != body:
            return False
        self.meter.add(bytes_written=len(body))
        return True

    def _put(self, key: str, fields: Any) -> bool:
        """Write an object; False if its condition does not hold."""
        retries = Retries(self.meter)
        while True:
            self.meter.add(puts=1)
            try:
                with translated(key, *_CONDITION_FAILED, _CONFLICT):
                    self._s3.put_object(Bucket=self.bucket, Key=key, **fields)
            except ClientError as error:
                if error_code(error) != _CONFLICT:
                    return False
                # Another write of the key is in progress and may still fail. S3 wants the request
                # to be repeated, which botocore does not do.
                reason = str(error)
            else:
                return True
            retries.record_failure(
                reason,
                lambda times, reasons: StoreError(f"{key}: S3 answered {times} times: {reasons}"),
            )

    def put_stream(
        self, key: str, body: IO[bytes], nbytes: int, *, content_type: str, sha256: str
    ) -> bool:
        """Write a large object in one request, read as it is sent; S3 checks its SHA-256.

        A failure before the body is sent is retried or raised, as with other requests. After that
        botocore cannot retry, because the body cannot be rewound.

        Returns
        -------
        bool
            False if the connection broke, or S3 failed, on the way; the object may be there or not.
        """
        self.meter.add(puts=1)
        with translated(key):
            try:
                self._s3.put_object(
                    Bucket=self.bucket,
                    Key=key,
                    Body=body,
                    ContentLength=nbytes,
                    ContentType=content_type,
                    ChecksumSHA256=sha256,
                )
            except (UnseekableStreamError, HTTPClientError):
                return False
        self.meter.add(bytes_written=nbytes)
        return True

    def put_json(self, key: str, value: Any, *, replaces: str | None = ANYTHING) -> bool:
        """Write a JSON object as :meth:`put_bytes` does."""
        return self.put_bytes(key, json_records.encode(value), replaces=replaces)

    def delete(self, key: str, *, only: str | None = None) -> None:
        """Hide an object behind a delete marker, or remove it in a bucket without versions.

        With ``only``, an ETag, an object with another ETag stays.
        """
        condition: dict[str, Any] = {} if only is None else {"IfMatch": only}
        with (
            contextlib.suppress(ClientError),
            translated(key, "PreconditionFailed", "NoSuchKey"),
        ):
            self._s3.delete_object(Bucket=self.bucket, Key=key, **condition)

    def delete_versions(self, prefix: str) -> None:
        """Remove every version of every object under a prefix, for good."""
        with translated(prefix):
            for page in self._s3.get_paginator("list_object_versions").paginate(
                Bucket=self.bucket, Prefix=prefix
            ):
                self.meter.add(puts=1)  # a LIST is priced as a PUT
                check_listing(page)
                found: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                versions: list[Any] = [
                    {"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found
                ]
                if not versions:
                    continue
                done = self._s3.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": versions, "Quiet": True}
                )
                for failed in done.get("Errors", []):
                    raise StoreError(f"{failed.get('Key')}: S3 answered {failed.get('Code')}")

    def list_objects(self, prefix: str) -> Iterator[ListedObject]:
        """List the objects under a prefix, in the order of their keys."""
        with translated(prefix):
            for page in self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix
            ):
                self.meter.add(puts=1)  # a LIST is priced as a PUT
                check_listing(page)
                for entry in page.get("Contents", []):
                    yield ListedObject(
                        entry["Key"], entry["ETag"], entry["Size"], entry["LastModified"]
                    )


def _check_first(response: "GetObjectOutputTypeDef", body: bytes, nbytes: int | None) -> None:
    """Check that an answer holds the first bytes, where those were asked for."""
    if nbytes is None:
        return
    got = response.get("ContentRange", "")
    size = got.rpartition("/")[2]
    first = min(nbytes, int(size)) if size.isdecimal() else 0
    if got != f"bytes 0-{first - 1}/{size}" or len(body) != first:
        raise OSError(f"got {got!r} and {len(body)} bytes instead of the first {nbytes}")
