"""Compressed updates: their headers, and the positions of their elements in the objects.

The object of a compressed update is a safetensors file. Its metadata name the codec, and the dtype
and shape of each tensor that is encoded; such a tensor stands in the file as U8, with one row for
each unit. Tensors that are not named there stand as they are.
"""

import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.registry import CODECS, Codec, codec_named, list_names
from gradshard_core.formats.codecs.scaled_block import BLOCK, BlockCodec
from gradshard_core.formats.codecs.topk import UNIT, TopK
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import Header, parse_header, parse_json
from gradshard_core.formats.tensor_layout import Layout, Run, Runs, Tensor, encode_header, shorten

CODEC_KEY: Final = "codec"
ENCODED_KEY: Final = "encoded"
"""Names in the metadata: of the codec, and of the tensors that are encoded."""

ERROR_KEY: Final = "codec_error"
"""Name in the metadata of the relative error of the encoding, as its client measured it."""

ENCODABLE: Final = ("F32", "BF16")
"""Element types that a tensor may have once it is decoded."""

STORED_DTYPE: Final = "U8"

UNITS_KEY: Final = "units"
"""Name of the sizes of a tensor's units among what is stated of it."""

_ENTRY_KEYS: Final = {"dtype", "shape", UNITS_KEY}


class EncodedRuns(Runs):
    """The runs of a compressed update; contributors that store theirs alike share the table.

    Parameters
    ----------
    codec
        The codec's name.
    table
        Start, end, offset, size and stored bytes of one run after another.
    shift
        The number to add to the offsets.
    origin
        From which byte of the layout the runs are read. A unit that begins before this byte is
        read, too. If a later range begins within a unit, that was read with the range before.
    """

    width = 5

    def __init__(self, codec: str, table: "array[int]", shift: int = 0, origin: int = 0) -> None:
        if len(table) % self.width:
            raise ValueError(f"{len(table)} numbers are no runs, which have {self.width} each")
        self._numbers = table
        self.codec, self._codec, self._shift, self._origin = codec, CODECS[codec], shift, origin

    def __getitem__(self, index: int) -> Run:
        run = super().__getitem__(index)
        return run._replace(offset=run.offset + self._shift)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EncodedRuns) and (self.codec, self._shift, self._numbers) == (
            other.codec,
            other._shift,
            other._numbers,
        )

    __hash__ = None

    @property
    def table(self) -> "array[int]":
        """Start, end, offset, size and stored bytes of one run after another."""
        return self._numbers

    @property
    def shift(self) -> int:
        """The number that is added to the offsets of the table."""
        return self._shift

    def moved(self, nbytes: int) -> "EncodedRuns":
        """Return the runs of an object that has everything so many bytes later."""
        return EncodedRuns(self.codec, self._numbers, self._shift + nbytes)

    def read_from(self, origin: int) -> "EncodedRuns":
        """Return the runs as they are read from a byte of the layout on."""
        return EncodedRuns(self.codec, self._numbers, self._shift, origin)

    @property
    def largest_unit(self) -> int:
        """Bytes of the largest unit of entries."""
        if isinstance(self._codec, BlockCodec):
            return 0
        return max((run.stored for run in self), default=0)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the byte ranges of the object that hold the layout's [start, end)."""
        codec = self._codec
        for run, low, high in self.clip(start, end):
            if not run.size:
                shift = run.offset - run.start
                yield shift + low, shift + high
                continue
            unit_bytes = codec.unit_bytes if isinstance(codec, BlockCodec) else run.stored
            element = (low - run.start) // run.size
            is_begun = low == start != self._origin
            first = -(-element // codec.unit) if is_begun else element // codec.unit
            stop = -(-(high - run.start) // (run.size * codec.unit))
            if first < stop:
                yield run.offset + first * unit_bytes, run.offset + stop * unit_bytes


def further_runs(all_runs: Iterable[Runs]) -> int:
    """Count the runs of contributors beyond one each; a table that they share counts once."""
    seen: dict[bytes, int] = {}
    plain = 0
    for runs in all_runs:
        if isinstance(runs, EncodedRuns):
            seen.setdefault(runs.table.tobytes(), max(0, len(runs) - 1))
        else:
            plain += len(runs) - 1
    return plain + sum(seen.values())


@dataclass(frozen=True)
class EncodedLayout(Layout):
    """The layout of a compressed update: of its elements, decoded.

    Parameters
    ----------
    codec
        The codec's name.
    encoded
        Of each tensor, whether it is encoded.
    units
        Of each tensor, the sizes of its units, if the codec has units of different sizes.
    """

    codec: str
    encoded: tuple[bool, ...]
    units: tuple[tuple[int, ...], ...] = ()

    @property
    def decoded(self) -> Layout:
        """The same layout without the codec."""
        return Layout(self.tensors)

    @property
    def storage(self) -> str:
        """The storage of the elements, as text that tells two such layouts apart."""
        return f"{self.codec} {''.join(map('01'.__getitem__, self.encoded))} {self.units}"

    @cached_property
    def stored(self) -> Layout:
        """The tensors as they stand in the object."""
        return Layout.pack(
            (t.name, STORED_DTYPE, self._stored_shape(index))
            if self.encoded[index]
            else (t.name, t.dtype, t.shape)
            for index, t in enumerate(self.tensors)
        )

    def _stored_shape(self, index: int) -> tuple[int, ...]:
        codec = CODECS[self.codec]
        if isinstance(codec, BlockCodec):
            return codec.stored_shape(_count(self.tensors[index]))
        return (sum(self.units[index]),)

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Return the safetensors header of an object with this layout, and such metadata."""
        names: dict[str, dict[str, Any]] = {}
        for index, tensor in enumerate(self.tensors):
            if self.encoded[index]:
                names[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape}
                if self.units:
                    names[tensor.name][UNITS_KEY] = self.units[index]
        text = json.dumps(names, separators=(",", ":"), ensure_ascii=False)
        return encode_header(self.stored, {**metadata, CODEC_KEY: self.codec, ENCODED_KEY: text})

    def _runs_of(self, layout: Layout, data_offset: int) -> EncodedRuns:
        """Return where an object of this layout has the bytes of ``layout``."""
        index_of = {tensor.name: index for index, tensor in enumerate(self.stored.tensors)}
        table = array("q")
        for tensor in layout.tensors:
            index = index_of.get(tensor.name)
            if index is None or tensor.start == tensor.end:
                continue
            stored = self.stored.tensors[index]
            size = DTYPES[tensor.dtype].size if self.encoded[index] else 0
            if size and self.units:
                _add_units(table, tensor, stored.start, size, self.units[index])
            else:
                _add_run(table, tensor, stored, size)
        return EncodedRuns(self.codec, table, data_offset)


def _add_run(table: "array[int]", tensor: Tensor, stored: Tensor, size: int) -> None:
    """Add a tensor to a table; it may go on where the last run ends, in layout and object."""
    length = stored.end - stored.start
    if table:
        start, end, offset, last_size, last_length = table[-EncodedRuns.width :]
        has_whole_units = not size or (end - start) % (size * BLOCK) == 0
        follows = (end, last_size, offset + last_length) == (tensor.start, size, stored.start)
        if follows and has_whole_units:
            table[-4], table[-1] = tensor.end, last_length + length
            return
    table.extend((tensor.start, tensor.end, stored.start, size, length))


def _add_units(
    table: "array[int]", tensor: Tensor, offset: int, size: int, units: tuple[int, ...]
) -> None:
    """Add a tensor to a table, each of its units as a run."""
    for number, nbytes in enumerate(units):
        start = tensor.start + number * UNIT * size
        end = min(start + UNIT * size, tensor.end)
        table.extend((start, end, offset, size, nbytes))
        offset += nbytes


def encode_layout(
    layout: Layout, codec: str, units: Mapping[str, tuple[int, ...]]
) -> EncodedLayout:
    """Return a layout whose tensors of these names are encoded.

    ``units`` has the sizes of the units of each, where the codec has units of different sizes.
    """
    encoded = tuple(tensor.name in units for tensor in layout.tensors)
    sizes = tuple(units.get(tensor.name, ()) for tensor in layout.tensors)
    return EncodedLayout(layout.tensors, codec, encoded, sizes if codec == TopK.name else ())


def parse_update(header: bytes, object_bytes: int) -> Header:
    """Read and check the header of an update, compressed or not.

    Parameters are those of :func:`gradshard_core.formats.headers.parse_header`. The layout of a
    compressed update is an :class:`EncodedLayout`.

    Raises
    ------
    UpdateError
        The header does not describe the object's bytes, or names an unknown codec.
    """
    plain = parse_header(header, object_bytes)
    if CODEC_KEY not in plain.metadata:
        return plain
    codec = codec_named(plain.metadata[CODEC_KEY])
    stated = _parse_encoded(plain.metadata.get(ENCODED_KEY))
    missing = stated.keys() - plain.layout.shapes.keys()
    if missing:
        raise UpdateError(f"{ENCODED_KEY} names {shorten(min(missing))!r}, which is no tensor")
    decoded = Layout.pack(
        _decoded(tensor, stated[tensor.name])
        if tensor.name in stated
        else (tensor.name, tensor.dtype, tensor.shape)
        for tensor in plain.layout.tensors
    )
    units = {
        tensor.name: _check_stored(codec, tensor, stored, stated[tensor.name])
        for tensor, stored in zip(decoded.tensors, plain.layout.tensors, strict=True)
        if tensor.name in stated
    }
    return plain._replace(layout=encode_layout(decoded, codec.name, units))


def parse_codec_error(metadata: Mapping[str, str]) -> float | None:
    """Return the relative error that a client states; None if it states none, or no number."""
    try:
        error = float(metadata[ERROR_KEY][:32])
    except (KeyError, ValueError):
        return None
    return error if 0 <= error < math.inf else None


def check_taken(layout: Layout, codecs: tuple[str, ...]) -> None:
    """Check that a round takes the codec of an update.

    Raises
    ------
    UpdateError
        It does not.
    """
    if isinstance(layout, EncodedLayout) and layout.codec not in codecs:
        raise UpdateError(
            f"the update is compressed with codec {layout.codec!r}, and the round takes "
            f"{list_names(codecs)}; open the round with codecs, or send the update as it is"
        )


def _count(tensor: Tensor) -> int:
    return (tensor.end - tensor.start) // DTYPES[tensor.dtype].size


def _parse_encoded(text: str | None) -> dict[str, Any]:
    if text is None:
        raise UpdateError(f"the metadata have {CODEC_KEY} but no {ENCODED_KEY}")
    try:
        return parse_json(text.encode())
    except UpdateError as error:
        raise UpdateError(f"{ENCODED_KEY} in the metadata: {error}") from None


def _decoded(tensor: Tensor, entry: Any) -> tuple[str, str, list[int]]:
    """Check what is stated of an encoded tensor; return its name, dtype and shape, decoded."""
    shown = shorten(tensor.name)
    if not isinstance(entry, dict) or not {"dtype", "shape"} <= entry.keys() <= _ENTRY_KEYS:
        raise UpdateError(f"tensor {shown!r}: {ENCODED_KEY} does not have its dtype and shape")
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in ENCODABLE or not isinstance(shape, list):
        raise UpdateError(
            f"tensor {shown!r}: {shorten(str(dtype))} {shorten(str(shape))} cannot be encoded; "
            f"encoded tensors are {' or '.join(ENCODABLE)}"
        )
    return tensor.name, dtype, shape


def _check_stored(codec: Codec, tensor: Tensor, stored: Tensor, entry: Any) -> tuple[int, ...]:
    """Check that a tensor is stored as the codec says; return the sizes that are stated of units.

    ``tensor`` is the decoded one.
    """
    shown, count = shorten(tensor.name), _count(tensor)
    if isinstance(codec, BlockCodec):
        units: tuple[int, ...] = ()
        shape: tuple[int, ...] = codec.stored_shape(count)
        how = f"one row for each {BLOCK} of the {count} elements"
    else:
        units = _check_units(codec, tensor, entry.get(UNITS_KEY))
        shape = (sum(units),)
        how = "the sizes of its units"
    if (stored.dtype, stored.shape) != (STORED_DTYPE, shape):
        raise UpdateError(
            f"tensor {shown!r} is {stored.dtype} {shorten(str(list(stored.shape)))}, but "
            f"{shorten(str(list(tensor.shape)))} in {codec.name} is {STORED_DTYPE} {list(shape)}: "
            f"{how}"
        )
    return units


def _check_units(codec: TopK, tensor: Tensor, units: Any) -> tuple[int, ...]:
    shown, count = shorten(tensor.name), _count(tensor)
    number = -(-count // UNIT)
    if not isinstance(units, list) or len(units) != number:
        raise UpdateError(
            f"tensor {shown!r} of {count} elements has {number} units, whose sizes {UNITS_KEY} in "
            f"{ENCODED_KEY} does not list"
        )
    size = DTYPES[tensor.dtype].size
    for index, nbytes in enumerate(units):
        wrong = codec.check_unit(nbytes, min(UNIT, count - index * UNIT), size)
        if wrong is not None:
            raise UpdateError(
                f"tensor {shown!r}: the size of unit {index} is {shorten(str(nbytes))}, {wrong}"
            )
    return tuple(units)
