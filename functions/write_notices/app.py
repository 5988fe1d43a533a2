"""write_notices: a training went on, or the holder of a ticket asks (S3's notifications)."""

from typing import Any

from gradshard_core.formats.s3_notifications import parse_notifications
from gradshard_core.observability import embedded_metrics
from gradshard_core.s3.http_transport import HttpPresigner, function_store, function_transport
from gradshard_core.trainings.write_notices import write_notices

store = function_store()
signer = HttpPresigner(function_transport())


@embedded_metrics.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Write the notices of clients without AWS credentials."""
    outcome: dict[str, Any] = {}
    for uploaded in parse_notifications(event):
        outcome = write_notices(store, signer, uploaded.key)
    return outcome
