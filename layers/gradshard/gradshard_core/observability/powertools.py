"""The logs and metrics of the functions, and the wrapper of their handlers.

``aggregate_shard`` wears that of :mod:`gradshard_core.observability.emf` instead, for the same
lines and metrics.
"""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.utilities.typing import LambdaContext

from gradshard_core.observability.log_fields import (
    NAMESPACE,
    UNITS,
    Event,
    Measures,
    Outcome,
    failure,
    shortened,
    subject,
    to_line,
    usage,
)

logger = Logger(json_serializer=to_line)
metrics = Metrics(namespace=NAMESPACE)

Handler = Callable[[Event, LambdaContext], Outcome]


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
        @logger.inject_lambda_context(clear_state=True)
        @metrics.log_metrics
        @wraps(function)
        def observed(event: Event, context: LambdaContext) -> Outcome:
            logger.append_keys(**subject(event))
            started = time.perf_counter()
            try:
                outcome = function(event, context)
            except Exception as error:
                fields = _measured(usage(context, started)) | failure(error)
                logger.error("failed", extra=fields)  # noqa: TRY400 - the runtime logs the traceback
                raise
            measured = _measured(usage(context, started) | dict(measures(event, outcome)))
            logger.info("done", extra=measured | {"outcome": shortened(outcome)})
            return outcome

        return observed

    return wrap


def rejected(rejections: list[dict[str, Any]]) -> None:
    """Log a line for each client whose update was rejected."""
    for rejection in rejections:
        fields = {"contributor": rejection["client"], "reason": rejection["reason"]}
        logger.warning("rejected", extra=shortened(fields))


def _measured(values: dict[str, float]) -> dict[str, Any]:
    """Add to the metrics, and return the same for the log line."""
    for name, value in values.items():
        metrics.add_metric(name, UNITS[name], value)
    return dict(values)
