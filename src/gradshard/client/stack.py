"""The deployed stack: its outputs, its functions, and the executions of rounds."""

import contextlib
import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
)
from botocore.parsers import ResponseParserError
from botocore.session import Session

from gradshard.aws.boto_client import connect, make_client, make_session
from gradshard.aws.boto_errors import NO_CREDENTIALS, settings_error, unreachable
from gradshard.aws.client_store import ClientStore
from gradshard.deployment import engine_status, user_config
from gradshard.utils.polling import poll
from gradshard_core.errors import ServiceError, plain_failure

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_stepfunctions import SFNClient

ENDING_SECONDS: Final = 30.0
ENDING_PAUSE_SECONDS: Final = 0.2

# Few attempts: whoever mistyped an endpoint should not wait long to hear of it.
_CONFIG: Final = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
)

# Functions run for up to a quarter of an hour, and may be called again.
_CALLS_CONFIG: Final = _CONFIG.merge(Config(read_timeout=900))

MAX_STOP_CAUSE_CHARACTERS: Final = 32_768
"""The longest cause that StopExecution takes,
https://docs.aws.amazon.com/step-functions/latest/apireference/API_StopExecution.html (2026-11)."""


class Execution(NamedTuple):
    """The execution of the state machine for one round."""

    status: str
    input: dict[str, Any]
    error: str
    cause: str
    started: str = ""
    stopped: str = ""

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self.status not in {"RUNNING", "PENDING_REDRIVE"}

    @property
    def dates(self) -> str:
        """The times of its start and stop, for a message."""
        return f"from {self.started or '?'} to {self.stopped or '?'}"

    @property
    def failed(self) -> bool:
        """Whether it failed, timed out or was stopped."""
        return self.status in {"FAILED", "TIMED_OUT", "ABORTED"}

    @property
    def succeeded(self) -> bool:
        """Whether it ran to its end; its round then had a spec and a manifest."""
        return self.has_ended and not self.failed

    @property
    def reason(self) -> str:
        """The cause of its failure."""
        _, cause = plain_failure(self.error, self.cause)
        return cause or self.error or f"the execution ended as {self.status}"


class ListedExecution(NamedTuple):
    """An execution in a list; times are ISO 8601, ``stopped`` is empty while it runs."""

    round_id: str
    status: str
    started: str
    stopped: str


class Stack:
    """A deployed stack of gradshard.

    Parameters
    ----------
    name
        Of the CloudFormation stack; asked for what is not given, when it is first needed.
    bucket, state_machine
        Known already. With a bucket the stack is never asked.
    endpoint_url
        The endpoint to use instead of AWS.
    region, profile
        The region and the profile of the AWS configuration, if not the default ones.
    port
        The port of the local engine, if the stack is there.
    """

    def __init__(
        self,
        name: str,
        *,
        bucket: str | None,
        state_machine: str | None,
        endpoint_url: str | None,
        port: int | None,
        region: str | None = None,
        profile: str | None = None,
    ) -> None:
        self.name = name
        self._bucket = bucket
        self._state_machine = state_machine
        self._given_endpoint_url = endpoint_url
        self._port = port
        self._region = region
        self._profile = profile

    @cached_property
    def trainings(self) -> "Stack":
        """The same stack with the machine that runs trainings, instead of rounds."""
        machine = None if self._bucket else self.output("FederationStateMachineArn")
        found = Stack(
            self.name,
            bucket=self.store.bucket,
            state_machine=machine,
            endpoint_url=self._given_endpoint_url,
            port=self._port,
            region=self._region,
            profile=self._profile,
        )
        found.__dict__["store"] = self.store
        return found

    @cached_property
    def store(self) -> ClientStore:
        """The bucket."""
        bucket = self._bucket or self.output("BucketName")
        client = make_client(session=self._session, endpoint_url=self._endpoint_url)
        return ClientStore(bucket, client)

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
        """Start a round's execution; False if it ran before: ended, or with other options."""
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
        """Return a round's execution; None if there is none, or no state machine is known."""
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
            started=_date(found.get("startDate")),
            stopped=_date(found.get("stopDate")),
        )

    def list_executions(self, status: str | None = None) -> Iterator[ListedExecution]:
        """Yield the executions of the last 90 days, or those of one status, the newest first."""
        only: Any = {} if status is None else {"statusFilter": status}
        arn = self._machine_arn()
        with translated():
            pages = self._states.get_paginator("list_executions").paginate(
                stateMachineArn=arn, **only
            )
            for found in itertools.chain.from_iterable(page["executions"] for page in pages):
                yield ListedExecution(
                    found["name"],
                    found["status"],
                    _date(found["startDate"]),
                    _date(found.get("stopDate")),
                )

    def stop(self, round_id: str, error: str, cause: str) -> None:
        """Stop a round's execution; no error if it has ended."""
        arn, states = self._execution_arn(round_id), self._states
        try:
            with translated():
                states.stop_execution(
                    executionArn=arn, error=error, cause=cause[:MAX_STOP_CAUSE_CHARACTERS]
                )
        except ClientError:
            # It may have ended between the look at it and this.
            execution = self.execution(round_id)
            if execution is None or not execution.has_ended:
                raise

    def invoke(self, output: str, event: dict[str, Any]) -> dict[str, Any]:
        """Call one of the functions and return its answer.

        Parameters
        ----------
        output
            The stack's output that has the function's name.
        event
            The event that the function gets.

        Raises
        ------
        ServiceError
            The function failed.
        """
        name = self.output(output)
        with translated():
            functions: LambdaClient = connect(
                self._session, "lambda", _CALLS_CONFIG, self._endpoint_url
            )
            response = functions.invoke(FunctionName=name, Payload=json.dumps(event).encode())
            payload = json.loads(response["Payload"].read())
        if response.get("FunctionError"):
            said = payload.get("errorMessage") or payload.get("errorType")
            raise ServiceError(f"{name} failed: {said}; its log has more")
        outcome: dict[str, Any] = payload
        return outcome

    def log_events(self, function: str, round_id: str, since: int) -> Iterator[tuple[int, str]]:
        """Yield times and messages of a function's log that contain a round's id.

        Parameters
        ----------
        function
            The name of the function in this application, such as ``plan_round``.
        round_id
            The round.
        since
            The earliest time, in milliseconds since 1970.
        """
        group = f"/aws/lambda/{self.name}-{function.replace('_', '-')}"
        with translated():
            logs = connect(self._session, "logs", _CONFIG, self._endpoint_url)
            for page in logs.get_paginator("filter_log_events").paginate(
                logGroupName=group, filterPattern=f'"{round_id}"', startTime=since
            ):
                yield from ((event["timestamp"], event["message"]) for event in page["events"])

    def transitions(self, round_id: str) -> int:
        """Count the transitions that a round's execution is charged for.

        The manifest is written before the execution has ended, which is waited for.
        """
        if self.state_machine is None:
            return 0
        for _ in poll(ENDING_SECONDS, ENDING_PAUSE_SECONDS):
            execution = self.execution(round_id)
            if execution is None or execution.status != "RUNNING":
                break
        else:
            raise ServiceError(
                f"round {round_id!r} has its manifest, but its execution has not ended after "
                f"{ENDING_SECONDS:g} s"
            )
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
            raise ServiceError("give state_machine= beside bucket=, or a stack")
        return self.state_machine

    def _execution_arn(self, round_id: str) -> str:
        return f"{self._machine_arn().replace(':stateMachine:', ':execution:')}:{round_id}"

    @cached_property
    def _outputs(self) -> dict[str, str]:
        try:
            with translated():
                client: CloudFormationClient = connect(
                    self._session, "cloudformation", _CONFIG, self._endpoint_url
                )
                [stack] = client.describe_stacks(StackName=self.name)["Stacks"]
        except ClientError as error:
            if "does not exist" not in str(error):
                raise
            asked = self._session.get_config_variable("region")
            deployed = user_config.region_of(self.name)
            if self._port is None and deployed not in {None, asked}:
                raise ServiceError(
                    f"there is no stack {self.name!r} in {asked}: it was deployed to {deployed}, "
                    f"so give --region {deployed}, or set AWS_DEFAULT_REGION={deployed}"
                ) from None
            raise ServiceError(
                f"there is no stack {self.name!r} in {asked}: deploy it "
                "(gradshard deploy), or name another (--stack)"
            ) from None
        return {o["OutputKey"]: o["OutputValue"] for o in stack.get("Outputs", [])}

    @cached_property
    def _states(self) -> "SFNClient":
        with translated():
            client: SFNClient = connect(self._session, "stepfunctions", _CONFIG, self._endpoint_url)
        return client

    @cached_property
    def _session(self) -> Session:
        if self._port is not None:
            return engine_status.session(engine_status.find(self._port))
        with translated():
            session = make_session(region=self._region, profile=self._profile)
            if not session.get_config_variable("region") and self._bucket is None:
                region = user_config.region_of(self.name)
                return make_session(region=region, profile=self._profile)
            return session

    @cached_property
    def _endpoint_url(self) -> str | None:
        if self._port is None:
            return self._given_endpoint_url
        return engine_status.find(self._port).url


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Turn boto3's errors before an answer of AWS into :class:`ServiceError`."""
    try:
        yield
    except NoCredentialsError:
        raise ServiceError(NO_CREDENTIALS) from None
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
        if (setting := settings_error(error)) is None:
            raise
        raise ServiceError(setting) from None


def _date(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
