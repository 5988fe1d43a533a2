"""What everything but a task asks of S3; tasks use :mod:`gradshard_core.s3.task_client`."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from ipaddress import ip_address
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, overload
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    EndpointResolutionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    ReadTimeoutError,
    ResponseStreamingError,
    UnseekableStreamError,
)
from botocore.utils import get_environ_proxies

from gradshard_core.errors import ChangedObjectError, StoreError, UnreadableObjectError
from gradshard_core.formats import json_records
from gradshard_core.formats.digests import parts_of
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.s3.streams import (
    MAX_ATTEMPTS,
    Body,
    Meter,
    RangeStream,
    explain_denial,
    sleep_backoff,
    summarize,
)

if TYPE_CHECKING:
    from botocore.response import StreamingBody
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import GetObjectOutputTypeDef

T = TypeVar("T")

CONNECTIONS: Final = 16
CONNECT_TIMEOUT_SECONDS: Final = 10
READ_TIMEOUT_SECONDS: Final = 30

_UNREADABLE: Final = {"AccessDenied", "InvalidObjectState"}

ANYTHING: Final = "*"
"""For a write without a condition."""

# Numbers are the codes of answers without a body.
_GONE: Final = ("NoSuchKey", "NoSuchVersion", "PreconditionFailed", "InvalidRange", "412", "404")

_CONFLICT: Final = "ConditionalRequestConflict"
_OTHERWISE: Final = ("PreconditionFailed", "NoSuchKey")
"""Answers to a write whose condition does not hold; the second where there should be an object."""


_NO_ENDPOINT: Final = "AWS_ENDPOINT_URL is to be a URL such as http://127.0.0.1:4566"


class ListedObject(NamedTuple):
    """An object as a listing shows it."""

    key: str
    etag: str
    nbytes: int
    modified: datetime


MAX_CONTESTS: Final = 16
"""How often a conditional write is tried that others get in the way of; more of them than can be
under way at once."""


class Part(NamedTuple):
    """A part of an upload as S3 holds it; ``sha256`` in base64, if it was sent with one."""

    number: int
    etag: str
    nbytes: int
    sha256: str = ""


class _Body:
    """botocore's body, whose every failure is an :class:`OSError`.

    ``parts`` are the sizes by which the object can be checked
    (:mod:`gradshard_core.formats.digests`).
    """

    def __init__(self, body: "StreamingBody", parts: tuple[int, ...] | None) -> None:
        self._body = body
        self.parts = parts
        self.close = body.close

    def readinto(self, buffer: memoryview, /) -> int:
        try:
            # Any buffer will do; botocore's types know files only.
            count: int = self._body.readinto(buffer)  # type: ignore[arg-type]
        except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError) as error:
            raise OSError(str(error)) from error
        return count


class S3Store:
    """A round's bucket.

    Parameters
    ----------
    bucket
        Its name.
    connections
        How many connections may be open at once.
    client
        An S3 client to use instead of one made from the environment.
    """

    def __init__(
        self, bucket: str, *, connections: int = CONNECTIONS, client: "S3Client | None" = None
    ) -> None:
        self.bucket = bucket
        self.meter = Meter()
        self._s3 = client or make_client(connections)

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
            with _translated(source.key, *_GONE):
                response = self._s3.get_object(
                    Bucket=self.bucket,
                    Key=source.key,
                    Range=f"bytes={start}-{end - 1}",
                    IfMatch=source.etag,
                    **version,
                )
        except ClientError as error:
            raise ChangedObjectError(
                f"{source.key}: the planned version is gone ({_code(error)})"
            ) from None
        expected = f"bytes {start}-{end - 1}/{source.nbytes}"
        if response.get("ContentRange") != expected:
            response["Body"].close()
            # An OSError, so that a stream takes it for a broken connection and asks again.
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
                if _code(error) == "NoSuchKey":
                    return None
                # An object of no bytes at all has no range. The one that is looked at may be
                # another that has taken its place; then that is read.
                found = self.head(key)
                if found is None or found.nbytes == 0:
                    return b"", found or ObjectVersion(key, "", "", 0)
        size = int(response["ContentRange"].rpartition("/")[2])
        return body, ObjectVersion(key, response.get("VersionId", ""), response["ETag"], size)

    def _get(self, key: str, nbytes: int | None = None) -> tuple[bytes, "GetObjectOutputTypeDef"]:
        """Read an object, or its first bytes, in one piece: again while that breaks."""
        wanted: Any = {} if nbytes is None else {"Range": f"bytes=0-{nbytes - 1}"}
        failures: list[str] = []
        while len(failures) < MAX_ATTEMPTS:
            if failures:
                self.meter.add(retries=1)
                sleep_backoff(len(failures))
            self.meter.add(gets=1)
            with _translated(key, "NoSuchKey", "InvalidRange"):
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
                    # botocore tries a request again, but not the reading of its answer.
                    failures.append(str(error))
                else:
                    self.meter.add(bytes_read=len(body))
                    return body, response
        raise StoreError(
            f"{key}: reading broke {MAX_ATTEMPTS} times in a row: {summarize(failures)}"
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

    @overload
    def get_json(self, key: str) -> Any: ...

    @overload
    def get_json(self, key: str, read: Callable[[Any], T]) -> T | None: ...

    def get_json(self, key: str, read: Callable[[Any], Any] = json_records.as_it_is) -> Any:
        """Read a JSON object with :func:`~gradshard.formats.json_records.decode`, or None."""
        body = self.get_bytes(key)
        return None if body is None else json_records.decode(key, body, read)

    def head(self, key: str) -> ObjectVersion | None:
        """Look at the newest version of an object; None if there is none."""
        found = self._look(key)
        return found and found[0]

    def checksum(self, key: str, *, etag: str | None = None) -> str | None:
        """Return the SHA-256 that S3 checked an object by, in base64; empty if it was sent without.

        Of an upload in parts it is that of the parts' ones, with a hyphen and their number. An ETag
        says nothing of the bytes: under a KMS key it is not their MD5.

        Returns
        -------
        str or None
            None if there is no object, or another than that of ``etag``.
        """
        found = self._look(key, ChecksumMode="ENABLED")
        return None if found is None or etag not in {None, found[0].etag} else found[1]

    def _look(self, key: str, **options: Any) -> tuple[ObjectVersion, str] | None:
        """Look at the newest version of an object, and its SHA-256 if that is asked for."""
        self.meter.add(gets=1)
        try:
            with _translated(key, "404", "NoSuchKey", "403"):
                found = self._s3.head_object(Bucket=self.bucket, Key=key, **options)
                version = found.get("VersionId", "")
                source = ObjectVersion(key, version, found["ETag"], found["ContentLength"])
        except ClientError as error:
            if _code(error) != "403":
                return None
            # Its answer has no body to say why; that of a GET has.
            with _translated(key):
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
        """Write a small object, if it is still what the caller takes it for.

        Parameters
        ----------
        key, body, content_type
            The object.
        replaces
            :data:`ANYTHING`; None to write only where there is no object; or the ETag of the
            one that may be replaced.
        sha256
            Of the body, in base64: S3 checks and keeps it.

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
        wanted: Any = {"Body": body, "ContentType": content_type, **condition, **checked}
        # What is there may be this very write, whose first answer was lost on the way.
        if not self._put(key, wanted) and self.get_bytes(key) != body:
            return False
        self.meter.add(bytes_written=len(body))
        return True

    def _put(self, key: str, wanted: Any) -> bool:
        """Write an object; False if its condition does not hold."""
        failures = 0
        while True:
            self.meter.add(puts=1)
            try:
                with _translated(key, *_OTHERWISE, _CONFLICT):
                    self._s3.put_object(Bucket=self.bucket, Key=key, **wanted)
            except ClientError as error:
                if _code(error) != _CONFLICT:
                    return False
                # Another write of the key is under way, and may yet fail: S3 wants to be asked
                # again, which botocore does not do.
                failures += 1
                if failures == MAX_ATTEMPTS:
                    raise StoreError(f"{key}: S3 answered {failures} times: {error}") from None
                self.meter.add(retries=1)
                sleep_backoff(failures)
            else:
                return True

    def put_stream(
        self, key: str, body: IO[bytes], nbytes: int, *, content_type: str, sha256: str
    ) -> bool:
        """Write a large object in one request, read as it is sent; S3 checks its SHA-256.

        What comes before the body is sent is handled as with any other request: retried, or raised.
        After that the body, which cannot be rewound, stops botocore from sending it again.

        Returns
        -------
        bool
            False if the connection broke, or S3 failed, on the way; the object may be there or not.
        """
        self.meter.add(puts=1)
        with _translated(key):
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

    def presign_new(self, key: str, nbytes: int, seconds: int) -> str:
        """Return a URL with which anyone may PUT an object of just this length, if there is none.

        The request must have both in its headers, ``Content-Length`` and ``If-None-Match: *``: they
        are signed.
        """
        return self._presign("put_object", key, seconds, ContentLength=nbytes, IfNoneMatch="*")

    def presign_part(self, key: str, upload_id: str, number: int, nbytes: int, seconds: int) -> str:
        """Return a URL with which anyone may PUT one part, of just this length, to an upload.

        ``Content-Length`` is signed.
        """
        part = {"UploadId": upload_id, "PartNumber": number, "ContentLength": nbytes}
        return self._presign("upload_part", key, seconds, **part)

    def presign_parts(self, key: str, upload_id: str, seconds: int) -> str:
        """Return a URL with which anyone may GET the list of an upload's first thousand parts."""
        return self._presign("list_parts", key, seconds, UploadId=upload_id)

    def presign_completion(self, key: str, upload_id: str, seconds: int) -> str:
        """Return a URL with which anyone may POST an upload's completion, if there is no object.

        ``If-None-Match: *`` is signed.
        """
        what = {"UploadId": upload_id, "IfNoneMatch": "*"}
        return self._presign("complete_multipart_upload", key, seconds, **what)

    def presign_read(self, key: str, seconds: int, *, head: bool = False) -> str:
        """Return a URL with which anyone may GET an object's newest version, or only HEAD it."""
        return self._presign("head_object" if head else "get_object", key, seconds)

    def _presign(self, operation: str, key: str, seconds: int, **signed: Any) -> str:
        with _translated(key):
            return self._s3.generate_presigned_url(
                operation, {"Bucket": self.bucket, "Key": key, **signed}, seconds
            )

    def put_json(self, key: str, value: Any, *, replaces: str | None = ANYTHING) -> bool:
        """Write a JSON object as :meth:`put_bytes` does."""
        return self.put_bytes(key, json_records.encode(value), replaces=replaces)

    def delete(self, key: str, *, only: str | None = None) -> None:
        """Hide an object behind a delete marker, or remove it in a bucket without versions.

        With ``only``, an ETag, any other object than that stays.
        """
        condition: dict[str, Any] = {} if only is None else {"IfMatch": only}
        with (
            contextlib.suppress(ClientError),
            _translated(key, "PreconditionFailed", "NoSuchKey"),
        ):
            self._s3.delete_object(Bucket=self.bucket, Key=key, **condition)

    def delete_versions(self, prefix: str) -> None:
        """Remove every version of every object under a prefix, for good."""
        with _translated(prefix):
            for page in self._s3.get_paginator("list_object_versions").paginate(
                Bucket=self.bucket, Prefix=prefix
            ):
                self.meter.add(puts=1)  # a LIST is priced as a PUT
                _check_answered(page)
                found: list[Any] = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
                doomed: list[Any] = [
                    {"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in found
                ]
                if not doomed:
                    continue
                done = self._s3.delete_objects(
                    Bucket=self.bucket, Delete={"Objects": doomed, "Quiet": True}
                )
                for failed in done.get("Errors", []):
                    raise StoreError(f"{failed.get('Key')}: S3 answered {failed.get('Code')}")

    def list_objects(self, prefix: str) -> Iterator[ListedObject]:
        """List the objects under a prefix, in the order of their keys."""
        with _translated(prefix):
            for page in self._s3.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=prefix
            ):
                self.meter.add(puts=1)  # a LIST is priced as a PUT
                _check_answered(page)
                for entry in page.get("Contents", []):
                    yield ListedObject(
                        entry["Key"], entry["ETag"], entry["Size"], entry["LastModified"]
                    )

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        """Begin a multipart upload and return its id; ``checked`` if parts bring their SHA-256."""
        self.meter.add(puts=1)
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "SHA256"} if checked else {}
        with _translated(key):
            response = self._s3.create_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                ContentType="application/octet-stream",
                Metadata=metadata or {},
                **algorithm,
            )
            return response["UploadId"]

    def upload_part(
        self, key: str, upload_id: str, number: int, body: IO[bytes], nbytes: int, sha256: str = ""
    ) -> Part:
        """S3Store one part, which S3 checks if it has its SHA-256; the same number is overwritten.

        Raises
        ------
        StoreError
            S3 rejects, or the upload is completed, aborted or unknown.
        """
        self.meter.add(puts=1)
        checked: dict[str, Any] = {"ChecksumSHA256": sha256} if sha256 else {}
        try:
            with _translated(key, "NoSuchUpload"):
                response = self._s3.upload_part(
                    Bucket=self.bucket,
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=number,
                    Body=body,
                    **checked,
                )
                part = Part(number, response["ETag"], nbytes, sha256)
        except ClientError:
            raise StoreError(
                f"{key}: the upload is gone, most likely for another one; submit again"
            ) from None
        self.meter.add(bytes_written=nbytes)
        return part

    def list_parts(self, key: str, upload_id: str) -> list[Part] | None:
        """List an upload's parts by number; None if the upload is completed, aborted or unknown."""
        parts: list[Part] = []
        try:
            with _translated(key, "NoSuchUpload"):
                for page in self._s3.get_paginator("list_parts").paginate(
                    Bucket=self.bucket, Key=key, UploadId=upload_id
                ):
                    self.meter.add(puts=1)  # a LIST is priced as a PUT
                    parts += [
                        Part(p["PartNumber"], p["ETag"], p["Size"], p.get("ChecksumSHA256", ""))
                        for p in page.get("Parts", [])
                    ]
        except ClientError:
            return None
        return parts

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """Make the object appear, whole.

        Completing twice is no error: the second time S3 knows the upload no more, and the caller
        looks at the object.
        """
        self.meter.add(puts=1)
        named: list[Any] = [
            {"PartNumber": part.number, "ETag": part.etag}
            | ({"ChecksumSHA256": part.sha256} if part.sha256 else {})
            for part in parts
        ]
        with contextlib.suppress(ClientError), _translated(key, "NoSuchUpload"):
            self._s3.complete_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": named},
            )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Throw an upload's parts away; no error if they are gone already."""
        with contextlib.suppress(ClientError), _translated(key, "NoSuchUpload"):
            self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def abort_open_uploads(self, key: str) -> None:
        """Throw away every unfinished upload to ``key``."""
        for upload_id in self.open_uploads(key):
            self.abort_upload(key, upload_id)

    def open_uploads(self, key: str) -> list[str]:
        """List the ids of the unfinished uploads to ``key``, newest first."""
        self.meter.add(puts=1)
        with _translated(key):
            response = self._s3.list_multipart_uploads(Bucket=self.bucket, Prefix=key)
            _check_answered(response)
        uploads = [u for u in response.get("Uploads", []) if u["Key"] == key]
        uploads.sort(key=lambda upload: upload["Initiated"], reverse=True)
        return [upload["UploadId"] for upload in uploads]


def make_client(
    connections: int = CONNECTIONS,
    *,
    session: boto3.Session | None = None,
    endpoint_url: str | None = None,
) -> "S3Client":
    """Make an S3 client with gradshard's settings.

    Parameters
    ----------
    connections
        How many may be open at once.
    session, endpoint_url
        Where the client belongs; the environment says so if these do not.
    """
    custom_endpoint = bool(
        endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    config = Config(
        max_pool_connections=connections,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        # S3 has no checksum for a range that is not a part, and lockstep never reads one whole.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        # For presigned URLs botocore would take version 2, which signs no headers.
        signature_version="s3v4",
        s3={
            # bucket.localhost resolves on few machines. On AWS, "auto" would leave the region out
            # of the host of presigned URLs.
            "addressing_style": "path" if custom_endpoint else "virtual",
            # Or botocore reads a body twice: once for its digest, then to send it. The bucket takes
            # nothing but TLS, which protects it too.
            "payload_signing_enabled": False,
        },
    )
    try:
        client: S3Client = connect(session or boto3, "s3", config, endpoint_url)
    except BotoCoreError as error:
        raise StoreError(f"cannot reach S3: {error}") from None
    except ValueError as error:
        raise StoreError(f"cannot reach S3: {of_settings(error) or error}") from None
    return client


def connect(session: Any, service: str, config: Config, endpoint_url: str | None) -> Any:
    """Make a client of an AWS service, which speaks to this machine through no proxy.

    Parameters
    ----------
    session
        A session, or boto3 for the default one.
    service
        Its name for boto3.
    config
        Settings; without proxies, which the environment gives.
    endpoint_url
        Where it is; settings and environment say so if this does not.
    """
    if endpoint_url and is_loopback(endpoint_url):
        config = config.merge(Config(proxies={}))
        return session.client(service, config=config, endpoint_url=endpoint_url)
    client = session.client(service, config=config, endpoint_url=endpoint_url)
    url = client.meta.endpoint_url
    if not is_loopback(url):
        return client
    # Where a client will speak to is known when it is there, and then it has its proxies.
    direct = config.merge(Config(proxies={}))
    return session.client(service, config=direct, endpoint_url=url)


def proxies_for(url: str) -> dict[str, str]:
    """Return the proxies, by scheme, through which a URL is to be asked for: none on this machine.

    Else it is what the environment says (HTTPS_PROXY, NO_PROXY).
    """
    return {} if is_loopback(url) else dict(get_environ_proxies(url))


def is_loopback(url: str) -> bool:
    """Whether a URL is this machine's own."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def contests(key: str) -> Iterator[int]:
    """Count attempts at a conditional write, from 0, with pauses between them, up to a bound.

    Parameters
    ----------
    key
        What is written.

    Raises
    ------
    StoreError
        All attempts failed.
    """
    for failures in range(MAX_CONTESTS):
        # The first is rejected wherever there is an object already: that is no contest.
        if failures > 1:
            sleep_backoff(min(failures - 1, 4))
        yield failures
    raise StoreError(
        f"{key}: {MAX_CONTESTS} conditional writes in a row were rejected, though each was for the "
        "object as it had just been read: either others keep writing it, or the storage does not "
        "honour If-Match and If-None-Match"
    )


@contextlib.contextmanager
def _translated(key: str, *meant: str) -> Iterator[None]:
    """Turn what boto3 raises into gradshard's errors.

    S3's answers of the codes ``meant``, which the caller judges, stay a :class:`ClientError`.
    """
    try:
        yield
    except ClientError as error:
        code = _code(error)
        if code in meant:
            raise
        is_kept_back = code in _UNREADABLE and error.operation_name == "GetObject"
        failure = UnreadableObjectError if is_kept_back else StoreError
        raise failure(f"{key}: S3 answered {code}: {error}{explain_denial(code)}") from None
    except KeyError as error:
        raise StoreError(f"{key}: S3's answer has no {error}") from error
    except NoCredentialsError:
        raise StoreError(
            "no AWS credentials found: configure them (aws configure), or use --local"
        ) from None
    except EndpointConnectionError as error:
        raise StoreError(unreachable(error)) from None
    except EndpointResolutionError as error:
        raise StoreError(f"{error}; {_NO_ENDPOINT}") from None
    except BotoCoreError as error:
        raise StoreError(f"{key}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        if (reason := of_settings(error)) is None:
            raise
        raise StoreError(reason) from None


def unreachable(error: EndpointConnectionError) -> str:
    """Say what to look at when nobody answers."""
    if ".amazonaws.com" in str(error):
        return f"{error}; is this machine connected, and is the region right (AWS_DEFAULT_REGION)?"
    port = urlsplit(error.kwargs.get("endpoint_url", "")).port
    option = f" --port {port}" if port else ""
    return f"{error}; is the local engine running (gradshard local status{option})?"


def _check_answered(listing: Mapping[str, Any]) -> None:
    """Check that a listing is one: an answer of nothing looks like a prefix with nothing under it.

    Raises
    ------
    KeyError
        It lacks what every listing says.
    """
    if "IsTruncated" not in listing:
        raise KeyError("IsTruncated")


def _check_first(response: "GetObjectOutputTypeDef", body: bytes, nbytes: int | None) -> None:
    """Check that an answer holds the first bytes, where those were asked for."""
    if nbytes is None:
        return
    got = response.get("ContentRange", "")
    size = got.rpartition("/")[2]
    first = min(nbytes, int(size)) if size.isdecimal() else 0
    if got != f"bytes 0-{first - 1}/{size}" or len(body) != first:
        raise OSError(f"got {got!r} and {len(body)} bytes instead of the first {nbytes}")


def _code(error: ClientError) -> str:
    return error.response.get("Error", {}).get("Code", "")


def of_settings(error: ValueError) -> str | None:
    """Say which of the user's settings botocore fails for with an error of Python's; or None."""
    if isinstance(error, json.JSONDecodeError):
        return (
            f"the answer of credential_process is not JSON ({error}); run the command that the "
            "profile names, and see what it prints"
        )
    is_of_url = any(word in str(error).lower() for word in ("endpoint", "port", "url"))
    return f"{error}; {_NO_ENDPOINT}" if is_of_url else None
