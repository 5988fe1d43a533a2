"""What an operator does to rounds, on the deployed application."""

import contextlib

import numpy as np
import pytest

from gradshard import Federation, GradshardError
from gradshard_core.errors import RoundExistsError, RoundFailed, RoundNotFoundError, RoundStateError
from tests.e2e.command import gradshard
from tests.e2e.deployed import Deployed, log_of, until
from tests.e2e.test_command_line import said, said_json

pytestmark = pytest.mark.e2e

UPDATE = {"w": np.arange(4, dtype=np.float32)}
SECONDS = 120


def states(state: str) -> list[str]:
    return [found["round"] for found in said_json("list", "--state", state, "--limit", 100)]


def test_a_round_is_closed_with_the_updates_that_are_there(federation: Federation) -> None:
    round_ = federation.open_round("op-close", ["a", "b"], timeout=600, min_clients=1)
    round_.submit("a", UPDATE, samples=1)
    assert "op-close" in states("awaiting")
    assert "goes on with 1 of 2 updates" in said("close", "op-close")
    manifest = round_.wait(SECONDS)
    assert (manifest["missing"], len(manifest["contributors"])) == (["b"], 1)
    with pytest.raises(RoundStateError, match=r"has ended \(completed\)"):
        round_.close()
    with pytest.raises(RoundStateError, match="was completed"):
        round_.cancel("too late")
    until(lambda: "op-close" in states("completed") or None)


def test_a_cancelled_round_has_failed_and_takes_no_more_updates(
    federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("op-cancel", ["a", "b"], timeout=600)
    round_.submit("a", UPDATE, samples=1)
    tokens = deployed.tokens(round_)
    for _ in range(2):
        assert "cancelled: wrong data" in said("cancel", "op-cancel", "--reason", "wrong data")
    assert deployed.ended("op-cancel")["status"] == "ABORTED"
    with pytest.raises(RoundFailed, match="cancelled: wrong data"):
        round_.wait(SECONDS)
    assert deployed.open_uploads("op-cancel") == []
    ended = deployed.read(round_.keys.manifest)
    for token in tokens:
        # Step Functions rejects it; the engine lets the functions find that the round has ended.
        with contextlib.suppress(deployed.states.exceptions.ClientError):
            deployed.states.send_task_success(taskToken=token, output='{"reason": "deadline"}')
    with pytest.raises(RoundStateError, match=r"has ended \(failed\)"):
        round_.submit("b", UPDATE, samples=1)
    assert round_.status()["state"] == "failed"
    assert "op-cancel" in states("failed")
    assert deployed.read(round_.keys.manifest) == ended
    assert round_.keys.result not in deployed.keys("rounds/op-cancel/")


def test_all_rounds_that_wait_are_cancelled(federation: Federation) -> None:
    for name in ("op-all-1", "op-all-2"):
        federation.open_round(name, ["a"], timeout=600)
    answer = said("cancel", "--all", "--reason", "the stack is deleted")
    assert {"cancelled round op-all-1", "cancelled round op-all-2"} <= set(answer.splitlines())
    # A round that has just completed may be listed until its execution has ended.
    until(lambda: not states("awaiting") + states("aggregating"))


def test_a_removed_rounds_name_stays_taken(federation: Federation, deployed: Deployed) -> None:
    round_ = federation.open_round("op-rm", ["a"], timeout=600)
    rejected = gradshard("rm", "op-rm", "--yes")
    assert rejected.returncode == 1
    assert "has not ended: wait for it, or cancel it first" in rejected.stderr
    round_.submit("a", UPDATE, samples=1)
    round_.wait(SECONDS)
    deployed.ended("op-rm")
    assert gradshard("rm", "op-rm").returncode == 1  # nobody answers
    assert deployed.keys("rounds/op-rm/")
    said("rm", "op-rm", "--yes")
    versions = deployed.s3.list_object_versions(Bucket=deployed.bucket, Prefix="rounds/op-rm/")
    assert [*versions.get("Versions", []), *versions.get("DeleteMarkers", [])] == []
    for clients in (["a"], ["a", "b"]):
        with pytest.raises(RoundExistsError, match=r"choose another name: it ran from 20"):
            federation.open_round("op-rm", clients, timeout=600)
    with pytest.raises(RoundNotFoundError, match="objects have been deleted"):
        round_.submit("a", UPDATE, samples=1)


def test_a_rounds_log_is_that_of_its_functions(federation: Federation) -> None:
    round_ = federation.open_round("op-log", ["a"], timeout=600)
    round_.submit("a", UPDATE, samples=1)
    round_.wait(SECONDS)
    log_of(round_, ("open_round", ""), ("collect_update", "a"), ("finalize_round", ""))
    lines = said("logs", "op-log").splitlines()
    assert [line.split()[1] for line in lines][:1] == ["open_round"]
    assert any("collect_update done contributor=a" in line for line in lines)
    assert {line["round"] for line in said_json("logs", "op-log")} == {"op-log"}


def test_of_no_round(federation: Federation) -> None:
    round_ = federation.round("op-none")
    for act in (round_.close, lambda: round_.cancel("why"), round_.remove, round_.log):
        with pytest.raises(GradshardError, match="there is no round 'op-none'"):
            act()
