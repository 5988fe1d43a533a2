"""The store: a federation's bucket, over whichever transport it is given."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from gradshard_core.errors import ChangedObjectError, StoreError
from gradshard_core.formats import json_records
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.s3.json_reads import JsonReads
from gradshard_core.s3.multipart_requests import MultipartUploads
from gradshard_core.s3.range_streams import Body, RangeStream
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.transport import ResponseError, translated

ANYTHING: Final = "*"
"""For a write without a condition."""

# Numbers are the codes of answers without a body.
_GONE: Final = ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "412", "404")

_CONFLICT: Final = "ConditionalRequestConflict"
_CONDITION_FAILED: Final = ("PreconditionFailed", "NoSuchKey")
"""Responses to a write whose condition does not hold; the second if the object does not exist."""


class ListedObject(NamedTuple):
    """An object as a listing shows it."""

    key: str
    etag: str
    nbytes: int
    modified: datetime


class S3Store(MultipartUploads, JsonReads):
    """A federation's bucket; several threads may use one store.

    Parameters
    ----------
    bucket
        Its name.
    transport
        Sends its requests.
    """

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of an object version.

        Raises
        ------
        ChangedObjectError
            The version is gone, has another ETag, or is shorter than the range.
        """
        self.meter.add(gets=1)
        version = {"VersionId": source.version} if source.version else {}
        condition = {"IfMatch": source.etag} if source.etag else {}
        try:
            with translated(source.key, *_GONE):
                response = self.call(
                    "get_object",
                    Key=source.key,
                    Range=f"bytes={start}-{end - 1}",
                    **condition,
                    **version,
                )
        except ResponseError as error:
            raise ChangedObjectError(
                f"{source.key}: the planned version is gone ({error.code})"
            ) from None
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if response.get("ContentRange") != expected:
            response["Body"].close()
            # An OSError, so that a stream retries as after a broken connection.
            raise OSError(f"got {response.get('ContentRange')!r} instead of {expected!r}")
        body: Body = response["Body"]
        return body

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion] | None:
        """Read the first ``nbytes`` bytes of the newest version; None if there is no object."""
        while True:
            try:
                body, response = self._get(key, nbytes)
                break
            except ResponseError as error:
                if error.code == "NoSuchKey":
                    return None
                # An empty object has no ranges. If another one has taken its place meanwhile, that
                # one is read.
                found = self.head(key)
                if found is None or found.nbytes == 0:
                    return b"", found or ObjectVersion(key, "", "", 0)
        size = int(response["ContentRange"].rpartition("/")[2])
        return body, ObjectVersion(key, response.get("VersionId", ""), response["ETag"], size)

    def _get(self, key: str, nbytes: int | None = None) -> tuple[bytes, dict[str, Any]]:
        """Read an object, or its first bytes, in one request, with retries."""
        wanted: Any = {} if nbytes is None else {"Range": f"bytes=0-{nbytes - 1}"}
        retries = Retries(self.meter)
        while True:
            self.meter.add(gets=1)
            with translated(key, "NoSuchKey", "InvalidRange"):
                response = self.call("get_object", Key=key, **wanted)
                try:
                    with contextlib.closing(response["Body"]):
                        body: bytes = response["Body"].read()
                    _check_first(response, body, nbytes)
                except OSError as error:
                    # A transport retries a request, but not the reading of its answer's body.
                    reason = str(error)
                else:
                    self.meter.add(bytes_read=len(body))
                    return body, response
            retries.record_failure(
                reason,
                lambda times, reasons: StoreError(
                    f"{key}: GET failed {times} times in a row: {reasons}"
                ),
            )

    def get_range(self, source: ObjectVersion, start: int, end: int) -> bytes:
        """Read bytes [start, end) of an object version."""
        data = bytearray(end - start)
        with contextlib.closing(RangeStream(self, source, [(start, end)])) as stream:
            stream.read_into(memoryview(data))
        return bytes(data)

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; None if there is none."""
        try:
            return self._get(key)[0]
        except ResponseError:  # NoSuchKey: without a range none is invalid
            return None

    def head(self, key: str) -> ObjectVersion | None:
        """Return the newest version of an object; None if there is none."""
        found = self._head(key)
        return found and found[0]

    def describe(self, key: str) -> tuple[ObjectVersion, str] | None:
        """Return the newest version of an object and its :meth:`checksum`, in one request."""
        return self._head(key, ChecksumMode="ENABLED")

    def checksum(self, key: str, *, etag: str | None = None) -> str | None:
        """Return the CRC-64/NVME that S3 keeps of an object, in base64; empty if it keeps none.

        S3 computes it of all objects that come without a checksum, and of the whole of those that
        come in parts. An ETag cannot be used: under a KMS key it is not the MD5 of the bytes.
        Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html
        (2026-11).

        Returns
        -------
        str or None
            None if there is no object, or another than that of ``etag``.
        """
        found = self.describe(key)
        return None if found is None or etag not in {None, found[0].etag} else found[1]

    def _head(self, key: str, **options: Any) -> tuple[ObjectVersion, str] | None:
        """Return the newest version of an object, and its CRC-64/NVME if the options ask for it."""
        self.meter.add(gets=1)
        try:
            with translated(key, "404", "NoSuchKey", "403"):
                found = self.call("head_object", Key=key, **options)
                version = found.get("VersionId", "")
                source = ObjectVersion(key, version, found["ETag"], found["ContentLength"])
        except ResponseError as error:
            if error.code != "403":
                return None
            # The answer to a HEAD has no body that says why; the answer to a GET has one.
            with translated(key):
                self.call("get_object", Key=key, Range="bytes=0-0")["Body"].close()
            raise StoreError(f"{key}: {error}") from None
        return source, found.get("ChecksumCRC64NVME", "")

    def put_bytes(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/json",
        replaces: str | None = ANYTHING,
        crc64nvme: str = "",
    ) -> bool:
        """Write a small object, on the condition that it is still what the caller read.

        Parameters
        ----------
        key, body, content_type
            The object.
        replaces
            :data:`ANYTHING`; None to write only where there is no object; or the ETag of the
            one that may be replaced.
        crc64nvme
            The CRC-64/NVME of the body in base64, which S3 checks and keeps.

        Returns
        -------
        bool
            False if there is another object than ``replaces``.
        """
        condition: dict[str, Any] = {}
        checked: dict[str, Any] = {"ChecksumCRC64NVME": crc64nvme} if crc64nvme else {}
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
                    self.call("put_object", Key=key, **fields)
            except ResponseError as error:
                if error.code != _CONFLICT:
                    return False
                # Another write of the key is in progress and may still fail. S3 wants the request
                # to be repeated, which transports do not do.
                reason = str(error)
            else:
                return True
            retries.record_failure(
                reason,
                lambda times, reasons: StoreError(f"{key}: S3 answered {times} times: {reasons}"),
            )

    def put_json(self, key: str, value: Any, *, replaces: str | None = ANYTHING) -> bool:
        """Write a JSON object as :meth:`put_bytes` does."""
        return self.put_bytes(key, json_records.encode(value), replaces=replaces)

    def delete(self, key: str, *, only: str | None = None) -> None:
        """Hide an object behind a delete marker, or remove it in a bucket without versions.

        With ``only``, an ETag, an object with another ETag stays.
        """
        condition: dict[str, Any] = {} if only is None else {"IfMatch": only}
        with (
            contextlib.suppress(ResponseError),
            translated(key, "PreconditionFailed", "NoSuchKey"),
        ):
            self.call("delete_object", Key=key, **condition)

    def delete_versions(self, prefix: str) -> None:
        """Remove every version of every object under a prefix, for good."""
        for page in self.pages("list_object_versions", Prefix=prefix):
            found = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if not found:
                continue
            named = [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found]
            with translated(prefix):
                done = self.call("delete_objects", Delete={"Objects": named, "Quiet": True})
            for failed in done.get("Errors", []):
                raise StoreError(f"{failed.get('Key')}: S3 answered {failed.get('Code')}")

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        """List the objects under a prefix that come after a key, in the order of their keys."""
        begin = {"StartAfter": after} if after else {}
        for page in self.pages("list_objects_v2", Prefix=prefix, **begin):
            for entry in page.get("Contents", []):
                yield ListedObject(
                    entry["Key"], entry["ETag"], entry["Size"], entry["LastModified"]
                )

    def list_newest(self, prefix: str) -> Iterator[ObjectVersion]:
        """List the newest version of each object under a prefix, in the order of their keys."""
        for page in self.pages("list_object_versions", Prefix=prefix):
            for entry in page.get("Versions", []):
                if entry["IsLatest"]:
                    yield ObjectVersion(
                        entry["Key"], entry["VersionId"], entry["ETag"], entry["Size"]
                    )

    def list_folders(self, prefix: str) -> Iterator[str]:
        """List what is between a prefix and the next slash of the keys under it, in order."""
        for page in self.pages("list_objects_v2", Prefix=prefix, Delimiter="/"):
            for entry in page.get("CommonPrefixes", []):
                yield entry["Prefix"].removeprefix(prefix).removesuffix("/")


def _check_first(response: dict[str, Any], body: bytes, nbytes: int | None) -> None:
    """Check that a response holds the first bytes, where those were asked for."""
    if nbytes is None:
        return
    got = response.get("ContentRange", "")
    size = got.rpartition("/")[2]
    first = min(nbytes, int(size)) if size.isdecimal() else 0
    if got != f"bytes 0-{first - 1}/{size}" or len(body) != first:
        raise OSError(f"got {got!r} and {len(body)} bytes instead of the first {nbytes}")
