"""Rounds of partial updates, and what follows from clients' reports, over real HTTP."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.rounds.quorum import QuorumError
from tests import reference
from tests.integration.by_hand import Round, Update, layout_of

LAYERS = ("conv1", "conv2", "fc1", "fc2")
CLIENTS = [f"c{number}" for number in range(8)]
SAMPLES = [5, 1, 900, 17, 3, 64, 2, 250]
DEPTHS = [4, 1, 2, 4, 3, 1, 4, 2]
"""How many of the last layers each client has: three have them all, five are partial."""


def whole(seed: int) -> Update:
    rng = np.random.default_rng(seed)
    update: Update = {}
    for number, layer in enumerate(LAYERS):
        update[f"{layer}.weight"] = reference.random_tensor(rng, "F32", (7 + number, 900))
        update[f"{layer}.bias"] = reference.random_tensor(rng, "F32", (5,))
    return update


def last(update: Update, depth: int) -> Update:
    kept = LAYERS[len(LAYERS) - depth :]
    return {name: tensor for name, tensor in update.items() if name.split(".")[0] in kept}


LAYOUT = layout_of(whole(0))


def submit_all(round_: Round, depths: Sequence[int] = DEPTHS) -> list[Update]:
    updates = [last(whole(seed), depth) for seed, depth in enumerate(depths)]
    for client, update, samples in zip(CLIENTS, updates, SAMPLES, strict=True):
        round_.submit(client, update, samples)
    return updates


def loop(updates: Sequence[Update], weigh: Callable[[list[int]], list[float]]) -> Update:
    """Average what there is of each tensor in a plain loop; zero where there is nothing."""
    result: Update = {}
    for name, model in whole(0).items():
        there = [index for index, update in enumerate(updates) if name in update]
        acc = np.zeros(model.shape, "f4")
        for turn, (index, weight) in enumerate(zip(there, weigh(there), strict=True)):
            product = updates[index][name] * np.float32(weight)
            acc = product if turn == 0 else acc + product
        result[name] = acc
    return result


def shares(there: list[int]) -> list[float]:
    total = sum(SAMPLES[index] for index in there)
    return [SAMPLES[index] / total for index in there]


def salf(p: float) -> Callable[[list[int]], list[float]]:
    return lambda there: [1 / len(there) / (1.0 - p) for _ in there]


def assert_result(round_: Round, expected: Update) -> None:
    found = reference.decode(round_.result())
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].tobytes() == tensor.tobytes(), name


@pytest.mark.parametrize("shards", [1, 3, 11])
@pytest.mark.parametrize(
    ("rule", "weigh"),
    [
        ({"name": "salf", "p": 0.25}, salf(0.25)),
        ("fedavg", shares),
        ("fill", lambda there: [1 / 8 for _ in there]),
    ],
)
def test_eight_clients_of_which_five_are_partial(
    open_round: Callable[..., Round],
    monkeypatch: pytest.MonkeyPatch,
    rule: Any,
    weigh: Callable[[list[int]], list[float]],
    shards: int,
) -> None:
    # So small an update would be one shard; the engine takes parts of any size.
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1)
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule=rule, shards=shards)
    updates = submit_all(round_)
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["shards"] == shards
    assert_result(round_, loop(updates, weigh))
    manifest = round_.manifest()
    by_name = {layer["name"]: layer for layer in manifest["layers"]}
    assert list(by_name) == list(LAYERS)
    assert sorted(by_name["conv1"]["weights"]) == ["c0", "c3", "c6"]
    assert len(by_name["fc2"]["weights"]) == 8
    assert manifest["rule"] == (rule if isinstance(rule, str) else rule["name"])


def test_p_of_uniform_depth_stands_in_the_manifest(open_round: Callable[..., Round]) -> None:
    round_ = open_round(
        clients=CLIENTS, layout=LAYOUT, rule={"name": "salf", "p": {"model": "uniform"}}
    )
    updates = submit_all(round_)
    assert round_.go() == {"status": "completed"}
    found = [layer["p"] for layer in round_.manifest()["layers"]]
    assert found == pytest.approx([(1 - number / 4) ** 8 for number in (1, 2, 3, 4)])
    p = dict(zip(LAYERS, found, strict=True))
    expected: Update = {}
    for name in whole(0):
        expected |= {name: loop(updates, salf(p[name.split(".")[0]]))[name]}
    assert_result(round_, expected)


def test_a_layer_that_no_client_covers_is_zero_and_costs_no_read(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 1)
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule={"name": "salf", "p": 0.5}, shards=4)
    updates = submit_all(round_, [1, 1, 1, 2, 1, 1, 1, 1])
    assert round_.go() == {"status": "completed"}
    assert_result(round_, loop(updates, salf(0.5)))
    first, *_ = round_.manifest()["tasks"]
    # The plan; none of the eight updates.
    assert first["gets"] == 1
    zero = reference.decode(round_.result())["conv1.weight"]
    assert zero.tobytes() == bytes(zero.nbytes)


@pytest.mark.parametrize("topology", ["lambda_fl", "lifl", "grid"])
def test_partial_updates_in_trees(open_round: Callable[..., Round], topology: str) -> None:
    terms: dict[str, Any] = {"clients": CLIENTS, "layout": LAYOUT, "rule": "fedavg"}
    tree = open_round(topology=topology, **terms, **({"fan_in": 3} if topology == "grid" else {}))
    submit_all(tree)
    assert tree.go() == {"status": "completed"}
    order = tree.manifest()["order"]
    alone = open_round(order=order, updates_from=tree.name, **terms)
    assert alone.go() == {"status": "completed"}
    assert alone.result() == tree.result()


def test_drop_counts_complete_updates_only(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule="drop", min_clients=3)
    updates = submit_all(round_)
    assert round_.go() == {"status": "completed"}
    contributors = [c["client"] for c in round_.manifest()["contributors"]]
    assert contributors == ["c0", "c3", "c6"]
    assert_result(round_, loop([updates[i] if i in (0, 3, 6) else {} for i in range(8)], shares))
    assert "rule drop counts complete updates only, and 3 of 4 layers" in round_.reason("c1")


def test_partial_updates_need_a_rule(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, min_clients=3)
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == ["c0", "c3", "c6"]
    assert "tensor 'conv1.weight' is missing" in round_.reason("c1")


def test_an_update_that_no_rule_can_use_is_rejected_by_name(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(
        clients=CLIENTS, layout=LAYOUT, rule={"name": "salf", "p": 0.5}, min_clients=4
    )
    submit_all(round_)
    first, second = whole(0), whole(1)
    hole = {name: tensor for name, tensor in first.items() if not name.startswith("fc1")}
    half = last(second, 2)
    del half["fc1.bias"]
    round_.submit("c3", hole, 1)
    round_.submit("c5", half, 1)
    round_.submit("c6", last(first, 1) | {"head.weight": np.ones(3, "f4")}, 1)
    round_.submit("c7", last(first, 1) | {"fc2.bias": np.ones(9, "f4")}, 1)
    assert round_.go() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == ["c0", "c1", "c2", "c4"]
    assert "has a hole: it holds layer 'conv1', but not 'fc1'" in round_.reason("c3")
    assert "layer 'fc1' is there in part" in round_.reason("c5")
    assert "tensor 'head.weight' is not in the round's layout" in round_.reason("c6")
    assert "tensor 'fc2.bias' is F32 [9], not F32 [5]" in round_.reason("c7")


def test_one_client_does_not_take_over_a_partial_round(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule="fedavg")
    updates = submit_all(round_)
    round_.submit("c3", updates[3] | {"extra.weight": np.ones(3, "f4")}, SAMPLES[3])
    assert round_.go() == {"status": "completed"}
    contributors = [c["client"] for c in round_.manifest()["contributors"]]
    assert contributors == [client for client in CLIENTS if client != "c3"]
    assert "tensor 'extra.weight' is not in the round's layout" in round_.reason("c3")


def test_a_partial_round_that_was_opened_without_a_layout_fails_and_says_so(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS, rule="fedavg")
    submit_all(round_)
    with pytest.raises(PlanError, match=r"rule fedavg takes partial updates.* --layout FILE"):
        round_.go()


def test_nan_in_a_partial_update_costs_its_sender_the_round(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule="fedavg")
    updates = submit_all(round_)
    updates[4]["fc1.weight"][2, 7] = np.nan
    round_.submit("c4", updates[4], SAMPLES[4])
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["attempts"] == 2
    assert "tensor 'fc1.weight' holds a NaN or an infinity at element 1807" in round_.reason("c4")
    updates[4] = {}
    assert_result(round_, loop(updates, shares))
    covered = {layer["name"]: sorted(layer["weights"]) for layer in round_.manifest()["layers"]}
    assert covered["conv2"] == ["c0", "c3", "c6"]


def test_the_layers_sent_so_far_count_at_the_deadline(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=["a", "b", "c"], layout=LAYOUT, rule="fedavg")
    updates = [whole(0), last(whole(1), 2), last(whole(2), 1)]
    round_.submit("a", updates[0], SAMPLES[0])
    for client, update, samples in zip("bc", updates[1:], SAMPLES[1:], strict=False):
        body = reference.encode(update, {"num_samples": str(samples)})
        round_.store.put_bytes(round_.keys.partial_update(client), body)
    # A later, whole answer takes the place of what there was before.
    updates[2] = last(whole(3), 3)
    round_.submit("c", updates[2], SAMPLES[2])
    round_.plan(reason="deadline")
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert round_.manifest()["missing"] == []
    assert_result(round_, loop(updates, shares))


def test_p_estimated_from_rounds_before(open_round: Callable[..., Round]) -> None:
    past = []
    for depths in ([4] * 8, [1] * 7 + [4]):
        round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule="fedavg")
        submit_all(round_, depths)
        assert round_.go() == {"status": "completed"}
        past.append(round_.name)
    p = {"model": "rounds", "rounds": past}
    round_ = open_round(clients=CLIENTS, layout=LAYOUT, rule={"name": "salf", "p": p})
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    found = {layer["name"]: layer["p"] for layer in round_.manifest()["layers"]}
    # (r + 1) / (R + 2): seven clients covered conv1 in one of two rounds, one in both.
    assert found["conv1"] == pytest.approx((1 - 2 / 4) ** 7 * (1 - 3 / 4))
    assert found["fc2"] == pytest.approx((1 - 3 / 4) ** 8)
    bad = open_round(
        clients=CLIENTS, layout=LAYOUT, rule={"name": "salf", "p": p | {"rounds": ["unheard"]}}
    )
    submit_all(bad)
    with pytest.raises(PlanError, match="p cannot be estimated from round 'unheard'"):
        bad.go()


# ------------------------------------------------------------------------ reports, assignments

TRAINING: dict[str, Any] = {"batch_size": 16, "epochs": 1, "learning_rate": 0.1}


def report(seconds: object, steps: object = 10) -> dict[str, str]:
    return {
        "train_seconds": str(seconds),
        "batch_size": "16",
        "epochs": "1",
        "steps": str(steps),
    }


def submit_reporting(round_: Round, client: str, samples: int, metadata: dict[str, str]) -> None:
    body = reference.encode(whole(0), {"num_samples": str(samples)} | metadata)
    round_.upload(client, body)


def test_a_round_ends_with_assignments_and_the_next_goes_on_from_them(
    open_round: Callable[..., Round],
) -> None:
    first = open_round(clients=3, assignments=TRAINING)
    for client, seconds in (("fast", 2.0), ("slow", 16.0), ("odd", "a while")):
        submit_reporting(first, client, 160, report(seconds))
    assert first.go() == {"status": "completed"}
    document = first.store.get_json(first.keys.assignments)
    assert document["target_seconds"] == 16.0
    left = {entry["client"]: entry for entry in document["clients"]}
    assert left["slow"]["assignment"]["epochs"] == 1
    assert left["fast"]["assignment"]["epochs"] == 8
    assert left["odd"]["speed"] is None
    assert left["odd"]["assignment"] == document["new_clients"]
    assert "train_seconds is 'a while'" in left["odd"]["notes"][0]
    # Averaged all the same.
    assert len(first.manifest()["contributors"]) == 3

    second = open_round(clients=2, assignments=TRAINING | {"after": first.name})
    for client, seconds in (("fast", 8.0), ("slow", 16.0)):
        submit_reporting(second, client, 160, report(seconds))
    assert second.go() == {"status": "completed"}
    later = second.store.get_json(second.keys.assignments)
    [fast] = [entry for entry in later["clients"] if entry["client"] == "fast"]
    # Smoothed: half of 2 s, half of 8 s for an epoch.
    assert fast["speed"]["seconds_per_sample"] == pytest.approx(5.0 / 160)
    assert fast["assignment"]["epochs"] == 3


def test_a_round_without_terms_assigns_nothing(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    submit_reporting(round_, "a", 1, report(1.0))
    assert round_.go() == {"status": "completed"}
    assert round_.store.get_json(round_.keys.assignments) is None


def test_weights_by_local_steps(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3, weights="steps")
    for client, samples, steps in (("a", 100, 5), ("b", 300, 20), ("c", 7, "many")):
        submit_reporting(round_, client, samples, report(1.0, steps))
    assert round_.go() == {"status": "completed"}
    mean = 100 / 400 * 5 + 300 / 400 * 20
    weights = [c["weight"] for c in round_.manifest()["contributors"]]
    assert weights == pytest.approx([100 / 400 * mean / 5, 300 / 400 * mean / 20])
    assert "steps is 'many', not a whole number" in round_.reason("c")


def test_unbelievable_steps_count_within_bounds(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3, weights="steps")
    for client, steps in (("a", 20), ("b", 20), ("eve", 2**53)):
        submit_reporting(round_, client, 1, report(1.0, steps))
    assert round_.go() == {"status": "completed"}
    weights = [c["weight"] for c in round_.manifest()["contributors"]]
    assert weights == pytest.approx([80 / 20 / 3, 80 / 20 / 3, 80 / 200 / 3])
    [note] = round_.manifest()["notes"]
    assert note.endswith("a factor of 10 of their median: eve 9007199254740992 as 200")


def test_the_first_task_of_a_process_is_told_from_warm_ones(
    open_round: Callable[..., Round],
) -> None:
    totals = []
    for _ in range(2):
        round_ = open_round(clients=1)
        submit_reporting(round_, "a", 1, report(1.0))
        assert round_.go() == {"status": "completed"}
        totals.append(round_.manifest()["totals"]["cold_starts"])
        assert round_.manifest()["waited_seconds"] > 0
    # Both rounds' tasks run in this process, and tests before may have warmed it.
    assert totals[1] == 0


def test_keys_of_progress_are_not_updates(open_round: Callable[..., Round]) -> None:
    keys = RoundKeys("r")
    assert keys.partial_update("a") == "rounds/r/partial-updates/a.safetensors"
    round_ = open_round(clients=1)
    round_.aggregator = LambdaConfig(512, "arm64")
    round_.store.put_bytes(round_.keys.partial_update("a"), b"anything")
    with pytest.raises(QuorumError, match="0 good updates"):
        round_.go()
