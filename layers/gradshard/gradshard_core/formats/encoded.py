"""Compressed updates: what their headers say, and where their objects have which elements.

The object of a compressed update is a safetensors file. Its metadata name the codec, and the dtype
and shape of each tensor that is encoded; such a tensor stands in the file as U8, with one row for
each unit. Tensors that are not named there stand as they are.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gradshard_core.errors import UpdateError
from gradshard_core.formats.codecs.block import BLOCK, BlockCodec
from gradshard_core.formats.codecs.registry import CODECS, codec_named, list_names
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.layout import (
    Header,
    Layout,
    Run,
    Runs,
    Tensor,
    encode_header,
    parse_header,
    parse_json,
    shorten,
)

CODEC_KEY: Final = "codec"
ENCODED_KEY: Final = "encoded"
"""Names in the metadata: of the codec, and of the tensors that are encoded."""

ENCODABLE: Final = ("F32", "BF16")
"""Element types that a tensor may have once it is decoded."""

STORED_DTYPE: Final = "U8"


class EncodedRuns(Runs):
    """The runs of a compressed update; contributors that store theirs alike share the table.

    Parameters
    ----------
    codec
        The codec's name.
    table
        Start, end, offset and size of one run after another.
    shift
        What to add to the offsets.
    origin
        From which byte of the layout the runs are read. A unit that begins before this byte is
        read, too. If a later range begins within a unit, that was read with the range before.
    """

    width = 4

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
        """Start, end, offset and size of one run after another."""
        return self._numbers

    @property
    def shift(self) -> int:
        """What is added to the offsets of the table."""
        return self._shift

    def moved(self, nbytes: int) -> "EncodedRuns":
        """Return the runs of an object that has everything so many bytes later."""
        return EncodedRuns(self.codec, self._numbers, self._shift + nbytes)

    def read_from(self, origin: int) -> "EncodedRuns":
        """Return the runs as they are read from a byte of the layout on."""
        return EncodedRuns(self.codec, self._numbers, self._shift, origin)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the byte ranges of the object that hold the layout's [start, end)."""
        unit_bytes = self._codec.unit_bytes
        for run, low, high in self.clip(start, end):
            if not run.size:
                shift = run.offset - run.start
                yield shift + low, shift + high
                continue
            element = (low - run.start) // run.size
            is_begun = low == start != self._origin
            first = -(-element // BLOCK) if is_begun else element // BLOCK
            stop = -(-(high - run.start) // (run.size * BLOCK))
            if first < stop:
                yield run.offset + first * unit_bytes, run.offset + stop * unit_bytes

    def stored_bytes(self, run: Run) -> int:
        """Return the size of a run in the object."""
        length = run.end - run.start
        return self._codec.stored_bytes(length // run.size) if run.size else length


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
    """

    codec: str
    encoded: tuple[bool, ...]

    @property
    def decoded(self) -> Layout:
        """The same layout without the codec."""
        return Layout(self.tensors)

    @property
    def storage(self) -> str:
        """How the elements are stored, as text that tells two such layouts apart."""
        return f"{self.codec} {''.join(map('01'.__getitem__, self.encoded))}"

    @cached_property
    def stored(self) -> Layout:
        """The tensors as they stand in the object."""
        codec = CODECS[self.codec]
        return Layout.pack(
            (
                t.name,
                STORED_DTYPE,
                (codec.stored_bytes(_count(t)) // codec.unit_bytes, codec.unit_bytes),
            )
            if is_encoded
            else (t.name, t.dtype, t.shape)
            for t, is_encoded in zip(self.tensors, self.encoded, strict=True)
        )

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Return the safetensors header of an object with this layout, and such metadata."""
        names = {
            t.name: {"dtype": t.dtype, "shape": t.shape}
            for t, is_encoded in zip(self.tensors, self.encoded, strict=True)
            if is_encoded
        }
        text = json.dumps(names, separators=(",", ":"), ensure_ascii=False)
        return encode_header(self.stored, {**metadata, CODEC_KEY: self.codec, ENCODED_KEY: text})

    def _runs_of(self, layout: Layout, data_offset: int) -> EncodedRuns:
        """Return where an object of this layout has the bytes of ``layout``."""
        codec = CODECS[self.codec]
        rows = zip(self.stored.tensors, self.encoded, strict=True)
        places = {stored.name: (stored.start, is_encoded) for stored, is_encoded in rows}
        table = array("q")
        for tensor in layout.tensors:
            if tensor.start == tensor.end or tensor.name not in places:
                continue
            offset, is_encoded = places[tensor.name]
            size = DTYPES[tensor.dtype].size if is_encoded else 0
            if _continues(codec, table, tensor.start, offset, size):
                table[-3] = tensor.end
            else:
                table.extend((tensor.start, tensor.end, offset, size))
        return EncodedRuns(self.codec, table, data_offset)


def _continues(codec: BlockCodec, table: "array[int]", start: int, offset: int, size: int) -> bool:
    """Whether a tensor goes on where the last run ends, in the layout and in the object."""
    if not table or table[-3] != start or table[-1] != size:
        return False
    length = start - table[-4]
    if size and length % (size * BLOCK):
        return False
    return table[-2] + (codec.stored_bytes(length // size) if size else length) == offset


def encode_layout(layout: Layout, codec: str, names: frozenset[str]) -> EncodedLayout:
    """Return a layout whose tensors of these names are encoded."""
    encoded = tuple(tensor.name in names for tensor in layout.tensors)
    return EncodedLayout(layout.tensors, codec, encoded)


def parse_update(header: bytes, object_bytes: int) -> Header:
    """Read and check the header of an update, compressed or not.

    Parameters are those of :func:`gradshard_core.formats.layout.parse_header`. The layout of a
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
    tensors = []
    for tensor in plain.layout.tensors:
        entry = stated.get(tensor.name)
        if entry is None:
            tensors.append((tensor.name, tensor.dtype, tensor.shape))
        else:
            tensors.append(_decoded(codec, tensor, entry))
    decoded = Layout.pack(tensors)
    return plain._replace(layout=encode_layout(decoded, codec.name, frozenset(stated)))


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


def _decoded(codec: BlockCodec, tensor: Tensor, entry: Any) -> tuple[str, str, tuple[int, ...]]:
    """Check what is stated of an encoded tensor; return its name, dtype and shape, decoded."""
    shown = shorten(tensor.name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape"}:
        raise UpdateError(f"tensor {shown!r}: {ENCODED_KEY} does not have its dtype and shape")
    dtype, shape = entry["dtype"], entry["shape"]
    if dtype not in ENCODABLE or not isinstance(shape, list):
        raise UpdateError(
            f"tensor {shown!r}: {shorten(str(dtype))} {shorten(str(shape))} cannot be encoded; "
            f"encoded tensors are {' or '.join(ENCODABLE)}"
        )
    [packed] = Layout.pack([(tensor.name, dtype, shape)]).tensors
    count = _count(packed)
    rows = -(-count // BLOCK)
    if (tensor.dtype, tensor.shape) != (STORED_DTYPE, (rows, codec.unit_bytes)):
        raise UpdateError(
            f"tensor {shown!r} is {tensor.dtype} {shorten(str(list(tensor.shape)))}, but "
            f"{shorten(str(shape))} in {codec.name} is {STORED_DTYPE} "
            f"[{rows}, {codec.unit_bytes}]: one row for each {BLOCK} of the {count} elements"
        )
    return tensor.name, dtype, packed.shape
