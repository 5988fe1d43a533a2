"""Masked updates: safetensors objects of one tensor, and what their metadata states.

The tensor ``masked`` holds the elements of the round's layout, in its order, each as an element of
the ring. The masked number of samples is in the metadata, where it is found with the header.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple, Self

from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.tensor_layout import Layout, shorten

PROTOCOL: Final = "gradshard masked round 1"
"""The version of the protocol. Seeds of another one do not open."""

TENSOR: Final = "masked"
COUNT_KEY: Final = "masked_count"
SEED_KEY: Final = "sealed_seed"
SIGNATURE_KEY: Final = "signature"

SEALED_BYTES: Final = 80
"""Size of a sealed seed: an encapsulated key of 32 bytes, a seed of 32 and a tag of 16."""
SIGNATURE_BYTES: Final = 64
"""Size of an Ed25519 signature (RFC 8032)."""


class Share(NamedTuple):
    """The values that a client sends beside its masked elements.

    Parameters
    ----------
    masked_count
        Its number of samples, masked: an element of the ring.
    sealed_seed, signature
        The seed of its mask, sealed to the keeper, and its signature of that; in hexadecimal.
    """

    masked_count: int
    sealed_seed: str
    signature: str

    def metadata(self) -> dict[str, str]:
        """Return it as an update's metadata."""
        return {
            COUNT_KEY: str(self.masked_count),
            SEED_KEY: self.sealed_seed,
            SIGNATURE_KEY: self.signature,
        }

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str], ring_bits: int) -> Self:
        """Read it from an update's metadata.

        Raises
        ------
        UpdateError
            An entry is missing, or has another form.
        """
        for name in (COUNT_KEY, SEED_KEY, SIGNATURE_KEY):
            if name not in metadata:
                raise UpdateError(
                    f"{name} is missing from the header's __metadata__: the round takes masked "
                    "updates only, which the client library makes"
                )
        count = metadata[COUNT_KEY]
        if not re.fullmatch(r"[0-9]{1,20}", count, re.ASCII) or int(count) >= 2**ring_bits:
            raise UpdateError(f"{COUNT_KEY} is {shorten(count)!r}, no element of the ring")
        return cls(
            int(count),
            _hexadecimal(metadata, SEED_KEY, SEALED_BYTES),
            _hexadecimal(metadata, SIGNATURE_KEY, SIGNATURE_BYTES),
        )

    @classmethod
    def of_json(cls, fields: Any) -> Self:
        """Read it from a plan."""
        return cls(*fields)


def framed(*fields: str) -> bytes:
    """Return texts one after another, each after its length in 8 bytes: no others look the same."""
    texts = [field.encode() for field in fields]
    return b"".join(part for text in texts for part in (len(text).to_bytes(8, "big"), text))


def roster_digest(clients: Iterable[str]) -> str:
    """Return the SHA-256 of a roster, in hexadecimal: of its ids, sorted and framed."""
    return hashlib.sha256(framed(*sorted(clients))).hexdigest()


def elements_of(layout: Layout) -> int:
    """Return the number of elements of a layout."""
    return sum((t.end - t.start) // DTYPES[t.dtype].size for t in layout.tensors)


def masked_layout(layout: Layout, ring_bits: int) -> Layout:
    """Return the layout of masked updates in a round with a layout."""
    return Layout.pack([(TENSOR, f"U{ring_bits}", [elements_of(layout)])])


def _hexadecimal(metadata: Mapping[str, str], name: str, nbytes: int) -> str:
    text = metadata[name]
    if not re.fullmatch(rf"[0-9a-f]{{{2 * nbytes}}}", text):
        raise UpdateError(
            f"{name} is {shorten(text)!r}, not {nbytes} bytes in hexadecimal, {2 * nbytes} digits"
        )
    return text
