"""``gradshard keeper``: what its operator sees, and what it keeps."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradshard.client import keeper as keepers
from gradshard_core.mask_keeper.records import PRIVATE_KEY, KeeperKeys, client_key
from gradshard_core.masking import sealing
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStore


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    store = MemoryStore()

    class OneStack:
        def __init__(self, *_: Any, **__: Any) -> None:
            self.store = store

    monkeypatch.setattr(keepers, "Stack", OneStack)
    return store


def test_the_key_is_made_once(run: Run, store: MemoryStore) -> None:
    first = json.loads(run("keeper", "key", "--json").stdout)
    again = run("keeper", "key")
    assert first["key"] in again.stdout
    assert first["fingerprint"] in again.stdout
    private = bytes.fromhex(store.objects[PRIVATE_KEY].decode())
    assert sealing.public_key(private).hex() == first["key"]
    assert private.hex() not in again.stdout


def test_clients_are_enrolled_listed_and_expelled(
    run: Run, store: MemoryStore, tmp_path: Path
) -> None:
    public = run("keeper", "identity", str(tmp_path / "alice.key")).stdout.strip()
    assert run("keeper", "enrol", "alice", public).exit_code == 0
    assert store.get_json(client_key("alice"))["key"] == public
    assert run("keeper", "clients").stdout == f"alice  {public}\n"
    [listed] = json.loads(run("keeper", "clients", "--json").stdout)
    assert listed["client"] == "alice"
    assert run("keeper", "expel", "alice").exit_code == 0
    assert run("keeper", "clients").stdout == ""


def test_what_is_no_key_is_not_enrolled(run: Run, store: MemoryStore) -> None:
    assert_one_line(run("keeper", "enrol", "alice", "short"), "'short' is no public key")
    assert store.objects == {}


def test_the_record_of_an_answer_is_shown(run: Run, store: MemoryStore) -> None:
    assert_one_line(run("keeper", "answer", "r1"), "has answered nothing in round 'r1'")
    keys = KeeperKeys("r1")
    store.put_json(keys.record, {"round": "r1", "summed": {"a": "00"}})
    store.put_json(keys.given, {"given_at": "2026-01-01T00:00:00+00:00"})
    shown = json.loads(run("keeper", "answer", "r1").stdout)
    assert shown == {
        "round": "r1",
        "summed": {"a": "00"},
        "given_at": "2026-01-01T00:00:00+00:00",
    }


def test_a_masked_submission_needs_key_and_fingerprint(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "u.safetensors"
    file.write_bytes(b"")
    result = run("submit", "r1", "a", str(file), "--mask-key", str(tmp_path / "k"))
    assert_one_line(result, "Give --mask-key and --keeper together.")
