"""Signatures of sealed seeds, by keys of clients that the keeper knows.

A client signs the context and the sealed seed with its Ed25519 key (RFC 8032). The keeper has the
public keys of the enrolled clients, which it did not get from the aggregator. So an aggregator
cannot seal the seeds of clients that it invents.
"""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gradshard_core.masking.sealing import SealContext, SealError


def new_signing_key() -> bytes:
    """Return a new private key for a client: 32 bytes."""
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())


def verification_key(signing_key: bytes) -> bytes:
    """Return the public key with which a client is enrolled: 32 bytes."""
    key = Ed25519PrivateKey.from_private_bytes(signing_key).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def sign(signing_key: bytes, sealed: bytes, context: SealContext) -> bytes:
    """Sign a sealed seed together with what it was sealed for: 64 bytes."""
    return Ed25519PrivateKey.from_private_bytes(signing_key).sign(context.encode() + sealed)


def verify(verification_key: bytes, signature: bytes, sealed: bytes, context: SealContext) -> None:
    """Check that an enrolled client has signed a sealed seed.

    Raises
    ------
    SealError
        It has not: another key signed it, or another seed or other terms.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(verification_key)
        key.verify(signature, context.encode() + sealed)
    except (InvalidSignature, ValueError):
        raise SealError(
            f"the signature of {context.client} was not made with its enrolled key for these terms"
        ) from None
