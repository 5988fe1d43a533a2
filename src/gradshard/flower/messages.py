"""The messages of the strategy: who gets them, and what the replies say."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from gradshard.flower.arrays import RECORD
from gradshard_core.errors import SpecError

LOG: Final = logging.getLogger("flwr")


def by_number(_grid: Grid, nodes: Sequence[int]) -> dict[int, str]:
    """Name clients by their node ids, padded with zeros, so that text sorts as numbers do."""
    return {node: f"{node:020d}" for node in nodes}


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


def named(names: Mapping[int, str], nodes: Sequence[int]) -> dict[int, str]:
    """Return the names of those nodes that have one; the others may be gone, and are logged."""
    named = {node: names[node] for node in nodes if node in names}
    if len(named) < len(nodes):
        LOG.warning(
            "configure_train: client_names gave %d of %d nodes no name; they are left out",
            len(nodes) - len(named),
            len(nodes),
        )
    given = list(named.values())
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise SpecError(
            f"client_names gives {given.count(twice)} nodes the name {twice!r}: each needs its "
            "own, or the first upload keeps out the other"
        )
    return named


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
