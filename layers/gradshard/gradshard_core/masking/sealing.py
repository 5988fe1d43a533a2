"""Seal a seed to the mask keeper's public key, for one round and client.

HPKE (RFC 9180) in base mode, in a single message: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
AES-256-GCM, with the context as ``info`` and no associated data. A sealed seed is the
encapsulated key, 32 bytes, and the ciphertext, 48 bytes. It opens only with the keeper's private
key and the same terms.

The message does not prove who sealed it: HPKE's base mode authenticates no sender.
"""

import hashlib
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey, KEMKeyPair
from pyhpke.exceptions import PyHPKEError

from gradshard_core.errors import GradshardError
from gradshard_core.formats.masked_updates import PROTOCOL, framed
from gradshard_core.masking.key_stream import SEED_BYTES

KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SEALED_BYTES: Final = KEY_BYTES + SEED_BYTES + TAG_BYTES

_SUITE: Final = CipherSuite.new(
    KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM
)


class SealError(GradshardError):
    """A sealed seed does not open, or a key is not valid."""


@dataclass(frozen=True)
class SealContext:
    """The terms to which a client agrees when it seals a seed; the seed opens for no others.

    Parameters
    ----------
    round_id, client
        The round, and the client that seals.
    roster
        The SHA-256 of the clients among whose updates the client's own is hidden
        (:func:`gradshard_core.formats.masked_updates.roster_digest`).
    min_clients
        The fewest updates that may be added up.
    encoding
        The fixed-point encoding and the layout, as a text that all parties write in the same way.
    """

    round_id: str
    client: str
    roster: str
    min_clients: int
    encoding: str

    def encode(self) -> bytes:
        """Return it as bytes, which no other context has."""
        return framed(
            PROTOCOL,
            self.round_id,
            self.client,
            self.roster,
            str(self.min_clients),
            self.encoding,
        )


def new_key() -> bytes:
    """Return a new private key for a keeper: 32 bytes."""
    return X25519PrivateKey.generate().private_bytes(
        Encoding.Raw, PrivateFormat.Raw, NoEncryption()
    )


def public_key(private_key: bytes) -> bytes:
    """Return the public key of a private one: 32 bytes."""
    key = X25519PrivateKey.from_private_bytes(private_key)
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def fingerprint(public_key: bytes) -> str:
    """Return the SHA-256 of a public key in hexadecimal, in groups that people can compare."""
    digest = hashlib.sha256(public_key).hexdigest()
    return " ".join(digest[at : at + 8] for at in range(0, len(digest), 8))


def seal(seed: bytes, keeper: bytes, context: SealContext, ephemeral: bytes) -> bytes:
    """Seal a seed to a keeper's public key.

    Parameters
    ----------
    seed, keeper, context
        The seed, the public key, and the terms.
    ephemeral
        The private key of the encapsulation, 32 bytes that no other seed, key or context has: two
        messages with one would be encrypted with the same key stream.

    Raises
    ------
    SealError
        The key is not valid.
    """
    try:
        key = KEMKey.from_pyca_cryptography_key(X25519PublicKey.from_public_bytes(keeper))
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        pair = KEMKeyPair(
            KEMKey.from_pyca_cryptography_key(private),
            KEMKey.from_pyca_cryptography_key(private.public_key()),
        )
        encapsulated, sender = _SUITE.create_sender_context(key, info=context.encode(), eks=pair)
        return bytes(encapsulated) + bytes(sender.seal(seed))
    except (PyHPKEError, ValueError) as error:
        raise SealError(f"the keeper's public key is not valid: {error}") from None


def unseal(sealed: bytes, private_key: bytes, context: SealContext) -> bytes:
    """Return the seed that a client has sealed.

    Raises
    ------
    SealError
        It was sealed to another key or for another context, or was changed; which of these, cannot
        be told.
    """
    if len(sealed) != SEALED_BYTES:
        raise SealError(
            f"the sealed seed of {context.client} has {len(sealed)} bytes, not {SEALED_BYTES}"
        )
    key = KEMKey.from_pyca_cryptography_key(X25519PrivateKey.from_private_bytes(private_key))
    try:
        recipient = _SUITE.create_recipient_context(sealed[:KEY_BYTES], key, info=context.encode())
        return bytes(recipient.open(sealed[KEY_BYTES:]))
    except (PyHPKEError, ValueError):
        raise SealError(
            f"the sealed seed of {context.client} does not open for round {context.round_id!r}: it "
            "was sealed to another key, or for another round, roster, quorum or encoding"
        ) from None
