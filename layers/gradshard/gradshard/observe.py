"""The functions' logger and metrics, and the wrapper that every handler wears."""

from collections.abc import Callable
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext

logger = Logger()
metrics = Metrics()

Handler = Callable[[dict[str, Any], LambdaContext], dict[str, Any]]


def handler(function: Handler) -> Handler:
    """Log the invocation's context and outcome, and flush the metrics."""

    @logger.inject_lambda_context(clear_state=True)
    @metrics.log_metrics(raise_on_empty_metrics=False)
    def observed(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
        outcome = function(event, context)
        logger.info("done", extra={"outcome": outcome})
        return outcome

    return observed  # type: ignore[no-any-return]


def count(name: str, value: float = 1) -> None:
    """Add to a metric that counts."""
    metrics.add_metric(name, MetricUnit.Count, value)
