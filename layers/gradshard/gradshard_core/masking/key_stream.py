"""The key stream of a seed: the mask of a client's update, any byte range of which can be made.

The stream is AES-256 in counter mode (NIST SP 800-38A, 6.5) over zeros: the seed is the key, and
the counter starts at 0, 16 bytes each. A seed serves for one mask only, so it needs no nonce. The
counter of byte p is p // 16, so a task makes the range of its shard and nothing else.
"""

from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

SEED_BYTES: Final = 32
BLOCK_BYTES: Final = 16

MAX_BYTES: Final = 2**48
"""So long a stream has 2⁴⁴ blocks. An attacker tells blocks that never repeat, as a counter's do,
from random ones with an advantage of 2⁸⁷ / 2¹²⁸ (the PRP/PRF switching lemma)."""

_ZEROS: Final = bytes(256 * 1024)


class KeyStream:
    """Bytes [start, end) of the key stream of a seed: a source of the kernel.

    Parameters
    ----------
    seed
        32 bytes.
    start, end
        Of the stream, in bytes.

    Raises
    ------
    ValueError
        The seed has another length, or the range is none of a stream of 2⁴⁸ bytes.
    """

    def __init__(self, seed: bytes, start: int, end: int) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        if not 0 <= start <= end <= MAX_BYTES:
            raise ValueError(f"[{start}, {end}) is no range of a stream of {MAX_BYTES} bytes")
        counter = (start // BLOCK_BYTES).to_bytes(BLOCK_BYTES, "big")
        self._encryptor = Cipher(algorithms.AES(seed), modes.CTR(counter)).encryptor()
        self._encryptor.update(bytes(start % BLOCK_BYTES))
        self._left = end - start

    def read_into(self, buffer: memoryview) -> None:
        """Fill ``buffer`` with the next bytes.

        Raises
        ------
        ValueError
            The range has not so many left.
        """
        if len(buffer) > self._left:
            raise ValueError(f"{len(buffer)} bytes were asked for, but {self._left} are left")
        self._left -= len(buffer)
        for at in range(0, len(buffer), len(_ZEROS)):
            part = buffer[at : at + len(_ZEROS)]
            self._encryptor.update_into(_ZEROS[: len(part)], part)
