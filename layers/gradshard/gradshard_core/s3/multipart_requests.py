"""S3's requests of a multipart upload: an object in parts, which appears when they are joined."""

import contextlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from gradshard_core.errors import ReplacedPartError
from gradshard_core.s3.bucket import Bucket
from gradshard_core.s3.transport import ResponseError, translated


class Part(NamedTuple):
    """A part of an upload as S3 holds it; ``crc64nvme`` in base64, if it was sent with one."""

    number: int
    etag: str
    nbytes: int
    crc64nvme: str = ""


class MultipartUploads(Bucket):
    """Begins, continues and ends multipart uploads."""

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        """Begin a multipart upload and return its id; ``checked`` if parts bring their CRC."""
        self.meter.add(puts=1)
        algorithm: dict[str, Any] = {"ChecksumAlgorithm": "CRC64NVME"} if checked else {}
        with translated(key):
            response = self.call(
                "create_multipart_upload",
                Key=key,
                ContentType="application/octet-stream",
                Metadata=metadata or {},
                **algorithm,
            )
            upload_id: str = response["UploadId"]
            return upload_id

    def list_parts(self, key: str, upload_id: str) -> list[Part] | None:
        """List an upload's parts by number; None if the upload is completed, aborted or unknown."""
        try:
            return [
                Part(p["PartNumber"], p["ETag"], p["Size"], p.get("ChecksumCRC64NVME", ""))
                for page in self.pages("list_parts", Key=key, UploadId=upload_id)
                for p in page.get("Parts", [])
            ]
        except ResponseError:
            return None

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        """Make the object of the parts.

        Completing twice is no error. S3 does not know the upload the second time, so the caller has
        to check the object.

        Raises
        ------
        ReplacedPartError
            A part was sent again, and S3 has it with another ETag, as under a KMS key.
        """
        self.meter.add(puts=1)
        named: list[Any] = [
            {"PartNumber": part.number, "ETag": part.etag}
            | ({"ChecksumCRC64NVME": part.crc64nvme} if part.crc64nvme else {})
            for part in parts
        ]
        try:
            with translated(key, "NoSuchUpload", "InvalidPart"):
                self.call(
                    "complete_multipart_upload",
                    Key=key,
                    UploadId=upload_id,
                    MultipartUpload={"Parts": named},
                )
        except ResponseError as error:
            if error.code == "InvalidPart":
                raise ReplacedPartError(f"{key}: {error}") from None

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Delete an upload's parts; no error if they are gone already."""
        with contextlib.suppress(ResponseError), translated(key, "NoSuchUpload"):
            self.call("abort_multipart_upload", Key=key, UploadId=upload_id)

    def abort_open_uploads(self, key: str, *, but: str = "") -> None:
        """Delete every unfinished upload to ``key`` but one, given by its id."""
        for upload_id in self.open_uploads(key):
            if upload_id != but:
                self.abort_upload(key, upload_id)

    def open_uploads(self, key: str) -> list[str]:
        """List the ids of the unfinished uploads to ``key``, newest first."""
        uploads = [
            upload
            for page in self.pages("list_multipart_uploads", Prefix=key)
            for upload in page.get("Uploads", [])
            if upload["Key"] == key
        ]
        uploads.sort(key=lambda upload: upload["Initiated"], reverse=True)
        return [upload["UploadId"] for upload in uploads]
