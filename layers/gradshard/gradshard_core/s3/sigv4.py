"""AWS Signature Version 4.

Sources: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html and, for
other services, https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html.
Written here because botocore, which has it too, costs a function 20 MiB of its memory.
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Final, NamedTuple
from urllib.parse import quote

UNSIGNED: Final = "UNSIGNED-PAYLOAD"


class Credentials(NamedTuple):
    """Keys that sign requests; ``token`` is empty unless they are temporary."""

    access_key: str
    secret_key: str
    token: str = ""


def sign(
    method: str,
    host: str,
    path: str,
    query: Mapping[str, str],
    headers: Mapping[str, str],
    payload: bytes | None,
    *,
    service: str = "s3",
    region: str,
    credentials: Credentials,
    now: datetime,
) -> tuple[str, dict[str, str]]:
    """Sign a request.

    Parameters
    ----------
    method, host
        The method and the host, as they are sent.
    path, query
        The path and the query, not yet encoded.
    headers
        Further headers, which are signed too.
    payload
        The body, whose digest is signed: what arrives is what was sent. None for a body that is
        not known yet, which TLS alone protects.
    service
        Its name in signatures. The paths of services besides S3 must need no encoding, because
        they are encoded twice.
    region
        Of the bucket, or of the service.
    credentials
        The credentials that sign.
    now
        The time in UTC.

    Returns
    -------
    str
        The encoded target of the request line.
    dict
        All headers to send.
    """
    stamp = f"{now:%Y%m%dT%H%M%SZ}"
    digest = UNSIGNED if payload is None else hashlib.sha256(payload).hexdigest()
    signed = {name.lower(): value.strip() for name, value in headers.items()}
    signed |= {"host": host, "x-amz-date": stamp}
    if service == "s3":
        signed["x-amz-content-sha256"] = digest
    if credentials.token:
        signed["x-amz-security-token"] = credentials.token
    names = ";".join(sorted(signed))
    uri = quote(path, safe="/-_.~")
    search = _canonical_query(query)
    fields = (f"{name}:{signed[name]}" for name in sorted(signed))
    canonical = "\n".join([method, uri, search, *fields, "", names, digest])
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    signature = _signature(canonical, stamp, scope, credentials)
    signed["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return f"{uri}?{search}" if search else uri, signed


def presign(
    method: str,
    host: str,
    path: str,
    headers: Mapping[str, str],
    query: Mapping[str, str] = MappingProxyType({}),
    *,
    seconds: int,
    region: str,
    credentials: Credentials,
    now: datetime,
) -> str:
    """Return the target of a request to S3 that anyone may send for a time.

    Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html.

    Parameters
    ----------
    method, host, path
        The request.
    headers, query
        Headers and parameters that the request must have, with these values. Its body is not
        signed.
    seconds
        For how long, at most seven days; temporary credentials end earlier.
    region, credentials, now
        As in :func:`sign`.
    """
    stamp = f"{now:%Y%m%dT%H%M%SZ}"
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    signed = {name.lower(): value.strip() for name, value in headers.items()} | {"host": host}
    names = ";".join(sorted(signed))
    query = {
        **query,
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": names,
    }
    if credentials.token:
        query["X-Amz-Security-Token"] = credentials.token
    uri, search = quote(path, safe="/-_.~"), _canonical_query(query)
    fields = (f"{name}:{signed[name]}" for name in sorted(signed))
    canonical = "\n".join([method, uri, search, *fields, "", names, UNSIGNED])
    return f"{uri}?{search}&X-Amz-Signature={_signature(canonical, stamp, scope, credentials)}"


def _signature(canonical: str, stamp: str, scope: str, credentials: Credentials) -> str:
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    return _hmac(_key(credentials.secret_key, scope), text).hex()


def _canonical_query(query: Mapping[str, str]) -> str:
    """Encode a query as it is signed and sent: sorted by name."""
    return "&".join(
        f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
        for name, value in sorted(query.items())
    )


@lru_cache(maxsize=4)
def _key(secret_key: str, scope: str) -> bytes:
    """Derive the key of a day's requests to one service."""
    key = f"AWS4{secret_key}".encode()
    for part in scope.split("/"):
        key = _hmac(key, part)
    return key


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
