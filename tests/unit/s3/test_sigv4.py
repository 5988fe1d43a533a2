"""The signature, against AWS's published example and against botocore's."""

from datetime import UTC, datetime
from typing import Any
from unittest import mock
from urllib.parse import quote

from botocore import auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.s3.sigv4 import Credentials, sign

NOW = datetime(2013, 5, 24, tzinfo=UTC)
KEYS = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")


def test_the_published_example() -> None:
    # docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, "GET Object"
    target, headers = sign(
        "GET",
        "examplebucket.s3.amazonaws.com",
        "/test.txt",
        {},
        {"Range": "bytes=0-9"},
        b"",
        region="us-east-1",
        credentials=KEYS,
        now=NOW,
    )
    assert target == "/test.txt"
    assert headers["authorization"].endswith(
        "SignedHeaders=host;range;x-amz-content-sha256;x-amz-date, "
        "Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
    )


TEXT = st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1)


@given(
    method=st.sampled_from(["GET", "PUT"]),
    key=TEXT.map(lambda key: key.replace("/", "")).filter(lambda key: key not in ("", ".", "..")),
    query=st.dictionaries(st.sampled_from(["versionId", "uploadId", "partNumber"]), TEXT),
    payload=st.binary(max_size=50),
    token=st.sampled_from(["", "a/token+=="]),
)
def test_agrees_with_botocore(
    method: str, key: str, query: dict[str, str], payload: bytes, token: str
) -> None:
    credentials = KEYS._replace(token=token)
    target, headers = sign(
        method,
        "h.example",
        f"/b/{key}",
        query,
        {"if-match": '"e"'},
        payload,
        region="eu-west-3",
        credentials=credentials,
        now=NOW,
    )
    request: Any = AWSRequest(
        method=method,
        url="https://h.example/b/" + quote(key, safe="-_.~"),
        params=query,
        data=payload,
        headers={"if-match": '"e"', "X-Amz-Content-SHA256": headers["x-amz-content-sha256"]},
    )
    signer = auth.S3SigV4Auth(BotocoreCredentials(*credentials), "s3", "eu-west-3")
    request.context["payload_signing_enabled"] = True
    with mock.patch("botocore.auth.get_current_datetime", return_value=NOW.replace(tzinfo=None)):
        signer.add_auth(request)
    assert headers["authorization"] == request.headers["Authorization"]
    assert target.partition("?")[0] == "/b/" + quote(key, safe="-_.~")
