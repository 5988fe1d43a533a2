"""The deployed application, as its outputs and executions show it to a client."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
)
from botocore.parsers import ResponseParserError

from gradshard.deployment import local_engine
from gradshard.errors import EngineError, ServiceError
from gradshard.s3.store import S3Store, make_client, of_settings, unreachable

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_stepfunctions import SFNClient

ENDING_SECONDS: Final = 30.0
ENDING_PAUSE_SECONDS: Final = 0.2

# Few attempts: whoever mistyped an endpoint should not wait long to hear of it.
_CONFIG: Final = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
)


class Execution(NamedTuple):
    """A round's run of the state machine."""

    status: str
    input: dict[str, Any]
    error: str
    cause: str

    @property
    def failed(self) -> bool:
        """Whether it ended otherwise than well."""
        return self.status in {"FAILED", "TIMED_OUT", "ABORTED"}

    @property
    def reason(self) -> str:
        """Why it failed."""
        return self.cause or self.error or f"the execution ended as {self.status}"


class Stack:
    """Where rounds are kept and run.

    Parameters
    ----------
    name
        Of the CloudFormation stack; asked for what is not given, when it is first needed.
    bucket, state_machine
        Known already. With a bucket the stack is never asked.
    endpoint_url
        Where AWS is, if not at AWS.
    port
        Of the local engine, if that is where the stack is.
    """

    def __init__(
        self,
        name: str,
        *,
        bucket: str | None,
        state_machine: str | None,
        endpoint_url: str | None,
        port: int | None,
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._state_machine = state_machine
        self._given_endpoint_url = endpoint_url
        self._port = port

    @cached_property
    def store(self) -> S3Store:
        """The bucket."""
        bucket = self._bucket or self.output("BucketName")
        client = make_client(session=self._session, endpoint_url=self._endpoint_url)
        return S3Store(bucket, client=client)

    @property
    def state_machine(self) -> str | None:
        """The ARN of the machine that runs rounds; None if only a bucket was given."""
        if self._state_machine or self._bucket:
            return self._state_machine
        return self.output("RoundStateMachineArn")

    def output(self, name: str) -> str:
        """Return an output of the stack.

        Raises
        ------
        ServiceError
            The stack is not there, is not gradshard's, or cannot be asked.
        """
        if name not in self._outputs:
            raise ServiceError(
                f"stack {self.name!r} has no output {name}: it is not gradshard's, or not yet "
                "deployed"
            )
        return self._outputs[name]

    def start(self, round_id: str, payload: str) -> bool:
        """Start a round's execution; False if it ran before and has ended, or in other terms."""
        states = self._states
        try:
            with translated():
                states.start_execution(
                    stateMachineArn=self._machine_arn(), name=round_id, input=payload
                )
        except states.exceptions.ExecutionAlreadyExists:
            return False
        return True

    def execution(self, round_id: str) -> Execution | None:
        """Look at a round's execution; None if there is none, or no machine to ask."""
        if self.state_machine is None:
            return None
        arn = self._execution_arn(round_id)
        try:
            with translated():
                found = self._states.describe_execution(executionArn=arn)
        except self._states.exceptions.ExecutionDoesNotExist:
            return None
        return Execution(
            status=found["status"],
            input=json.loads(found.get("input", "{}")),
            error=found.get("error", ""),
            cause=found.get("cause", ""),
        )

    def transitions(self, round_id: str) -> int:
        """Count what a round's execution is charged for: its start, states, and children.

        The manifest is written before the execution has ended, which is waited for.
        """
        if self.state_machine is None:
            return 0
        give_up = time.monotonic() + ENDING_SECONDS
        while (running := self.execution(round_id)) and running.status == "RUNNING":
            if time.monotonic() >= give_up:
                raise ServiceError(
                    f"round {round_id!r} has its manifest, but its execution has not ended after "
                    f"{ENDING_SECONDS:g} s"
                )
            time.sleep(ENDING_PAUSE_SECONDS)
        arn, states = self._execution_arn(round_id), self._states
        with translated():
            entered = sum(
                event["type"].endswith("StateEntered")
                for page in states.get_paginator("get_execution_history").paginate(executionArn=arn)
                for event in page["events"]
            )
            children = sum(
                states.describe_map_run(mapRunArn=run["mapRunArn"])["executionCounts"]["total"]
                for page in states.get_paginator("list_map_runs").paginate(executionArn=arn)
                for run in page["mapRuns"]
            )
        return 1 + entered + children

    def _machine_arn(self) -> str:
        if self.state_machine is None:
            raise ServiceError("to open a round, give state_machine= beside bucket=, or a stack")
        return self.state_machine

    def _execution_arn(self, round_id: str) -> str:
        return f"{self._machine_arn().replace(':stateMachine:', ':execution:')}:{round_id}"

    @cached_property
    def _outputs(self) -> dict[str, str]:
        try:
            with translated():
                client: CloudFormationClient = self._session.client(
                    "cloudformation", endpoint_url=self._endpoint_url, config=_CONFIG
                )
                [stack] = client.describe_stacks(StackName=self.name)["Stacks"]
        except ClientError as error:
            if "does not exist" not in str(error):
                raise
            raise ServiceError(
                f"there is no stack {self.name!r} in {self._session.region_name}: deploy it "
                "(gradshard deploy), or name another (--stack)"
            ) from None
        return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}

    @cached_property
    def _states(self) -> "SFNClient":
        with translated():
            return self._session.client(
                "stepfunctions", endpoint_url=self._endpoint_url, config=_CONFIG
            )

    @cached_property
    def _session(self) -> boto3.Session:
        if self._port is not None:
            return _local_session()
        with translated():
            return boto3.Session()

    @cached_property
    def _endpoint_url(self) -> str | None:
        if self._port is None:
            return self._given_endpoint_url
        engine = local_engine.status(self._port)
        if not engine.running:
            raise EngineError(
                f"no local engine is running on port {self._port}: start it with "
                f"`{engine.starting}`"
            )
        return engine.url


def _local_session() -> boto3.Session:
    """Make a session that knows the engine's dummy credentials and none of the user's settings."""
    settings = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    return boto3.Session(
        aws_access_key_id=local_engine.CREDENTIALS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=local_engine.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        region_name=local_engine.REGION,
        botocore_session=botocore.session.Session(session_vars=settings),
    )


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn into :class:`ServiceError` what boto3 raises before AWS has answered."""
    try:
        yield
    except NoCredentialsError:
        raise ServiceError(
            "no AWS credentials found: configure them (aws configure), or use --local"
        ) from None
    except NoRegionError:
        raise ServiceError(
            "no AWS region is configured: set AWS_DEFAULT_REGION, or use --local"
        ) from None
    except EndpointConnectionError as error:
        raise ServiceError(unreachable(error)) from None
    except ResponseParserError as error:
        # Only of S3's answers botocore makes an error of its own kinds.
        reason = str(error).partition(". ")[0]
        raise ServiceError(
            f"the answer is not one of AWS's ({reason}); is AWS_ENDPOINT_URL right?"
        ) from None
    except BotoCoreError as error:
        raise ServiceError(str(error)) from error
    except ValueError as error:
        if (setting := of_settings(error)) is None:
            raise
        raise ServiceError(setting) from None
