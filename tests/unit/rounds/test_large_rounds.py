"""Rounds with more clients than one object, listing or function takes.

Sizes at which something is divided are lowered, so that rounds of a few hundred clients do what
those of a hundred thousand do.
"""

import itertools
import json
import math
import random
import threading
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradshard.client.model import Model
from gradshard.client.round_status import StatusPoller
from gradshard_core.aggregation import topologies
from gradshard_core.costs import large_round_limits, request_counts
from gradshard_core.costs.request_counts import Lists
from gradshard_core.costs.workload_from_spec import lists_of
from gradshard_core.errors import BrokenObjectError, PlanError, StoreError, UnreadableObjectError
from gradshard_core.formats.long_lists import is_in_pieces
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys, TrainingKeys
from gradshard_core.planning.plan import Plan
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.records.assignment import read_assignments
from gradshard_core.records.plan_and_manifest import read_manifest, read_plan, store_expected
from gradshard_core.records.robust_decision import is_clipped, read_decision
from gradshard_core.records.training_state import change_state
from gradshard_core.rounds.arrival_record import count_arrivals, record_arrivals
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.specs.option_parsers import parse_assignment_spec
from gradshard_core.stragglers.assignments import Assignment
from gradshard_core.trainings import training_cost
from gradshard_core.trainings.start_training import start_training
from tests import reference
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import Machine, Told
from tests.unit.request_counts import KINDS, Counting, Requests, of_functions

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

PIECE, LISTED, READ_AT_ONCE = 8, 20, 16


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a number is from comes last: a module that is imported here would keep the lower one.
    for module in ("planning.plan_json", "rounds.first_plan", "costs.large_round_limits"):
        monkeypatch.setattr(f"gradshard_core.{module}.PIECE", PIECE)
    for module in ("rounds.resume_round", "rounds.rejections", "costs.request_counts"):
        # Not more than there are others in a piece.
        monkeypatch.setattr(f"gradshard_core.{module}.HEADS_BEFORE_LIST", PIECE - 1)
    for module in ("rounds.first_plan", "trainings.round_outcome", "costs.large_round_limits"):
        monkeypatch.setattr(f"gradshard_core.{module}.READ_AT_ONCE", READ_AT_ONCE)
    monkeypatch.setattr("gradshard_core.formats.long_lists.PIECE", PIECE)
    monkeypatch.setattr("gradshard_core.limits.aws_limits.LISTED_ENTRIES", LISTED)


def client(number: int) -> str:
    return f"c{number:04}"


def updates_of(clients: int) -> list[dict[str, reference.Array]]:
    rng = np.random.default_rng(clients)
    return [{"w": rng.standard_normal(5).astype("f4")} for _ in range(clients)]


def submit(machine: Machine, number: int, update: dict[str, reference.Array]) -> str:
    body = reference.encode(update, {"num_samples": str(number % 7 + 1)})
    machine.store.put_bytes(machine.keys.update(client(number)), body)
    return machine.store.etags[machine.keys.update(client(number))].strip('"')


def expected(updates: dict[int, dict[str, reference.Array]]) -> bytes:
    """Average group by group in numpy, as a grid does."""
    samples = [number % 7 + 1 for number in updates]
    return added(list(updates.values()), [np.float32(n / sum(samples)) for n in samples])


def added(updates: list[dict[str, reference.Array]], weights: list[Any], *fan_in: int) -> bytes:
    """Add with weights, group by group."""
    rows: list[Any] = [update["w"] for update in updates]
    sizes = topologies.group(topologies.resolve("auto", len(rows)), len(rows), fan_in)
    for level in sizes:
        sums, first = [], 0
        for size in level:
            total = weights[first] * rows[first]
            for weight, row in list(zip(weights, rows, strict=True))[first + 1 : first + size]:
                total = total + weight * row
            sums.append(total)
            first += size
        rows, weights = sums, [np.float32(1)] * len(sums)
    return bytes(rows[0].tobytes())


def result_of(machine: Machine) -> bytes:
    return reference.decode(machine.store.objects[machine.keys.result])["w"].tobytes()


def run(machine: Machine, outcome: dict[str, Any]) -> dict[str, Any]:
    """Turn until the round has ended."""
    while outcome.get("status") != "completed":
        outcome = machine.turn(outcome)
    manifest = read_manifest(machine.store, machine.keys)
    assert manifest is not None
    return manifest


DUE = {"reason": "complete", "attempt": 0}


@pytest.mark.parametrize("clients", [PIECE, PIECE + 1, READ_AT_ONCE + 1, 150])
def test_a_round_of_any_size_has_the_bits_of_numpy(machine: Machine, clients: int) -> None:
    machine.open(clients=clients)
    updates = updates_of(clients)
    for number, update in enumerate(updates):
        submit(machine, number, update)
    manifest = run(machine, DUE)
    assert result_of(machine) == expected(dict(enumerate(updates)))
    assert [c["client"] for c in manifest["contributors"]] == list(map(client, range(clients)))
    assert manifest["attempts"] == 1 + (clients > READ_AT_ONCE)
    # The survey's tasks are not among those of the result.
    assert len(manifest["tasks"]) == manifest["totals"]["tasks"]
    assert sum(map(len, manifest["groups"])) == len(manifest["tasks"])


def test_bad_updates_of_a_large_round_cost_their_senders_only(machine: Machine) -> None:
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=60, min_clients=30)
    for number, update in updates.items():
        submit(machine, number, update)
    keys, store = machine.keys, machine.store
    store.put_bytes(keys.update(client(5)), b"junk")
    other = {"w": np.ones(6, "f4")}
    submit(machine, 17, other)
    submit(machine, 40, {"w": np.full(5, np.nan, "f4")})
    manifest = run(machine, DUE)
    bad = {5, 17, 40}
    assert {r["client"] for r in manifest["rejected"]} == set(map(client, bad))
    for number in bad:
        assert store.get_json(keys.rejection(client(number)))["client"] == client(number)
    good = {number: update for number, update in updates.items() if number not in bad}
    assert result_of(machine) == expected(good)


def test_clients_that_are_too_many_for_a_large_round_are_told_once(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open(clients=20, order="tree:5,5")
    for number, update in enumerate(updates_of(30)):
        submit(machine, number, update)
    written: list[str] = []
    put_bytes = machine.store.put_bytes

    def put(key: str, *given: Any, **named: Any) -> Any:
        written.append(key)
        return put_bytes(key, *given, **named)

    monkeypatch.setattr(machine.store, "put_bytes", put)
    manifest = run(machine, DUE)
    too_many = list(map(client, range(25, 30)))
    assert [r["client"] for r in manifest["rejected"]] == too_many
    told = [key for key in written if "/rejections/" in key]
    assert sorted(told) == list(map(machine.keys.rejection, too_many))


def test_a_large_round_votes_on_its_layout_and_takes_compressed_updates_by_its_terms(
    machine: Machine,
) -> None:
    updates = dict(enumerate(updates_of(40)))
    machine.open(clients=40, min_clients=20)
    for number, update in updates.items():
        submit(machine, number, update if number >= 15 else {"v": update["w"]})
    manifest = run(machine, DUE)
    assert {r["client"] for r in manifest["rejected"]} == set(map(client, range(15)))
    assert result_of(machine) == expected({n: u for n, u in updates.items() if n >= 15})


def test_an_overflow_of_too_many_updates_fails_with_the_numbers(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.rounds.sum_overflow.MOST_LOOKED_AT", 60)
    machine.open(clients=130, weights="counts")
    huge = {"w": np.full(5, 3e36, "f4")}  # 43 of a group fit into float32, and 130 do not
    for number in range(130):
        body = reference.encode(huge, {"num_samples": "1"})
        machine.store.put_bytes(machine.keys.update(client(number)), body)
    outcome = machine.turn(DUE)
    with pytest.raises(PlanError, match="overflows in a sum of 130 updates"):
        machine.turn(outcome)


def test_what_is_uploaded_after_the_versions_are_frozen_is_late(machine: Machine) -> None:
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=60)
    etags = {number: submit(machine, number, update) for number, update in updates.items()}
    machine.plan(DUE)
    plan = read_plan(machine.store, machine.keys)
    assert isinstance(plan, Plan)
    assert plan.computation.surveys
    # A late event of a planned upload, and a later upload, of clients in different pieces.
    for number in (0, 31, 59):
        key = machine.keys.update(client(number))
        assert collect_update(machine.store, key, etags[number])["reason"] == "planned already"
    outcome = collect_update(machine.store, machine.keys.update(client(33)), "another")
    assert outcome["reason"] == "planned already"  # the newest version is the planned one
    machine.store.put_bytes(machine.keys.update("new"), b"junk")
    assert collect_update(machine.store, machine.keys.update("new"), "new")["late"]


def test_a_client_whose_frozen_version_is_gone_is_rejected(machine: Machine) -> None:
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=60, min_clients=50)
    for number, update in updates.items():
        submit(machine, number, update)
    planned = machine.plan(DUE)
    submit(machine, 7, updates[8])  # in a bucket without versions, the frozen one is gone
    machine.aggregate(planned)
    manifest = run(machine, machine.step("finalize_round"))
    assert [r["client"] for r in manifest["rejected"]] == [client(7)]
    del updates[7]
    assert result_of(machine) == expected(updates)


def test_updates_whose_headers_planning_reads_itself_keep_their_place(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.rounds.header_survey.LARGE_HEADER", 1000)
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=60)
    for number, update in updates.items():
        note = "x" * 2000 if number in (20, 41) else ""
        stated = {"num_samples": str(number % 7 + 1), "note": note}
        machine.store.put_bytes(
            machine.keys.update(client(number)), reference.encode(update, stated)
        )
    manifest = run(machine, DUE)
    assert [c["client"] for c in manifest["contributors"]] == list(map(client, range(60)))
    assert result_of(machine) == expected(updates)


@pytest.mark.parametrize(
    ("error", "is_senders_fault"), [(UnreadableObjectError, True), (StoreError, False)]
)
def test_a_client_is_not_rejected_because_s3_is_busy(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    error: type[StoreError],
    is_senders_fault: bool,
) -> None:
    updates = updates_of(60)
    machine.open(clients=60)
    for number, update in enumerate(updates):
        submit(machine, number, update)
    get_body = type(machine.store).get_body

    def failing(store: Any, source: ObjectVersion, start: int, end: int) -> Any:
        if source.key == machine.keys.update(client(31)):
            raise error("S3 has answered 503 SlowDown, six times")
        return get_body(store, source, start, end)

    planned = machine.plan(DUE)
    with monkeypatch.context() as patched:
        patched.setattr(type(machine.store), "get_body", failing)
        if not is_senders_fault:
            # The machine runs the task again.
            with pytest.raises(StoreError, match="SlowDown"):
                machine.aggregate(planned)
            return
        machine.aggregate(planned)
    manifest = run(machine, machine.step("finalize_round"))
    assert [r["client"] for r in manifest["rejected"]] == [client(31)]


def test_every_arrival_counts_once_however_often_it_is_told(machine: Machine) -> None:
    clients = LISTED + 1
    machine.open(clients=clients)
    for number, update in enumerate(updates_of(clients)):
        etag = submit(machine, number, update)
        for _ in range(2):
            outcome = machine.collect(client(number), etag)
        assert count_arrivals(machine.store, machine.keys) == number + 1
        assert outcome["status"] == "accepted"


def test_the_last_arrival_resumes_a_large_round(machine: Machine, told: Told) -> None:
    clients = 3 * LISTED
    updates = updates_of(clients)
    # Some come before the round is open; their events are lost, as those of no round.
    for number in range(7):
        submit(machine, number, updates[number])
    machine.open(clients=clients)
    resumed = []
    for number in range(7, clients):
        etag = submit(machine, number, updates[number])
        resumed.append(machine.collect(client(number), etag)["resumed"])
    assert resumed == [False] * (clients - 8) + [True]


def test_two_arrivals_that_write_the_same_mark_object_both_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.open(clients=LISTED + 1)
    spec = machine.spec()
    get_head = type(machine.store).get_head
    interrupted: list[str] = []

    def racing(store: Any, key: str, nbytes: int) -> tuple[bytes, ObjectVersion] | None:
        found = get_head(store, key, nbytes)
        if not interrupted:
            interrupted.append(key)
            record_arrivals(machine.store, machine.keys, spec, ["other"])
        return found

    monkeypatch.setattr(type(machine.store), "get_head", racing)
    record_arrivals(machine.store, machine.keys, spec, ["one"])
    assert count_arrivals(machine.store, machine.keys) == 2


# -------------------------------------------------------------------- ids that are stored in pieces


def stored_ids(machine: Machine, ids: list[str]) -> Any:
    """Store the ids of expected clients as the client library does."""
    written = store_expected(machine.store, machine.keys, ids)
    assert is_in_pieces(written)
    return written


def test_clients_whose_ids_are_stored_in_pieces_are_those_of_a_list(machine: Machine) -> None:
    ids = [client(number) for number in range(60)]
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=stored_ids(machine, ids), min_clients=50)
    assert machine.spec().to_json()["clients"] == stored_ids(machine, ids)
    # One is silent, and another one was not asked.
    del updates[33]
    for number, update in updates.items():
        etag = submit(machine, number, update)
        outcome = machine.collect(client(number), etag)
        assert (outcome["status"], outcome["resumed"]) == ("accepted", False)
    other = submit(machine, 1000, updates[0])
    outcome = machine.collect(client(1000), other)
    assert "not expected" in outcome["reason"]
    manifest = run(machine, DUE)
    assert list(manifest["missing"]) == [client(33)]
    assert result_of(machine) == expected(updates)


def test_the_last_of_many_named_clients_resumes_the_round(machine: Machine) -> None:
    ids = [client(number) for number in range(3 * LISTED)]
    machine.open(clients=stored_ids(machine, ids))
    updates = updates_of(len(ids))
    resumed = []
    for number in reversed(range(len(ids))):
        etag = submit(machine, number, updates[number])
        resumed.append(machine.collect(client(number), etag)["resumed"])
    assert resumed == [False] * (len(ids) - 1) + [True]


@pytest.mark.parametrize(
    ("ids", "change", "why"),
    [
        (["a", "c", "b", *"defghi"], {}, "sorted, each once: 'b' follows 'c'"),
        (["a", "a", *"bcdefgh"], {}, "sorted, each once: 'a' follows 'a'"),
        (["a", "b/c", *"defghij"], {}, "b/c"),
        ([*"abcdefghi"], {"firsts": ["a", "x"]}, "begins with 'i': name it in firsts"),
        ([*"abcdefghi"], {"firsts": ["a"]}, "1 first entries of 2 pieces"),
        ([*"abcdefghi"], {"size": 0}, "9 entries in 2 pieces"),
        ([*"abcdefghi"], {"length": 16}, "piece that is no list of ids"),
        ([*"abcdefghi"], {"length": 200_000, "size": 100_000}, "has 200000 ids"),
    ],
)
def test_stored_ids_that_make_no_sense_fail_the_round_when_it_is_opened(
    machine: Machine, ids: list[str], change: dict[str, Any], why: str
) -> None:
    outcome = machine.open(clients=stored_ids(machine, ids) | change)
    assert outcome["status"] == "rejected"
    assert why in outcome["reason"]


def test_a_round_whose_ids_are_not_there_is_not_opened(machine: Machine) -> None:
    written = stored_ids(machine, [client(number) for number in range(20)])
    machine.store.delete(machine.keys.expected(written["pieces"][1]))
    with pytest.raises(StoreError, match="is missing"):
        machine.open(clients=written)


def replace_entry(machine: Machine, key: str, old: str, new: str) -> None:
    """Put another piece in the place of one, of the same form."""
    body = machine.store.objects[key]
    assert old.encode() in body
    machine.store.put_bytes(key, body.replace(old.encode(), new.encode()))


def test_a_replaced_piece_of_the_expected_ids_is_noticed(machine: Machine) -> None:
    written = stored_ids(machine, [client(number) for number in range(20)])
    machine.open(clients=written)
    replace_entry(machine, machine.keys.expected(written["pieces"][0]), client(3), "c0003x")
    etag = submit(machine, 3, updates_of(1)[0])
    with pytest.raises(BrokenObjectError, match="other content than its name says"):
        machine.collect(client(3), etag)


def test_a_replaced_piece_of_a_plan_or_manifest_is_noticed(machine: Machine) -> None:
    updates = dict(enumerate(updates_of(60)))
    machine.open(clients=60)
    for number, update in updates.items():
        machine.collect(client(number), submit(machine, number, update))
    manifest, plan = run(machine, DUE), read_plan(machine.store, machine.keys)
    assert plan is not None
    records: list[Any] = [plan.contributors, manifest["contributors"]]
    for record in records:
        name = record.written["pieces"][2]
        replace_entry(machine, machine.keys.piece(name), client(17), client(16))
        with pytest.raises(BrokenObjectError, match=f"{name}.json: .* somebody replaced it"):
            list(record)


# ---------------------------------------------------------------------------- assignments in pieces


BASE = {"batch_size": 16, "epochs": 2, "learning_rate": 0.125}


def run_reporting(machine: Machine, name: str, seconds: dict[int, float], **base: Any) -> None:
    """Run a round whose clients report how long their training took; one reports nonsense."""
    machine.begin(name)
    machine.open(clients=len(seconds), assignments={**BASE, **base})
    for number, took in seconds.items():
        stated = {"num_samples": "10", "train_seconds": str(took), "batch_size": "16"}
        stated |= {"epochs": "2" if number else "none"}
        body = reference.encode({"w": np.ones(5, "f4")}, stated)
        machine.store.put_bytes(machine.keys.update(client(number)), body)
    run(machine, DUE)


def test_assignments_in_pieces_are_those_of_the_definition_and_a_client_reads_its_own(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = {number: 20.0 + number % 13 for number in range(60)}
    # Some are away in the second round, at both ends of a piece, and some are new.
    second = {number: 35.0 - number % 11 for number in range(70) if number % 8 not in (0, 7)}
    run_reporting(machine, "one", first)
    run_reporting(machine, "two", second, after="one")

    per_epoch = {number: took / 2 for number, took in first.items() if number}
    for number, took in second.items():
        per_epoch[number] = 0.5 * took / 2 + 0.5 * per_epoch.get(number, took / 2)
    target = max(2 * per_epoch[number] for number in second)
    stated = parse_assignment_spec({**BASE, "after": "two"})
    for number in range(75):
        with monkeypatch.context() as patched:
            counting = Counting(machine, patched)
            found = read_assignments(machine.store, stated)
            assert found is not None
            given = found.of(client(number))
        # The names of the pieces, and one of these. Nothing is left of client 0, the first.
        assert counting.counts["client", "get"] == 1 + (number > 0)
        assert is_in_pieces(machine.store.get_json(RoundKeys("two").assignments)["clients"])
        if number not in per_epoch:
            assert given == Assignment(16, 2, 0.125)
            continue
        epochs = max(2, min(16, int(target * (1 + 1e-9) / per_epoch[number])))
        assert given.seconds == pytest.approx(epochs * per_epoch[number])
        # A batch does not outgrow the ten samples of a client, but the base stays.
        assert given == Assignment(16, epochs, 0.125, given.seconds)


# ------------------------------------------------------------------------------ decisions in pieces


def factors_of(machine: Machine, attempt: int, bound: float) -> list[float]:
    """Return by what each update is multiplied, from norms that are checked with numpy's."""
    decision = read_decision(machine.store, machine.keys, attempt)
    entries = list(decision["clients"])
    assert [entry["client"] for entry in entries] == list(map(client, range(len(entries))))
    updates = updates_of(len(entries))
    for entry, update in zip(entries, updates, strict=True):
        assert entry["norm"] == pytest.approx(np.linalg.norm(update["w"].astype(float)), rel=1e-5)
    return [min(1.0, bound / entry["norm"]) for entry in entries]


@pytest.mark.parametrize("clients", [PIECE + 1, 150])
def test_a_rule_that_clips_many_updates_has_the_bits_of_numpy(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    grid = {"topology": "grid", "fan_in": 8}
    machine.open(clients=clients, rule={"name": "norm_clip", "bound": 1.5}, **grid)
    updates = updates_of(clients)
    for number, update in enumerate(updates):
        submit(machine, number, update)
    reading: Counter[str] = Counter()
    get_bytes = type(machine.store).get_bytes

    def counted(store: Any, key: str) -> bytes | None:
        reading[threading.current_thread().name] += key.startswith(machine.keys.decisions)
        return get_bytes(store, key)

    outcome: dict[str, Any] = DUE
    while outcome["attempt"] < 1 + (clients > READ_AT_ONCE):
        outcome = machine.turn(outcome)
    planned = machine.plan(outcome)
    with monkeypatch.context() as patched:
        patched.setattr(type(machine.store), "get_bytes", counted)
        machine.aggregate(planned)
    manifest = run(machine, machine.step("finalize_round"))
    factors = factors_of(machine, outcome["attempt"], 1.5)
    samples = [number % 7 + 1 for number in range(clients)]
    weights = [n / sum(samples) * factor for n, factor in zip(samples, factors, strict=True)]
    assert result_of(machine) == added(updates, [np.float32(weight) for weight in weights], 8)
    tasks = manifest["measuring"]["tasks"]
    assert len(list(tasks)) == -(-clients // 8) == manifest["measuring"]["totals"]["tasks"]
    clipped = [client(number) for number, factor in enumerate(factors) if factor < 1]
    assert 2 < len(clipped) < clients
    assert list(manifest["measuring"]["clipped"]) == clipped
    # Clients may read pieces of plans and manifests, and not those of decisions.
    assert is_in_pieces(
        machine.store.get_json(machine.keys.decision(outcome["attempt"]))["clients"]
    )
    status = StatusPoller(MemoryStack(machine.store), machine.keys).poll(check_execution=False)
    decided = status["decision"]["clients"]
    assert [entry["client"] for entry in decided if is_clipped(entry)] == clipped
    assert list(status["manifest"]["measuring"]["clipped"]) == clipped
    readable = [k for k in machine.store.objects if k.startswith(f"{machine.keys.root}pieces/")]
    assert not any(b"norm" in machine.store.objects[key] for key in readable)
    tasks = len(manifest["tasks"])
    # Each reads the record, and those of the lowest level the pieces of their group.
    groups = manifest["groups"][0]
    assert sum(reading.values()) <= tasks + sum(size // PIECE + 2 for size in groups)


@pytest.mark.parametrize("clients", [PIECE + 1, 150])
def test_a_private_round_of_many_clients_has_the_bits_of_the_definition(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    dp = {"clip": 1.5, "noise_multiplier": 2.0, "delta": 1e-5, "quantile": 0.5}
    machine.open(clients=clients, dp=dp)
    updates = updates_of(clients)
    for number, update in enumerate(updates):
        submit(machine, number, update)
    manifest = run(machine, DUE)
    noise, count = np.empty(5, np.int64), np.empty(1, np.int64)
    NoiseSource(bytes(range(32)), 1, 0).read_into(memoryview(noise).cast("B"))
    NoiseSource(bytes(range(32)), 1, 2**62).read_into(memoryview(count).cast("B"))
    step, total = 2.0 * 1.5 / 2480, noise.astype(float)
    factors = factors_of(machine, 1 + (clients > READ_AT_ONCE), 1.5 / (1 + 2**-10))
    for factor, update in zip(factors, updates, strict=True):
        total += np.trunc(update["w"].astype(float) * (factor / step))
    assert result_of(machine) == (total * step / clients).astype("f4").tobytes()
    one = 10.0 / 2480
    whole = sum(factor == 1.0 for factor in factors)
    assert manifest["privacy"]["whole"] == (whole * math.trunc(1 / one) + count[0]) * one
    assert manifest["measuring"]["clipped"] is None


# ------------------------------------------------------------------------------ what grows with N


KINDS_OF_ROUNDS: dict[str, dict[str, Any]] = {
    "counted": {},
    "named": {"clients": stored_ids},
    "clipped": {"rule": lambda *_: {"name": "norm_clip", "bound": 1.5}},
    "private": {"dp": lambda *_: {"clip": 1.5, "noise_multiplier": 2.0, "delta": 1e-5}},
    "assigned": {"assignments": lambda machine, ids: {**BASE, "after": after(machine, len(ids))}},
}
"""Terms by what they make of a round: clients by their number or by ids in pieces, a pass that
measures, and assignments from those of the round before."""


def after(machine: Machine, clients: int) -> str:
    """Run a round that leaves assignments; return its name."""
    name, seconds = machine.name, dict.fromkeys(range(clients), 20.0)
    run_reporting(machine, f"before-{name}", seconds)
    machine.begin(name)
    return f"before-{name}"


def requests_of(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int, kind: str
) -> Requests:
    """Return the requests of a whole round, all of whose updates arrive one after another."""
    machine.begin(f"{kind}-{clients}")
    ids = list(map(client, range(clients)))
    terms = {name: of(machine, ids) for name, of in KINDS_OF_ROUNDS[kind].items()}
    random.seed(clients)
    with monkeypatch.context() as patched:
        counting = Counting(machine, patched)
        machine.open(**{"clients": clients, **terms})
        resumed, updates = False, updates_of(clients)
        for number in map(int, np.random.default_rng(clients).permutation(clients)):
            etag = submit(machine, number, updates[number])
            resumed = machine.collect(client(number), etag)["resumed"]
        assert resumed
        run(machine, DUE)
    return of_functions(counting.counts)


SIZES = (30, 120, 480)
Largest = tuple[Requests, Plan, Lists]
"""The requests of a round of the largest size, its plan, and the objects that it has besides."""


@pytest.fixture(scope="module")
def done() -> dict[str, Largest]:
    """The rounds of the largest size that have been run, by their kind."""
    return {}


@pytest.fixture
def largest(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: str, done: dict[str, Largest]
) -> Largest:
    if kind not in done:
        requests = requests_of(machine, monkeypatch, SIZES[-1], kind)
        plan = read_plan(machine.store, machine.keys)
        assert plan is not None
        done[kind] = requests, plan, lists_of(machine.spec())
    return done[kind]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS_OF_ROUNDS)
def test_no_kind_of_request_grows_faster_than_the_number_of_clients(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, kind: str, largest: Largest
) -> None:
    *smaller_sizes, most = SIZES
    found = {size: requests_of(machine, monkeypatch, size, kind) for size in smaller_sizes}
    found[most] = asked_most = largest[0]
    functions = {function for function, _ in asked_most}
    assert functions > {"collect_update", "aggregate_shard", "machine"}
    constant = 80 if kind == "named" else 20  # arrivals look for some others at random
    deadline = {"schedule_deadline", "cancel_deadline"}
    told = {"SendTaskSuccess", "PutEvents", *deadline}
    assert {kind for _, kind in asked_most} >= {*KINDS, *told, "children"}
    for asked in asked_most:
        for smaller, larger in itertools.pairwise(SIZES):
            before, then = found[smaller][asked], found[larger][asked]
            # A constant: another level of the grid, and the survey of those too many to read.
            assert then <= larger / smaller * before + constant, (
                asked,
                smaller,
                before,
                larger,
                then,
            )


def test_an_arrival_in_an_eager_round_lists_only_if_its_group_may_be_complete(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, told: Told
) -> None:
    """Groups of four, of which the last client alone lists the 48 updates."""
    ids = list(map(client, range(48)))
    eager = {"topology": "grid", "fan_in": 4, "weights": "counts", "eager": True}
    layout = {"w": {"dtype": "F32", "shape": [5]}}
    machine.open(clients=ids, layout=layout, **eager)
    updates, resumed, lists = updates_of(48), [], []
    for number in map(int, np.random.default_rng(3).permutation(48)):
        with monkeypatch.context() as patched:
            counting = Counting(machine, patched)
            etag = submit(machine, number, updates[number])
            outcome = machine.collect(client(number), etag)
        there = {key for key in machine.store.objects if key.startswith(machine.keys.updates)}
        group = ids[number // 4 * 4 :][:4]
        is_last = all(machine.keys.update(name) in there for name in group)
        lists.append(counting.counts["collect_update", "list"])
        assert (lists[-1] > 0) == is_last
        assert counting.counts["collect_update", "get"] <= 8 + 3  # the others of its group
        resumed.append((outcome["resumed"], is_last))
    # A 48th of the groups is one.
    assert all(is_resumed == is_last for is_resumed, is_last in resumed)
    assert sum(lists) <= 12 * 3
    machine.finish()
    samples = [number % 7 + 1 for number in range(48)]
    average = np.average([update["w"] for update in updates], axis=0, weights=samples)
    np.testing.assert_allclose(np.frombuffer(result_of(machine), "f4"), average, rtol=1e-4)


def requests_of_training(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int
) -> Requests:
    """Return the requests of a training's first round, to which it invites all who have joined."""
    name = f"t{clients}"
    Model(MemoryStack(machine.store), name).put({"w": np.zeros(5, "f4")})
    keys, optimizer = TrainingKeys(name), {"optimizer": "fedavg", "model": name}
    fields = {"rounds": 2, "round": {"server_optimizer": optimizer}}
    start_training(machine.store, name, fields, started="2026-01-01T00:00:00+00:00")
    ids = list(map(client, range(clients)))
    for number in range(clients):
        machine.store.put_bytes(keys.member(ids[number]), b"")
    silent = dict.fromkeys(ids[::2], 1)
    change_state(machine.store, keys, lambda state: replace(state, silent=silent))
    with monkeypatch.context() as patched:
        counting = Counting(machine, patched)
        asked = {"training": name, "run": 1}
        invited = machine.step("advance_training", **asked, step=0)
        machine.begin(invited["round"])
        machine.open(**invited["spec"])
        for number, update in enumerate(updates_of(clients)):
            if number % 10:  # the others are silent
                stated = {"num_samples": "1", "metrics": json.dumps({"loss": number})}
                body = reference.encode(update, stated)
                machine.store.put_bytes(machine.keys.update(ids[number]), body)
        run(machine, DUE)
        assert machine.step("advance_training", **asked, step=1)["status"] == "round"
    record = machine.store.get_json(keys.record(invited["round"]))
    sent = [number for number in range(clients) if number % 10]
    assert record["metrics"] == {"loss": pytest.approx(sum(sent) / len(sent))}
    return of_functions(counting.counts)


def test_no_kind_of_request_of_a_training_grows_faster_than_whom_it_invites(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (30, 120, 480)
    found = {clients: requests_of_training(machine, monkeypatch, clients) for clients in sizes}
    assert found[480]["advance_training", "invocations"] == 2
    for asked in found[480]:
        for smaller, larger in itertools.pairwise(sizes):
            before, then = found[smaller][asked], found[larger][asked]
            assert then <= larger / smaller * before + 20, (asked, smaller, before, larger, then)
    # The two calls invite twice and close one round, a tenth of whose clients are silent.
    counted = training_cost.of_functions(480)
    assert 0.8 * counted.gets < found[480]["advance_training", "get"] <= counted.gets
    pieces = large_round_limits.pieces(480)
    puts = found[480]["advance_training", "put"] + found[480]["advance_training", "list"]
    # Tasks write the metrics; who is invited and who is silent is written twice.
    most = counted.puts - pieces + 2 * pieces + -(-480 // LISTED)
    assert 0.7 * most < puts <= most


@pytest.mark.parametrize("kind", KINDS_OF_ROUNDS)
def test_the_price_counts_the_requests_of_the_functions_around_the_tasks(
    kind: str, largest: Largest
) -> None:
    found, plan, lists = largest
    clients = SIZES[-1]
    tasks = [len(level.groups) for level in plan.levels]
    before = [large_round_limits.pieces(clients)]
    if plan.computation.measured is not None:
        before.append(tasks[0])
    counted = request_counts.count_requests(tasks, clients, before=before, lists=lists)
    sums = Counter[str]()
    for (function, asked), number in found.items():
        if function != "aggregate_shard":
            sums[asked] += number
    assert counted.gets == pytest.approx(sums["get"], rel=0.02), dict(found)
    # Of a rule that clips, at most: as if all were clipped.
    assert counted.puts == pytest.approx(sums["put"] + sums["list"], rel=0.02), sorted(
        found.items()
    )
