"""The secrets of an update, against HKDF written from RFC 5869."""

import hmac
from dataclasses import replace

from gradshard.updates.mask_seeds import derive
from gradshard_core.formats.masked_updates import framed
from gradshard_core.masking.sealing import SealContext

CONTEXT = SealContext("r1", "a", "0" * 64, 2, "F32 32 bits")
KEY, KEEPER = bytes(range(32)), bytes(range(32, 64))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """Extract and expand (RFC 5869, 2.2 and 2.3), with SHA-256."""
    key, block, made = hmac.digest(salt or bytes(32), secret, "sha256"), b"", b""
    for number in range(1, -(-length // 32) + 1):
        block = hmac.digest(key, block + info + bytes([number]), "sha256")
        made += block
    return made[:length]


def test_the_second_implementation_is_right() -> None:
    # RFC 5869, A.1.
    found = hkdf(bytes([0x0B] * 22), bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert found.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


def test_secrets_are_those_of_the_description() -> None:
    about = framed("gradshard seed 1", "ab", (3.0).hex(), KEEPER.hex()) + CONTEXT.encode()
    made = hkdf(KEY, b"", about, 64)
    assert derive(KEY, "ab", 3.0, KEEPER, CONTEXT) == (made[:32], made[32:])


def test_whatever_differs_derives_other_secrets() -> None:
    made = {
        secret
        for key in (KEY, KEEPER)
        for digest in ("ab", "abc")
        for scale in (1.0, 2.0)
        for keeper in (KEEPER, KEY)
        for client in ("a", "b")
        for secret in derive(key, digest, scale, keeper, replace(CONTEXT, client=client))
    }
    assert len(made) == 2 * 2**5
