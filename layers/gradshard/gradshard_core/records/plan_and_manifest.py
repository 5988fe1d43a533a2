"""Records of a round with long lists, which are stored in pieces: its plan and its manifest."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gradshard_core.errors import BrokenObjectError, StoreError
from gradshard_core.formats import json_records
from gradshard_core.formats.long_lists import (
    Get,
    ListWriter,
    Put,
    StoredList,
    is_in_pieces,
    name_of,
)
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.records.manifest_status import parse_manifest
from gradshard_core.s3.json_reads import JsonReads
from gradshard_core.s3.store import S3Store

if TYPE_CHECKING:
    # Commands that show a manifest do without numpy, which plans import.
    from gradshard_core.planning.plan import Plan
    from gradshard_core.planning.plan_parts import Rejection

T = TypeVar("T")


def piece_reader(store: JsonReads, key_of: Callable[[str], str]) -> Get:
    """Return what reads a piece of a list: ``key_of`` returns the key of the piece of a name.

    It raises a :class:`StoreError` if the piece is missing or was replaced.
    """
    return lambda name: _read(store, key_of(name), name)


def _read(store: JsonReads, key: str, name: str) -> Any:
    body = store.get_bytes(key)
    if body is None:
        raise StoreError(f"{key} is missing")
    # Coordinators may write the pieces of the ids, and not the spec that names them.
    if name_of(body) != name:
        raise BrokenObjectError(
            f"{key}: {len(body)} bytes of other content than its name says: somebody replaced it. "
            "Restore its first version, or delete the round and open another"
        )
    return json_records.decode(key, body, _checked)


def _checked(piece: Any) -> Any:
    return piece | {"entries": list(piece["entries"])}


def piece_writer(store: S3Store, keys: RoundKeys) -> Put:
    """Return what stores a piece of a round's list."""
    return lambda name, body: store.put_bytes(keys.piece(name), body)


def read_plan(store: JsonReads, keys: RoundKeys) -> "Plan | None":
    """Read the plan of a round; None if there is none. Its contributors load when needed."""
    # It loads numpy, which manifests do not need.
    from gradshard_core.planning.plan_json import parse_plan

    return store.get_json(keys.plan, partial(parse_plan, get=piece_reader(store, keys.piece)))


def read_manifest(store: JsonReads, keys: RoundKeys) -> dict[str, Any] | None:
    """Read the manifest of a round; None if it has not ended. Its long lists load when needed."""
    return store.get_json(
        keys.manifest, lambda manifest: parse_manifest(with_lists(store, keys, manifest))
    )


def with_lists(store: JsonReads, keys: RoundKeys, record: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with the lists of which it, or its part on measuring, holds the pieces."""
    get = piece_reader(store, keys.piece)
    found = _with_lists(record, get)
    if record.get("measuring"):
        found["measuring"] = _with_lists(record["measuring"], get)
    return found


def read_record(store: JsonReads, keys: TrainingKeys, key: str) -> dict[str, Any] | None:
    """Read the record of a training's round. Its long lists load when they are needed."""
    return store.get_json(key, lambda record: _with_lists(record, piece_reader(store, keys.piece)))


def with_decided(store: JsonReads, keys: RoundKeys, record: dict[str, Any]) -> dict[str, Any]:
    """Return a decision with the lists of which it holds the pieces.

    They are apart from other pieces, which clients may read.
    """
    return _with_lists(record, piece_reader(store, keys.decided))


def _with_lists(record: dict[str, Any], get: Get) -> dict[str, Any]:
    return {
        name: StoredList(value, get) if is_in_pieces(value) else value
        for name, value in record.items()
    }


def list_writer(
    store: S3Store, keys: RoundKeys, encode: Callable[[T], Any] = lambda entry: entry
) -> ListWriter[T]:
    """Return what stores a list of a manifest, whose entries ``encode`` makes JSON of."""
    return ListWriter(
        piece_writer(store, keys), lambda part: {"entries": list(map(encode, part))}, _client
    )


def store_replan(
    store: S3Store, keys: RoundKeys, attempt: int, rejected: Iterable["Rejection"]
) -> None:
    """Store whom an attempt found to be bad, so that the round is planned again without them."""
    store.put_json(keys.replan(attempt), stored(store, keys, rejected, vars))


def read_replan(store: JsonReads, keys: RoundKeys, attempt: int) -> "Sequence[Rejection] | None":
    """Read what :func:`store_replan` stored; None if nothing is there."""
    # It loads numpy, as plans do.
    from gradshard_core.planning.plan_parts import Rejection

    def parse(piece: Any) -> list[Rejection]:
        return [Rejection(**entry) for entry in piece["entries"]]

    def read(written: Any) -> Sequence[Rejection]:
        if is_in_pieces(written):
            return StoredList(written, piece_reader(store, keys.piece), parse)
        return parse({"entries": written})

    return store.get_json(keys.replan(attempt), read)


def store_expected(store: S3Store, keys: RoundKeys, clients: Iterable[str]) -> Any:
    """Store the ids of the clients that a round expects; return them, or the names of the pieces.

    They are apart from the pieces that functions write: who opens a round may not write those.
    """
    return _store(store, keys.expected, clients, str)


def store_decided(store: S3Store, keys: RoundKeys, entries: Iterable[dict[str, Any]]) -> Any:
    """Store a decision's entries, sorted by client; return them, or the names of the pieces."""
    return _store(store, keys.decided, entries, lambda entry: str(entry["client"]))


def store_kept(store: S3Store, keys: TrainingKeys, entries: Iterable[Any]) -> Any:
    """Store a list of a training, of clients or of pairs that begin with one."""
    return _store(
        store, keys.piece, entries, lambda entry: entry if isinstance(entry, str) else entry[0]
    )


def _store(
    store: S3Store,
    key_of: Callable[[str], str],
    entries: Iterable[T],
    client_of: Callable[[T], str],
) -> Any:
    """Store a list in pieces of its own; return its entries, or the names of the pieces."""
    writer = ListWriter[T](
        lambda name, body: store.put_bytes(key_of(name), body),
        lambda part: {"entries": list(part)},
        client_of,
    )
    for entry in entries:
        writer.add(entry)
    return writer.to_json()


def stored(
    store: S3Store,
    keys: RoundKeys,
    entries: Iterable[T],
    encode: Callable[[T], Any] = lambda entry: entry,
) -> Any:
    """Return what a manifest holds of a list: its entries, or the names of its pieces."""
    writer = list_writer(store, keys, encode)
    for entry in entries:
        writer.add(entry)
    return writer.to_json()


def _client(entry: Any) -> str:
    """Return the client that an entry is about; tasks are about none."""
    if isinstance(entry, str):
        return entry
    return "" if isinstance(entry, dict) else str(entry.client)
