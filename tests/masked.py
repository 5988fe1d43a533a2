"""Masked rounds, written from the description in the docstring of gradshard_core.masking alone.

Whole numbers of any size and fractions stand for the ring, and each block of a key stream is one
call of AES. Only HPKE is a library's, as the project's own is.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from pyhpke import AEADId, CipherSuite, KDFId, KEMId, KEMKey

from tests import reference

Terms = Mapping[str, Any]
SUITE = CipherSuite.new(KEMId.DHKEM_X25519_HKDF_SHA256, KDFId.HKDF_SHA256, AEADId.AES256_GCM)


def step_of(terms: Terms) -> Fraction:
    return step_of_bound(terms["bound"], terms["bits"])


@cache
def step_of_bound(bound: float, bits: int) -> Fraction:
    """Return the least power of two in which the bound has at most 2^(b-1) - 1 steps."""
    steps = 2 ** (bits - 1) - 1
    step = Fraction(2) ** (math.floor(math.log2(bound / steps)) - 2)
    while Fraction(bound) > steps * step:
        step *= 2
    return step


def encode(terms: Terms, value: float, samples: int) -> int:
    """Return n · round(clip(x) / step), ties to even."""
    bound = Fraction(terms["bound"])
    return samples * round(max(-bound, min(bound, Fraction(value))) / step_of(terms))


def stream(seed: bytes, nbytes: int) -> bytes:
    """Return the start of a key stream: AES-256 of a counter, block by block."""
    block = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()  # noqa: S305 - of a counter
    blocks = -(-nbytes // 16)
    return b"".join(block.update(j.to_bytes(16, "big")) for j in range(blocks))[:nbytes]


def elements(data: bytes, ring_bits: int) -> list[int]:
    """Read elements of the ring, least significant byte first."""
    size = ring_bits // 8
    return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]


def framed(*texts: str) -> bytes:
    return b"".join(len(t.encode()).to_bytes(8, "big") + t.encode() for t in texts)


@cache
def digest_of_names(names: tuple[str, ...]) -> str:
    return hashlib.sha256(framed(*names)).hexdigest()


def encoding(terms: Terms, update: Mapping[str, reference.Array]) -> str:
    tensors = [[n, reference.NAMES[t.dtype], list(t.shape)] for n, t in update.items()]
    digest = hashlib.sha256(json.dumps(tensors, separators=(",", ":")).encode()).hexdigest()
    count = sum(t.size for t in update.values())
    return (
        f'{{"bits":{terms["bits"]},"bound":{float(terms["bound"])},"elements":{count},'
        f'"layout":"{digest}","max_samples":{terms["max_samples"]},"ring_bits":{terms["ring_bits"]}}}'
    )


def info(round_id: str, client: str, roster: Sequence[str], quorum: int, encoded: str) -> bytes:
    """Return what a seed is sealed with."""
    names = digest_of_names(tuple(sorted(roster)))
    protocol = "gradshard masked round 1"
    return framed(protocol, round_id, client, names, str(quorum), encoded)


def masked_update(
    terms: Terms,
    update: Mapping[str, reference.Array],
    samples: int,
    seed: bytes,
    signing_key: bytes,
    bound_to: bytes,
) -> bytes:
    """Return the object that a client uploads; ``bound_to`` is its info."""
    bits = terms["ring_bits"]
    plain = [
        encode(terms, value, samples)
        for tensor in update.values()
        for value in np.asarray(tensor, "f8").ravel().tolist()
    ]
    mask = elements(stream(seed, (len(plain) + 1) * bits // 8), bits)
    masked = [(q + m) % 2**bits for q, m in zip([*plain, samples], mask, strict=True)]
    keeper = X25519PublicKey.from_public_bytes(bytes.fromhex(terms["keeper"]))
    encapsulated, sender = SUITE.create_sender_context(
        KEMKey.from_pyca_cryptography_key(keeper), info=bound_to
    )
    sealed = encapsulated + sender.seal(seed)
    signature = Ed25519PrivateKey.from_private_bytes(signing_key).sign(bound_to + sealed)
    metadata = {
        "masked_count": str(masked[-1]),
        "sealed_seed": sealed.hex(),
        "signature": signature.hex(),
    }
    return reference.encode({"masked": np.array(masked[:-1], f"u{bits // 8}")}, metadata)


def average(
    terms: Terms, updates: Sequence[Mapping[str, reference.Array]], samples: Sequence[int]
) -> dict[str, reference.Array]:
    """Return the result of a round without masks: the plain fixed-point sum, decoded."""
    step, total, result = step_of(terms), sum(samples), {}
    for name, model in updates[0].items():
        wide = np.dtype("f8" if model.dtype.itemsize == 8 else "f4")
        flat = [np.asarray(u[name], "f8").ravel().tolist() for u in updates]
        sums = [
            sum(encode(terms, value, n) for value, n in zip(values, samples, strict=True))
            for values in zip(*flat, strict=True)
        ]
        # A float64 of the sum, scaled exactly, divided, and rounded to the tensor's type.
        decoded = [float(s) * float(step) / float(total) for s in sums]
        result[name] = np.array(decoded, "f8").astype(wide).astype(model.dtype)
        result[name] = result[name].reshape(model.shape)
    return result
