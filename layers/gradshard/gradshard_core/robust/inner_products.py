"""Measure updates: the inner products of all pairs, their Gram matrix.

Products are of floating-point tensors that are no buffers. The layout is divided into *chunks* at
fixed positions. In a chunk, the elements of an update are rounded to multiples of 2^(e - 18), where
2^e is the power of two above its largest magnitude there. Products of such numbers, and their sum
over a chunk, are exact in float64 in any order of additions, so a BLAS call gives the same bits on
every processor. The sums of chunks are added up exactly, too, as unevaluated sums of float64
(Shewchuk 1997, https://doi.org/10.1007/PL00009321), and rounded once in the end. The Gram matrix
therefore depends on the updates alone: not on M, retries, arrival order or processor. It is that of
the rounded updates; rounding errors of single elements cancel out in norms and distances.

Of partial updates, chunks are cut where layers begin and end. A layer that an update lacks is no
change of the model: its elements are zero. Rules that compare pairs look at those alone that have a
layer, so each layer has a Gram matrix of its own.
"""

import itertools
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradshard_core.aggregation.batchnorm_buffers import Stretches, is_in
from gradshard_core.aggregation.block_sizes import MAX_ELEMENT_BYTES, ROW_BYTES, chunks_at_once
from gradshard_core.aggregation.kernel import Block, Piece, Source, check_finite
from gradshard_core.aggregation.sharding import Shard, aligned
from gradshard_core.formats.dtypes import DType
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.robust.elementwise_rules import take_rows

Matrix = npt.NDArray[np.float64]

MOST_ELEMENTS: Final = ROW_BYTES // 2 + MAX_ELEMENT_BYTES
"""Elements of a chunk at most, of two bytes each."""

BITS: Final = 18
"""Bits of an element's magnitude. A sum of as many products as a chunk has elements takes at most
2 · 18 + 16 = 52 bits, which float64 holds."""

WHOLE: Final = 0
"""The number of the one Gram matrix of updates that are not measured layer by layer."""

NOTHING: Final = memoryview(b"")


class Limits(NamedTuple):
    """The magnitudes that can be measured in an accumulator's type.

    Parameters
    ----------
    bound
        Updates with elements from here on are rejected.
    least_exponent
        Elements that are rounded as if the largest of them reached two to this power.
    digits
        The bits of the type's fraction.
    """

    bound: float
    least_exponent: int
    digits: int

    def magic(self, top: float) -> float:
        """Return a number whose last bit is worth 2^(e - 18), where ``top`` < 2^e.

        Adding and subtracting it rounds to multiples of that, ties to even.
        """
        exponent = max(math.frexp(top)[1], self.least_exponent)
        return math.ldexp(1.5, self.digits + exponent - BITS)


LIMITS: Final = {
    "float32": Limits(2.0**120, -100, 23),
    "float64": Limits(2.0**480, -400, 52),
}
"""By the accumulator's type, so that neither products nor :meth:`Limits.magic` overflow."""


def bound_of(dtype: DType) -> float:
    """Return the least magnitude of an element that is too large to be measured."""
    return math.inf if dtype.is_integer else LIMITS[dtype.accumulator.name].bound


def cut_chunks(spans: Sequence[Span], nbytes: int, shards: int, together: int = 1) -> list[Shard]:
    """Cut a layout into M shards of whole chunks; some are empty if there are fewer chunks.

    ``together`` chunks are never cut apart.
    """
    count = -(-nbytes // (together * ROW_BYTES))
    positions = [
        chunk_start(spans, nbytes, together * (count * shard // shards))
        for shard in range(shards + 1)
    ]
    return [
        Shard(number, start, end)
        for number, (start, end) in enumerate(itertools.pairwise(positions))
    ]


def chunk_ranges(
    spans: Sequence[Span], nbytes: int, start: int, end: int, at_once: int = 1
) -> Iterator[tuple[int, int]]:
    """Yield the chunks of a layout that are in [start, end), or the parts of them.

    With ``at_once``, a range is of so many chunks.
    """
    chunk = start // ROW_BYTES
    while start < end:
        chunk += at_once
        stop = min(chunk_start(spans, nbytes, chunk), end)
        if start < stop:
            yield start, stop
            start = stop


def chunk_start(spans: Sequence[Span], nbytes: int, chunk: int) -> int:
    """Return where a chunk starts in the layout, on an element boundary."""
    return nbytes if chunk * ROW_BYTES >= nbytes else aligned(spans, chunk * ROW_BYTES)


def count_matrices(spans: Sequence[Span], layers: int) -> int:
    """Return the number of Gram matrices by their memory, of which one of F64 counts as four.

    Its products have four times as many exponents (:data:`LIMITS`), so an exact sum of them may
    have four times as many components.
    """
    return layers * (4 if any(span.dtype == "F64" for span in spans) else 1)


class ExactSum:
    """The sum of float64 matrices, or of their diagonals, without any rounding.

    Parameters
    ----------
    size
        The number of rows and of columns.
    pairs
        Whether these are matrices; otherwise they are vectors, the diagonals of matrices.

    Attributes
    ----------
    components
        Matrices whose sum it is. Which ones depends on the order of additions; their sum does not.
    """

    def __init__(self, size: int, *, pairs: bool = True) -> None:
        self._size, self._pairs = size, pairs
        self.components: list[Matrix] = []

    def add(self, matrix: Matrix) -> None:
        """Add a finite matrix, or its diagonal."""
        rest = matrix
        for total in self.components:
            # Knuth's two-sum: the rounded sum, and exactly what rounding has lost.
            new = total + rest
            part = new - total
            rest = (total - (new - part)) + (rest - part)
            total[...] = new
            if not rest.any():
                return
        self.components.append(rest.copy())

    def of_same_size(self) -> "ExactSum":
        """Return an empty sum of the same size."""
        return ExactSum(self._size, pairs=self._pairs)

    def add_sum(self, other: "ExactSum") -> None:
        """Add another sum of the same size."""
        for component in other.components:
            self.add(component)

    def rounded_diagonal(self) -> list[float]:
        """Return the elements of the diagonal, each rounded once."""
        parts = [np.diag(c) if self._pairs else c for c in self.components]
        return [math.fsum(float(part[i]) for part in parts) for i in range(self._size)]

    def to_json(self) -> list[list[float]]:
        """Return the upper triangles of the components, row by row; or the diagonals."""
        kept = self._kept()
        return [component[kept].tolist() for component in self.components]

    def add_json(self, written: Sequence[Sequence[float]]) -> None:
        """Add what :meth:`to_json` returned.

        Raises
        ------
        ValueError
            It is none of this size, or not finite.
        """
        kept = self._kept()
        shape = (self._size, self._size) if self._pairs else (self._size,)
        for values in written:
            flat = np.array(values, float)
            if len(flat) != len(kept[0]) or not np.isfinite(flat).all():
                raise ValueError(f"{len(flat)} sums of products, or one that is not finite")
            matrix = np.zeros(shape)
            matrix[kept] = flat
            self.add(matrix)

    def _kept(self) -> tuple[npt.NDArray[np.intp], ...]:
        """Return the positions of the elements that are written."""
        return np.triu_indices(self._size) if self._pairs else (np.arange(self._size),)

    def rounded(self) -> list[list[float]]:
        """Return the symmetric matrix, each element rounded once."""
        upper = zip(*np.triu_indices(self._size), strict=True)
        found = [[0.0] * self._size for _ in range(self._size)]
        for row, column in upper:
            value = math.fsum(float(component[row, column]) for component in self.components)
            found[row][column] = found[column][row] = value
        return found


class Measuring:
    """The reduction that measures; it writes nothing.

    Each block has to be of whole chunks (:func:`chunk_ranges`).

    Parameters
    ----------
    inputs
        Their number.
    buffers
        The stretches of the layout that are not measured. Spans have to be split where they begin
        and end.
    pairs
        Whether products of different updates are needed; otherwise only norms are measured.
    layers
        The byte ranges of each layer, if each has a Gram matrix of its own; otherwise none. Blocks
        must not reach over them.

    Attributes
    ----------
    sums
        The inner products of what was read so far, by the number of the layer.
    """

    of_sums: ClassVar[bool] = False
    accumulator: ClassVar[None] = None

    def __init__(
        self,
        inputs: int,
        buffers: Stretches = (),
        *,
        pairs: bool = True,
        layers: Sequence[Stretches] = (),
    ) -> None:
        self.sums: dict[int, ExactSum] = {}
        self._inputs, self._buffers, self._pairs = inputs, buffers, pairs
        self._layer_starts = sorted(
            (start, number) for number, ranges in enumerate(layers) for start, _ in ranges
        )
        # Pages that are never touched take no memory.
        self._rounded = np.empty((inputs, MOST_ELEMENTS))

    @property
    def products(self) -> ExactSum:
        """The inner products of what was read so far, if layers are not measured one by one."""
        return self._sum_at(0)

    def _sum_at(self, position: int) -> ExactSum:
        """Return the products of the layer that has a byte of the layout."""
        number = WHOLE
        if self._layer_starts:
            number = self._layer_starts[bisect_right(self._layer_starts, (position, math.inf)) - 1][
                1
            ]
        return self.sums.setdefault(number, ExactSum(self._inputs, pairs=self._pairs))

    def rows(self, inputs: int) -> int:
        """Return the number of inputs, since all are held at once."""
        return inputs

    def block_bytes(self, inputs: int) -> int:
        """Return the largest size of a block of chunks, whose start is aligned to an element."""
        return chunks_at_once(inputs) * ROW_BYTES + MAX_ELEMENT_BYTES

    def take(
        self, sources: Sequence[Source], weights: Sequence[float | None], block: Block
    ) -> None:
        """Read a chunk of every input; what an input lacks, where its weight is None, is zero."""
        held = [None if w is None else s for s, w in zip(sources, weights, strict=True)]
        take_rows(held, block)

    def finish(self, piece: Piece, position: int) -> memoryview:
        """Add the products of the elements of one type, chunk by chunk."""
        if piece.dtype.is_integer:
            return NOTHING
        limits = LIMITS[piece.dtype.accumulator.name]
        products = None if is_in(self._buffers, position) else self._sum_at(position)
        for first, stop in _chunks_of(piece, position):
            rounded = self._rounded[:, : stop - first]
            # Row by row, since a row fits the processor's cache and all of them do not.
            for whole, target in zip(piece.rows, rounded, strict=True):
                row = whole[first:stop]
                # The methods of an array call these by way of Python.
                top = max(float(np.maximum.reduce(row)), -float(np.minimum.reduce(row)))
                if not top < limits.bound:
                    check_finite(piece, row, position + first * piece.dtype.size, limits.bound)
                if products is not None:
                    magic = row.dtype.type(limits.magic(top))
                    np.add(row, magic, out=row)
                    np.subtract(row, magic, out=row)
                    np.copyto(target, row)
            if products is not None:
                products.add(rounded @ rounded.T if self._pairs else np.vecdot(rounded, rounded))
        return NOTHING


def _chunks_of(piece: Piece, position: int) -> Iterator[tuple[int, int]]:
    """Yield the elements of a piece that are in one chunk: the first one, and where they end."""
    size, count, first = piece.dtype.size, len(piece.elements), 0
    while first < count:
        # An element belongs to the chunk in which its last byte is.
        following = (position + (first + 1) * size - 1) // ROW_BYTES + 1
        stop = min((following * ROW_BYTES - position) // size, count)
        yield first, stop
        first = stop
