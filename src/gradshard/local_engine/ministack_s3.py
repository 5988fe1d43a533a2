"""Correct where MiniStack's S3 differs from AWS's."""

import hashlib
import secrets
from contextvars import ContextVar
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final

from gradshard.utils.crc64 import crc64_text

_CHECKSUM: Final = "x-amz-checksum-"


def apply() -> None:
    """Apply these patches, in a process that is an engine."""
    _patch_versioned_ranges()
    _patch_etags_under_kms()
    _patch_checksums()
    _patch_answered_checksums()


def _patch_versioned_ranges() -> None:
    """Honour ``Range`` when a version is read; MiniStack answers 200 with the whole object."""
    from ministack.services import s3

    get_object = s3._get_object

    def get(bucket: str, key: str, headers: dict[str, str], query: Any = None) -> Any:
        wanted = headers.get("range")
        if not wanted or "versionId" not in (query or {}):
            return get_object(bucket, key, headers, query)
        # The checksum of the whole object does not hold for a part of it.
        headers = {name: headers[name] for name in headers if name != "x-amz-checksum-mode"}
        status, answer, body = get_object(bucket, key, headers, query)
        if status != HTTPStatus.OK:
            return status, answer, body
        span = s3._parse_range(wanted, len(body))
        if span is None:
            message = "The requested range is not satisfiable"
            return s3._error("InvalidRange", message, 416, f"/{bucket}/{key}")
        first, last = span
        answer["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        answer["Content-Length"] = str(last - first + 1)
        return HTTPStatus.PARTIAL_CONTENT, answer, body[first : last + 1]

    s3._get_object = get


def _patch_etags_under_kms() -> None:
    """Give objects under a KMS key an ETag that is not the MD5 of their bytes.

    MiniStack's is, whatever the bucket encrypts with; programs that take one for the other would
    go unnoticed.
    """
    from ministack.services import s3

    put_object, upload_part, md5_hash = s3._put_object, s3._upload_part, s3.md5_hash
    complete_upload = s3._complete_multipart_upload
    storing: ContextVar[bool] = ContextVar("storing", default=False)
    joining: ContextVar[bool] = ContextVar("joining", default=False)

    def put(bucket: str, key: str, body: bytes, headers: dict[str, str]) -> Any:
        sse, _ = s3._resolve_sse_write_headers(headers, bucket)
        return within(storing, sse, put_object, bucket, key, body, headers)

    def part(bucket: str, key: str, body: bytes, query: Any, headers: dict[str, str]) -> Any:
        return within(storing, sse_of(query), upload_part, bucket, key, body, query, headers)

    def complete(bucket: str, key: str, body: bytes, query: Any, *rest: Any) -> Any:
        return within(joining, sse_of(query), complete_upload, bucket, key, body, query, *rest)

    def sse_of(query: Any) -> Any:
        return s3._stored_sse_headers(s3._multipart_uploads.get(s3._qp(query, "uploadId")) or {})

    def within(var: ContextVar[bool], sse: Any, call: Any, *given: Any) -> Any:
        algorithm = (sse or {}).get("x-amz-server-side-encryption", "")
        outer = var.set(algorithm.startswith("aws:kms"))
        try:
            return call(*given)
        finally:
            var.reset(outer)

    def hash_of(body: bytes) -> str:
        return secrets.token_hex(16) if storing.get() else str(md5_hash(body))

    def md5(data: bytes = b"") -> Any:
        digest = hashlib.md5(data, usedforsecurity=False)
        if joining.get():
            digest.update(secrets.token_bytes(16))
        return digest

    s3._put_object, s3._upload_part, s3.md5_hash = put, part, hash_of
    s3._complete_multipart_upload = complete
    # The module's own name for the library, for the ETag of joined parts.
    s3.hashlib = SimpleNamespace(**{**vars(hashlib), "md5": md5})


def _patch_checksums() -> None:
    """Keep the CRC-64/NVME of every object that has no other checksum, as S3 does.

    MiniStack keeps none then, makes one of the parts' CRCs where parts bring them, and takes a
    second of a processor for 10 MB.
    """
    from ministack.services import s3

    compute, composite = s3._compute_s3_checksum, s3._composite_checksum
    record_version = s3._record_object_version

    def checksum_of(algorithm: str, body: Any) -> Any:
        return crc64_text(body) if algorithm == "CRC64NVME" else compute(algorithm, body)

    def composite_of(algorithm: str, parts: list[str]) -> Any:
        return None if algorithm == "CRC64NVME" else composite(algorithm, parts)

    def record(bucket: str, key: str, prior: Any, made: dict[str, Any], data: Any) -> Any:
        if not made.get("checksums"):
            made |= {"checksums": {"CRC64NVME": crc64_text(data)}, "checksum_type": "FULL_OBJECT"}
        return record_version(bucket, key, prior, made, data)

    s3._compute_s3_checksum, s3._composite_checksum = checksum_of, composite_of
    s3._record_object_version = record


def _patch_answered_checksums() -> None:
    """Tell the checksum of an object to who stores it, as S3 does; MiniStack keeps it to itself."""
    from ministack.services import s3

    put_object, upload_part = s3._put_object, s3._upload_part
    complete_upload = s3._complete_multipart_upload

    def put(bucket: str, key: str, body: Any, headers: dict[str, str]) -> Any:
        status, answer, content = put_object(bucket, key, body, headers)
        if status == HTTPStatus.OK:
            kept = s3._buckets[bucket]["objects"][key]["checksums"]
            answer |= {f"{_CHECKSUM}{name.lower()}": value for name, value in kept.items()}
        return status, answer, content

    def part(bucket: str, key: str, body: Any, *rest: Any) -> Any:
        status, answer, content = upload_part(bucket, key, body, *rest)
        if status == HTTPStatus.OK and not any(name.startswith(_CHECKSUM) for name in answer):
            answer |= {f"{_CHECKSUM}crc64nvme": crc64_text(body)}
        return status, answer, content

    def complete(bucket: str, key: str, *rest: Any) -> Any:
        status, answer, content = complete_upload(bucket, key, *rest)
        # Under a KMS key S3 does not, as LocalStack's authors have seen.
        if status == HTTPStatus.OK and "x-amz-server-side-encryption-aws-kms-key-id" not in answer:
            kept = s3._buckets[bucket]["objects"][key]["checksums"].get("CRC64NVME", "")
            element = f"<ChecksumCRC64NVME>{kept}</ChecksumCRC64NVME></CompleteMultipart".encode()
            content = content.replace(b"</CompleteMultipart", element)
        return status, answer, content

    s3._put_object, s3._upload_part, s3._complete_multipart_upload = put, part, complete
