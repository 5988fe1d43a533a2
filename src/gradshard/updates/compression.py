"""Compression of updates by the client: encode them while they are sent.

The encoding of an element depends on the elements of its block, and on the seed if rounding is
stochastic. So any part of an update can be encoded at any time, with the same bytes.
"""

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from gradshard.updates.residual import PIECE, Arrays, Residual, sum_of_squares
from gradshard.updates.upload_source import Content, header_bytes
from gradshard_core.aggregation import arithmetic, batchnorm_buffers
from gradshard_core.aggregation.decoding import DecodedSource, DecodingMemory
from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS, codec_named, list_names
from gradshard_core.formats.codecs.scaled_block import BLOCK, BlockCodec
from gradshard_core.formats.codecs.topk import MOST, USUAL_FRACTION, TopK, entries_of
from gradshard_core.formats.compressed_updates import (
    CODEC_KEY,
    ENCODABLE,
    ENCODED_KEY,
    ERROR_KEY,
    EncodedLayout,
    EncodedRuns,
    encode_layout,
)
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, Tensor

_NOT_DECODED: Final = (CODEC_KEY, ENCODED_KEY, ERROR_KEY)
"""Metadata that a decoded update does not have."""

SEEDS: Final = 2**64
"""A seed is less."""

STEP_ELEMENTS: Final = 64 * 1024
"""Elements that are encoded at a time, if not a larger unit: 256 KiB, which stay in the processor's
cache. Beyond that, each of numpy's results is in pages that the system has to clear first."""

_GOLDEN: Final = 0x9E3779B97F4A7C15

Array = npt.NDArray[Any]


@dataclass
class Compression:
    """The way in which a client compresses its updates.

    Parameters
    ----------
    codec
        The codec's name, such as ``int8``.
    seed
        Round stochastically, with random numbers from this seed; None rounds to the nearest value.
        Give another seed in each round.
    keep
        Names of tensors that are sent as they are, or patterns such as ``*.bias``. Buffers (running
        means and variances), integers and float64 are always sent as they are.
    fraction
        The fraction of the elements that ``topk`` keeps, of each unit the largest, rounded up.
    residual
        Error feedback: what the encoding loses is added to the next update. Use one
        :class:`Residual` for all rounds of a client, and for updates that are changes of a model.

    Attributes
    ----------
    error
        After an update was submitted: the relative error of its encoding, which is the Euclidean
        norm of what is lost, divided by that of the update.
    """

    codec: str
    seed: int | None = None
    keep: Sequence[str] = ()
    fraction: float | None = None
    residual: Residual | None = None
    error: float = field(default=math.nan, init=False)

    def __post_init__(self) -> None:
        codec_named(self.codec)
        if self.fraction is not None and self.codec != TopK.name:
            raise UpdateError(f"codec {self.codec} keeps all elements: leave out the fraction")
        if not 0 < self.kept_fraction <= 1 / MOST:
            raise UpdateError(f"fraction is {self.fraction}, not above 0 and at most 1/{MOST}")
        if self.seed is not None and self.codec == TopK.name:
            raise UpdateError("codec topk rounds nothing: leave out the seed")
        if self.seed is not None and not 0 <= self.seed < SEEDS:
            raise UpdateError(f"seed is {self.seed}, not from 0 to 2**64 - 1")

    @property
    def kept_fraction(self) -> float:
        """The fraction of the elements that ``topk`` keeps."""
        return USUAL_FRACTION if self.fraction is None else self.fraction

    def layout_of(self, layout: Layout) -> EncodedLayout:
        """Return the layout of an update that is compressed so."""
        kept = {*batchnorm_buffers.conventional(layout)}
        units = {
            tensor.name: self._units(tensor)
            for tensor in layout.tensors
            if tensor.name not in kept
            and not any(fnmatchcase(tensor.name, pattern) for pattern in self.keep)
            and self._shrinks(tensor)
        }
        return encode_layout(layout, self.codec, units)

    def _units(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the sizes of a tensor's units, if the codec has units of different sizes."""
        codec = CODECS[self.codec]
        if isinstance(codec, BlockCodec):
            return ()
        size = DTYPES[tensor.dtype].size
        count = (tensor.end - tensor.start) // size
        lengths = (min(codec.unit, count - start) for start in range(0, count, codec.unit))
        return tuple(
            codec.unit_bytes(length, entries_of(self.kept_fraction, length), size)
            for length in lengths
        )

    def _shrinks(self, tensor: Tensor) -> bool:
        nbytes = tensor.end - tensor.start
        if tensor.dtype not in ENCODABLE:
            return False
        codec = CODECS[self.codec]
        if isinstance(codec, BlockCodec):
            return codec.stored_bytes(nbytes // DTYPES[tensor.dtype].size) < nbytes
        return sum(self._units(tensor)) < nbytes


def compressed(
    content: Content, codec: str | Compression | None, taken: tuple[str, ...], round_id: str
) -> Content:
    """Return a content that is compressed while it is read; the content itself without a codec.

    Raises
    ------
    UpdateError
        The codec is unknown, or the round does not take it.
    """
    if codec is None:
        return content
    compression = Compression(codec) if isinstance(codec, str) else codec
    if isinstance(content.layout, EncodedLayout):
        raise UpdateError(
            f"the update is compressed with codec {content.layout.codec!r} already: leave out codec"
        )
    if compression.codec not in taken:
        raise UpdateError(
            f"round {round_id!r} takes the codecs {list_names(taken)}, not {compression.codec!r}; "
            "open it with codecs, or send the update as it is"
        )
    return EncodedContent(content, compression, round_id)


def keep_residual(content: Content) -> None:
    """Keep what the encoding of a content has lost, since the content has been sent."""
    if isinstance(content, EncodedContent):
        content.keep_residual()


class EncodedContent:
    """A content that is encoded while it is read; a MiB or so of it is in memory.

    Parameters
    ----------
    content
        The update.
    compression
        The compression with which it is encoded. Its ``error`` is set.
    round_id
        The round to which it is sent, for the residual.
    """

    def __init__(self, content: Content, compression: Compression, round_id: str = "") -> None:
        self._content, self._compression = content, compression
        self._codec = CODECS[compression.codec]
        self._step = max(1, STEP_ELEMENTS // self._codec.unit)
        self._offset = header_bytes(content)
        self.layout = compression.layout_of(content.layout)
        self._elements = {t.name: t for t in self.layout.tensors}
        self._numbers = {name: number for number, name in enumerate(self._elements)}
        self._encoded = dict(zip(self._elements, self.layout.encoded, strict=True))
        self._added: Arrays = {}
        self._lost: Arrays = {}
        if compression.residual is not None:
            encoded = [t for t in self.layout.tensors if self._encoded[t.name]]
            packed = Layout.pack((t.name, t.dtype, t.shape) for t in encoded)
            self._added, self._lost = compression.residual.start(round_id, packed)
        compression.error = self._measure()
        header = parse_header(content.read(PREFIX_BYTES, self._offset), content.nbytes)
        self._header = self.layout.header(
            {**header.metadata, ERROR_KEY: f"{compression.error:.6g}"}
        )
        self.nbytes = len(self._header) + self.layout.stored.nbytes

    def keep_residual(self) -> None:
        """Keep what the encoding has lost, if that is to be added to the next update."""
        if self._compression.residual is not None:
            self._compression.residual.finish()

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        pieces: list[bytes | memoryview] = [self._header[start:end]]
        low, high = max(0, start - len(self._header)), end - len(self._header)
        for stored in overlapping(self.layout.stored, low, high):
            first, stop = max(low, stored.start), min(high, stored.end)
            pieces += self._read(stored, first - stored.start, stop - stored.start)
        return b"".join(pieces)

    def _read(self, stored: Tensor, start: int, end: int) -> Iterator[bytes | memoryview]:
        """Yield the bytes of a tensor as it is stored."""
        tensor = self._elements[stored.name]
        if not self._encoded[stored.name]:
            offset = self._offset + tensor.start
            yield self._content.read(offset + start, offset + end)
            return
        starts = self._starts(tensor)
        first, stop = bisect_right(starts, start) - 1, bisect_left(starts, end)
        scratch = self._scratch()
        for at in range(first, stop, self._step):
            elements = self._units(tensor, at, min(at + self._step, stop))
            encoded = self._encode(tensor, at, elements, scratch)
            yield encoded.reshape(-1).data[max(0, start - starts[at]) : end - starts[at]]

    def _starts(self, tensor: Tensor) -> Sequence[int]:
        """Return where the units of a tensor begin in it, as it is stored."""
        if isinstance(self._codec, BlockCodec):
            rows, size = self._codec.stored_shape(_count(tensor))
            return range(0, rows * size, size)
        units = self.layout.units[self._numbers[tensor.name]]
        return [*accumulate(units[:-1], initial=0)]

    def _units(self, tensor: Tensor, first: int, stop: int) -> Array:
        """Return the elements of units [first, stop) of a tensor, in float32, filled with zeros."""
        dtype = DTYPES[tensor.dtype]
        unit = self._codec.unit * dtype.size
        begin, end = tensor.start + first * unit, min(tensor.start + stop * unit, tensor.end)
        data = self._content.read(self._offset + begin, self._offset + end)
        elements = arithmetic.widened(dtype, memoryview(data))
        added = self._added.get(tensor.name)
        if added is not None:
            position = first * self._codec.unit
            elements = elements + added[position : position + len(elements)]
        if not isinstance(self._codec, BlockCodec):
            return elements
        missing = (stop - first) * BLOCK - len(elements)
        return np.pad(elements, (0, missing)) if missing else elements

    def _scratch(self) -> Array:
        """Return a buffer for a unit, since threads read at once.

        Allocated for each unit anew, the system would clear its pages each time.
        """
        return np.empty(self._codec.unit, np.float32)

    def _encode(self, tensor: Tensor, first: int, elements: Array, scratch: Array) -> Array:
        if not isinstance(self._codec, BlockCodec):
            return self._encode_entries(tensor, elements, scratch)
        dither = None
        if self._compression.seed is not None:
            position = tensor.start // DTYPES[tensor.dtype].size + first * BLOCK
            dither = uniform(self._compression.seed, position, len(elements))
        return self._codec.encode(elements, dither)

    def _encode_entries(self, tensor: Tensor, elements: Array, scratch: Array) -> Array:
        """Return a unit of entries."""
        codec, dtype = self._codec, DTYPES[tensor.dtype]
        assert not isinstance(codec, BlockCodec)  # noqa: S101 - for mypy
        values = elements
        if dtype.storage != dtype.accumulator:
            narrow = arithmetic.finish(dtype, elements.copy(), np.empty_like(elements))
            values = np.frombuffer(narrow, dtype.storage)
        kept = entries_of(self._compression.kept_fraction, len(elements))
        magnitudes = np.abs(elements, out=scratch[: len(elements)])
        return codec.encode(magnitudes, values, kept)

    def _decoded(self, tensor: Tensor, encoded: Array, elements: int) -> Array:
        """Return what becomes of units when they are decoded, in float32."""
        codec, dtype = self._codec, DTYPES[tensor.dtype]
        out = np.zeros(elements, np.float32)
        if isinstance(codec, BlockCodec):
            codec.decode(encoded, out)
            if dtype.storage == dtype.accumulator:
                return out
            return arithmetic.widened(dtype, arithmetic.finish(dtype, out, np.empty_like(out)))
        entries = codec.decode(encoded.tobytes(), elements, dtype.size)
        if entries is not None:
            indices, values = entries
            out[indices] = arithmetic.widened(dtype, values.view(np.uint8).data)
        return out

    def _measure(self) -> float:
        """Return the relative error of the encoding, and note what it loses, a step at a time."""
        error = norm = 0.0
        unit, step, scratch = self._codec.unit, self._step, self._scratch()
        for tensor in self.layout.tensors:
            if not self._encoded[tensor.name]:
                continue
            dtype = DTYPES[tensor.dtype]
            units = -(-(tensor.end - tensor.start) // (unit * dtype.size))
            for first in range(0, units, step):
                elements = self._units(tensor, first, min(first + step, units))
                with np.errstate(all="ignore"):
                    encoded = self._encode(tensor, first, elements, scratch)
                    decoded = self._decoded(tensor, encoded, len(elements))
                    norm += sum_of_squares(elements)
                    np.subtract(decoded, elements, out=decoded)
                    error += sum_of_squares(decoded)
                if tensor.name in self._lost:
                    lost = self._lost[tensor.name][first * unit :][: len(decoded)]
                    np.negative(decoded[: len(lost)], out=lost)
                    # A NaN or an infinity costs one update, and not all that follow.
                    lost[~np.isfinite(lost)] = 0
        return math.sqrt(error / norm) if norm else 0.0


def decoded(content: Content) -> Content:
    """Return a content without its codec, if it has one."""
    return DecodedContent(content) if isinstance(content.layout, EncodedLayout) else content


def _count(tensor: Tensor) -> int:
    return (tensor.end - tensor.start) // DTYPES[tensor.dtype].size


class DecodedContent:
    """The decoded elements of a compressed update, as a content that is not compressed.

    Parameters
    ----------
    content
        An update whose layout is an
        :class:`~gradshard_core.formats.compressed_updates.EncodedLayout`.
    """

    def __init__(self, content: Content) -> None:
        assert isinstance(content.layout, EncodedLayout)  # noqa: S101 - for mypy
        self._content = content
        offset = header_bytes(content)
        header = parse_header(content.read(PREFIX_BYTES, offset), content.nbytes)
        self.layout = content.layout.decoded
        runs = self.layout.runs_in(content.layout, offset)
        assert isinstance(runs, EncodedRuns)  # noqa: S101 - for mypy
        self._runs = runs
        metadata = {k: v for k, v in header.metadata.items() if k not in _NOT_DECODED}
        self._header = self.layout.header(metadata)
        self.nbytes = len(self._header) + self.layout.nbytes

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        head = self._header[start:end]
        low, high = max(0, start - len(self._header)), end - len(self._header)
        if low >= high:
            return head
        return head + b"".join(
            self._decode(tensor, max(low, tensor.start), min(high, tensor.end))
            for tensor in overlapping(self.layout, low, high)
        )

    def _decode(self, tensor: Tensor, start: int, end: int) -> memoryview:
        """Return bytes [start, end) of the layout, which are some of one tensor's."""
        size = DTYPES[tensor.dtype].size
        first = start - (start - tensor.start) % size
        stop = end + (tensor.start - end) % size
        stored = _Reader(self._content, self._runs.read_from(first).ranges(first, stop))
        data = memoryview(bytearray(stop - first))
        with np.errstate(all="ignore"):
            DecodedSource(stored, self._runs, first, stop, DecodingMemory()).read_into(data)
        return data[start - first : end - first]


class _Reader:
    """Ranges of a content, one after the other."""

    def __init__(self, content: Content, ranges: Iterator[tuple[int, int]]) -> None:
        self._content, self._ranges = content, ranges
        self._position = self._end = 0

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes."""
        while buffer:
            if self._position == self._end:
                self._position, self._end = next(self._ranges)
            stop = min(self._position + len(buffer), self._end)
            data = self._content.read(self._position, stop)
            buffer[: len(data)] = data
            self._position, buffer = stop, buffer[len(data) :]


def overlapping(layout: Layout, start: int, end: int) -> Iterator[Tensor]:
    """Yield the tensors with bytes in [start, end)."""
    first = bisect_right(layout.tensors, start, key=lambda tensor: tensor.end)
    for tensor in itertools.islice(layout.tensors, first, None):
        if tensor.start >= end:
            return
        if tensor.start < tensor.end:
            yield tensor


def uniform(seed: int, start: int, count: int) -> Array:
    """Return numbers of a reproducible random sequence, uniform in [0, 1) with 24 bits.

    Number i is a hash of seed and i (the finalizer of splitmix64: Steele, Lea and Flood, 2014,
    https://doi.org/10.1145/2660193.2660195), so any stretch of the sequence can be had at once.
    """
    numbers = np.empty(count, np.float32)
    ordinals = np.arange(1, min(PIECE, count) + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    for first in range(0, count, PIECE):
        target = numbers[first : first + PIECE]
        origin = np.uint64((seed + (start + first) * _GOLDEN) % 2**64)
        bits = ordinals[: len(target)] + origin
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            bits ^= bits >> np.uint64(shift)
            bits *= np.uint64(factor)
        # The finalizer's last step, bits ^= bits >> 31, changes none of the 24 highest bits, which
        # are in every second number of 32 bits.
        np.copyto(target, (bits.view("<u4")[1::2] >> 8).view(np.int32))
        np.multiply(target, np.float32(2.0**-24), out=target)
    return numbers
