"""The tasks that an answer of the keeper is divided among."""

import json
from typing import Any, Final, NamedTuple, Self

from gradshard_core.aggregation.sharding import Shard, cut_shards
from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import in_ring
from gradshard_core.formats.tensor_layout import Span
from gradshard_core.limits import aws_limits
from gradshard_core.privacy.privacy_mechanism import parse_privacy
from gradshard_core.units import MIB

TASK_BYTES: Final = 16 * 1024 * MIB
"""Bytes of key stream that a task makes: a few seconds of a whole processor."""

MOST_TASKS: Final = 500
"""More would fill the history of the execution, which has 25,000 events, if each were tried as
often as ``keeper.asl.json`` allows."""


class Stream(NamedTuple):
    """The shape of a round's masks: so many elements of a ring, the last one for the count.

    ``noise_terms`` are those of the noise that is added to their sum; 0 without noise.
    """

    elements: int
    ring_bits: int
    noise_terms: int = 0

    @classmethod
    def of(cls, encoding: str) -> Self:
        """Read it from the text of encoding and layout.

        Raises
        ------
        ValueError
            The text is not what :meth:`.MaskingTerms.encoding` writes.
        """
        stated = json.loads(encoding)
        if json.dumps(stated, sort_keys=True, separators=(",", ":")) != encoding:
            raise ValueError("the encoding is not written as the protocol says")
        elements, bits = stated["elements"], stated["ring_bits"]
        if type(elements) is not int or elements < 1 or bits not in {32, 64}:
            raise ValueError("the encoding has no number of elements, or another ring")
        stream = cls(elements + 1, bits, _noise_terms(stated.get("dp"), elements))
        if stream.nbytes > MOST_TASKS * aws_limits.MAX_PART_BYTES:
            raise ValueError(f"masks of {stream.nbytes} bytes are too long for {MOST_TASKS} parts")
        return stream

    @property
    def nbytes(self) -> int:
        """The number of bytes."""
        return self.elements * self.ring_bits // 8

    @property
    def spans(self) -> tuple[Span, ...]:
        """The masks as a layout of the kernel: each byte is one of the stream."""
        return (Span(in_ring(f"F{self.ring_bits}", self.ring_bits), 0, self.nbytes),)

    def shards(self, count: int) -> list[Shard]:
        """Cut it into the ranges of tasks."""
        return cut_shards(self.spans, self.nbytes, count)

    def tasks(self, clients: int) -> int:
        """Return the number of tasks, each of which uploads a part."""
        fewest = -(-self.nbytes // aws_limits.MAX_PART_BYTES)
        wanted = -(-clients * self.nbytes // TASK_BYTES)
        most = min(MOST_TASKS, self.nbytes // (5 * MIB))
        return max(1, fewest, min(wanted, most))


def _noise_terms(dp: Any, elements: int) -> int:
    try:
        return 0 if dp is None else parse_privacy(dp).grid(elements).terms
    except SpecError as error:
        raise ValueError(str(error)) from None
