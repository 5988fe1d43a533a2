"""The record that a round waits, and what a process remembers of its arrivals."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import StoreError
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, StoredTensors
from gradshard_core.records import model_registry
from gradshard_core.rounds import aws_requests, plan_round, waiting_record
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.quorum import QuorumError
from gradshard_core.rounds.waiting_record import ROUNDS_SEEN, Seen
from tests import reference
from tests.unit.fakes import MemoryStore
from tests.unit.in_memory import OPENED, Machine

KEYS = RoundKeys("r")
TENSORS = StoredTensors(ObjectVersion("models/m/1.safetensors", "", "etag", 8), 0)

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

ONES = {"w": np.ones(2, "f4")}
NAN = {"w": np.full(2, np.nan, "f4")}


def arrive(machine: Machine, client: str) -> dict[str, Any]:
    return machine.collect(client, machine.submit(client, ONES))


def send_junk(machine: Machine, client: str) -> None:
    key = machine.keys.update(client)
    machine.store.put_bytes(key, b"junk")
    outcome = machine.collect(client, machine.store.etags[key].strip('"'))
    assert outcome["status"] == "rejected"


def test_an_arrival_while_the_round_waits_reads_its_record_and_header_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open(clients=["a", "b"])
    etag, read = machine.submit("a", ONES), list[str]()

    def watched(get: Callable[..., Any]) -> Callable[..., Any]:
        def watch(key: str, *rest: Any) -> Any:
            read.append(key)
            return get(key, *rest)

        return watch

    for name in ("get_bytes", "get_head"):
        monkeypatch.setattr(machine.store, name, watched(getattr(machine.store, name)))
    assert machine.collect("a", etag)["status"] == "accepted"
    assert set(read) == {machine.keys.callback, machine.keys.update("a")}


@pytest.mark.parametrize("ends", ["planned", "given up"])
def test_a_call_that_opens_a_round_too_late_does_not_have_it_wait_again(
    machine: Machine, ends: str
) -> None:
    terms: dict[str, Any] = {"clients": ["a", "b"], "min_clients": 1}
    machine.open(**terms)
    arrive(machine, "a")
    if ends == "planned":
        machine.plan(OPENED | {"reason": "deadline"})
    else:
        abort_round(machine.store, machine.name, error="E", cause="nobody knows")
    assert machine.store.get_json(machine.keys.callback) is None
    machine.open(**terms)
    outcome = arrive(machine, "b")
    assert (outcome["status"], outcome["late"]) == ("ignored", True)
    assert machine.store.get_json(machine.keys.rejection("b"))["late"]


@pytest.mark.parametrize("ends", ["plan", "manifest"])
def test_an_update_that_arrives_once_the_end_of_the_wait_is_written_is_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """A contributor replaces its update just then; its event comes before the writer goes on."""
    machine.open(clients=["a", "b"])
    arrive(machine, "b")
    put_json, outcomes = machine.store.put_json, list[dict[str, Any]]()

    def put_then_arrive(key: str, *rest: Any, **options: Any) -> bool:
        is_put = put_json(key, *rest, **options)
        if key == getattr(machine.keys, ends):
            outcomes.append(machine.collect("a", machine.submit("a", {"w": np.zeros(2, "f4")})))
        return is_put

    machine.submit("a", ONES)
    monkeypatch.setattr(machine.store, "put_json", put_then_arrive)
    if ends == "plan":
        machine.plan(OPENED)
    else:
        abort_round(machine.store, machine.name, error="E", cause="nobody knows")
    [outcome] = outcomes
    assert (outcome["status"], outcome["late"]) == ("ignored", True)
    assert machine.store.get_json(machine.keys.rejection("a"))["late"]


@pytest.mark.parametrize("is_open", [True, False])
def test_a_good_update_takes_the_rejection_of_a_bad_one_back(
    machine: Machine, *, is_open: bool
) -> None:
    machine.open(clients=["a", "b"])
    if not is_open:  # the bad one arrives when the spec is written and the callback is not
        machine.store.delete(machine.keys.callback)
    send_junk(machine, "a")
    machine.open(clients=["a", "b"])
    assert machine.store.get_json(machine.keys.callback)["tokens"] == ["token"]
    assert machine.store.get_json(machine.keys.rejection("a")) is not None
    arrive(machine, "a")
    assert machine.store.get_json(machine.keys.rejection("a")) is None
    # Noted once, whoever is rejected after that.
    etag = machine.store.etags[machine.keys.callback]
    send_junk(machine, "b")
    assert machine.store.etags[machine.keys.callback] == etag


def test_a_rejection_that_is_noted_too_late_has_no_round_wait(machine: Machine) -> None:
    """The function that notes it may be killed at once."""
    machine.open(clients=["a"])
    waiting_record.end_waiting(machine.store, machine.keys)
    waiting_record.note_rejection(machine.store, machine.keys)
    assert waiting_record.read_waiting(machine.store, machine.keys) is None


@pytest.mark.parametrize("junk", [b"{", b"[]", b"{}"])
def test_a_record_that_somebody_overwrote_keeps_no_client_from_its_rejection(
    machine: Machine, junk: bytes
) -> None:
    machine.open(clients=["a", "b"])
    machine.store.put_bytes(machine.keys.callback, junk)
    send_junk(machine, "a")
    assert machine.store.get_json(machine.keys.rejection("a")) is not None
    arrive(machine, "a")
    assert machine.store.get_json(machine.keys.rejection("a")) is None


@pytest.mark.parametrize("planned", [False, True])
def test_no_rejection_is_left_of_an_update_that_was_replaced_while_it_was_checked(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, planned: bool
) -> None:
    machine.open(clients=["a", "b"], min_clients=1)
    get_head = machine.store.get_head

    def get_then_replace(key: str, nbytes: int) -> Any:
        found = get_head(key, nbytes)
        monkeypatch.setattr(machine.store, "get_head", get_head)
        if planned:
            machine.submit("a", ONES)
            machine.plan(OPENED | {"reason": "deadline"})
        else:
            arrive(machine, "a")
        return found

    machine.store.put_bytes(machine.keys.update("a"), b"junk")
    etag = machine.store.etags[machine.keys.update("a")].strip('"')
    monkeypatch.setattr(machine.store, "get_head", get_then_replace)
    machine.collect("a", etag)
    assert machine.store.get_json(machine.keys.rejection("a")) is None


THREE = {"w": np.ones(3, "f4")}
TERMS: dict[str, Any] = {"min_clients": 1, "layout": {"w": {"dtype": "F32", "shape": [2]}}}
"""An arrival cannot tell that planning will not like the layout of ``THREE``."""


def replace_when_it_is_read(
    machine: Machine,
    patch: pytest.MonkeyPatch,
    client: str,
    send: Callable[[Machine, str], Any] = arrive,
) -> None:
    """Have another update arrive, event and all, just after the first one was read."""
    get_head = machine.store.get_head

    def get_then_replace(key: str, nbytes: int) -> Any:
        found = get_head(key, nbytes)
        if key == machine.keys.update(client):
            patch.setattr(machine.store, "get_head", get_head)
            send(machine, client)
        return found

    patch.setattr(machine.store, "get_head", get_then_replace)


@pytest.mark.parametrize("replaced", ["when it is read", "when the planning is dead"])
@pytest.mark.parametrize("eager", [False, True])
def test_no_rejection_is_left_of_an_update_that_was_replaced_while_a_planning_was_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, replaced: str, eager: bool
) -> None:
    more = {"eager": True, "topology": "lifl", "weights": "counts"} if eager else {}
    machine.open(clients=["a", "b"], **TERMS, **more)
    arrive(machine, "a")
    machine.collect("b", machine.submit("b", THREE))
    with monkeypatch.context() as patched:
        patched.setattr(plan_round, "plan_to_json", None)  # the plan is made, and not written
        if replaced == "when it is read":
            replace_when_it_is_read(machine, monkeypatch, "b")
        with pytest.raises(TypeError):
            machine.plan(OPENED)
    if replaced == "when the planning is dead":
        arrive(machine, "b")
    machine.plan(OPENED)
    plan = machine.store.get_json(machine.keys.plan)
    assert [c["client"] for c in plan["contributors"]] == ["a", "b"]
    assert machine.store.get_json(machine.keys.rejection("b")) is None


@pytest.mark.parametrize("is_killed_again", [False, True])
def test_no_rejection_is_left_by_a_failing_planning_that_was_killed(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, *, is_killed_again: bool
) -> None:
    """It has told the sender of an update that was replaced; the next planning does not fail."""
    machine.open(clients=["a", "b"], **TERMS | {"min_clients": 2})
    arrive(machine, "a")
    machine.collect("b", machine.submit("b", THREE))
    replace_when_it_is_read(machine, monkeypatch, "b")
    with pytest.raises(QuorumError):  # which is lost
        machine.plan(OPENED)
    assert machine.store.get_json(machine.keys.rejection("b")) is not None
    repeated = {"entered_at": "2026-01-01T00:00:01Z", "retries": 1, **OPENED}
    with monkeypatch.context() as patched:
        if is_killed_again:
            patched.setattr(plan_round, "reject_all", None)
            with pytest.raises(TypeError):
                machine.step("plan_round", **repeated)
    machine.step("plan_round", **repeated)
    plan = machine.store.get_json(machine.keys.plan)
    assert [c["client"] for c in plan["contributors"]] == ["a", "b"]
    assert machine.store.get_json(machine.keys.rejection("b")) is None


def test_a_repeated_planning_keeps_the_rejection_of_a_late_update(machine: Machine) -> None:
    machine.open(clients=["a"], **TERMS)
    arrive(machine, "a")
    machine.plan(OPENED)
    machine.collect("a", machine.submit("a", THREE))
    machine.step("plan_round", entered_at="2026-01-01T00:00:01Z", retries=1, **OPENED)
    assert "uploaded after" in machine.store.get_json(machine.keys.rejection("a"))["reason"]


def test_a_repeated_planning_keeps_the_rejection_of_an_update_that_nothing_replaced(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came, event and all, after the one that counts was read and before the plan was there."""
    machine.open(clients=["a"], **TERMS)
    arrive(machine, "a")
    replace_when_it_is_read(machine, monkeypatch, "a", send_junk)
    machine.plan(OPENED)
    plan = machine.store.get_json(machine.keys.plan)
    assert [c["client"] for c in plan["contributors"]] == ["a"]
    rejected = machine.store.get_json(machine.keys.rejection("a"))
    machine.step("plan_round", entered_at="2026-01-01T00:00:01Z", retries=1, **OPENED)
    assert machine.store.get_json(machine.keys.rejection("a")) == rejected is not None


def test_a_planning_that_was_killed_after_its_plan_tells_the_rejected_once_it_is_repeated(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open(clients=["a", "b"], **TERMS)
    arrive(machine, "a")
    machine.collect("b", machine.submit("b", THREE))
    with monkeypatch.context() as patched:
        patched.setattr(plan_round, "reject_all", None)
        with pytest.raises(TypeError):
            machine.plan(OPENED)
    assert machine.store.head(machine.keys.plan) is not None
    machine.plan(OPENED)
    assert "tensor 'w' is F32 [3]" in machine.store.get_json(machine.keys.rejection("b"))["reason"]


def test_a_client_reads_why_its_update_was_rejected_when_too_few_remain(machine: Machine) -> None:
    machine.open(clients=["a", "b"], **TERMS | {"min_clients": 2})
    arrive(machine, "a")
    machine.collect("b", machine.submit("b", THREE))
    with pytest.raises(QuorumError):
        machine.plan(OPENED)
    assert "tensor 'w' is F32 [3]" in machine.store.get_json(machine.keys.rejection("b"))["reason"]


def test_a_client_reads_why_its_update_was_rejected_when_too_few_remain_in_the_last_stage(
    machine: Machine,
) -> None:
    eager = {"eager": True, "topology": "lambda_fl", "fan_in": 2, "weights": "counts"}
    machine.open(clients=["a", "b", "c", "d"], **TERMS | {"min_clients": 4}, **eager)
    arrive(machine, "a")
    arrive(machine, "b")
    assert machine.turn(OPENED)["status"] == "awaiting"
    arrive(machine, "c")
    machine.collect("d", machine.submit("d", THREE))
    with pytest.raises(QuorumError):
        machine.plan(OPENED)
    assert "tensor 'w' is F32 [3]" in machine.store.get_json(machine.keys.rejection("d"))["reason"]


def test_no_round_completes_by_an_update_that_was_seen_and_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws_requests, "resume", lambda *_: True)
    for clients in (3, 14):  # the last one looks for all, or lists them
        machine.begin(f"n{clients}")
        names = [f"c{number:02}" for number in range(clients)]
        machine.open(clients=names)
        for name in names[:-1]:
            assert not arrive(machine, name)["resumed"]
        machine.store.delete(machine.keys.update(names[0]))
        assert not arrive(machine, names[-1])["resumed"]
        assert arrive(machine, names[0])["resumed"]


def test_the_bits_do_not_depend_on_what_a_process_remembers(machine: Machine) -> None:
    machine.open(clients=["a", "b"])
    arrive(machine, "b")
    assert arrive(machine, "a")["resumed"]
    assert machine.finish()["status"] == "completed"
    average = machine.store.get_bytes(machine.keys.result)
    assert average is not None
    np.testing.assert_array_equal(reference.decode(average)["w"], ONES["w"])


def test_a_process_remembers_a_few_rounds() -> None:
    seen = Seen()
    for number in range(ROUNDS_SEEN):
        seen.of(f"r{number}").add("a")
    assert seen.of("r0") == {"a"}
    seen.of("another")
    assert seen.of("r0") == {"a"}
    assert seen.of("r1") == set()


def test_a_round_that_waits_again_keeps_no_terms_for_arrivals(machine: Machine) -> None:
    layout = {"w": {"dtype": "F32", "shape": [2]}}
    terms: dict[str, Any] = {"topology": "grid", "fan_in": 2, "eager": True, "weights": "counts"}
    machine.open(clients=["a", "b"], layout=layout, **terms)
    assert machine.store.get_json(machine.keys.callback) == {"tokens": ["token"]}
    assert waiting_record.read_waiting(machine.store, machine.keys) is None


def test_a_part_that_a_task_has_sent_again_under_another_etag_is_completed(
    machine: Machine,
) -> None:
    """As under a KMS key, if a task runs twice and the first run records last."""
    machine.open(clients=["a"])
    arrive(machine, "a")
    machine.aggregate(machine.plan(OPENED))
    [(upload, part)] = machine.store.parts.items()
    machine.store.parts[upload] = part._replace(etag='"another"')
    assert machine.step("finalize_round")["status"] == "completed"
    average = machine.store.get_bytes(machine.keys.result)
    assert average is not None
    np.testing.assert_array_equal(reference.decode(average)["w"], ONES["w"])


def test_planning_lists_nothing_if_all_have_answered_and_misses_whose_update_is_gone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open(clients=["a", "b", "c"], min_clients=1)
    for name in ("a", "b"):
        arrive(machine, name)
    send_junk(machine, "c")
    machine.store.delete(machine.keys.update("b"))
    with monkeypatch.context() as patched:
        patched.setattr(machine.store, "list_objects", None)
        machine.plan(OPENED)
    plan = machine.store.get_json(machine.keys.plan)
    assert [c["client"] for c in plan["contributors"]] == ["a"]
    assert [r["client"] for r in plan["rejected"]] == ["c"]
    assert plan["missing"] == ["b"]


def test_the_newest_tokens_are_kept() -> None:
    store = MemoryStore()
    tokens = [f"token-{number}" for number in range(waiting_record.TOKENS_KEPT + 3)]
    for token in tokens:
        waiting_record.keep_token(store, KEYS, token)
    assert store.get_json(KEYS.callback)["tokens"] == tokens[3:]


class Contested(MemoryStore):
    """A bucket in which no conditional write succeeds."""

    def put_bytes(self, *_: Any, **__: Any) -> bool:
        return False


@pytest.mark.parametrize(
    "write",
    [
        lambda store: waiting_record.keep_token(store, KEYS, "token"),
        lambda store: model_registry.reserve(store, model_registry.Version("m", 1, TENSORS, "r1")),
    ],
    ids=["keep_token", "reserve"],
)
def test_a_write_that_is_rejected_each_time_ends_with_an_error(
    monkeypatch: pytest.MonkeyPatch, write: Callable[[MemoryStore], object]
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with pytest.raises(StoreError, match=r"16 conditional writes in a row were rejected, though"):
        write(Contested())
