"""A round's spec as it was opened with, and the record of its opening."""

from typing import Any

from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.spec import RoundSpec, parse_spec
from gradshard_core.s3.store import S3Store


def read_spec(store: S3Store, keys: RoundKeys) -> tuple[RoundSpec, dict[str, Any]] | None:
    """Return the terms of a round and its record of times; None if it was never opened."""
    return store.get_json(keys.spec, lambda record: (parse_spec(record["spec"]), record))
