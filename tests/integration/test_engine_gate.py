"""The gate of the local engine: it rejects web pages, and everybody without its key.

Requests are raw HTTP, as a browser can have them sent.
"""

import http.client
import json
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import boto3
import ministack
import pytest
from botocore.auth import S3SigV4QueryAuth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from gradshard.local_engine import process_control
from gradshard.local_engine.lifecycle import REGION, Engine

ROLE = {
    "Action": "CreateRole",
    "Version": "2010-05-08",
    "RoleName": "intruder",
    "AssumeRolePolicyDocument": '{"Version": "2012-10-17", "Statement": []}',
}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Answer(NamedTuple):
    status: int
    body: str


class Raw:
    """Sends requests as they are."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        own = engine.credentials
        self.own = Credentials(own.access_key, own.secret_key)

    def send(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: str = ""
    ) -> Answer:
        with closing(http.client.HTTPConnection("127.0.0.1", self.engine.port, timeout=30)) as sent:
            sent.request(method, target, body, dict(headers or {}))
            answer = sent.getresponse()
            return Answer(answer.status, answer.read().decode())

    def signed(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        body: str = "",
        *,
        service: str = "iam",
        credentials: Credentials | None = None,
        host: str = "",
    ) -> Answer:
        """Send a request signed in its header, whatever the host it names."""
        host = host or f"127.0.0.1:{self.engine.port}"
        signed = dict(headers or {}) | {"Host": host}
        request = AWSRequest(method, f"http://{host}{target}", signed, body)
        SigV4Auth(credentials or self.own, service, REGION).add_auth(request)
        return self.send(method, target, dict(request.headers.items()), body)

    def presigned(self, method: str, target: str, auth: Any, service: str) -> str:
        """Return the target of a presigned URL."""
        request = AWSRequest(method, f"{self.engine.url}{target}", {})
        auth(self.own, service, REGION, expires=600).add_auth(request)
        parts = urlsplit(str(request.url))
        return f"{parts.path}?{parts.query}"


@pytest.fixture
def raw(engine: Engine) -> Raw:
    return Raw(engine)


@pytest.fixture(autouse=True)
def _no_intruder(engine: Engine) -> Iterator[None]:
    """No rejected request has had an effect."""
    yield
    names = {role["RoleName"] for role in boto3.client("iam").list_roles()["Roles"]}
    assert "intruder" not in names


@pytest.fixture
def held(engine: Engine) -> Iterator[str]:
    """The path of an object."""
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket="held")
    s3.put_object(Bucket="held", Key="a", Body=b"bytes")
    yield "/held/a"
    for name in ("a", "b"):
        s3.delete_object(Bucket="held", Key=name)
    s3.delete_bucket(Bucket="held")


PAGES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:8000"},
    {"Origin": ""},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "same-origin"},
    {"sec-fetch-site": "Cross-Site"},
]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_a_web_page_is_rejected_even_with_the_right_signature(
    raw: Raw, held: str, page: dict[str, str]
) -> None:
    create = raw.signed("POST", "/", FORM | page, urlencode(ROLE))
    assert create.status == 403
    assert create.body.startswith("the local engine answers no web page")
    target = raw.presigned("GET", held, S3SigV4QueryAuth, "s3")
    assert raw.send("GET", target).body == "bytes"
    assert raw.send("GET", target, page).status == 403


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil.example:{port}",
        "127.0.0.1.evil.example:{port}",
        "evil.localhost:{port}",
        "127.0.0.1:{port}@evil.example",
        "user@127.0.0.1:{port}",
        "0.0.0.0:{port}",
        "203.0.113.7:{port}",
        "2130706433:{port}",
        "intruder.lambda-url.us-east-1.localhost:{port}",
    ],
)
def test_a_name_that_leads_here_is_rejected(raw: Raw, host: str) -> None:
    host = host.format(port=raw.engine.port)
    body = urlencode(ROLE)
    request = AWSRequest("POST", f"http://{host}/", FORM | {"Host": host}, body)
    SigV4Auth(raw.own, "iam", REGION).add_auth(request)
    answer = raw.send("POST", "/", dict(request.headers.items()), body)
    assert answer.status == 403
    assert "goes by its address or localhost" in answer.body


@pytest.mark.parametrize("lines", [[], ["Host: 127.0.0.1", "Host: evil.example"]], ids=len)
def test_a_request_names_one_host(raw: Raw, lines: list[str]) -> None:
    head = "\r\n".join(["GET /_ministack/ready HTTP/1.0", *lines, "", ""])
    with closing(socket.create_connection(("127.0.0.1", raw.engine.port), 30)) as connection:
        connection.sendall(head.encode())
        assert re.match(rb"HTTP/1\.\d 40[03] ", connection.recv(100))


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "localhost:{port}", "[::1]:{port}"])
def test_this_machine_is_answered(raw: Raw, host: str) -> None:
    host = host.format(port=raw.engine.port)
    assert raw.signed("GET", "/", service="s3", host=host).status == 200
    typed = {"Sec-Fetch-Site": "none"}
    assert raw.signed("GET", "/", typed, service="s3", host=host).status == 200


@pytest.fixture(scope="module")
def session(engine: Engine) -> Iterator[Credentials]:
    """The keys of a role that may do nothing."""
    iam = boto3.client("iam")
    trust = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    arn = iam.create_role(RoleName="weak", AssumeRolePolicyDocument=policy)["Role"]["Arn"]
    given = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="weak")["Credentials"]
    yield Credentials(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    iam.delete_role(RoleName="weak")


def own_paths() -> list[str]:
    """Find MiniStack's own paths in its source."""
    text = (Path(ministack.__file__).parent / "app.py").read_text()
    found = set(re.findall(r'"(/_(?:ministack|localstack|aws)/[\w/.-]*)"', text))
    return sorted(found | {"/health", "/_alb/name/x", "/_anything"})


@pytest.mark.parametrize("path", own_paths())
def test_ministacks_own_paths_need_the_engines_key(
    raw: Raw, session: Credentials, path: str
) -> None:
    for method in ("GET", "POST", "PUT", "HEAD", "OPTIONS"):
        assert raw.send(method, path, FORM, "a=b" if method == "POST" else "").status == 403
    if path.startswith("/_"):
        assert raw.signed("POST", path, body="{}", credentials=session).status == 403
    boto3.client("cloudformation").describe_stacks(StackName="gradshard")  # nothing was reset


UNSIGNED: list[tuple[str, str, dict[str, str], str]] = [
    ("POST", "/", FORM, urlencode(ROLE)),
    ("POST", "/", {"Content-Type": "text/plain"}, urlencode(ROLE)),
    ("GET", f"/?{urlencode(ROLE)}", {}, ""),
    ("POST", "/", {"X-Amz-Target": "AWSStepFunctions.ListStateMachines"}, "{}"),
    ("POST", "/2015-03-31/functions", {}, "{}"),
    ("POST", "/2015-03-31/functions/f/invocations", {"Content-Type": "text/plain"}, "{}"),
    ("GET", "/", {}, ""),
    ("GET", "/held/a", {}, ""),
    ("PUT", "/held/b", {}, "x"),
    ("POST", "/held", {"Content-Type": "multipart/form-data; boundary=x"}, "--x--"),
    ("DELETE", "/held/a", {}, ""),
    ("OPTIONS", "/", {"Access-Control-Request-Method": "POST"}, ""),
    ("GET", "/oauth2/authorize?client_id=a", {}, ""),
    ("POST", "/oauth2/token", FORM, "grant_type=client_credentials"),
    ("GET", "/v2/_catalog", {}, ""),
    ("GET", "/latest/meta-data/iam/security-credentials/", {}, ""),
    ("PUT", "/latest/api/token", {}, ""),
    ("GET", "/v1/config", {}, ""),
    ("GET", "/iceberg/v1/config?warehouse=a", {}, ""),
    ("POST", "/graphql", {}, "{}"),
    ("POST", "/", {"Authorization": "Basic dGVzdDp0ZXN0"} | FORM, urlencode(ROLE)),
    ("POST", "/", {"Authorization": "AWS test:c2ln"} | FORM, urlencode(ROLE)),
    ("POST", "/?AWSAccessKeyId=test&Signature=a&Expires=9999999999", FORM, urlencode(ROLE)),
]


@pytest.mark.parametrize(("method", "target", "headers", "body"), UNSIGNED)
def test_unsigned_requests_are_rejected(
    raw: Raw, held: str, method: str, target: str, headers: dict[str, str], body: str
) -> None:
    assert raw.send(method, target, headers, body).status == 403
    assert boto3.client("s3").get_object(Bucket="held", Key="a")["Body"].read() == b"bytes"


@pytest.mark.parametrize("key", ["test", "000000000000", "123456789012", "LOCAL0", "", "own"])
def test_well_known_and_unknown_keys_do_not_work(raw: Raw, key: str) -> None:
    key = raw.own.access_key if key == "own" else key
    secrets = ["test"] if key == raw.own.access_key else ["test", raw.own.secret_key]
    for secret in secrets:
        credentials = Credentials(key, secret)
        answer = raw.signed("POST", "/", FORM, urlencode(ROLE), credentials=credentials)
        assert answer.status == 403
        client = boto3.client("iam", aws_access_key_id=key or "x", aws_secret_access_key=secret)
        with pytest.raises(client.exceptions.ClientError, match=r"not one of this local|signature"):
            client.list_roles()


def test_a_signature_in_the_address_is_for_s3_alone(raw: Raw) -> None:
    for service in ("iam", "sts", "s3"):
        target = raw.presigned("GET", f"/?{urlencode(ROLE)}", SigV4QueryAuth, service)
        assert raw.send("GET", target).status in {400, 403, 404}


def test_a_presigned_url_allows_only_the_signed_request(raw: Raw, held: str) -> None:
    put = raw.presigned("PUT", "/held/b", S3SigV4QueryAuth, "s3")
    target = {"X-Amz-Target": "AWSStepFunctions.ListStateMachines"}
    assert raw.send("PUT", put, target, "{}").status == 403
    assert raw.send("PUT", put, {"x-amz-acl": "public-read"}, "{}").status == 403
    assert raw.send("POST", put, FORM, urlencode(ROLE)).status == 403
    assert raw.send("PUT", put.replace("/held/b", "/held/c"), {}, "x").status == 403
    # The fields of a form are an object's bytes as any others.
    assert raw.send("PUT", put, FORM, urlencode(ROLE)).status == 200
    assert raw.send("GET", put).status == 403
    got = boto3.client("s3").get_object(Bucket="held", Key="b")["Body"].read().decode()
    assert got == urlencode(ROLE)
    post = raw.presigned("POST", "/held/b?uploads", S3SigV4QueryAuth, "s3")
    assert "InitiateMultipartUpload" in raw.send("POST", post, FORM, urlencode(ROLE)).body


def test_no_websocket_is_accepted(raw: Raw) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    for path in ("/", "/_aws/execute-api/a/b"):
        assert raw.send("GET", path, upgrade).status == 403
        assert raw.send("GET", path, upgrade | {"Origin": "https://evil.example"}).status == 403


def test_functions_keys_cannot_be_computed(raw: Raw, engine: Engine) -> None:
    from ministack.core import lambda_runtime
    from ministack.services import sts

    functions = boto3.client("lambda").list_functions()["Functions"]
    for function in functions:
        lambda_runtime.execution_credentials(function)
    # As this process computes them, which has another salt: none.
    for key, session in sts._sessions.items():
        guessed = Credentials(key, session["SecretAccessKey"], session["SessionToken"])
        answer = raw.signed("GET", "/", service="s3", credentials=guessed)
        assert answer.status == 403
    assert functions


def test_only_the_given_addresses_are_listened_on(engine: Engine) -> None:
    inodes = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
            if group == engine.pid:
                inodes |= {link.readlink().name for link in (process / "fd").iterdir()}
        except OSError:
            continue
    listening = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                listening.add(fields[1])
    port = f"{engine.port:04X}"
    assert f"0100007F:{port}" in listening
    assert listening <= {f"0100007F:{port}", f"010011AC:{port}"}  # and Docker's, by the fixture


def test_the_key_is_its_users_alone(engine: Engine, tmp_path: Path) -> None:
    assert engine.credentials_file.stat().st_mode & 0o777 == 0o600
    assert engine.folder.stat().st_mode & 0o077 == 0
    process_control.make_credentials(tmp_path / "one")
    process_control.make_credentials(tmp_path / "two")
    assert (tmp_path / "one").read_text() != (tmp_path / "two").read_text()


def test_a_client_that_sends_much_reads_the_rejection(raw: Raw, held: str) -> None:
    body = "x" * 20_000_000
    assert raw.send("PUT", held, {}, body).status == 403
    assert raw.send("PUT", held, {"Origin": "https://evil.example"}, body).status == 403
    wrong = Credentials(raw.own.access_key, "wrong")
    assert raw.signed("POST", "/", FORM, body, credentials=wrong).status == 403
    assert raw.signed("PUT", held, {}, body, service="s3", credentials=wrong).status == 403
