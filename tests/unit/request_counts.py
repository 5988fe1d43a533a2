"""Every request of a round to AWS, counted by function and kind, on a bucket in memory."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from gradshard_core.limits import aws_limits
from gradshard_core.rounds import aws_json, aws_requests
from gradshard_core.s3.store import ListedObject
from tests.unit.in_memory import Machine

Requests = Counter[tuple[str, str]]
"""The number of requests by function and kind."""

KINDS = {
    "get": ("get_bytes", "get_body", "get_head", "head", "describe", "checksum"),
    "put": ("put_bytes", "create_upload", "upload_part", "complete_upload"),
    "delete": ("delete", "delete_versions", "abort_upload"),
    "list": ("open_uploads",),
}
"""The requests to S3 that a method of the bucket makes one of, by what they cost."""


class Counting:
    """Counts a round's requests: to S3, to other services, and the machine's own.

    Parameters
    ----------
    machine
        The round's.
    patched
        Undoes the counting.
    """

    def __init__(self, machine: Machine, patched: pytest.MonkeyPatch) -> None:
        self.counts: Requests = Counter()
        self.function = "client"
        self._lock, self._inside = threading.Lock(), threading.local()
        store = machine.store
        for kind, names in KINDS.items():
            for name in names:
                patched.setattr(store, name, self._counted(getattr(store, name), kind))
        # The bucket in memory lists versions by this, too.
        for name in ("list_objects", "list_parts"):
            patched.setattr(store, name, self._paged(getattr(store, name)))
        for name in ("schedule_deadline", "cancel_deadline"):
            told = self._counted(getattr(aws_requests, name), name)
            patched.setattr(aws_requests, name, told)
        call = aws_json.call

        def counted_call(service: Any, operation: str, *body: Any, **options: Any) -> Any:
            self._add(operation)
            return call(service, operation, *body, **options)

        patched.setattr(aws_json, "call", counted_call)
        step, aggregate = machine.step, machine.aggregate

        def counted_step(function: str, **event: Any) -> dict[str, Any]:
            with self._of(function):
                return step(function, **event)

        def counted_aggregate(planned: dict[str, Any]) -> None:
            level = planned
            while level:
                children = store.get_json(level["tasks"]["key"]) if "tasks" in level else []
                self._add("children", len(children), function="machine")
                level = level.get("next", {})
            aggregate(planned)

        patched.setattr(machine, "step", counted_step)
        patched.setattr(machine, "aggregate", counted_aggregate)

    @contextmanager
    def _of(self, function: str) -> Iterator[None]:
        self.function = function
        self._add("invocations")
        try:
            yield
        finally:
            self.function = "client"

    def _counted(self, call: Callable[..., Any], kind: str) -> Any:
        def counted(*args: Any, **options: Any) -> Any:
            # The bucket in memory makes one request of another, in the same thread.
            if getattr(self._inside, "a_request", False):
                return call(*args, **options)
            self._add(kind)
            self._inside.a_request = True
            try:
                return call(*args, **options)
            finally:
                self._inside.a_request = False

        return counted

    def _paged(self, call: Callable[..., Any]) -> Any:
        def paged(*args: Any, **options: Any) -> Any:
            self._add("list")
            found = call(*args, **options)
            if found is None or isinstance(found, list):
                self._add("list", max(0, len(found or ()) - 1) // aws_limits.LISTED_ENTRIES)
                return found
            return self._pages(found)

        return paged

    def _pages(self, entries: Iterator[ListedObject]) -> Iterator[ListedObject]:
        for number, entry in enumerate(entries):
            if number and number % aws_limits.LISTED_ENTRIES == 0:
                self._add("list")
            yield entry

    def _add(self, kind: str, number: int = 1, *, function: str = "") -> None:
        with self._lock:
            self.counts[function or self.function, kind] += number


def of_functions(counts: Requests) -> Requests:
    """Return the requests without those of clients, which tests make in their own way."""
    return Counter({key: number for key, number in counts.items() if key[0] != "client"})
