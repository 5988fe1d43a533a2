"""Rounds with robust rules, over real HTTP."""

import operator
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard.client.round_by_ticket import TicketRound
from gradshard.tickets.issuer import issue_ticket
from gradshard_core.errors import PlanError
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration.by_hand import Round, Update, put_model, small
from tests.integration.conftest import as_clients_do

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


@pytest.mark.parametrize("terms", [{}, {"weights": "counts"}, {"rule": "norm_clip"}])
def test_samples_beyond_the_most_that_count_weigh_nothing(
    open_round: Callable[..., Round], terms: dict[str, Any]
) -> None:
    results = []
    for stated, most in ((10**9, 40), (40, None), (10**9, None)):
        round_ = open_round(clients=5, **terms, **({"max_samples": most} if most else {}))
        for i in range(5):
            round_.submit(f"c{i}", small(i), stated if i == 3 else 20 + i)
        assert round_.go() == {"status": "completed"}
        results.append(round_.result())
    assert results[0] == results[1] != results[2]


def test_bulyan_selects_and_then_takes_the_mean_around_the_median(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=9, rule={"name": "bulyan", "f": 1})
    updates = {f"c{i}": small(i) for i in range(9)}
    for client, update in updates.items():
        round_.submit(client, update, 3)
    assert round_.go() == {"status": "completed"}
    decision = round_.store.get_json(round_.keys.decision(1))
    selected = [entry["client"] for entry in decision["clients"] if entry["weight"] > 0]
    assert len(selected) == 7
    assert [c["client"] for c in round_.manifest()["contributors"]] == selected
    assert_result(round_.result(), reference.columns([updates[c] for c in selected], "bulyan", f=1))


def submitted(round_: Round, updates: dict[str, Update]) -> Round:
    for i, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3 + i)
    return round_


@pytest.fixture(scope="module")
def sent(store: S3Store) -> str:
    """The name of a round of seven clients' updates that two tasks can add up."""
    rng = np.random.default_rng(3)
    updates: dict[str, Update] = {
        f"c{i}": {
            "w": (rng.standard_normal(2_700_001) * (1 + i)).astype("f4"),
            "n": np.array([i], "i8"),
        }
        for i in range(7)
    }
    return submitted(Round(store, clients=7), updates).name


@pytest.mark.parametrize("rule", GRAM)
def test_weights_are_the_same_for_every_m_order_and_repetition(
    open_round: Callable[..., Round], sent: str, rule: dict[str, Any]
) -> None:
    results, decisions = set(), []
    for shards in (1, 2):
        round_ = open_round(clients=7, rule=rule, shards=shards, updates_from=sent)
        outcome: dict[str, Any] = {"attempt": 0}
        for _ in range(2):
            round_.plan(outcome["attempt"])
            for task in [*reversed(round_.tasks()), round_.tasks()[0]]:
                round_.run(task)
            outcome = round_.finalize()
        assert outcome == {"status": "completed"}
        assert round_.manifest()["shards"] == shards
        results.add(round_.result())
        decisions.append(round_.store.get_json(round_.keys.decision(1)))
    assert decisions[0] == decisions[1]
    assert len(results) == 1


def test_norms_are_those_of_floating_point_tensors(open_round: Callable[..., Round]) -> None:
    updates = {f"c{i}": small(i) for i in range(4)}
    round_ = submitted(open_round(clients=4, rule={"name": "norm_clip", "bound": 8.0}), updates)
    round_.go()
    entries = round_.store.get_json(round_.keys.decision(1))["clients"]
    gram = measured(list(updates.values()))
    for i, (entry, samples) in enumerate(zip(entries, range(3, 7), strict=True)):
        norm = gram[i][i] ** 0.5
        assert entry["norm"] == pytest.approx(norm, rel=1e-5)
        assert entry["weight"] == pytest.approx(samples / 18 * min(1, 8 / norm), rel=1e-5)
        assert entry["full_weight"] == samples / 18
    clipped = [entry["client"] for entry in entries if entry["norm"] > 8]
    assert round_.manifest()["measuring"]["clipped"] == clipped


def test_clients_read_no_norms_of_others(open_round: Callable[..., Round]) -> None:
    updates = {f"c{i}": small(i) for i in range(5)}
    round_ = submitted(open_round(clients=5, rule={"name": "krum", "f": 1}), updates)
    round_.go()
    policy = (Path(__file__).parents[2] / "docs" / "client-policy.json").read_text()
    assert "decisions" not in policy
    assert "measurements" not in policy
    decision = round_.store.get_json(round_.keys.decision(1))
    secrets = {
        f"{entry[name]:.6g}" for entry in decision["clients"] for name in ("norm", "score")
    } | {str(entry[name]) for entry in decision["clients"] for name in ("norm", "score")}
    for key in (round_.keys.plan, round_.keys.manifest, round_.keys.spec):
        text = (round_.store.get_bytes(key) or b"").decode()
        assert not any(secret in text for secret in secrets)
    left_out = round_.manifest()["left_out"]
    assert len(left_out) == 4
    for entry in decision["clients"]:
        if entry["client"] in left_out:
            reason = round_.reason(entry["client"])
            assert "rule krum left this update out of the average" in reason
            assert f"{entry['score']:.6g}" in reason


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**121])
def test_bad_update_costs_its_sender_the_round_and_the_rest_is_measured_again(
    open_round: Callable[..., Round], value: float
) -> None:
    updates = {f"c{i}": small(i) for i in range(6)}
    updates["c2"]["fc.weight"] = updates["c2"]["fc.weight"].copy()
    updates["c2"]["fc.weight"][0, 3] = value
    round_ = submitted(open_round(clients=6, rule={"name": "multi_krum", "f": 1}), updates)
    assert round_.go() == {"status": "completed"}
    assert "element 3" in round_.reason("c2")
    manifest = round_.manifest()
    assert [rejection["client"] for rejection in manifest["rejected"]] == ["c2"]
    assert len(manifest["contributors"]) == 4
    assert manifest["attempts"] == 3


def test_update_that_is_gone_in_the_second_pass_is_decided_without(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    updates = {f"c{i}": small(i) for i in range(7)}
    rule = {"name": "krum", "f": 1}
    round_ = submitted(open_round(clients=7, rule=rule), updates)
    round_.plan()
    round_.aggregate()
    assert round_.finalize()["rejected"] == []
    round_.plan(1)
    [chosen] = round_.store.get_json(round_.keys.plan)["contributors"]
    store.delete_versions(chosen["source"]["key"])
    round_.aggregate()
    outcome = round_.finalize()
    assert [rejection["client"] for rejection in outcome["rejected"]] == [chosen["client"]]
    round_.plan(2)
    # Nothing is measured again.
    assert not round_.store.get_json(round_.keys.plan)["measures"]
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    del updates[chosen["client"]]
    alone = submitted(open_round(clients=6, rule=rule), updates)
    alone.go()
    data = round_.result()
    assert data == alone.result()
    assert len(round_.manifest()["left_out"]) == 5


def test_buffers_are_not_measured_and_averaged_with_the_rules_weights(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    name = "robust-buffers"
    model = {"w": np.zeros(9, "f4"), "bn.running_var": np.ones(3, "f4"), "n": np.array([0], "i8")}
    put_model(store, name, model)
    rng = np.random.default_rng(0)
    updates: dict[str, Update] = {
        f"c{i}": {
            "w": rng.standard_normal(9).astype("f4") * (100 if i == 4 else 1),
            "bn.running_var": np.full(3, 10.0**i, "f4"),
            "n": np.array([i], "i8"),
        }
        for i in range(5)
    }
    optimizer = {"optimizer": "fedavg", "model": name, "buffers": ["bn.running_var"]}
    terms = {"rule": {"name": "norm_clip", "bound": 2.0}, "server_optimizer": optimizer}
    round_ = submitted(open_round(clients=5, **terms), updates)
    assert round_.go() == {"status": "completed"}
    entries = round_.store.get_json(round_.keys.decision(1))["clients"]
    for entry in entries:
        found = np.linalg.norm(updates[entry["client"]]["w"].astype("f8"))
        assert entry["norm"] == pytest.approx(found, rel=1e-5)
    weights = np.array([entry["weight"] for entry in entries])
    average = reference.decode(round_.result())
    stacked = np.stack([update["bn.running_var"] for update in updates.values()]).astype("f8")
    assert np.allclose(average["bn.running_var"], weights / weights.sum() @ stacked, rtol=1e-5)


def test_sign_is_refused_for_a_model_with_buffers(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "robust-sign", {"w": np.zeros(9, "f4"), "n": np.array([0], "i8")})
    optimizer = {"optimizer": "fedavg", "model": "robust-sign"}
    round_ = open_round(clients=3, rule="sign", server_optimizer=optimizer)
    for client in ("c0", "c1", "c2"):
        round_.submit(client, {"w": np.ones(9, "f4"), "n": np.array([1], "i8")})
    with pytest.raises(PlanError, match="'n' is an integer or a buffer"):
        round_.plan()


@pytest.mark.parametrize(
    "terms",
    [
        {"rule": {"name": "krum", "f": 1}},
        {"rule": {"name": "bulyan", "f": 1}},
        {"dp": {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}},
    ],
)
def test_clients_with_tickets_take_part_and_read_that_they_were_left_out(
    open_round: Callable[..., Round], store: S3Store, terms: dict[str, Any]
) -> None:
    round_ = open_round(clients=7, **terms)
    rng = np.random.default_rng(1)
    tickets = {}
    for number in range(7):
        client = f"c{number}"
        ticket = issue_ticket(
            as_clients_do(store), round_.keys, client, expires=600, max_bytes=100_000
        )
        tickets[client] = TicketRound(ticket)
        update = {"w": (rng.standard_normal(500) * (50 if number == 3 else 1)).astype("f4")}
        tickets[client].submit(update, samples=5)
    assert round_.go() == {"status": "completed"}
    result = reference.decode(round_.result())["w"]
    assert np.array_equal(tickets["c0"].fetch()["w"], result)
    left_out = round_.manifest()["left_out"]
    assert ("c3" in left_out) == ("rule" in terms)
    for client, taken in tickets.items():
        rejection = taken.rejection()
        assert (rejection is not None) == (client in left_out)
        assert rejection is None or "left this update out of the average" in rejection
