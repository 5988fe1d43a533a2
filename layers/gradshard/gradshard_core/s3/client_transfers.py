"""In which requests a client sends its update and fetches the result."""

from typing import Final

from gradshard_core.limits import aws_limits
from gradshard_core.units import MIB

SINGLE_PUT_BYTES: Final = 1024 * MIB
"""A client first sends an update of up to this size in one PUT, instead of eleven requests. If the
connection breaks, it sends parts from then on. So it loses at most this, once: a minute and a half
at 100 Mbit/s. S3 accepts five times as much."""

CLIENT_RANGE_BYTES: Final = 16 * MIB
CLIENT_RANGES: Final = 8

DOWNLOAD_RANGE_BYTES: Final = 64 * MIB
DOWNLOAD_RANGES: Final = 4


def client_ranges(nbytes: int) -> list[tuple[int, int]]:
    """Return the ranges in which a client sends an update in parts.

    Each is a request that is paid for; eight lose little when one has to be repeated.
    """
    size = min(max(CLIENT_RANGE_BYTES, -(-nbytes // CLIENT_RANGES)), aws_limits.MAX_PART_BYTES)
    return _ranges(nbytes, size)


def download_ranges(nbytes: int) -> list[tuple[int, int]]:
    """Return the ranges in which a client fetches an object, side by side.

    Each is a request that is paid for, and goes on from the byte it has reached if its connection
    breaks: there are no more than are read at once.
    """
    return _ranges(nbytes, max(DOWNLOAD_RANGE_BYTES, -(-nbytes // DOWNLOAD_RANGES)))


def _ranges(nbytes: int, size: int) -> list[tuple[int, int]]:
    return [(start, min(start + size, nbytes)) for start in range(0, nbytes, size)]
