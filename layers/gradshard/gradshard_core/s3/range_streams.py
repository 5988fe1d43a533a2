"""Streams over ranges of an object, which reconnect after failures."""

import contextlib
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, wait
from itertools import accumulate
from typing import Protocol

from gradshard_core.aggregation.block_sizes import SLICE_BYTES
from gradshard_core.aggregation.reordered_reads import Group, Range, groups, requests
from gradshard_core.errors import StoreError
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Runs
from gradshard_core.s3 import timeouts
from gradshard_core.s3.retries import Retries
from gradshard_core.s3.traffic import Meter


class Body(Protocol):
    """The body of one response."""

    def readinto(self, buffer: memoryview, /) -> int:
        """Read some bytes; 0 at the end. A broken connection is an :class:`OSError`.

        A buffer that is not filled within ``READ_SECONDS`` is returned as it is.
        """

    def close(self) -> None:
        """Close the body without reading the rest."""


class Opener(Protocol):
    """Opens ranges of objects."""

    meter: Meter

    def get_body(self, source: ObjectVersion, start: int, end: int) -> Body:
        """Open bytes [start, end) of an object version.

        Raises
        ------
        ChangedObjectError
            The version is gone, or has another ETag.
        OSError
            The answer cannot be used, but a retry may succeed.
        """


def read_whole(body: Body, nbytes: int) -> bytes:
    """Read a body to its end.

    Raises
    ------
    OSError
        The body ended too early, or is too slow.
    """
    data = memoryview(bytearray(nbytes))
    filled = 0
    while filled < nbytes:
        wanted = data[filled : filled + SLICE_BYTES]
        begun = time.monotonic()
        count = body.readinto(wanted)
        filled += count
        if count == 0:
            raise OSError(f"the body ended {nbytes - filled} bytes short")
        if count < len(wanted) and time.monotonic() - begun >= timeouts.READ_SECONDS:
            raise OSError(f"{count} bytes in {timeouts.READ_SECONDS} s")
    return bytes(data)


class RangeStream:
    """The bytes of some ranges of one object version, one after the other, as one stream.

    If a connection breaks, or is too slow, a new one continues at the same byte, with the same
    version and ETag. A range is requested when its first byte is read, or by :meth:`open`.
    """

    def __init__(
        self, opener: Opener, source: ObjectVersion, ranges: Iterable[tuple[int, int]]
    ) -> None:
        self._opener = opener
        self._source = source
        self._ranges: Iterator[Range] = (range_ for range_ in ranges if range_[0] < range_[1])
        self._position, self._end = next(self._ranges, (0, 0))
        self._opened_at = 0
        self._body: Body | None = None
        self._ahead: Future[None] | None = None
        self._retries = Retries(opener.meter)
        self._is_slow = False

    def open(self) -> None:
        """Request the current range now; a failure is raised when it is read.

        Raises
        ------
        ChangedObjectError
            The version is gone, or has another ETag.
        """
        if self._position < self._end:
            with contextlib.suppress(OSError):
                self._get_body()

    def open_ahead(self, pool: Executor) -> None:
        """Request the next range in another thread, if the current one has been read."""
        if self._ahead is not None:
            return
        if self._position == self._end:
            self._position, self._end = next(self._ranges, (self._position, self._end))
        if self._body is None and self._position < self._end:
            self._ahead = pool.submit(self.open)

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes.

        Raises
        ------
        StoreError
            The stream broke too often, or there are no more bytes.
        """
        filled, wanted = 0, len(buffer)
        while filled < wanted:
            if self._position == self._end:
                self._next_range(wanted - filled)
            count = self._read_some(buffer[filled : filled + self._end - self._position])
            filled += count
            self._position += count
            if self._position == self._end:
                self._drop()
            elif self._is_slow:
                self._fail(f"{count} bytes in {timeouts.READ_SECONDS} s")

    def close(self) -> None:
        """Close the connection."""
        if self._ahead is not None:
            wait([self._ahead])
        self._drop()
        self._ranges = iter(())
        self._position = self._end

    def _next_range(self, wanted: int) -> None:
        following = next(self._ranges, None)
        if following is None:
            raise StoreError(f"{self._source.key}: read {wanted} bytes past its ranges")
        self._position, self._end = following

    def _read_some(self, buffer: memoryview) -> int:
        try:
            body = self._current_body()
            begun = time.monotonic()
            count = body.readinto(buffer)
            if count == 0:
                missing = self._end - self._position
                raise OSError(f"the body ended {missing} bytes short")  # noqa: TRY301
        except OSError as error:
            self._fail(str(error))
            return 0
        self._is_slow = count < len(buffer) and time.monotonic() - begun >= timeouts.READ_SECONDS
        if not self._is_slow:
            self._retries.reset()
        return count

    def _fail(self, reason: str) -> None:
        """Close the connection and wait before the next, or raise if that happened too often."""
        self._is_slow = False
        self._drop()
        self._retries.record_failure(reason, self._broken)

    def _broken(self, times: int, reasons: str) -> StoreError:
        return StoreError(
            f"{self._source.key}: reading broke {times} times in a row "
            f"at byte {self._position}: {reasons}"
        )

    def _current_body(self) -> Body:
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            ahead.result()
        return self._body or self._get_body()

    def _get_body(self) -> Body:
        if self._body is None:
            self._body = self._opener.get_body(self._source, self._position, self._end)
            self._opened_at = self._position
        return self._body

    def _drop(self) -> None:
        if self._body is not None:
            self._opener.meter.add(bytes_read=self._position - self._opened_at)
            self._body.close()
            self._body = None


class ReorderedStream:
    """A contributor's bytes in the order of the layout, in few requests.

    If a block's bytes are scattered in the object, they are read together, in the object's order,
    into a buffer (:mod:`gradshard_core.aggregation.reordered_reads`). So a block has to be read to
    its end before another stream uses the same buffer.

    Parameters
    ----------
    opener, source, runs
        The object, and the positions of the layout's bytes in it.
    blocks
        The ranges to read; a single one if the runs are in order.
    memory
        Buffer for a block and a slice.
    pool
        Requests the next block while other inputs are read.
    """

    def __init__(
        self,
        opener: Opener,
        source: ObjectVersion,
        runs: Runs,
        blocks: Sequence[Range],
        memory: memoryview,
        pool: Executor | None = None,
    ) -> None:
        self._stream = RangeStream(opener, source, requests(groups(runs, blocks)))
        self._groups = groups(runs, blocks)
        self._scratch, self._room = memory[:SLICE_BYTES], memory[SLICE_BYTES:]
        self._gathered: memoryview | None = None
        self._left = 0
        self._pool = pool

    def open(self) -> None:
        """Send the first request now, as :meth:`RangeStream.open` does."""
        self._stream.open()

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes.

        Raises
        ------
        StoreError
            The stream broke too often, or there are no more bytes.
        """
        while buffer:
            if not self._left:
                self._next_group(len(buffer))
            count = min(self._left, len(buffer))
            if self._gathered is None:
                self._stream.read_into(buffer[:count])
            else:
                at = len(self._gathered) - self._left
                buffer[:count] = self._gathered[at : at + count]
            self._left -= count
            buffer = buffer[count:]
            if not self._left:
                self._open_ahead()

    def close(self) -> None:
        """Close the connection."""
        self._stream.close()
        self._groups, self._gathered, self._left = iter(()), None, 0

    def _next_group(self, wanted: int) -> None:
        group = next(self._groups, None)
        # If there are no more bytes, the stream raises.
        self._left = wanted if group is None else group.nbytes
        self._gathered = None
        if group is not None and len(group.ranges) > 1:
            self._gathered = self._gather(group)

    def _open_ahead(self) -> None:
        if self._pool is not None:
            self._stream.open_ahead(self._pool)

    def _gather(self, group: Group) -> memoryview:
        """Read a group's windows and put its ranges in the order of the layout."""
        gathered = self._room[: group.nbytes]
        starts = accumulate((end - start for start, end in group.ranges), initial=0)
        # From the object's order to the place in the buffer.
        places = deque(sorted(zip(group.ranges, starts, strict=False)))
        for first, stop in group.windows:
            for begin in range(first, stop, len(self._scratch)):
                read = self._scratch[: stop - begin]
                self._stream.read_into(read)
                _put(read, begin, places, gathered)
        self._open_ahead()
        return gathered


def _put(
    read: memoryview, begin: int, places: deque[tuple[Range, int]], gathered: memoryview
) -> None:
    """Copy the object's bytes from ``begin`` to their places; drop the ranges that are complete."""
    stop = begin + len(read)
    while places and places[0][0][0] < stop:
        (start, end), at = places[0]
        low, high = max(start, begin), min(end, stop)
        gathered[at + low - start : at + high - start] = read[low - begin : high - begin]
        if end > stop:
            return
        places.popleft()
