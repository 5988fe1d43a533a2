"""What the functions logged about a round."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final, NamedTuple

from gradshard.client.stack import Stack
from gradshard_core.errors import RoundNotFoundError
from gradshard_core.formats.object_keys import RoundKeys

FUNCTIONS: Final = (
    *("open_round", "collect_update", "plan_round"),
    *("aggregate_shard", "finalize_round", "abort_round"),
)


class LogLine(NamedTuple):
    """A line that a function logged about a round; ``at`` is in milliseconds since 1970."""

    at: int
    function: str
    fields: dict[str, Any]


def round_log(stack: Stack, keys: RoundKeys) -> list[LogLine]:
    """Return what the functions logged about a round, the newest last.

    Raises
    ------
    RoundNotFoundError
        There is no such round.
    """
    record = stack.store.get_json(keys.spec, lambda record: str(record["opened_at"]))
    execution = None if record else stack.execution(keys.round_id)
    if record is None and execution is None:
        raise RoundNotFoundError.of(keys.round_id)
    opened_at = record or (execution.started if execution else "")
    since = int(1000 * datetime.fromisoformat(opened_at).timestamp()) if opened_at else 0
    found = [
        LogLine(at, function, fields)
        for function in FUNCTIONS
        for at, message in stack.log_events(function, keys.round_id, since)
        for fields in _lines(message)
        if fields.get("round") == keys.round_id
    ]
    return sorted(found, key=lambda line: line.at)


def _lines(message: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects among a message's lines."""
    for text in message.splitlines():
        if text.startswith("{"):
            try:
                yield json.loads(text)
            except ValueError:
                continue
