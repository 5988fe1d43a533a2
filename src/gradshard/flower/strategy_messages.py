"""The messages of the strategy: who gets them, and what the replies say."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from gradshard.flower.arrays import RECORD


def failure(reply: Message, round_id: str) -> str | None:
    """Say why a reply announces no upload; None if it does."""
    if reply.has_error():
        return str(reply.error.reason)
    announced = reply.content.config_records.get(RECORD)
    if announced is None:
        return "it replied without uploading; its ClientApp needs mods=[gradshard.flower.s3_mod]"
    if announced["round"] != round_id:
        return f"it uploaded to round {announced['round']!r}, not to {round_id!r}"
    return None


def with_order(message: Message, order: Mapping[str, Any]) -> Message:
    """Return a message with what :func:`.s3_mod` needs; its other records are shared."""
    return Message(
        RecordDict(dict(message.content) | {RECORD: ConfigRecord(dict(order))}),
        dst_node_id=message.metadata.dst_node_id,
        message_type=message.metadata.message_type,
    )


def counted(contributors: int, rejected: int, missing: int) -> dict[str, int]:
    """Return the metrics that count the clients of a round."""
    return {
        "gradshard-contributors": contributors,
        "gradshard-rejected": rejected,
        "gradshard-missing": missing,
    }
