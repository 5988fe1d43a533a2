"""A round's JSON objects, as both ways to S3 write and read them."""

import json
from typing import Any

from gradshard.errors import BrokenObjectError


def encode(value: Any) -> bytes:
    """Write a document."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def decode(key: str, body: bytes) -> Any:
    """Read the document under ``key``.

    Raises
    ------
    BrokenObjectError
        It is no JSON.
    """
    try:
        return json.loads(body)
    except ValueError as error:
        raise BrokenObjectError(f"{key}: {len(body)} bytes that are no JSON: {error}") from None
