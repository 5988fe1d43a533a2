"""Project the peak memory of a task from sizes and counts."""

import math
from typing import Final

from gradshard_core.aggregation.block_sizes import (
    ROW_BYTES,
    SLICE_BYTES,
    STEP_ELEMENTS,
    WIDENING,
    block_bytes,
    chunks_at_once,
    receive_buffer_bytes,
    reorder_memory_bytes,
)
from gradshard_core.aggregation.reordered_reads import GROUPED
from gradshard_core.costs.workload import Workload
from gradshard_core.formats.long_lists import PIECE
from gradshard_core.units import MIB

RESIDENT_MB: Final = 40.0
"""A process that has imported the handler, numpy and a TLS context; 35.7 measured on x86-64."""

RUNTIME_MB: Final = 12.0
"""Lambda's own runtime client; measured in its container."""

STREAM_BYTES: Final = 192 * 1024
"""A connection without its receive buffer: its objects, and OpenSSL's state and buffers."""

PLAN_FACTOR: Final = 8
"""The memory of the parsed plan, divided by the size of its JSON."""

PLAN_BYTES_PER_CLIENT: Final = 576
"""Bytes of the plan's JSON for a contributor with one run."""

PLAN_BYTES_PER_WEIGHT: Final = 11
"""Bytes for a contributor's weight in a layer of partial updates. It is half of the JSON, since a
number takes less memory for its length than an object does (measured: 83 bytes with its text)."""

PLAN_BYTES_PER_PLACE: Final = 1
"""Bytes of the groups and of the names of pieces, for a contributor of any group."""

PLAN_BYTES_PER_SPAN: Final = 64

PLAN_BYTES_PER_RUN: Final = 20
"""Bytes for each run of a contributor but the first: three numbers, which are not kept as objects
(measured: 140 bytes of memory)."""

POSITION_BYTES: Final = 300
"""The positions of a stretch that is read in a group: its source range and its destination."""

DECODING_BYTES: Final = 2 * MIB
"""Buffers of :mod:`gradshard_core.aggregation.decoding`, temporary arrays, and a codec's table."""

BLOCK_BYTES: Final = 1024
"""The unit of blocks of an input that is being decoded, with its objects."""

UNIT_FACTOR: Final = 3
"""The memory of a unit of entries, with its indices in 64 bits, divided by its stored size."""

PAIR_BYTES: Final = 512
"""Bytes for each pair of measured inputs: exact sums of products in at most nine matrices with
their temporaries, their JSON, and what BLAS keeps
(:func:`gradshard_core.robust.inner_products.count_matrices`)."""

DECIDED_BYTES: Final = 640
"""Bytes of the decision for an update in a layer, which each task of the second pass reads."""

NOISE_BYTES: Final = 10 * MIB
"""The table of the noise with what it is made of, and a block of noise (measured: 7.8 MiB)."""

STEP_BYTES: Final = 12 * STEP_ELEMENTS * 8
"""An optimizer's step: model, update, old and new state and temporaries, at most twelve arrays of
float64."""


def plan_bytes(
    contributors: int, *, layers: int = 0, spans: int = 0, runs: int = 0, headers: int = 0
) -> int:
    """Return the size of a plan's JSON, as it counts for a task's memory.

    A task holds at most two pieces of the contributors: the one that it has read last, and the one
    before while its group is in both.

    Parameters
    ----------
    contributors
        The number of contributors; each has one run, and a weight in each layer.
    layers
        The number of layers of partial updates.
    spans
        The number of the layout's spans.
    runs
        The number of runs beyond the first of each contributor.
    headers
        The bytes of the headers that it holds.
    """
    held = min(contributors, 2 * PIECE)
    each = PLAN_BYTES_PER_PLACE + PLAN_BYTES_PER_WEIGHT * layers
    total = PLAN_BYTES_PER_CLIENT * held + each * contributors
    return total + PLAN_BYTES_PER_SPAN * spans + PLAN_BYTES_PER_RUN * runs + headers


def compared_layer_bytes(inputs: int) -> int:
    """Return the bytes of a task for a Gram matrix of inputs, and for the decision on it."""
    return PAIR_BYTES * inputs**2 + DECIDED_BYTES * inputs


def project_memory(
    inputs: int,
    plan_bytes: int = 0,
    depth: int = 1,
    models: int = 0,
    *,
    is_disordered: bool = False,
    held_widening: float | None = None,
    is_compressed: bool = False,
    measures: bool = False,
    matrices: int = 1,
    is_private: bool = False,
    unit_bytes: int = 0,
) -> float:
    """Return an upper bound of a task's peak memory in MB.

    projected = resident + runtime + arithmetic + streams + step + plan + reordering + decoding,
    where

    - *arithmetic*: an accumulator of one block for each of the ``depth`` levels of the task's
      order, a scratch slice and the slice that was read, each up to eight times as wide as the
      elements. A partial sum that is read is as wide as its accumulator. A robust rule has a block
      of every input instead, whose elements are at most ``held_widening`` times as wide. A task
      that measures has several of them, one more that is twice as wide, and matrices of pairs of
      inputs: one, or one for each layer of partial updates.
      The sum of a private round has accumulators of eight bytes, and the table of its noise;
    - *streams*: a connection per input with its receive buffer, for which the kernel takes twice
      what is asked for (socket(7));
    - *step*: if the average is applied, a stream to read and one to write for each of ``models``,
      and the arrays of the optimizer's step;
    - *plan*: the parsed plan, which grows with the number of contributors, layers and runs;
    - *reordering*: if tensors are in another order, a block of an input, the slice that was read
      for it, and the positions of its stretches; for a robust rule those of every input;
    - *decoding*: if updates are compressed, the buffers and tables of the codecs, and a unit of
      each input and of one more that is being read.

    It depends neither on the update's size nor on M.
    """
    block = block_bytes(inputs, depth, is_disordered=is_disordered)
    arithmetic = WIDENING * (depth * block + 2 * SLICE_BYTES)
    if held_widening is not None:
        # Of a task that measures: the chunks that it reads at a time, and one in float64.
        rows = chunks_at_once(inputs) + 2 if measures else 1
        wide = math.ceil(rows * held_widening * inputs * ROW_BYTES)
        arithmetic = wide + WIDENING * 2 * SLICE_BYTES
        if measures:
            arithmetic += matrices * compared_layer_bytes(inputs)
    if is_private:
        arithmetic = max(arithmetic, WIDENING * (block + 2 * SLICE_BYTES)) + NOISE_BYTES
    streams = (inputs + 1) * STREAM_BYTES
    streams += 2 * (inputs + models) * receive_buffer_bytes(inputs)
    streams += 2 * models * STREAM_BYTES
    step = STEP_BYTES if models else 0
    reordering = reorder_memory_bytes(depth) + SLICE_BYTES + POSITION_BYTES * GROUPED
    if held_widening is not None:
        reordering *= inputs
    buffers = arithmetic + streams + step + PLAN_FACTOR * plan_bytes
    buffers += reordering if is_disordered else 0
    if is_compressed:
        buffers += DECODING_BYTES + (inputs + 1) * (BLOCK_BYTES + UNIT_FACTOR * unit_bytes)
    return RESIDENT_MB + RUNTIME_MB + buffers / MIB


def needed_memory(load: Workload) -> float:
    """Return an upper bound of a task's peak memory in MB, which does not depend on M."""
    return project_memory(
        load.fan_in,
        load.plan_bytes,
        load.depth,
        load.models,
        is_disordered=load.is_disordered,
        held_widening=load.widening if load.holds_all or load.measures else None,
        is_compressed=load.stored_bytes is not None,
        measures=load.measures,
        matrices=load.matrices,
        is_private=load.noises > 0,
        unit_bytes=load.unit_bytes,
    )
