"""The memory that a task is projected to take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import topologies
from gradshard_core.costs import memory_projection
from gradshard_core.limits import aws_limits
from gradshard_core.units import MIB


def test_memory_projection_is_its_arithmetic() -> None:
    block, scratch, raw = 8 * 1, 8 * 0.25, 8 * 0.25
    streams = 5 * 0.1875 + 4 * 2 * 2
    idle = memory_projection.RESIDENT_MB + memory_projection.RUNTIME_MB
    needed = memory_projection.project_memory(4, plan_bytes=MIB)
    assert needed == idle + block + scratch + raw + streams + 8


def test_accumulators_of_an_order_take_the_room_of_one() -> None:
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
