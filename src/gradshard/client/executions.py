"""The executions of a state machine: one for each round, or for each run of a training."""

import itertools
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from botocore.exceptions import ClientError

from gradshard.aws.boto_errors import as_service_errors
from gradshard.utils.polling import poll
from gradshard_core.errors import ServiceError, plain_failure

if TYPE_CHECKING:
    from mypy_boto3_stepfunctions import SFNClient

ENDING_SECONDS: Final = 30.0
ENDING_PAUSE_SECONDS: Final = 0.2

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


class Executions:
    """The executions of a state machine, by name.

    Parameters
    ----------
    states
        The client of Step Functions.
    machine
        The ARN of the state machine.
    """

    def __init__(self, states: "SFNClient", machine: str) -> None:
        self._states = states
        self._machine = machine

    def start(self, name: str, payload: str) -> bool:
        """Start an execution; False if it ran before: ended, or with another input."""
        try:
            with as_service_errors():
                self._states.start_execution(
                    stateMachineArn=self._machine, name=name, input=payload
                )
        except self._states.exceptions.ExecutionAlreadyExists:
            return False
        return True

    def find(self, name: str) -> Execution | None:
        """Return an execution; None if there is none."""
        try:
            with as_service_errors():
                found = self._states.describe_execution(executionArn=self._arn(name))
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

    def list(self, status: str | None = None) -> Iterator[ListedExecution]:
        """Yield the executions of the last 90 days, or those of one status, the newest first."""
        only: Any = {} if status is None else {"statusFilter": status}
        with as_service_errors():
            pages = self._states.get_paginator("list_executions").paginate(
                stateMachineArn=self._machine, **only
            )
            for found in itertools.chain.from_iterable(page["executions"] for page in pages):
                yield ListedExecution(
                    found["name"],
                    found["status"],
                    _date(found["startDate"]),
                    _date(found.get("stopDate")),
                )

    def stop(self, name: str, error: str, cause: str) -> None:
        """Stop an execution; no error if it has ended."""
        try:
            with as_service_errors():
                self._states.stop_execution(
                    executionArn=self._arn(name),
                    error=error,
                    cause=cause[:MAX_STOP_CAUSE_CHARACTERS],
                )
        except ClientError:
            # It may have ended between the look at it and this.
            execution = self.find(name)
            if execution is None or not execution.has_ended:
                raise

    def count_transitions(self, name: str) -> int:
        """Count the transitions that an execution is charged for, once it has ended.

        A round's manifest is written before that.
        """
        for _ in poll(ENDING_SECONDS, ENDING_PAUSE_SECONDS):
            execution = self.find(name)
            if execution is None or execution.status != "RUNNING":
                break
        else:
            raise ServiceError(
                f"round {name!r} has its manifest, but its execution has not ended after "
                f"{ENDING_SECONDS:g} s"
            )
        arn, states = self._arn(name), self._states
        with as_service_errors():
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

    def _arn(self, name: str) -> str:
        return f"{self._machine.replace(':stateMachine:', ':execution:')}:{name}"


def _date(at: datetime | None) -> str:
    return "" if at is None else at.astimezone(UTC).isoformat(timespec="seconds")
