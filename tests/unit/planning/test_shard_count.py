"""Cutting, choosing, rejecting, foreseeing."""

import itertools
import math
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import block_sizes, sharding, topologies
from gradshard_core.aggregation.reordered_reads import Disorder
from gradshard_core.costs import (
    assumed_speeds,
    client_transfers,
    large_round_limits,
    memory_projection,
)
from gradshard_core.costs.bandwidth_model import Bandwidth
from gradshard_core.costs.lambda_config import MEMORIES_MB, LambdaConfig
from gradshard_core.costs.request_counts import Requests
from gradshard_core.costs.round_projection import Projection, client_requests, project
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.formats.tensor_layout import Layout, Span
from gradshard_core.limits import aws_limits
from gradshard_core.planning import shard_count
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.units import MIB

GIB = 1024 * MIB


def arm(memory_mb: int, **options: Any) -> LambdaConfig:
    return LambdaConfig(memory_mb, "arm64", **options)


def one_level(nbytes: int, clients: int, **options: Any) -> Workload:
    return Workload(nbytes, ((clients,),), **options)


def tree(nbytes: int, clients: int, **options: Any) -> Workload:
    return Workload(nbytes, topologies.lambda_fl(clients), is_cut=False, **options)


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(["F32", "I8", "F64", "BF16"]), st.integers(1, 50)), min_size=1
    ),
    pieces=st.integers(1, 40),
)
def test_cuts_are_element_boundaries_in_order(sizes: list[tuple[str, int]], pieces: int) -> None:
    layout = Layout.pack((f"t{i}", dtype, (n,)) for i, (dtype, n) in enumerate(sizes))
    positions = sharding.cut(layout.spans, 0, layout.nbytes, pieces)
    assert len(positions) == pieces + 1
    assert positions == sorted(positions)
    assert (positions[0], positions[-1]) == (0, layout.nbytes)
    boundaries = {layout.nbytes}
    for span in layout.spans:
        boundaries.update(
            range(span.start, span.end, {"F32": 4, "I8": 1, "F64": 8, "BF16": 2}[span.dtype])
        )
    assert set(positions) <= boundaries


@given(nbytes=st.integers(1, 10**13).map(lambda n: n // 4 * 4 + 4), shards=st.integers(1, 1000))
def test_parts_keep_s3s_limits(nbytes: int, shards: int) -> None:
    spans = Layout.pack([("w", "F32", (nbytes // 4,))]).spans
    m = min(shards, shard_count.max_shards(nbytes))
    cuts = sharding.cut_shards(spans, nbytes, m)
    sizes = [shard.end - shard.start for shard in cuts]
    assert [shard.number for shard in cuts] == list(range(m))
    assert m == 1 or min(sizes) >= aws_limits.MIN_PART_BYTES
    assert m < shard_count.min_shards(nbytes) or max(sizes) < aws_limits.MAX_PART_BYTES


def test_a_partial_sum_is_as_wide_as_its_accumulators() -> None:
    spans = (Span("BF16", 0, 100), Span("I8", 100, 107), Span("F64", 107, 123))
    # 50 in four bytes, 7 in eight, 2 in eight.
    assert sharding.sums_bytes(spans, 0, 123) == 200 + 56 + 16
    assert sharding.sums_bytes(spans, 98, 102) == 4 + 16


def test_lowers_m_and_says_so() -> None:
    projection, notes = shard_count.choose(one_level(60 * MIB, 5), arm(512), shards=1000)
    assert projection.shards == 11
    [note] = notes
    assert note.startswith("M lowered from 1000 to 11: cut into more, an update of 62914560 bytes")
    assert "under the 5242880 bytes that S3 wants of a part" in note


def test_takes_the_m_that_was_asked_for() -> None:
    projection, notes = shard_count.choose(one_level(60 * MIB, 5), arm(512), shards=7)
    assert (projection.shards, notes) == (7, [])


def test_buys_time_with_shards() -> None:
    load = one_level(512 * MIB, 20)
    cheapest, _ = shard_count.choose(load, arm(128))
    quicker, _ = shard_count.choose(load, arm(128), time_budget=20)
    assert cheapest.seconds > 20 >= quicker.seconds
    assert quicker.shards > cheapest.shards
    assert quicker.total_dollars > cheapest.total_dollars


def test_plans_for_a_minute_without_a_time_budget() -> None:
    projection, _ = shard_count.choose(one_level(512 * MIB, 20), arm(256))
    assert 30 < projection.seconds <= shard_count.UNHURRIED_SECONDS
    # Where nothing takes less than a minute, more is no error: nobody asked for less.
    most = shard_count.max_shards(3_500_000_000_000)
    slow, _ = shard_count.choose(one_level(3_500_000_000_000, 30), arm(3008))
    assert slow.shards <= most
    assert slow.seconds > shard_count.UNHURRIED_SECONDS


@given(fewest=st.integers(1, 300), span=st.integers(0, 9700))
def test_considers_every_small_m_and_steps_of_under_a_hundredth(fewest: int, span: int) -> None:
    most = fewest + span
    counts = shard_count.shard_counts(fewest, most)
    assert (counts[0], counts[-1]) == (fewest, most)
    small = min(most, 256)
    assert [m for m in counts if m <= small] == list(range(fewest, small + 1))
    assert all(m < after <= 1.01 * m or after == m + 1 for m, after in itertools.pairwise(counts))


@cache
def every_choice(nbytes: int, clients: int) -> list[Projection]:
    load = Workload(nbytes, topologies.grid(clients))
    return [project(load, m, arm(256)) for m in range(1, shard_count.max_shards(load.nbytes) + 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("nbytes", "clients"), [(60 * 10**9, 20), (6 * 10**9, 1000)])
@pytest.mark.parametrize("time_budget", [None, 120.0])
def test_no_m_is_cheaper_by_a_hundredth_than_the_chosen_one(
    nbytes: int, clients: int, time_budget: float | None
) -> None:
    load = Workload(nbytes, topologies.grid(clients))
    chosen, _ = shard_count.choose(load, arm(256), time_budget=time_budget)
    budget = time_budget or shard_count.UNHURRIED_SECONDS
    every = every_choice(nbytes, clients)
    fitting = [p for p in every if p.seconds <= budget and p.task_seconds <= 140]
    assert chosen.seconds <= budget
    assert chosen.total_dollars <= 1.01 * min(p.total_dollars for p in fitting)


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


def test_orders_that_take_too_long_are_rejected_with_advice() -> None:
    load = replace(one_level(10**7, 64), disorder=(Disorder(3000, 0, 100),))
    with pytest.raises(
        PlanError, match=r"over the 140 s .*; open the round with a layout, so that"
    ):
        shard_count.choose(load, arm(512))


def test_rejects_too_little_memory_with_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"needs \d+ MB and has 60; deploy with AggregatorMemory="):
        shard_count.choose(one_level(10**9, 4), arm(60))


def test_rejects_a_task_that_takes_too_long() -> None:
    with pytest.raises(
        PlanError, match=r"over the 140 s .*; ask for at least \d+ shards"
    ) as caught:
        shard_count.choose(one_level(4 * 10**9, 20), arm(512), shards=1)
    # That many are enough, and one less is not.
    enough = int(str(caught.value).split()[-2])
    load = one_level(4 * 10**9, 20)
    assert project(load, enough, arm(512)).task_seconds <= 140
    assert project(load, enough - 1, arm(512)).task_seconds > 140
    with pytest.raises(PlanError, match="over the 140 s that a task may; average fewer clients"):
        shard_count.choose(one_level(4 * 10**12, 64), arm(3008))
    with pytest.raises(PlanError, match=r"over the 140 s .*; deploy with more AggregatorMemory"):
        shard_count.choose(one_level(15 * 10**11, 64), arm(128))
    with pytest.raises(PlanError, match=r"over the 140 s .*; take shards or grid, whose tasks are"):
        shard_count.choose(tree(5 * 10**9, 60), arm(3008))


def test_tasks_are_as_few_as_finalizing_can_read_the_reports_of() -> None:
    requests = large_round_limits.MAX_TASKS / SMALL_OBJECT_READERS
    reading = requests * assumed_speeds.REQUEST_SECONDS
    assert reading <= assumed_speeds.FINALIZE_TIMEOUT_SECONDS / 2
    share = assumed_speeds.FINALIZE_MEMORY_MB / aws_limits.MB_PER_VCPU
    working = large_round_limits.MAX_TASKS * assumed_speeds.REPORT_CPU_SECONDS / share
    assert working <= assumed_speeds.FINALIZE_TIMEOUT_SECONDS / 2

    load = Workload(10**11, topologies.grid(100_000))
    with pytest.raises(
        PlanError, match=r"over the 140 s that a task may; 568 shards, which would do, are 902552 "
    ) as caught:
        shard_count.choose(load, arm(192))
    fewer = int(str(caught.value).split()[-4])
    projection, _ = shard_count.choose(Workload(10**11, topologies.grid(fewer)), arm(192))
    assert 0.8 * large_round_limits.MAX_TASKS < projection.tasks <= large_round_limits.MAX_TASKS
    assert shard_count.frontier(load, arm(192), memories=MEMORIES_MB) == []


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


def test_too_many_shards_and_too_many_groups_are_rejected_with_advice() -> None:
    load = Workload(10**11, topologies.grid(1000))
    with pytest.raises(PlanError, match=r"9000 shards are 153000 tasks, over .* at most 4235 sha"):
        shard_count.choose(load, arm(192), shards=9000)
    assert shard_count.choose(load, arm(192), shards=4235)[0].tasks <= large_round_limits.MAX_TASKS

    pairs = Workload(10**6, topologies.grid(100_000, (2,)))
    with pytest.raises(PlanError, match=r"1 shards are \d+ tasks, .*; average at most") as caught:
        shard_count.choose(pairs, arm(192))
    fewer = int(str(caught.value).split()[-4])
    pairs = Workload(10**6, topologies.grid(fewer, (2,)))
    assert shard_count.choose(pairs, arm(192))[0].tasks > 0.8 * large_round_limits.MAX_TASKS


def test_rejects_a_budget_nothing_meets() -> None:
    with pytest.raises(PlanError, match=r"no M aggregates within 0.1 s: the fastest, M=\d+"):
        shard_count.choose(one_level(10**9, 20), arm(512), time_budget=0.1)


def test_rejects_parts_beyond_s3s_largest() -> None:
    with pytest.raises(PlanError, match=r"takes at least 2 shards, since S3 .*; ask for that many"):
        shard_count.choose(one_level(6 * GIB, 1), arm(1769), shards=1)
    with pytest.raises(PlanError, match="a round takes at most 10000"):
        shard_count.choose(one_level(60 * 1024 * GIB, 1), arm(1769))


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


def test_a_state_wider_than_the_model_decides_the_fewest_shards() -> None:
    wide = one_level(2 * GIB, 4, sums_bytes=16 * GIB, applied=1)
    projection, _ = shard_count.choose(wide, arm(128))
    assert projection.shards >= 4
    with pytest.raises(PlanError, match="whose optimizer's state has 17179869184"):
        shard_count.choose(wide, arm(128), shards=3)


def test_rejects_trees_beyond_s3s_largest_object() -> None:
    with pytest.raises(
        PlanError, match=r"6442450944 bytes takes at least 2 shards.* 5368709120 .*; take grid"
    ):
        shard_count.choose(tree(6 * GIB, 20), arm(3008))
    # Bytes are summed in float64: partial sums of eight times the size.
    wide = tree(GIB, 20, sums_bytes=8 * GIB)
    with pytest.raises(PlanError, match=r"whose partial sums have 8589934592, takes at least 2 "):
        shard_count.choose(wide, arm(3008))
    assert shard_count.choose(replace(wide, levels=((4,),)), arm(3008))[0].tasks == 1


def test_partial_sums_of_a_grid_stay_within_s3s_largest_object() -> None:
    load = Workload(2 * GIB, ((2, 2), (2,)), sums_bytes=16 * GIB)
    projection, _ = shard_count.choose(load, arm(3008), time_budget=math.inf)
    assert projection.shards >= 4
    for p in shard_count.frontier(load, arm(3008), memories=[3008]):
        assert p.shards >= 4


def test_memory_projection_is_its_arithmetic() -> None:
    block, scratch, raw = 8 * 1, 8 * 0.25, 8 * 0.25
    streams = 5 * 0.1875 + 4 * 2 * 2
    idle = memory_projection.RESIDENT_MB + memory_projection.RUNTIME_MB
    needed = memory_projection.project_memory(4, plan_bytes=MIB)
    assert needed == idle + block + scratch + raw + streams + 8


def test_accumulators_of_an_order_share_the_room_of_one() -> None:
    # A MiB of four inputs; a third of it is 341 KiB, five times 64; a sixth 170, twice 64.
    assert [block_sizes.block_bytes(4, depth) for depth in (1, 2, 3, 6)] == [
        MIB,
        MIB // 2,
        5 * 64 * 1024,
        2 * 64 * 1024,
    ]
    # Never less than 64 KiB: of 64 inputs each has 160 KiB, two times 64.
    assert [block_sizes.block_bytes(64, depth) for depth in (1, 2, 6)] == [131072, 65536, 65536]
    alone, nested = (memory_projection.project_memory(4, depth=depth) for depth in (1, 3))
    assert alone - nested == pytest.approx(8 * 1 - 8 * 3 * 0.3125)


@given(
    inputs=st.integers(1, topologies.MAX_FAN_IN),
    depth=st.integers(1, 6),
    contributors=st.integers(1, topologies.MAX_FAN_IN**2),
)
def test_any_task_fits_the_smallest_function(inputs: int, depth: int, contributors: int) -> None:
    needed = memory_projection.project_memory(
        inputs, memory_projection.plan_bytes(contributors), depth
    )
    assert needed < aws_limits.MIN_MEMORY_MB


def test_too_little_memory_is_rejected_with_both_numbers() -> None:
    load = Workload(GIB, ((4,),), plan_bytes=20 * MIB)
    needed = memory_projection.needed_memory(load)
    assert needed == memory_projection.project_memory(4, plan_bytes=20 * MIB)
    with pytest.raises(
        PlanError,
        match=rf"needs {math.ceil(needed)} MB and has 128; deploy with AggregatorMemory=\d+",
    ) as caught:
        shard_count.choose(load, arm(128))
    enough = int(str(caught.value).rpartition("=")[2])
    assert needed <= enough < needed + 64
    assert enough % 64 == 0
    assert shard_count.choose(load, arm(enough))[0].needed_mb == needed


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


def test_frontier_trades_seconds_for_dollars() -> None:
    frontier = shard_count.frontier(one_level(512 * MIB, 20), arm(128), memories=[256, 512, 1769])
    seconds = [p.seconds for p in frontier]
    dollars = [p.total_dollars for p in frontier]
    assert seconds == sorted(seconds)
    assert dollars == sorted(dollars, reverse=True)
    assert len(frontier) > 3


def test_frontier_offers_nothing_that_cannot_be_planned() -> None:
    # Where each task pays an execution of its own and nothing bursts, fewer are always cheaper.
    plain = arm(1769, bandwidth=Bandwidth("75 MiB/s", 75 * MIB), concurrency=1)
    frontier = shard_count.frontier(one_level(6 * GIB, 1), plain, memories=[1769])
    # But one part of 6 GiB is none of S3's.
    assert frontier[-1].shards == 2
    large = Workload(GIB, ((4,),), plan_bytes=200 * MIB)
    assert 1664 < memory_projection.needed_memory(large) < 1769
    found = shard_count.frontier(large, arm(128), memories=[1664, 3008])
    assert {p.memory_mb for p in found} == {3008}


def test_clients_fetch_large_results_in_few_ranges() -> None:
    assert client_transfers.download_ranges(0) == []
    assert client_transfers.download_ranges(64 * MIB) == [(0, 64 * MIB)]
    assert client_transfers.download_ranges(64 * MIB + 1) == [
        (0, 64 * MIB),
        (64 * MIB, 64 * MIB + 1),
    ]
    assert len(client_transfers.download_ranges(10**10)) == 4
    assert client_transfers.download_ranges(10**12)[-1] == (750 * 10**9, 10**12)


def test_clients_send_large_updates_in_few_parts() -> None:
    assert client_transfers.client_ranges(16 * MIB) == [(0, 16 * MIB)]
    assert client_transfers.client_ranges(16 * MIB + 1) == [(0, 16 * MIB), (16 * MIB, 16 * MIB + 1)]
    assert len(client_transfers.client_ranges(10**10)) == 8
    assert max(end - start for start, end in client_transfers.client_ranges(10**12)) == 5 * 1024**3


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


@pytest.mark.parametrize(("concurrency", "batch"), [(0, 40), (4, 4), (40, 40), (1000, 40)])
def test_a_batch_has_the_tasks_that_may_run_at_once(concurrency: int, batch: int) -> None:
    assert arm(128, concurrency=concurrency).batch == batch


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


def test_a_load_counts_its_groups() -> None:
    load = Workload(8, topologies.grid(1000))
    assert load.fan_ins == [Counter({63: 15, 55: 1}), Counter({16: 1})]
    assert (load.contributors, load.fan_in) == (1000, 63)


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


def test_memory_that_is_short_by_a_fraction_is_said_to_be_short() -> None:
    load = Workload(GIB, ((4,),))
    needed = memory_projection.needed_memory(load)
    memory_mb = math.floor(needed)
    with pytest.raises(PlanError, match=f"needs {memory_mb + 1} MB and has {memory_mb};"):
        shard_count.choose(load, arm(memory_mb))


def test_rule_that_holds_all_inputs_is_refused_with_the_memory_that_it_takes() -> None:
    load = Workload(GIB, ((64,),), widening=8, holds_all=True, measures=True)
    needed = memory_projection.needed_memory(load)
    with pytest.raises(PlanError, match=rf"needs {math.ceil(needed)} MB and has 128; deploy with"):
        shard_count.choose(load, LambdaConfig(128, "arm64"))
    assert shard_count.choose(load, LambdaConfig(256, "arm64"))[0].needed_mb == needed
    # Rows of 64 KiB of each input, in F32.
    slim = memory_projection.needed_memory(replace(load, widening=1, measures=False))
    plain = memory_projection.needed_memory(Workload(GIB, ((64,),)))
    assert slim - plain == pytest.approx((64 * 64 - 8 * 128) / 1024)
