"""The keys of the functions' log lines, and how near an invocation came to its limits.

:mod:`gradshard_core.observability.embedded_metrics` writes them.
"""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from gradshard_core.formats.object_keys import parse_renewal_key, parse_update_key
from gradshard_core.formats.s3_notifications import is_notification, parse_notifications
from gradshard_core.observability.memory import peak_memory_mb

MAX_TEXT: Final = 1_000
"""Characters of a text in a log line: clients choose the names of tensors, up to 16 MiB of them."""

MAX_ENTRIES: Final = 20
"""Entries of a list in a log line: a round may have thousands of clients."""

SUBJECTS: Final = ("training", "run", "step", "round", "attempt")
"""The fields of an event that say what it is about."""

Event = dict[str, Any]
Outcome = dict[str, Any]
Measures = Callable[[Event, Outcome], Mapping[str, float]]
"""The metrics of an invocation."""


class Context(Protocol):
    """The attributes of an invocation that Lambda gives a handler."""

    @property
    def function_name(self) -> str:
        """Return the function's name."""

    @property
    def aws_request_id(self) -> str:
        """Return the id that the runtime's own lines have, too."""

    @property
    def memory_limit_in_mb(self) -> int:
        """Return the function's memory, in MB of 1024² bytes."""

    def get_remaining_time_in_millis(self) -> int:
        """Return how long it may go on."""


def subject(event: Event) -> dict[str, Any]:
    """Return what an event is about, as far as it says, such as round, attempt and task."""
    if is_notification(event):
        found = parse_notifications(event)
        if not found:
            return {}
        key = found[0].key
        # Ids are checked later: whoever may write to the bucket chooses the key.
        if update := parse_update_key(key):
            return _cut({"round": update.round_id, "contributor": update.client})
        if renewal := parse_renewal_key(key):
            return _cut({"training": renewal.training, "contributor": renewal.first})
        return _cut({"key": key})
    known: dict[str, Any] = {name: event[name] for name in SUBJECTS if name in event}
    if task := event.get("task"):
        known["task"] = {"level": task["level"], "number": task["number"]}
    return _cut(known)


def shortened(value: Any) -> Any:
    """Cut long texts and lists, so that no log line outgrows what CloudWatch takes."""
    if isinstance(value, str):
        return value if len(value) <= MAX_TEXT else value[: MAX_TEXT - 1] + "…"
    if isinstance(value, Mapping):
        return _cut(value)
    if isinstance(value, list):
        kept = [shortened(entry) for entry in value[:MAX_ENTRIES]]
        return kept if len(value) == len(kept) else [*kept, f"… {len(value)} in all"]
    return value


def _cut(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shortened(entry) for name, entry in fields.items()}


def to_line(record: Mapping[str, Any]) -> str:
    """Return a log line: ASCII only, so that no client's text moves a reader's cursor."""
    return json.dumps(record, separators=(",", ":"), default=str)


def usage(context: Context, started: float) -> dict[str, float]:
    """Measure how near an invocation came to its function's limits.

    Parameters
    ----------
    context
        The invocation's.
    started
        The beginning of the invocation, by :func:`time.perf_counter`.
    """
    elapsed = 1000 * (time.perf_counter() - started)
    allowed = elapsed + context.get_remaining_time_in_millis()
    return {
        "MemoryUsed": round(100 * peak_memory_mb() / int(context.memory_limit_in_mb), 1),
        "TimeUsed": round(100 * elapsed / allowed, 1),
    }


def failure(error: Exception) -> dict[str, str]:
    """Return what a log line says of an error."""
    return {"error": type(error).__name__, "cause": shortened(str(error))}
