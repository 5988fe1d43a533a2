"""The digest of an object, from its ETag and the sizes of the parts it was uploaded in.

S3's ETag of an object that was sent in one request is the MD5 of its bytes; of an upload in parts
it is the MD5 of the parts' MD5s, with their number. Under a KMS key it says nothing of the bytes.
A reader of the object cannot learn the sizes of the parts from S3, so they stand in its metadata. A
task that writes a part need not do anything for that.

MD5 detects damage on the way or on the disk. It does not detect an attacker who may write to the
bucket.
"""

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Final

from gradshard_core.units import MIB

PARTS: Final = "gradshard-parts"
"""The metadata that has the sizes of the parts: ``3x5242880,1x17``, in their order."""

MAX_TEXT: Final = 1024
"""Bytes of it: S3 keeps 2 KB of metadata."""

MAX_PARTS: Final = 10_000

_RUN: Final = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,12})", re.ASCII)
_ETAG: Final = re.compile(r'"?([0-9a-f]{32})(?:-(\d{1,5}))?"?', re.ASCII)


def encode_parts(sizes: Iterable[int]) -> dict[str, str]:
    """Return the metadata that has the sizes of the parts; none if they do not fit it."""
    runs = ((len(list(run)), size) for size, run in itertools.groupby(sizes))
    text = ",".join(f"{count}x{size}" for count, size in runs)
    return {PARTS: text} if len(text) <= MAX_TEXT else {}


def parts_of(
    etag: str, nbytes: int, metadata: Mapping[str, str], encryption: str
) -> tuple[int, ...] | None:
    """Return the sizes of the parts by which an object's bytes can be checked.

    Parameters
    ----------
    etag, nbytes
        The ETag and the size of the object.
    metadata
        The object's, by names without ``x-amz-meta-``.
    encryption
        The encryption that S3 names in its answer.

    Returns
    -------
    tuple of int or None
        One size for an object that was sent in one request; None if its ETag tells nothing.
    """
    found = _ETAG.fullmatch(etag)
    if found is None or encryption.startswith("aws:kms"):
        return None
    if found[2] is None:
        return (nbytes,)
    sizes = _decode(metadata.get(PARTS, ""))
    return sizes if len(sizes) == int(found[2]) and sum(sizes) == nbytes else None


def has_digest(file: IO[bytes], etag: str, sizes: Sequence[int]) -> bool:
    """Return whether a file's bytes, from its position, make an object of that ETag."""
    digests = [_md5_of(file, size) for size in sizes]
    if "-" not in etag:
        return etag.strip('"') == digests[0].hex()
    whole = hashlib.md5(b"".join(digests), usedforsecurity=False).hexdigest()
    return etag.strip('"') == f"{whole}-{len(sizes)}"


def _decode(text: str) -> tuple[int, ...]:
    """Read the sizes of parts; none if the text is not of :func:`encode_parts`."""
    runs = [_RUN.fullmatch(run) for run in text[: MAX_TEXT + 1].split(",")]
    counts = [(int(run[1]), int(run[2])) for run in runs if run]
    if len(counts) < len(runs) or sum(count for count, _ in counts) > MAX_PARTS:
        return ()
    return tuple(size for count, size in counts for _ in range(count))


def _md5_of(file: IO[bytes], nbytes: int) -> bytes:
    digest = hashlib.md5(usedforsecurity=False)
    while nbytes and (chunk := file.read(min(nbytes, MIB))):
        digest.update(chunk)
        nbytes -= len(chunk)
    return digest.digest()
