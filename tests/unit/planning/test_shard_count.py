"""The choice of M, and what is rejected because no M will do."""

import itertools
import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import sharding, topologies
from gradshard_core.aggregation.reordered_reads import Disorder
from gradshard_core.costs import assumed_speeds, large_round_limits, memory_projection
from gradshard_core.costs.bandwidth_model import Bandwidth
from gradshard_core.costs.lambda_config import MEMORIES_MB, LambdaConfig
from gradshard_core.costs.round_projection import Projection, project
from gradshard_core.costs.workload import Workload
from gradshard_core.errors import PlanError
from gradshard_core.formats.tensor_layout import Layout
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


@given(nbytes=st.integers(1, 10**13).map(lambda n: n // 4 * 4 + 4), shards=st.integers(1, 1000))
def test_parts_keep_s3s_limits(nbytes: int, shards: int) -> None:
    spans = Layout.pack([("w", "F32", (nbytes // 4,))]).spans
    m = min(shards, shard_count.max_shards(nbytes))
    cuts = sharding.cut_shards(spans, nbytes, m)
    sizes = [shard.end - shard.start for shard in cuts]
    assert [shard.number for shard in cuts] == list(range(m))
    assert m == 1 or min(sizes) >= aws_limits.MIN_PART_BYTES
    assert m < shard_count.min_shards(nbytes) or max(sizes) < aws_limits.MAX_PART_BYTES


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
