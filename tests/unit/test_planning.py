"""Cutting, choosing, refusing, foreseeing."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard import limits, planning
from gradshard.errors import PlanError
from gradshard.layout import Layout
from gradshard.limits import MIB

ARM: Any = {"architecture": "arm64"}


@given(
    sizes=st.lists(
        st.tuples(st.sampled_from(["F32", "I8", "F64", "BF16"]), st.integers(1, 50)), min_size=1
    ),
    pieces=st.integers(1, 40),
)
def test_cuts_are_element_boundaries_in_order(sizes: list[tuple[str, int]], pieces: int) -> None:
    layout = Layout.pack((f"t{i}", dtype, (n,)) for i, (dtype, n) in enumerate(sizes))
    positions = planning.cut(layout.spans, 0, layout.nbytes, pieces)
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
    m = min(shards, planning.max_shards(nbytes))
    plan = planning.cut_shards(spans, nbytes, m)
    sizes = [shard.end - shard.start for shard in plan]
    assert [shard.part for shard in plan] == list(range(1, m + 1))
    assert m == 1 or min(sizes) >= limits.MIN_PART_BYTES
    assert m < planning.min_shards(nbytes) or max(sizes) < limits.MAX_PART_BYTES


def test_lowers_m_and_says_so() -> None:
    projection, notes = planning.choose(60 * MIB, 5, memory_mb=512, shards=1000, **ARM)
    assert projection.shards == 11
    [note] = notes
    assert note.startswith("M lowered from 1000 to 11: cut into more, an update of 62914560 bytes")
    assert "under the 5242880 bytes that S3 wants of a part" in note


def test_takes_the_m_that_was_asked_for() -> None:
    projection, notes = planning.choose(60 * MIB, 5, memory_mb=512, shards=7, **ARM)
    assert (projection.shards, notes) == (7, [])


def test_buys_time_with_shards() -> None:
    cheapest, _ = planning.choose(512 * MIB, 20, memory_mb=512, **ARM)
    quicker, _ = planning.choose(512 * MIB, 20, memory_mb=512, within=20, **ARM)
    assert cheapest.seconds > 20 >= quicker.seconds
    assert quicker.shards > cheapest.shards
    assert quicker.total_dollars > cheapest.total_dollars


def test_takes_about_a_minute_when_nobody_is_in_a_hurry() -> None:
    projection, _ = planning.choose(512 * MIB, 20, memory_mb=256, **ARM)
    assert 30 < projection.seconds <= planning.UNHURRIED_SECONDS
    # Where nothing takes less than a minute, more is no error: nobody asked for less.
    most = planning.max_shards(3_500_000_000_000)
    slow, _ = planning.choose(3_500_000_000_000, 30, memory_mb=3008, **ARM)
    assert slow.shards <= most
    assert slow.seconds > planning.UNHURRIED_SECONDS


def test_refuses_too_little_memory_with_the_numbers() -> None:
    with pytest.raises(PlanError, match=r"needs \d+ MB and has 60; deploy with AggregatorMemory="):
        planning.choose(10**9, 4, memory_mb=60, **ARM)


def test_refuses_a_task_that_takes_too_long() -> None:
    with pytest.raises(PlanError, match=r"over the 140 s .*; ask for at least \d+ shards"):
        planning.choose(4 * 10**9, 20, memory_mb=512, shards=1, **ARM)
    with pytest.raises(PlanError, match="over the 140 s that a task may; average fewer clients"):
        planning.choose(4 * 10**12, 64, memory_mb=3008, **ARM)


def test_refuses_a_budget_nothing_meets() -> None:
    with pytest.raises(PlanError, match=r"no M aggregates within 0.1 s: the fastest, M=\d+"):
        planning.choose(10**9, 20, memory_mb=512, within=0.1, **ARM)


def test_memory_projection_is_its_arithmetic() -> None:
    block, scratch, raw, written = 8 * 1, 8 * 0.25, 0.25, 1
    streams = 5 * 0.1875 + 4 * 2 * 2
    idle = planning.RESIDENT_MB + planning.RUNTIME_MB
    needed = planning.project_memory(4, plan_bytes=MIB)
    assert needed == idle + block + scratch + raw + written + streams + 8


def test_any_round_fits_the_smallest_function() -> None:
    assert max(planning.project_memory(n) for n in range(1, 65)) < limits.MIN_MEMORY_MB


def test_refuses_parts_beyond_s3s_largest() -> None:
    with pytest.raises(PlanError, match="takes at least 2 shards, since S3"):
        planning.choose(6 * 1024**3, 1, memory_mb=1769, shards=1, **ARM)
    with pytest.raises(PlanError, match="a round takes at most 10000"):
        planning.choose(60 * 1024**4, 1, memory_mb=1769, **ARM)


def test_frontier_trades_seconds_for_dollars() -> None:
    frontier = planning.frontier(512 * MIB, 20, memories=[256, 512, 1769], **ARM)
    seconds = [p.seconds for p in frontier]
    dollars = [p.total_dollars for p in frontier]
    assert seconds == sorted(seconds)
    assert dollars == sorted(dollars, reverse=True)
    assert len(frontier) > 3


def test_clients_send_large_updates_in_few_parts() -> None:
    assert planning.client_ranges(16 * MIB) == [(0, 16 * MIB)]
    assert planning.client_ranges(16 * MIB + 1) == [(0, 16 * MIB), (16 * MIB, 16 * MIB + 1)]
    assert len(planning.client_ranges(10**10)) == 8
    assert max(end - start for start, end in planning.client_ranges(10**12)) == 5 * 1024**3


def test_dollars_of_a_round_by_hand() -> None:
    projection = planning.project(40 * MIB, 10, 2, memory_mb=1769, **ARM)
    assert projection.dollars["s3_aggregators"] == pytest.approx(
        (2 * 10 + 2) * 0.4e-6 + (2 + 2) * 5e-6
    )
    assert projection.dollars["s3_clients"] == pytest.approx(10 * ((3 + 3) * 5e-6 + 3 * 0.4e-6))
    assert projection.task_seconds == pytest.approx(0.2 + max(200 / 1024, 1.2 * 200 * MIB / 1e9))
    assert projection.total_dollars == pytest.approx(sum(projection.dollars.values()))
