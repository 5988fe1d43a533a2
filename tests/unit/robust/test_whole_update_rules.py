"""Rules over a Gram matrix, against numpy on the updates themselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradshard_core.robust.rules import ROBUST_RULES, parse_robust_rule
from gradshard_core.robust.whole_update_rules import Decision

Matrix = npt.NDArray[np.float64]
Oracle = Callable[[Matrix, Matrix, Mapping[str, Any]], Matrix]


def decide(updates: Matrix, samples: Sequence[int], **rule: Any) -> Decision:
    return parse_robust_rule(rule).decide((updates @ updates.T).tolist(), samples)


def clip_to(updates: Matrix, shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    norms = np.linalg.norm(updates, axis=1)
    q = rule.get("quantile", 0.5)
    bound = rule.get("bound", np.quantile(norms, q, method="inverted_cdf"))
    return np.asarray((shares * np.minimum(1, bound / norms)) @ updates)


def nearest_sums(updates: Matrix, f: int) -> Matrix:
    """Return Krum's scores, by distances between the updates."""
    scores = []
    for i, update in enumerate(updates):
        others = np.delete(updates, i, axis=0)
        squares = ((others - update) ** 2).sum(axis=1)
        scores.append(np.sort(squares)[: len(updates) - f - 2].sum())
    return np.array(scores)


def krum(updates: Matrix, _shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    return np.asarray(updates[nearest_sums(updates, rule["f"]).argmin()])


def multi_krum(updates: Matrix, shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    m = rule.get("m", len(updates) - rule["f"])
    chosen = np.argsort(nearest_sums(updates, rule["f"]), kind="stable")[:m]
    return np.average(updates[chosen], axis=0, weights=shares[chosen])


def bulyan(updates: Matrix, _shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    """Return the mean of the selected; test_by_element has the second pass."""
    chosen = np.argsort(nearest_sums(updates, rule["f"]), kind="stable")
    return np.asarray(updates[chosen[: len(updates) - 2 * rule["f"]]].mean(axis=0))


def weiszfeld(updates: Matrix, shares: Matrix, _rule: Mapping[str, Any]) -> Matrix:
    point: Matrix = shares @ updates
    between = np.linalg.norm(updates[:, None] - updates[None], axis=2)
    balls = [row[np.argsort(row)][np.cumsum(shares[np.argsort(row)]) > 0.5][0] for row in between]
    least = 1e-6 * min(balls)
    for _ in range(20_000):
        pulls = shares / np.maximum(least, np.linalg.norm(updates - point, axis=1))
        before, point = point, pulls @ updates / pulls.sum()
        if np.abs(before - point).max() < 1e-15:
            break
    return point


def distances(point: Matrix, updates: Matrix, shares: Matrix) -> float:
    return float(shares @ np.linalg.norm(updates - point, axis=1))


def cosine_filter(updates: Matrix, shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    point = weiszfeld(updates, shares, {})
    cosines = updates @ point / np.linalg.norm(updates, axis=1) / np.linalg.norm(point)
    kept = cosines >= rule.get("least", 0.0)
    if not kept.any():
        kept[cosines.argmax()] = True
    return np.average(updates[kept], axis=0, weights=shares[kept])


def centered_clip(updates: Matrix, shares: Matrix, rule: Mapping[str, Any]) -> Matrix:
    norms = np.linalg.norm(updates, axis=1)
    bound = rule.get("bound", np.quantile(norms, rule.get("quantile", 0.5), method="inverted_cdf"))
    center: Matrix = np.zeros_like(updates[0])
    for _ in range(rule.get("iterations", 3)):
        ways = updates - center
        factors = np.minimum(1, bound / np.linalg.norm(ways, axis=1))
        center = center + (shares * factors) @ ways
    return center


ORACLES: dict[str, Oracle] = {
    "norm_clip": clip_to,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
    "geometric_median": weiszfeld,
    "cosine_filter": cosine_filter,
    "centered_clip": centered_clip,
}
RULES: list[dict[str, Any]] = [
    {"name": "norm_clip"},
    {"name": "norm_clip", "bound": 7.0},
    {"name": "norm_clip", "quantile": 0.9},
    {"name": "krum", "f": 2},
    {"name": "multi_krum", "f": 2},
    {"name": "multi_krum", "f": 1, "m": 3},
    {"name": "bulyan", "f": 1},
    {"name": "geometric_median"},
    {"name": "cosine_filter"},
    {"name": "cosine_filter", "least": 0.5},
    {"name": "centered_clip"},
    {"name": "centered_clip", "bound": 2.5, "iterations": 7},
]


def test_every_rule_that_measures_has_an_oracle() -> None:
    assert set(ORACLES) == {name for name, rule in ROBUST_RULES.items() if rule.decide}
    assert set(ORACLES) == {rule["name"] for rule in RULES}


def test_rules_that_decide_on_whole_partial_updates_say_how_much_is_left_of_each() -> None:
    for stated in RULES:
        rule = parse_robust_rule(stated)
        if "layer_quorum" in ROBUST_RULES[rule.name].settings and not rule.pairs:
            assert rule.decide([[1.0] * 7] * 7, [1] * 7).full is not None, rule.name


@settings(deadline=None, max_examples=200)
@given(
    rule=st.sampled_from(RULES),
    clients=st.integers(7, 20),
    bad=st.integers(0, 3),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_weighted_sum_is_what_the_rule_makes_of_the_updates(
    rule: dict[str, Any], clients: int, bad: int, scale: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    updates = rng.standard_normal((clients, 50)) + 0.7
    updates[:bad] *= -scale
    samples = [int(n) for n in rng.integers(1, 1000, clients)]
    shares = np.array(samples) / sum(samples)
    decision = decide(updates, samples, **rule)
    expected = ORACLES[rule["name"]](updates, shares, rule)
    found = np.array(decision.weights) @ updates
    if rule["name"] == "geometric_median":  # the iterations may end a little beside it
        assert distances(found, updates, shares) <= distances(expected, updates, shares) + 1e-7
        assert np.abs(found - expected).max() <= 1e-3 * np.linalg.norm(updates)
        return
    assert np.allclose(found, expected, rtol=1e-6, atol=1e-8 * np.linalg.norm(updates))


@pytest.mark.parametrize("rule", RULES)
def test_identical_updates_give_that_update(rule: dict[str, Any]) -> None:
    updates = np.tile(np.arange(1.0, 6.0), (9, 1))
    decision = decide(updates, range(1, 10), **rule)
    result = np.array(decision.weights) @ updates
    if "bound" not in rule:
        assert np.allclose(result, updates[0], rtol=1e-12)
    # Of equal scores the first by client id wins.
    assert rule["name"] != "krum" or decision.weights[0] == 1.0


@pytest.mark.parametrize("rule", RULES)
def test_updates_of_zeros_give_zeros(rule: dict[str, Any]) -> None:
    decision = decide(np.zeros((9, 4)), range(1, 10), **rule)
    assert np.isfinite(decision.weights).all()
    assert sum(decision.weights) == pytest.approx(1.0)


@pytest.mark.parametrize("rule", RULES)
def test_huge_and_tiny_updates_have_finite_weights(rule: dict[str, Any]) -> None:
    rng = np.random.default_rng(1)
    for scale in (1e-120, 1e150):
        updates = rng.standard_normal((9, 4)) * scale
        decision = decide(updates, [1] * 9, **rule)
        assert np.isfinite(decision.weights).all()
        assert all(weight >= 0 for weight in decision.weights)


@pytest.mark.parametrize("rule", RULES)
def test_weights_do_not_depend_on_the_names_of_clients(rule: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    updates, samples = rng.standard_normal((9, 30)), rng.integers(1, 99, 9)
    order = rng.permutation(9)
    first = decide(updates, samples.tolist(), **rule).weights
    other = decide(updates[order], samples[order].tolist(), **rule).weights
    assert np.allclose(np.array(first)[order], other, rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "bad"), [("geometric_median", 1), ("geometric_median", 3), ("cosine_filter", 1)]
)
@pytest.mark.parametrize("scale", [1e3, 1e9, 1e20, 1e35])
def test_a_minority_moves_the_result_no_further_the_longer_it_is(
    name: str, bad: int, scale: float
) -> None:
    rng = np.random.default_rng(3)
    good = rng.standard_normal((7 - bad, 40)) + 1
    hostile = -scale * (1 + rng.standard_normal((bad, 40)) / 10)
    updates = np.concatenate([good, hostile])
    decision = parse_robust_rule({"name": name}).decide((updates @ updates.T).tolist(), [1] * 7)
    result = np.asarray(decision.weights) @ updates
    spread = np.linalg.norm(good - good.mean(0), axis=1).max()
    assert np.linalg.norm(result - good.mean(0)) < 4 * spread


def test_over_half_the_same_updates_are_the_geometric_median() -> None:
    updates = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1e30, 0.0], [2.0, 1.0]])
    decision = parse_robust_rule({"name": "geometric_median"}).decide(
        (updates @ updates.T).tolist(), [1] * 5
    )
    assert decision.weights == (1 / 3, 1 / 3, 1 / 3, 0.0, 0.0)
