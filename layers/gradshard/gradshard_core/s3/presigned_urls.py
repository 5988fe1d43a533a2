"""Presigned URLs, with which others may send one request each to a bucket."""

from typing import Any

from gradshard_core.s3.boto_errors import translated
from gradshard_core.s3.bucket import Bucket


class PresignedUrls(Bucket):
    """Signs URLs; this sends no request."""

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
        with translated(key):
            return self._s3.generate_presigned_url(
                operation, {"Bucket": self.bucket, "Key": key, **signed}, seconds
            )
