"""Multipart uploads: an object that is sent in parts and appears when they are put together."""

import contextlib
from collections.abc import Sequence
from typing import IO, Any, NamedTuple

from botocore.exceptions import ClientError

from gradshard_core.errors import StoreError
from gradshard_core.s3.boto_errors import check_listing, translated
from gradshard_core.s3.bucket import Bucket


class Part(NamedTuple):
    """A part of an upload as S3 holds it; ``sha256`` in base64, if it was sent with one."""

    number: int
    etag: str
    nbytes: int
    sha256: str = ""


class MultipartUploads(Bucket):
    """Begins, continues and ends multipart uploads."""

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        """Begin a multipart upload and return its id; ``checked`` if parts bring their SHA-256."""
        self.meter.add(puts=1)
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "SHA256"} if checked else {}
        with translated(key):
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
        """Upload one part, which S3 checks if it has its SHA-256; the same number is overwritten.

        Raises
        ------
        StoreError
            S3 rejects, or the upload is completed, aborted or unknown.
        """
        self.meter.add(puts=1)
        checked: dict[str, Any] = {"ChecksumSHA256": sha256} if sha256 else {}
        try:
            with translated(key, "NoSuchUpload"):
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
            with translated(key, "NoSuchUpload"):
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
        """Make the object of the parts.

        Completing twice is no error. S3 does not know the upload the second time, so the caller has
        to check the object.
        """
        self.meter.add(puts=1)
        named: list[Any] = [
            {"PartNumber": part.number, "ETag": part.etag}
            | ({"ChecksumSHA256": part.sha256} if part.sha256 else {})
            for part in parts
        ]
        with contextlib.suppress(ClientError), translated(key, "NoSuchUpload"):
            self._s3.complete_multipart_upload(
                Bucket=self.bucket,
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": named},
            )

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Delete an upload's parts; no error if they are gone already."""
        with contextlib.suppress(ClientError), translated(key, "NoSuchUpload"):
            self._s3.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload_id)

    def abort_open_uploads(self, key: str) -> None:
        """Delete every unfinished upload to ``key``."""
        for upload_id in self.open_uploads(key):
            self.abort_upload(key, upload_id)

    def open_uploads(self, key: str) -> list[str]:
        """List the ids of the unfinished uploads to ``key``, newest first."""
        self.meter.add(puts=1)
        with translated(key):
            response = self._s3.list_multipart_uploads(Bucket=self.bucket, Prefix=key)
            check_listing(response)
        uploads = [u for u in response.get("Uploads", []) if u["Key"] == key]
        uploads.sort(key=lambda upload: upload["Initiated"], reverse=True)
        return [upload["UploadId"] for upload in uploads]
