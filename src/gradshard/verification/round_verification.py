"""Verify a round: recompute random byte ranges of its result from the updates, and compare bits.

The bits of a result depend on contributors, weights, rule and order alone, so anyone who may read
the updates can recompute any range of it, on any machine.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np

from gradshard.updates.uploads import Progress
from gradshard.utils.parallel import run_parallel
from gradshard.utils.text import format_size, pluralize
from gradshard.verification.range_recomputation import RangeRecomputer
from gradshard.verification.range_sampling import LEAST_RANGE_BYTES, RANGE_BYTES, Detection, Sample
from gradshard.verification.round_claim import Claim
from gradshard_core.aggregation import arithmetic
from gradshard_core.aggregation.kernel import NonFiniteSumError
from gradshard_core.aggregation.optimizer_step import NonFiniteModelError, state_layout
from gradshard_core.aggregation.sharding import clip
from gradshard_core.errors import GradshardError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.object_keys import StoredTensors
from gradshard_core.formats.tensor_layout import Layout, shorten
from gradshard_core.s3.store import S3Store

THREADS: Final = 16
"""Ranges recomputed at once; a range reads its updates one after another."""

MEMORY_BYTES: Final = 256 * 1024 * 1024
"""The bytes that the ranges of all threads may take if every update is in memory. That happens only
if a range has layers with different contributors."""

MOST_LISTED: Final = 20
"""Differences that a report lists; the others are counted."""

JOBS: Final = 1000
"""The sample is divided among the threads in about so many pieces."""


class Difference(NamedTuple):
    """The first wrong byte in a range of a published object.

    Parameters
    ----------
    key
        The object.
    tensor, element
        The tensor's name, and the position of the element in it.
    byte
        Its position behind the object's header.
    text
        The published value, and the value that follows from the updates.
    """

    key: str
    tensor: str
    element: int
    byte: int
    text: str


@dataclass(frozen=True)
class Verification:
    """The result of a verification.

    Parameters
    ----------
    round_id, contributors
        The round, and the number of its contributors.
    seed
        With it, anyone draws the same ranges.
    nbytes, ranges, range_bytes
        The size of the result's tensors, the number of ranges into which they are cut, and the
        size that no range is over.
    sampled_ranges, sampled_nbytes
        The number of recomputed ranges, and their bytes.
    objects
        The published objects whose bytes were compared.
    wrong_ranges, differences
        The number of ranges that differ, and the first difference in some of them.
    contradictions
        Statements of the manifest that the spec or the updates contradict.
    notes
        Statements about what could not be checked, with the reasons.
    detections
        The probabilities that this sample shows an error.
    """

    round_id: str
    contributors: int
    seed: str
    nbytes: int
    ranges: int
    range_bytes: int
    sampled_ranges: int
    sampled_nbytes: int
    objects: tuple[str, ...]
    wrong_ranges: int
    differences: tuple[Difference, ...]
    contradictions: tuple[str, ...]
    notes: tuple[str, ...]
    detections: tuple[Detection, ...]

    @property
    def is_correct(self) -> bool:
        """Whether nothing was found to be wrong."""
        return not (self.wrong_ranges or self.contradictions)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        fields = asdict(self)
        fields["differences"] = [difference._asdict() for difference in self.differences]
        return {"round": fields.pop("round_id"), "is_correct": self.is_correct, **fields}

    @property
    def extent(self) -> str:
        """The extent of the recomputation, as a clause."""
        return (
            f"{self.sampled_ranges:,} of {pluralize(self.ranges, 'range')}, "
            f"{format_size(self.sampled_nbytes)} of {format_size(self.nbytes)}, recomputed from "
            f"{pluralize(self.contributors, 'update')}"
        )

    @property
    def confidence(self) -> list[str]:
        """The probabilities that the sample shows an error: a statement for each detection."""
        statements = []
        for found in self.detections:
            what = "a single wrong byte"
            if found.ranges > 1:
                what = (
                    f"wrong bytes in {found.ranges:,} ranges, so {format_size(found.nbytes)} of "
                    "them wherever they are"
                )
            statements.append(f"{what} would have been found with {_percent(found.probability)}")
        return statements


def _percent(probability: float) -> str:
    """Return a probability, never rounded up to certainty."""
    if probability == 1:
        return "certainty"
    return f"a probability of {min(100 * probability, 99.99):.4g} %"


class VerificationError(GradshardError):
    """A round's result, or its manifest, is not what follows from its updates.

    Parameters
    ----------
    verification
        The result of the verification.
    """

    def __init__(self, verification: Verification) -> None:
        self.verification = verification
        found = verification
        facts = list(found.contradictions)
        if found.wrong_ranges:
            facts.append(
                f"{found.wrong_ranges:,} of {pluralize(found.sampled_ranges, 'range')} recomputed "
                "differ from what is published"
            )
            facts += [
                f"{d.key}: tensor {shorten(d.tensor)!r}, element {d.element}: {d.text}"
                for d in found.differences
            ]
        shown = facts[:MOST_LISTED]
        if len(facts) > len(shown):
            shown.append(f"and {len(facts) - len(shown)} more")
        super().__init__(f"round {found.round_id!r} is not what it claims: {'; '.join(shown)}")


def verify_claim(
    store: S3Store, claim: Claim, *, fraction: float, seed: str, progress: Progress | None = None
) -> Verification:
    """Recompute random ranges of a result, and compare them with what is published.

    Parameters
    ----------
    store
        The bucket.
    claim
        The round's claim.
    fraction
        The fraction of the result to recompute, over 0 and at most 1. At least one range is.
    seed
        Decides which ranges.
    progress
        Called with the bytes of the result that were recomputed, and how many will be.

    Raises
    ------
    SpecError
        The fraction is out of its bounds.
    ChangedObjectError
        An object is gone.
    """
    plan = claim.plan
    memory = MEMORY_BYTES // (THREADS * len(plan.contributors))
    sample = Sample.of(
        plan.layout.spans,
        plan.layout.nbytes,
        range_bytes=max(LEAST_RANGE_BYTES, min(RANGE_BYTES, memory)),
        fraction=fraction,
        seed=seed,
    )
    comparison = _Comparison(store, claim)
    ranges = [sample.range_of(number) for number in sample.numbers()]
    expected = sum(end - start for start, end in ranges)
    wrong, differences = _compare_ranges(comparison, ranges, _Counter(expected, progress))
    return Verification(
        round_id=plan.round_id,
        contributors=len(plan.contributors),
        seed=seed,
        nbytes=sample.nbytes,
        ranges=sample.total,
        range_bytes=sample.most_bytes,
        sampled_ranges=sample.count,
        sampled_nbytes=expected,
        objects=comparison.objects,
        wrong_ranges=wrong,
        differences=tuple(differences),
        contradictions=claim.contradictions,
        notes=claim.notes,
        detections=tuple(sample.detections()),
    )


def _compare_ranges(
    comparison: "_Comparison", ranges: Sequence[tuple[int, int]], counter: "_Counter"
) -> tuple[int, list[Difference]]:
    """Compare ranges in several threads.

    Returns
    -------
    tuple
        The number of ranges that differ, and the first ``MOST_LISTED`` differences.
    """
    stop = threading.Event()

    def compare(part: Sequence[tuple[int, int]]) -> list[list[Difference]]:
        found: list[list[Difference]] = []
        for start, end in part:
            if stop.is_set():
                break
            if differences := comparison.differences(start, end):
                found.append(differences)
            counter.add(end - start)
        return found

    size = -(-len(ranges) // JOBS)
    jobs = [partial(compare, ranges[at : at + size]) for at in range(0, len(ranges), size)]
    wrong = 0
    listed: list[Difference] = []
    try:
        for differing in run_parallel(jobs, THREADS, stop):
            wrong += len(differing)
            listed = sorted(chain(listed, *differing), key=attrgetter("key", "byte"))[:MOST_LISTED]
    finally:
        stop.set()
    return wrong, listed


class _Counter:
    """Counts bytes from several threads, and reports them."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, nbytes: int) -> None:
        with self._lock:
            self._done += nbytes
            if self._progress:
                self._progress(self._done, self._total)


class _Published(NamedTuple):
    """A published object, and the layout of its tensors."""

    tensors: StoredTensors
    layout: Layout
    is_state: bool = False


class _Comparison:
    """Compares recomputed ranges with published ones."""

    def __init__(self, store: S3Store, claim: Claim) -> None:
        self._claim = claim
        self._recomputer = RangeRecomputer(store, claim.plan)
        self._published = [_Published(claim.result, claim.layout)]
        if claim.next_model is not None:
            self._published.append(_Published(claim.next_model, claim.layout))
        if claim.state:
            layout = state_layout(claim.layout)
            self._published += [_Published(state, layout, is_state=True) for state in claim.state]

    @property
    def objects(self) -> tuple[str, ...]:
        """The keys of the published objects."""
        return tuple(published.tensors.source.key for published in self._published)

    def differences(self, start: int, end: int) -> list[Difference]:
        """Return the first difference of each object in a range; none if all bits are equal."""
        found: list[Difference] = []
        for published, expected in zip(self._published, self._recompute(start, end), strict=False):
            if isinstance(expected, Difference):
                return [*found, expected]
            difference = self._compare(published, start, end, expected)
            if difference is not None:
                found.append(difference)
        return found

    def _recompute(self, start: int, end: int) -> Iterator[bytearray | Difference]:
        """Yield the range of each published object, or why it cannot be."""
        result = self._published[0]
        try:
            average = self._recomputer.average(start, end)
        except NonFiniteSumError as error:
            yield _difference(result, error.position, "what follows from the updates is not finite")
            return
        yield average
        new = self._claim.plan.next_model
        if new is None:
            return
        try:
            yield from self._recomputer.model(new, start, end, average)
        except NonFiniteModelError as error:
            model = self._published[1]
            yield _difference(model, error.position, "what follows from the updates is not finite")

    def _compare(
        self, published: _Published, start: int, end: int, expected: bytearray
    ) -> Difference | None:
        if published.is_state:
            start, end = self._recomputer.state_range(start, end)
        found = self._recomputer.read(published.tensors, start, end)
        if found == expected:
            return None
        nan_is_nan = self._claim.plan.computation.allow_nonfinite
        at = first_difference(published.layout, start, expected, found, nan_is_nan=nan_is_nan)
        if at is None:
            return None
        position, theirs, ours = at
        return _difference(published, position, f"{theirs} is published, {ours} follows")


def first_difference(
    layout: Layout, start: int, expected: bytearray, found: bytearray, *, nan_is_nan: bool
) -> tuple[int, str, str] | None:
    """Return where two equal ranges of a layout first differ, and what they have there.

    Parameters
    ----------
    layout
        The layout.
    start
        The beginning of the ranges, on an element boundary.
    expected, found
        Their bytes.
    nan_is_nan
        Whether all NaN are equal. Which NaN an operation makes depends on the processor.

    Returns
    -------
    tuple
        The position of the element; what was found, and what was expected. None if nothing
        differs.
    """
    for span in clip(layout.spans, start, start + len(expected)):
        dtype = DTYPES[span.dtype]
        part = slice(span.start - start, span.end - start)
        pieces = [memoryview(data)[part] for data in (found, expected)]
        theirs, ours = (np.frombuffer(p, np.uint8).reshape(-1, dtype.size) for p in pieces)
        differ = (theirs != ours).any(axis=1)
        values = [arithmetic.widened(dtype, piece) for piece in pieces]
        if nan_is_nan:
            differ &= ~(np.isnan(values[0]) & np.isnan(values[1]))
        if differ.any():
            at = int(differ.argmax())
            texts = [
                f"{value[at]!s} (bytes {piece[at * dtype.size :][: dtype.size].hex()})"
                for value, piece in zip(values, pieces, strict=True)
            ]
            return span.start + at * dtype.size, texts[0], texts[1]
    return None


def _difference(published: _Published, position: int, text: str) -> Difference:
    tensor = published.layout.tensor_at(position)
    element = (position - tensor.start) // DTYPES[tensor.dtype].size
    return Difference(published.tensors.source.key, tensor.name, element, position, text)
