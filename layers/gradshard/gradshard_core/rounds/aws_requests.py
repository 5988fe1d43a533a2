"""Requests of a round to AWS besides S3: go on, wake it at its deadline, and tell others."""

import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gradshard_core.errors import ServiceError
from gradshard_core.rounds import aws_json
from gradshard_core.rounds.aws_json import EVENT_BRIDGE, SCHEDULER, STEP_FUNCTIONS, RejectedError

EVENT_SOURCE = "gradshard"

TIMEOUT_SECONDS = 3600
"""Seconds that the scheduler tries to deliver a deadline.

Then the deadline goes to the queue of undelivered events, and an alarm goes off. The scheduler
allows a day, which is too long a silence."""

MAX_CAUSE = 8_000
"""Characters of a cause that are kept; Step Functions ends at 32,768 of them."""

_NO_LONGER_WAITING: Final = {"TaskTimedOut", "TaskDoesNotExist", "InvalidToken"}


def resume(token: str, reason: str) -> bool:
    """Let the state machine go on from its wait for updates; False if it waits no more."""
    return succeed(token, {"reason": reason})


def succeed(token: str, output: Mapping[str, Any]) -> bool:
    """End the state that waits for a token with its output; False if it waits no more."""
    return _tell(token, "SendTaskSuccess", output=json.dumps(output))


def give_up(token: str, error: str, cause: str) -> None:
    """Have the state that waits for a token fail, so that the machine goes where it is caught."""
    _tell(token, "SendTaskFailure", error=error, cause=cause[:MAX_CAUSE])


def _tell(token: str, operation: str, **outcome: str) -> bool:
    try:
        aws_json.call(STEP_FUNCTIONS, operation, {"taskToken": token, **outcome})
    except RejectedError as error:
        if error.code in _NO_LONGER_WAITING:
            return False
        raise
    return True


def schedule_deadline(round_id: str, at: datetime, tokens: Sequence[str]) -> None:
    """Have ``collect_update`` called at the deadline; twice for one round is once.

    It is told the tokens with which the round is resumed: should those on S3 be lost, the round
    goes on all the same.
    """
    # Never in the past, for which a schedule does not fire.
    at = max(at, datetime.now(UTC) + timedelta(seconds=2))
    # The expression has whole seconds; a deadline is not moved forward.
    at += timedelta(microseconds=-at.microsecond % 1_000_000)
    schedule: Any = {
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
    path = f"/schedules/{round_id}"
    try:
        aws_json.call(SCHEDULER, "CreateSchedule", schedule, path=path)
    except RejectedError as error:
        if error.code != "ConflictException":
            raise
        try:
            aws_json.call(SCHEDULER, "UpdateSchedule", schedule, method="PUT", path=path)
        except RejectedError as missing:
            # There is none to update if it has just been due.
            if missing.code != "ResourceNotFoundException":
                raise


def cancel_deadline(round_id: str) -> None:
    """Delete the schedule of a round that has ended, so that nothing is called for it any more."""
    group = {"groupName": os.environ["GRADSHARD_SCHEDULE_GROUP"]}
    path = f"/schedules/{round_id}"
    try:
        aws_json.call(SCHEDULER, "DeleteSchedule", None, method="DELETE", path=path, query=group)
    except RejectedError as error:
        # It has been due, or this is a repetition.
        if error.code != "ResourceNotFoundException":
            raise


def publish(detail_type: str, detail: dict[str, Any]) -> None:
    """Tell the account's default event bus how a round, or a training, ended.

    Raises
    ------
    ServiceError
        EventBridge did not take the event, which it says in an answer that is no error.
    """
    entry = {"Source": EVENT_SOURCE, "DetailType": detail_type, "Detail": json.dumps(detail)}
    answer = aws_json.call(EVENT_BRIDGE, "PutEvents", {"Entries": [entry]})
    if answer["FailedEntryCount"]:
        [rejected] = answer["Entries"]
        raise ServiceError(
            f"EventBridge did not take {detail_type} of {_subject(detail)}: "
            f"{rejected.get('ErrorCode')}: {rejected.get('ErrorMessage')}"
        )


def _subject(detail: dict[str, Any]) -> str:
    kind = "round" if "round" in detail else "training"
    return f"{kind} {detail[kind]!r}"
