"""examples/lora.py: what adapters are, and a short run."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import lora
from stragglers import network
from stragglers.backends import InMemory

MODEL = network.initialise((6, 5, 3), 0)


def test_a_new_adapter_changes_nothing() -> None:
    merged = lora.merged(lora.with_adapters(MODEL, 4, 1))
    assert all(np.array_equal(merged[name], MODEL[name]) for name in MODEL)


def test_gradients_of_adapters_are_those_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.standard_normal((1, 6)).astype("f4"), np.array([2])
    model = lora.with_adapters(MODEL, 4, 1)
    for name in ("layer0.B", "layer1.B"):
        model[name] = rng.standard_normal(model[name].shape).astype("f4")
    for way in (lora.BOTH, lora.SHARED):
        after = lora.train(model, images, labels, way.trained, 0)
        assert {n for n in model if after[n] is not model[n]} == {
            n for n in model if n.endswith(way.trained)
        }
    after = lora.train(model, images, labels, lora.BOTH.trained, 0)
    for name in ("layer0.A", "layer0.B", "layer1.A", "layer1.B", "layer1.bias"):
        step = np.zeros(model[name].shape)
        for place in np.ndindex(step.shape):
            losses = []
            for sign in (1, -1):
                near = {n: array.astype(float) for n, array in model.items()}
                near[name][place] += sign * 1e-5
                losses.append(network.loss(lora.merged(near), images, labels))
            step[place] = -lora.LEARNING_RATE * (losses[0] - losses[1]) / 2e-5
        assert np.allclose(after[name] - model[name], step, atol=1e-4), name


def test_with_one_a_the_products_are_averaged_exactly_and_else_not() -> None:
    rng = np.random.default_rng(0)
    base = lora.with_adapters(MODEL, 4, 1)
    samples = {"ann": 3, "bo": 5}

    def error(trained: tuple[str, ...]) -> float:
        whole = {
            client: base
            | {
                name: rng.standard_normal(array.shape).astype("f4")
                for name, array in base.items()
                if name.endswith(trained)
            }
            for client in samples
        }
        return lora.product_error(whole, samples, InMemory().average(whole, samples))

    assert error((".B",)) < 1e-6
    assert error((".A", ".B")) > 0.1


def test_short_run_prints_every_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["lora.py", "--rounds", "1", "--seeds", "1", "--clients", "3"]
    monkeypatch.setattr(sys, "argv", words)
    assert lora.main() == 0
    printed = capsys.readouterr().out
    assert all(way.title in printed for way in lora.WAYS)
    assert "1,480" in printed
