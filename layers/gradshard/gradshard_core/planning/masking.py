"""The terms of masked rounds: the encoding, and the keeper whose key seeds are sealed to."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from gradshard_core.aggregation.fixed_point import FixedPoint
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.keys import ObjectVersion
from gradshard_core.formats.layout import Layout
from gradshard_core.formats.masked import elements_of

MASKED: Final = "masked"
"""How contributors of masked rounds are weighed: by counts that nobody sees."""

LEAST_MASKED: Final = 2
"""The sum over one client is its update."""

DEFAULT_BITS: Final = 16
DEFAULT_RING_BITS: Final = 32
MASKING_EXAMPLE: Final = '{"bound": 1.0, "max_samples": 1000, "keeper": "9c1d…"}'


class MaskingTerms(NamedTuple):
    """What a masked round is opened with, and every client agrees to.

    Parameters
    ----------
    bound, bits, ring_bits, max_samples
        The encoding: :class:`gradshard_core.aggregation.fixed_point.FixedPoint`.
    keeper
        The keeper's public key, in hexadecimal.
    """

    bound: float
    bits: int
    ring_bits: int
    max_samples: int
    keeper: str

    def fixed(self, clients: int) -> FixedPoint:
        """Return the encoding for a round of at most so many clients.

        Raises
        ------
        SpecError
            A number is out of its bounds, or the ring has no room for so many.
        """
        return FixedPoint(self.bound, self.bits, self.ring_bits, clients, self.max_samples)

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(**{name: fields[name] for name in cls._fields})

    def encoding(self, layout_digest: str, elements: int) -> str:
        """Return encoding and layout as the text that seeds are sealed with.

        Client and keeper write the same: JSON without spaces, its names sorted.
        """
        stated = self.to_json() | {"layout": layout_digest, "elements": elements}
        del stated["keeper"]  # the seed is sealed to it
        return json.dumps(stated, sort_keys=True, separators=(",", ":"))


class Masking(NamedTuple):
    """The plan's part of a masked round.

    Parameters
    ----------
    terms
        What the round was opened with.
    clients
        The number of clients on the roster, for which the ring has room.
    encoding
        The text that seeds are sealed with: :meth:`MaskingTerms.encoding`.
    answer
        The keeper's sum of the masks; None while it is awaited.
    total
        The sum of the contributors' counts, known with the answer.
    """

    terms: MaskingTerms
    clients: int
    encoding: str
    answer: ObjectVersion | None = None
    total: int = 0

    @property
    def elements(self) -> int:
        """The number of the layout's elements."""
        elements: int = json.loads(self.encoding)["elements"]
        return elements

    @property
    def fixed(self) -> FixedPoint:
        """The encoding of elements."""
        return self.terms.fixed(self.clients)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "terms": self.terms.to_json(),
            "clients": self.clients,
            "encoding": self.encoding,
            "answer": self.answer and self.answer._asdict(),
            "total": self.total,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        answer = fields["answer"] and ObjectVersion(**fields["answer"])
        terms = MaskingTerms.from_json(fields["terms"])
        return cls(terms, fields["clients"], fields["encoding"], answer, fields["total"])


def with_masks(levels: Levels) -> Levels:
    """Return the sizes of groups with the sum of the masks, an input of each of the last level."""
    *lower, last = levels
    return (*lower, tuple(size + 1 for size in last))


KEEPER_MEMORY_MB: Final = 1769
"""Memory of `sum_masks` in keeper/template.yaml: that of one whole processor."""

KEEPER_SECONDS_PER_GB: Final = 0.3
"""Assumed of a keeper's processor, for a GB of key stream; 0.17 were measured (benchmarks.masked),
without the upload."""


class KeeperCost(NamedTuple):
    """What an answer takes: the bytes of all key streams, CPU-seconds, and dollars for these."""

    streamed_bytes: int
    cpu_seconds: float
    dollars: float

    @classmethod
    def of(cls, nbytes: int, clients: int, ring_bits: int, dollars_per_gb_second: float) -> Self:
        """Project it for clients with updates of so many bytes of F32."""
        streamed = clients * nbytes * ring_bits // 32
        seconds = streamed / 1e9 * KEEPER_SECONDS_PER_GB
        return cls(streamed, seconds, seconds * KEEPER_MEMORY_MB / 1024 * dollars_per_gb_second)


def layout_digest(layout: Layout) -> str:
    """Return the SHA-256 of a layout's names, types and shapes, in hexadecimal."""
    tensors = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in layout.tensors]
    return hashlib.sha256(json.dumps(tensors, separators=(",", ":")).encode()).hexdigest()


def encoding_of(terms: MaskingTerms, layout: Layout) -> str:
    """Return the text that the seeds of a round with this layout are sealed with."""
    return terms.encoding(layout_digest(layout), elements_of(layout))


def parse_masking(stated: Any) -> MaskingTerms:
    """Read the terms of a masked round.

    Raises
    ------
    SpecError
        A field is unknown, missing or out of its bounds.
    """
    if not isinstance(stated, Mapping):
        raise SpecError(f"masked is {stated!r}, not an object such as {MASKING_EXAMPLE}")
    fields = {"bits": DEFAULT_BITS, "ring_bits": DEFAULT_RING_BITS, **stated}
    for name in MaskingTerms._fields:
        if fields.get(name) is None:
            raise SpecError(f"masked lacks {name}; it is an object such as {MASKING_EXAMPLE}")
    unknown = sorted(fields.keys() - set(MaskingTerms._fields))
    if unknown:
        raise SpecError(f"masked: unknown field {unknown[0]!r}")
    for name in ("bits", "ring_bits", "max_samples"):
        if type(fields[name]) is not int:
            raise SpecError(f"masked: {name} is {fields[name]!r}, not a whole number")
    bound = fields["bound"]
    if isinstance(bound, bool) or not isinstance(bound, int | float):
        raise SpecError(f"masked: bound is {bound!r}, not a number")
    keeper = fields["keeper"]
    if not isinstance(keeper, str) or not re.fullmatch(r"[0-9a-f]{64}", keeper):
        raise SpecError(
            f"masked: keeper is {keeper!r}, not a public key of 64 hexadecimal digits, which "
            "`gradshard keeper key` prints"
        )
    return MaskingTerms(**fields | {"bound": float(bound)})


def check_layout(terms: MaskingTerms, clients: int, layout: Layout) -> None:
    """Check that updates of a layout can be masked.

    Raises
    ------
    SpecError
        A tensor is of integers, or the largest sum that the ring holds is too large for its type:
        garbage from a client would make an infinity of it.
    """
    fixed = terms.fixed(clients)
    largest = fixed.step * 2.0 ** (fixed.ring_bits - 1)
    for tensor in layout.tensors:
        dtype = DTYPES[tensor.dtype]
        if dtype.is_integer:
            raise SpecError(
                f"tensor {tensor.name!r} is {tensor.dtype}: masked rounds average floating-point "
                "tensors only; leave it out of the update"
            )
        if not largest < min(dtype.overflow, _LARGEST.get(tensor.dtype, math.inf)):
            raise SpecError(
                f"tensor {tensor.name!r} is {tensor.dtype}, and the ring reaches {largest:g}: give "
                "a smaller bound, more bits or a wider type"
            )


_LARGEST: Final = {"F32": float.fromhex("0x1.fffffep127")}
