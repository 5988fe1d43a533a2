"""The price of a round, computed by hand and from its functions' requests."""

import pytest

from gradshard_core.costs import aws_prices, round_cost
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_cost import Bill, Tasks


def test_tasks_in_batches_by_hand() -> None:
    levels = [[Tasks(80, 10.0), Tasks(1, 30.0)], [Tasks(2, 5.0)]]
    bill = round_cost.bill(
        levels,
        clients=7,
        memory_mb=512,
        architecture="x86_64",
        aggregators=Requests(1000, 100),
        by_clients=Requests(70, 14),
        batch=40,
    )
    # 81 tasks are three executions of as long as the slowest, two tasks are one.
    started, seconds = 3 + 1, 3 * 30 + 5
    assert bill.step_functions == pytest.approx(
        (3 + 2 * 2 + started) * 0.025e-3 + started * 1e-6 + seconds * 0.0625 * 0.00001667
    )
    assert bill.lambda_ == pytest.approx((800 + 30 + 10) * 0.5 * 0.0000166667)
    assert bill.s3_aggregators == pytest.approx(1000 * 0.4e-6 + 100 * 5e-6)
    assert bill.s3_clients == pytest.approx(70 * 0.4e-6 + 14 * 5e-6)
    # 83 tasks, seven arrivals, the result, open, plan, and finalize after each level.
    assert bill.requests == pytest.approx((83 + 7 + 1 + 4) * 0.2e-6)
    assert bill.events == pytest.approx((7 + 1) * 0.5e-6 + 1e-6)
    # Six arrivals look for one client each, and the last one for seven.
    around = (3 + 2 * 7 + 13 + 10 + 85 + 1) * 0.4e-6 + (2 + 4 + 3) * 5e-6
    assert bill.round_ == pytest.approx(
        (7 * 256 + 256 + 472 + 256) / 1024 * 0.3 * 0.0000166667 + around
    )


def test_tasks_alone_pay_an_execution_each() -> None:
    def step_functions(batch: int) -> float:
        return round_cost.bill(
            [[Tasks(40, 60.0)]],
            clients=1,
            memory_mb=128,
            architecture="arm64",
            aggregators=Requests(0, 0),
            by_clients=Requests(0, 0),
            batch=batch,
        ).step_functions

    each = 0.025e-3 + 1e-6 + 60 * 0.0625 * 0.00001667
    assert step_functions(1) - step_functions(40) == pytest.approx(39 * each)


def test_bills_add_up() -> None:
    bill = Bill(1, 2, 3, 4, 5, 6, 7, 8)
    assert (bill.aggregators, bill.full, bill.total) == (3, 6, 36)
    assert bill.minus(Bill(1, 1, 1, 1, 1, 1, 1, 1)) == Bill(0, 1, 2, 3, 4, 5, 6, 7)
    assert bill.to_json() == {
        "lambda": 1,
        "s3_aggregators": 2,
        "s3_clients": 3,
        "requests": 4,
        "step_functions": 5,
        "round": 6,
        "events": 7,
        "starts": 8,
        "agg": 3,
        "full": 6,
        "total": 36,
    }


def test_every_invocation_is_billed() -> None:
    bill = round_cost.bill(
        [[Tasks(3, 1.0)]],
        clients=5,
        memory_mb=128,
        architecture="arm64",
        aggregators=Requests(0, 0),
        by_clients=Requests(0, 0),
    )
    # Tasks, arrivals, the result, and open, plan and finalize.
    assert round_cost.invocations(3, 5) == 3 + 5 + 1 + 3
    assert round_cost.invocations(3, 5, levels=2) == 3 + 5 + 1 + 4
    assert bill.requests == pytest.approx((3 + 5 + 1 + 3) * aws_prices.DOLLARS_PER_INVOCATION)
