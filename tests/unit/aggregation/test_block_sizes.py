"""The sizes of a task's buffers."""

from gradshard_core.aggregation import block_sizes
from gradshard_core.units import MIB


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
