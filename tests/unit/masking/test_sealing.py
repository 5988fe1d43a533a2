"""Sealed seeds, against a second implementation of RFC 9180."""

import hmac
import os
from dataclasses import replace
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gradshard_core.formats.masked_updates import roster_digest
from gradshard_core.masking import sealing
from gradshard_core.masking.sealing import SealContext, SealError, seal, unseal

CONTEXT = SealContext("r1", "a", roster_digest(["a", "b", "c"]), 2, "F32 32 bits")


def decrypt(
    private: bytes, encapsulated: bytes, sealed: bytes, info: bytes, aad: bytes, key_bytes: int
) -> bytes:
    """Open a message as RFC 9180 defines it (4.1, 5.1 and 5.2), in base mode.

    DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, and AES-GCM with a key of 16 or 32 bytes.
    """

    def extract(salt: bytes, suite: bytes, label: bytes, secret: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite + label + secret, "sha256")

    def expand(secret: bytes, suite: bytes, label: bytes, text: bytes, length: int) -> bytes:
        labeled = length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + text
        return hmac.digest(secret, labeled + b"\x01", "sha256")[:length]

    key = X25519PrivateKey.from_private_bytes(private)
    shared = key.exchange(X25519PublicKey.from_public_bytes(encapsulated))
    kem = b"KEM" + (0x20).to_bytes(2, "big")
    both = encapsulated + sealing.public_key(private)
    secret = expand(extract(b"", kem, b"eae_prk", shared), kem, b"shared_secret", both, 32)
    aead = {16: 1, 32: 2}[key_bytes]
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x20, 1, aead))
    context = (
        b"\x00" + extract(b"", suite, b"psk_id_hash", b"") + extract(b"", suite, b"info_hash", info)
    )
    root = extract(secret, suite, b"secret", b"")
    nonce = expand(root, suite, b"base_nonce", context, 12)
    return AESGCM(expand(root, suite, b"key", context, key_bytes)).decrypt(nonce, sealed, aad)


def test_the_second_implementation_is_right() -> None:
    # RFC 9180, A.1.1.1: sequence number 0.
    found = decrypt(
        bytes.fromhex("4612c550263fc8ad58375df3f557aac531d26850903e55a9f23f21d8534e8ac8"),
        bytes.fromhex("37fda3567bdbd628e88668c3c8d7e97d1d1253b6d4ea6d44c150f741f1bf4431"),
        bytes.fromhex(
            "f938558b5d72f1a23810b4be2ab4f84331acc02fc97babc53a52ae8218a355a9"
            "6d8770ac83d07bea87e13c512a"
        ),
        b"Ode on a Grecian Urn",
        b"Count-0",
        16,
    )
    assert found == b"Beauty is truth, truth beauty"


def test_a_sealed_seed_opens_with_the_private_key_and_the_context() -> None:
    private, seed = sealing.new_key(), os.urandom(32)
    sealed = seal(seed, sealing.public_key(private), CONTEXT, os.urandom(32))
    assert len(sealed) == sealing.SEALED_BYTES
    assert seed not in sealed
    assert unseal(sealed, private, CONTEXT) == seed
    by_definition = decrypt(private, sealed[:32], sealed[32:], CONTEXT.encode(), b"", 32)
    assert by_definition == seed


def test_two_seals_of_one_seed_have_nothing_in_common() -> None:
    private, seed = sealing.new_key(), os.urandom(32)
    first, second = (
        seal(seed, sealing.public_key(private), CONTEXT, os.urandom(32)) for _ in range(2)
    )
    assert first[:32] != second[:32]
    assert first[32:] != second[32:]


@pytest.mark.parametrize(
    "change",
    [
        {"round_id": "r2"},
        {"client": "b"},
        {"roster": roster_digest(["a", "b"])},
        {"roster": roster_digest(["a", "b", "d"])},
        {"roster": roster_digest(["a", "bc"])},
        {"min_clients": 3},
        {"encoding": "F32 64 bits"},
    ],
)
def test_a_seed_opens_for_nothing_else(change: dict[str, Any]) -> None:
    private = sealing.new_key()
    sealed = seal(os.urandom(32), sealing.public_key(private), CONTEXT, os.urandom(32))
    with pytest.raises(SealError, match="does not open for round"):
        unseal(sealed, private, replace(CONTEXT, **change))
    with pytest.raises(InvalidTag):
        decrypt(private, sealed[:32], sealed[32:], replace(CONTEXT, **change).encode(), b"", 32)


def test_a_seed_opens_with_no_other_key_and_not_when_it_was_changed() -> None:
    private = sealing.new_key()
    sealed = seal(os.urandom(32), sealing.public_key(private), CONTEXT, os.urandom(32))
    with pytest.raises(SealError, match="the sealed seed of a does not open"):
        unseal(sealed, sealing.new_key(), CONTEXT)
    for at in range(len(sealed)):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(SealError):
            unseal(bytes(changed), private, CONTEXT)
    with pytest.raises(SealError, match="has 79 bytes, not 80"):
        unseal(sealed[:-1], private, CONTEXT)


def test_the_order_of_the_roster_does_not_matter() -> None:
    assert replace(CONTEXT, roster=roster_digest(["c", "a", "b"])).encode() == CONTEXT.encode()


def test_fields_do_not_run_into_each_other() -> None:
    one, other = (replace(CONTEXT, round_id=r, client=c) for r, c in (("ab", "c"), ("a", "bc")))
    assert one.encode() != other.encode()


@pytest.mark.parametrize("key", [b"", bytes(31), bytes(32), bytes(33)])
def test_what_is_no_public_key_is_rejected(key: bytes) -> None:
    with pytest.raises(SealError, match="the keeper's public key is not valid"):
        seal(os.urandom(32), key, CONTEXT, os.urandom(32))


def test_a_fingerprint_can_be_compared_by_people() -> None:
    groups = sealing.fingerprint(bytes(32)).split()
    assert [len(group) for group in groups] == [8] * 8
    assert "".join(groups).startswith("66687aad")  # SHA-256 of 32 zeros
