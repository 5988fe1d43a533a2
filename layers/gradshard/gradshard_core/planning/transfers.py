"""In which requests a client sends its update and fetches the result."""

from typing import Final

from gradshard_core.planning import limits
from gradshard_core.units import MIB

SINGLE_PUT_BYTES: Final = 1024 * MIB
"""What a client sends in one PUT at first, instead of eleven requests. A connection that breaks
costs at most this, once: a minute and a half at 100 Mbit/s, after which the parts take over. S3
would take five times as much."""

CLIENT_RANGE_BYTES: Final = 16 * MIB
CLIENT_RANGES: Final = 8


def client_ranges(nbytes: int) -> list[tuple[int, int]]:
    """Return the ranges in which a client fetches the result, and sends an update in parts.

    Each is a request that is paid for; eight lose little when one has to be repeated.
    """
    size = min(max(CLIENT_RANGE_BYTES, -(-nbytes // CLIENT_RANGES)), limits.MAX_PART_BYTES)
    return [(start, min(start + size, nbytes)) for start in range(0, nbytes, size)]
