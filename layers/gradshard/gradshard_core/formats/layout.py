"""The layout of an update: names, types, shapes and byte offsets of its tensors.

A layout is what a safetensors header says. This module reads and writes such headers
(format: https://huggingface.co/docs/safetensors, "Format") and answers the two questions
that aggregation asks of a layout: which element types lie in a byte range (*spans*), and
where a client that orders its tensors differently keeps those bytes (*runs*).
"""

import itertools
import json
import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES

PREFIX_BYTES: Final = 8
"""The header's length, a little-endian u64, comes before the header."""

MAX_HEADER_BYTES: Final = 16 * 1024 * 1024
"""The longest header that is read: room for 100,000 tensors. The format itself ends at 100 MB,
whose parsing would take more memory than a function has."""

FORMAT_HEADER_BYTES: Final = 100_000_000
MAX_HEADER_VALUES: Final = 1_420_000
"""The most commas, colons and opening brackets in a header: 14 for each of 100,000 tensors of four
dimensions, and some for metadata. What JSON becomes when it is parsed goes by these, up to 200
bytes each, not by its length: 16 MiB of empty lists would be 400 MiB."""

MAX_DIMENSIONS: Final = 64
MAX_SAMPLES: Final = 2**53
"""Counts up to here are exact in float64, so a weight is one correctly rounded division."""

SAMPLES_KEY: Final = "num_samples"


class Tensor(NamedTuple):
    """One tensor and the bytes [start, end) it fills, counted from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


class Span(NamedTuple):
    """Bytes [start, end) of a layout that hold elements of one type."""

    dtype: str
    start: int
    end: int


class Run(NamedTuple):
    """A contributor's object has bytes [start, end) of the layout at ``offset``.

    ``size`` is the size of an element if the run is encoded
    (:mod:`gradshard_core.formats.encoded`), and 0 if its bytes stand there as they are. An encoded
    run has ``stored`` bytes in the object.
    """

    start: int
    end: int
    offset: int
    size: int = 0
    stored: int = 0


class Runs:
    """The runs of a contributor, in the order of the layout.

    There may be one for each of 100,000 tensors, so they are kept as plain numbers.
    """

    width = 3
    """Numbers of a run."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self._numbers = array("q", numbers)
        if len(self._numbers) % self.width:
            raise ValueError(
                f"{len(self._numbers)} numbers are no runs, which have {self.width} each"
            )

    def __len__(self) -> int:
        return len(self._numbers) // self.width

    def __getitem__(self, index: int) -> Run:
        at = self.width * range(len(self))[index]
        return Run(*self._numbers[at : at + self.width])

    def __iter__(self) -> Iterator[Run]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Runs) and self._numbers == other._numbers

    __hash__ = None  # type: ignore[assignment]

    def to_json(self) -> list[int]:
        """Return start, end and offset of one run after another."""
        return self._numbers.tolist()

    def moved(self, nbytes: int) -> "Runs":
        """Return the runs of an object that has everything so many bytes later."""
        moved = Runs(self._numbers)
        for index in range(2, len(moved._numbers), self.width):
            moved._numbers[index] += nbytes
        return moved

    def clip(self, start: int, end: int) -> Iterator[tuple[Run, int, int]]:
        """Yield the runs with bytes in [start, end) of the layout, each with its part of them."""
        first = bisect_right(range(len(self)), start, key=lambda index: self[index].end)
        for index in range(first, len(self)):
            run = self[index]
            if run.start >= end:
                return
            yield run, max(run.start, start), min(run.end, end)

    def ranges(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the byte ranges of the object that hold the layout's [start, end)."""
        for run, low, high in self.clip(start, end):
            shift = run.offset - run.start
            yield shift + low, shift + high

    @property
    def largest_unit(self) -> int:
        """Bytes of the largest unit of entries."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of the object that hold the layout's."""
        return sum(map(_stored_bytes, self))

    @cached_property
    def are_in_order(self) -> bool:
        """Whether the object has them in the same order, without gaps."""
        return all(
            before.offset + _stored_bytes(before) == run.offset
            for before, run in itertools.pairwise(self)
        )


def _stored_bytes(run: Run) -> int:
    """Return the size of a run in the object."""
    return run.stored if run.size else run.end - run.start


@dataclass(frozen=True)
class Layout:
    """Tensors in the order of their bytes, without holes or overlaps."""

    tensors: tuple[Tensor, ...]

    @classmethod
    def pack(cls, tensors: Iterable[tuple[str, str, Sequence[int]]]) -> "Layout":
        """Lay out (name, dtype, shape) one behind the other.

        Raises
        ------
        UpdateError
            A name comes twice, or a dtype or shape is none.
        """
        packed: dict[str, Tensor] = {}
        start = 0
        for name, dtype, shape in tensors:
            if name in packed:
                raise UpdateError(f"tensor {name!r} comes twice")
            end = start + _byte_length(name, dtype, shape)
            packed[name] = Tensor(name, dtype, tuple(shape), start, end)
            start = end
        return cls(tuple(packed.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return self.tensors[-1].end if self.tensors else 0

    def to_json(self) -> dict[str, Any]:
        """Return dtypes and shapes by name, as a round's terms have them."""
        return {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in self.tensors}

    @cached_property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Dtype and shape by name, which two updates must agree on; their order may differ."""
        return {tensor.name: (tensor.dtype, tensor.shape) for tensor in self.tensors}

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """The layout as stretches of one type, neighbours of the same type merged."""
        spans: list[Span] = []
        for tensor in self.tensors:
            if tensor.start == tensor.end:
                continue
            if spans and spans[-1].dtype == tensor.dtype:
                spans[-1] = spans[-1]._replace(end=tensor.end)
            else:
                spans.append(Span(tensor.dtype, tensor.start, tensor.end))
        return tuple(spans)

    @property
    def storage(self) -> str:
        """The storage of encoded elements, as text; empty if they are stored as they are."""
        return ""

    @property
    def stored(self) -> "Layout":
        """The tensors as they stand in the object."""
        return self

    def header(self, metadata: Mapping[str, str]) -> bytes:
        """Return the safetensors header of an object with this layout, length included."""
        return encode_header(self, metadata)

    @property
    def decoded(self) -> "Layout":
        """The same layout with all elements as they are."""
        return self

    def runs_in(self, other: "Layout", data_offset: int) -> Runs:
        """Return where an object with the layout ``other`` has the bytes of this layout.

        Parameters
        ----------
        other
            A layout of the same tensors, or of some of them, in any order.
        data_offset
            The offset of the first tensor byte in the object.
        """
        return other._runs_of(self, data_offset)

    def _runs_of(self, layout: "Layout", data_offset: int) -> Runs:
        """Return where an object of this layout has the bytes of ``layout``."""
        offsets = {tensor.name: data_offset + tensor.start for tensor in self.tensors}
        runs = array("q")
        for tensor in layout.tensors:
            offset = offsets.get(tensor.name)
            if tensor.start == tensor.end or offset is None:
                continue
            if runs and runs[-2] == tensor.start and runs[-1] + runs[-2] - runs[-3] == offset:
                runs[-2] = tensor.end
            else:
                runs.extend((tensor.start, tensor.end, offset))
        return Runs(runs)

    def difference(self, other: "Layout", *, partial: bool = False) -> str | None:
        """Say how ``other`` first differs from this layout, in this layout's order.

        With ``partial`` it may lack tensors.
        """
        for tensor in self.tensors:
            theirs = other.shapes.get(tensor.name)
            if theirs is None and partial:
                continue
            if theirs is None:
                return f"tensor {shorten(tensor.name)!r} is missing{self._lookalike(tensor, other)}"
            if theirs != (tensor.dtype, tensor.shape):
                return (
                    f"tensor {shorten(tensor.name)!r} is {theirs[0]} {_shown(theirs[1])}, "
                    f"not {tensor.dtype} {_shown(tensor.shape)}"
                )
        extra = next((t.name for t in other.tensors if t.name not in self.shapes), None)
        if extra is None:
            return None
        return f"tensor {shorten(extra)!r} is not in the round's layout"

    def _lookalike(self, tensor: Tensor, other: "Layout") -> str:
        """Name the tensor of ``other`` whose name is the same text in other code points."""
        extra = [name for name in other.shapes if name not in self.shapes]
        if all(map(str.isascii, extra)):
            return ""
        import unicodedata

        normal = unicodedata.normalize("NFC", tensor.name)
        same = next((name for name in extra if unicodedata.normalize("NFC", name) == normal), None)
        if same is None:
            return ""
        return (
            f", and {shorten(ascii(same))} is there, which reads the same: names are compared by "
            f"code points, and the round's is {shorten(ascii(tensor.name))}"
        )

    def tensor_at(self, position: int) -> Tensor:
        """Return the tensor that holds byte ``position``."""
        return next(t for t in self.tensors if t.start <= position < t.end)


class Header(NamedTuple):
    """An object's header, and the position of its first tensor byte."""

    layout: Layout
    metadata: dict[str, str]
    data_offset: int


def header_length(prefix: bytes, object_bytes: int) -> int:
    """Read the length of a header from the first eight bytes of an object.

    Raises
    ------
    UpdateError
        The object is too short for a header, or the header too long for it or for us.
    """
    if len(prefix) < PREFIX_BYTES:
        raise UpdateError(
            f"not a safetensors object: {object_bytes} bytes, fewer than the 8 of a header's length"
        )
    length = int.from_bytes(prefix[:PREFIX_BYTES], "little")
    if length > FORMAT_HEADER_BYTES:
        raise UpdateError(
            f"not a safetensors object: its first {PREFIX_BYTES} bytes would announce a header of "
            f"{length} bytes, over the format's {FORMAT_HEADER_BYTES}"
        )
    if PREFIX_BYTES + length > object_bytes:
        raise UpdateError(
            f"header of {length} bytes is longer than the object, which has {object_bytes} bytes"
        )
    if length > MAX_HEADER_BYTES:
        raise UpdateError(
            f"header of {length} bytes is over the {MAX_HEADER_BYTES} that gradshard reads; "
            "shorten the tensor names or the metadata"
        )
    return length


def parse_header(header: bytes, object_bytes: int) -> Header:
    """Read and check a whole safetensors header.

    Parameters
    ----------
    header
        The header without the eight bytes of its length.
    object_bytes
        The size of the object that has it.

    Raises
    ------
    UpdateError
        The header is not JSON, or does not describe the object's bytes exactly.
    """
    entries = parse_json(header)
    metadata = _parse_metadata(entries.pop("__metadata__", {}))
    data_offset = PREFIX_BYTES + len(header)
    data_bytes = object_bytes - data_offset
    tensors = sorted(
        (_parse_tensor(name, entry, data_bytes) for name, entry in entries.items()),
        key=lambda tensor: (tensor.start, tensor.end),
    )
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            what = "overlaps the bytes before it" if tensor.start < position else "leaves a hole"
            raise UpdateError(
                f"tensor {shorten(tensor.name)!r} begins at byte {tensor.start}, not {position}: "
                f"it {what}"
            )
        position = tensor.end
    if position != data_bytes:
        raise UpdateError(
            f"the tensors end at byte {position}, but the object holds {data_bytes} bytes of them"
        )
    layout = Layout(tuple(tensors))
    check_not_empty(layout)
    return Header(layout, metadata, data_offset)


def check_not_empty(layout: Layout) -> None:
    """Check that an update of this layout has something to average.

    Raises
    ------
    UpdateError
        The layout has no element.
    """
    if layout.nbytes == 0:
        raise UpdateError("the update is empty: it holds no element of any tensor")


def parse_samples(metadata: Mapping[str, str]) -> int:
    """Read the number of samples an update was trained on from its metadata.

    Raises
    ------
    UpdateError
        ``num_samples`` is missing, or not a whole number from 1 to 2**53.
    """
    text = metadata.get(SAMPLES_KEY)
    if text is None:
        raise UpdateError(f"{SAMPLES_KEY} is missing from the header's __metadata__")
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(MAX_SAMPLES))):
        raise UpdateError(f"{SAMPLES_KEY} is {shorten(text)!r}, not a whole number above zero")
    samples = int(text)
    if not 1 <= samples <= MAX_SAMPLES:
        raise UpdateError(f"{SAMPLES_KEY} is {samples}, not from 1 to 2**53")
    return samples


def encode_header(layout: Layout, metadata: Mapping[str, str]) -> bytes:
    """Write a header, length included, padded so that the tensors begin at a multiple of 8."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for tensor in layout.tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (tensor.start, tensor.end),
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % PREFIX_BYTES)
    return len(text).to_bytes(PREFIX_BYTES, "little") + text


def shorten(text: str, limit: int = 80) -> str:
    """Cut text from a client to a length that fits a message."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _shown(shape: Sequence[int]) -> str:
    return shorten(str(list(shape)))


def _byte_length(name: str, dtype: str, shape: Sequence[int]) -> int:
    if dtype not in DTYPES:
        raise UpdateError(
            f"tensor {name!r} has dtype {shorten(str(dtype))!r}; supported: {', '.join(DTYPES)}"
        )
    if len(shape) > MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**63 for n in shape):
        raise UpdateError(
            f"tensor {name!r} has shape {shorten(str(shape))}, "
            f"not a list of at most {MAX_DIMENSIONS} sizes"
        )
    return math.prod(shape) * DTYPES[dtype].size


def parse_json(header: bytes) -> dict[str, Any]:
    """Read a JSON object from a client, of bounded size and without duplicate keys.

    Raises
    ------
    UpdateError
        It is none.
    """

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = dict(pairs)
        if len(entries) != len(pairs):
            raise UpdateError("the header names a key twice")
        return entries

    def reject_constant(text: str) -> float:
        raise ValueError(f"{text} is not JSON")

    values = sum(map(header.count, (b",", b":", b"[", b"{")))
    if values > MAX_HEADER_VALUES:
        raise UpdateError(
            f"header of {len(header)} bytes has {values} commas, colons and opening brackets, over "
            f"the {MAX_HEADER_VALUES} that gradshard reads; join tensors, or shorten the metadata"
        )
    try:
        entries = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=without_duplicates,
            parse_constant=reject_constant,
        )
        "".join(entries).encode("utf-8")  # a lone surrogate could never be written back
    except (ValueError, RecursionError, TypeError) as error:
        raise UpdateError(f"the header is not a JSON object: {shorten(str(error))}") from None
    if not isinstance(entries, dict):
        raise UpdateError(f"the header is not a JSON object but a {type(entries).__name__}")
    return entries


def _parse_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise UpdateError("the header's __metadata__ is not a map from text to text")
    try:
        "".join(itertools.chain(metadata, metadata.values())).encode("utf-8")
    except UnicodeEncodeError:
        raise UpdateError("the header's __metadata__ holds half a character") from None
    return metadata


def _parse_tensor(name: str, entry: Any, data_bytes: int) -> Tensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise UpdateError(f"tensor {shorten(name)!r} lacks dtype, shape or data_offsets")
    shown = shorten(name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise UpdateError(f"tensor {shown!r}: dtype is not text, or shape not a list")
    if not (
        isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)
    ):
        raise UpdateError(f"tensor {shown!r}: data_offsets is not two whole numbers")
    start, end = offsets
    if not 0 <= start <= end <= data_bytes:
        raise UpdateError(
            f"tensor {shown!r} fills bytes {shorten(str(start))} to {shorten(str(end))}, out of "
            f"the object's {data_bytes}"
        )
    expected = _byte_length(shown, dtype, shape)
    if end - start != expected:
        raise UpdateError(
            f"tensor {shown!r}: {dtype} {shorten(str(shape))} is {expected} bytes, "
            f"but its data_offsets span {end - start}"
        )
    return Tensor(name, dtype, tuple(shape), start, end)
