"""The parts of examples/digits that need no engine."""

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "digits"))

import data
import demo
import network
import plain_numpy
import resnet18
from network import Training
from plain_numpy import Update
from training import FederatedTraining

LABELS = np.repeat(np.arange(10), 40)


@pytest.mark.parametrize("sizes", [(5, 4, 3), (5, 6, 4, 3)])
def test_gradients_are_those_of_finite_differences(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(7)
    # Double precision: a difference of two nearly equal float32 losses would be mostly rounding.
    parameters = {k: v.astype(np.float64) for k, v in network.initialise(sizes, seed=1).items()}
    images, labels = rng.standard_normal((8, sizes[0])), rng.integers(0, sizes[-1], 8)

    gradients = dict(network.backpropagate(parameters, images, labels))

    assert gradients.keys() == parameters.keys()
    step = 1e-6
    for name, gradient in gradients.items():
        expected = np.empty_like(gradient)
        for index in np.ndindex(gradient.shape):
            losses = []
            for sign in (1, -1):
                moved = parameters | {name: parameters[name].copy()}
                moved[name][index] += sign * step
                losses.append(network.loss(moved, images, labels))
            expected[index] = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8, err_msg=name)


def test_gradients_come_from_the_output_to_the_input() -> None:
    parameters = network.initialise((4, 3, 2), seed=0)

    names = [n for n, _ in network.backpropagate(parameters, np.ones((1, 4)), np.array([1]))]

    assert names == ["layer1.weight", "layer1.bias", "layer0.weight", "layer0.bias"]


def test_training_reduces_the_loss_and_leaves_its_input_alone() -> None:
    samples, unseen = data.load(seed=0)
    before = network.initialise((64, 16, 10), seed=0)
    kept = {name: array.copy() for name, array in before.items()}

    after = network.train(before, *samples, Training(epochs=2), seed=0)

    assert network.loss(after, *samples) < 0.5 * network.loss(before, *samples)
    assert network.accuracy(after, *unseen) > 0.8
    assert all(array.dtype == np.float32 for array in after.values())
    assert all(np.array_equal(before[name], kept[name]) for name in before)


def test_training_with_the_same_seed_gives_the_same_bits() -> None:
    samples, _ = data.load(seed=0)
    start = network.initialise((64, 8, 10), seed=3)

    once, again = (network.train(start, *samples, Training(epochs=1), seed=5) for _ in range(2))

    assert all(np.array_equal(once[name], again[name]) for name in once)


def test_digits_are_loaded_as_float32_from_0_to_1_and_every_one_is_tested() -> None:
    train, test = data.load(seed=0)

    assert len(train.labels) + len(test.labels) == 1797
    assert train.images.dtype == np.float32
    assert (train.images.min(), train.images.max()) == (0, 1)
    assert set(test.labels) == set(train.labels) == set(range(10))


@pytest.mark.parametrize("alpha", [0.01, 0.2, 100.0])
@pytest.mark.parametrize("clients", [1, 5, 64])
def test_split_gives_every_sample_to_one_client_and_some_to_each(
    clients: int, alpha: float
) -> None:
    parts = data.split(LABELS, clients, alpha, seed=4)

    assert len(parts) == clients
    assert sorted(np.concatenate(parts)) == list(range(len(LABELS)))
    assert min(len(part) for part in parts) > 0


def test_split_is_uneven_with_a_small_alpha_and_even_with_a_large_one() -> None:
    def largest_share(alpha: float) -> float:
        """Of a client's most frequent label among its samples, averaged over clients."""
        parts = data.split(LABELS, 5, alpha, seed=0)
        shares = [max(Counter(LABELS[part]).values()) / len(part) for part in parts]
        return float(np.mean(shares))

    assert largest_share(0.2) > 0.25
    assert largest_share(1000.0) < 0.13


def test_split_depends_on_its_seed_alone() -> None:
    first, second, other = (data.split(LABELS, 5, 0.2, seed=seed) for seed in (1, 1, 2))

    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_training_together_beats_every_client_alone() -> None:
    training = FederatedTraining()
    accuracies = []
    for _ in range(5):
        training.apply(plain_numpy.average(training.train()))
        accuracies.append(training.accuracies())
    first, *_, last = accuracies

    assert last.together > first.together + 0.1
    assert last.together > last.best_alone + 0.1
    assert last.best_alone > last.mean_alone


def test_resnet18_has_its_parameters_and_its_counters() -> None:
    shapes = resnet18.shapes()

    assert resnet18.trained_parameters() == resnet18.PARAMETERS
    assert len(shapes) == 122
    assert math.prod(shapes["layer4.0.downsample.0.weight"]) == 512 * 256
    assert sum(name.endswith("num_batches_tracked") for name in shapes) == 20


def test_plain_loop_weighs_by_samples_and_rounds_integers_to_even() -> None:
    updates = {
        "b": Update({"w": np.array([3.0], np.float32), "n": np.array(2)}, samples=1),
        "a": Update({"w": np.array([1.0], np.float32), "n": np.array(3)}, samples=1),
    }

    average = plain_numpy.average(updates)

    assert average["w"] == 2.0
    assert average["w"].dtype == np.float32
    assert average["n"] == 2
    assert average["n"].dtype == np.int64


def test_comparison_names_differing_tensors() -> None:
    expected = {"same": np.zeros(2), "sign": np.zeros(1), "gone": np.ones(1)}
    result = {"same": np.zeros(2), "sign": -np.zeros(1), "new": np.ones(1)}

    comparison = plain_numpy.compare(result, expected)

    assert comparison.differing == ["gone", "new", "sign"]
    assert not comparison.identical
    assert plain_numpy.compare(expected, expected).identical


@pytest.fixture
def manifest() -> dict[str, Any]:
    return {
        "status": "completed",
        "contributors": [{"client": "a", "samples": 3}],
        "rejected": [],
        "missing": [],
        "shards": 1,
        "seconds": 0.5,
        "totals": {
            "gets": 3,
            "puts": 1,
            "bytes_read": 80,
            "bytes_written": 88,
            "peak_mb": 80.0,
            "seconds": 0.4,
        },
        "projected": {"needed_mb": 90.0, "dollars": {"total": 0.001}},
    }


UPDATES = {"a": Update({"w": np.zeros(20, np.float32)}, samples=3)}


def test_a_complete_manifest_has_no_problems(manifest: dict[str, Any]) -> None:
    assert demo.manifest_problems(manifest, UPDATES, shards=None) == []
    assert demo.manifest_problems(manifest, UPDATES, shards=1) == []
    assert demo.memory_problems(manifest) == []


def test_a_wrong_field_of_a_manifest_is_named(manifest: dict[str, Any]) -> None:
    manifest["contributors"][0]["samples"] = 4
    manifest["totals"]["bytes_read"] = 79

    assert demo.manifest_problems(manifest, UPDATES, shards=2) == [
        "the manifest's contributors cannot be right",
        "the manifest's shards cannot be right",
        "the manifest's totals.bytes_read cannot be right",
    ]


def test_a_missing_field_of_a_manifest_is_named(manifest: dict[str, Any]) -> None:
    del manifest["totals"]["peak_mb"]

    assert demo.manifest_problems(manifest, UPDATES, None) == ["the manifest has no 'peak_mb'"]


def test_memory_over_the_plan_is_a_problem(manifest: dict[str, Any]) -> None:
    manifest["totals"]["peak_mb"] = 90.1

    assert demo.memory_problems(manifest) == ["a function took 90.1 MB, over the planned 90"]
