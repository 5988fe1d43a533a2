"""Trainings of the deployed application, through the client library."""

import contextlib
import os
import random
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard import Federation
from gradshard.client.external_program import Program
from gradshard.client.training import Training
from gradshard.client.training_loop import Participation
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import RoundFailed, TrainingFailed, WaitTimeoutError
from gradshard_core.formats.object_keys import TrainingKeys
from gradshard_core.records.training_state import Invitation, TrainingState, change_state
from tests import reference
from tests.e2e.deployed import Deployed, until

pytestmark = pytest.mark.e2e

SECONDS = 240
"""How long a training may take on a busy machine before its test gives up."""

KILLED_ROUNDS = int(os.environ.get("KILLED_ROUNDS", "4"))
"""Rounds of the training whose functions are killed."""

KILLS_PER_ROUND = 3
KILLS = KILLS_PER_ROUND * KILLED_ROUNDS
"""Functions that are killed in it."""

EVERY_ROUND = {
    *("OpenRound", "CollectUpdate", "PlanRound", "AggregateShard", "FinalizeRound"),
    *("AdvanceTraining", "WriteNotices"),
}
"""The functions that run in each round; of many rounds all of them are killed."""

Weights = dict[str, Any]

FIRST = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4), "b": np.zeros(4, np.float32)}


def train_as(client: str) -> Callable[[Weights, Invitation], Any]:
    """A client's training: a step that depends on model, client and round, and on nothing else."""

    def train(weights: Weights, invitation: Invitation) -> Any:
        seed = [invitation.number, *client.encode()]
        rng = np.random.default_rng(seed)
        trained = {
            name: (0.9 * tensor + rng.normal(size=tensor.shape)).astype(tensor.dtype)
            for name, tensor in weights.items()
        }
        return trained, 10 + len(client), {"loss": 1 / invitation.number}

    return train


def evaluate(weights: Weights, invitation: Invitation) -> Any:
    return {"accuracy": invitation.number / 10, "norm": float(np.abs(weights["w"]).sum())}, 7


@contextmanager
def taking_part(
    federation: Federation, training: str, clients: Sequence[str]
) -> Iterator[dict[str, Future[Participation]]]:
    with ThreadPoolExecutor(len(clients)) as pool:
        yield {
            client: pool.submit(
                federation.participate, client, train_as(client), evaluate, training=training
            )
            for client in clients
        }


def expected(clients: Sequence[str], rounds: int) -> Weights:
    """The model after the rounds, from the definition of FedAvg."""
    model = {name: tensor.copy() for name, tensor in FIRST.items()}
    for number in range(1, rounds + 1):
        invitation = Invitation("", number, 0, False, tuple(clients), len(clients), 1, {})
        sent = {
            c: train_as(c)({n: t.copy() for n, t in model.items()}, invitation) for c in clients
        }
        total = sum(sent[c][1] for c in clients)
        for name, tensor in model.items():
            mean: Any = None
            for client in sorted(clients):
                share = np.float32(sent[client][1] / total)
                term = share * (sent[client][0][name] - tensor)
                mean = term if mean is None else mean + term
            model[name] = tensor + np.float32(1) * mean
    return model


def test_a_training_runs_by_itself_to_the_bits_of_a_loop(federation: Federation) -> None:
    clients = ["ann", "bo"]
    federation.model("alone").put(FIRST)
    training = federation.train(
        "alone",
        rounds=3,
        clients=clients,
        server_optimizer={"optimizer": "fedavg", "model": "alone"},
        evaluate_every=2,
        poll_interval=0.2,
    )
    with taking_part(federation, "alone", clients) as loops:
        state = training.wait(SECONDS)
    assert state.cause == "all 3 rounds have completed"
    assert (state.completed, state.evaluated, state.version) == (3, 3, 4)
    for loop in loops.values():
        assert loop.result().trained == (1, 2, 3)
        assert loop.result().evaluated == (2, 3)
    model = federation.model("alone").fetch()
    for name, tensor in expected(clients, 3).items():
        assert model[name].tobytes() == tensor.tobytes(), name
    records = {record["round_id"]: record for record in training.records()}
    assert [*records] == [
        "alone-00001",
        "alone-00002",
        "alone-00002-eval",
        "alone-00003",
        "alone-00003-eval",
    ]
    assert records["alone-00002"]["metrics"] == {"loss": 0.5}
    assert records["alone-00003-eval"]["metrics"]["accuracy"] == pytest.approx(0.3)
    assert state.dollars > 0


def test_stop_now_cancels_a_round_of_which_nobody_answers(federation: Federation) -> None:
    federation.model("silent").put(FIRST)
    training = federation.train(
        "silent",
        rounds=3,
        clients=["ann", "bo"],
        server_optimizer={"optimizer": "fedavg", "model": "silent"},
        timeout=10 * SECONDS,
    )
    invitation = until(lambda: training.state().invitation)
    under_way = federation.round(invitation.round_id)
    # The invitation is written before the round begins.
    until(lambda: federation.stack.store.head(under_way.keys.spec))
    training.stop("nobody is there", now=True)
    state = training.wait(SECONDS)
    assert (state.cause, state.completed) == ("stopped: nobody is there", 0)
    assert under_way.status()["manifest"]["cause"] == "cancelled: nobody is there"


def test_stop_now_cancels_a_round_that_is_about_to_begin(federation: Federation) -> None:
    federation.model("hasty").put(FIRST)
    training = federation.train(
        "hasty",
        rounds=3,
        server_optimizer={"optimizer": "fedavg", "model": "hasty"},
        timeout=7 * 24 * 3600,  # its execution waits for members meanwhile
    )
    waits = until(lambda: state if (state := training.state()).waits_until else None)
    later = "hasty-of-an-invitation"
    invitation = Invitation(later, 1, 0, False, ("ann", "bo"), 2, 1, {})
    invited = replace(waits, invitation=invitation)
    change_state(training._stack.store, training.keys, lambda _: invited)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(training.stop, "not begun", now=True)
        with pytest.raises(TimeoutError):
            stopped.result(1)
        with contextlib.suppress(RoundFailed):  # it may be cancelled while it opens
            federation.open_round(later, clients=["ann", "bo"], timeout=10 * SECONDS)
        stopped.result(SECONDS)
    assert federation.round(later).status()["manifest"]["cause"] == "cancelled: not begun"
    change_state(training._stack.store, training.keys, lambda _: waits)
    training.stop("seen")
    assert training.wait(SECONDS).status == "ended"


def test_a_training_that_waits_for_its_next_round_pauses_and_ends_when_it_is_asked_to(
    federation: Federation,
) -> None:
    federation.model("lonely").put(FIRST)
    training = federation.train(
        "lonely",
        rounds=3,
        server_optimizer={"optimizer": "fedavg", "model": "lonely"},
        timeout=7 * 24 * 3600,  # it looks every 2.8 hours who has joined
    )
    until(lambda: training.state().waits_until)
    training.pause("nobody comes")
    assert until(lambda: training.state().cause) == "paused: nobody comes"
    training.resume()
    until(lambda: training.state().waits_until)
    training.stop("nobody comes")
    state = training.wait(SECONDS)
    assert (state.cause, state.completed) == ("stopped: nobody comes", 0)


def test_a_training_whose_execution_was_stopped_by_hand_ends_when_it_is_stopped(
    federation: Federation, deployed: Deployed
) -> None:
    federation.model("orphaned").put(FIRST)
    training = federation.train(
        "orphaned",
        rounds=3,
        clients=["ann", "bo"],
        server_optimizer={"optimizer": "fedavg", "model": "orphaned"},
        timeout=10 * SECONDS,
    )
    invited = until(lambda: training.state().invitation)
    under_way = federation.round(invited.round_id)
    # The invitation is written before the round begins.
    until(lambda: federation.stack.store.head(under_way.keys.spec))
    machine = deployed.outputs["FederationStateMachineArn"]
    execution = f"{machine.replace(':stateMachine:', ':execution:')}:orphaned"
    deployed.states.stop_execution(executionArn=execution)
    training.stop("not needed")
    state = training.wait(SECONDS)
    assert (state.cause, state.completed) == ("stopped: not needed", 0)
    under_way.cancel("seen")  # its execution, if the engine has let it run on


def test_a_training_ends_with_the_same_bits_though_functions_are_killed_on_the_way(
    federation: Federation, engine: Engine
) -> None:
    clients = ["ann", "bo", "cy"]
    federation.model("killed").put(FIRST)
    training = federation.train(
        "killed",
        rounds=KILLED_ROUNDS,
        clients=clients,
        min_clients=3,
        server_optimizer={"optimizer": "fedavg", "model": "killed"},
        evaluate_every=2,
        poll_interval=0.2,
        repeats=20,
        repeat_after=1,
        # If all attempts at an update's event are killed, the deadline carries the round.
        timeout=90,
    )
    with taking_part(federation, "killed", clients), killing_functions(engine, training) as killed:
        state = last_of(training)
    found = (state.status, state.completed, state.evaluated)
    assert found == ("ended", KILLED_ROUNDS, KILLED_ROUNDS)
    print(f"killed {killed.total()} functions: {dict(killed)}")
    # An idle machine is done before it comes to all of them.
    assert killed.total() >= KILLS // 4
    assert KILLED_ROUNDS < 20 or {*killed} >= EVERY_ROUND
    model = federation.model("killed").fetch()
    for name, tensor in expected(clients, KILLED_ROUNDS).items():
        assert model[name].tobytes() == tensor.tobytes(), name


@contextmanager
def killing_functions(engine: Engine, training: Training) -> Iterator[Counter[str]]:
    """Kill functions at random moments, of each kind about as often, and count them."""
    over, killed, rng = threading.Event(), Counter[str](), random.Random(0)  # noqa: S311 - no secret

    def kill() -> None:
        while not over.wait(0.5):
            # So many for each round: on a busy machine nothing gets done between two of them.
            if killed.total() >= min(KILLS, KILLS_PER_ROUND * (training.state().completed + 2)):
                continue
            workers = functions_of(engine)
            if workers:
                least = min(killed[name] for name in workers.values())
                seldom = [pid for pid, name in workers.items() if killed[name] == least]
                victim = rng.choice(sorted(seldom))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    killed[workers[victim]] += 1

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def last_of(training: Training) -> TrainingState:
    """Wait for the end, as an operator does.

    A function that dies twice in a row pauses the training. If the one that pauses it dies, too,
    its execution has failed, and it is resumed as well; that does nothing if it goes on.
    """
    until = time.monotonic() + SECONDS * max(2, KILLED_ROUNDS // 4)
    while True:
        with contextlib.suppress(WaitTimeoutError, TrainingFailed):
            *_, state = training.watch(30)
            if state.status == "ended":
                return state
        assert time.monotonic() < until, training.state()
        training.resume()


def functions_of(engine: Engine) -> dict[int, str]:
    """Return the processes that run functions, the engine's children, with their names."""
    pids: list[int] = []
    for path in Path(f"/proc/{engine.pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # its threads come and go
            pids += map(int, path.read_text().split())
    found: dict[int, str] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode()
            name = re.search("AWS_LAMBDA_FUNCTION_NAME=gradshard-([A-Za-z]+)Function", environment)
            found[pid] = name[1] if name else "other"
    return found


def test_a_program_in_another_language_takes_part(
    federation: Federation, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import json, shutil\n"
        "invitation = json.load(open('invitation.json'))\n"
        "shutil.copy('model.safetensors', 'trained.safetensors')\n"
        "result = {'samples': 5, 'metrics': {'round': invitation['number']}}\n"
        "json.dump(result, open('result.json', 'w'))\n"
    )
    federation.model("program").put(FIRST)
    training = federation.train(
        "program",
        rounds=1,
        clients=["ann"],
        server_optimizer={"optimizer": "fedavg", "model": "program"},
        evaluate_every=1,
        poll_interval=0.2,
    )
    runner = Program([sys.executable, str(program)])
    done = federation.participate("ann", runner.train, runner.evaluate, training="program")
    assert (done.trained, done.evaluated) == ((1,), (1,))
    assert [record["metrics"] for record in training.records()] == [{"round": 1}, {"round": 1}]
    model = federation.model("program").fetch()
    assert {n: t.tobytes() for n, t in model.items()} == {n: t.tobytes() for n, t in FIRST.items()}
    assert capfd.readouterr().err == ""


def test_a_buffered_training_counts_every_update_once_and_can_be_replayed(
    federation: Federation, engine: Engine
) -> None:
    """Clients of different speeds, functions that are killed, and manifests that name all."""
    paces = {"ann": 0.1, "bo": 0.4, "cy": 2.0, "dan": 6.0}
    federation.model("buffered").put(FIRST)
    training = federation.train(
        "buffered",
        mode="buffered",
        updates_per_version=2,
        rounds=6,
        clients=[*paces],
        server_optimizer={"optimizer": "fedavg", "model": "buffered"},
        evaluate_every=3,
        poll_interval=0.2,
        repeats=20,
        repeat_after=1,
        timeout=90,
    )

    def train(client: str) -> Callable[[Weights, Invitation], Any]:
        def slowly(weights: Weights, invitation: Invitation) -> Any:
            time.sleep(paces[client])
            return train_as(client)(weights, invitation)

        return slowly

    with ThreadPoolExecutor(len(paces)) as pool:
        loops = {
            client: pool.submit(
                federation.participate, client, train(client), evaluate, training="buffered"
            )
            for client in paces
        }
        inbox = TrainingKeys("buffered").inbox(99)
        federation.stack.store.put_bytes(inbox.update("ann"), b"junk")
        with killing_functions(engine, training):
            state = last_of(training)
    assert (state.completed, state.evaluated, state.version) == (6, 6, 7)
    rejection = federation.stack.store.get_json(inbox.rejection("ann"))
    # Unless all attempts at its event were killed.
    assert rejection is None or "version 99 of the model does not" in rejection["reason"]
    records = [record for record in training.records() if not record["is_evaluation"]]
    counted = [
        (client, record["base_version"] - staleness)
        for record in records
        for client, staleness in record["staleness"].items()
    ]
    assert len(set(counted)) == len(counted) == 12
    model = federation.model("buffered")
    for record in filter(lambda record: record["is_completed"], records):
        round_ = federation.round(record["round_id"])
        assert round_.verify(sample=1.0).is_correct
        manifest = round_.status()["manifest"]
        expected = replayed(federation, manifest, model.fetch(version=record["base_version"]))
        found = model.fetch(version=record["version"])
        for name, tensor in expected.items():
            assert found[name].tobytes() == tensor.tobytes(), (record["round_id"], name)
    assert all(loop.result().trained for loop in loops.values())


def replayed(federation: Federation, manifest: dict[str, Any], model: Weights) -> Weights:
    """The next version of the model, from the updates that a manifest names."""
    total = sum(entry["samples"] for entry in manifest["contributors"])
    means: Weights = {}
    for entry in sorted(manifest["contributors"], key=lambda entry: entry["client"]):
        body = federation.stack.store.get_bytes(entry["key"]) or b""
        weight = np.float32(entry["samples"] / total * (1 / np.sqrt(1 + entry["staleness"])))
        for name, tensor in reference.decode(body).items():
            term = weight * tensor
            means[name] = means[name] + term if name in means else term
    return {name: tensor + np.float32(1) * means[name] for name, tensor in model.items()}
