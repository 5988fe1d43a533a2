"""``gradshard train`` and ``gradshard join``, against a bucket in memory."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gradshard.cli import main, options
from gradshard.client.executions import Execution
from gradshard.client.federation import Federation
from gradshard.client.model import Model
from gradshard.client.training import Training
from gradshard_core.errors import TrainingExistsError, TrainingFailed, TrainingStateError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.privacy.noise_tree import NoiseTree
from gradshard_core.records.training_state import Best, Invitation, TrainingState, read_state
from gradshard_core.trainings.start_training import start_training
from tests import reference
from tests.unit.fakes import MemoryStack, MemoryStore

NOW = "2026-01-01T00:00:00+00:00"
START = ("train", "start", "t", "--rounds", "5", "--server-optimizer", "fedavg")
INVITATION = Invitation("t-00003", 3, 0, False, ("ann", "bo"), 2, 3, {})
RECORD = {
    "round_id": "t-00002",
    "number": 2,
    "is_evaluation": False,
    "repetition": 0,
    "clients": ["ann", "bo"],
    "contributors": ["ann"],
    "is_completed": True,
    "metrics": {"loss": 0.125, "f1": 0.5},
    "dollars": 0.0007,
}

Run = Callable[..., Result]


@pytest.fixture
def federation(monkeypatch: pytest.MonkeyPatch) -> Federation:
    """One whose first function runs as soon as an execution is started."""
    found = Federation()
    store = MemoryStore()
    stack = MemoryStack(store)
    found.stack = stack
    Model(stack).put({"w": np.zeros(2, "f4")})

    def start(name: str, payload: str) -> bool:
        if name in stack.trainings.executions:
            return False
        spec = json.loads(payload)
        stack.trainings.executions[name] = Execution("RUNNING", spec, "", "")
        stack.trainings.started.append(payload)
        if "run" not in spec:
            try:
                start_training(store, name, spec, started=NOW)
            except TrainingStateError as error:
                failed = Execution("FAILED", spec, "TrainingStateError", str(error))
                stack.trainings.executions[name] = failed
        return True

    monkeypatch.setattr(stack.trainings, "start", start)
    monkeypatch.setattr(options, "connect", lambda *_, **__: found)
    return found


@pytest.fixture
def run(federation: Federation) -> Run:
    return lambda *arguments: CliRunner().invoke(main, arguments)


def change(federation: Federation, **changes: Any) -> TrainingState:
    keys = TrainingKeys("t")
    state = replace(federation.training("t").state(), **changes)
    federation.stack.store.put_json(keys.state, state.to_json())
    return state


def test_a_training_is_started_with_its_options_and_those_of_its_rounds(
    run: Run, federation: Federation
) -> None:
    extra = ("--client", "bo", "--client", "ann", "--timeout", "2m", "--sample", "0.5")
    budget = ("--budget", '{"dollars": 2}', "--poll-interval", "500ms", "--over-selection", "0.3")
    result = run(*START, *extra, *budget)
    assert result.exit_code != 0
    assert "'500ms' is not a duration" in result.output
    result = run(*START, *extra, *budget[:2])
    assert result.output == "training t has started, with 2 clients\n"
    assert federation.training("t").spec().to_json() == {
        "rounds": 5,
        "round": {"server_optimizer": "fedavg", "timeout": 120},
        "clients": ["ann", "bo"],
        "sample": 0.5,
        "seed": 0,
        "budget": {"dollars": 2},
        "poll_interval": 5,
    }


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("train", "start", "t", "--server-optimizer", "fedavg"), "Give --rounds"),
        (("train", "start", "t", "--rounds", "3"), "Give --server-optimizer"),
        (("train", "start", "t.u", *START[3:]), "training id 't.u' is not 1 to 40"),
        ((*START, "--sample", "x"), "'x' is not a number"),
        ((*START, "--stop", '{"metric": "a"}'), "give at_least or at_most"),
        (("train", "show", "u"), "there is no training 'u'"),
        (("train", "pause", "t"), "Missing option '--reason'"),
    ],
)
def test_wrong_options_are_told(run: Run, arguments: tuple[str, ...], why: str) -> None:
    result = run(*arguments)
    assert result.exit_code in {1, 2}
    assert why in result.output


def test_starting_again_is_the_same_training_and_with_other_options_an_error(
    federation: Federation,
) -> None:
    options: Any = {"server_optimizer": "fedavg", "clients": ["ann"]}
    first = federation.train("t", rounds=3, **options)
    assert federation.train("t", rounds=3, **options).id == first.id
    with pytest.raises(TrainingExistsError, match="was started before, with other options"):
        federation.train("t", rounds=4, **options)


def test_a_second_training_of_a_model_cannot_be_started(federation: Federation) -> None:
    federation.train("t", rounds=3, server_optimizer="fedavg")
    with pytest.raises(TrainingFailed, match="is that of training 't', which is running"):
        federation.train("u", rounds=3, server_optimizer="fedavg")


def test_a_training_is_shown(run: Run, federation: Federation) -> None:
    run(*START, "--client", "ann", "--client", "bo", "--budget", '{"dollars": 2, "seconds": 60}')
    best = Best(2, 1, "f1", 0.5)
    change(federation, invitation=INVITATION, completed=2, best=best, silent={"bo": 3}, dollars=0.5)
    federation.stack.store.put_json(TrainingKeys("t").record("t-00002"), RECORD)
    output = run("train", "show", "t").output
    for text in (
        *("running", "2 of 5", "version 2: f1 0.5", "$0.5000 of $2.0000"),
        *("round t-00003, 2 clients invited", "bo (3)", "1 of 2", "0.125", "$0.0007"),
    ):
        assert text in output
    document = json.loads(run("train", "show", "t", "--json").output)
    assert (document["training"], document["completed"]) == ("t", 2)
    assert document["rounds"] == [RECORD]
    assert document["under_way"] == {"arrived": {}, "slow": ["ann", "bo"], "metrics": {}}
    assert document["lost_execution"] is None


def test_a_tree_of_noise_is_started_and_shown(run: Run, federation: Federation) -> None:
    given = '{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}'
    tree = ("--dp", given, "--sample", "3", "--noise-tree", "4")
    assert run(*START, *tree).exit_code == 0
    assert "round 1 of 4 of tree 1; 0 clients were invited" in run("train", "show", "t").output
    change(federation, tree=NoiseTree(2, 3, ((2, "t-00006"),), tuple("abcdef")))
    assert "round 3 of 4 of tree 2; 6 clients were invited" in run("train", "show", "t").output
    document = json.loads(run("train", "show", "t", "--json").output)
    assert document["tree"]["live"] == [[2, "t-00006"]]
    result = run("train", "start", "u", *START[3:], *tree[:2], "--noise-tree", "4")
    assert (result.exit_code, "sample is None, and every round's sum" in result.output) == (1, True)


def test_the_cause_of_a_failure_is_told_once_and_not_in_a_narrow_column(
    run: Run, federation: Federation
) -> None:
    run(*START)
    cause = "2 good updates, and the round needs 3. " * 9
    failed = {**RECORD, "is_completed": False, "error": "QuorumError", "cause": cause}
    failed |= {"metrics": {}, "round_id": "t-00001"}
    federation.stack.store.put_json(TrainingKeys("t").record("t-00001"), failed)
    output = run("train", "show", "t").output
    assert "failed  round t-00001: 2 good updates" in output
    assert "t-00001  QuorumError" in output
    change(federation, status="paused", cause=cause)
    output = run("train", "show", "t").output
    assert ("cause   2 good updates" in output, "failed" in output) == (True, False)
    listed = run("train", "list").output
    assert ("…" in listed, len(listed) < 800) == (True, True)


def test_of_a_long_training_the_last_rounds_are_read_alone(
    run: Run, federation: Federation
) -> None:
    """A training has up to 99,999 rounds; each record is a request."""
    run(*START)
    store, keys = federation.stack.store, TrainingKeys("t")
    for number in range(1, 301):
        record = {**RECORD, "number": number, "round_id": f"t-{number:05}"}
        store.put_json(keys.record(f"t-{number:05}"), record)
    assert len(federation.training("t").records()) == 300
    # The older ones are broken, so that reading one would fail.
    for number in range(1, 280):
        store.put_bytes(keys.record(f"t-{number:05}"), b"junk")
    output = run("train", "show", "t").output
    assert ("t-00281" in output, "t-00300" in output, "t-00280" in output) == (True, True, False)


def test_trainings_are_listed(run: Run) -> None:
    assert run("train", "list").output == "there are no trainings\n"
    run(*START)
    assert "running" in run("train", "list").output
    assert run("train", "list", "--state", "ended").output == "no training is ended\n"
    [entry] = json.loads(run("train", "list", "--json").output)
    assert (entry["training"], entry["status"]) == ("t", "running")


def test_watching_ends_with_the_training_and_says_by_its_code_if_it_paused(
    run: Run, federation: Federation
) -> None:
    run(*START)
    change(federation, status="ended", cause="over", completed=5)
    result = run("train", "watch", "t")
    assert (result.exit_code, result.output) == (0, "ended: 5 rounds completed; $0.0000; over\n")
    change(federation, status="paused", cause="alone")
    result = run("train", "watch", "t", "--json")
    assert result.exit_code == 3
    assert json.loads(result.output.splitlines()[0])["cause"] == "alone"
    assert "training 't' has paused: alone" in result.output


def test_watching_without_a_terminal_prints_lines_with_all_that_a_terminal_shows(
    run: Run, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds, arrivals, their metrics, slow clients, and what is left of time and dollars."""
    run(*START, "--client", "ann", "--client", "bo", "--budget", '{"dollars": 2}')
    store = federation.stack.store
    store.put_json(TrainingKeys("t").record("t-00002"), RECORD)
    change(federation, invitation=INVITATION, completed=2, dollars=0.5)

    def arrive() -> None:
        body = reference.encode(
            {"w": np.zeros(1, "f4")}, {"num_samples": "1", "metrics": '{"loss": 0.25}'}
        )
        store.put_bytes(RoundKeys("t-00003").update("bo"), body)

    script: list[Callable[[], object]] = [
        lambda: None,
        arrive,
        lambda: change(federation, status="ended", cause="over", invitation=None),
    ]
    monkeypatch.setattr(time, "sleep", lambda _: script.pop(0)())
    first, second, last = run("train", "watch", "t").output.splitlines()
    assert first.startswith(
        "running: 2 rounds completed; round t-00003: 0 of 2 updates, waits for ann and bo; "
        "$0.5000 of $2.0000; left: 3 rounds: about "
    )
    assert first.endswith("and $0.7500; of the budget $1.5000")
    assert "round t-00003: 1 of 2 updates, loss 0.25, waits for ann; " in second
    assert last == "ended: 2 rounds completed; $0.5000 of $2.0000; over"
    assert run("train", "watch", "t", "--quiet").output == ""


def test_while_the_last_version_is_evaluated_no_round_is_left(
    run: Run, federation: Federation
) -> None:
    run(*START, "--client", "ann", "--client", "bo")
    federation.stack.store.put_json(TrainingKeys("t").record("t-00002"), RECORD)
    change(federation, completed=5, dollars=0.5)
    assert "left    the last evaluation" in run("train", "show", "t").output


def test_taking_back_a_ticket_says_whether_there_was_one(run: Run, federation: Federation) -> None:
    run(*START)
    federation.join("t", "ann")
    federation.stack.store.put_bytes(TrainingKeys("t").notice("ann"), b"{}")
    first, again = (run("train", "revoke", "t", "ann").output for _ in range(2))
    assert first == "the ticket of ann is not renewed any more\n"
    assert again == "ann has no ticket, and is not invited any more\n"
    assert federation.training("t").members() == []
    assert "there is no training 'x'" in run("train", "revoke", "x", "ann").output


def test_an_operator_asks_for_a_pause_and_for_the_end(run: Run, federation: Federation) -> None:
    run(*START)
    assert "pauses when its round has ended" in run("train", "pause", "t", "--reason", "new").output
    assert federation.training("t").state().request == "pause"
    assert "ends when its round" in run("train", "stop", "t", "--reason", "old").output
    assert (federation.training("t").state().request) == "stop"
    change(federation, status="paused")
    assert "has ended" in run("train", "stop", "t", "--reason", "old").output
    assert federation.training("t").state().cause == "stopped: old"
    result = run("train", "resume", "t")
    assert result.exit_code == 1
    assert "training 't' has ended: stopped: old" in result.output
    assert "give a reason" in run("train", "stop", "t", "--reason", " ").output


def test_resuming_starts_one_further_execution_however_often_it_is_asked_for(
    run: Run, federation: Federation
) -> None:
    run(*START)
    change(federation, status="paused", step=7, version=4)
    machine: Any = federation.stack.trainings
    for _ in range(2):
        assert run("train", "resume", "t").output == "training t goes on\n"
    assert [json.loads(payload) for payload in machine.started[1:]] == [
        {"training": "t", "run": 2, "step": 7}
    ]
    state = federation.training("t").state()
    assert (state.status, state.run, state.version) == ("running", 2, None)


def test_a_training_whose_execution_was_stopped_says_so_and_is_resumed(
    run: Run, federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*START)
    machine: Any = federation.stack.trainings
    machine.executions["t"] = Execution("ABORTED", {}, "", "by hand")
    shown = " ".join(run("train", "show", "t").output.split())
    assert "execution t has ended (" in shown
    assert "gradshard train resume continues it" in shown
    monkeypatch.setattr(time, "sleep", lambda _: None)
    watched = run("train", "watch", "t")
    assert watched.exit_code == 3
    assert "training 't' does not go on: execution t has ended (" in watched.output
    assert run("train", "resume", "t").exit_code == 0
    assert "stuck" not in run("train", "show", "t").output
    assert read_state(federation.stack.store, TrainingKeys("t")).run == 2  # type: ignore[union-attr]


def test_members_join_and_leave_and_the_end_is_told(federation: Federation) -> None:
    training = federation.train("t", rounds=3, server_optimizer="fedavg")
    for _ in range(1000):
        federation.join("t", "ann")
    federation.join("t", "state.json")
    assert training.members() == ["ann", "state.json"]
    federation.leave("t", "ann")
    federation.leave("t", "ann")
    assert training.members() == ["state.json"]
    change(federation, status="ended", cause="over")
    with pytest.raises(TrainingStateError, match="has ended: over"):
        federation.join("t", "ann")


def test_removing_is_for_trainings_that_have_ended(federation: Federation) -> None:
    training: Training = federation.train("t", rounds=3, server_optimizer="fedavg")
    with pytest.raises(TrainingStateError, match="is running: stop it first"):
        training.remove()
    change(federation, status="ended")
    training.remove()
    assert list(federation.trainings()) == []


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("import sys; sys.exit(7)", "ended with code 7"),
        ("pass", "the program did not write result.json"),
        ("open('result.json', 'w').write('{')", "result.json is not JSON"),
        ("open('result.json', 'w').write('{}')", "result.json has no samples"),
        ("open('result.json', 'w').write('3')", "result.json is not {"),
    ],
)
def test_a_program_that_fails_ends_join_with_the_reason(
    run: Run, federation: Federation, program: str, why: str, tmp_path: Path
) -> None:
    run(*START, "--client", "ann")
    file = tmp_path / "program.py"
    file.write_text(program)
    change(federation, invitation=replace(INVITATION, is_evaluation=True, version=1))
    result = run("join", "t", "ann", "--", sys.executable, str(file))
    assert result.exit_code == 1
    assert "ann evaluates for round t-00003" in result.output
    assert why in result.output


def test_a_relative_path_of_a_program_is_that_of_the_shell(
    run: Run, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*START, "--client", "ann")
    program = tmp_path / "train.sh"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    change(federation, invitation=replace(INVITATION, is_evaluation=True, version=1))
    result = run("join", "t", "ann", "--", "./train.sh")
    assert "'./train.sh' ended with code 7" in result.output


def test_a_buffered_training_shows_its_version_its_buffer_and_staleness(
    federation: Federation, run: Run
) -> None:
    started = run(
        *START, "--mode", "buffered", "--updates-per-version", "4", "--max-staleness", "3"
    )
    assert started.exit_code == 0, started.output
    assert federation.training("t").spec().staleness == 3
    keys, store = TrainingKeys("t"), federation.stack.store
    everybody = replace(INVITATION, clients=(), awaited=4, version=5)
    change(federation, invitation=everybody, version=5, counted={"4": {"cy": "d41d8cd9"}})
    for client, version in (("ann", 5), ("ann", 4), ("bo", 3), ("cy", 4), ("dan", 1), ("eve", 9)):
        store.put_bytes(keys.inbox(version).update(client), b"")
    record = RECORD | {"clients": [], "awaited": 4, "staleness": {"ann": 0, "bo": 3}}
    store.put_json(keys.record("t-00002"), record)
    text = " ".join(run("train", "show", "t").output.split())
    assert "version 5" in text
    assert "waiting 2 of 4, staleness 1.0, at most 2" in text
    assert "round t-00003, everybody trains" in text
    assert "1.5, at most 3" in text
    assert "1 of 4" in text
    shown = json.loads(run("train", "show", "t", "--json").output)
    waiting = [(found["client"], found["version"]) for found in shown["waiting"]]
    assert waiting == [("ann", 5), ("bo", 3)]
    change(federation, status="ended", cause="over")
    line = run("train", "watch", "t").output
    assert "; version 5, 2 of 4, staleness 1.0, at most 2 wait" in line
    assert json.loads(run("train", "watch", "t", "--json").output)["waiting"] == 2


def test_join_compresses_updates_as_told(
    run: Run, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}
    done = SimpleNamespace(state=SimpleNamespace(cause="over"), rejected=(1, 2))

    def participate(*_: Any, **more: Any) -> Any:
        given.update(more)
        return done

    monkeypatch.setattr(federation, "participate", participate)
    residual = tmp_path / "residual"
    options = ("--codec", "topk", "--codec-fraction", 0.02, "--residual", residual)
    joined = run("join", "t", "ann", *options, "--", "true")
    assert joined.output == "training t has ended: over; 2 updates did not count\n"
    assert (given["codec"].codec, given["codec"].fraction) == ("topk", 0.02)
    assert given["codec"].residual is not None
    assert run("join", "t", "ann", "--", "true").exit_code == 0
    assert given["codec"] is None
    assert run("join", "t", "ann", "--codec-seed", 3, "--", "true").exit_code == 2
