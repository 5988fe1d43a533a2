"""The URLs with which a ticket uploads an update that is too large for one PUT: in parts.

A signature holds for one length only, but an update may have any length. So all parts have the same
length except the first, which takes the rest; it has signatures in steps of a few hundred kB.
"""

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from gradshard_core.formats.presigned_urls import UrlTable, add_url, find_url, numbers_of, urls_of
from gradshard_core.limits import aws_limits
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.units import MIB

if TYPE_CHECKING:
    from gradshard.aws.client_store import ClientStore

MAX_BYTES: Final = aws_limits.MAX_PART_BYTES // 2
"""The most bytes of a part; the first part may have twice as many."""

MAX_UPDATE_BYTES: Final = aws_limits.LISTED_ENTRIES * MAX_BYTES
"""The largest update: as many parts as one listing shows."""

PARTS: Final = 32
"""Part lengths in the largest update. Each part costs a request, and four are sent at once, so an
interruption costs at most an eighth of the upload."""

MIN_PART_BYTES: Final = 16 * MIB

FIRST_PART_STEPS: Final = 512
"""Signed lengths of the first part for each length of the other parts."""

NUMBER_PARAMETER: Final = "partNumber="
"""Stands without its value in the URLs of ``PartUrls.others``."""

_PART: Final = re.compile(rb"<Part>(.*?)</Part>", re.DOTALL)
_FIELD: Final = re.compile(r"<(PartNumber|ETag|Size)>([^<]{1,128})</")


@dataclass(frozen=True)
class PartUrls:
    """The URLs of one multipart upload.

    Parameters
    ----------
    nbytes
        Length of each part except the first.
    first
        URLs for a PUT of the first part, by its length.
    others
        URLs for PUTs of the other parts, by part number, which their query leaves empty.
    listing
        The URL for a GET of the list of parts that S3 has.
    completion
        The URL for a POST that makes the update of its parts, if there is no update.
    """

    nbytes: int
    first: UrlTable = field(repr=False)
    others: UrlTable = field(repr=False)
    listing: str = field(repr=False)
    completion: str = field(repr=False)

    def padded_length(self, nbytes: int) -> int:
        """Return the shortest length to which an update of ``nbytes`` can be padded."""
        lengths = numbers_of(self.first)
        count, length = cut(nbytes, max(lengths), self.nbytes)
        return count * self.nbytes + min(n for n in lengths if n >= length)

    def ranges(self, nbytes: int) -> list[tuple[int, int]]:
        """Return where the parts of an update of a padded length begin and end."""
        _, length = cut(nbytes, max(numbers_of(self.first)), self.nbytes)
        starts = range(length, nbytes, self.nbytes)
        return [(0, length), *((start, start + self.nbytes) for start in starts)]

    def part_url(self, number: int, nbytes: int) -> str:
        """Return the URL for a PUT of a part."""
        if number == 1:
            return "".join(find_url(self.first, nbytes))
        beginning, end = find_url(self.others, number)
        return beginning.replace(NUMBER_PARAMETER, f"{NUMBER_PARAMETER}{number}", 1) + end

    def urls(self) -> Iterator[str]:
        """Yield every URL."""
        yield from (self.listing, self.completion)
        yield from urls_of(self.first)
        yield from urls_of(self.others)

    def is_for(self, max_bytes: int) -> bool:
        """Return whether these URLs are for updates of up to ``max_bytes``."""
        numbers = numbers_of(self.others)
        return (
            0 < self.nbytes <= MAX_BYTES
            and max(numbers_of(self.first), default=0) + len(numbers) * self.nbytes == max_bytes
            and numbers == {*range(2, len(numbers) + 2)}
        )


def issue_part_urls(
    store: "ClientStore", key: str, expires: int, max_bytes: int, min_bytes: int
) -> PartUrls:
    """Begin a multipart upload and sign its requests, for updates of these lengths.

    The longest signed length of the first part and the others' lengths add up to ``max_bytes``.
    """
    upload_id = store.create_upload(key)
    lengths = max(2, min(PARTS, max_bytes // MIN_PART_BYTES), -(-max_bytes // MAX_BYTES))
    size = -(-max_bytes // lengths)
    count = lengths - 2
    longest = max_bytes - count * size
    needed, shortest = cut(min_bytes, longest, size)
    if needed < count:
        shortest = min(shortest, longest - size + 1)
    step = -(-size // FIRST_PART_STEPS)
    first: dict[str, dict[str, str]] = {}
    for length in range(longest, shortest - 1, -step):
        add_url(first, length, store.presign_part(key, upload_id, 1, length, expires))
    others: dict[str, dict[str, str]] = {}
    for number in range(2, count + 2):
        url = store.presign_part(key, upload_id, number, size, expires)
        add_url(others, number, url.replace(f"{NUMBER_PARAMETER}{number}", NUMBER_PARAMETER, 1))
    return PartUrls(
        nbytes=size,
        first=first,
        others=others,
        listing=store.presign_parts(key, upload_id, expires),
        completion=store.presign_completion(key, upload_id, expires),
    )


def cut(nbytes: int, longest: int, size: int) -> tuple[int, int]:
    """Return how many parts of ``size`` follow the first, and the first's length."""
    # As few as possible: S3 takes a small part only if it is the last.
    count = max(0, -(-(nbytes - longest) // size))
    return count, nbytes - count * size


def parse_part_list(body: bytes) -> list[Part]:
    """Read S3's response to a request for an upload's parts."""
    parts = []
    for entry in _PART.findall(body):
        found = dict(_FIELD.findall(entry.decode()))
        etag = html.unescape(found["ETag"])
        parts.append(Part(int(found["PartNumber"]), etag, int(found["Size"])))
    return parts


def encode_completion(parts: Sequence[Part]) -> bytes:
    """Return the body of a request that makes an object of parts."""
    entries = "".join(
        f"<Part><PartNumber>{part.number}</PartNumber><ETag>{html.escape(part.etag)}</ETag></Part>"
        for part in parts
    )
    space = "http://s3.amazonaws.com/doc/2006-03-01/"
    return f'<CompleteMultipartUpload xmlns="{space}">{entries}</CompleteMultipartUpload>'.encode()
