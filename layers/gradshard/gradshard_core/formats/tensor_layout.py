"""The layout of an update: names, types, shapes and byte offsets of its tensors.

A layout is what a safetensors header says (:mod:`gradshard_core.formats.headers`). It answers the
two questions that aggregation asks: which element types lie in a byte range (*spans*), and where a
client that orders its tensors differently keeps those bytes (*runs*).
"""

import itertools
import json
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

MAX_DIMENSIONS: Final = 64


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
    (:mod:`gradshard_core.formats.compressed_updates`), and 0 if its bytes stand there as they are.
    An encoded run has ``stored`` bytes in the object.
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

    def has(self, position: int) -> bool:
        """Return whether the object has a byte of the layout."""
        return any(True for _ in self.clip(position, position + 1))

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
            end = start + byte_length(name, dtype, shape)
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


def check_not_empty(layout: Layout) -> None:
    """Check that an update of this layout has something to average.

    Raises
    ------
    UpdateError
        The layout has no element.
    """
    if layout.nbytes == 0:
        raise UpdateError("the update is empty: it holds no element of any tensor")


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


def byte_length(name: str, dtype: str, shape: Sequence[int]) -> int:
    """Return the size of a tensor in bytes.

    Raises
    ------
    UpdateError
        The dtype or the shape is none.
    """
    if dtype not in DTYPES:
        raise UpdateError(
            f"tensor {name!r} has dtype {shorten(str(dtype))!r}; supported: {', '.join(DTYPES)}"
        )
    if len(shape) <= MAX_DIMENSIONS:
        nbytes = DTYPES[dtype].size
        for length in shape:
            if type(length) is not int or not 0 <= length < 2**63:
                break
            nbytes *= length
        else:
            return nbytes
    raise UpdateError(
        f"tensor {name!r} has shape {shorten(str(shape))}, "
        f"not a list of at most {MAX_DIMENSIONS} sizes"
    )
