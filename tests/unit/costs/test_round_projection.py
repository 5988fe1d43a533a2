"""The seconds, requests and dollars that an aggregation is projected to take."""

from dataclasses import replace
from typing import Any

import pytest

from gradshard_core.aggregation import topologies
from gradshard_core.aggregation.reordered_reads import Disorder
from gradshard_core.costs import assumed_speeds, large_round_limits
from gradshard_core.costs.bandwidth_model import Bandwidth
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_projection import client_requests, project
from gradshard_core.costs.workload import Workload
from gradshard_core.limits import aws_limits
from gradshard_core.units import MIB

GIB = 1024 * MIB


def arm(memory_mb: int, **options: Any) -> LambdaConfig:
    return LambdaConfig(memory_mb, "arm64", **options)


def one_level(nbytes: int, clients: int, **options: Any) -> Workload:
    return Workload(nbytes, ((clients,),), **options)


def test_orders_of_tensors_take_time_requests_memory_and_money() -> None:
    load = one_level(10**8, 4)
    disorder = Disorder(requests=90, skipped=50 * MIB, groups=10)
    other = replace(load, disorder=(disorder,))
    for m in (1, 4, 19):
        plain, mixed = (project(given, m, arm(512)) for given in (load, other))
        requests, skipped = disorder.cut(m)
        assert mixed.requests.gets - plain.requests.gets == round(requests)
        waiting = assumed_speeds.REQUEST_SECONDS * requests / m
        read = 4 * 10**8 / m
        reading = arm(512).task_seconds(read + skipped / m) - arm(512).task_seconds(read)
        assert mixed.seconds - plain.seconds == pytest.approx(waiting + reading)
        assert mixed.needed_mb > plain.needed_mb
        assert mixed.total_dollars > plain.total_dollars


def test_the_longest_group_decides_how_long_orders_take() -> None:
    load = Workload(10**8, ((2, 2), (2,)))
    few, many = Disorder(10, 0, 10), Disorder(30, 0, 10)
    alone = project(replace(load, disorder=(Disorder(), many)), 1, arm(512))
    both = project(replace(load, disorder=(few, many)), 1, arm(512))
    assert both.seconds == alone.seconds
    assert both.requests.gets - alone.requests.gets == 10


def test_reading_the_reports_of_many_tasks_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Workload(10**11, topologies.grid(1000), measures=True)
    for load, passes in ((Workload(10**11, topologies.grid(1000)), 1), (measured, 2)):
        with_reports = project(load, 1000, arm(1769))
        with monkeypatch.context() as patch:
            patch.setattr(large_round_limits, "SECONDS_PER_REPORT", 0.0)
            without = project(load, 1000, arm(1769))
        # Of each pass, 16 at a time; a request takes 0.1 s.
        further = with_reports.tasks - 16 * passes
        assert with_reports.seconds - without.seconds == pytest.approx(further * 0.1 / 16)


def test_applying_reads_and_writes_model_and_state_besides() -> None:
    plain, adam = one_level(100 * MIB, 4), one_level(100 * MIB, 4, applied=2)
    one, other = (project(x, 5, arm(128)) for x in (plain, adam))
    # Five tasks read and write three more objects each; the headers are in the plan.
    assert other.requests.gets - one.requests.gets == 5 * 3
    assert other.requests.puts - one.requests.puts == 5 * 3
    # Seven inputs' bytes are read where there were four.
    assert other.task_seconds == arm(128).task_seconds(7 * 20 * MIB)
    assert other.needed_mb > one.needed_mb
    assert other.bill.total > one.bill.total


@pytest.mark.parametrize(
    ("concurrency", "waves"),
    # Batches of at most 40 run whole: 60 at once are 40, 100 are 80.
    [(0, 1), (1, 120), (7, 18), (60, 3), (100, 2), (120, 1), (1000, 1)],
)
def test_a_limit_on_functions_makes_tasks_come_in_waves(concurrency: int, waves: int) -> None:
    limited = project(one_level(GIB, 4), 120, arm(512, concurrency=concurrency))
    free = project(one_level(GIB, 4), 120, arm(512))
    assert limited.task_seconds == free.task_seconds
    assert limited.seconds - free.seconds == pytest.approx((waves - 1) * free.task_seconds)


def test_waves_are_counted_level_by_level() -> None:
    # 10 tasks and 3 over their sums, four functions: three waves and one.
    load = Workload(GIB, ((2,) * 10, (3, 3, 4)))
    aggregator = arm(512, concurrency=4)
    below, above = (aggregator.task_seconds(n * GIB) for n in (2, 4))
    around = assumed_speeds.ROUND_OVERHEAD_SECONDS + assumed_speeds.LEVEL_OVERHEAD_SECONDS
    projection = project(load, 1, aggregator)
    assert projection.seconds == pytest.approx(3 * below + above + around)


@pytest.mark.parametrize(
    ("nbytes", "requests"),
    [
        (16 * MIB, Requests(gets=1, puts=1)),
        (40 * MIB, Requests(gets=1, puts=1)),
        (GIB, Requests(gets=4, puts=1)),
        # Eight parts, begun, completed, and a listing.
        (GIB + 1, Requests(gets=4, puts=11)),
        # 19 parts of 5 GiB, and a last one of less.
        (96 * GIB, Requests(gets=4, puts=23)),
    ],
)
def test_clients_requests(nbytes: int, requests: Requests) -> None:
    assert client_requests(nbytes) == requests


def test_dollars_of_a_round_by_hand() -> None:
    projection = project(one_level(40 * MIB, 10), 2, arm(1769))
    bill = projection.bill
    # Each task reads the plan and ten inputs; it writes a part and a report.
    assert projection.requests == Requests(gets=2 * 10 + 2, puts=2 + 2)
    assert bill.s3_aggregators == pytest.approx(22 * 0.4e-6 + 4 * 5e-6)
    assert bill.s3_clients == pytest.approx(10 * (5e-6 + 0.4e-6))
    task = 0.2 + max(200 / 1024, 1.2 * 200 * MIB / 1e9)
    assert projection.task_seconds == pytest.approx(task)
    assert projection.gb_seconds == pytest.approx(2 * task * 1769 / 1024)
    assert bill.lambda_ == pytest.approx(projection.gb_seconds * 0.0000133334)
    assert bill.step_functions == pytest.approx(
        # Both tasks share one execution.
        (3 + 2 + 1) * 0.025e-3 + 1e-6 + task / 16 * 0.00001667
    )
    assert projection.total_dollars == pytest.approx(
        bill.lambda_
        + bill.s3_aggregators
        + bill.s3_clients
        + bill.requests
        + bill.step_functions
        + bill.round_
        + bill.events
        + bill.starts
    )
    # Ten updates and the result; and the event of the round's end.
    assert bill.events == pytest.approx((10 + 1) * 0.5e-6 + 1e-6)
    # Tasks of a whole processor, and the four functions around them at their shares.
    small = sum(mb / 1024 * 0.1 + 0.15 * 1769 / 1024 for mb in (256, 256, 472, 256))
    tasks = 2 * (1769 / 1024) * (0.1 + 0.13)
    assert bill.starts == pytest.approx((tasks + small) * 0.0000133334)


def test_levels_by_hand() -> None:
    # Seven updates of two bytes an element by threes, M = 2; sums are of four bytes.
    slow = Bandwidth("10 MiB/s", 10 * MIB)
    load = Workload(100 * MIB, ((3, 3, 1), (3,)), sums_bytes=200 * MIB)
    projection = project(load, 2, arm(1769, bandwidth=slow))
    leaf, last, root = (0.2 + mib / 10 for mib in (3 * 50, 50, 3 * 100))
    assert projection.task_seconds == pytest.approx(root)
    assert projection.seconds == pytest.approx(
        leaf + root + assumed_speeds.ROUND_OVERHEAD_SECONDS + assumed_speeds.LEVEL_OVERHEAD_SECONDS
    )
    assert projection.tasks == 2 * (3 + 1)
    assert projection.gb_seconds == pytest.approx(2 * (2 * leaf + last + root) * 1769 / 1024)
    # Seven updates and three sums a shard, a plan a task, the header once; a sum and a report.
    assert projection.requests == Requests(gets=2 * (7 + 3) + 8, puts=2 * 8)


def test_fewer_at_once_are_more_executions() -> None:
    load = one_level(100 * MIB, 2)
    forty, four = (project(load, 8, arm(1769, concurrency=concurrency)) for concurrency in (0, 4))
    each = 0.025e-3 + 1e-6 + forty.task_seconds / 16 * 0.00001667
    assert four.total_dollars - forty.total_dollars == pytest.approx(each)


def test_projection_as_json_has_its_dollars_by_part() -> None:
    written = project(one_level(40 * MIB, 10), 2, arm(1769)).to_json()
    assert written["dollars"]["total"] == pytest.approx(
        sum(
            written["dollars"][part]
            for part in (
                *("lambda", "s3_aggregators", "s3_clients", "requests", "step_functions", "round"),
                *("events", "starts"),
            )
        )
    )
    assert (written["shards"], written["gets"], written["puts"]) == (2, 22, 4)


def test_pass_that_measures_is_counted() -> None:
    aggregator = LambdaConfig(1769, "arm64")
    load = Workload(GIB, ((20,),), widening=1)
    once, twice = (
        project(replace(load, measures=measures), 8, aggregator) for measures in (False, True)
    )
    assert twice.tasks == 2 * once.tasks
    # Each task of the first pass reads the plan and its inputs; each of the second the decision.
    assert twice.requests.gets - once.requests.gets == 8 * (1 + 20) + 8
    assert twice.requests.puts - once.requests.puts == 8
    # At a whole processor, the network decides how long each pass takes.
    assert twice.seconds - once.seconds == pytest.approx(
        once.task_seconds + assumed_speeds.REPLAN_OVERHEAD_SECONDS, rel=0.5
    )
    assert 1.8 * once.bill.lambda_ < twice.bill.lambda_ < 3 * once.bill.lambda_
    assert twice.bill.step_functions > once.bill.step_functions


def test_measuring_takes_processor_time_in_proportion_to_the_elements() -> None:
    aggregator = LambdaConfig(192, "arm64")
    processor = 192 / aws_limits.MB_PER_VCPU
    begin = assumed_speeds.TASK_START_SECONDS + aggregator.bandwidth.latency_seconds
    for nbytes in (1000, GIB):
        load = Workload(nbytes, ((20,),), widening=1)
        once, twice = (
            project(replace(load, measures=measures), 8, aggregator) for measures in (False, True)
        )
        gb = 20 * nbytes / 8 / 1e9
        cpu_seconds = assumed_speeds.ROWS_CPU_SECONDS_PER_GB * gb
        network_seconds = aggregator.bandwidth.seconds(gb * 1e9)
        expected = begin + max(network_seconds, cpu_seconds / processor)
        measuring = twice.seconds - once.seconds - assumed_speeds.REPLAN_OVERHEAD_SECONDS
        assert measuring == pytest.approx(expected, rel=0.01), nbytes
