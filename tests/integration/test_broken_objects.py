"""A round's own objects that are not what was written: the round ends, and says which it was."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import boto3
import pytest

from gradshard_core.formats.object_keys import ModelKeys, RoundKeys
from gradshard_core.rounds import aws_requests, waiting_record
from gradshard_core.s3.store import S3Store
from tests.integration.machine import (
    APPLIED,
    EAGER,
    TREE,
    Call,
    FunctionError,
    Machine,
    in_this_process,
)

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

NO_JSON = "bytes that are no JSON"
OTHER = "JSON of another form than was written there"


@pytest.fixture(scope="module")
def call(function_environment: None) -> Iterator[Call]:
    with in_this_process() as call:
        yield call


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)


class Breaking:
    """Calls functions; before the first call of one of them an object is overwritten."""

    def __init__(self, call: Call, store: S3Store, function: str) -> None:
        self.call, self.store, self.function = call, store, function
        self.key, self.junk = "", b""

    def __call__(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        if function == self.function and self.key:
            self.store.put_bytes(self.key, self.junk)
            self.key = ""
        return self.call(function, event)


@pytest.mark.parametrize(
    ("terms", "name", "junk", "before", "why"),
    [
        ({}, "spec", b"{", "plan_round", NO_JSON),
        (TREE, "spec", b"[]", "plan_round", OTHER),
        ({}, "plan", b"", "aggregate_shard", NO_JSON),
        (APPLIED, "plan", b"null", "finalize_round", OTHER),
        (EAGER, "plan", b'{"round": 1}', "plan_round", OTHER),
        (EAGER, "spec", b"3", "open_round", OTHER),
        (TREE, "report", b'{"attempt": 0}', "finalize_round", OTHER),
        ({}, "report", b"\xff", "finalize_round", NO_JSON),
        (APPLIED, "current", b"{", "open_round", NO_JSON),
        (APPLIED, "current", b'{"version": "x"}', "plan_round", OTHER),
        (APPLIED, "version", b"{}", "finalize_round", OTHER),
    ],
)
def test_an_object_overwritten_with_junk_fails_the_round_and_is_named(
    call: Call,
    store: S3Store,
    terms: dict[str, Any],
    name: str,
    junk: bytes,
    before: str,
    why: str,
) -> None:
    breaking = Breaking(call, store, before)
    machine = Machine(breaking, store, terms)
    model = ModelKeys(machine.name)
    key = breaking.key = {
        "spec": machine.keys.spec,
        "plan": machine.keys.plan,
        "report": machine.keys.task_report(0, 0),
        "current": model.current,
        "version": model.version(2),
    }[name]
    breaking.junk = junk
    kept = store.get_bytes(key)
    manifest = machine.run()
    assert manifest["status"] == "failed"
    assert re.search(f"{re.escape(key)}: .*{why}|{re.escape(key)} {why}", manifest["cause"])
    if key.startswith("models/"):
        # What its operator puts back, or takes away.
        store.put_bytes(key, kept) if kept else store.delete(key)
    machine.check(manifest, call)


def test_a_model_is_not_begun_by_a_round_that_lost_its_terms(call: Call, store: S3Store) -> None:
    """Which uploads are to be given up then says the plan alone."""
    breaking = Breaking(call, store, "finalize_round")
    machine = Machine(breaking, store, APPLIED)
    breaking.key, breaking.junk = machine.keys.task_report(0, 0), b"[]"

    def lost(function: str, event: dict[str, Any]) -> dict[str, Any]:
        if function == "abort_round":
            store.put_bytes(machine.keys.spec, b"[]")
        return breaking(function, event)

    machine.call = lost
    manifest = machine.run()
    assert manifest["status"] == "failed"
    machine.check(manifest, call)


def test_a_manifest_that_is_junk_is_named_and_nothing_is_left_open(
    call: Call, store: S3Store
) -> None:
    breaking = Breaking(call, store, "finalize_round")
    machine = Machine(breaking, store, TREE)
    breaking.key, breaking.junk = machine.keys.manifest, b"{}"
    with pytest.raises(FunctionError, match=rf"{breaking.key}: {OTHER}: KeyError: 'status'"):
        machine.run()
    assert store.open_uploads(machine.keys.result) == []
    assert list(machine.versions(machine.keys.partial_sums)) == []


@pytest.mark.parametrize("junk", [b"{", b"[]", b'{"tokens": null}', None])
def test_a_round_whose_tokens_are_lost_is_resumed_by_its_deadline(
    call: Call, store: S3Store, monkeypatch: pytest.MonkeyPatch, junk: bytes | None
) -> None:
    asked: list[str] = []

    def resume(token: str, _reason: str) -> bool:
        asked.append(token)
        return True

    monkeypatch.setattr(aws_requests, "resume", resume)
    keys = RoundKeys("lost-tokens")
    opening = {
        "round": keys.round_id,
        "started": "2026-01-01T00:00:00+00:00",
        "spec": {"clients": ["a"], "timeout": 3600},
    }
    for token in ("first", "second"):
        call("open_round", opening | {"token": token})
    if junk is None:
        store.delete(keys.callback)
    else:
        store.put_bytes(keys.callback, junk)
    schedule = boto3.client("scheduler").get_schedule(
        Name=keys.round_id, GroupName="gradshard-deadlines"
    )
    said = json.loads(schedule["Target"]["Input"])
    assert said["tokens"] == ["first", "second"]
    assert call("collect_update", said)["resumed"]
    assert asked == ["second"]
    # A call that comes later puts its own there.
    call("open_round", opening | {"token": "third"})
    assert waiting_record.resume(store, keys, "complete")
    assert asked == ["second", "third"]
    store.delete_versions(keys.root)
