"""The layouts of a round's updates, of which only as many as fit stay in memory.

A layout of 100,000 tensors takes up to 100 MB, and each of thousands of clients may send one of its
own. A layout that does not fit is known by its digest, and is read again where it is needed.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Final, NamedTuple

from gradshard_core.formats.compressed_updates import parse_update
from gradshard_core.formats.headers import Header
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, Tensor
from gradshard_core.s3.store import S3Store
from gradshard_core.units import MIB

KEPT_BYTES: Final = 32 * MIB
"""The most bytes of all kept layouts: one of 40,000 tensors, or 80 of 500.

Beside them, ``plan_round`` has 512 MB to parse a header and to compare two layouts."""

_TENSOR_BYTES: Final = 600
_SIZE_BYTES: Final = 40
_CHARACTER_BYTES: Final = 4
"""The most memory that a tensor, a size of its shape, and a character of its name take."""


class Digests(NamedTuple):
    """The digests by which layouts are compared.

    Parameters
    ----------
    stored
        Of the layout as it is stored: of its order, and of what a codec made of its tensors.
    order
        Of the tensors in their order, decoded: equal for all codecs.
    tensors
        Of the tensors, decoded, in any order.
    """

    stored: bytes
    order: bytes
    tensors: bytes


@dataclass(frozen=True, eq=False)
class SeenLayout:
    """A layout that updates have.

    Parameters
    ----------
    digests
        Its digests.
    read
        Return the layout; it is read from an update again if it is not in memory.
    """

    digests: Digests
    read: Callable[[], Layout]

    @classmethod
    def of(cls, layout: Layout) -> "SeenLayout":
        """Return one that stays in memory."""
        return cls(digests_of(layout), lambda: layout)


class SeenLayouts:
    """All layouts that updates have, each of them once; threads may share it.

    Parameters
    ----------
    store
        The bucket that the updates are in.
    """

    def __init__(self, store: S3Store) -> None:
        self._store = store
        self._lock = Lock()
        self._room = KEPT_BYTES
        self._kept: dict[Layout, SeenLayout] = {}
        self._seen: dict[bytes, SeenLayout] = {}

    def note(self, header: Header, source: ObjectVersion) -> SeenLayout:
        """Return what is known of an update's layout."""
        layout = header.layout
        with self._lock:
            kept = self._kept.get(layout)
        if kept is not None:
            return kept
        digests = digests_of(layout)
        with self._lock:
            if digests.stored not in self._seen:
                nbytes = _memory_of(layout)
                if nbytes <= self._room:
                    self._room -= nbytes
                    self._seen[digests.stored] = SeenLayout(digests, lambda: layout)
                    self._kept[layout] = self._seen[digests.stored]
                else:
                    again = partial(_read_again, self._store, source, header.data_offset)
                    self._seen[digests.stored] = SeenLayout(digests, again)
            return self._seen[digests.stored]

    def recall(self, digests: Digests, source: ObjectVersion, data_offset: int) -> SeenLayout:
        """Return a layout of which a task has the digests; it is read when it is needed."""
        with self._lock:
            if digests.stored not in self._seen:
                again = partial(_read_again, self._store, source, data_offset)
                self._seen[digests.stored] = SeenLayout(digests, again)
            return self._seen[digests.stored]


def digests_of(layout: Layout) -> Digests:
    """Return the digests of a layout."""
    order = _digest(layout.tensors)
    in_any_order = sorted(layout.tensors, key=lambda tensor: tensor.name)
    stored = hashlib.sha256(order + layout.storage.encode()).digest()
    return Digests(stored, order, _digest(in_any_order))


def _digest(tensors: tuple[Tensor, ...] | list[Tensor]) -> bytes:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr((tensor.name, tensor.dtype, tensor.shape)).encode())
    return digest.digest()


def _memory_of(layout: Layout) -> int:
    return sum(
        _TENSOR_BYTES + _SIZE_BYTES * len(t.shape) + _CHARACTER_BYTES * len(t.name)
        for t in layout.tensors
    )


def _read_again(store: S3Store, source: ObjectVersion, data_offset: int) -> Layout:
    header = store.get_range(source, PREFIX_BYTES, data_offset)
    return parse_update(header, source.nbytes).layout
