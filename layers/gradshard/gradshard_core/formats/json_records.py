"""A round's JSON objects, as both ways to S3 write and read them."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from gradshard_core.errors import BrokenObjectError, SpecError

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """Write a document."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def decode(key: str, body: bytes, read: Callable[[Any], T]) -> T:
    """Read the document under ``key``, by what makes of its JSON what is wanted.

    Raises
    ------
    BrokenObjectError
        The object is no JSON, or not the JSON that belongs there.
    """
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BrokenObjectError(f"{key}: {len(body)} bytes that are no JSON: {error}") from None
    try:
        return read(value)
    # SpecError: an option of another version, as after a deployment was taken back.
    except (AttributeError, LookupError, SpecError, TypeError, ValueError) as error:
        raise BrokenObjectError(
            f"{key}: JSON of another form than was written there: {type(error).__name__}: {error}"
        ) from error


def unchanged(value: Any) -> Any:
    """Read a document as its JSON."""
    return value
