"""Rounds whose clients have their tensors in orders of their own: cheap, bounded, the same bits."""

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytest

from gradshard_core.aggregation import reordered_reads
from tests.integration.by_hand import Round, assert_average

TENSORS = 20_000


def gets(round_: Round) -> int:
    """Count the tasks' requests, of which each reads the plan, the first one a header, too."""
    keys = (round_.keys.task_report(0, task["task"]["number"]) for task in round_.tasks())
    return sum(round_.store.get_json(key)["gets"] for key in keys)


def test_twenty_thousand_shuffled_tensors(open_round: Callable[..., Round]) -> None:
    rng = np.random.default_rng(0)
    names = [f"t{n:05}" for n in range(TENSORS)]
    updates = [{name: rng.standard_normal(26).astype("f4") for name in names} for _ in range(4)]
    round_ = open_round(clients=4)
    for n, update in enumerate(updates):
        round_.submit(f"c{n}", update, n + 1, order=list(rng.permutation(names)))
    assert round_.plan()["shards"] == 1
    projected = round_.store.get_json(round_.keys.plan)["projected"]
    begun = time.monotonic()
    round_.aggregate()
    seconds = time.monotonic() - begun
    print(f"{gets(round_)} GETs, projected {projected['gets']}; {seconds:.1f} s")
    assert gets(round_) == projected["gets"] < 25
    assert round_.finalize() == {"status": "completed"}
    assert_average(round_.result(), updates, [1, 2, 3, 4])


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_a_few_orders_of_large_and_small_tensors(
    open_round: Callable[..., Round], shards: int
) -> None:
    rng = np.random.default_rng(1)
    sizes = [900_000, 3, 40_000, 7, 700_000, 5, 1, 3_000_000, 256, 256, 90_001, 400_000]
    names = [f"layer.{n}" for n in range(len(sizes))]
    updates = [
        {
            name: rng.standard_normal(size).astype("f4")
            for name, size in zip(names, sizes, strict=True)
        }
        for _ in range(5)
    ]
    orders = [names, names, names, sorted(names), names[::-1]]
    round_ = open_round(clients=5, shards=shards)
    for n, (update, order) in enumerate(zip(updates, orders, strict=True)):
        round_.submit(f"c{n}", update, n + 1, order=order)
    assert round_.plan()["shards"] == shards
    projected = round_.store.get_json(round_.keys.plan)["projected"]
    round_.aggregate()
    print(f"M={shards}: {gets(round_)} GETs, projected {projected['gets']}")
    assert gets(round_) <= projected["gets"] + 2 * shards
    assert round_.finalize() == {"status": "completed"}
    assert_average(round_.result(), updates, [1, 2, 3, 4, 5])


def test_a_nan_in_another_order_is_found(open_round: Callable[..., Round]) -> None:
    names = [f"t{n}" for n in range(300)]
    updates = [{name: np.full(1000, n, "f4") for name in names} for n in range(3)]
    updates[2]["t123"][45] = np.nan
    round_ = open_round(clients=3, min_clients=1)
    round_.submit("c0", updates[0])
    round_.submit("c1", updates[1])
    round_.submit("c2", updates[2], order=[*names[150:], *reversed(names[:150])])
    round_.plan()
    round_.aggregate()
    assert round_.finalize()["status"] == "replan"
    reason = round_.store.get_json(round_.keys.rejection("c2"))["reason"]
    assert reason.endswith("tensor 't123' holds a NaN or an infinity at element 45")


def test_an_order_that_costs_too_much_is_rejected(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reordered_reads, "MAX_FURTHER_REQUESTS", 0)
    monkeypatch.setattr(reordered_reads, "GAP_BYTES", 1000)
    monkeypatch.setattr(
        "gradshard_core.aggregation.reordered_reads.reorder_memory_bytes", lambda: 1000
    )
    names = [f"t{n}" for n in range(20)]
    update = {name: np.ones(100, "f4") for name in names}
    mixed = list(itertools.chain(*zip(names[:10], names[10:], strict=True)))
    round_ = open_round(clients=3, min_clients=1)
    round_.submit("a", update)
    round_.submit("b", update)
    round_.submit("c", update, order=mixed)
    assert round_.go() == {"status": "completed"}
    reason = round_.store.get_json(round_.keys.rejection("c"))["reason"]
    assert reason == (
        f"{round_.keys.update('c')}: its tensors stand in another order than the round's. So "
        "reading its 8000 bytes takes 3 further requests and reads 6400 bytes in vain. An update "
        "of that size may take 8 further requests, and 1000 bytes in vain count as one; write its "
        "tensors in the round's order, as gradshard's own client does where the round has a layout "
        "or a model"
    )


def test_runs_that_do_not_fit_into_the_tasks_memory_are_rejected(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.rounds.layout_check.MAX_RUNS", 10)
    names = [f"t{n}" for n in range(9)]
    update = {name: np.ones(10, "f4") for name in names}
    round_ = open_round(clients=4, min_clients=1)
    round_.submit("a", update)
    round_.submit("b", update)
    round_.submit("c", update, order=names[::-1])
    round_.submit("d", update, order=[*names[3:], *reversed(names[:3])])
    assert round_.go() == {"status": "completed"}
    assert round_.store.get_json(round_.keys.rejection("d")) is None
    reason = round_.store.get_json(round_.keys.rejection("c"))["reason"]
    assert (
        "in 9 separate stretches; with 3 further ones of other updates these are over the 10 that"
        in reason
    )
