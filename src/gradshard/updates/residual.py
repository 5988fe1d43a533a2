"""Error feedback: what the encoding of an update loses is added to the next update.

F. Seide et al., "1-Bit Stochastic Gradient Descent", Interspeech 2014; S. P. Karimireddy et al.,
"Error Feedback Fixes SignSGD", ICML 2019 (https://arxiv.org/abs/1901.09847), algorithm 2. The
residual is the difference between what was to be sent and what was sent, in float32.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from gradshard_core.errors import UpdateError
from gradshard_core.formats.headers import header_length, parse_header
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, encode_header, shorten

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

PIECE: Final = 8192
"""Numbers of 64 bits that are worked on at a time: so few that BLAS adds up their squares without
threads, and that they stay in the processor's cache."""

ROUND_KEY: Final = "round"
"""Name in the file's metadata of the round in which it was written last."""


class Residual:
    """The part of a client's updates that encoding has lost so far, in memory or in a file.

    It changes when an update has been sent. It keeps its state before the last round, too: if an
    update is sent again in the same round, it starts from there, so nothing is added twice.

    Parameters
    ----------
    path
        A .safetensors file, which is written if it does not exist. The state before the last round
        is in a second file, whose name ends in ``.before``. The files are mapped into memory.
        Without a path, both states are in memory: twice the size of the update in float32.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._kept: tuple[str, Arrays] = "", {}
        self._before: Arrays = {}
        self._next: tuple[str, dict[str, Array]] = "", {}

    @property
    def norm(self) -> float:
        """The Euclidean norm."""
        _, arrays = self._current()
        return math.sqrt(sum(map(sum_of_squares, arrays.values())))

    def start(self, round_id: str, layout: Layout) -> tuple[Arrays, Arrays]:
        """Begin an update.

        Parameters
        ----------
        round_id
            The round to which it will be sent.
        layout
            Of the tensors that will be encoded.

        Returns
        -------
        mapping
            The numbers to add to the update, by name of the tensor, flat; a tensor may be missing.
        mapping
            Zeros of the same form, in which the caller writes the next state. Of tensors that a
            partial update lacks, the state stays.

        Raises
        ------
        UpdateError
            The residual is of tensors of other sizes, or its file is none.
        """
        last, base = self._current()
        if last == round_id:
            base = self._previous()
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in layout.tensors}
        for name, array in base.items():
            if sizes.get(name, array.size) != array.size:
                raise UpdateError(
                    f"the residual has {array.size} elements of tensor {shorten(name)!r}, and the "
                    f"update {sizes[name]}: start with a new residual"
                )
        lacking = {name: array for name, array in base.items() if name not in sizes}
        sizes |= {name: array.size for name, array in lacking.items()}
        self._next = round_id, self._new_arrays(round_id, sizes)
        for name, array in lacking.items():
            self._next[1][name][:] = array
        return base, self._next[1]

    def finish(self) -> None:
        """Take the next state, since the update has been sent."""
        round_id, arrays = self._next
        is_again = self._current()[0] == round_id
        self._next = "", {}
        if self._path is None:
            if not is_again:
                self._before = self._kept[1]
            self._kept = round_id, arrays
            return
        for array in arrays.values():
            cast("np.memmap[Any, Any]", array).flush()
        if not is_again:
            self._keep_before(self._path)
        self._file(".next").replace(self._path)

    def _keep_before(self, path: Path) -> None:
        """Make the file the state before; there is none if there is no file."""
        before, link = self._file(".before"), self._file(".link")
        link.unlink(missing_ok=True)
        if not path.exists():
            before.unlink(missing_ok=True)
            return
        # Whenever the program dies, both names have a whole file.
        os.link(path, link)
        link.replace(before)

    def _current(self) -> tuple[str, Arrays]:
        return self._kept if self._path is None else _mapped(self._path)

    def _previous(self) -> Arrays:
        return self._before if self._path is None else _mapped(self._file(".before"))[1]

    def _file(self, ending: str) -> Path:
        assert self._path is not None  # noqa: S101 - for mypy
        return self._path.with_name(self._path.name + ending)

    def _new_arrays(self, round_id: str, sizes: Mapping[str, int]) -> dict[str, Array]:
        if self._path is None:
            return {name: np.zeros(size, np.float32) for name, size in sizes.items()}
        layout = Layout.pack((name, "F32", [size]) for name, size in sizes.items())
        header = encode_header(layout, {ROUND_KEY: round_id})
        path = self._file(".next")
        with path.open("wb") as file:
            file.write(header)
            file.truncate(len(header) + layout.nbytes)
        return _map(path, layout, len(header), "r+")


def _mapped(path: Path) -> tuple[str, Arrays]:
    """Return the round and the arrays of a file; none if there is no file."""
    try:
        with path.open("rb") as file:
            nbytes = os.fstat(file.fileno()).st_size
            text = file.read(header_length(file.read(PREFIX_BYTES), nbytes))
    except FileNotFoundError:
        return "", {}
    except UpdateError as error:
        raise UpdateError(f"{path} is no residual: {error}") from None
    header = parse_header(text, nbytes)
    if ROUND_KEY not in header.metadata or {t.dtype for t in header.layout.tensors} != {"F32"}:
        raise UpdateError(f"{path} is no residual: name another file, which will be written")
    return header.metadata[ROUND_KEY], _map(path, header.layout, header.data_offset, "r")


def _map(path: Path, layout: Layout, offset: int, mode: Any) -> dict[str, Array]:
    return {
        tensor.name: np.memmap(path, "<f4", mode, offset + tensor.start, math.prod(tensor.shape))
        for tensor in layout.tensors
        if tensor.start < tensor.end
    }


def sum_of_squares(elements: Array) -> float:
    """Return the sum of the squares of float32 numbers, for which float32 may be too small."""
    # For the product of two long rows, BLAS takes all cores of the processor, even if that takes
    # microseconds. Its threads wait for each other in loops.
    squares = 0.0
    for first in range(0, len(elements), 8 * PIECE):
        wide = elements[first : first + 8 * PIECE].astype(np.float64)
        whole = len(wide) // PIECE * PIECE
        rows, rest = wide[:whole].reshape(-1, PIECE), wide[whole:]
        squares += float(np.vecdot(rows, rows).sum() + np.vdot(rest, rest))
    return squares
