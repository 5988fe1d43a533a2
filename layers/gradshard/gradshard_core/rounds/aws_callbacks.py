"""Requests of a round to AWS besides S3: go on, wake it at its deadline, and tell others."""

import contextlib
import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3

from gradshard_core.errors import ServiceError

if TYPE_CHECKING:
    from mypy_boto3_events import EventBridgeClient
    from mypy_boto3_scheduler import EventBridgeSchedulerClient
    from mypy_boto3_stepfunctions import SFNClient

EVENT_SOURCE = "gradshard"

TIMEOUT_SECONDS = 3600
"""Seconds that the scheduler tries to deliver a deadline.

Then the deadline goes to the queue of undelivered events, and an alarm goes off. The scheduler
allows a day, which is too long a silence."""

MAX_CAUSE = 8_000
"""Characters of a cause that are kept; Step Functions ends at 32,768 of them."""


@cache
def _states() -> "SFNClient":
    return boto3.client("stepfunctions")


@cache
def _scheduler() -> "EventBridgeSchedulerClient":
    return boto3.client("scheduler")


@cache
def _events() -> "EventBridgeClient":
    return boto3.client("events")


def resume(token: str, reason: str) -> bool:
    """Let the state machine go on from its wait for updates; False if it waits no more."""
    with _no_longer_waiting():
        _states().send_task_success(taskToken=token, output=json.dumps({"reason": reason}))
        return True
    return False


def give_up(token: str, error: str, cause: str) -> None:
    """Have the state machine fail at its wait for updates."""
    with _no_longer_waiting():
        _states().send_task_failure(taskToken=token, error=error, cause=cause[:MAX_CAUSE])


def _no_longer_waiting() -> contextlib.suppress:
    exceptions = _states().exceptions
    return contextlib.suppress(
        exceptions.TaskTimedOut, exceptions.TaskDoesNotExist, exceptions.InvalidToken
    )


def schedule_deadline(round_id: str, at: datetime, tokens: Sequence[str]) -> None:
    """Have ``collect_update`` called at the deadline; twice for one round is once.

    It is told the tokens with which the round is resumed: should those on S3 be lost, the round
    goes on all the same.
    """
    scheduler = _scheduler()
    # Never in the past, for which a schedule does not fire.
    at = max(at, datetime.now(UTC) + timedelta(seconds=2))
    # The expression has whole seconds; a deadline is not moved forward.
    at += timedelta(microseconds=-at.microsecond % 1_000_000)
    schedule: Any = {
        "Name": round_id,
        "GroupName": os.environ["GRADSHARD_SCHEDULE_GROUP"],
        "ScheduleExpression": f"at({at:%Y-%m-%dT%H:%M:%S})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": os.environ["GRADSHARD_COLLECT_FUNCTION_ARN"],
            "RoleArn": os.environ["GRADSHARD_SCHEDULE_ROLE_ARN"],
            "Input": json.dumps({"round": round_id, "deadline": True, "tokens": tokens}),
            "RetryPolicy": {
                "MaximumEventAgeInSeconds": TIMEOUT_SECONDS,
                "MaximumRetryAttempts": 185,  # the most: the age decides
            },
            "DeadLetterConfig": {"Arn": os.environ["GRADSHARD_UNDELIVERED_ARN"]},
        },
    }
    try:
        scheduler.create_schedule(**schedule)
    except scheduler.exceptions.ConflictException:
        # There is none to update if it has just been due.
        with contextlib.suppress(scheduler.exceptions.ResourceNotFoundException):
            scheduler.update_schedule(**schedule)


def publish(detail_type: str, detail: dict[str, Any]) -> None:
    """Tell the account's default event bus how a round ended.

    Raises
    ------
    ServiceError
        EventBridge did not take the event, which it says in an answer that is no error.
    """
    answer = _events().put_events(
        Entries=[{"Source": EVENT_SOURCE, "DetailType": detail_type, "Detail": json.dumps(detail)}]
    )
    if answer["FailedEntryCount"]:
        [entry] = answer["Entries"]
        raise ServiceError(
            f"EventBridge did not take {detail_type} of round {detail['round']!r}: "
            f"{entry.get('ErrorCode')}: {entry.get('ErrorMessage')}"
        )
