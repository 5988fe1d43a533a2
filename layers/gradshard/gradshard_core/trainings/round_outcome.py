"""The outcome of a round of a training: contributors, metrics, cost."""

import threading
from array import array
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

from gradshard_core.aggregation import metric_means
from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.large_round_limits import READ_AT_ONCE
from gradshard_core.errors import UpdateError
from gradshard_core.formats import client_metrics
from gradshard_core.formats.headers import header_length, parse_header
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, base_version
from gradshard_core.formats.tensor_layout import PREFIX_BYTES
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor
from gradshard_core.records.manifest_status import COMPLETED
from gradshard_core.records.plan_and_manifest import read_manifest, read_plan, read_replan
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.store import S3Store
from gradshard_core.trainings import training_cost

MAX_NOTES: Final = 100
"""Notes on metrics that are kept of a round; every client may cause one."""


@dataclass(frozen=True)
class CountedUpdate:
    """An update that a round has used up: its sender, its object, and its staleness."""

    client: str
    key: str
    etag: str
    staleness: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a round.

    Parameters
    ----------
    is_completed
        Whether it completed.
    error, cause
        The error, and the cause of the failure.
    contributors, rejected
        The clients whose updates were averaged, or rejected.
    metrics
        The means of what the clients measured.
    version
        The version of the model that it made.
    next_clip
        The clip of the next round, if the round was private.
    dollars
        The cost of the round; of one that failed, the most that it can have been.
    notes
        The metrics that do not count, with the reasons.
    updates
        Of a buffered training, the updates that were averaged, and those that a rule has left out.
    bad
        Of a round that failed, the clients whose updates were found bad.
    is_planned
        Whether it was planned, so that a repetition can take the same updates.
    """

    is_completed: bool
    error: str | None = None
    cause: str | None = None
    contributors: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    version: int | None = None
    dollars: float = 0.0
    notes: tuple[str, ...] = ()
    updates: tuple[CountedUpdate, ...] = ()
    bad: tuple[str, ...] = ()
    is_planned: bool = True
    next_clip: float | None = None

    @property
    def answered(self) -> frozenset[str]:
        """The clients that sent an update, good or bad."""
        return frozenset({*self.contributors, *self.rejected})


def read_outcome(
    store: S3Store,
    round_id: str,
    *,
    aggregator: LambdaConfig,
    optimizer: ServerOptimizer | None,
) -> Outcome | None:
    """Return how a round ended; None if it has no manifest.

    Parameters
    ----------
    store, round_id
        The round.
    aggregator
        The functions that did its tasks.
    optimizer
        The server optimizer of the round; None for an evaluation.
    """
    keys = RoundKeys(round_id)
    manifest = read_manifest(store, keys)
    if manifest is None:
        return None
    rejected = tuple(entry["client"] for entry in manifest["rejected"])
    if manifest["status"] != COMPLETED:
        plan = read_plan(store, keys)
        answered = _contributors(store, keys, plan)
        return Outcome(
            is_completed=False,
            error=manifest["error"],
            cause=manifest["cause"],
            rejected=rejected,
            contributors=answered,
            dollars=training_cost.of_failed(plan, len(answered), aggregator),
            bad=_bad(store, keys, plan, rejected),
            is_planned=plan is not None,
        )
    contributors, updates, nbytes = [], [], array("q")
    for sent in manifest["contributors"]:
        contributors.append(sent["client"])
        nbytes.append(sent["nbytes"])
        if base_version(sent["key"]) is not None:
            updates.append(
                CountedUpdate(sent["client"], sent["key"], sent["etag"], sent["staleness"])
            )
    found, notes = _sent(store, keys)
    return Outcome(
        is_completed=True,
        contributors=tuple(contributors),
        # An update that a rule left out was sent, too, and has a rejection.
        rejected=(*rejected, *manifest["left_out"]),
        metrics=found,
        version=(manifest["model"] or {}).get("version"),
        dollars=training_cost.measured(
            manifest, nbytes, optimizer, aggregator, is_buffered=bool(updates)
        ),
        next_clip=(manifest.get("privacy") or {}).get("next_clip"),
        notes=notes,
        updates=(
            *updates,
            *_left_out(store, keys, manifest),
        ),
    )


def _left_out(
    store: S3Store, keys: RoundKeys, manifest: Mapping[str, Any]
) -> tuple[CountedUpdate, ...]:
    """Return the updates that a rule has left out, of which the manifest has the senders alone."""
    plan = read_plan(store, keys) if manifest["left_out"] else None
    found = () if plan is None else plan.participants.left_out
    return tuple(
        CountedUpdate(c.client, c.source.key, c.source.etag, c.staleness)
        for c in found
        if base_version(c.source.key) is not None
    )


def _bad(
    store: S3Store, keys: RoundKeys, plan: Plan | None, rejected: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the clients whose updates were rejected, by any attempt at a round that failed."""
    # The manifest has those of the attempts before the last one.
    last = None if plan is None else read_replan(store, keys, plan.attempt)
    return tuple(sorted({*rejected, *(found.client for found in last or ())}))


def _contributors(store: S3Store, keys: RoundKeys, plan: Plan | None) -> tuple[str, ...]:
    """Return who had sent a good update when a round failed."""
    if plan is not None:
        return tuple(contributor.client for contributor in plan.good)
    prefix, suffix = keys.updates, ".safetensors"
    listed = (entry.key for entry in store.list_objects(prefix))
    return tuple(key.removeprefix(prefix).removesuffix(suffix) for key in listed)


def _sent(store: S3Store, keys: RoundKeys) -> tuple[dict[str, float], tuple[str, ...]]:
    """Read the metrics in the metadata of the updates that were averaged."""
    plan = read_plan(store, keys)
    if plan is None:
        return {}, ()
    notes: list[str] = []
    # Of more updates than planning reads headers of, tasks have read the metrics, too.
    is_surveyed = len(plan.contributors) > READ_AT_ONCE
    read = _surveyed(store, keys, plan) if is_surveyed else _read_all(store, list(plan.senders))

    def counting() -> Iterator[tuple[int, dict[str, float]]]:
        for client, samples, found in read:
            if isinstance(found, dict):
                yield samples, found
            elif len(notes) < MAX_NOTES:
                notes.append(f"metrics of {client} do not count: {found}")

    return metric_means.average(counting()), tuple(notes)


_Sent = tuple[str, int, client_metrics.Found]
"""A client, its samples and its metrics."""


def _surveyed(store: S3Store, keys: RoundKeys, plan: Plan) -> Iterator[_Sent]:
    """Yield what tasks have read of the contributors' metrics, one task after another."""
    samples = {contributor.client: contributor.samples for contributor in plan.contributors}
    unread: set[str] = set()
    for entry in store.list_objects(keys.metrics):
        for client, found in (store.get_json(entry.key) or {"clients": ()})["clients"]:
            if client not in samples:
                continue
            if found is None:
                unread.add(client)
            else:
                yield client, samples[client], found
    if unread:
        yield from _read_all(store, [c for c in plan.contributors if c.client in unread])


def _read_all(store: S3Store, contributors: Sequence[Contributor]) -> Iterator[_Sent]:
    """Read the metrics in the headers of updates."""
    one_at_a_time = threading.Lock()

    def read(contributor: Contributor) -> client_metrics.Found:
        try:
            return _metrics(store, contributor.source, one_at_a_time)
        except UpdateError as error:
            return str(error)

    with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
        for contributor, found in zip(contributors, pool.map(read, contributors), strict=True):
            yield contributor.client, contributor.samples, found


def _metrics(store: S3Store, source: ObjectVersion, lock: threading.Lock) -> dict[str, float]:
    """Read the metrics of an update; of those with long headers, one at a time."""
    first = store.get_range(source, 0, min(source.nbytes, client_metrics.FIRST_READ_BYTES))
    end = PREFIX_BYTES + header_length(first, source.nbytes)
    if end <= len(first):
        return client_metrics.parse_metrics(
            parse_header(first[PREFIX_BYTES:end], source.nbytes).metadata
        )
    # Parsed, a header may take 150 MB, and the function has 256.
    with lock:
        header = store.get_range(source, PREFIX_BYTES, end)
        return client_metrics.parse_metrics(parse_header(header, source.nbytes).metadata)
