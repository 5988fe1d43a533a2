"""Shards: consecutive byte ranges that end between elements."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gradshard_core.aggregation import sharding
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.tensor_layout import Layout, Span
from gradshard_core.planning import shard_count
from tests import reference


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


def test_a_partial_sum_is_as_wide_as_its_accumulators() -> None:
    spans = (Span("BF16", 0, 100), Span("I8", 100, 107), Span("F64", 107, 123))
    # 50 in four bytes, 7 in eight, 2 in eight.
    assert sharding.sums_bytes(spans, 0, 123) == 200 + 56 + 16
    assert sharding.sums_bytes(spans, 98, 102) == 4 + 16


def test_shards_cover_the_layout() -> None:
    spans = parse_header(
        (blob := reference.encode({"w": np.zeros(1000, "f4")}))[8:-4000], len(blob)
    ).layout.spans
    shards = sharding.cut_shards(spans, 4000, 3)
    assert [shard.number for shard in shards] == [0, 1, 2]
    assert (shards[0].start, shards[-1].end) == (0, 4000)
    assert shard_count.max_shards(4000) == 1
