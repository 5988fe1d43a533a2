"""Derive the secrets that mask and seal one update from the client's own key.

The same update and terms have the same secrets. So a program that starts anew makes the same masked
bytes, and goes on with an upload that broke off, though nothing is stored. Another update, or other
terms, have another seed: no seed ever covers two updates. Nobody without the client's key can tell
the seeds from random ones (HKDF, RFC 5869).
"""

from typing import Final, NamedTuple

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gradshard_core.formats.masked_updates import framed
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
        The public key that the seed is sealed to, and the terms that it is sealed with.
    """
    about = framed(_LABEL, digest, float(scale).hex(), keeper.hex()) + context.encode()
    made = HKDF(SHA256(), SEED_BYTES + KEY_BYTES, None, about).derive(signing_key)
    return Secrets(made[:SEED_BYTES], made[SEED_BYTES:])
