"""Looking at a round, again and again."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from gradshard.client.round_status import StatusPoller
from gradshard_core.errors import BrokenObjectError, UnreadableObjectError
from gradshard_core.formats.object_keys import RoundKeys
from tests.unit.client.test_federation import OPENED, SPEC, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore


class CountingStore(MemoryStore):
    """Counts what is read and listed."""

    def __init__(self) -> None:
        super().__init__()
        self.read: Counter[str] = Counter()

    def get_bytes(self, key: str) -> bytes | None:
        self.read[key] += 1
        return super().get_bytes(key)

    def list_objects(self, prefix: str, *, after: str = "") -> Any:
        self.read[prefix] += 1
        return super().list_objects(prefix, after=after)


@pytest.fixture
def store() -> CountingStore:
    store = CountingStore()
    store.put_json("rounds/r1/spec.json", OPENED)
    return store


@pytest.fixture
def observer(store: CountingStore) -> StatusPoller:
    return StatusPoller(MemoryStack(store), RoundKeys("r1"))


def reject(store: MemoryStore, client: str, reason: str) -> None:
    record = {"client": client, "reason": reason, "late": False}
    store.put_json(f"rounds/r1/rejections/{client}.json", record)


def report(store: MemoryStore, number: int, attempt: int = 0) -> None:
    fields = {"level": 0, "task": number, "attempt": attempt}
    store.put_json(f"rounds/r1/task-reports/0/{number:05d}.json", fields)


@pytest.mark.parametrize("junk", [b"{", b"[]", b"{}", b"null"])
def test_the_cause_is_shown_in_spite_of_junk(
    observer: StatusPoller, store: CountingStore, junk: bytes
) -> None:
    for name in ("spec", "plan", "rejections/a", "reports/0/00000"):
        store.put_bytes(f"rounds/r1/{name}.json", junk)
    cause = f"rounds/r1/plan.json: {junk!r}"
    store.put_json("rounds/r1/manifest.json", {"status": "failed", "error": "E", "cause": cause})
    status = observer.poll()
    assert (status["state"], status["cause"]) == ("failed", cause)
    assert observer.tasks() == []
    store.put_bytes("rounds/r1/manifest.json", junk)
    with pytest.raises(BrokenObjectError, match=r"rounds/r1/manifest\.json"):
        observer.poll()


def test_a_second_look_lists_once_and_reads_nothing_again(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}))
    reject(store, "eve", "NaN")
    first = observer.poll(check_execution=False)
    assert store.read.pop("rounds/r1/") == 1
    assert set(store.read.values()) == {1}
    store.read.clear()
    assert observer.poll(check_execution=False) == first
    assert store.read == {"rounds/r1/": 1}


def test_changed_objects_are_read_again(observer: StatusPoller, store: CountingStore) -> None:
    reject(store, "eve", "too short")
    assert observer.poll()["rejected"] == [{"client": "eve", "reason": "too short"}]
    reject(store, "eve", "too long")
    store.read.clear()
    assert observer.poll()["rejected"] == [{"client": "eve", "reason": "too long"}]
    assert store.read == {"rounds/r1/": 1, "rounds/r1/rejections/eve.json": 1}


def test_reports_are_read_a_few_at_a_time_and_once_each(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, shards=5))
    for number in range(5):
        report(store, number)
    observer.poll()
    assert [task["task"] for task in observer.tasks(2)] == [0, 1]
    assert [task["task"] for task in observer.tasks(2)] == [0, 1, 2, 3]
    assert [task["task"] for task in observer.tasks()] == [0, 1, 2, 3, 4]
    assert {n for key, n in store.read.items() if "reports" in key} == {1}


def test_reports_of_an_attempt_that_was_given_up_are_left_out(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, attempt=1))
    report(store, 0, attempt=0)
    report(store, 1, attempt=1)
    observer.poll()
    assert [task["task"] for task in observer.tasks()] == [1]


@pytest.mark.parametrize(
    "name", ["updates/a.safetensors", "0/updates/a.safetensors", "7/00000.json"]
)
def test_a_clients_object_among_task_records_is_ignored(
    observer: StatusPoller, store: CountingStore, name: str
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}))
    store.put_bytes(f"rounds/r1/task-reports/{name}", b"{}")
    report(store, 0)
    assert observer.poll()["tasks_done"] == 1
    assert len(observer.tasks()) == 1


def test_a_completed_rounds_tasks_are_its_manifests(
    observer: StatusPoller, store: CountingStore
) -> None:
    tasks = [{"level": 0, "task": 0}, {"level": 0, "task": 1}]
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}))
    manifest = {"status": "completed", "shards": 2, "groups": [[1]], "tasks": tasks}
    store.put_json("rounds/r1/manifest.json", manifest)
    report(store, 0)
    assert observer.poll()["tasks_done_by_level"] == [2]
    assert observer.tasks() == tasks
    assert not any("reports" in key for key in store.read)


def test_updates_that_were_sent_to_another_round_are_listed_once(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_json("rounds/r1/spec.json", OPENED | {"spec": SPEC | {"updates_from": "r0"}})
    store.put_bytes("rounds/r0/updates/a.safetensors", b"12")
    for _ in range(2):
        assert [update["client"] for update in observer.poll()["arrived"]] == ["a"]
    assert store.read["rounds/r0/updates/"] == 1


def test_growing_updates_with_forbidden_names_are_ignored(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_bytes("rounds/r1/partial-updates/a.safetensors", b"12")
    store.put_bytes("rounds/r1/partial-updates/a/b.safetensors", b"12")
    observer.poll()
    assert [update["client"] for update in observer.partial_updates()] == ["a"]


def test_a_client_with_a_growing_update_is_not_missing(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_bytes("rounds/r1/partial-updates/a.safetensors", b"12")
    assert observer.poll()["missing"] == ["a", "b"]
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, missing=["b"], rejected=[]))
    assert observer.poll()["missing"] == ["b"]


def test_a_late_client_is_not_missing(observer: StatusPoller, store: CountingStore) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, missing=["b"], rejected=[]))
    store.put_bytes("rounds/r1/updates/b.safetensors", b"12")
    assert observer.poll()["missing"] == []


def test_while_groups_of_an_eager_round_are_awaited_so_are_their_clients(
    observer: StatusPoller, store: CountingStore
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({}, awaited=[1], rejected=[]))
    store.put_bytes("rounds/r1/updates/a.safetensors", b"12")
    assert observer.poll()["missing"] == ["b"]


def test_a_report_of_the_second_in_which_the_round_was_planned_counts(
    observer: StatusPoller, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_at = datetime(2026, 1, 1, 0, 1, 0, 900_000, UTC)
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, planned_at=planned_at.isoformat()))
    report(store, 0)
    listed = [
        # S3 says when in whole seconds.
        entry._replace(modified=planned_at.replace(microsecond=0))
        for entry in store.list_objects("rounds/r1/")
    ]
    monkeypatch.setattr(store, "list_objects", lambda _: iter(listed))
    assert observer.poll()["tasks_done"] == 1


@pytest.mark.parametrize(
    ("key", "raises"), [("plan.json", True), ("spec.json", True), ("rejections/b.json", False)]
)
def test_only_rejections_may_be_unreadable(
    observer: StatusPoller,
    store: CountingStore,
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    raises: bool,
) -> None:
    store.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, rejected=[]))
    reject(store, "b", "NaN")
    read = store.get_bytes

    def get_bytes(wanted: str) -> bytes | None:
        if wanted == f"rounds/r1/{key}":
            raise UnreadableObjectError(wanted)
        return read(wanted)

    monkeypatch.setattr(store, "get_bytes", get_bytes)
    if raises:
        with pytest.raises(UnreadableObjectError):
            observer.poll()
    else:
        assert observer.poll()["rejected"] == []
