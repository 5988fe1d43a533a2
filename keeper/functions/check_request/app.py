"""check_request: decide on a request for the sum of some masks."""

import os
from typing import Any

from gradshard_core.mask_keeper.check_request import check_request
from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import function_store

store = function_store()
answers = function_store("GRADSHARD_AGGREGATOR_BUCKET")


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Check the request, and record the decision."""
    least = int(os.environ["GRADSHARD_LEAST_CLIENTS"])
    return check_request(store, answers, event["key"], least_clients=least)
