"""Tell the account's event bus that a training has ended or paused."""

from typing import Any, Final

from gradshard_core.records.training_state import ENDED, PAUSED, TrainingState
from gradshard_core.rounds import aws_requests
from gradshard_core.s3.store import S3Store

EVENTS: Final = {ENDED: "TrainingEnded", PAUSED: "TrainingPaused"}


def publish_if_stopped(store: S3Store, name: str, state: TrainingState) -> None:
    """Publish an event if a training does not go on; a repetition publishes it again.

    Raises
    ------
    ServiceError
        EventBridge did not take the event.
    """
    if state.status not in EVENTS:
        return
    detail: dict[str, Any] = {
        "training": name,
        "bucket": store.bucket,
        "cause": state.cause,
        "completed": state.completed,
        "version": state.version,
        "best_version": state.best.version if state.best else None,
    }
    aws_requests.publish(EVENTS[state.status], detail)
