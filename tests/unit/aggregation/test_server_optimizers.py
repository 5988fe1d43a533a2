"""Server optimizers, element for element."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.aggregation.server_optimizers import (
    OPTIMIZERS,
    ServerOptimizer,
    parse_server_optimizer,
)
from gradshard_core.errors import SpecError
from tests import reference

STEPS = 5
SHAPE = (3, 37)


def run(terms: ServerOptimizer, models: list[Array], start: Array) -> list[Array]:
    """Go through rounds in which the average model is each of ``models`` in turn."""
    current, state, made = start, [np.zeros_like(start) for _ in terms.state], []
    for number, average in enumerate(models, 1):
        update = average if terms.updates == "models" else average - current
        current, state = terms.step(number, current, update, state)
        made.append(current)
    return made


def random_models(dtype: str = "f4") -> tuple[Array, list[Array]]:
    rng = np.random.default_rng(7)
    start = rng.standard_normal(SHAPE).astype(dtype)
    models = [(start + rng.standard_normal(SHAPE) / 10).astype(dtype) for _ in range(STEPS)]
    # Elements that nobody trained, and a client's model that is already the federation's.
    for model in models:
        model[0] = start[0]
    return start, models


@pytest.mark.parametrize("updates", ["deltas", "models"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_steps_are_those_of_the_plain_loop(optimizer: str, updates: str, dtype: str) -> None:
    terms = parse_server_optimizer(
        {"optimizer": optimizer, "updates": updates, "learning_rate": 0.3}
    )
    start, models = random_models(dtype)
    current: Mapping[str, Array] = {"w": start}
    state: Mapping[str, Mapping[str, Array]] = {}
    for number, (average, made) in enumerate(
        zip(models, run(terms, models, start), strict=True), 1
    ):
        update = average if updates == "models" else average - current["w"]
        current, state = reference.step(
            optimizer,
            terms.settings,
            number,
            current,
            {"w": update},
            state,
            models=updates == "models",
        )
        assert made.dtype == np.dtype(dtype)
        assert made.tobytes() == current["w"].tobytes(), number


def test_fedavg_of_models_is_their_average_to_the_bit() -> None:
    start, models = random_models()
    made = run(parse_server_optimizer({"optimizer": "fedavg", "updates": "models"}), models, start)
    assert [m.tobytes() for m in made] == [m.tobytes() for m in models]


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        ("FedAvgM", {"learning_rate": 0.7, "momentum": 0.9}),
        ("FedAvgM", {"learning_rate": 1.0, "momentum": 0.5}),
        ("FedAdagrad", {"learning_rate": 0.1, "tau": 1e-3}),
        ("FedYogi", {"learning_rate": 0.01, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
        ("FedAdam", {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}),
        ("FedAdam", {"learning_rate": 0.02, "beta_1": 0.5, "beta_2": 0.9, "tau": 1e-9}),
    ],
)
def test_elements_are_those_of_flower(
    monkeypatch: pytest.MonkeyPatch, strategy: str, settings: dict[str, float]
) -> None:
    flwr = pytest.importorskip("flwr.app", reason="Flower is not installed: `make test-flower`")
    from flwr.serverapp import strategy as strategies

    names = {"learning_rate": "eta"}
    if strategy == "FedAvgM":
        names = {"learning_rate": "server_learning_rate", "momentum": "server_momentum"}
    theirs = getattr(strategies, strategy)(
        **{names.get(name, name): value for name, value in settings.items()}
    )
    # What is before the optimizer is FedAvg's average, which is given here.
    monkeypatch.setattr(
        strategies.FedAvg,
        "aggregate_train",
        lambda _self, _round, average: (flwr.ArrayRecord({"w": flwr.Array(average)}), None),
    )
    terms = parse_server_optimizer({"optimizer": strategy.lower(), "updates": "models", **settings})
    start, models = random_models()
    current, state = start, [np.zeros_like(start) for _ in terms.state]
    for number, average in enumerate(models, 1):
        # Flower's FedAdam hands on float64; what clients load has the model's type.
        before = flwr.ArrayRecord({"w": flwr.Array(current)})
        theirs.current_arrays = before if strategy == "FedAvgM" else {"w": current}
        made, _ = theirs.aggregate_train(number, average)
        current, state = terms.step(number, current, average, state)
        assert np.array_equal(current, made["w"].numpy().astype("f4")), number


def test_defaults_are_said_and_read_back() -> None:
    terms = parse_server_optimizer("fedadam")
    assert terms.to_json() == {
        "optimizer": "fedadam",
        "learning_rate": 0.1,
        "beta_1": 0.9,
        "beta_2": 0.99,
        "tau": 0.001,
        "updates": "deltas",
        "model": "model",
    }
    assert parse_server_optimizer(terms.to_json()) == terms


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("sgd", "optimizer is 'sgd', not one of fedavg, fedavgm"),
        (3, "server_optimizer is 3, neither fedavg"),
        ({"optimizer": ["fedavg"]}, "optimizer is"),
        ({"optimizer": "fedavg", "momentum": 0.9}, "fedavg has no 'momentum'"),
        ({"optimizer": "fedavg", "learning_rate": 0}, "learning_rate is 0, not a number above"),
        ({"optimizer": "fedavg", "learning_rate": True}, "learning_rate is True"),
        ({"optimizer": "fedavg", "learning_rate": float("nan")}, "learning_rate is nan"),
        ({"optimizer": "fedavgm", "momentum": 1}, "momentum is 1, not a number from 0 to below 1"),
        ({"optimizer": "fedadam", "beta_2": -0.1}, "beta_2 is -0.1"),
        ({"optimizer": "fedadam", "tau": 0}, "tau is 0"),
        ({"updates": "gradients"}, "updates is 'gradients', not one of deltas, models"),
        ({"updates": ["deltas"]}, "updates is"),
        ({"model": "a/b"}, "model id 'a/b'"),
    ],
)
def test_rejects(stated: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_server_optimizer(stated)
