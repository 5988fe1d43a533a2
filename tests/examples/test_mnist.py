"""The unattended example, on images that are made up: the real ones are in no dependency."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "mnist"))

import mnist
from gradshard_core.records.training_state import Invitation

SETTINGS = {"epochs": 1, "learning_rate": 0.1}


@pytest.fixture(scope="module")
def samples() -> mnist.Samples:
    """A bright patch at a place of its own for each digit, and noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(10, size=600)
    images = rng.uniform(0, 0.3, size=(600, 784)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        image[70 * label : 70 * label + 60] += 0.7
    return mnist.Samples(images, labels)


def invitation(number: int) -> Invitation:
    return Invitation("mnist", number, 0, False, (), 0, 1, SETTINGS)


def test_every_image_is_at_one_client(samples: mnist.Samples) -> None:
    parts = mnist.split(samples.labels, 4)
    assert sorted(np.concatenate(parts)) == list(range(600))


def test_training_again_gives_the_same_bits(samples: mnist.Samples) -> None:
    model = {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}
    client = mnist.Client(1, samples, 4)
    first, again = (client.train(model, invitation(3)) for _ in range(2))
    assert {n: t.tobytes() for n, t in first[0].items()} == {
        n: t.tobytes() for n, t in again[0].items()
    }
    assert {n: t.dtype for n, t in first[0].items()} == dict.fromkeys(model, np.float32)


def test_averages_of_the_clients_recognise_the_digits(samples: mnist.Samples) -> None:
    model = {"weight": np.zeros((784, 10), np.float32), "bias": np.zeros(10, np.float32)}
    clients = [mnist.Client(number, samples, 4) for number in range(4)]
    for number in range(1, 11):
        sent = [client.train(model, invitation(number)) for client in clients]
        total = sum(entry[1] for entry in sent)
        model = {n: sum(np.float32(k / total) * t[n] for t, k, _ in sent) for n in model}
    found = [client.evaluate(model, invitation(10)) for client in clients]
    accuracy = sum(m["accuracy"] * n for m, n in found) / sum(n for _, n in found)
    assert accuracy > 0.9
