"""S3's operations by boto3's names: the form of a request, and the fields of a response.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
(2026-11). ``tests/integration/test_transports.py`` sends the same calls with boto3 and compares.
"""

import base64
import zlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element


class Operation(NamedTuple):
    """The form of an operation's request; ``query`` is the part that needs no parameters."""

    method: str
    query: Mapping[str, str] = {}
    has_fields_in_body: bool = False


_LISTING: Final = {"encoding-type": "url"}
"""XML cannot hold every character that a key may have; in this encoding it can."""

OPERATIONS: Final[Mapping[str, Operation]] = {
    "get_object": Operation("GET"),
    "head_object": Operation("HEAD"),
    "put_object": Operation("PUT"),
    "delete_object": Operation("DELETE"),
    "delete_objects": Operation("POST", {"delete": ""}, True),
    "list_objects_v2": Operation("GET", {"list-type": "2"} | _LISTING, True),
    "list_object_versions": Operation("GET", {"versions": ""} | _LISTING, True),
    "list_multipart_uploads": Operation("GET", {"uploads": ""} | _LISTING, True),
    "create_multipart_upload": Operation("POST", {"uploads": ""}, True),
    "list_parts": Operation("GET", {}, True),
    "complete_multipart_upload": Operation("POST", {}, True),
    "abort_multipart_upload": Operation("DELETE"),
}

_QUERY: Final = {
    "ContinuationToken": "continuation-token",
    "Delimiter": "delimiter",
    "KeyMarker": "key-marker",
    "PartNumberMarker": "part-number-marker",
    "Prefix": "prefix",
    "StartAfter": "start-after",
    "UploadId": "uploadId",
    "UploadIdMarker": "upload-id-marker",
    "VersionId": "versionId",
    "VersionIdMarker": "version-id-marker",
}

_HEADERS: Final = {
    "ChecksumAlgorithm": "x-amz-checksum-algorithm",
    "ChecksumMode": "x-amz-checksum-mode",
    "ChecksumCRC64NVME": "x-amz-checksum-crc64nvme",
    "ContentType": "content-type",
    "IfMatch": "if-match",
    "IfNoneMatch": "if-none-match",
    "Range": "range",
}

_RESPONSE_HEADERS: Final = {
    "ChecksumCRC64NVME": "x-amz-checksum-crc64nvme",
    "ContentRange": "content-range",
    "ETag": "etag",
    "VersionId": "x-amz-version-id",
}

_METADATA: Final = "x-amz-meta-"

_LISTS: Final = {
    "CommonPrefixes": "CommonPrefixes",
    "Contents": "Contents",
    "DeleteMarker": "DeleteMarkers",
    "Error": "Errors",
    "Part": "Parts",
    "Upload": "Uploads",
    "Version": "Versions",
}
"""Elements that may occur many times, and boto3's names for all of them."""

_TYPES: Final[Mapping[str, Callable[[str], Any]]] = {
    "Initiated": datetime.fromisoformat,
    "IsLatest": "true".__eq__,
    "IsTruncated": "true".__eq__,
    "LastModified": datetime.fromisoformat,
    "NextPartNumberMarker": int,
    "PartNumber": int,
    "Size": int,
}

_ENCODED: Final = {"Key", "KeyMarker", "NextKeyMarker", "Prefix"}
"""Fields that ``encoding-type`` encodes."""


def query_of(operation: str, parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return the query of a request."""
    given = {_QUERY[name]: str(value) for name, value in parameters.items() if name in _QUERY}
    return {**OPERATIONS[operation].query, **given}


def headers_of(operation: str, parameters: Mapping[str, Any], body: bytes) -> dict[str, str]:
    """Return the headers of a request that are about this operation."""
    headers = {_HEADERS[name]: value for name, value in parameters.items() if name in _HEADERS}
    headers |= {_METADATA + name: text for name, text in parameters.get("Metadata", {}).items()}
    if operation == "delete_objects":
        # S3 requires a checksum of this body.
        checksum = zlib.crc32(body).to_bytes(4, "big")
        headers["x-amz-checksum-crc32"] = base64.b64encode(checksum).decode()
        headers["x-amz-sdk-checksum-algorithm"] = "CRC32"
    return headers


def body_of(operation: str, parameters: Mapping[str, Any]) -> bytes:
    """Return the body of a request."""
    if operation == "delete_objects":
        quiet = _element("Quiet", "true") if parameters["Delete"].get("Quiet") else ""
        return _document("Delete", "Object", parameters["Delete"]["Objects"], quiet)
    if operation == "complete_multipart_upload":
        parts = parameters["MultipartUpload"]["Parts"]
        return _document("CompleteMultipartUpload", "Part", parts)
    body: bytes = parameters.get("Body", b"")
    return body


def fields_of_headers(headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a response that stand in its headers, whose names are in lower case."""
    fields: dict[str, Any] = {
        name: headers[header] for name, header in _RESPONSE_HEADERS.items() if header in headers
    }
    fields["ContentLength"] = int(headers.get("content-length") or 0)
    return fields


def fields_of_body(body: bytes) -> dict[str, Any]:
    """Return the fields of a response that stand in its body; none if it is empty.

    Raises
    ------
    OSError
        It is no XML, or an error: a retry may succeed.
    """
    root = _parse(body.strip())
    if root is None:
        return {}
    fields: dict[str, Any] = {}
    is_encoded = any(_name(child) == "EncodingType" and child.text == "url" for child in root)
    for child in root:
        name = _name(child)
        if name in _LISTS:
            entry = dict(_field(leaf, is_encoded=is_encoded) for leaf in child)
            fields.setdefault(_LISTS[name], []).append(entry)
        else:
            fields.update([_field(child, is_encoded=is_encoded)])
    return fields


def _parse(body: bytes) -> "Element | None":
    if not body:
        return None
    # Tasks, whose memory counts most, read no XML. The XML is S3's own, and has no entities.
    from xml.etree import ElementTree as ET

    # Entities that expand are declared in a document type.
    if b"<!DOCTYPE" in body:
        raise OSError("the answer has a document type, which S3's do not have")
    try:
        root = ET.fromstring(body)  # noqa: S314
    except ET.ParseError as error:
        raise OSError(f"{len(body)} bytes that are no XML: {error}") from None
    if _name(root) == "Error":
        # S3 may begin to answer before it knows how the operation ends.
        found = {_name(child): child.text for child in root}
        raise OSError(f"S3 answered 200 with {found.get('Code')}: {found.get('Message')}")
    return root


def _field(element: "Element", *, is_encoded: bool) -> tuple[str, Any]:
    name, text = _name(element), element.text or ""
    if is_encoded and name in _ENCODED:
        return name, unquote_plus(text)
    return name, _TYPES[name](text) if name in _TYPES else text


def _name(element: "Element") -> str:
    return element.tag.rpartition("}")[2]


def _document(root: str, entry: str, entries: list[dict[str, Any]], last: str = "") -> bytes:
    inner = "".join(
        f"<{entry}>{''.join(_element(name, value) for name, value in fields.items())}</{entry}>"
        for fields in entries
    )
    name_space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<{root} xmlns="{name_space}">{inner}{last}</{root}>'.encode()


def _element(name: str, value: object) -> str:
    text = str(value)
    # As references, or a parser would normalize the line ends of a key.
    for character, escaped in _ESCAPES:
        text = text.replace(character, escaped)
    return f"<{name}>{text}</{name}>"


_ESCAPES: Final = (
    ("&", "&amp;"),
    ("<", "&lt;"),
    (">", "&gt;"),
    ('"', "&quot;"),
    ("\r", "&#xD;"),
    ("\n", "&#xA;"),
)
