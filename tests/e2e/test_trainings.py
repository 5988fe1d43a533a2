"""Trainings of the deployed application, through the client library."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from gradshard import Federation
from gradshard.client.participation import Participation
from gradshard_core.records.training_state import Invitation
from tests.e2e.deployed import Deployed

pytestmark = pytest.mark.e2e

SECONDS = 240
"""How long a training may take on a busy machine before its test gives up."""

Weights = dict[str, Any]
COUNTER = itertools.count()

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


def test_a_training_runs_by_itself_to_the_bits_of_a_loop(
    federation: Federation, deployed: Deployed
) -> None:
    clients = ["ann", "bo"]
    federation.model("loop").put(FIRST)
    training = federation.train(
        "loop",
        rounds=3,
        clients=clients,
        server_optimizer={"optimizer": "fedavg", "model": "loop"},
        evaluate_every=2,
        poll_seconds=0.2,
    )
    with taking_part(federation, "loop", clients) as loops:
        state = training.wait(SECONDS)
    assert state.cause == "all 3 rounds have completed"
    assert (state.completed, state.evaluated, state.version) == (3, 3, 4)
    for loop in loops.values():
        assert loop.result().trained == (1, 2, 3)
        assert loop.result().evaluated == (2, 3)
    model = federation.model("loop").fetch()
    for name, tensor in expected(clients, 3).items():
        assert model[name].tobytes() == tensor.tobytes(), name
    records = {record["round_id"]: record for record in training.records()}
    assert [*records] == [
        "loop-00001",
        "loop-00002",
        "loop-00002-eval",
        "loop-00003",
        "loop-00003-eval",
    ]
    assert records["loop-00002"]["metrics"] == {"loss": 0.5}
    assert records["loop-00003-eval"]["metrics"]["accuracy"] == pytest.approx(0.3)
    assert state.dollars > 0
