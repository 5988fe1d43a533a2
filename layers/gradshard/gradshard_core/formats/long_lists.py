"""Long lists of JSON records, stored in pieces: objects of their own beside the record.

A record holds a list of up to :data:`PIECE` entries itself. Of a longer one it holds the names of
the pieces, so that a reader loads those that it needs. A piece is named by the digest of its
content: the same list has the same pieces, whoever writes it and however often, and a reader
notices other content.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Generic, TypeVar, overload

from gradshard_core.formats import json_records

T = TypeVar("T")

PIECE: Final = 512
"""Entries of a piece. One of contributors has about 120 kB."""

Put = Callable[[str, bytes], object]
"""Stores a piece under a name."""

Get = Callable[[str], Any]
"""Returns the JSON of the piece with a name."""


class StoredList(Sequence[T]):
    """A list of which pieces are loaded when they are needed; one at a time is kept.

    Parameters
    ----------
    written
        The list as the record has it: its entries, or the names of its pieces.
    get
        Loads a piece.
    parse
        Makes entries of a piece's JSON.

    Raises
    ------
    KeyError, TypeError, ValueError
        The record does not say where the pieces are.
    """

    def __init__(
        self,
        written: dict[str, Any],
        get: Get,
        parse: Callable[[Any], list[T]] = lambda piece: list(piece["entries"]),
    ) -> None:
        self._length, self._size = int(written["length"]), int(written["size"])
        self._names, self._firsts = list(map(str, written["pieces"])), list(written["firsts"])
        if self._size < 1 or len(self._names) != -(-self._length // self._size):
            raise ValueError(f"{self._length} entries in {len(self._names)} pieces")
        if len(self._firsts) != len(self._names):
            raise ValueError(f"{len(self._firsts)} first entries of {len(self._names)} pieces")
        self._get, self._parse = get, parse
        self._kept: tuple[int, list[T]] = (-1, [])

    @property
    def written(self) -> dict[str, Any]:
        """The list as the record has it: the names of its pieces."""
        return {
            "length": self._length,
            "size": self._size,
            "pieces": self._names,
            "firsts": self._firsts,
        }

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...

    @overload
    def __getitem__(self, index: slice) -> list[T]: ...

    def __getitem__(self, index: int | slice) -> T | list[T]:
        found = range(self._length)[index]
        if isinstance(found, int):
            return self._piece(found // self._size)[found % self._size]
        if not found:
            return []
        first = found[0] // self._size
        last = found[-1] // self._size
        entries = [entry for number in range(first, last + 1) for entry in self._piece(number)]
        begin = first * self._size
        return entries[found[0] - begin : found[-1] + 1 - begin]

    def __iter__(self) -> Iterator[T]:
        for number in range(len(self._names)):
            yield from self._piece(number)

    def near(self, name: str) -> list[T]:
        """Return the piece that has the entry of a client, if the list is sorted and has it."""
        number = bisect_right(self._firsts, name) - 1
        return self._piece(number) if number >= 0 else []

    def _piece(self, number: int) -> list[T]:
        kept, entries = self._kept
        if kept != number:
            entries = self._parse(self._get(self._names[number]))
            first = number * self._size
            if len(entries) != min(self._size, self._length - first):
                raise ValueError(f"piece {self._names[number]} has {len(entries)} entries")
            self._kept = (number, entries)
        return entries


class ListWriter(Generic[T]):
    """Stores a list in pieces while it is made; several threads may not share it.

    Parameters
    ----------
    put
        Stores a piece. Without it, the record has any list whole.
    encode
        Makes the JSON of a piece, an object with the ``entries``.
    name_of
        Returns the client that an entry is about.
    """

    def __init__(
        self,
        put: Put | None,
        encode: Callable[[Sequence[T]], dict[str, Any]],
        name_of: Callable[[T], str],
    ) -> None:
        self._put, self._encode, self._name_of = put, encode, name_of
        self._open: list[T] = []
        self._names: list[str] = []
        self._firsts: list[str] = []

    def add(self, entry: T) -> None:
        """Append an entry."""
        if self._put is not None and len(self._open) == PIECE:
            self._write(self._put)
        self._open.append(entry)

    def to_json(self) -> Any:
        """Return what the record holds of the list: its entries, or the names of its pieces."""
        if self._put is None or not self._names:
            return self._encode(self._open)["entries"]
        length = PIECE * len(self._names) + len(self._open)
        self._write(self._put)
        return {
            "length": length,
            "size": PIECE,
            "pieces": self._names,
            "firsts": self._firsts,
        }

    def _write(self, put: Put) -> None:
        body = json_records.encode(self._encode(self._open))
        name = name_of(body)
        put(name, body)
        self._names.append(name)
        self._firsts.append(self._name_of(self._open[0]))
        self._open = []


def name_of(body: bytes) -> str:
    """Return the name of the piece with this content: the beginning of its SHA-256."""
    return hashlib.sha256(body).hexdigest()[:32]


def is_in_pieces(written: Any) -> bool:
    """Return whether a record holds the names of a list's pieces instead of the list."""
    return isinstance(written, dict) and written.keys() == {"length", "size", "pieces", "firsts"}
