"""The corrections of MiniStack that `upstream/ministack` offers to its authors.

Each check is what AWS's documentation says. The pinned release must fail it, or the correction is
needed no more; with the patch it must pass.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import ministack
import pytest
from botocore.config import Config

from gradshard.local_engine.process_control import free_port
from gradshard.utils.crc64 import crc64_text

PATCHES = sorted((Path(__file__).parents[2] / "upstream" / "ministack").glob("*.patch"))
ROLE = "arn:aws:iam::000000000000:role/any"
SECONDS = 60
SOURCE = """
import os

def handler(event, context):
    records = event.get("Records")
    what = records[0]["Sns"]["Message"] if records else event.get("detail", event).get("what")
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(f"{what}\\n")
    if what == "raise":
        raise LookupError("not there")
    if what == "exit":
        os._exit(1)
"""


@dataclass(frozen=True)
class Plain:
    """A MiniStack without anything of ours around it."""

    port: int
    package: Path
    calls: Path
    patience: float
    """The seconds after which something that its patch brings has not come."""

    def client(self, service: str, **settings: Any) -> Any:
        make: Any = boto3.client
        return make(
            service,
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            region_name="us-east-1",
            config=Config(retries={"total_max_attempts": 1}, read_timeout=SECONDS, **settings),
        )

    def python(self, source: str) -> str:
        """Run a program that imports the package; return what it prints."""
        return subprocess.run(
            [sys.executable, "-c", source],
            env={**os.environ, "PYTHONPATH": str(self.package), "AUTH": "true"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture(scope="module", params=["pinned", "patched"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MiniStack as it is released, and with all patches."""
    folder = tmp_path_factory.mktemp(request.param)
    package, calls = folder / "package", folder / "calls"
    calls.touch()
    shutil.copytree(Path(ministack.__file__).parent, package / "ministack")
    if request.param == "patched":
        for patch in PATCHES:
            subprocess.run(["git", "apply", "-p1", patch], cwd=package, check=True)
    # What a machine under load may take; without the patches nothing comes however long one waits.
    patience = 60 if request.param == "patched" else 12
    yield from _serve(folder, Plain(free_port(), package, calls, patience))


def _serve(folder: Path, plain: Plain) -> Iterator[Plain]:
    settings = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(plain.package),
        "GATEWAY_PORT": str(plain.port),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{plain.port}",
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "STATE_DIR": str(folder / "state"),
        "DOCKER_HOST": "unix:///nonexistent",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "ministack"], env=settings, cwd=folder, stdout=log, stderr=log
        )
    try:
        until(lambda: _is_ready(plain.port))
        _create_function(plain)
        yield plain
    finally:
        process.terminate()
        process.wait()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/_ministack/ready") as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _create_function(plain: Plain) -> None:
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", SOURCE)
    plain.client("lambda").create_function(
        FunctionName="called",
        Runtime="python3.13",
        Role=ROLE,
        Handler="app.handler",
        Timeout=30,
        Code={"ZipFile": package.getvalue()},
        Environment={"Variables": {"CALLS": str(plain.calls)}},
    )


def until(look: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Look again and again until there is something."""
    give_up = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < give_up, f"nothing came within {seconds} s"
        time.sleep(0.1)
    return found


def execution(plain: Plain, name: str, state: dict[str, Any], input_: Any) -> tuple[str, Any]:
    """Start a machine of one state; return its execution's ARN and a look at its end."""
    states = plain.client("stepfunctions")
    definition = {"StartAt": "Only", "States": {"Only": state | {"End": True}}}
    machine = states.create_state_machine(
        name=name, definition=json.dumps(definition), roleArn=ROLE
    )["stateMachineArn"]
    arn = states.start_execution(stateMachineArn=machine, input=json.dumps(input_))["executionArn"]

    def ended() -> Any:
        found = states.describe_execution(executionArn=arn)
        return found if found["status"] != "RUNNING" else None

    return arn, ended


# ---------------------------------------------------------------- what AWS's documentation says


def range_of_a_version(plain: Plain) -> None:
    s3 = plain.client("s3")
    s3.create_bucket(Bucket="ranges")
    s3.put_bucket_versioning(Bucket="ranges", VersioningConfiguration={"Status": "Enabled"})
    version = s3.put_object(Bucket="ranges", Key="k", Body=b"0123456789")["VersionId"]
    answer = s3.get_object(Bucket="ranges", Key="k", VersionId=version, Range="bytes=2-4")
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 206
    assert (answer["ContentRange"], answer["Body"].read()) == ("bytes 2-4/10", b"234")


def max_concurrency_path(plain: Plain) -> None:
    processor = {
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"},
        "StartAt": "Pass",
        "States": {"Pass": {"Type": "Pass", "End": True}},
    }
    state = {
        "Type": "Map",
        "ItemsPath": "$.items",
        "MaxConcurrencyPath": "$.most",
        "ItemProcessor": processor,
    }
    arn, ended = execution(plain, "map", state, {"items": [1, 2, 3], "most": 2})
    assert until(ended)["status"] == "SUCCEEDED"
    states = plain.client("stepfunctions")
    [run] = states.list_map_runs(executionArn=arn)["mapRuns"]
    assert states.describe_map_run(mapRunArn=run["mapRunArn"])["maxConcurrency"] == 2


def failing_callback_task(plain: Plain) -> None:
    state = {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke.waitForTaskToken",
        "Parameters": {
            "FunctionName": "called",
            "Payload": {"what": "raise", "token.$": "$$.Task.Token"},
        },
    }
    _, ended = execution(plain, "callback", state, {})
    assert until(ended, plain.patience)["status"] == "FAILED"


def error_names(plain: Plain) -> None:
    functions = plain.client("lambda")
    for what, name in (("raise", "LookupError"), ("exit", "Runtime.ExitError")):
        answer = functions.invoke(FunctionName="called", Payload=json.dumps({"what": what}))
        assert json.loads(answer["Payload"].read())["errorType"] == name


def events_come_again(plain: Plain) -> None:
    events, functions = plain.client("events"), plain.client("lambda")
    arn = functions.get_function(FunctionName="called")["Configuration"]["FunctionArn"]
    events.put_rule(Name="rule", EventPattern=json.dumps({"source": ["tests"]}))
    events.put_targets(Rule="rule", Targets=[{"Id": "it", "Arn": arn}])
    before = len(plain.called())
    detail = json.dumps({"what": "raise"})
    events.put_events(Entries=[{"Source": "tests", "DetailType": "any", "Detail": detail}])
    until(lambda: len(plain.called()) == before + 3, plain.patience)


def messages_come_again(plain: Plain) -> None:
    sns, functions = plain.client("sns"), plain.client("lambda")
    arn = functions.get_function(FunctionName="called")["Configuration"]["FunctionArn"]
    topic = sns.create_topic(Name="topic")["TopicArn"]
    sns.subscribe(TopicArn=topic, Protocol="lambda", Endpoint=arn)
    before = len(plain.called())
    sns.publish(TopicArn=topic, Message="raise")
    until(lambda: len(plain.called()) == before + 3, plain.patience)


def punctual_schedules(plain: Plain) -> None:
    functions = plain.client("lambda")
    arn = functions.get_function(FunctionName="called")["Configuration"]["FunctionArn"]
    scheduler = plain.client("scheduler")
    # Two of them: the first may be due just when a slow clock looks, and the second then waits for
    # the clock's next look, 10 s later.
    for number in range(2):
        due = datetime.now(UTC) + timedelta(seconds=1)
        what = f"due-{number}"

        def has_come(what: str = what) -> bool:
            return what in plain.called()

        scheduler.create_schedule(
            Name=what,
            ScheduleExpression=f"at({due:%Y-%m-%dT%H:%M:%S})",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={"Arn": arn, "RoleArn": ROLE, "Input": json.dumps({"what": what})},
        )
        until(has_come, 4)


def keys_nobody_can_compute(plain: Plain) -> None:
    source = """
from ministack.core.lambda_runtime import execution_credentials
arn, role = "arn:aws:lambda:us-east-1:000000000000:function:f", "arn:aws:iam::000000000000:role/r"
config = {"FunctionName": "f", "FunctionArn": arn, "Role": role}
print(execution_credentials(config)["AWS_SECRET_ACCESS_KEY"])
"""
    assert plain.python(source) != plain.python(source)


def asked_arns(plain: Plain) -> None:
    source = """
import json
from ministack.core.iam_actions import extract_resource_arn as arn
def ask(service, path, **body):
    return arn(service, "POST", path, {}, json.dumps(body).encode(), {}, "us-east-1", "1")
print(ask("scheduler", "/schedules/s", GroupName="g"), ask("states", "/", mapRunArn="arn:run"))
"""
    expected = "arn:aws:scheduler:us-east-1:1:schedule/g/s arn:run"
    assert plain.python(source) == expected


def user_id_of_a_role(plain: Plain) -> None:
    source = """
from ministack.core.lambda_runtime import execution_credentials
from ministack.services import iam, sts
iam._roles.set_scoped("000000000000", None, "r", {"RoleName": "r", "RoleId": "AROA1"})
arn, role = "arn:aws:lambda:us-east-1:000000000000:function:f", "arn:aws:iam::000000000000:role/r"
config = {"FunctionName": "f", "FunctionArn": arn, "Role": role}
print(sts._sessions.get(execution_credentials(config)["AWS_ACCESS_KEY_ID"])["UserId"])
"""
    assert plain.python(source) == "AROA1:f"


def etags_under_kms(plain: Plain) -> None:
    s3 = plain.client("s3")
    s3.create_bucket(Bucket="kms")
    key = plain.client("kms").create_key()["KeyMetadata"]["KeyId"]
    kms: Any = {"Bucket": "kms", "Key": "k", "ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key}
    etags = [s3.put_object(**kms, Body=b"same")["ETag"]]
    for _ in range(2):
        upload: Any = {"Bucket": "kms", "Key": "k"}
        upload["UploadId"] = s3.create_multipart_upload(**kms)["UploadId"]
        etags.append(s3.upload_part(**upload, PartNumber=1, Body=b"same")["ETag"])
        parts = {"Parts": [{"PartNumber": 1, "ETag": etags[-1]}]}
        etags.append(s3.complete_multipart_upload(**upload, MultipartUpload=parts)["ETag"])
    md5 = hashlib.md5(b"same", usedforsecurity=False).hexdigest()
    assert f'"{md5}"' not in etags
    assert len(set(etags)) == len(etags)


def checksum_of_the_whole(plain: Plain) -> None:
    s3 = plain.client("s3", request_checksum_calculation="when_required")
    s3.create_bucket(Bucket="sums")
    data = b"x" * (5 << 20) + b"end"
    expected = (crc64_text(data), "FULL_OBJECT")

    def kept(key: str) -> tuple[Any, Any]:
        head = s3.head_object(Bucket="sums", Key=key, ChecksumMode="ENABLED")
        return head.get("ChecksumCRC64NVME"), head.get("ChecksumType")

    for algorithm in ({}, {"ChecksumAlgorithm": "CRC64NVME"}):
        upload: Any = {"Bucket": "sums", "Key": "parts"}
        upload["UploadId"] = s3.create_multipart_upload(**upload, **algorithm)["UploadId"]
        parts = []
        for number, body in enumerate((data[:-3], data[-3:]), 1):
            sum_ = {"ChecksumCRC64NVME": crc64_text(body)} if algorithm else {}
            part = s3.upload_part(**upload, PartNumber=number, Body=body, **sum_)
            assert part.get("ChecksumCRC64NVME") == crc64_text(body)
            parts.append({"PartNumber": number, "ETag": part["ETag"], **sum_})
        made = s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        assert (made.get("ChecksumCRC64NVME"), made.get("ChecksumType")) == expected
        assert kept("parts") == expected
    made = s3.put_object(Bucket="sums", Key="one", Body=b"one")
    assert made.get("ChecksumCRC64NVME") == crc64_text(b"one")
    assert kept("one") == (crc64_text(b"one"), "FULL_OBJECT")


CHECKS: list[Callable[[Plain], None]] = [
    range_of_a_version,
    max_concurrency_path,
    failing_callback_task,
    error_names,
    events_come_again,
    punctual_schedules,
    keys_nobody_can_compute,
    asked_arns,
    etags_under_kms,
    user_id_of_a_role,
    messages_come_again,
    checksum_of_the_whole,
]


def test_every_patch_has_a_check() -> None:
    assert [path.name[:4] for path in PATCHES] == [
        f"{number:04}" for number in range(1, len(CHECKS) + 1)
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_a_patch_is_needed_and_suffices(
    engine: Plain, check: Callable[[Plain], None], request: pytest.FixtureRequest
) -> None:
    if request.node.callspec.params["engine"] == "pinned":
        with pytest.raises((AssertionError, KeyError)):
            check(engine)
    else:
        check(engine)
