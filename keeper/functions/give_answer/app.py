"""give_answer: complete the sum of the masks, and delete the sealed seeds."""

from typing import Any

from gradshard_core.mask_keeper.give_answer import give_answer
from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import function_store

store = function_store()
answers = function_store("GRADSHARD_AGGREGATOR_BUCKET")


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Give the answer, unless the request was refused."""
    return give_answer(store, answers, event["round"])
