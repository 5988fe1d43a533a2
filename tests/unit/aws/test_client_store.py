"""Presigned URLs, against botocore's."""

import os
from collections.abc import Callable
from datetime import datetime
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gradshard.aws import client_store
from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.client_store import ClientStore
from gradshard_core.errors import StoreError
from gradshard_core.s3.sigv4 import Credentials

KEY, UPLOAD = "rounds/r-1/updates/a_b.~c d+e=é.safetensors", "an/upload+id="
SIGNED: dict[str, tuple[Callable[[ClientStore], str], str, dict[str, Any]]] = {
    "new": (
        lambda store: store.presign_new(KEY, 7, 60),
        "put_object",
        {"ContentLength": 7, "IfNoneMatch": "*"},
    ),
    "empty": (lambda store: store.presign_empty(KEY, 60), "put_object", {"ContentLength": 0}),
    "part": (
        lambda store: store.presign_part(KEY, UPLOAD, 12, 7, 60),
        "upload_part",
        {"UploadId": UPLOAD, "PartNumber": 12, "ContentLength": 7},
    ),
    "parts": (
        lambda store: store.presign_parts(KEY, UPLOAD, 60),
        "list_parts",
        {"UploadId": UPLOAD},
    ),
    "completion": (
        lambda store: store.presign_completion(KEY, UPLOAD, 60),
        "complete_multipart_upload",
        {"UploadId": UPLOAD, "IfNoneMatch": "*"},
    ),
    "read": (lambda store: store.presign_read(KEY, 60), "get_object", {}),
    "head": (lambda store: store.presign_read(KEY, 60, head=True), "head_object", {}),
    "version": (
        lambda store: store.presign_version(KEY, "v/1+=", 60),
        "get_object",
        {"VersionId": "v/1+="},
    ),
    "newest version": (lambda store: store.presign_version(KEY, "", 60), "get_object", {}),
}
PLACES: dict[str, dict[str, Any]] = {
    "a region": {"region": "eu-central-1"},
    "the first region": {"region": "us-east-1"},
    "China": {"region": "cn-north-1"},
    "no region": {},
    "another endpoint": {"endpoint_url": "http://127.0.0.1:4566"},
    "an endpoint with a path": {"endpoint_url": "https://example.org/s3/", "region": "eu-west-3"},
}


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def make_store(place: str, credentials: Credentials | None) -> ClientStore:
    terms = dict(PLACES[place])
    endpoint_url = terms.pop("endpoint_url", None)
    session = make_session(credentials=credentials, **terms)
    return ClientStore("bucket", make_client(session=session, endpoint_url=endpoint_url))


def parts_of(url: str) -> tuple[str, str, str, dict[str, list[str]]]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc, parts.path, parse_qs(parts.query, strict_parsing=True)


@pytest.mark.parametrize("token", ["", "a session/token+="])
@pytest.mark.parametrize("place", PLACES)
def test_urls_are_those_of_botocore(
    place: str, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(place, Credentials("AKID", "a secret", token))
    for presign, operation, terms in SIGNED.values():
        given = {"Bucket": "bucket", "Key": KEY} | terms
        expected = store._client.generate_presigned_url(operation, given, 60)
        [stamp] = parts_of(expected)[3]["X-Amz-Date"]
        then = datetime.strptime(stamp, "%Y%m%dT%H%M%S%z")
        monkeypatch.setattr(client_store, "datetime", SimpleNamespace(now=then.astimezone))
        # Equal signatures are of equal methods, headers and parameters.
        assert parts_of(presign(store)) == parts_of(expected)


def test_each_is_signed_with_the_credentials_of_its_time() -> None:
    store = make_store("a region", Credentials("first", "a secret", "a token"))
    temporary: Any = store._client._request_signer._credentials  # type: ignore[attr-defined]
    signed = []
    for temporary.access_key in ("first", "second"):
        [credential] = parts_of(store.presign_read(KEY, 60))[3]["X-Amz-Credential"]
        signed.append(credential.partition("/")[0])
    assert signed == ["first", "second"]


def test_without_credentials_nothing_is_signed() -> None:
    with pytest.raises(StoreError, match="no AWS credentials found"):
        make_store("a region", None).presign_read(KEY, 60)
