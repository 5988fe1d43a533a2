"""What S3 checks of a presigned URL, written from its documentation alone.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html
"""

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from urllib.parse import parse_qsl, quote, urlsplit

import pytest

from gradshard.tickets import allowed_hosts


def rejection(
    method: str, url: str, headers: Mapping[str, str], secret: str, *, now: datetime
) -> str | None:
    """Return why S3 would reject a request; None if it would not."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, strict_parsing=True))
    signature = query.pop("X-Amz-Signature")
    sent = {name.lower(): value for name, value in headers.items()} | {"host": parts.netloc}
    signed = query["X-Amz-SignedHeaders"].split(";")
    if not set(signed) <= sent.keys():
        return "a signed header is missing"
    # "x-amz-*" headers must all be signed.
    if any(name.startswith("x-amz-") and name not in signed for name in sent):
        return "an unsigned header"
    canonical = "\n".join(
        [
            method,
            quote(parts.path, safe="/%-_.~"),
            "&".join(
                f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in sorted(query.items())
            ),
            *(f"{name}:{sent[name].strip()}" for name in signed),
            "",
            ";".join(signed),
            "UNSIGNED-PAYLOAD",
        ]
    )
    _, _, scope = query["X-Amz-Credential"].partition("/")
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    text = "\n".join(["AWS4-HMAC-SHA256", query["X-Amz-Date"], scope, digest])
    key = f"AWS4{secret}".encode()
    for word in scope.split("/"):
        key = hmac.digest(key, word.encode(), "sha256")
    if hmac.digest(key, text.encode(), "sha256").hex() != signature:
        return "the signature does not match"
    began = datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    if now > began + timedelta(seconds=int(query["X-Amz-Expires"])):
        return "expired"
    return None


def trust_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients take whatever listens on this machine for a local engine."""
    running = SimpleNamespace(running=True)
    monkeypatch.setattr(allowed_hosts, "running_engines", SimpleNamespace(status=lambda _: running))
