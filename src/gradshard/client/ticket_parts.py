"""What a ticket has for an update that is too large for one PUT: an upload in parts.

The upload is begun when the ticket is made, since its id is part of what is signed. A signature
holds for one length only, but an update may have any: all parts are of one length but the first,
which takes up what is left, and for which there are signatures in steps of a few hundred kB.
"""

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from gradshard_core.planning import limits
from gradshard_core.s3.store import Part, S3Store
from gradshard_core.units import MIB

PARTS: Final = 32
"""Into how many lengths the largest update is cut. Each part is a request that is paid for, and
four are under way at once, so that an interruption costs an eighth of the upload at most."""

MIN_BYTES: Final = 16 * MIB
MAX_BYTES: Final = limits.MAX_PART_BYTES // 2
"""Of a part: the first has up to twice that."""

STEPS: Final = 512
"""Signed lengths of the first part for each such length."""

MAX_UPDATE_BYTES: Final = limits.LISTED_ENTRIES * MAX_BYTES
"""Parts that a single listing shows."""

_NUMBER: Final = "partNumber="
_SIGNATURE: Final = "&X-Amz-Signature="
_PART: Final = re.compile(rb"<Part>(.*?)</Part>", re.DOTALL)
_FIELD: Final = re.compile(r"<(PartNumber|ETag|Size)>([^<]{1,128})</")


@dataclass(frozen=True)
class PartUrls:
    """The URLs of one upload in parts.

    Parameters
    ----------
    nbytes
        Of each part but the first.
    first
        Beginnings of URLs for a PUT of the first part, and for each the ends by length.
    others
        URLs for PUTs of the others, without part number and signature, and for each the signatures
        by number.
    listing
        For a GET of the parts that are there.
    completion
        For a POST that makes the update of them, if there is none.
    """

    nbytes: int
    first: Mapping[str, Mapping[str, str]] = field(repr=False)
    others: Mapping[str, Mapping[str, str]] = field(repr=False)
    listing: str = field(repr=False)
    completion: str = field(repr=False)

    @classmethod
    def make(
        cls, store: S3Store, key: str, *, expires: int, max_bytes: int, min_bytes: int
    ) -> Self:
        """Begin an upload and sign what it takes, for updates of these lengths.

        All signed lengths together, the first part's longest and the others', are ``max_bytes``.
        """
        upload_id = store.create_upload(key)
        lengths = max(2, min(PARTS, max_bytes // MIN_BYTES), -(-max_bytes // MAX_BYTES))
        size = -(-max_bytes // lengths)
        count = lengths - 2
        longest = max_bytes - count * size
        needed, shortest = _cut(min_bytes, longest, size)
        if needed < count:
            shortest = min(shortest, longest - size + 1)
        step = -(-size // STEPS)
        first: dict[str, dict[str, str]] = {}
        for length in range(longest, shortest - 1, -step):
            url = store.presign_part(key, upload_id, 1, length, expires)
            _add(first, length, url)
        others: dict[str, dict[str, str]] = {}
        for number in range(2, count + 2):
            url = store.presign_part(key, upload_id, number, size, expires)
            _add(others, number, url.replace(f"{_NUMBER}{number}", _NUMBER, 1))
        return cls(
            nbytes=size,
            first=first,
            others=others,
            listing=store.presign_parts(key, upload_id, expires),
            completion=store.presign_completion(key, upload_id, expires),
        )

    def fitting(self, nbytes: int) -> int:
        """Return the least length that an update of ``nbytes`` can be filled up to."""
        lengths = _numbers(self.first)
        count, length = _cut(nbytes, max(lengths), self.nbytes)
        return count * self.nbytes + min(n for n in lengths if n >= length)

    def ranges(self, nbytes: int) -> list[tuple[int, int]]:
        """Return where the parts of an update of a fitting length begin and end."""
        _, length = _cut(nbytes, max(_numbers(self.first)), self.nbytes)
        starts = range(length, nbytes, self.nbytes)
        return [(0, length), *((start, start + self.nbytes) for start in starts)]

    def put(self, number: int, nbytes: int) -> str:
        """Return the URL for a part."""
        if number == 1:
            begin, end = _find(self.first, nbytes)
            return begin + end
        begin, end = _find(self.others, number)
        return begin.replace(_NUMBER, f"{_NUMBER}{number}", 1) + end

    def urls(self) -> Iterator[str]:
        """Give every URL."""
        yield from (self.listing, self.completion)
        for urls in (self.first, self.others):
            yield from (begin + end for begin, ends in urls.items() for end in ends.values())

    def takes(self, max_bytes: int) -> bool:
        """Whether these are the parts of updates up to ``max_bytes``."""
        count = len(_numbers(self.others))
        return (
            0 < self.nbytes <= MAX_BYTES
            and max(_numbers(self.first), default=0) + count * self.nbytes == max_bytes
            and _numbers(self.others) == {*range(2, count + 2)}
        )


def listed(body: bytes) -> list[Part]:
    """Read S3's answer to a request for an upload's parts."""
    parts = []
    for entry in _PART.findall(body):
        found = dict(_FIELD.findall(entry.decode()))
        etag = html.unescape(found["ETag"])
        parts.append(Part(int(found["PartNumber"]), etag, int(found["Size"])))
    return parts


def completion(parts: Sequence[Part]) -> bytes:
    """Return the body of a request to make an object of parts."""
    listed_parts = "".join(
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>{html.escape(part.etag)}</ETag></Part>"
        for part in parts
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return (
        f'<CompleteMultipartUpload xmlns="{space}">{listed_parts}</CompleteMultipartUpload>'
    ).encode()


def _add(urls: dict[str, dict[str, str]], number: int, url: str) -> None:
    # All but the signature is the same, unless a second has passed.
    begin, mark, end = url.partition(_SIGNATURE)
    urls.setdefault(begin + mark, {})[str(number)] = end


def _find(urls: Mapping[str, Mapping[str, str]], wanted: int) -> tuple[str, str]:
    """Return both ends of the URL for a number."""
    return next((begin, of[str(wanted)]) for begin, of in urls.items() if str(wanted) in of)


def _numbers(urls: Mapping[str, Mapping[str, str]]) -> set[int]:
    return {int(number) for ends in urls.values() for number in ends}


def _cut(nbytes: int, longest: int, size: int) -> tuple[int, int]:
    """Return how many parts of ``size`` follow the first, and the first's length."""
    # As few as can be: the first may be small only where it is the last, too.
    count = max(0, -(-(nbytes - longest) // size))
    return count, nbytes - count * size
