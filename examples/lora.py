"""Fine-tune with LoRA adapters, which are small updates, and average their products exactly.

A network has learnt five of scikit-learn's digits. Ten clients teach it all ten: they train an
adapter B·A of each layer (Hu et al. 2021, https://arxiv.org/abs/2106.09685), or the layers
themselves. Prints what clients send and how well the model does.

The average of products is not the product of averages, so averaging A and B is not exact. If all
clients have the same A, which they do not train (Sun et al. 2024,
https://arxiv.org/abs/2403.12313), it is: the sum of pᵢ·(Bᵢ·A) is (the sum of pᵢ·Bᵢ)·A.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from gradshard.updates.upload_source import TensorContent
from stragglers import network, program, splits
from stragglers.backends import InMemory
from stragglers.curves import Floats

SIZES: Final = (64, 64, 10)
FIRST_DIGITS: Final = 5
LEARNING_RATE: Final = 0.1
BATCH_SIZE: Final = 16

Parameters = network.Parameters


class Way(NamedTuple):
    """A way to train: the ends of the names of trained tensors, and the rank of the adapters."""

    title: str
    trained: tuple[str, ...]
    rank: int = 0


FULL: Final = Way("whole layers", (".weight", ".bias"))
BOTH: Final = Way("A and B of rank 4", (".A", ".B", ".bias"), 4)
SHARED: Final = Way("B of rank 4, with the same A", (".B", ".bias"), 4)
WIDER: Final = Way("B of rank 10, with the same A", (".B", ".bias"), 10)
WAYS: Final = (FULL, BOTH, SHARED, WIDER)


def with_adapters(model: Parameters, rank: int, seed: int) -> Parameters:
    """Return a model with an adapter of each weight; B is zero, so it does what it did."""
    rng, found = np.random.default_rng(seed), dict(model)
    for name, weight in model.items():
        if name.endswith(".weight"):
            layer = name.removesuffix(".weight")
            outputs, inputs = weight.shape
            down = rng.standard_normal((rank, inputs)) * 2 / np.sqrt(inputs)
            found[f"{layer}.A"] = down.astype(np.float32)
            found[f"{layer}.B"] = np.zeros((outputs, rank), np.float32)
    return found


def merged(model: Parameters) -> Parameters:
    """Return the network's parameters: each weight with its adapter's product added."""
    found = {name: array for name, array in model.items() if name[-2:] not in {".A", ".B"}}
    for name in model:
        if name.endswith(".A"):
            layer = name.removesuffix(".A")
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + model[f"{layer}.B"] @ model[name]
    return found


def train(
    model: Parameters, images: Floats, labels: Floats, trained: tuple[str, ...], seed: int
) -> Parameters:
    """Return the parameters after an epoch in which those with such names were trained."""
    model, order = dict(model), np.random.default_rng(seed).permutation(len(labels))
    for start in range(0, len(order), BATCH_SIZE):
        batch = order[start : start + BATCH_SIZE]
        gradients = dict(network.backpropagate(merged(model), images[batch], labels[batch]))
        for name, gradient in list(gradients.items()):
            layer = name.removesuffix(".weight")
            if f"{layer}.A" in model:
                gradients[f"{layer}.B"] = gradient @ model[f"{layer}.A"].T
                gradients[f"{layer}.A"] = model[f"{layer}.B"].T @ gradient
        for name, gradient in gradients.items():
            if name.endswith(trained):
                model[name] = (model[name] - LEARNING_RATE * gradient).astype(np.float32)
    return model


def product_error(
    updates: Mapping[str, Parameters], samples: Mapping[str, int], average: Parameters
) -> float:
    """Return how far the averaged adapters' products are from the average of the products."""
    total, error, norm = sum(samples.values()), 0.0, 0.0
    for name in average:
        if name.endswith(".B"):
            a = name.removesuffix(".B") + ".A"
            exact = sum(
                samples[client] / total * update[name].astype(float) @ update[a]
                for client, update in updates.items()
            )
            error += float(np.linalg.norm(average[name].astype(float) @ average[a] - exact) ** 2)
            norm += float(np.linalg.norm(exact) ** 2)
    return float(np.sqrt(error / norm)) if norm else 0.0


def run(way: Way, clients: int, rounds: int, seed: int) -> tuple[float, float]:
    """Return the accuracy after all rounds, and the error of the first round's products."""
    digits = splits.load(splits.NON_IID, clients, seed)
    model = network.initialise(SIZES, seed)
    before = [np.flatnonzero(s.labels < FIRST_DIGITS) for s in digits.clients.values()]
    images, labels = (
        np.concatenate(
            [getattr(s, field)[i] for s, i in zip(digits.clients.values(), before, strict=True)]
        )
        for field in ("images", "labels")
    )
    model = network.train(model, images, labels, network.Training(20), seed)
    if way is not FULL:
        model = with_adapters(model, way.rank, seed)
    backend, error = InMemory(), 0.0
    samples = {client: len(found.labels) for client, found in digits.clients.items()}
    for number in range(rounds):
        sent: dict[str, Parameters] = {}
        whole: dict[str, Parameters] = {}
        for index, (client, (own, shown)) in enumerate(digits.clients.items()):
            after = train(
                model, own, shown, way.trained, (seed * rounds + number) * clients + index
            )
            whole[client] = after
            sent[client] = {n: after[n] for n in after if n.endswith(way.trained)}
        model = model | backend.average(sent, samples)
        if number == 0:
            error = product_error(whole, samples, model)
    return network.accuracy(merged(model), *digits.test), error


def sent_bytes(way: Way) -> int:
    """Return the bytes of an update's tensors."""
    model = with_adapters(network.initialise(SIZES, 0), way.rank, 0)
    sent = {name: array for name, array in model.items() if name.endswith(way.trained)}
    return TensorContent(sent, samples=1).layout.nbytes


def main() -> int:
    """Run the program and return the process's exit code."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    options.add_argument("--clients", type=int, default=10, help="number of clients")
    options.add_argument("--rounds", type=int, default=30, help="rounds of each training")
    options.add_argument("--seeds", type=int, default=5, help="trainings of each kind")
    given = options.parse_args()
    rows = []
    with program.ticker(len(WAYS) * given.seeds) as ticker:
        for way in WAYS:
            runs = []
            for seed in range(given.seeds):
                runs.append(run(way, given.clients, given.rounds, seed))
                ticker.done(way.title)
            accuracies, errors = zip(*runs, strict=True)
            exact = "" if way is FULL else f"{np.median(errors):.1e}"
            rows.append(
                (way.title, f"{sent_bytes(way):,}", program.percent(list(accuracies)), exact)
            )
    program.table(
        "What clients train",
        ("", "bytes sent", "accuracy", "error of the products"),
        rows,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
