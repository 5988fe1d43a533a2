"""What the local engine owes to our mending: here, how events and crowds reach functions."""

import io
import json
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from gradshard.local_engine.lifecycle import Engine
from gradshard.local_engine.ministack_lambda import PROCESSES_OF_A_FUNCTION

STUB = """
import json, os

def handler(event, context):
    number = int(event["Records"][0]["Sns"]["Message"])
    with open(os.environ["CALLS"], "a") as calls:
        calls.write(json.dumps([number, os.getpid()]) + "\\n")
    with open(os.environ["CALLS"]) as calls:
        if number == 0 and sum(json.loads(line)[0] == 0 for line in calls) < 3:
            raise RuntimeError("not yet")
"""
BUSY = """
import os, time

def handler(event, context):
    time.sleep(0.2)
    return os.getpid()
"""
LAYERED = """
import layered, os

def handler(event, context):
    return layered.__file__, layered.VALUE, os.environ["NAME"], os.getpid()
"""
IMPORTED = """
import sys

def handler(event, context):
    return [name for name in ("botocore", "numpy", "ssl") if name in sys.modules]
"""
EVENTS = 20
CROWD = 60
SECONDS = 60


def create_function(name: str, source: str, variables: dict[str, str]) -> str:
    """Create a function of one file; return its ARN."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", source)
    trust = {"Effect": "Allow", "Principal": "*", "Action": "sts:AssumeRole"}
    role = boto3.client("iam").create_role(
        RoleName=name,
        AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}),
    )["Role"]["Arn"]
    return boto3.client("lambda").create_function(
        FunctionName=name,
        Runtime="python3.13",
        Role=role,
        Handler="app.handler",
        Timeout=30,
        Code={"ZipFile": package.getvalue()},
        Environment={"Variables": variables},
    )["FunctionArn"]


@pytest.fixture
def topic() -> str:
    """A topic."""
    return str(boto3.client("sns").create_topic(Name="wake")["TopicArn"])


@pytest.fixture
def calls(engine: Engine, topic: str, tmp_path: Path) -> Path:
    """Where a function that subscribes to the topic writes which came, and in which process."""
    file = tmp_path / "calls"
    file.touch()
    arn = create_function("woken", STUB, {"CALLS": str(file)})
    boto3.client("sns").subscribe(TopicArn=topic, Protocol="lambda", Endpoint=arn)
    return file


def test_messages_queue_for_few_processes_and_failed_ones_come_again(
    topic: str, calls: Path
) -> None:
    for number in range(EVENTS):
        boto3.client("sns").publish(TopicArn=topic, Message=str(number))
    give_up = time.monotonic() + SECONDS
    while len(lines := calls.read_text().splitlines()) < EVENTS + 2:
        assert time.monotonic() < give_up, lines
        time.sleep(0.1)
    numbers, processes = zip(*map(json.loads, lines), strict=True)
    assert sorted(numbers) == [0, 0, *range(EVENTS)]
    assert len(set(processes)) <= 4  # a process goes on after an exception


@pytest.mark.usefixtures("engine")
def test_a_crowd_of_invocations_shares_a_few_processes() -> None:
    arn = create_function("busy", BUSY, {})
    patient = Config(max_pool_connections=CROWD, read_timeout=SECONDS, retries={"max_attempts": 0})
    functions = boto3.client("lambda", config=patient)

    def invoke(_: int) -> int:
        answer = functions.invoke(FunctionName=arn, Payload=b"{}")
        return int(answer["Payload"].read())  # an error is no number

    with ThreadPoolExecutor(CROWD) as pool:
        processes = set(pool.map(invoke, range(CROWD)))
    assert len(processes) <= PROCESSES_OF_A_FUNCTION < CROWD


@pytest.mark.usefixtures("engine")
def test_a_process_imports_nothing_but_its_function() -> None:
    arn = create_function("bare", IMPORTED, {})
    answer = boto3.client("lambda").invoke(FunctionName=arn, Payload=b"{}")
    assert json.loads(answer["Payload"].read()) == []


@pytest.mark.usefixtures("engine")
def test_processes_of_functions_share_one_copy_of_a_layer() -> None:
    functions = boto3.client("lambda")
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("python/layered.py", "VALUE = 7")
    layer = functions.publish_layer_version(
        LayerName="shared", Content={"ZipFile": package.getvalue()}
    )["LayerVersionArn"]
    answers = []
    for name in ("first", "second"):
        arn = create_function(f"layered-{name}", LAYERED, {"NAME": name})
        functions.update_function_configuration(FunctionName=arn, Layers=[layer])
        answers.append(json.loads(functions.invoke(FunctionName=arn)["Payload"].read()))
    [(file, value, first, pid), (other_file, _, second, other_pid)] = answers
    assert (file, value) == (other_file, 7)
    assert (first, second) == ("first", "second")
    assert pid != other_pid
