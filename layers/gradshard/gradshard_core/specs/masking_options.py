"""The terms of masked rounds: the encoding, and the keeper whose key seeds are sealed to."""

import hashlib
import json
import math
import re
import sys
from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from gradshard_core.aggregation.fixed_point import FixedPoint, RingEncoding
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.errors import SpecError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.masked_updates import elements_of, roster_digest
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.privacy.noisy_fixed_point import NoisyFixedPoint
from gradshard_core.privacy.privacy_mechanism import PrivacyMechanism, parse_privacy

if TYPE_CHECKING:
    from gradshard_core.specs.round_spec import RoundSpec

MASKED: Final = "masked"
"""How contributors of masked rounds are weighed: by counts that nobody sees."""

LEAST_MASKED: Final = 2
"""The sum over one client is its update."""

DEFAULT_BITS: Final = 16
DEFAULT_RING_BITS: Final = 32
DECIDED_BY_DP: Final = {
    "bound": "updates are clipped to dp's clip",
    "bits": "dp's noise decides how fine the encoding is",
    "max_samples": "dp counts every client alike",
}
"""Fields of the terms that follow from dp, and the reasons."""

MASKING_EXAMPLE: Final = '{"bound": 1.0, "max_samples": 1000, "keeper": "9c1d…"}'


class MaskingTerms(NamedTuple):
    """The terms with which a masked round is opened, and to which every client agrees.

    Parameters
    ----------
    bound, bits, ring_bits, max_samples
        The encoding: :class:`gradshard_core.aggregation.fixed_point.FixedPoint`.
    keeper
        The keeper's public key, in hexadecimal.
    dp
        How updates are clipped, and the noise that the keeper adds; None for none. The bound is its
        clip then, ``bits`` is 0, and ``max_samples`` is 1.
    """

    bound: float
    bits: int
    ring_bits: int
    max_samples: int
    keeper: str
    dp: PrivacyMechanism | None = None

    def fixed(self, clients: int, elements: int) -> RingEncoding:
        """Return the encoding for a round of at most so many clients, and elements of an update.

        Raises
        ------
        SpecError
            A number is out of its bounds, or the ring has no room for so many.
        """
        if self.dp is not None:
            return NoisyFixedPoint(self.dp, elements, self.ring_bits, clients)
        return FixedPoint(self.bound, self.bits, self.ring_bits, clients, self.max_samples)

    def to_json(self) -> dict[str, Any]:
        """Return them as JSON, without ``dp`` if there is none."""
        stated = self._asdict()
        del stated["dp"]
        return stated if self.dp is None else stated | {"dp": self.dp.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        dp = fields.get("dp")
        stated = {name: fields[name] for name in cls._fields if name != "dp"}
        return cls(**stated, dp=None if dp is None else parse_privacy(dp))

    def encoding(self, layout_digest: str, elements: int) -> str:
        """Return encoding and layout as the text that seeds are sealed with.

        Client and keeper write the same: JSON without spaces, its names sorted.
        """
        stated = self.to_json() | {"layout": layout_digest, "elements": elements}
        del stated["keeper"]  # the seed is sealed to it
        return json.dumps(stated, sort_keys=True, separators=(",", ":"))


class Agreement(NamedTuple):
    """The conditions to which a client of a masked round agrees when it seals its seed.

    It has the roster's digest in place of the ids, so a client without AWS credentials need not
    learn who else takes part.

    Parameters
    ----------
    terms
        The terms with which the round was opened.
    clients, roster
        The number of clients on the roster, and their digest
        (:func:`gradshard_core.formats.masked_updates.roster_digest`).
    min_clients
        The fewest updates that may be added up.
    """

    terms: MaskingTerms
    clients: int
    roster: str
    min_clients: int

    @classmethod
    def of(cls, spec: "RoundSpec") -> Self | None:
        """Return what a round asks its clients to agree to; None if it is not masked."""
        if spec.masked is None or isinstance(spec.clients, int):
            return None
        return cls(spec.masked, spec.expected, roster_digest(spec.clients), spec.min_clients)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self._asdict() | {"terms": self.terms.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises
        ------
        SpecError
            A field is out of its bounds.
        """
        terms = parse_masking(fields["terms"])
        found = cls(terms, fields["clients"], fields["roster"], fields["min_clients"])
        if type(found.clients) is not int or type(found.min_clients) is not int:
            raise SpecError("masked: clients and min_clients are not whole numbers")
        if not re.fullmatch(r"[0-9a-f]{64}", str(found.roster)):
            raise SpecError("masked: roster is no SHA-256 in hexadecimal")
        terms.fixed(found.clients, elements=1)
        return found


class Masking(NamedTuple):
    """The plan's part of a masked round.

    Parameters
    ----------
    terms
        The terms with which the round was opened.
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
    def fixed(self) -> RingEncoding:
        """The encoding of elements."""
        return self.terms.fixed(self.clients, self.elements)

    @property
    def answer_bytes(self) -> int:
        """The size of the keeper's answer: the layout's elements, and one for the count."""
        return (self.elements + 1) * self.terms.ring_bits // 8

    def total_of(self, masked_counts: Sequence[int], last: bytes) -> int:
        """Return the sum of the contributors' counts.

        Parameters
        ----------
        masked_counts
            Their counts, masked.
        last
            The last element of the keeper's answer: the sum of those masks.

        Raises
        ------
        UpdateError
            It cannot be the sum of so many counts.
        """
        masks = int.from_bytes(last, "little")
        total: int = (sum(masked_counts) - masks) % 2**self.terms.ring_bits
        self.fixed.check_total(total, len(masked_counts))
        return total

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
    fields = _with_defaults(stated)
    for name in MaskingTerms._fields:
        if fields.get(name) is None and name != "dp":
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
    if abs(bound) > sys.float_info.max:  # whole numbers in JSON have no end
        raise SpecError("masked: bound is too large for a number of 64 bits")
    keeper = fields["keeper"]
    if not isinstance(keeper, str) or not re.fullmatch(r"[0-9a-f]{64}", keeper):
        raise SpecError(
            f"masked: keeper is {keeper!r}, not a public key of 64 hexadecimal digits, which "
            "`gradshard keeper key` prints"
        )
    return MaskingTerms(**fields | {"bound": float(bound)})


def _with_defaults(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with those that may be left out, and those that follow from dp."""
    fields = {"ring_bits": DEFAULT_RING_BITS, **stated}
    if stated.get("dp") is None:
        return {"bits": DEFAULT_BITS, **fields, "dp": None}
    mechanism = parse_privacy(stated["dp"])
    if mechanism.adaptation is not None:
        raise SpecError("masked: leave out quantile of dp: nobody sees which updates were clipped")
    decided = {"bound": mechanism.clip, "bits": 0, "max_samples": 1}
    for name, reason in DECIDED_BY_DP.items():
        if fields.setdefault(name, decided[name]) != decided[name]:
            raise SpecError(f"masked: leave out {name}: {reason}")
    return {**fields, "dp": mechanism}


def check_layout(terms: MaskingTerms, clients: int, layout: Layout) -> None:
    """Check that updates of a layout can be masked.

    Raises
    ------
    SpecError
        A tensor is of integers, or the largest sum that the ring holds is too large for its type:
        garbage from a client would make an infinity of it.
    """
    fixed = terms.fixed(clients, elements_of(layout))
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

NOT_MASKED: Final = {
    "inbox": "a seed is sealed for one round, and a buffered training has none",
    "rule": "rules look at single updates, or at sums over few clients",
    "weights": "clients multiply by their counts before they mask",
    "order": "sums in a ring have the same bits in any order",
    "eager": "the keeper answers once, for all contributors together",
    "assignments": "they are computed from what single clients report",
    "codecs": "a mask has no shorter form",
    "allow_nonfinite": "the encoding has no NaN and no infinity",
    "max_samples": "nobody sees how many samples a client counts, and the encoding bounds them",
    "updates_from": "a seed is summed once, in the round that it was sealed for",
}
"""Options that masked rounds cannot have, and the reasons."""

NOT_IN_MASKED_TRAININGS: Final = {
    "evaluate_every": "evaluations send each client's metrics in the clear",
    "stop": "masked updates have no metrics to stop by",
}
"""Options that trainings with masked rounds cannot have, and the reasons."""


def check_unused(options: Container[str]) -> None:
    """Check the names of the options that are given beside ``masked``.

    Raises
    ------
    SpecError
        One does not go with masks.
    """
    for name, reason in NOT_MASKED.items():
        if name in options:
            raise SpecError(f"masked: leave out {name}: {reason}")


def check_masked(spec: "RoundSpec", defaults: Mapping[str, Any]) -> None:
    """Check the options of a masked round: nobody can look at its updates.

    ``defaults`` are the values of the options that are not given.

    Raises
    ------
    SpecError
        An option does not go with masks, or is missing.
    """
    if spec.masked is None:
        return
    if isinstance(spec.clients, int):
        raise SpecError(
            "masked needs the clients' ids, not their number: clients seal their seeds for a "
            "roster, and the keeper knows who is enrolled"
        )
    if spec.layout is None and spec.server_optimizer is None:
        raise SpecError(
            "masked needs a layout, by which clients encode their updates: open the round with it "
            "(layout, or --layout FILE), or give a server_optimizer, whose model has one"
        )
    if spec.min_clients < LEAST_MASKED:
        raise SpecError(
            f"min_clients is {spec.min_clients}, and the sum over one client is its update: give "
            f"at least {LEAST_MASKED}"
        )
    check_unused({n for n in NOT_MASKED if getattr(spec, n) != defaults[n]})
    if spec.masked.dp != spec.dp:
        raise SpecError("masked: dp is an option of its own, beside masked")
    spec.masked.fixed(spec.expected, elements=1)
    if spec.layout is not None:
        check_layout(spec.masked, spec.expected, spec.layout)
