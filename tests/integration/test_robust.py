"""Rounds with robust rules, over real HTTP."""

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.integration.by_hand import Round, Update, small

COLUMNS: list[dict[str, Any]] = [
    {"name": "median"},
    {"name": "trimmed_mean", "beta": 0.34},
    {"name": "sign"},
]


def assert_result(blob: bytes, expected: Update) -> None:
    found = reference.decode(blob)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("rule", COLUMNS)
@pytest.mark.parametrize("count", [3, 8])
def test_rule_over_columns_with_tensors_in_any_order(
    open_round: Callable[..., Round], rule: dict[str, Any], count: int
) -> None:
    round_ = open_round(clients=count, rule=rule)
    updates = {f"c{i}": small(i) for i in range(count)}
    rng = np.random.default_rng(count)
    for i, (client, update) in enumerate(reversed(updates.items())):
        order = list(rng.permutation(list(update))) if i % 3 == 0 else list(update)
        round_.submit(client, update, 3 * (count - i), order=order)
    assert round_.go() == {"status": "completed"}
    settings = {key: value for key, value in rule.items() if key == "beta"}
    assert_result(
        round_.result(), reference.columns(list(updates.values()), rule["name"], **settings)
    )
    assert round_.manifest()["rule"] == rule["name"]
    assert round_.manifest()["weights"] == "equal"


@pytest.mark.parametrize("rule", COLUMNS)
def test_nan_costs_its_sender_the_round_under_a_rule_over_columns(
    open_round: Callable[..., Round], rule: dict[str, Any]
) -> None:
    updates = {f"c{i}": small(i) for i in range(6)}
    updates["c3"]["fc.weight"] = updates["c3"]["fc.weight"].copy()
    updates["c3"]["fc.weight"][2, 1] = np.inf
    round_ = open_round(clients=6, rule=rule)
    for client, update in updates.items():
        round_.submit(client, update)
    assert round_.go() == {"status": "completed"}
    assert "holds a NaN or an infinity at element 11" in round_.reason("c3")
    del updates["c3"]
    settings = {key: value for key, value in rule.items() if key == "beta"}
    assert_result(
        round_.result(), reference.columns(list(updates.values()), rule["name"], **settings)
    )


def measured(updates: Sequence[Update]) -> list[list[float]]:
    """Return inner products of floating-point tensors, in integers that are never rounded."""
    rows = [
        [
            Fraction(float(x))
            for tensor in update.values()
            if tensor.dtype.kind not in "iu"
            for x in tensor.ravel()
        ]
        for update in updates
    ]
    return [[float(sum(map(operator.mul, a, b))) for b in rows] for a in rows]


GRAM: list[dict[str, Any]] = [
    {"name": "norm_clip"},
    {"name": "krum", "f": 2},
    {"name": "multi_krum", "f": 2, "m": 4},
    {"name": "geometric_median"},
    {"name": "cosine_filter"},
    {"name": "centered_clip", "bound": 7.5},
]


@pytest.mark.parametrize("rule", GRAM)
def test_rule_that_measures(open_round: Callable[..., Round], rule: dict[str, Any]) -> None:
    round_ = open_round(clients=8, rule=rule)
    updates = {f"c{i}": small(i) for i in range(8)}
    for i, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3 + i)
    assert round_.go() == {"status": "completed"}
    manifest = round_.manifest()
    decision = round_.store.get_json(round_.keys.decision(1))
    weights = {entry["client"]: entry["weight"] for entry in decision["clients"]}
    kept = [client for client in updates if weights[client] > 0]
    assert [c["client"] for c in manifest["contributors"]] == kept
    assert manifest["left_out"] == [client for client in updates if client not in kept]
    expected = reference.weighted([updates[c] for c in kept], [weights[c] for c in kept])
    assert_result(round_.result(), expected)
