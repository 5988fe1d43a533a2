"""A federation's model in its versions: the current one, and the making of the next one.

A version is a record, ``versions/{number}.json``, written once, that names immutable objects: the
model, and the state of the optimizer that made it. Numbers go up by one; going back to an earlier
version makes a new one of the same objects, so that history is never rewritten.

A round *reserves* the next number before its manifest is written, and what it made counts from when
that says ``completed``: a round that fails, at whatever moment, leaves the model as it was. Two
rounds that began from one version cannot both reserve the next.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Self

from gradshard_core.aggregation import batchnorm_buffers
from gradshard_core.aggregation.batchnorm_buffers import Stretches
from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import ModelNotFoundError, ModelStateError
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.object_keys import ModelKeys, RoundKeys, StoredTensors
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout
from gradshard_core.records.manifest_status import COMPLETED, FAILED
from gradshard_core.records.plan_and_manifest import read_manifest
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store


@dataclass(frozen=True)
class Version:
    """One version of a model.

    Parameters
    ----------
    model
        The model's name.
    number
        The number of the version, from 1.
    tensors
        The model itself.
    round_id
        The round that made the version; None if somebody put it or went back to an earlier one.
    restores
        The number of the version that it returns to.
    optimizer
        The server optimizer of the round
        (:meth:`gradshard_core.aggregation.server_optimizers.ServerOptimizer.to_json`).
    steps
        The number of steps in a row that the optimizer has made.
    state
        The state that the optimizer keeps from step to step, by name.
    buffers
        The names of its tensors that rounds average, and no optimizer steps.
    made_at
        The time at which it was made, ISO 8601.
    """

    model: str
    number: int
    tensors: StoredTensors
    round_id: str | None = None
    restores: int | None = None
    optimizer: Mapping[str, Any] | None = None
    steps: int = 0
    state: Mapping[str, StoredTensors] = field(default_factory=dict)
    buffers: tuple[str, ...] = ()
    made_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat())

    @property
    def keys(self) -> list[str]:
        """The objects it is made of."""
        return [kept.source.key for kept in (self.tensors, *self.state.values())]

    def continued_by(self, optimizer: ServerOptimizer) -> tuple[int, tuple[StoredTensors, ...]]:
        """Return the number of an optimizer's next step, and the state from which it starts.

        An optimizer cannot use the state of another one, so after that it starts anew.
        """
        if (self.optimizer or {}).get("optimizer") != optimizer.optimizer:
            return 1, ()
        return self.steps + 1, tuple(self.state[name] for name in optimizer.state)

    def buffers_in(self, layout: Layout, optimizer: ServerOptimizer) -> Stretches:
        """Return the stretches of the model's buffers, which the optimizer or the version names."""
        if optimizer.buffers is None:
            return batchnorm_buffers.stretches_of(layout, self.buffers)
        return batchnorm_buffers.stretches_of(
            layout, batchnorm_buffers.named(layout, optimizer.buffers)
        )

    def copied_as(self, number: int) -> "Version":
        """Return a version of the same objects, which goes on as this one would have."""
        made_at = datetime.now(UTC).isoformat()
        return replace(self, number=number, round_id=None, restores=self.number, made_at=made_at)

    def to_json(self) -> dict[str, Any]:
        """Return the version's record."""
        return {
            "model": self.model,
            "version": self.number,
            "tensors": self.tensors.to_json(),
            "round": self.round_id,
            "restores": self.restores,
            "optimizer": self.optimizer,
            "steps": self.steps,
            "state": {name: kept.to_json() for name, kept in self.state.items()},
            "buffers": list(self.buffers),
            "made_at": self.made_at,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            fields["model"],
            fields["version"],
            StoredTensors.from_json(fields["tensors"]),
            fields["round"],
            fields["restores"],
            fields["optimizer"],
            fields["steps"],
            {name: StoredTensors.from_json(kept) for name, kept in fields["state"].items()},
            tuple(fields["buffers"]),
            fields["made_at"],
        )


def current(store: S3Store, name: str) -> Version | None:
    """Return a model's newest version; None if there is no such model.

    Two small objects are read: what was noted as current, and the record after it, which is
    mostly not there.
    """
    keys = ModelKeys(name)
    newest = store.get_json(keys.current, Version.from_json)
    while True:
        following = _read(store, keys.version(newest.number + 1 if newest else 1))
        if following is None or not _counts(store, following):
            return newest
        newest = following


def read_current(store: S3Store, name: str) -> Version:
    """Return a model's newest version.

    Raises
    ------
    ModelNotFoundError
        There is no such model.
    """
    newest = current(store, name)
    if newest is None:
        raise ModelNotFoundError(
            f"there is no model {name!r}: put one there first (gradshard model put FILE --name "
            f"{name})"
        )
    return newest


def read_version(store: S3Store, name: str, number: int) -> Version:
    """Return one version of a model.

    Raises
    ------
    ModelNotFoundError
        There is no version of that number.
    """
    newest = read_current(store, name)
    version = _read(store, ModelKeys(name).version(number)) if number <= newest.number else None
    if version is None:
        raise ModelNotFoundError(
            f"model {name!r} has no version {number}; the newest is {newest.number}"
        )
    return version


def history(store: S3Store, name: str) -> list[Version]:
    """Return all versions of a model that are there, oldest first.

    Raises
    ------
    ModelNotFoundError
        There is no such model.
    """
    newest = read_current(store, name)
    keys = [entry.key for entry in store.list_objects(ModelKeys(name).versions)]
    with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
        versions = list(pool.map(partial(_read, store), keys))
    # A reservation of a round that goes on, or failed, is the last one.
    return [v for v in versions if v and v.number <= newest.number]


def layout_of(store: S3Store, tensors: StoredTensors) -> Layout:
    """Return the layout of a model.

    Raises
    ------
    ChangedObjectError
        The object is gone.
    """
    # By its ETag: to name its version, a client would need s3:GetObjectVersion.
    source = tensors.source._replace(version="")
    header = store.get_range(source, PREFIX_BYTES, tensors.data_offset)
    return parse_header(header, tensors.source.nbytes).layout


def reserve(store: S3Store, new: Version) -> Version:
    """Take a version's number; safe to repeat.

    Returns
    -------
    Version
        The recorded version; of a repetition, the version that was recorded first.

    Raises
    ------
    ModelStateError
        Another round, or an action by hand, took the number.
    StoreError
        The record changed in between, each time.
    """
    key = ModelKeys(new.model).version(new.number)
    for _ in conditional_write_attempts(key):
        if store.put_json(key, new.to_json(), replaces=None):
            break
        head = store.head(key)
        there = _read(store, key)
        if head is None or there is None:
            continue
        if new.round_id is not None and there.round_id == new.round_id:
            return there
        if not _is_void(store, there):
            raise ModelStateError(_taken(new, there))
        if store.put_json(key, new.to_json(), replaces=head.etag):
            break
    return new


def note_current(store: S3Store, name: str) -> None:
    """Note which version is current, so that it stays so when its round's manifest is gone."""
    newest = current(store, name)
    if newest is not None:
        store.put_json(ModelKeys(name).current, newest.to_json())


def _read(store: S3Store, key: str) -> Version | None:
    return store.get_json(key, Version.from_json)


def _counts(store: S3Store, version: Version) -> bool:
    """Return whether a version's number is taken for good."""
    return version.round_id is None or _status(store, version.round_id) == COMPLETED


def _is_void(store: S3Store, version: Version) -> bool:
    """Return whether a version was reserved by a round that failed, or that is gone without an end.

    Rounds go after RetentionDays and models stay: the number must not be taken for ever.
    """
    if version.round_id is None:
        return False
    status = _status(store, version.round_id)
    return status == FAILED or (
        status is None and store.head(RoundKeys(version.round_id).spec) is None
    )


def _status(store: S3Store, round_id: str) -> str | None:
    manifest = read_manifest(store, RoundKeys(round_id))
    return None if manifest is None else str(manifest["status"])


def _taken(new: Version, there: Version) -> str:
    whose = "was put there" if there.round_id is None else f"is that of round {there.round_id!r}"
    return f"version {new.number} of model {new.model!r} {whose}; go on from that one"
