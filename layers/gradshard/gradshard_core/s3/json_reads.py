"""Reading JSON objects: both clients of S3 do it alike."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar, overload

from gradshard_core.formats import json_records

T = TypeVar("T")


class JsonReads(ABC):
    """Reads JSON objects; subclasses read their bytes."""

    @abstractmethod
    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; None if there is none."""

    @overload
    def get_json(self, key: str) -> Any: ...

    @overload
    def get_json(self, key: str, read: Callable[[Any], T]) -> T | None: ...

    def get_json(self, key: str, read: Callable[[Any], Any] = json_records.unchanged) -> Any:
        """Read an object with :func:`~gradshard_core.formats.json_records.decode`, or None."""
        body = self.get_bytes(key)
        return None if body is None else json_records.decode(key, body, read)
