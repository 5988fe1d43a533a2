"""write_inboxes: a training went on, or the holder of a ticket asks (S3 events)."""

from typing import Any

from gradshard_core.observability import emf
from gradshard_core.s3.http_transport import HttpPresigner, function_store, function_transport
from gradshard_core.trainings.write_inboxes import write_inboxes

store = function_store()
signer = HttpPresigner(function_transport())


@emf.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Write the inboxes of clients without AWS credentials."""
    return write_inboxes(store, signer, event["detail"]["object"]["key"])
