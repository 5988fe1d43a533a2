"""Masked updates by the client: encode, mask and seal them while they are sent."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from gradshard.updates.mask_identity import need_libraries, read_identity
from gradshard.updates.upload_source import Content, header_bytes, in_order_of
from gradshard_core.aggregation.arithmetic import widened
from gradshard_core.aggregation.fixed_point import RingEncoding
from gradshard_core.aggregation.kernel import steps
from gradshard_core.aggregation.masked_sum import ring_spans
from gradshard_core.aggregation.sharding import clip, sums_bytes
from gradshard_core.errors import UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import parse_header, parse_samples
from gradshard_core.formats.masked_updates import Share, elements_of, masked_layout
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, encode_header
from gradshard_core.specs.masking_options import Agreement, encoding_of
from gradshard_core.units import MIB

if TYPE_CHECKING:
    from gradshard_core.masking.sealing import SealContext


PIECE_BYTES: Final = 4 * MIB
"""Bytes of an update that are read at a time to recognise it."""


@dataclass
class Mask:
    """The masking of a client's updates: its own key, and the keeper that it trusts.

    Parameters
    ----------
    signing_key
        The client's private key, 32 bytes, or the file that has it in hexadecimal, as
        ``gradshard keeper identity`` writes it. The client is enrolled with the keeper by its
        public key.
    keeper
        The SHA-256 of the keeper's public key in hexadecimal, which ``gradshard keeper key``
        prints. Get it from the keeper's operator, and not through the aggregator.
    least_clients
        The fewest clients among whose updates this one may be hidden. A round with a smaller
        ``min_clients`` gets no update.
    least_noise
        The smallest noise multiplier of a round that gets an update; 0 if rounds need no noise.

    Attributes
    ----------
    clipped
        The number of elements of the last update that were clipped to the round's bound. With
        noise, the whole update is shortened instead, and these are its elements beyond the clip.
    """

    signing_key: bytes | str | Path = field(repr=False)
    keeper: str
    least_clients: int = 2
    least_noise: float = 0.0
    clipped: int = field(default=0, init=False)

    def check(self, agreement: Agreement | None, client: str, round_id: str) -> Agreement:
        """Check what a round asks its clients to agree to, before anything is sent.

        Returns
        -------
        Agreement
            The same one, if the round is masked.

        Raises
        ------
        UpdateError
            The round is not masked, has another keeper, or too small a quorum.
        """
        if agreement is None:
            raise UpdateError(
                f"round {round_id!r} is not masked: whoever can read its bucket would see the "
                f"update of {client}. Nothing was sent; submit without mask if that is meant"
            )
        found = hashlib.sha256(bytes.fromhex(agreement.terms.keeper)).hexdigest()
        if found != "".join(self.keeper.split()).lower():
            raise UpdateError(
                f"round {round_id!r} has a keeper with the fingerprint {found}, not {self.keeper}: "
                "nothing was sent. Ask the keeper's operator"
            )
        if agreement.min_clients < self.least_clients:
            raise UpdateError(
                f"round {round_id!r} may end with {agreement.min_clients} clients, and the update "
                f"of {client} is to be hidden among {self.least_clients} at least: nothing was sent"
            )
        noise = 0.0 if agreement.terms.dp is None else agreement.terms.dp.noise_multiplier
        if noise < self.least_noise:
            raise UpdateError(
                f"round {round_id!r} has a noise multiplier of {noise:g}, and the update of "
                f"{client} needs {self.least_noise:g} at least: nothing was sent"
            )
        return agreement

    def sealed(self, digest: str, scale: float, keeper: bytes, context: "SealContext") -> "_Sealed":
        """Return a seed for an update; the same one for the same bytes and terms, and no others.

        ``digest`` is the SHA-256 of the update's bytes, and ``scale`` the factor of its elements.
        """
        from gradshard.updates.mask_seeds import derive
        from gradshard_core.masking import sealing, signing

        key = self.key()
        seed, ephemeral = derive(key, digest, scale, keeper, context)
        sealed = sealing.seal(seed, keeper, context, ephemeral)
        return _Sealed(seed, sealed, signing.sign(key, sealed, context))

    def key(self) -> bytes:
        """Return the private key.

        Raises
        ------
        UpdateError
            There is no such file, or it has no key.
        """
        if isinstance(self.signing_key, bytes):
            return self.signing_key
        return read_identity(Path(self.signing_key))


class _Sealed(NamedTuple):
    """A seed, sealed and signed; it is stored nowhere."""

    seed: bytes
    sealed: bytes
    signature: bytes


class MaskedContent:
    """A content that is encoded and masked while it is read; several threads may read at once.

    Parameters
    ----------
    content
        The update, whole and in the order of the round's layout.
    layout
        The round's layout.
    share
        The values that are sent beside the masked elements.
    fixed, scale
        The encoding, and the factor of the client's elements in it.
    seed
        The seed of its mask.
    """

    def __init__(
        self,
        content: Content,
        layout: Layout,
        share: Share,
        fixed: RingEncoding,
        scale: float,
        seed: bytes,
    ) -> None:
        self.layout = masked_layout(layout, fixed.ring_bits)
        self._content, self._plain, self._fixed = content, layout, fixed
        self._scale, self._seed = scale, seed
        self._offset = header_bytes(content)
        self._header = encode_header(self.layout, share.metadata())
        self.nbytes = len(self._header) + self.layout.nbytes
        self._spans = ring_spans(layout.spans, fixed.ring_bits)

    def read(self, start: int, end: int) -> bytes:
        """Return bytes [start, end).

        Raises
        ------
        UpdateError
            An element is a NaN or an infinity.
        """
        head, shift = self._header[start:end], len(self._header)
        first, last = max(0, start - shift), max(0, min(end, self.nbytes) - shift)
        if first >= last:
            return head
        size = self._fixed.dtype.itemsize
        low, high = first // size, -(-last // size)
        masked: bytes = self._masked(low, high).tobytes()
        return head + masked[first - low * size : last - low * size]

    def _masked(self, low: int, high: int) -> Any:
        """Return elements [low, high), masked."""
        from gradshard_core.masking.key_stream import KeyStream

        size = self._fixed.dtype.itemsize
        encoded = np.empty(high - low, self._fixed.dtype)
        mask = np.empty(high - low, self._fixed.dtype)
        KeyStream(self._seed, low * size, high * size).read_into(memoryview(mask.view(np.uint8)))
        done = 0
        start, end = self._position(low), self._position(high)
        for span in clip(self._plain.spans, start, end):
            stored = self._content.read(self._offset + span.start, self._offset + span.end)
            values = widened(DTYPES[span.dtype], memoryview(stored))
            self._fixed.encode(values, self._scale, encoded[done : done + len(values)])
            done += len(values)
        np.add(encoded, mask, out=encoded)
        return encoded

    def _position(self, element: int) -> int:
        """Return where an element begins in the layout."""
        before = element * self._fixed.dtype.itemsize
        for span in self._spans:
            length = sums_bytes(self._spans, span.start, span.end)
            if before < length:
                return span.start + before // self._fixed.dtype.itemsize * DTYPES[span.dtype].size
            before -= length
        return self._plain.nbytes


class _Survey(NamedTuple):
    """The facts that the first reading of an update yields.

    Parameters
    ----------
    digest
        The SHA-256 of its bytes.
    clipped
        How many of its elements are beyond the bound.
    norm
        Its length, the root of the sum of the squares.
    """

    digest: str
    clipped: int
    norm: float


def _survey(content: Content, layout: Layout, bound: float) -> _Survey:
    """Look at an update, piece by piece."""
    offset = header_bytes(content)
    digest, clipped, squares = hashlib.sha256(content.read(0, offset)), 0, 0.0
    for start, end in steps(layout.spans, 0, layout.nbytes, PIECE_BYTES):
        stored = content.read(offset + start, offset + end)
        digest.update(stored)
        for span in clip(layout.spans, start, end):
            part = memoryview(stored)[span.start - start : span.end - start]
            values = np.abs(widened(DTYPES[span.dtype], part))
            clipped += int(np.count_nonzero(values > bound))
            with np.errstate(over="ignore"):
                squares += float(np.sum(np.square(values, dtype=np.float64)))
    return _Survey(digest.hexdigest(), clipped, math.sqrt(squares))


def masked(
    content: Content,
    agreement: Agreement | None,
    layout: Layout | None,
    mask: Mask,
    client: str,
    round_id: str,
) -> MaskedContent:
    """Return a content that is masked while it is read; its seed is sealed and signed.

    The same update for the same round has the same masked bytes, in each process that has the
    client's key: so an upload that broke off goes on where it was. Any other one has another seed.

    Raises
    ------
    UpdateError
        The terms are not the client's, or its number of samples is over what the round allows.
    """
    need_libraries()
    from gradshard_core.masking import sealing
    from gradshard_core.masking.key_stream import KeyStream

    agreed = mask.check(agreement, client, round_id)
    terms = agreed.terms
    if layout is None:
        raise UpdateError(f"round {round_id!r} is masked, and lacks a layout")
    content = in_order_of(layout, content)
    end = header_bytes(content)
    samples = parse_samples(parse_header(content.read(PREFIX_BYTES, end), content.nbytes).metadata)
    fixed = terms.fixed(agreed.clients, elements_of(layout))
    counted = fixed.count(samples)
    context = sealing.SealContext(
        round_id, client, agreed.roster, agreed.min_clients, encoding_of(terms, layout)
    )
    found = _survey(content, layout, terms.bound)
    scale = fixed.scale(samples, found.norm)
    mask.clipped = found.clipped
    seed, sealed, signature = mask.sealed(found.digest, scale, bytes.fromhex(terms.keeper), context)
    size, count = fixed.dtype.itemsize, bytearray(fixed.dtype.itemsize)
    at = elements_of(layout) * size
    KeyStream(seed, at, at + size).read_into(memoryview(count))
    masked_count = (counted + int.from_bytes(count, "little")) % 2**terms.ring_bits
    share = Share(masked_count, sealed.hex(), signature.hex())
    return MaskedContent(content, layout, share, fixed, scale, seed)


def check_unreported(
    training: Mapping[str, float] | None, metrics: Mapping[str, float] | None, codec: object
) -> None:
    """Check that nothing is to be sent beside a masked update, which is not compressed.

    Raises
    ------
    UpdateError
        Something is.
    """
    if training or metrics:
        raise UpdateError(
            "masked updates tell nothing of their training: leave out training and metrics"
        )
    if codec is not None:
        raise UpdateError("masked updates are not compressed: leave out codec")


def check_unmasked(agreement: Agreement | None, round_id: str) -> None:
    """Check that a round takes updates that are not masked.

    Raises
    ------
    UpdateError
        It takes masked ones only.
    """
    if agreement is not None:
        raise UpdateError(
            f"round {round_id!r} takes masked updates only: submit with mask (--mask-key "
            "and --keeper), the client's key and its keeper"
        )
