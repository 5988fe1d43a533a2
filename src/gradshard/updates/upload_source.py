"""The bytes of an update or a model that is uploaded, from tensors in memory or from a file.

Only the header is copied; it is written anew, with the client's metadata. All other bytes are read
when they are needed, from any position.
"""

import contextlib
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Protocol, Self

import numpy as np

from gradshard.updates.tensors import pack
from gradshard.utils.atomic_file import kind_of
from gradshard_core.aggregation.arithmetic import first_nonfinite
from gradshard_core.errors import UpdateError
from gradshard_core.formats.client_metrics import encode_metrics
from gradshard_core.formats.compressed_updates import parse_update
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import (
    MAX_HEADER_BYTES,
    SAMPLES_KEY,
    Header,
    header_length,
    parse_header,
    parse_samples,
)
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, encode_header, shorten
from gradshard_core.stragglers.client_report import report_metadata
from gradshard_core.units import MIB

ZIP_MAGIC: Final = b"PK\x03\x04"
"""Cannot begin a safetensors file, whose header would then be petabytes long."""


class Content(Protocol):
    """The bytes of an update, of which any range can be read."""

    @property
    def layout(self) -> Layout:
        """The update's tensors."""

    @property
    def nbytes(self) -> int:
        """The number of bytes."""

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end); several threads may read at once."""


class TensorContent:
    """An update, or a model, of tensors in memory, which are not copied.

    Parameters
    ----------
    tensors
        The argument of :func:`gradshard.updates.tensors.pack`.
    samples
        The number of samples the client trained on; None for a model.
    metadata
        Further metadata of the header.
    """

    def __init__(
        self,
        tensors: Mapping[str, Any],
        samples: int | None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.layout, views = pack(tensors)
        samples_metadata = {} if samples is None else {SAMPLES_KEY: check_samples(samples)}
        header = encode_header(self.layout, {**(metadata or {}), **samples_metadata})
        self._pieces = [memoryview(header), *views]
        *self._starts, self.nbytes = accumulate(map(len, self._pieces), initial=0)

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        first = bisect_right(self._starts, start) - 1
        chunks = []
        for piece_start, piece in zip(self._starts[first:], self._pieces[first:], strict=True):
            if piece_start >= end:
                break
            chunks.append(piece[max(start - piece_start, 0) : end - piece_start])
        return b"".join(chunks)


class FileContent:
    """An update, or a model, in a .safetensors file, read while it is sent.

    The header is written anew, with the number of samples of an update.

    Parameters
    ----------
    path
        The file.
    samples
        The number of samples; None if the file's metadata has ``num_samples``.
    metadata
        Metadata to add to the header's.
    is_model
        Whether it is a model, which has no samples.
    takes_codecs
        Whether it may be compressed; by default, an update may and a model may not.
    """

    def __init__(
        self,
        path: Path,
        samples: int | None,
        metadata: Mapping[str, str] | None = None,
        *,
        is_model: bool = False,
        takes_codecs: bool | None = None,
    ) -> None:
        check_readable(path)
        takes_codecs = not is_model if takes_codecs is None else takes_codecs
        self._path = path
        self._file = path.open("rb")
        self._lock = threading.Lock()
        try:
            self._version = self._stat()
            header = self._read_header(parse_update if takes_codecs else parse_header)
            written = {**header.metadata, **(metadata or {})}
            if samples is not None:
                written[SAMPLES_KEY] = check_samples(samples)
            if not is_model:
                _check_metadata(written)
        except UpdateError as error:
            self._file.close()
            raise UpdateError(f"{path}: {error}") from None
        self.layout = header.layout
        self._header = header.layout.header(written)
        # From a position in the update to the one in the file, beyond the header.
        self._shift = header.data_offset - len(self._header)
        self.nbytes = len(self._header) + header.layout.stored.nbytes

    def __enter__(self) -> Self:
        """Return the content itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end).

        Raises
        ------
        UpdateError
            The file was changed since it was opened.
        """
        head = self._header[start:end]
        begin = max(start, len(self._header))
        body = self._read_file(begin + self._shift, end + self._shift) if begin < end else b""
        if len(head) + len(body) != end - start or self._stat() != self._version:
            raise UpdateError(f"{self._path} was changed while it was uploaded; submit it again")
        return head + body if head else body

    def _read_file(self, start: int, end: int) -> bytes:
        with self._lock:
            self._file.seek(start)
            return self._file.read(end - start)

    def _read_header(self, parse: Callable[[bytes, int], Header]) -> Header:
        nbytes = self._version[0]
        prefix = self._read_file(0, PREFIX_BYTES)
        if prefix.startswith(ZIP_MAGIC):
            raise UpdateError(
                "not a safetensors object but a zip file, such as an .npz or a torch checkpoint: "
                "`gradshard convert` makes a .safetensors file of it"
            )
        end = PREFIX_BYTES + header_length(prefix, nbytes)
        return parse(self._read_file(PREFIX_BYTES, end), nbytes)

    def _stat(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns


def header_bytes(content: Content) -> int:
    """Return where the tensors of a content begin."""
    return PREFIX_BYTES + int.from_bytes(content.read(0, PREFIX_BYTES), "little")


def check_readable(path: Path) -> None:
    """Check that a path is a regular file, which can be read from any position and repeatedly.

    Raises
    ------
    OSError
        The file is a FIFO or a device, or does not exist.
    """
    kind = kind_of(path.stat().st_mode)
    if kind is not None:
        if kind == "a directory":
            raise IsADirectoryError(f"{path} is a directory; name a file to read")
        raise OSError(f"{path} is {kind}, not a regular file; write it to one, and give that")


def layout_of(path: Path) -> Layout:
    """Read the layout of a .safetensors file.

    Raises
    ------
    UpdateError
        The file is no safetensors file.
    """
    with FileContent(path, None, is_model=True) as content:
        return content.layout


def layout_record(layout: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return a layout as a round's spec has it.

    Parameters
    ----------
    layout
        The path of a .safetensors file, tensors by name, or dtypes and shapes by name, which are
        left to :func:`gradshard_core.specs.round_spec_checks.parse_spec`.

    Raises
    ------
    UpdateError
        The file or the tensors could not be averaged.
    """
    if isinstance(layout, str | Path):
        return layout_of(Path(layout)).to_json()
    if not layout or any(isinstance(entry, Mapping) for entry in layout.values()):
        return dict(layout)
    return pack(layout)[0].to_json()


class _ReorderedContent:
    """A content with its tensors in the order of ``layout``."""

    def __init__(self, content: Content, layout: Layout) -> None:
        end = header_bytes(content)
        header = parse_header(content.read(PREFIX_BYTES, end), content.nbytes)
        self.layout = layout
        self._content = content
        self._header = encode_header(layout, header.metadata)
        self._runs = layout.runs_in(content.layout, header.data_offset)
        self.nbytes = len(self._header) + layout.nbytes

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        head, shift = self._header[start:end], len(self._header)
        ranges = self._runs.ranges(max(0, start - shift), end - shift)
        return head + b"".join(self._content.read(first, stop) for first, stop in ranges)


def in_order_of(layout: Layout | None, content: Content) -> Content:
    """Return a content with its tensors in the order of the round's layout, if there is one.

    A content that has them in another order is read in pieces. One that is compressed stays as it
    is, since its encoding goes by the order of its tensors.
    """
    if layout is None or content.layout.storage:
        return content
    shapes = content.layout.shapes
    ordered = [t for t in layout.tensors if t.name in shapes]
    if [tensor.name for tensor in ordered] == [tensor.name for tensor in content.layout.tensors]:
        return content
    return _ReorderedContent(content, Layout.pack((t.name, t.dtype, t.shape) for t in ordered))


class PaddedContent:
    """A content that is padded with spaces at the end of its header, where they have no meaning.

    Parameters
    ----------
    content
        The content to send.
    nbytes
        The padded length, at least the content's own.
    """

    def __init__(self, content: Content, nbytes: int) -> None:
        self.layout, self.nbytes = content.layout, nbytes
        self._content = content
        self._shift = nbytes - content.nbytes
        end = header_bytes(content)
        header = content.read(PREFIX_BYTES, end) + b" " * self._shift
        if len(header) > MAX_HEADER_BYTES:
            raise UpdateError(
                f"its header of {end - PREFIX_BYTES} bytes leaves no room for the {self._shift} to "
                "fill it up with; shorten its metadata"
            )
        self._header = len(header).to_bytes(PREFIX_BYTES, "little") + header

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end)."""
        head = self._header[start:end]
        begin = max(start, len(self._header))
        if begin >= end:
            return head
        return head + self._content.read(begin - self._shift, end - self._shift)


def check_finite(content: Content) -> None:
    """Check that an update has no NaN and no infinity, as a round's tasks do; 1 MiB at a time.

    Raises
    ------
    UpdateError
        It has one.
    """
    offset = header_bytes(content)
    for tensor in content.layout.tensors:
        dtype = DTYPES[tensor.dtype]
        if dtype.is_integer:
            continue
        for start in range(tensor.start, tensor.end, MIB):
            data = content.read(offset + start, offset + min(start + MIB, tensor.end))
            found = first_nonfinite(dtype, np.frombuffer(data, dtype.storage))
            if found is not None:
                element = (start - tensor.start) // dtype.size + found
                raise UpdateError(
                    f"tensor {shorten(tensor.name)!r} holds a NaN or an infinity at element "
                    f"{element}; nothing was sent"
                )


def check_samples(samples: object) -> str:
    """Return a number of samples as the metadata holds it.

    Raises
    ------
    UpdateError
        The number is not a whole number from 1 to 2**53.
    """
    if isinstance(samples, bool) or not hasattr(samples, "__index__"):
        raise UpdateError(f"samples is {samples!r}, not a whole number above zero")
    text = str(samples.__index__())
    try:
        parse_samples({SAMPLES_KEY: text})
    except UpdateError:
        raise UpdateError(f"samples is {text}, not from 1 to 2**53") from None
    return text


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if SAMPLES_KEY not in metadata:
        raise UpdateError(
            f"{SAMPLES_KEY} is missing from its metadata: give samples (--samples), on how many "
            "the client trained"
        )
    parse_samples(metadata)


@contextlib.contextmanager
def content_of(
    update: Mapping[str, Any] | str | Path,
    samples: int | None,
    training: Mapping[str, float] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> Iterator[Content]:
    """Open an update: tensors by name, or the path of a .safetensors file.

    Parameters
    ----------
    update, samples
        The update.
    training
        The client's report of its training
        (:func:`gradshard_core.stragglers.client_report.report_metadata`).
    metrics
        The client's metrics (:func:`gradshard_core.formats.client_metrics.encode_metrics`).

    Raises
    ------
    UpdateError
        The update could not be averaged.
    """
    metadata = report_metadata(training or {}) | encode_metrics(metrics or {})
    if isinstance(update, str | Path):
        with FileContent(Path(update), samples, metadata) as content:
            yield content
    elif samples is None:
        raise UpdateError("samples is missing: the number of samples the client trained on")
    else:
        yield TensorContent(update, samples, metadata)


@contextlib.contextmanager
def model_content_of(model: Mapping[str, Any] | str | Path) -> Iterator[Content]:
    """Open a model: tensors by name, or the path of a .safetensors file.

    Raises
    ------
    UpdateError
        The update could not be averaged.
    """
    if isinstance(model, str | Path):
        with FileContent(Path(model), None, is_model=True) as content:
            yield content
    else:
        yield TensorContent(model, None)
