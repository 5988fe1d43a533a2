"""Apply an averaged update to the model while it is written, a few elements at a time.

A task that writes a shard of the averaged update reads the same shard of the model, and of the
optimizer's state, takes the server optimizer's step, and writes those shards anew. The step starts
from the update as it is written, rounded to its type: model and update alone say what the next
model is.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np

from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.aggregation.batchnorm_buffers import Stretches, is_in, split_spans
from gradshard_core.aggregation.block_sizes import STEP_ELEMENTS
from gradshard_core.aggregation.kernel import Source
from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.aggregation.sharding import clip
from gradshard_core.errors import GradshardError
from gradshard_core.formats.dtypes import DTYPES, DType
from gradshard_core.formats.tensor_layout import Layout, Span

Write = Callable[[memoryview], None]


class NonFiniteModelError(GradshardError):
    """The step makes a NaN or an infinity of model or state at byte ``position`` of the layout."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the model would not be finite at byte {position}")
        self.position = position


def state_layout(layout: Layout) -> Layout:
    """Return the layout of an optimizer's state: the model's tensors, in their accumulators."""
    return Layout.pack(
        (tensor.name, _STATE_DTYPES[DTYPES[tensor.dtype].accumulator.name], tensor.shape)
        for tensor in layout.tensors
    )


_STATE_DTYPES: Final = {"float32": "F32", "float64": "F64"}


def take_step(
    optimizer: ServerOptimizer,
    number: int,
    is_buffer: bool,
    model: Array,
    average: Array,
    state: Sequence[Array],
) -> tuple[Array, list[Array]]:
    """Return some elements of the next model, and of the optimizer's state.

    Parameters
    ----------
    optimizer, number
        The server optimizer, and t, its step from 1.
    is_buffer
        Whether the elements belong to a buffer, which is averaged and not stepped.
    model, average, state
        n elements each, in the accumulator's type.
    """
    if is_buffer:
        return optimizer.average(model, average)
    return optimizer.step(number, model, average, state)


class Applier:
    """Takes a shard of the averaged update as it is written, and writes model and state.

    Parameters
    ----------
    optimizer
        The optimizer.
    number
        t, of this step, from 1.
    spans
        The whole layout's spans.
    buffers
        The stretches of the whole layout that are averaged and not stepped.
    start
        The first byte of the shard in the layout.
    model
        The model's bytes, from there on.
    state
        The state's, before this step; none at the first one.
    write_model, write_state
        Take the bytes after the step.
    allow_nonfinite
        Let NaN and infinities through.
    """

    def __init__(
        self,
        optimizer: ServerOptimizer,
        number: int,
        spans: Sequence[Span],
        buffers: Stretches,
        start: int,
        *,
        model: Source,
        state: Sequence[Source],
        write_model: Write,
        write_state: Sequence[Write],
        allow_nonfinite: bool,
    ) -> None:
        self._optimizer, self._number = optimizer, number
        self._spans, self._position = split_spans(spans, buffers), start
        self._buffers = buffers
        self._model, self._state = model, state
        self._write_model, self._write_state = write_model, write_state
        self._allow_nonfinite = allow_nonfinite

    def write(self, update: memoryview) -> None:
        """Take the update's next bytes, of whole elements.

        Raises
        ------
        NonFiniteModelError
            The next model, or the state, would not be finite, and that is not allowed.
        """
        with np.errstate(all="ignore"):
            for dtype, elements in self._elements(update):
                self._step(dtype, elements)

    def _elements(self, update: memoryview) -> Iterator[tuple[DType, memoryview]]:
        taken = 0
        for span in list(clip(self._spans, self._position, self._position + len(update))):
            dtype, left = DTYPES[span.dtype], span.end - span.start
            while left:
                nbytes = min(left, STEP_ELEMENTS * dtype.size)
                yield dtype, update[taken : taken + nbytes]
                self._position += nbytes
                taken += nbytes
                left -= nbytes

    def _step(self, dtype: DType, update: memoryview) -> None:
        average = arithmetic.widened(dtype, update)
        model = arithmetic.widened(dtype, _read(self._model, len(update)))
        state = [
            np.frombuffer(_read(source, average.nbytes), dtype.accumulator)
            for source in self._state
        ] or [np.zeros_like(average) for _ in self._optimizer.state]
        # The position moves on after the step: here it is that of these elements.
        is_buffer = is_in(self._buffers, self._position)
        model, state = take_step(self._optimizer, self._number, is_buffer, model, average, state)
        if not self._allow_nonfinite:
            firsts = [
                arithmetic.first_overflow(model, dtype.overflow),
                # A square that overflows would freeze its element for good.
                *(arithmetic.first_overflow(values, math.inf) for values in state),
            ]
            found = [first for first in firsts if first is not None]
            if found:
                raise NonFiniteModelError(self._position + min(found) * dtype.size)
        finished = arithmetic.finish(dtype, model, np.empty_like(model))
        for write, values in zip(self._write_state, state, strict=True):
            write(arithmetic.bytes_of(values))
        self._write_model(finished)


def _read(source: Source, nbytes: int) -> memoryview:
    buffer = memoryview(bytearray(nbytes))
    source.read_into(buffer)
    return buffer
