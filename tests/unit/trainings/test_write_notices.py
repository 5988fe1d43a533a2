"""What holders of tickets read of a training, however often, late or interrupted it is written."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import pytest

from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.privacy.noise_tree import NoiseTree
from gradshard_core.records.assignment import write_assignments
from gradshard_core.records.training_notice import Notice
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.s3.http_transport import CHECKSUM_MODE
from gradshard_core.s3.sigv4 import Credentials, presign
from gradshard_core.specs.option_parsers import parse_assignment_spec
from gradshard_core.stragglers.client_report import Report
from gradshard_core.trainings.write_notices import URL_SECONDS, write_notices
from tests.presigned import rejection
from tests.unit.fakes import MemoryStore
from tests.unit.trainings.machine import Killed, Machine

SECRET = "s3cr3t"


class Signer:
    """Signs as a function does."""

    def sign(self, method: str, key: str, seconds: int, headers: dict[str, str]) -> str:
        credentials, now = Credentials("AKIA", SECRET, "token"), datetime.now(UTC)
        common: dict[str, Any] = {"region": "us-east-1", "credentials": credentials, "now": now}
        target = presign(method, "bucket", f"/{key}", headers, seconds=seconds, **common)
        return f"https://bucket{target}"

    def presign_new(self, key: str, nbytes: int, seconds: int) -> str:
        headers = {"Content-Length": str(nbytes), "If-None-Match": "*"}
        return self.sign("PUT", key, seconds, headers)

    def presign_empty(self, key: str, seconds: int) -> str:
        return self.sign("PUT", key, seconds, {"Content-Length": "0"})

    def presign_read(self, key: str, seconds: int, *, head: bool = False) -> str:
        return self.sign("HEAD" if head else "GET", key, seconds, {})

    def presign_checksum(self, key: str, seconds: int) -> str:
        return self.sign("HEAD", key, seconds, dict(CHECKSUM_MODE))


class World:
    """A training whose state the test writes, and two holders of tickets, ann and bo."""

    def __init__(self, machine: Machine, **options: Any) -> None:
        self.store, self.keys = machine.store, machine.keys
        machine.train = lambda *_: None
        machine.start(rounds=3, clients=["ann", "bo", "cy"], repeats=0, **options)
        machine.store.deaths = set()
        for client in ("ann", "bo"):
            self.store.put_json(self.keys.notice(client), Notice(client).to_json())

    def show(self, *clients: str, open_for_all: bool = False, **changes: Any) -> None:
        awaited = min(2, len(clients)) or 2
        invitation = Invitation("t-00001", 1, 0, False, clients, awaited, 1, {"lr": 0.1})
        state = {**self.store.get_json(self.keys.state), "status": "running", "cause": None}
        state = TrainingState.from_json(state).to_json()
        state["invitation"] = vars(invitation) if clients or open_for_all else None
        self.store.put_json(self.keys.state, state | changes)

    def write(self, key: str | None = None) -> dict[str, Any]:
        return write_notices(self.store, Signer(), key or self.keys.state)

    def notice(self, client: str) -> Notice:
        found = self.store.get_json(self.keys.notice(client), Notice.from_json)
        assert found is not None
        return found


@pytest.fixture
def world(machine: Machine) -> World:
    return World(machine)


def test_the_invited_get_an_invitation_without_the_others(world: World) -> None:
    tree = asdict(NoiseTree(taken=("cy",)))
    costs: dict[str, Any] = {"dollars": 7654321.5, "last_dollars": {"train": 7654321.5}}
    world.show("ann", "cy", silent={"cy": 3}, tree=tree, **costs)
    assert world.write() == {"training": "t", "written": 1}
    notice = world.notice("ann")
    assert notice.state is not None
    assert notice.state.invitation is not None
    assert notice.state.invitation.clients == ("ann",)
    text = world.store.objects[world.keys.notice("ann")].decode()
    assert '"cy"' not in text
    assert "7654321" not in text  # and is in no time
    assert world.notice("bo").state is None
    assert world.keys.notice("cy") not in world.store.objects


def test_the_holder_of_a_ticket_gets_its_own_assignment(machine: Machine) -> None:
    base = {"batch_size": 8, "epochs": 1, "learning_rate": 0.125}
    world = World(machine, round={"server_optimizer": "fedavg", "assignments": base})
    seconds = {"ann": 1.0, "cy": 4.0}
    write_assignments(
        world.store,
        RoundKeys("t-00000"),
        parse_assignment_spec(base),
        lambda: [(name, Report(100, took, 8, 1)) for name, took in seconds.items()],
    )
    for last, epochs in (("t-00000", 4), (None, 1), ("expired", 1)):
        world.show("ann", "cy", last_round=last)
        world.write()
        state = world.notice("ann").state
        assert state is not None
        assert state.invitation is not None
        assert state.invitation.settings["epochs"] == epochs
        assert state.invitation.settings["lr"] == 0.1


def test_whoever_asks_for_renewal_gets_the_state_though_it_is_not_invited(world: World) -> None:
    world.show("ann", "cy")
    assert world.write(world.keys.renewal("bo")) == {"training": "t", "written": 1}
    notice = world.notice("bo")
    assert notice.state is not None
    assert (notice.state.status, notice.state.invitation, notice.ticket) == ("running", None, None)
    assert world.write(world.keys.renewal("cy"))["written"] == 0, "it has no ticket"


def test_the_end_and_its_cause_are_told_to_all_and_that_of_a_pause_to_nobody(world: World) -> None:
    world.show(status="paused", cause="round failed: cy sent NaN")
    assert world.write()["written"] == 0
    world.write(world.keys.renewal("ann"))
    told = world.notice("ann").state
    assert told is not None
    assert (told.status, told.cause) == ("paused", None)
    world.show(status="ended", cause="stopped: enough")
    assert world.write()["written"] == 2
    told = world.notice("bo").state
    assert told is not None
    assert (told.status, told.cause) == ("ended", "stopped: enough")


def test_the_urls_are_for_what_they_say_and_for_half_a_day(world: World) -> None:
    world.show("ann")
    world.write()
    notice = world.notice("ann")
    ticket, keys = dict(notice.ticket or {}), RoundKeys("t-00001")
    assert notice.urls is not None
    [(beginning, ends)] = ticket["upload"].items()
    length, end = min((int(length), end) for length, end in ends.items())
    asked = [
        ("GET", notice.urls.notice, world.keys.notice("ann"), {}),
        ("PUT", notice.urls.renewal, world.keys.renewal("ann"), {"Content-Length": "0"}),
        ("HEAD", ticket["uploaded_url"], keys.update("ann"), CHECKSUM_MODE),
        ("GET", ticket["rejection_url"], keys.rejection("ann"), {}),
        ("HEAD", ticket["ended_url"], keys.manifest, {}),
        ("GET", ticket["result_url"], keys.result, {}),
        ("HEAD", ticket["result_head_url"], keys.result, CHECKSUM_MODE),
    ]
    given = {"Content-Length": str(length), "If-None-Match": "*"}
    asked.append(("PUT", beginning + end, keys.update("ann"), given))
    now = datetime.now(UTC)
    for method, url, key, headers in asked:
        assert url.startswith(f"https://bucket/{key}?")
        assert f"X-Amz-Expires={URL_SECONDS}&" in url
        assert rejection(method, url, headers, SECRET, now=now) is None
        assert rejection("DELETE", url, headers, SECRET, now=now) is not None
    changed = given | {"If-None-Match": "x"}
    assert rejection("PUT", beginning + end, changed, SECRET, now=now) is not None
    model = TrainingKeys("t").root
    assert model not in ticket["model"]["url"]
    assert ticket["layout"].keys() == {"w", "b"}


def test_in_a_buffered_training_all_holders_can_send_an_update_from_the_newest_version(
    machine: Machine,
) -> None:
    world = World(machine, mode="buffered", updates_per_version=2)
    counted = {"1": {"ann": "aaaaaaaa", "cy": "cccccccc"}}
    world.show(open_for_all=True, counted=counted, suspects=["cy"])
    assert world.write() == {"training": "t", "written": 2}
    notice, ticket = world.notice("ann"), dict(world.notice("ann").ticket or {})
    assert ticket["round_id"] == world.keys.inbox(1).round_id
    [(beginning, _)] = ticket["upload"].items()
    assert beginning.startswith(f"https://bucket/{world.keys.inbox(1).update('ann')}?")
    assert notice.state is not None
    assert notice.state.counted == {"1": {"ann": "aaaaaaaa"}}
    assert b"cy" not in world.store.objects[world.keys.notice("ann")]
    assert world.notice("bo").state.counted == {}  # type: ignore[union-attr]
    # An evaluation invites clients by their names.
    world.show("bo")
    assert world.write() == {"training": "t", "written": 1}


def test_of_two_writers_the_one_with_the_older_state_writes_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads the state, another one writes the notice with a newer state, and it comes late."""
    world.show("ann")
    put_bytes = MemoryStore.put_bytes
    raced: list[str] = []

    def put(store: MemoryStore, key: str, body: bytes, **options: Any) -> bool:
        if key == world.keys.notice("ann") and not raced:
            raced.append(key)
            world.show("ann", completed=2)
            put_bytes(store, key, json.dumps(Notice("ann").to_json()).encode() + b" ")
        return put_bytes(store, key, body, **options)

    monkeypatch.setattr(MemoryStore, "put_bytes", put)
    world.write()
    state = world.notice("ann").state
    assert raced
    assert state is not None
    assert state.completed == 2


def test_a_function_that_dies_at_any_request_leaves_an_notice_that_can_be_read(
    world: World,
) -> None:
    world.show("ann", "bo")
    world.store.requests = 0
    world.write()
    for number in range(world.store.requests):
        for death in (number, -number - 1):
            world.store.requests, world.store.deaths = 0, {death}
            with pytest.raises(Killed):
                world.write()
            world.store.deaths = set()
            assert world.notice("ann").ticket is not None
            assert world.write()["written"] == 2


def test_a_revoked_notice_is_not_written_again_and_others_keys_are_ignored(world: World) -> None:
    world.show("ann", "bo")
    world.store.delete(world.keys.notice("ann"))
    assert world.write()["written"] == 1
    assert world.keys.notice("ann") not in world.store.objects
    for key in (
        "rounds/r/state.json",
        "trainings/t/renewals/a b.renewal",
        "trainings/t.u/state.json",
    ):
        assert world.write(key) == {"training": None, "written": 0}
    assert world.write("trainings/unknown/state.json")["written"] == 0
