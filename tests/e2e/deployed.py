"""The deployed application as AWS shows it, for what the client library does not do."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import boto3

from gradshard.client.round import Round
from gradshard.client.round_logs import LogLine
from gradshard.updates.upload_source import content_of
from gradshard.updates.uploads import upload

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_stepfunctions import SFNClient

T = TypeVar("T")


def until(look: Callable[[], T | None], seconds: float = 120) -> T:
    """Look again and again until there is something."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if found := look():
            return found
        time.sleep(0.1)
    raise AssertionError(f"nothing came within {seconds} s")


def send_unchecked(round_: Round, client: str, tensors: dict[str, Any], samples: int) -> None:
    """Send an update as a program does that does not look for NaN first."""
    with content_of(tensors, samples) as content:
        upload(round_.store, round_.keys.update(client), content)


def log_of(round_: Round, *wanted: tuple[str, str]) -> list[LogLine]:
    """Wait until functions have logged about a round, each with a client; return all of its log.

    A function answers, and the machine goes on, before its log group has its last line.
    """

    def look() -> list[LogLine] | None:
        lines = round_.log()
        logged = {(line.function, line.fields.get("contributor", "")) for line in lines}
        return lines if logged >= set(wanted) else None

    return until(look)


@dataclass(frozen=True)
class Deployed:
    """The stack's outputs, and clients to use them with."""

    outputs: dict[str, str]
    s3: "S3Client"
    functions: "BaseClient"
    states: "SFNClient"

    @classmethod
    def of_stack(cls, name: str) -> Self:
        """Look a stack up."""
        [stack] = boto3.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
        outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
        clients = boto3.client("s3"), boto3.client("lambda"), boto3.client("stepfunctions")
        return cls(outputs, *clients)

    @property
    def bucket(self) -> str:
        return self.outputs["BucketName"]

    def tokens(self, round_: Round) -> list[str]:
        """Return the tokens that resume a round, which are written a moment after its spec."""
        until(lambda: self.keys(round_.keys.callback))
        tokens: list[str] = json.loads(self.read(round_.keys.callback))["tokens"]
        return tokens

    def put(self, round_id: str, client: str, body: bytes) -> str:
        """Upload an update as a client without the library would; return its ETag."""
        key = f"rounds/{round_id}/updates/{client}.safetensors"
        return self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)["ETag"].strip('"')

    def read(self, key: str) -> bytes:
        return self.s3.get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def update(self, round_id: str, client: str) -> bytes:
        return self.read(f"rounds/{round_id}/updates/{client}.safetensors")

    def keys(self, prefix: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=self.bucket, Prefix=prefix)
        return [entry["Key"] for entry in listed.get("Contents", [])]

    def has_none(self, prefix: str) -> bool:
        return not self.keys(prefix)

    def open_uploads(self, round_id: str) -> list[str]:
        listed = self.s3.list_multipart_uploads(Bucket=self.bucket, Prefix=f"rounds/{round_id}/")
        return [upload["Key"] for upload in listed.get("Uploads", [])]

    def call(self, function: str, event: dict[str, Any]) -> Any:
        """Invoke a function by the name of its folder; raise what it raises."""
        name = "".join(word.capitalize() for word in function.split("_"))
        answer = self.functions.invoke(  # type: ignore[attr-defined]
            FunctionName=self.outputs[f"{name}FunctionName"], Payload=json.dumps(event)
        )
        payload = json.loads(answer["Payload"].read())
        assert "FunctionError" not in answer, payload
        return payload

    def start(self, round_id: str, spec: str) -> None:
        """Start an execution past the library's checks."""
        self.states.start_execution(
            stateMachineArn=self.outputs["RoundStateMachineArn"], name=round_id, input=spec
        )

    def execution(self, round_id: str) -> dict[str, Any]:
        """Describe a round's execution."""
        machine = self.outputs["RoundStateMachineArn"]
        arn = f"{machine.replace(':stateMachine:', ':execution:')}:{round_id}"
        return dict(self.states.describe_execution(executionArn=arn))

    def ended(self, round_id: str) -> dict[str, Any]:
        """Wait for a round's execution to end, and describe it."""

        def look() -> dict[str, Any] | None:
            execution = self.execution(round_id)
            return execution if execution["status"] != "RUNNING" else None

        return until(look)
