"""What masks and seals one update, derived from the client's own key: the same again for the same.

Nothing of it is stored, and yet a program that starts anew makes the same masked bytes, so an
upload that broke off goes on. Whatever differs, in the update or in the terms, derives another
seed, so no seed ever covers two updates. Who does not have the client's key cannot tell the seeds
from random ones (HKDF, RFC 5869).
"""

from typing import Final, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gradshard_core.formats.masked import framed
from gradshard_core.masking.key_stream import SEED_BYTES
from gradshard_core.masking.sealing import KEY_BYTES, SealContext

_LABEL: Final = "gradshard seed 1"


class Secrets(NamedTuple):
    """The secrets of one masked update.

    Parameters
    ----------
    seed
        The seed of its mask.
    ephemeral
        The private key with which the seed is sealed (:func:`.sealing.seal`).
    """

    seed: bytes
    ephemeral: bytes


def derive(
    signing_key: bytes, digest: str, scale: float, keeper: bytes, context: SealContext
) -> Secrets:
    """Return the secrets of an update.

    Parameters
    ----------
    signing_key
        The client's private key.
    digest, scale
        The SHA-256 of the update's bytes in hexadecimal, and the factor of its elements: with the
        context, they decide the bytes that are masked.
    keeper, context
        What the seed is sealed to, and for.
    """
    about = framed(_LABEL, digest, float(scale).hex(), keeper.hex()) + context.encode()
    made = HKDF(SHA256(), SEED_BYTES + KEY_BYTES, None, about).derive(signing_key)
    return Secrets(made[:SEED_BYTES], made[SEED_BYTES:])
