"""Decode a compressed update while it is read: a source of elements over a source of stored bytes.

The kernel reads decoded elements in slices of any length. A unit that is needed in two slices is
decoded once, and the rest of its elements is kept for the next slice. So the memory is that of one
unit for each input, and of one slice for all of them.
"""

from typing import Final, Protocol

import numpy as np

from gradshard_core.aggregation.arithmetic import Array, finish
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.codecs.scaled_block import BLOCK, BlockCodec
from gradshard_core.formats.codecs.topk import TopK
from gradshard_core.formats.compressed_updates import ENCODABLE, EncodedRuns
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Run

STEP_UNITS: Final = 2048
"""Units decoded at a time: a slice of the kernel's, 256 KiB of float32. Half of it takes a fifth
more processor time, since each step costs as much as some thousand elements."""

_BY_SIZE: Final = {DTYPES[name].size: DTYPES[name] for name in ENCODABLE}

_NAN: Final = {4: np.float32(np.nan), 2: np.uint16(0x7FC0)}
"""NaN as it is stored, by the size of an element."""


class Source(Protocol):
    """The stored bytes of an update, in the order of the layout."""

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes; raise if there are not as many."""


class DecodingMemory:
    """The buffers in which inputs are decoded, one after another; pages not touched take none."""

    def __init__(self) -> None:
        elements = STEP_UNITS * BLOCK
        self.stored = np.empty(2 * elements, np.uint8)
        self.wide = np.empty(elements, np.float32)
        self.scratch = np.empty(elements, np.float32)


class DecodedSource:
    """The decoded elements of a compressed update, as the kernel reads them.

    Parameters
    ----------
    source
        The stored bytes of ``runs.read_from(start)``.
    runs
        The places of the layout's bytes in the update.
    start, end
        The range of the layout that is read.
    buffers
        Buffers, which other inputs may share.
    """

    def __init__(
        self, source: Source, runs: EncodedRuns, start: int, end: int, buffers: DecodingMemory
    ) -> None:
        self._source, self._buffers = source, buffers
        self._codec = CODECS[runs.codec]
        self._pieces = runs.clip(start, end)
        self._read: Source = source
        self._left = 0

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next elements; its length is a whole number of them."""
        while buffer:
            if not self._left:
                run, low, high = next(self._pieces)
                self._read, self._left = self._reader(run, low), high - low
            count = min(self._left, len(buffer))
            self._read.read_into(buffer[:count])
            self._left -= count
            buffer = buffer[count:]

    def _reader(self, run: Run, low: int) -> Source:
        """Return what reads the elements of a run, from byte ``low`` of the layout on."""
        if not run.size:
            return self._source
        first = (low - run.start) // run.size
        if isinstance(self._codec, BlockCodec):
            return _BlockReader(self._source, self._codec, run, first, self._buffers)
        return _SparseReader(self._source, self._codec, run, first)


class _BlockReader:
    """The elements of a run of blocks, from element ``first`` on.

    The first unit that is read is the one with that element.
    """

    def __init__(
        self, source: Source, codec: BlockCodec, run: Run, first: int, buffers: DecodingMemory
    ) -> None:
        self._source, self._codec, self._buffers = source, codec, buffers
        self._dtype = _BY_SIZE[run.size]
        self._skipped = first % BLOCK
        self._kept = memoryview(b"")

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with elements: those kept, whole units, and the first of one more."""
        dtype = self._dtype
        if self._kept:
            buffer = self._take_kept(buffer)
        unit = BLOCK * dtype.size
        while buffer:
            if self._skipped or len(buffer) < unit:
                first = dtype.size * self._skipped
                self._skipped = 0
                self._kept = memoryview(bytes(self._read_units(1)))[first:]
                buffer = self._take_kept(buffer)
                continue
            units = min(len(buffer) // unit, STEP_UNITS)
            target = buffer[: units * unit]
            if dtype.storage == dtype.accumulator:
                self._decode_units(units, np.frombuffer(target, np.float32))
            else:
                target[:] = self._read_units(units)
            buffer = buffer[units * unit :]

    def _take_kept(self, buffer: memoryview) -> memoryview:
        """Fill a buffer with elements that are decoded already; return the rest of it."""
        count = min(len(self._kept), len(buffer))
        buffer[:count] = self._kept[:count]
        self._kept = self._kept[count:]
        return buffer[count:]

    def _read_units(self, units: int) -> memoryview:
        """Return the elements of the next units, in the memory of the buffers."""
        wide = self._buffers.wide[: units * BLOCK]
        self._decode_units(units, wide)
        return finish(self._dtype, wide, self._buffers.scratch[: len(wide)])

    def _decode_units(self, units: int, out: Array) -> None:
        stored = self._buffers.stored[: units * self._codec.unit_bytes]
        self._source.read_into(stored.data)
        self._codec.decode(stored, out)


class _SparseReader:
    """The elements of a unit of entries, which stay in memory, from element ``first`` on.

    If the unit is not one, all its elements are NaN, so the check of the sum finds it.
    """

    def __init__(self, source: Source, codec: TopK, run: Run, first: int) -> None:
        self._position = first
        self._storage = _BY_SIZE[run.size].storage
        stored = bytearray(run.stored)
        source.read_into(memoryview(stored))
        self._entries = codec.decode(stored, (run.end - run.start) // run.size, run.size)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with elements."""
        out = np.frombuffer(buffer, self._storage)
        start, end = self._position, self._position + len(out)
        self._position = end
        if self._entries is None:
            out[:] = _NAN[self._storage.itemsize]
            return
        indices, values = self._entries
        first, stop = np.searchsorted(indices, (start, end))
        out[:] = 0
        out[indices[first:stop] - start] = values[first:stop]
