"""The progress of a training's round that is under way, for those who watch it."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from gradshard_core.aggregation import metric_means
from gradshard_core.errors import StoreError, UpdateError
from gradshard_core.formats import client_metrics
from gradshard_core.formats.headers import header_length, parse_header, parse_samples
from gradshard_core.formats.object_keys import UPDATE_SUFFIX, RoundKeys
from gradshard_core.formats.tensor_layout import PREFIX_BYTES
from gradshard_core.records.training_state import Invitation
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.store import ListedObject, S3Store


class Arrival(NamedTuple):
    """An update that has arrived: its sender's samples and metrics, as far as they are legible."""

    at: datetime
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class RoundProgress:
    """The progress of a round that is under way.

    Parameters
    ----------
    arrived
        The updates that have arrived, by client.
    slow
        The invited clients that have not sent one, sorted.
    metrics
        The means of the metrics that have arrived, weighted by samples.
    """

    arrived: Mapping[str, Arrival]
    slow: tuple[str, ...]
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON: who has sent an update and when, who has not, and the metrics."""
        arrived = {client: arrival.at.isoformat() for client, arrival in self.arrived.items()}
        return {"arrived": arrived, "slow": list(self.slow), "metrics": dict(self.metrics)}


class ProgressReader:
    """Reads the progress of one round after the other; each update is read once."""

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._round = ""
        self._invited: tuple[str, ...] = ()
        self._read: dict[str, Arrival] = {}

    def read(self, invitation: Invitation) -> RoundProgress:
        """Return how far the round of an invitation is."""
        if invitation.round_id != self._round:
            self._round, self._read = invitation.round_id, {}
            self._invited = tuple(invitation.clients)
        prefix = RoundKeys(invitation.round_id).updates
        entries = {
            entry.key.removeprefix(prefix).removesuffix(UPDATE_SUFFIX): entry
            for entry in self._store.list_objects(prefix)
        }
        new = [c for c in self._invited if c in entries and c not in self._read]
        with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
            found = pool.map(lambda client: self._arrival(entries[client]), new)
            self._read |= dict(zip(new, found, strict=True))
        means = metric_means.average([(a.samples, a.metrics) for a in self._read.values()])
        slow = tuple(c for c in self._invited if c not in self._read)
        return RoundProgress(dict(self._read), slow, means)

    def _arrival(self, entry: ListedObject) -> Arrival:
        try:
            samples, found = self._metrics(entry)
        except (UpdateError, StoreError):
            samples, found = 1, {}  # the round says what is wrong with it
        return Arrival(entry.modified, samples, found)

    def _metrics(self, entry: ListedObject) -> tuple[int, dict[str, float]]:
        # Of an update with a longer header the metrics are left out.
        head = self._store.get_head(entry.key, client_metrics.FIRST_READ_BYTES)
        if head is None:
            return 1, {}
        data, source = head
        end = PREFIX_BYTES + header_length(data, source.nbytes)
        if end > len(data):
            return 1, {}
        header = parse_header(data[PREFIX_BYTES:end], source.nbytes)
        return parse_samples(header.metadata), client_metrics.parse_metrics(header.metadata)
