"""The updates of a buffered training that have arrived and have not counted yet.

A client uploads an update under the version of the model that it began from
(:meth:`gradshard_core.formats.object_keys.TrainingKeys.inbox`). A round takes as many as make a
version, in the order in which they arrived; its plan freezes them. Once it has completed, the
training's state names them, so that none counts twice.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from gradshard_core.formats.object_keys import ROUNDS, TrainingKeys, is_client, parse_inbox_id
from gradshard_core.records.training_state import TrainingState
from gradshard_core.s3.store import ListedObject, S3Store

ETAG_CHARACTERS: Final = 8
"""Of an ETag, in the state of a training: they tell a client's own uploads apart."""

NEVER: Final = datetime.min.replace(tzinfo=UTC)


class UncountedUpdate(NamedTuple):
    """An update that has arrived.

    Parameters
    ----------
    client
        The client that sent it.
    version
        The version of the model that it began from.
    entry
        Its object. The time is that of the upload, or of its beginning if it has parts; S3 rounds
        to seconds.
    """

    client: str
    version: int
    entry: ListedObject


def short_etag(etag: str) -> str:
    """Return what the state of a training keeps of an ETag."""
    return etag.strip('"')[:ETAG_CHARACTERS]


def has_counted(counted: Mapping[str, Mapping[str, str]], client: str, version: int) -> str | None:
    """Return the short ETag of a client's update from a version that has counted, if one has."""
    return counted.get(str(version), {}).get(client)


def read_counted(
    store: S3Store, keys: TrainingKeys, state: TrainingState, client: str, version: int
) -> str | None:
    """As :func:`has_counted`, of any version: the state names the updates of the last ones."""
    if version >= state.settled_before:
        return has_counted(state.counted, client, version)
    kept = store.get_json(keys.inbox(version).counted) or {}
    return has_counted({str(version): kept}, client, version)


def list_uncounted(
    store: S3Store,
    keys: TrainingKeys,
    counted: Mapping[str, Mapping[str, str]],
    versions: range,
    *,
    members: Collection[str] | None = None,
) -> list[UncountedUpdate]:
    """List the updates that have neither counted nor been rejected, in their order of arrival.

    This is one request for each 1,000 objects.

    Parameters
    ----------
    store, keys
        The training.
    counted
        The updates that have counted, as its state has them.
    versions
        The versions of the model that the updates began from.
    members
        The clients that take part, if the training has a fixed list of them.
    """
    sent: dict[tuple[str, int], ListedObject] = {}
    rejected: dict[tuple[str, int], datetime] = {}
    for entry in store.list_objects(keys.inboxes, after=keys.inbox(versions.start).root):
        found = _parse(keys, entry.key)
        if found is None or found[2] not in versions:
            continue
        kind, client, version = found
        if members is not None and client not in members:
            continue
        if kind == "updates":
            sent[client, version] = entry
        else:
            rejected[client, version] = entry.modified
    arrivals = [
        UncountedUpdate(client, version, entry)
        for (client, version), entry in sent.items()
        if has_counted(counted, client, version) is None
        # A later upload takes the place of one that was rejected.
        and not entry.modified <= rejected.get((client, version), NEVER)
    ]
    return sorted(arrivals, key=lambda a: (a.entry.modified, a.version, a.client))


def count_rejected(store: S3Store, keys: TrainingKeys) -> dict[str, int]:
    """Count, for each client, the rejections of its updates whose objects are there."""
    listed = (_parse(keys, entry.key) for entry in store.list_objects(keys.inboxes))
    return dict(Counter(client for kind, client, _ in filter(None, listed) if kind != "updates"))


def list_inboxes(store: S3Store, keys: TrainingKeys) -> list[str]:
    """List the ids of a training's inboxes that have objects, in the order of their versions."""
    folders = (
        entry.key.removeprefix(ROUNDS).partition("/")[0]
        for entry in store.list_objects(keys.inboxes)
    )
    return sorted({folder for folder in folders if _version(keys, folder) is not None})


def list_waiting(
    store: S3Store,
    keys: TrainingKeys,
    counted: Mapping[str, Mapping[str, str]],
    versions: range,
    *,
    members: Collection[str] | None,
    each: int = 1,
) -> list[UncountedUpdate]:
    """List the updates that wait for the next buffer, in the order of their arrival.

    A client has ``each`` in a buffer: its later ones wait for others. The other parameters are
    those of :func:`list_uncounted`.
    """
    found, of_client = list[UncountedUpdate](), Counter[str]()
    for arrival in list_uncounted(store, keys, counted, versions, members=members):
        if of_client[arrival.client] < each:
            found.append(arrival)
            of_client[arrival.client] += 1
    return found


def _parse(keys: TrainingKeys, key: str) -> tuple[str, str, int] | None:
    """Return kind, client and version of an object in an inbox of a training; None for others."""
    folder, _, name = key.removeprefix(ROUNDS).partition("/")
    version = _version(keys, folder)
    kind, _, file = name.partition("/")
    client = file.removesuffix({"updates": ".safetensors", "rejections": ".json"}.get(kind, "/"))
    if version is None or client == file or not is_client(client):
        return None
    return kind, client, version


def _version(keys: TrainingKeys, folder: str) -> int | None:
    """Return the version of a training's inbox; None for another folder."""
    inbox = parse_inbox_id(folder)
    # The name of another training may begin with that of an inbox.
    return None if inbox is None or inbox.training != keys.name else inbox.version
