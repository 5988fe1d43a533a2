"""The log line and the metrics of a task, as one line in CloudWatch's embedded metric format.

The fields are those of :mod:`gradshard_core.observability.powertools`, but this module does not
import Powertools. It would load parts of botocore, jmespath and fifty more modules, and every shard
would pay for them. The format:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from gradshard_core.observability.log_fields import (
    NAMESPACE,
    UNITS,
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

Handler = Callable[[Event, Context], Outcome]


def handler(measures: Measures) -> Callable[[Handler], Handler]:
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


def _tell(
    event: Event,
    context: Context,
    level: str,
    message: str,
    measured: Mapping[str, float],
    more: Mapping[str, Any],
) -> None:
    now = datetime.now(UTC)
    record = {
        # Named as Powertools does, so that one query finds the lines of all functions.
        "level": level,
        "message": message,
        "timestamp": now.isoformat(timespec="milliseconds"),
        "service": os.environ["POWERTOOLS_SERVICE_NAME"],
        "function_name": context.function_name,
        "function_request_id": context.aws_request_id,
        **subject(event),
        **more,
        **measured,
        "_aws": {
            "Timestamp": int(1000 * now.timestamp()),
            "CloudWatchMetrics": [
                {
                    "Namespace": NAMESPACE,
                    "Dimensions": [["service"]],
                    "Metrics": [{"Name": name, "Unit": UNITS[name]} for name in measured],
                }
            ],
        },
    }
    # In one write: lines of an invocation that is killed are whole or not there.
    sys.stdout.write(to_line(record) + "\n")
    sys.stdout.flush()
