"""What the rejections of many updates take."""

import tracemalloc
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Runs
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.rounds import rejections
from gradshard_core.units import MIB
from tests.unit.fakes import MemoryStore


class Forgetful(MemoryStore):
    """A bucket that counts what it is given, and takes no memory."""

    written = 0

    def put_bytes(self, *_: Any, **__: Any) -> bool:
        self.written += 1
        return True


@pytest.mark.slow
def test_many_rejections_take_little_memory() -> None:
    store, found = Forgetful(), [Rejection("c", "bad", "etag")] * 20_000
    tracemalloc.start()
    rejections.reject_all(store, found, lambda _: RoundKeys("r"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert store.written == 20_000
    assert peak < 4 * MIB


class Once(list[Contributor]):
    """Contributors that are read once: there may be 100,000, in pieces."""

    read = 0

    def __iter__(self) -> Any:
        self.read += 1
        return super().__iter__()


def test_looking_for_outdated_rejections_reads_each_rejection_and_the_contributors_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All may have sent another update after planning."""
    store, keys, counted = MemoryStore(), RoundKeys("r"), Once()
    for number in range(600):
        client = f"c{number:03}"
        store.put_bytes(keys.update(client), b"")
        etag = store.etags[keys.update(client)]
        source = ObjectVersion(keys.update(client), "", etag, 1)
        counted.append(Contributor(client, source, 1, 1.0, Runs([])))
        rejections.reject(store, keys, Rejection(client, "late", "other", late=number > 2))
    reads = list[str]()

    def watched(get: Callable[[str], Any]) -> Callable[[str], Any]:
        def watch(key: str) -> Any:
            reads.append(key)
            return get(key)

        return watch

    for name in ("get_bytes", "head"):
        monkeypatch.setattr(store, name, watched(getattr(store, name)))
    plan: Any = SimpleNamespace(contributors=counted)
    rejections.withdraw_outdated(store, keys, plan)
    assert len(reads) == 600 + 3  # and whether the updates of three outdated ones are the newest
    assert counted.read == 1
    assert len([*store.list_objects(keys.rejections)]) == 597
