"""start_training: check a training's options, write them and its first state."""

import os
from typing import Any

from gradshard_core.observability import powertools
from gradshard_core.s3.store import S3Store
from gradshard_core.trainings.start_training import start_training

store = S3Store(os.environ["GRADSHARD_BUCKET"])


@powertools.handler()
def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
    """Start the training that an execution of the state machine stands for."""
    return start_training(store, event["training"], event["spec"], started=event["started"])
