"""Conversion of numpy's ``.npz`` files and PyTorch's checkpoints to safetensors.

Nothing that a file pickled is run: objects are left out of an ``.npz``, and a checkpoint is read
with ``torch.load(weights_only=True)``. Tensors are written one by one; an ``.npz`` is decompressed
a MiB at a time, a checkpoint mapped into memory.
"""

import contextlib
import io
import math
import re
import shutil
import tempfile
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from gradshard.updates.compression import Compression
from gradshard.updates.file_compression import is_encodable, recompress
from gradshard.updates.tensors import as_stored, check_name
from gradshard.updates.upload_source import ZIP_MAGIC, check_readable, check_samples
from gradshard.updates.uploads import Progress
from gradshard.utils.atomic_file import atomic_file, check_disk_space
from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import SAMPLES_KEY
from gradshard_core.formats.tensor_layout import Layout, encode_header, shorten
from gradshard_core.units import MIB

CHUNK_BYTES: Final = MIB

_OLDEST_SAFE_TORCH: Final = (2, 6)
"""Before it, a checkpoint could run code in spite of ``weights_only`` (CVE-2025-32434)."""

_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)
"""The exceptions of reading a damaged or encrypted archive."""

MAX_NPY_HEADER_BYTES: Final = 10_000
"""numpy's bound for the header of an array; 64 dimensions and a type take a tenth of it."""

_NPY_LENGTHS: Final = {(1, 0): 2, (2, 0): 4, (3, 0): 4}
"""The versions of a header, and how many bytes the header's length takes."""


class LeftOut(NamedTuple):
    """An entry that was not converted, and why."""

    name: str
    reason: str


class Converted(NamedTuple):
    """The result of a conversion."""

    layout: Layout
    nbytes: int
    left_out: list[LeftOut]


class _DamagedError(UpdateError):
    """The file is damaged, so nothing in it is converted."""


class _Entry(NamedTuple):
    """A tensor that will be converted, before its elements are read."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Iterable[memoryview]]


class _Source(ABC):
    """A file of tensors that is open."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []

    @abstractmethod
    def entries(self) -> Iterator[_Entry]:
        """List the entries that can be converted, and record the others as left out."""

    def entry_or_note(self, name: Any, look: Callable[[str], _Entry]) -> Iterator[_Entry]:
        """Read one entry's head; an entry that cannot be converted is left out."""
        try:
            yield look(check_name(name))
        except _DamagedError:
            raise
        except UpdateError as error:
            self.left_out.append(LeftOut(str(name), str(error)))


def convert(
    source: Path,
    target: Path,
    *,
    samples: int | None = None,
    key: str | None = None,
    compression: Compression | None = None,
    progress: Progress | None = None,
) -> Converted:
    """Write the tensors of a file as a safetensors file, which appears when it is whole.

    A compressed update is decoded, unless ``compression`` is given.

    Parameters
    ----------
    source
        An ``.npz``, a checkpoint as ``torch.save`` writes it (a zip, since torch 1.6), or a
        .safetensors file that is to be compressed or decoded. The content decides which it is,
        not the name.
    target
        The file to write.
    samples
        The number of samples for the metadata; without it they are given on submitting.
    key
        Under which a checkpoint keeps the ``state_dict``, where that is not clear.
    compression
        Compress the tensors so.
    progress
        A callback that takes the bytes done and the total.

    Returns
    -------
    Converted
        The tensors, the size of the file, and what was left out.

    Raises
    ------
    UpdateError
        The file is neither, is damaged, or has no tensor that can be averaged.
    """
    metadata = {} if samples is None else {SAMPLES_KEY: check_samples(samples)}
    if target.exists() and target.samefile(source):
        raise UpdateError(f"{target} is the file to convert; name another to write to")
    check_readable(source)
    if is_encodable(source, compression):
        layout, nbytes = recompress(source, target, compression, samples=samples, progress=progress)
        return Converted(layout, nbytes, [])
    if compression is not None:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".gradshard-") as folder:
            plain = Path(folder) / "plain.safetensors"
            left_out = convert(source, plain, samples=samples, key=key, progress=progress).left_out
            layout, nbytes = recompress(plain, target, compression)
            return Converted(layout, nbytes, left_out)
    with _open(source, key) as opened:
        try:
            entries = list(opened.entries())
            # As `pack` does: wider types first, so that each tensor is aligned.
            entries.sort(key=lambda entry: -DTYPES[entry.dtype].size)
            layout = Layout.pack((entry.name, entry.dtype, entry.shape) for entry in entries)
        except UpdateError as error:
            raise UpdateError(f"{source}: {error}") from None
        if layout.nbytes == 0:
            why = _why(opened, entries)
            raise UpdateError(f"{source} holds no tensor that can be averaged{why}")
        header = encode_header(layout, metadata)
        total = len(header) + layout.nbytes
        with atomic_file(target, total) as file:
            file.write(header)
            done = len(header)
            for entry in entries:
                for chunk in _reading(source, entry):
                    file.write(chunk)
                    done += len(chunk)
                    if progress:
                        progress(done, total)
    return Converted(layout, total, opened.left_out)


def _why(opened: _Source, entries: list[_Entry]) -> str:
    if entries:
        return f": {shorten(entries[0].name)!r} has no elements"
    if not opened.left_out:
        return ": it is empty"
    first = opened.left_out[0]
    return f"; {shorten(first.name)!r}, for one, is left out: {first.reason}"


def _reading(source: Path, entry: _Entry) -> Iterator[memoryview]:
    """Read a tensor's bytes, a few at a time."""
    missing = math.prod(entry.shape) * DTYPES[entry.dtype].size
    shown = f"{source}: {shorten(entry.name)!r}"
    try:
        for piece in entry.read():
            missing -= len(piece)
            for start in range(0, len(piece), CHUNK_BYTES):
                yield piece[start : start + CHUNK_BYTES]
    except _DAMAGE as error:
        raise UpdateError(f"{shown} cannot be read: {shorten(str(error))}") from None
    except MemoryError:
        raise UpdateError(f"{shown} of shape {list(entry.shape)} does not fit in memory") from None
    if missing:
        raise UpdateError(f"{shown} ends {missing} bytes early: the file is damaged")


@contextlib.contextmanager
def _open(path: Path, key: str | None) -> Iterator[_Source]:
    """Open a file in the format that its first bytes show."""
    check_readable(path)
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            if file.read(len(ZIP_MAGIC)) == ZIP_MAGIC:
                raise UpdateError(
                    f"{path} begins as a zip file and lacks the end of one: get it again, whole"
                )
            raise UpdateError(
                f"{path} is neither an .npz nor a torch checkpoint. A .safetensors file needs no "
                "conversion, unless you compress it (--codec) or it is compressed; a checkpoint "
                "older than torch 1.6 is to be saved anew (torch.save)"
            )
        try:
            archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise UpdateError(f"{path} is a damaged zip file: {error}") from None
        with archive:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                yield _Checkpoint(path, key)
                return
            if key is not None:
                raise UpdateError(
                    f"{path} is an .npz, in which there are no keys (--key) to choose"
                )
            yield _Npz(archive)


# ------------------------------------------------------------------------------ numpy


class _Npz(_Source):
    """An archive of ``.npy`` files."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        super().__init__()
        self._archive = archive

    def entries(self) -> Iterator[_Entry]:
        for member in self._archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                self.left_out.append(LeftOut(name, "not an array (.npy)"))
            else:
                yield from self.entry_or_note(name, partial(self._look, member))

    def _look(self, member: zipfile.ZipInfo, name: str) -> _Entry:
        """Read the head of an array."""
        try:
            with self._archive.open(member) as file:
                shape, fortran_order, dtype = _npy_head(file)
                offset = file.tell()
        except _DAMAGE as error:
            raise _DamagedError(
                f"the head of {shorten(name)!r} cannot be read: {shorten(str(error))}"
            ) from None
        if dtype.hasobject:
            raise UpdateError("an array of Python objects, which are not unpickled")
        if dtype.kind == "V":
            raise UpdateError(
                f"dtype {shorten(str(dtype))}: records, or a type that .npz cannot name (bfloat16)"
            )
        kept, _ = as_stored(name, np.empty(0, dtype))
        nbytes = math.prod(shape) * dtype.itemsize
        if offset + nbytes != member.file_size:
            raise _DamagedError(
                f"{shorten(name)!r} has shape {list(shape)} of {dtype}, {nbytes} bytes, but there "
                f"are {member.file_size - offset}: the file is damaged"
            )
        whole = fortran_order and len(shape) > 1
        return _Entry(
            name,
            kept,
            shape,
            lambda: self._read(member, offset, dtype, shape if whole else None),
        )

    def _read(
        self,
        member: zipfile.ZipInfo,
        offset: int,
        dtype: "np.dtype[Any]",
        fortran_shape: tuple[int, ...] | None,
    ) -> Iterator[memoryview]:
        """Read the elements, in C's order; by way of the disk if they are in Fortran's."""
        stored = dtype.newbyteorder("<")
        with self._archive.open(member) as file:
            file.read(offset)  # not seek(), after which the archive's checksum is not checked
            if fortran_shape is not None:
                yield from _turned(file, dtype, fortran_shape)
                return
            while chunk := file.read(CHUNK_BYTES):
                yield _bytes(np.frombuffer(chunk, dtype).astype(stored, copy=False))


def _npy_head(file: IO[bytes]) -> tuple[tuple[int, ...], bool, "np.dtype[Any]"]:
    """Read a header of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html.

    numpy itself reads as much as the header says it has, up to 4 GiB, before it checks that.
    """
    version = np.lib.format.read_magic(file)
    if version not in _NPY_LENGTHS:
        raise UpdateError(f"its header is of version {version}, which numpy does not write")
    length = file.read(_NPY_LENGTHS[version])
    nbytes = int.from_bytes(length, "little")
    if nbytes > MAX_NPY_HEADER_BYTES:
        raise UpdateError(
            f"its header has {nbytes} bytes, over the {MAX_NPY_HEADER_BYTES} of an array's: it is "
            "of records, or no array"
        )
    whole = io.BytesIO(length + file.read(nbytes))
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(whole)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(whole)
    raise UpdateError(f"its header is of version {version}, which only records have")


def _turned(
    file: IO[bytes], dtype: "np.dtype[Any]", shape: tuple[int, ...]
) -> Iterator[memoryview]:
    """Yield elements in C order that are stored in Fortran order.

    They are kept in a temporary file that is mapped into memory, which the system takes back.
    """
    count = math.prod(shape)
    if count == 0:
        return
    check_disk_space(Path(tempfile.gettempdir()) / "array", count * dtype.itemsize)
    with tempfile.TemporaryFile() as kept:
        shutil.copyfileobj(file, kept, CHUNK_BYTES)
        kept.flush()
        elements = np.memmap(kept, dtype, "r", shape=shape, order="F").flat
        step = CHUNK_BYTES // dtype.itemsize
        for start in range(0, count, step):
            piece = np.asarray(elements[start : start + step])
            yield _bytes(piece.astype(dtype.newbyteorder("<"), copy=False))


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


# ------------------------------------------------------------------------------ torch


class _Checkpoint(_Source):
    """A file that ``torch.save`` wrote, mapped into memory."""

    def __init__(self, path: Path, key: str | None) -> None:
        super().__init__()
        self._nbytes = path.stat().st_size
        self._tensors = self._choose(path, _load(path), key)

    def _choose(self, path: Path, loaded: Any, key: str | None) -> Mapping[Any, Any]:
        """Find the `state_dict`: the checkpoint itself, or one of its entries."""
        if not isinstance(loaded, Mapping):
            raise UpdateError(f"{path} holds a {type(loaded).__name__}, not a state_dict")
        states = [name for name, entry in loaded.items() if _has_tensors(entry)]
        if key is None and (_has_tensors(loaded) or not states):
            return loaded
        if key is None and len(states) > 1:
            listed = ", ".join(repr(shorten(str(name))) for name in states)
            raise UpdateError(f"{path} has tensors under {listed}: choose one with --key")
        chosen = states[0] if key is None else key
        if chosen not in states:
            listed = ", ".join(repr(shorten(str(name))) for name in states) or "no key"
            raise UpdateError(f"{path} has tensors under {listed}, not under {shorten(chosen)!r}")
        for name, entry in loaded.items():
            if name != chosen:
                self.left_out.append(LeftOut(str(name), f"beside {chosen!r}: {_what(entry)}"))
        state: Mapping[Any, Any] = loaded[chosen]
        return state

    def entries(self) -> Iterator[_Entry]:
        for name, tensor in self._tensors.items():
            yield from self.entry_or_note(name, partial(self._look, tensor))

    def _look(self, tensor: Any, name: str) -> _Entry:
        import torch

        from gradshard.torch import is_tensor

        if not is_tensor(name, tensor):
            raise UpdateError(f"not a tensor: {_what(tensor)}")
        # Of an empty one, since the tensor itself may have to be copied.
        kept, _ = as_stored(name, torch.empty(0, dtype=tensor.dtype))
        shape = tuple(tensor.shape)
        nbytes = math.prod(shape) * DTYPES[kept].size
        if nbytes > self._nbytes:
            raise UpdateError(
                f"repeats its elements to {nbytes} bytes, more than the file's {self._nbytes}"
            )
        return _Entry(name, kept, shape, lambda: [_bytes(as_stored(name, tensor)[1])])


def _load(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UpdateError(
            f"{path} is a torch checkpoint, and PyTorch is not installed: "
            "`pip install 'gradshard[torch]'`"
        ) from None
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _OLDEST_SAFE_TORCH:
        raise UpdateError(
            f"torch {torch.__version__} may run code that is hidden in a checkpoint "
            "(CVE-2025-32434): install 2.6 or newer"
        )
    import pickle

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how old checkpoints store what they hold
            return torch.load(path, weights_only=True, mmap=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"such as {shorten(found[1])}" if found else "not tensors"
        raise UpdateError(
            f"{path} holds objects that may run code, {what}: where you trust it, save its "
            "model.state_dict() and convert that"
        ) from None
    except (*_DAMAGE, KeyError, TypeError, AttributeError) as error:
        reason = shorten(str(error).partition("\n")[0])
        raise UpdateError(f"{path} cannot be read as a torch checkpoint: {reason}") from None


def _has_tensors(entry: Any) -> bool:
    import torch

    return isinstance(entry, Mapping) and any(isinstance(v, torch.Tensor) for v in entry.values())


def _what(entry: Any) -> str:
    return f"of type {type(entry).__name__}"
