"""The deployed stack: its outputs, its bucket, its functions and its state machine."""

import json
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session

from gradshard.aws.boto_client import connect, make_client, make_session
from gradshard.aws.boto_errors import as_service_errors
from gradshard.aws.client_store import ClientStore
from gradshard.client.executions import Execution, Executions, ListedExecution
from gradshard.deployment import user_config
from gradshard.local_engine import running_engines
from gradshard_core.errors import ServiceError

if TYPE_CHECKING:
    from mypy_boto3_cloudformation import CloudFormationClient
    from mypy_boto3_lambda import LambdaClient
    from mypy_boto3_stepfunctions import SFNClient

# Few attempts: whoever mistyped an endpoint should not wait long to hear of it.
_CONFIG: Final = Config(
    connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3}
)

# Functions run for up to a quarter of an hour, and may be called again.
_CALLS_CONFIG: Final = _CONFIG.merge(Config(read_timeout=900))


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
        return self._executions.start(round_id, payload)

    def execution(self, round_id: str) -> Execution | None:
        """Return a round's execution; None if there is none, or no state machine is known."""
        return None if self.state_machine is None else self._executions.find(round_id)

    def list_executions(self, status: str | None = None) -> Iterator[ListedExecution]:
        """Yield the executions of the last 90 days, or those of one status, the newest first."""
        return self._executions.list(status)

    def stop(self, round_id: str, error: str, cause: str) -> None:
        """Stop a round's execution; no error if it has ended."""
        self._executions.stop(round_id, error, cause)

    def transitions(self, round_id: str) -> int:
        """Count the transitions that a round's execution is charged for.

        The manifest is written before the execution has ended, which is waited for.
        """
        return 0 if self.state_machine is None else self._executions.count_transitions(round_id)

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
        with as_service_errors():
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
        with as_service_errors():
            logs = connect(self._session, "logs", _CONFIG, self._endpoint_url)
            for page in logs.get_paginator("filter_log_events").paginate(
                logGroupName=group, filterPattern=f'"{round_id}"', startTime=since
            ):
                yield from ((event["timestamp"], event["message"]) for event in page["events"])

    @cached_property
    def _outputs(self) -> dict[str, str]:
        try:
            with as_service_errors():
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
    def _executions(self) -> Executions:
        with as_service_errors():
            states: SFNClient = connect(self._session, "stepfunctions", _CONFIG, self._endpoint_url)
        if self.state_machine is None:
            raise ServiceError("give state_machine= beside bucket=, or a stack")
        return Executions(states, self.state_machine)

    @cached_property
    def _session(self) -> Session:
        if self._port is not None:
            return running_engines.session(running_engines.find(self._port))
        with as_service_errors():
            session = make_session(region=self._region, profile=self._profile)
            if not session.get_config_variable("region") and self._bucket is None:
                region = user_config.region_of(self.name)
                return make_session(region=region, profile=self._profile)
            return session

    @cached_property
    def _endpoint_url(self) -> str | None:
        if self._port is None:
            return self._given_endpoint_url
        return running_engines.find(self._port).url
