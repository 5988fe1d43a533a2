"""The functions' requests beside boto3's for the same calls: the same on the s3, read alike."""

import base64
import contextlib
import hashlib
import json
import os
import threading
import zlib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree as ET

import boto3
import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.retries import standard

from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.boto_transport import BotoTransport
from gradshard_core.errors import ServiceError, StoreError
from gradshard_core.rounds import aws_json, aws_requests
from gradshard_core.s3.http_transport import HttpTransport
from gradshard_core.s3.request_formats import OPERATIONS
from gradshard_core.s3.transient_errors import TRANSIENT_CODES, TRANSIENT_STATUSES
from gradshard_core.s3.transport import ResponseError, Transport

KEY, SECRET, REGION = "AKIDEXAMPLE", "secret/key+", "eu-central-1"
HOSTILE = "u/ä b+c%20%/<&>\"'\x01\x1f\r\n\u2028;?=#~!()*.json"
"""A key that anybody who may upload could choose."""


class Sent(NamedTuple):
    """A request as a server receives it."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


class Canned(NamedTuple):
    """What the server answers."""

    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})
    body: bytes = b""


class Recorder:
    """A server that keeps requests, and answers from a list; then with an empty 200."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.answers: list[Canned] = []
        recorder = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                recorder.sent.append(Sent(self.command, self.path, headers, body))
                canned = recorder.answers.pop(0) if recorder.answers else Canned()
                self.send_response(canned.status)
                for name, value in canned.headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in canned.headers:
                    self.send_header("Content-Length", str(len(canned.body)))
                self.end_headers()
                self.wfile.write(canned.body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    recorder = Recorder()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": recorder.url,
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_SESSION_TOKEN": "token/of+session",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "GRADSHARD_URL_SUFFIX": "amazonaws.com",
        "GRADSHARD_SCHEDULE_GROUP": "group",
        "GRADSHARD_SCHEDULE_ROLE_ARN": "arn:role",
        "GRADSHARD_UNDELIVERED_ARN": "arn:queue",
        "GRADSHARD_COLLECT_FUNCTION_ARN": "arn:function",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setattr("time.sleep", lambda _: None)
    forget_services()
    yield recorder
    forget_services()
    recorder.server.shutdown()
    recorder.server.server_close()


def forget_services() -> None:
    for service in (aws_json.STEP_FUNCTIONS, aws_json.EVENT_BRIDGE, aws_json.SCHEDULER):
        aws_json._requests(service).close()
    aws_json._requests.cache_clear()


@pytest.fixture
def ours(recorder: Recorder) -> Iterator[HttpTransport]:
    """The transport of functions."""
    with contextlib.closing(HttpTransport("bucket", "")) as transport:
        yield transport


@pytest.fixture
def theirs(recorder: Recorder) -> Iterator[BotoTransport]:
    """The transport of clients."""
    with contextlib.closing(BotoTransport(make_client(session=make_session()))) as transport:
        yield transport


def call(transport: Transport, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Send a request, and leave no body unread."""
    answer = transport.call(operation, Bucket="bucket", **parameters)
    if "Body" in answer:
        with contextlib.closing(answer["Body"]):
            answer["Body"].read()
    return answer


def service_client(name: Any, region: str = REGION) -> Any:
    return contextlib.closing(boto3.client(name, region))


# What says by whom, when, and how a body is protected on its way; the rest is the request.
INCIDENTAL = {
    "accept-encoding",
    "amz-sdk-invocation-id",
    "amz-sdk-request",
    "authorization",
    "connection",
    "content-length",
    "expect",
    "host",
    "user-agent",
    "x-amz-content-sha256",
    "x-amz-date",
    "x-amz-user-agent",
}


def essence(sent: Sent) -> tuple[Any, ...]:
    """Return what a request means, whatever the order of its query, headers or XML namespaces."""
    url = urlsplit(sent.target)
    headers = {name: value for name, value in sent.headers.items() if name not in INCIDENTAL}
    if checksum := headers.pop("x-amz-checksum-crc32", None):
        assert base64.b64decode(checksum) == zlib.crc32(sent.body).to_bytes(4, "big")
    # boto3 names the type of a body that has none, or not at all.
    headers.pop("content-type", None) if not sent.body else None
    query = sorted(parse_qsl(url.query, keep_blank_values=True))
    return sent.method, url.path, query, headers, meaning(sent.body)


def meaning(body: bytes) -> Any:
    if body.startswith(b"{"):
        return json.loads(body)
    return shape(ET.fromstring(body)) if body.startswith(b"<") else body  # noqa: S314


def shape(element: "ET.Element") -> Any:
    return element.tag, element.text or "", [shape(child) for child in element]


def assert_signed(sent: Sent, service: str) -> None:
    """Check the signature as botocore computes it for the request that arrived."""
    named = sent.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0]
    headers = {name: sent.headers[name] for name in named.split(";")}
    at = datetime.strptime(sent.headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    url = f"http://{sent.headers['host']}{sent.target}"
    request = AWSRequest(sent.method, url, headers=headers, data=sent.body)
    request.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
    if digest := sent.headers.get("x-amz-content-sha256"):
        assert digest == hashlib.sha256(sent.body).hexdigest()
    credentials = Credentials(KEY, SECRET, sent.headers["x-amz-security-token"])
    auth = (S3SigV4Auth if service == "s3" else SigV4Auth)(credentials, service, REGION)
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    assert sent.headers["authorization"].endswith(f"Signature={signature}")
    assert (
        f"Credential={KEY}/{at:%Y%m%d}/{REGION}/{service}/aws4_request"
        in (sent.headers["authorization"])
    )


UPLOAD = {"Key": HOSTILE, "UploadId": "an/upload+id=="}
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("get_object", {"Key": HOSTILE}),
    (
        "get_object",
        {"Key": "k", "Range": "bytes=0-9", "IfMatch": '"e"', "VersionId": "v/+ ="},
    ),
    ("head_object", {"Key": HOSTILE, "ChecksumMode": "ENABLED"}),
    ("put_object", {"Key": HOSTILE, "Body": b"{}", "ContentType": "application/json"}),
    ("put_object", {"Key": "k", "Body": b"1", "ContentType": "a/b", "IfNoneMatch": "*"}),
    ("put_object", {"Key": "k", "Body": b"", "ContentType": "a/b", "IfMatch": '"e"'}),
    (
        "put_object",
        {
            "Key": "k",
            "Body": b"1",
            "ContentType": "a/b",
            "ChecksumCRC64NVME": "I5Whw0YbvtI=",
        },
    ),
    ("delete_object", {"Key": HOSTILE, "IfMatch": '"e"'}),
    (
        "delete_objects",
        {
            "Delete": {
                "Objects": [{"Key": HOSTILE.replace("\x01\x1f", ""), "VersionId": "v<1>"}],
                "Quiet": True,
            }
        },
    ),
    ("list_objects_v2", {"Prefix": HOSTILE}),
    ("list_objects_v2", {"Prefix": "p/", "ContinuationToken": "to/ken+="}),
    ("list_object_versions", {"Prefix": "p", "KeyMarker": HOSTILE, "VersionIdMarker": "v"}),
    ("list_multipart_uploads", {"Prefix": HOSTILE, "KeyMarker": "k", "UploadIdMarker": "u"}),
    (
        "create_multipart_upload",
        {
            "Key": HOSTILE,
            "ContentType": "application/octet-stream",
            "Metadata": {"gradshard-round": "r", "b": "2"},
            "ChecksumAlgorithm": "CRC64NVME",
        },
    ),
    ("list_parts", {**UPLOAD, "PartNumberMarker": 1000}),
    (
        "complete_multipart_upload",
        {
            **UPLOAD,
            "MultipartUpload": {
                "Parts": [
                    {"PartNumber": 1, "ETag": '"a&b"'},
                    {"PartNumber": 2, "ETag": '"c"', "ChecksumCRC64NVME": "s="},
                ]
            },
        },
    ),
    ("abort_multipart_upload", UPLOAD),
]


def test_every_operation_is_compared() -> None:
    assert {operation for operation, _ in CALLS} == set(OPERATIONS)


@pytest.mark.parametrize(("operation", "parameters"), CALLS)
def test_a_request_is_the_one_that_boto3_sends(
    recorder: Recorder,
    ours: HttpTransport,
    theirs: BotoTransport,
    operation: str,
    parameters: dict[str, Any],
) -> None:
    created = b"<R><UploadId>u</UploadId></R>"
    recorder.answers = [Canned(body=created), Canned(body=created)]
    call(theirs, operation, parameters)
    call(ours, operation, parameters)
    by_boto3, by_us = recorder.sent
    expected = essence(by_boto3)
    if operation == "list_multipart_uploads":
        # boto3 does not ask for keys in this encoding here, and fails at those that XML cannot
        # hold.
        expected[2].insert(0, ("encoding-type", "url"))
    assert essence(by_us) == expected
    assert_signed(by_us, "s3")


def test_at_aws_the_bucket_is_in_the_host(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")  # as the template does on AWS
    transport = HttpTransport("b", "b.s3.eu-central-1.amazonaws.com")
    assert (transport.path("k/a"), transport._root) == ("/k/a", "/")
    assert transport.requests._tls is not None


LISTED = f"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Name>b</Name><Prefix>p%2F</Prefix><EncodingType>url</EncodingType><KeyCount>2</KeyCount>
<IsTruncated>true</IsTruncated><NextContinuationToken>1ueGcx+/=</NextContinuationToken>
<Contents><Key>p/%01%0A+%2B%25%3C%2FKey%3E</Key><LastModified>2026-10-12T17:50:30.000Z</LastModified>
<ETag>&quot;e&quot;</ETag><Size>{2**40}</Size><StorageClass>STANDARD</StorageClass></Contents>
<Contents><Key>p/2</Key><LastModified>2026-10-12T17:50:30.123Z</LastModified><ETag>"f"</ETag>
<Size>0</Size><Owner><ID>o</ID></Owner></Contents></ListBucketResult>"""
VERSIONS = """<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<EncodingType>url</EncodingType><IsTruncated>false</IsTruncated><NextKeyMarker>a%2Bb</NextKeyMarker>
<Version><Key>a+b</Key><VersionId>v1</VersionId><IsLatest>false</IsLatest><Size>1</Size></Version>
<DeleteMarker><Key>%00</Key><VersionId>null</VersionId></DeleteMarker></ListVersionsResult>"""
UPLOADS = """<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>
<Upload><Key>a</Key><UploadId>u&amp;1</UploadId><Initiated>2026-11-10T20:48:33.000Z</Initiated>
</Upload></ListMultipartUploadsResult>"""
PARTS = """<ListPartsResult><IsTruncated>true</IsTruncated>
<NextPartNumberMarker>2</NextPartNumberMarker><Part><PartNumber>1</PartNumber><ETag>"a"</ETag>
<Size>5</Size><ChecksumCRC64NVME>s=</ChecksumCRC64NVME></Part><Part><PartNumber>2</PartNumber>
<ETag>"b"</ETag><Size>6</Size></Part></ListPartsResult>"""
DELETED = """<DeleteResult><Error><Key>a</Key><Code>AccessDenied</Code><Message>no</Message>
</Error></DeleteResult>"""
OBJECT = {
    "ETag": '"e"',
    "Content-Length": "0",
    "Content-Range": "bytes 0-0/1",
    "x-amz-version-id": "v",
    "x-amz-meta-gradshard-round": "r",
    "x-amz-checksum-crc64nvme": "s=",
}
READ = ["ETag", "ContentLength", "VersionId"]
ANSWERS: list[tuple[str, dict[str, Any], Canned, list[str]]] = [
    (
        "list_objects_v2",
        {"Prefix": "p/"},
        Canned(body=LISTED.encode()),
        ["IsTruncated", "NextContinuationToken", "Contents"],
    ),
    (
        "list_object_versions",
        {"Prefix": ""},
        Canned(body=VERSIONS.encode()),
        ["IsTruncated", "NextKeyMarker", "Versions", "DeleteMarkers"],
    ),
    (
        "list_multipart_uploads",
        {"Prefix": ""},
        Canned(body=UPLOADS.encode()),
        ["IsTruncated", "Uploads"],
    ),
    (
        "list_parts",
        UPLOAD,
        Canned(body=PARTS.encode()),
        ["IsTruncated", "NextPartNumberMarker", "Parts"],
    ),
    (
        "delete_objects",
        {"Delete": {"Objects": [{"Key": "a"}]}},
        Canned(body=DELETED.encode()),
        ["Errors"],
    ),
    ("head_object", {"Key": "k"}, Canned(200, OBJECT), [*READ, "ChecksumCRC64NVME"]),
    ("get_object", {"Key": "k"}, Canned(206, OBJECT), [*READ, "ContentRange"]),
]


@pytest.mark.parametrize(("operation", "parameters", "canned", "names"), ANSWERS)
def test_an_answer_is_read_as_boto3_reads_it(
    recorder: Recorder,
    ours: HttpTransport,
    theirs: BotoTransport,
    operation: str,
    parameters: dict[str, Any],
    canned: Canned,
    names: list[str],
) -> None:
    recorder.answers = [canned, canned]
    expected = call(theirs, operation, parameters)
    found = call(ours, operation, parameters)
    for name in names:
        assert comparable(found[name], expected[name]) == expected[name], name


def comparable(ours: Any, theirs: Any) -> Any:
    """Leave out what boto3 reads and nobody asks for."""
    if not isinstance(theirs, list):
        return ours
    for entry, other in zip(ours, theirs, strict=True):
        for name in ("Owner", "IsLatest", "StorageClass"):
            entry.pop(name, None)
            other.pop(name, None)
    return ours


def error(code: str, message: str = "why") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def test_the_errors_that_are_retried_are_those_of_botocores_standard_mode() -> None:
    transient: Any = standard.TransientRetryableChecker
    throttled: Any = standard.ThrottledRetryableChecker
    assert {
        *transient._TRANSIENT_ERROR_CODES,
        *throttled._THROTTLED_ERROR_CODES,
    } == TRANSIENT_CODES
    # 429, which is of no service that functions use, but of proxies.
    assert {*transient._TRANSIENT_STATUS_CODES, 429} == TRANSIENT_STATUSES


@pytest.mark.parametrize(
    ("status", "code", "is_retried"),
    [
        (500, "InternalError", True),
        (503, "SlowDown", True),
        (400, "RequestTimeout", True),
        (400, "ThrottlingException", True),
        (400, "MalformedXML", False),
        (403, "AccessDenied", False),
        (404, "NoSuchUpload", False),
        (409, "ConditionalRequestConflict", False),
        (412, "PreconditionFailed", False),
    ],
)
def test_both_transports_retry_the_same_errors(
    recorder: Recorder,
    ours: HttpTransport,
    theirs: BotoTransport,
    status: int,
    code: str,
    *,
    is_retried: bool,
) -> None:
    for transport in (theirs, ours):
        recorder.sent.clear()
        recorder.answers = [Canned(status, {}, error(code))]
        if is_retried:
            call(transport, "list_parts", UPLOAD)
        else:
            with pytest.raises(ResponseError, match=code) as raised:
                call(transport, "list_parts", UPLOAD)
            assert (raised.value.code, raised.value.operation) == (code, "list_parts")
        assert len(recorder.sent) == 1 + is_retried


def test_an_error_with_the_status_of_a_success_is_retried(
    recorder: Recorder, ours: HttpTransport
) -> None:
    """As S3 answers CompleteMultipartUpload that fails after the first bytes of the answer."""
    parameters = {**UPLOAD, "MultipartUpload": {"Parts": []}}
    failed = Canned(body=b'<?xml version="1.0"?>\n   ' + error("InternalError"))
    recorder.answers = [failed, Canned(body=b"  <R><ETag>e</ETag></R>")]
    call(ours, "complete_multipart_upload", parameters)
    assert len(recorder.sent) == 2
    recorder.answers = [failed] * 6
    with pytest.raises(StoreError, match="POST failed 6 times in a row: 6 × S3 answered 200 with"):
        call(ours, "complete_multipart_upload", parameters)


@pytest.mark.parametrize(
    "body",
    [
        b'<!DOCTYPE r [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><r><Key>&b;</Key></r>',
        b'<!DOCTYPE r [<!ENTITY x SYSTEM "file:///etc/passwd">]><r><Key>&x;</Key></r>',
        b"<html><body>log in<br></body>",
        LISTED.encode()[:300],
        b"\xff\xfe",
    ],
)
def test_a_body_that_is_none_of_s3s_is_an_error(
    recorder: Recorder, ours: HttpTransport, body: bytes
) -> None:
    recorder.answers = [Canned(body=body)] * 6
    with pytest.raises(StoreError, match="p/: GET failed 6 times in a row"):
        call(ours, "list_objects_v2", {"Prefix": "p/"})


TOKEN = "AQ+token/="


def scheduled(client: Any, verb: str) -> None:
    client(
        Name="r-1",
        GroupName="group",
        ScheduleExpression="at(2099-01-01T00:00:00)",
        ScheduleExpressionTimezone="UTC",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": "arn:function",
            "RoleArn": "arn:role",
            "Input": json.dumps({"round": "r-1", "deadline": True, "tokens": ["t"]}),
            "RetryPolicy": {"MaximumEventAgeInSeconds": 3600, "MaximumRetryAttempts": 185},
            "DeadLetterConfig": {"Arn": "arn:queue"},
        },
        ClientToken=verb,
    )


def without_token(sent: Sent) -> tuple[Any, ...]:
    *rest, body = essence(sent)
    # A retry is told from another schedule by its name.
    body.pop("ClientToken", None)
    return (*rest, body)


class TestServices:
    def test_the_state_machine_is_resumed_as_by_boto3(self, recorder: Recorder) -> None:
        with service_client("stepfunctions") as states:
            states.send_task_success(taskToken=TOKEN, output='{"reason": "complete"}')
            states.send_task_failure(taskToken=TOKEN, error="E", cause="ä")
        assert aws_requests.resume(TOKEN, "complete")
        aws_requests.give_up(TOKEN, "E", "ä")
        theirs, ours = recorder.sent[:2], recorder.sent[2:]
        assert [*map(essence, ours)] == [*map(essence, theirs)]
        for sent in ours:
            assert_signed(sent, "states")

    @pytest.mark.parametrize("code", ["TaskTimedOut", "TaskDoesNotExist", "InvalidToken"])
    def test_a_machine_that_waits_no_more_is_no_error(self, recorder: Recorder, code: str) -> None:
        body = json.dumps({"__type": f"com.amazonaws.states#{code}", "message": "gone"}).encode()
        recorder.answers = [Canned(400, {}, body)]
        assert not aws_requests.resume(TOKEN, "complete")
        assert len(recorder.sent) == 1

    def test_a_rejection_says_why(self, recorder: Recorder) -> None:
        denied = {"__type": "AccessDeniedException", "Message": "not authorized"}
        recorder.answers = [Canned(400, {}, json.dumps(denied).encode())]
        said = "SendTaskSuccess: states answered 400 AccessDeniedException: not authorized"
        with pytest.raises(ServiceError, match=said):
            aws_requests.resume(TOKEN, "complete")

    def test_throttling_is_retried(self, recorder: Recorder) -> None:
        throttled = Canned(400, {}, b'{"__type":"ThrottlingException","message":"Rate exceeded"}')
        recorder.answers = [throttled, Canned(500, {}, b"oops")]
        assert aws_requests.resume(TOKEN, "complete")
        assert len(recorder.sent) == 3
        recorder.answers = [throttled] * 6
        with pytest.raises(ServiceError, match=r"SendTaskSuccess: POST failed 6 times.*Throttling"):
            aws_requests.resume(TOKEN, "complete")

    def test_a_deadline_is_scheduled_as_by_boto3(self, recorder: Recorder) -> None:
        conflict = Canned(409, {"x-amzn-ErrorType": "ConflictException:http://x/"}, b"{}")
        gone = Canned(404, {"x-amzn-ErrorType": "ResourceNotFoundException"}, b'{"Message":"no"}')
        at = datetime(2099, 1, 1, tzinfo=UTC)
        recorder.answers = [Canned(), Canned(), Canned(), conflict, Canned(), conflict, gone]
        with service_client("scheduler") as scheduler:
            scheduled(scheduler.create_schedule, "c")
            scheduled(scheduler.update_schedule, "u")
        for _ in range(3):
            aws_requests.schedule_deadline("r-1", at, ["t"])
        create, update, *ours = recorder.sent
        expected = [create, create, update, create, update]
        assert [*map(without_token, ours)] == [*map(without_token, expected)]
        for sent in ours:
            assert_signed(sent, "scheduler")

    def test_a_deadline_is_cancelled_as_by_boto3(self, recorder: Recorder) -> None:
        gone = Canned(404, {"x-amzn-ErrorType": "ResourceNotFoundException"}, b'{"Message":"no"}')
        denied = Canned(403, {"x-amzn-ErrorType": "AccessDeniedException"}, b"{}")
        recorder.answers = [Canned(), Canned(), gone, denied]
        with service_client("scheduler") as scheduler:
            scheduler.delete_schedule(Name="r-1", GroupName="group", ClientToken="t")
        aws_requests.cancel_deadline("r-1")
        aws_requests.cancel_deadline("r-1")
        with pytest.raises(ServiceError, match="DeleteSchedule: scheduler answered 403"):
            aws_requests.cancel_deadline("r-1")
        theirs, *ours = recorder.sent
        target = theirs.target.replace("&clientToken=t", "").replace("clientToken=t&", "")
        for sent in ours:
            assert (sent.method, sent.target, sent.body) == (theirs.method, target, theirs.body)
            assert_signed(sent, "scheduler")

    def test_an_event_is_published_as_by_boto3(self, recorder: Recorder) -> None:
        taken = Canned(body=b'{"FailedEntryCount":0,"Entries":[{"EventId":"1"}]}')
        recorder.answers = [taken, taken]
        detail = {"round": "r", "ä": 1}
        entry = {"Source": "gradshard", "DetailType": "RoundFailed", "Detail": json.dumps(detail)}
        with service_client("events") as events:
            events.put_events(Entries=[entry])
        aws_requests.publish("RoundFailed", detail)
        theirs, ours = recorder.sent
        assert essence(ours) == essence(theirs)
        assert_signed(ours, "events")

    @pytest.mark.parametrize(
        ("service", "name"),
        [
            (aws_json.STEP_FUNCTIONS, "stepfunctions"),
            (aws_json.EVENT_BRIDGE, "events"),
            (aws_json.SCHEDULER, "scheduler"),
        ],
    )
    @pytest.mark.parametrize("region", ["eu-central-1", "cn-north-1", "us-gov-west-1"])
    def test_hosts_are_those_of_boto3(
        self,
        recorder: Recorder,
        monkeypatch: pytest.MonkeyPatch,
        service: aws_json.Service,
        name: Any,
        region: str,
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "")  # as the template does on AWS
        monkeypatch.setenv("AWS_REGION", region)
        suffix = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        monkeypatch.setenv("GRADSHARD_URL_SUFFIX", suffix)
        aws_json._requests.cache_clear()
        host = aws_json._requests(service)._host
        with service_client(name, region) as client:
            assert f"https://{host}" == client.meta.endpoint_url
