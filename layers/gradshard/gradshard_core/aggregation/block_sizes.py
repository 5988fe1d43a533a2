"""The sizes of a task's buffers: how many bytes of each update it holds at once.

:mod:`gradshard_core.costs.memory_projection` projects a task's memory from these sizes.
"""

from typing import Final

from gradshard_core.units import MIB

MAX_BLOCK_BYTES: Final = MIB

ALL_BLOCKS_BYTES: Final = 10 * MIB
"""Bytes of the blocks of all inputs together: half of the size of their receive buffers."""

SLICE_BYTES: Final = 256 * 1024
"""Bytes read at a time: small enough that numpy works on them in the processor's cache."""

WIDENING: Final = 8
"""An element grows at most this much in its accumulator: 1-byte integers sum in float64."""

ROW_BYTES: Final = 64 * 1024
"""Bytes of a block of which a task holds every input's at once, whatever their number: few enough
for the memory of a small function, and enough for numpy's calls to cost little."""

MEASURED_BYTES: Final = 8 * MIB
"""Bytes of all inputs that a task which measures holds at once, if it can hold several chunks: so
many that reading costs hardly more than for a sum."""

MAX_ELEMENT_BYTES: Final = 8

STEP_ELEMENTS: Final = 32 * 1024
"""Elements in one step of a server optimizer: few enough for the processor's cache to hold all of
the step's float64 arrays."""


def block_bytes(inputs: int, depth: int = 1, *, is_disordered: bool = False) -> int:
    """Return the size of a block: the bytes of each input that are added before the next input's.

    Parameters
    ----------
    inputs
        The number of streams that a task has open.
    depth
        The number of accumulators, one for each level of the task's order. Together they take no
        more memory than a single one.
    is_disordered
        Whether inputs have their tensors in other orders, so that each block needs its own
        requests.
    """
    if is_disordered:
        return reorder_memory_bytes(depth)
    unit = 64 * 1024
    size = min(MAX_BLOCK_BYTES, ALL_BLOCKS_BYTES // inputs) // depth
    return max(unit, size // unit * unit)


def reorder_memory_bytes(depth: int = 1) -> int:
    """Return the size of a block if inputs have their tensors in other orders.

    It does not depend on the number of inputs, which are read one after another into one buffer.
    """
    return MAX_BLOCK_BYTES // depth


def chunks_at_once(inputs: int) -> int:
    """Return the number of chunks of ``ROW_BYTES`` that a task which measures reads at a time.

    They fit one slice, though the last one may be longer by an element.
    """
    most = (SLICE_BYTES - MAX_ELEMENT_BYTES) // ROW_BYTES
    return max(1, min(most, MEASURED_BYTES // (inputs * ROW_BYTES)))


def receive_buffer_bytes(inputs: int) -> int:
    """Return the size of the operating system's receive buffer for each connection.

    Without a bound it may grow to 6 MB of the function's memory. Two blocks are enough for it to
    fill while the other inputs are read. With one block, receiving took 15 % more CPU time
    (docs/performance.md).
    """
    return 2 * block_bytes(inputs)
