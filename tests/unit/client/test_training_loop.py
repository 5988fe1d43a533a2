"""A client's loop: what it answers, what it survives, and what it does not hide."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from gradshard.client.federation import Federation
from gradshard.client.model import Model
from gradshard.client.rejection_watch import SETTLE_SECONDS, RejectedUpdate
from gradshard.client.training import Training
from gradshard.client.training_loop import participate
from gradshard.client.training_participant import Member
from gradshard.updates.compression import Compression
from gradshard.updates.residual import Residual
from gradshard_core.errors import (
    ServiceError,
    StoreError,
    TrainingNotFoundError,
    TrainingStateError,
    UnreadableObjectError,
    UpdateError,
)
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.specs.training_spec_checks import parse_training_spec
from tests import compressed, reference
from tests.unit.fakes import MemoryStack, MemoryStore

MODEL = {"w": np.arange(4, dtype="f4")}
SPEC: dict[str, Any] = {
    "rounds": 9,
    "clients": ["ann", "bo"],
    "round": {"server_optimizer": "fedavg"},
    "poll_interval": 1,
}
NOW = "2026-01-01T00:00:00+00:00"


class World:
    """A training whose rounds the test opens and ends; time passes when the client sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = MemoryStore()
        self.stack = MemoryStack(self.store)
        Model(self.stack).put(MODEL)
        self.keys = TrainingKeys("t")
        self.training = Training(self.stack, "t")
        self.member = Member(self.stack, self.training, "ann")
        self.store.put_json(self.keys.spec, {"spec": parse_training_spec(SPEC).to_json()})
        self.state = TrainingState("running", 1, 0, 1, NOW, NOW)
        self.show()
        self.script: list[Callable[[], None]] = []
        self.slept: list[float] = []
        self.model = "model"
        self.now = 0.0
        monkeypatch.setattr(time, "sleep", self._sleep)
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        if self.script:
            self.script.pop(0)()

    def show(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self.store.put_json(self.keys.state, self.state.to_json())

    def invite(self, number: int, *, is_evaluation: bool = False, opened: bool = True) -> None:
        name = f"t-{number:05}{'-eval' if is_evaluation else ''}"
        invitation = Invitation(name, number, 0, is_evaluation, ("ann", "bo"), 2, 1, {"lr": 0.5})
        self.show(invitation=invitation)
        if opened:
            self.open(name, is_evaluation=is_evaluation)

    def open(self, name: str, *, is_evaluation: bool = False) -> None:
        spec: dict[str, Any] = {"clients": ["ann", "bo"], "min_clients": 1, "timeout": 60}
        if not is_evaluation:
            spec["codecs"] = ["int8"]
        record = {"round": name, "opened_at": NOW, "deadline_at": NOW}
        if not is_evaluation:
            spec["server_optimizer"] = {"optimizer": "fedavg", "model": self.model}
            record["model_version"] = 1  # type: ignore[assignment]
        self.store.put_json(RoundKeys(name).spec, record | {"spec": spec})

    def end(self) -> None:
        self.show(status="ended", cause="over", invitation=None)

    def sent(self, name: str) -> Mapping[str, Any]:
        return reference.decode(self.store.objects[RoundKeys(name).update("ann")])


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def train(model: Mapping[str, Any], invitation: Invitation) -> Any:
    return {"w": model["w"] + np.float32(invitation.settings["lr"])}, 7, {"loss": 0.25}


def evaluate(model: Mapping[str, Any], invitation: Invitation) -> Any:
    return {"accuracy": float(model["w"].sum()), "n": invitation.number}, 3


def test_the_change_and_the_metrics_are_sent_and_the_loop_returns_at_the_end(world: World) -> None:
    world.invite(1)
    world.script = [lambda: world.invite(1, is_evaluation=True), lambda: world.invite(2), world.end]
    done = participate(world.member, train, evaluate)
    assert (done.trained, done.evaluated, done.state.cause) == ((1, 2), (1,), "over")
    assert world.sent("t-00001")["w"].tolist() == [0.5] * 4
    blob = world.store.objects[RoundKeys("t-00001").update("ann")]
    assert b'"metrics":"{\\"loss\\": 0.25}"' in blob
    assert {name: value.tolist() for name, value in world.sent("t-00001-eval").items()} == {
        "evaluation": 0.0
    }
    blob = world.store.objects[RoundKeys("t-00001-eval").update("ann")]
    assert b'"metrics":"{\\"accuracy\\": 6.0, \\"n\\": 1.0}"' in blob


def test_updates_are_compressed_and_metrics_are_not(world: World) -> None:
    model = {"w": np.zeros(640, "f4")}
    Model(world.stack, "wide").put(model)
    change = np.random.default_rng(0).standard_normal(640).astype("f4")
    world.model = "wide"
    world.invite(1)
    world.script = [lambda: world.invite(1, is_evaluation=True), lambda: world.invite(2), world.end]
    residual = Residual()
    codec = Compression("int8", seed=5, residual=residual)
    participate(
        world.member,
        lambda before, _: ({"w": before["w"] + change}, 7),
        evaluate,
        codec=codec,
    )
    bodies = [world.store.objects[RoundKeys(f"t-0000{n}").update("ann")] for n in (1, 2)]
    sent = [compressed.read(body)["w"] for body in bodies]
    assert all(b'"codec":"int8"' in body for body in bodies)
    assert np.allclose(sent[0], change, atol=0.05)
    assert not np.array_equal(sent[0], sent[1])
    assert residual.norm == pytest.approx(np.linalg.norm(2 * change - sum(sent)), rel=1e-3)
    assert b'"codec"' not in world.store.objects[RoundKeys("t-00001-eval").update("ann")]


def test_a_client_that_is_started_again_does_not_train_again(world: World) -> None:
    world.invite(1)
    world.script = [world.end]
    participate(world.member, train)
    world.show(status="running")
    world.invite(1)
    world.script = [world.end]
    calls: list[int] = []

    def count(model: Any, invitation: Invitation) -> Any:
        calls.append(invitation.number)
        return train(model, invitation)

    assert participate(world.member, count).trained == ()
    assert calls == []


def test_a_client_that_is_not_invited_waits(world: World) -> None:
    world.show(invitation=Invitation("t-00001", 1, 0, False, ("bo",), 1, 1, {}))
    world.script = [lambda: None, world.end]
    assert participate(world.member, train).trained == ()
    assert world.slept == [1, 1]


def test_without_evaluate_a_client_sends_nothing_in_evaluations(world: World) -> None:
    world.invite(1, is_evaluation=True)
    world.script = [world.end]
    assert participate(world.member, train).evaluated == ()
    assert RoundKeys("t-00001-eval").update("ann") not in world.store.objects


def test_a_round_that_is_just_being_opened_is_looked_at_again(world: World) -> None:
    world.invite(1, opened=False)
    world.script = [lambda: world.open("t-00001"), world.end]
    assert participate(world.member, train).trained == (1,)


@pytest.mark.parametrize("is_evaluation", [False, True])
def test_a_version_that_was_pruned_meanwhile_costs_its_round_only(
    world: World, caplog: pytest.LogCaptureFixture, is_evaluation: bool
) -> None:
    world.invite(1, is_evaluation=is_evaluation)
    model = Model(world.stack)
    for _ in range(2):
        model.put(MODEL)
    model.prune(keep=1)

    def next_round() -> None:
        world.invite(2)
        world.show(invitation=replace(world.state.invitation, version=3))  # type: ignore[type-var]
        record = world.store.get_json(RoundKeys("t-00002").spec)
        world.store.put_json(RoundKeys("t-00002").spec, record | {"model_version": 3})

    world.script = [next_round, world.end]
    with caplog.at_level(logging.WARNING, "gradshard"):
        done = participate(world.member, train, evaluate)
    assert (done.trained, done.evaluated) == ((2,), ())
    assert "model 'model' has no version 1; the newest is 3" in caplog.text


def test_a_lost_connection_is_waited_for_and_nothing_is_trained_twice(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world.invite(1)
    world.script = [*[lambda: None] * 3, world.end]
    calls: list[int] = []
    failures = [StoreError("rounds/…: EndpointConnectionError")] * 3
    put = world.store.put_bytes

    def unsteady(key: str, body: bytes, **options: Any) -> bool:
        if "/updates/" in key and failures:
            raise failures.pop()
        return put(key, body, **options)

    monkeypatch.setattr(world.store, "put_bytes", unsteady)

    def count(model: Any, invitation: Invitation) -> Any:
        calls.append(invitation.number)
        return train(model, invitation)

    with caplog.at_level(logging.WARNING, "gradshard"):
        done = participate(world.member, count)
    assert (done.trained, calls) == ((1,), [1])
    assert world.slept[:3] == [1, 2, 4]
    assert caplog.text.count("trying again in") == 3


def test_a_connection_that_stays_lost_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost() -> None:
        raise StoreError("no route")

    monkeypatch.setattr(world.training, "state", lost)
    with pytest.raises(StoreError, match="no route"):
        participate(world.member, train, patience=300)
    assert 200 < world.now <= 300


@pytest.mark.parametrize(
    "error",
    [
        UnreadableObjectError("AccessDenied"),
        StoreError("x: S3 answered AccessDenied: …"),
        ServiceError("no AWS region is configured: set AWS_DEFAULT_REGION, or use --local"),
    ],
)
def test_what_is_forbidden_is_told_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch, error: StoreError | ServiceError
) -> None:
    def forbidden() -> None:
        raise error

    monkeypatch.setattr(world.training, "spec", forbidden)
    with pytest.raises(type(error), match=r"AccessDenied|no AWS region"):
        participate(world.member, train)
    assert world.slept == []


@pytest.mark.parametrize(
    ("trained", "why"),
    [
        ({"w": np.zeros(3, "f4")}, r"tensor 'w' is F32 \[3\] after training, and F32 \[4\] in the"),
        ({"w": np.zeros(4)}, r"tensor 'w' is F64 \[4\] after training, and F32 \[4\] in the model"),
        ({"v": np.zeros(4)}, "tensor 'v' is not in the model"),
        ({}, "one element|no element|missing"),
        ({"w": np.full(4, np.nan, "f4")}, "NaN or an infinity at element 0; nothing was sent"),
    ],
)
def test_an_update_that_cannot_be_averaged_ends_the_loop_with_the_reason(
    world: World, trained: Any, why: str
) -> None:
    world.invite(1)
    with pytest.raises(UpdateError, match=why):
        participate(world.member, lambda _m, _i: (trained, 1))


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"loss": float("nan")}, "metric 'loss' is 'nan', not a finite number"),
        ({"loss": "low"}, "metric 'loss' is 'low', not a finite number"),
        ({f"m{n}": n for n in range(33)}, "33 metrics, over 32"),
        ({"": 1}, "metric '' is not 1 to 64"),
    ],
)
def test_bad_metrics_end_the_loop_before_anything_is_sent(
    world: World, metrics: Any, why: str
) -> None:
    world.invite(1)
    with pytest.raises(UpdateError, match=why):
        participate(world.member, lambda m, i: (*train(m, i)[:2], metrics))
    assert RoundKeys("t-00001").update("ann") not in world.store.objects
    world.invite(1, is_evaluation=True)
    with pytest.raises(UpdateError, match=why):
        participate(world.member, train, lambda _m, _i: (metrics, 1))


def test_training_may_change_the_arrays_that_it_gets(world: World) -> None:
    def in_place(model: dict[str, Any], _: Invitation) -> Any:
        model["w"] += 2
        return model, 1

    world.invite(1)
    world.script = [world.end]
    participate(world.member, in_place)
    assert world.sent("t-00001")["w"].tolist() == [2] * 4


def test_who_is_not_in_the_list_is_told(world: World) -> None:
    with pytest.raises(TrainingStateError, match="fixed list of clients, without 'eve': ann, bo"):
        participate(Member(world.stack, world.training, "eve"), train)


def test_a_training_that_is_not_there_is_told() -> None:
    stack = MemoryStack(MemoryStore())
    with pytest.raises(TrainingNotFoundError, match="there is no training 'u'"):
        participate(Member(stack, Training(stack, "u"), "ann"), train)


def test_the_only_training_need_not_be_named(world: World) -> None:
    federation = Federation()
    federation.stack = world.stack
    world.invite(1)
    world.script = [world.end]
    assert federation.participate("ann", train).trained == (1,)
    with pytest.raises(TrainingStateError, match="those that have not ended are none"):
        federation.participate("ann", train)


def test_models_are_sent_whole_where_the_optimizer_wants_them(world: World) -> None:
    spec = {**SPEC, "round": {"server_optimizer": {"optimizer": "fedavg", "updates": "models"}}}
    world.store.put_json(world.keys.spec, {"spec": parse_training_spec(spec).to_json()})
    world.invite(1)
    world.script = [world.end]
    participate(world.member, train)
    assert world.sent("t-00001")["w"].tolist() == [0.5, 1.5, 2.5, 3.5]


def reject(world: World, name: str, reason: str) -> None:
    record = {"client": "ann", "reason": reason}
    world.store.put_json(RoundKeys(name).rejection("ann"), record)


def test_a_rejected_update_is_told_when_its_round_is_over(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[float, str]] = []
    get_json = world.store.get_json

    def counting(key: str, *more: Any) -> Any:
        if "/rejections/" in key:
            asked.append((world.now, key))
        return get_json(key, *more)

    monkeypatch.setattr(world.store, "get_json", counting)

    def next_round() -> None:
        reject(world, "t-00001", "too bad")
        world.invite(2)

    told: list[RejectedUpdate] = []
    world.invite(1)
    world.script = [lambda: None, next_round, *[lambda: None] * 20, world.end]
    with caplog.at_level(logging.WARNING, "gradshard"):
        done = participate(world.member, train, on_rejection=told.append)
    found = RejectedUpdate("t-00001", 1, False, "too bad")
    assert done.rejected == (found,)
    assert told == [found]
    assert [record.message for record in caplog.records] == [
        "t-00001: the update was rejected: too bad"
    ]
    # Once for each round, when it is over.
    rejections = [RoundKeys(name).rejection("ann") for name in ("t-00001", "t-00002")]
    assert asked == [(2, rejections[0]), (23, rejections[1])]


def test_an_update_that_was_too_late_is_asked_for_once_more(world: World) -> None:
    """The function that says so runs while the training goes on already."""
    world.invite(1)

    def says_so() -> None:
        reject(world, "t-00001", "uploaded after the round was planned")

    next_round = partial(world.invite, 2)
    world.script = [next_round, lambda: None, says_so, *[lambda: None] * 10, world.end]
    done = participate(world.member, train)
    assert [update.number for update in done.rejected] == [1]


def test_a_client_that_is_started_again_is_told_of_the_update_before(world: World) -> None:
    world.invite(1)
    world.script = [world.end]
    participate(world.member, train)
    world.show(status="running")
    world.invite(1)

    def pause() -> None:
        reject(world, "t-00001", "too bad")
        world.show(invitation=None, status="paused", cause="its quorum")

    world.script = [pause, lambda: None, world.end]
    done = participate(world.member, train)
    assert (done.trained, [update.reason for update in done.rejected]) == ((), ["too bad"])


def test_metrics_of_an_evaluation_that_were_rejected_are_told(world: World) -> None:
    world.invite(1, is_evaluation=True)
    reject(world, "t-00001-eval", "another layout")
    world.script = [world.end]
    [update] = participate(world.member, train, evaluate).rejected
    assert (update.round_id, update.is_evaluation) == ("t-00001-eval", True)


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_rejection_by_the_end_of_a_buffered_training_is_told(
    world: World, caplog: pytest.LogCaptureFixture, *, is_slow: bool
) -> None:
    """Updates that wait are rejected when the state of the end is written already."""
    spec = {**SPEC, "mode": "buffered", "updates_per_version": 2}
    world.store.put_json(world.keys.spec, {"spec": parse_training_spec(spec).to_json()})
    everybody = Invitation("t-00001", 1, 0, False, (), 2, 1, {"lr": 1.0})
    world.show(invitation=everybody, version=1)

    def reject() -> None:
        rejection = {"client": "ann", "reason": "the training has ended"}
        world.store.put_json(world.keys.inbox(1).rejection("ann"), rejection)

    world.script = [world.end, lambda: None, reject] if is_slow else [reject, world.end]
    with caplog.at_level(logging.WARNING, "gradshard"):
        done = participate(world.member, train)
    assert (done.trained, [update.number for update in done.rejected]) == ((1,), [1])
    assert "t-from-00000001: the update was rejected: the training has ended" in caplog.text


@pytest.mark.parametrize("poll_interval", [1, 3600])
def test_a_client_does_not_wait_for_ever_for_what_becomes_of_its_last_update(
    world: World, poll_interval: int
) -> None:
    buffered = {"mode": "buffered", "updates_per_version": 2}
    spec = {**SPEC, **buffered, "poll_interval": poll_interval}
    world.store.put_json(world.keys.spec, {"spec": parse_training_spec(spec).to_json()})
    world.show(invitation=Invitation("t-00001", 1, 0, False, (), 2, 1, {"lr": 1.0}), version=1)
    world.script = [world.end]
    assert participate(world.member, train).rejected == ()
    assert SETTLE_SECONDS <= world.now - poll_interval < SETTLE_SECONDS + 2


def test_in_a_buffered_training_each_version_is_trained_once_and_rejections_are_told(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Versions appear as the client sleeps; the first update is rejected, the second one counts."""
    spec = {**SPEC, "mode": "buffered", "updates_per_version": 2}
    world.store.put_json(world.keys.spec, {"spec": parse_training_spec(spec).to_json()})
    model, reads = Model(world.stack), list[str]()

    def show(version: int, **more: Any) -> None:
        everybody = Invitation(
            f"t-{version:05}", version, 0, False, (), 2, version, {"lr": float(version)}
        )
        world.show(invitation=everybody, version=version, **more)

    def reject() -> None:
        inbox = world.keys.inbox(1)
        world.store.put_json(inbox.rejection("ann"), {"client": "ann", "reason": "too bad"})

    def next_version() -> None:
        model.put({"w": np.full(4, 9, "f4")})
        show(2)

    def count() -> None:
        show(2, counted={"2": {"ann": "d41d8cd9"}})
        reads.append("counted")

    show(1)
    world.script = [reject, lambda: None, next_version, count, lambda: None, world.end]
    with caplog.at_level(logging.WARNING, "gradshard"):
        done = participate(world.member, train, evaluate)
    assert done.trained == (1, 2)
    for version in (1, 2):
        sent = reference.decode(world.store.objects[world.keys.inbox(version).update("ann")])
        assert sent["w"].tobytes() == np.full(4, version, "f4").tobytes()
    assert [record.message for record in caplog.records] == [
        "t-from-00000001: the update was rejected: too bad"
    ]
    assert [(found.number, found.reason) for found in done.rejected] == [(1, "too bad")]
    # Started again, it finds that it has sent an update from this version.
    world.show(status="running")
    show(2)
    world.script = [world.end]
    assert participate(world.member, train, evaluate).trained == ()
