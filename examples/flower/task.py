"""The clients' task: train the network of examples/digits, or a large model of random numbers."""

import os
import sys
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord

sys.path.append(str(Path(__file__).resolve().parents[1] / "digits"))

import data
import network
from data import Samples
from network import Training

Parameters = dict[str, npt.NDArray[Any]]

SEED: Final = 0
CLIENTS: Final = int(os.environ.get("EXAMPLE_CLIENTS", "8"))
MODEL_MB: Final = int(os.environ.get("EXAMPLE_MODEL_MB", "0"))
"""0 for the network of examples/digits."""

_SIZES: Final = (64, 64, 32, 10)
_LOCAL: Final = Training(epochs=3, batch_size=16, learning_rate=0.05, momentum=0.9)
_UNEVENNESS: Final = 0.5
_LAYER_MB: Final = 8


def record_of(model: Parameters) -> ArrayRecord:
    """Return a model as Flower sends it."""
    return ArrayRecord({name: Array(array) for name, array in model.items()})


def model_of(record: ArrayRecord) -> Parameters:
    """Return what Flower sent as a model, whose arrays are its own."""
    return {name: array.numpy() for name, array in record.items()}


def initial() -> Parameters:
    """Return the model that training begins with."""
    if not MODEL_MB:
        return network.initialise(_SIZES, SEED)
    rng = np.random.default_rng(SEED)
    return {
        f"layer{number}.weight": rng.standard_normal((_LAYER_MB, 1 << 18), np.float32)
        for number in range(MODEL_MB // _LAYER_MB)
    }


def train(model: Parameters, partition: int, server_round: int) -> tuple[Parameters, int]:
    """Return a client's model after a round of training, and its number of samples."""
    seed = 1000 * server_round + partition
    if MODEL_MB:
        rng = np.random.default_rng(seed)
        for name in model:
            model[name] += rng.standard_normal(model[name].shape, np.float32) * np.float32(0.01)
        return model, 100 + 7 * partition
    samples = _clients()[partition]
    trained = network.train(model, samples.images, samples.labels, _LOCAL, seed)
    return trained, len(samples.labels)


def evaluate(model: Parameters, partition: int) -> tuple[float, int]:
    """Return the share of a client's images that the model recognises, and their number."""
    samples = _clients()[partition]
    return network.accuracy(model, samples.images, samples.labels), len(samples.labels)


def accuracy(model: Parameters) -> float:
    """Return the share of the images that are recognised, of those nobody trains on."""
    images, labels = data.load(SEED)[1]
    return network.accuracy(model, images, labels)


@cache
def _clients() -> list[Samples]:
    train, _ = data.load(SEED)
    parts = data.split(train.labels, CLIENTS, _UNEVENNESS, SEED)
    return [Samples(train.images[part], train.labels[part]) for part in parts]
