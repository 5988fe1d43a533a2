"""The log line and the metrics of a function, as one line in CloudWatch's embedded metric format.

Powertools writes such lines, too. It would load parts of botocore, jmespath and fifty more modules,
and every cold start would pay for them. The format:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Any, Final

from gradshard_core.observability.log_fields import (
    Context,
    Event,
    Measures,
    Outcome,
    failure,
    shortened,
    subject,
    to_line,
    usage,
)

NAMESPACE: Final = "gradshard"

UNITS: Final = {
    "UpdatesAccepted": "Count",
    "UpdatesRejected": "Count",
    "UpdatesLate": "Count",
    "UpdatesIgnored": "Count",
    "UpdatesCompressed": "Count",
    "Replans": "Count",
    "Tasks": "Count",
    "TaskSeconds": "Seconds",
    "BytesRead": "Bytes",
    "BytesWritten": "Bytes",
    "Retries": "Count",
    "RoundsCompleted": "Count",
    "RoundsFailed": "Count",
    "TrainingsEnded": "Count",
    "TrainingsPaused": "Count",
    "MemoryUsed": "Percent",
    "TimeUsed": "Percent",
}
"""The metrics, each with CloudWatch's unit; their one dimension is ``service``, the stack.

A new one also needs a widget of the dashboard in ``template.yaml``.
"""

Handler = Callable[[Event, Context], Outcome]


def nothing(_event: Event, _outcome: Outcome) -> dict[str, float]:
    """Add to no metric."""
    return {}


def handler(measures: Measures = nothing) -> Callable[[Handler], Handler]:
    """Log what an invocation is about and how it ended, and measure it.

    Parameters
    ----------
    measures
        The function that makes metrics of an event and its outcome.
    """

    def wrap(function: Handler) -> Handler:
        @wraps(function)
        def observed(event: Event, context: Context) -> Outcome:
            started = time.perf_counter()
            try:
                outcome = function(event, context)
            except Exception as error:
                _tell(event, context, "ERROR", "failed", usage(context, started), failure(error))
                raise
            measured = usage(context, started) | dict(measures(event, outcome))
            _tell(event, context, "INFO", "done", measured, {"outcome": shortened(outcome)})
            return outcome

        return observed

    return wrap


def rejected(event: Event, context: Context, rejections: list[dict[str, Any]]) -> None:
    """Log a line for each client whose update was rejected."""
    for rejection in rejections:
        fields = {"contributor": rejection["client"], "reason": rejection["reason"]}
        _tell(event, context, "WARNING", "rejected", {}, shortened(fields))


def _tell(
    event: Event,
    context: Context,
    level: str,
    message: str,
    measured: Mapping[str, float],
    more: Mapping[str, Any],
) -> None:
    now = datetime.now(UTC)
    directive = {
        "Timestamp": int(1000 * now.timestamp()),
        "CloudWatchMetrics": [
            {
                "Namespace": NAMESPACE,
                "Dimensions": [["service"]],
                "Metrics": [{"Name": name, "Unit": UNITS[name]} for name in measured],
            }
        ],
    }
    record = {
        "level": level,
        "message": message,
        "timestamp": now.isoformat(timespec="milliseconds"),
        "service": os.environ["GRADSHARD_STACK"],
        "function_name": context.function_name,
        "function_request_id": context.aws_request_id,
        **subject(event),
        **more,
        **measured,
        **({"_aws": directive} if measured else {}),
    }
    # In one write: lines of an invocation that is killed are whole or not there.
    sys.stdout.write(to_line(record) + "\n")
    sys.stdout.flush()
