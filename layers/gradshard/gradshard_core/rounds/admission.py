"""Admission to a round: find the updates that can be averaged together."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final, NamedTuple

from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.reordered_reads import ADVICE, MAX_RUNS, Disorder
from gradshard_core.errors import GradshardError, PlanError, UpdateError
from gradshard_core.formats.compressed_updates import (
    EncodedLayout,
    EncodedRuns,
    check_taken,
    further_runs,
    parse_codec_error,
)
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.formats.layout import Layout, Runs
from gradshard_core.formats.masked_updates import Share, masked_layout
from gradshard_core.planning.masking_options import check_layout
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.planning.round_spec import RoundSpec
from gradshard_core.rounds import arrivals, rejections
from gradshard_core.rounds.arrivals import Update
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.header_survey import Facts, Surveyed
from gradshard_core.rounds.layout_vote import difference, majority
from gradshard_core.rounds.seen_layouts import SeenLayout, SeenLayouts, digests_of
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.layers import Coverage, Layer, coverage_of, layers_of
from gradshard_core.stragglers.salf import check_usable
from gradshard_core.stragglers.training_report import Report, parse_report

NAMED: Final = 20
"""Clients that an error names."""


class QuorumError(GradshardError):
    """Fewer good updates than the round's ``min_clients``."""


class Admission(NamedTuple):
    """The updates that take part, and those that do not.

    Parameters
    ----------
    contributors
        The good updates, without weights yet.
    layout
        The round's; None while there is no good update.
    rejected
        The bad ones.
    coverage
        The layers that each contributor of partial updates holds.
    """

    contributors: tuple[Contributor, ...]
    layout: Layout | None
    rejected: tuple[Rejection, ...]
    coverage: dict[str, Coverage]


def answered_clients(store: S3Store, keys: RoundKeys, spec: RoundSpec) -> list[str]:
    """List the clients that sent an update, or some layers of one if the round takes those."""
    sent = arrivals.sent_to(keys, spec)
    answered = arrivals.arrived(store, sent)
    if not spec.takes_partial:
        return answered
    return sorted({*answered, *arrivals.progressed(store, sent)})


def limit_to_expected(
    spec: RoundSpec, clients: Sequence[str]
) -> tuple[list[str], tuple[Rejection, ...]]:
    """Return which of the clients that have answered may take part, and reject those too many."""
    expected = [client for client in clients if spec.expects(client)]
    places = spec.capacity if len(expected) > spec.expected else len(expected)
    reason = f"the round takes {places} clients, and others come before this one"
    return expected[:places], tuple(Rejection(client, reason) for client in expected[places:])


def admit(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec,
    clients: Sequence[str],
    *,
    settled: Layout | None,
    whose: str,
    held: Sequence[Contributor] = (),
    rejected: Sequence[Rejection] = (),
    addresses: Mapping[str, Address] | None = None,
    surveyed: Mapping[str, Facts] | None = None,
) -> Admission:
    """Check updates, and tell the senders of those that are rejected.

    Parameters
    ----------
    store, keys, spec
        The round.
    clients
        The clients whose updates are there, and may take part, sorted.
    settled, whose
        The layout that the round has already, if it has one, and what it comes from.
    held
        The contributors that an eager round has already.
    rejected
        The updates that may not.
    addresses
        Where the updates are, in a buffered training or if they are frozen; by default, where they
        were sent to.
    surveyed
        What tasks have read of the updates, by client; the others are read now.

    Raises
    ------
    PlanError
        The round was opened without a layout, and its updates have no majority's.
    """
    elsewhere = Address(arrivals.sent_to(keys, spec))

    def address_of(client: str) -> Address:
        return (addresses or {}).get(client, elsewhere)

    known = surveyed or {}
    unknown = [client for client in clients if known.get(client) is None]
    examiner = _Examiner(store, spec)
    examiner.begin(settled, whose)
    # One thread reads all large headers, again and for the first time.
    with ThreadPoolExecutor(1) as large_headers:
        read = arrivals.check_updates(
            store, address_of, unknown, spec, look=examiner.look, large_headers=large_headers
        )
        found = [*read, *_recalled(examiner, known, address_of)]
        updates = {update.client: update for update in found if isinstance(update, _Sent)}
        bad = [*rejected, *(update for update in found if isinstance(update, Rejection))]
        large_headers.submit(examiner.examine_all).result()
        if examiner.settled is None and updates:
            large_headers.submit(examiner.vote, updates).result()
        bad += examiner.take_out_unfit(updates, held)
        runs = large_headers.submit(examiner.runs, updates).result()

    @cache  # of a hundred thousand updates, a few differ
    def runs_at(layout: bytes, data_offset: int) -> Runs:
        return runs[layout].moved(data_offset)

    told = keys if spec.inbox is None else None
    rejections.reject_all(store, bad, lambda client: told or address_of(client).keys)
    contributors = tuple(
        _contributor(spec, update, runs_at(update.layout, update.data_offset), address_of)
        for update in updates.values()
    )
    coverage = {
        client: covered
        for client, update in updates.items()
        if (covered := examiner.findings[update.layout].covered) is not None
    }
    return Admission(contributors, examiner.of_result, tuple(bad), coverage)


def check_quorum(admission_result: Admission, spec: RoundSpec, missing: Sequence[str]) -> None:
    """Check that enough clients take part.

    Raises
    ------
    QuorumError
        They are too few; the text says who is missing, and why others were rejected.
    """
    count = len(admission_result.contributors)
    # To know that a round of drawn clients had a quorum would be to know something of the draw.
    if count >= spec.min_clients or spec.is_drawn:
        return
    updates = "update" if count == 1 else "updates"
    text = f"{count} good {updates}, but min_clients is {spec.min_clients}"
    if missing:
        text += f"; missing: {first_of(missing, ', ')}"
    if admission_result.rejected:
        reasons = [
            f"{rejection.client}: {rejection.reason}" for rejection in admission_result.rejected
        ]
        text += f"; rejected: {first_of(reasons, '; ')}"
    raise QuorumError(text)


def first_of(names: Sequence[str], separator: str) -> str:
    """Join names, not so many that an error's text would be cut off (:data:`NAMED`)."""
    more = len(names) - NAMED
    return separator.join(names[:NAMED]) + (f"{separator}and {more} more" if more > 0 else "")


class _Sent(NamedTuple):
    """A good update: what is kept of it, which is little whatever its client sent.

    ``layout`` is the digest of its layout as it is stored, and ``data_offset`` where its tensor
    bytes begin.
    """

    client: str
    source: ObjectVersion
    samples: int
    report: Report | None
    layout: bytes
    data_offset: int
    codec_error: float | None
    share: Share | None


def _recalled(
    examiner: "_Examiner", known: Mapping[str, Facts], address_of: Callable[[str], Address]
) -> Iterator[_Sent | Rejection]:
    """Return what tasks have read of frozen updates."""
    for client, facts in known.items():
        source = address_of(client).source
        if isinstance(facts, str) and source is not None:
            yield Rejection(client, facts, source.etag)
        elif isinstance(facts, Surveyed) and source is not None:
            yield examiner.recall(client, source, facts)


def _contributor(
    spec: RoundSpec, update: _Sent, runs: Runs, address_of: Callable[[str], Address]
) -> Contributor:
    """Return a contributor without a weight."""
    return Contributor(
        client=update.client,
        source=update.source,
        samples=spec.counted(update.samples),
        weight=0.0,
        runs=runs,
        report=update.report if spec.takes_reports else None,
        staleness=address_of(update.client).staleness,
        # It follows from the update itself, and the manifest of a private round hides that.
        codec_error=None if spec.dp else update.codec_error,
        share=update.share,
    )


class _Findings(NamedTuple):
    """The comparison of a layout with the round's.

    Parameters
    ----------
    difference
        The first difference; None if there is none.
    covered
        The layers that it has, in a round of partial updates.
    broken
        The reason why its layers cannot be used.
    further
        The number of its runs beyond one.
    is_shared
        Whether all updates with this layout share the table of their runs.
    excess
        The reason why they cost too much.
    """

    difference: str | None = None
    covered: Coverage | None = None
    broken: str | None = None
    further: int = 0
    is_shared: bool = False
    excess: str | None = None


class _Examiner:
    """Compares updates' layouts with the round's, each layout once, and forgets the large ones."""

    def __init__(self, store: S3Store, spec: RoundSpec) -> None:
        self.settled: Layout | None = None
        """The layout that updates must have."""
        self.of_result: Layout | None = None
        """The layout of the result: another one where updates are masked."""
        self.findings: dict[bytes, _Findings] = {}
        self._spec, self._whose, self._stored = spec, "", b""
        self._layers: tuple[Layer, ...] = ()
        self._layouts = SeenLayouts(store)
        self._seen: dict[bytes, SeenLayout] = {}

    def begin(self, layout: Layout | None, whose: str) -> None:
        """Take the layout that the round has already, if it has one, and what it comes from.

        Raises
        ------
        PlanError
            It has none, and its updates may not decide.
        """
        if layout is None:
            layout, whose = self._spec.layout, "the one the round was opened with"
        if layout is not None:
            self._settle(layout, whose)
        elif (
            self._spec.why_layout_is_needed is not None
        ):  # opened by a version that did not ask for a layout
            raise PlanError(self._spec.why_layout_is_needed)

    def _settle(self, layout: Layout, whose: str) -> None:
        self.of_result = layout
        masked = self._spec.masked
        if masked is not None:
            check_layout(masked, self._spec.expected, layout)
            layout, whose = masked_layout(layout, masked.ring_bits), f"{whose}, masked"
        self.settled, self._whose = layout, whose
        self._stored = digests_of(layout).stored
        self._layers = layers_of(layout, self._spec.layers) if self._spec.takes_partial else ()

    def look(self, update: Update) -> _Sent:
        """Note an update's layout, and examine it if the round's is known; threads may share it."""
        client, source, header, samples, share = update
        seen = self._layouts.note(header, source)
        stored = seen.digests.stored
        self._seen[stored] = seen
        if self.settled is not None and stored not in self.findings:
            self.findings[stored] = self._examine(self.settled, header.layout)
        report = parse_report(samples, header.metadata) if self._spec.takes_reports else None
        error = (
            parse_codec_error(header.metadata) if isinstance(header.layout, EncodedLayout) else None
        )
        return _Sent(client, source, samples, report, stored, header.data_offset, error, share)

    def recall(self, client: str, source: ObjectVersion, facts: Surveyed) -> _Sent:
        """Note the layout of an update whose header a task has read."""
        stored = facts.digests.stored
        if stored not in self._seen:
            self._seen[stored] = self._layouts.recall(facts.digests, source, facts.data_offset)
        return _Sent(
            client,
            source,
            facts.samples,
            facts.report,
            stored,
            facts.data_offset,
            facts.codec_error,
            None,
        )

    def examine_all(self) -> None:
        """Examine the layouts that are not examined yet, if the round's is known."""
        if self.settled is None:
            return
        for stored in self._seen.keys() - self.findings.keys():
            self.findings[stored] = self._examine(self.settled, self._read(stored, self.settled))

    def vote(self, updates: Mapping[str, _Sent]) -> None:
        """Take the layout of the majority, and examine all.

        Raises
        ------
        PlanError
            There is none.
        """
        layout, whose = majority({c: self._seen[sent.layout] for c, sent in updates.items()})
        self._settle(layout, whose)
        self.examine_all()

    def take_out_unfit(
        self, updates: dict[str, _Sent], held: Sequence[Contributor]
    ) -> list[Rejection]:
        """Take the updates out that cannot be averaged with the others, or with those held."""
        if not updates:
            return []
        unfit = self._unfit(updates, further_runs(contributor.runs for contributor in held))
        sources = {client: updates.pop(client).source for client in unfit}
        return [
            Rejection(client, f"{source.key}: {unfit[client]}", source.etag)
            for client, source in sources.items()
        ]

    def _unfit(self, updates: Mapping[str, _Sent], before: int) -> dict[str, str]:
        """Say which updates cannot be averaged with the others, and why.

        ``before`` is how many further runs the contributors have that are taken already.
        """
        why: dict[str, str] = {}
        for client in sorted(updates):
            sent = updates[client]
            reason = self.findings[sent.layout].difference or self._unusable(sent)
            if reason is not None:
                why[client] = reason
        agreeing = {c: self.findings[s.layout] for c, s in updates.items() if c not in why}
        layouts = {client: sent.layout for client, sent in updates.items()}
        return why | _disordered(agreeing, layouts, before, is_drawn=self._spec.is_drawn)

    def runs(self, updates: Mapping[str, _Sent]) -> dict[bytes, Runs]:
        """Return the runs of updates by layout, in objects without headers."""
        if self.settled is None:
            return {}
        layouts = dict.fromkeys(sent.layout for sent in updates.values())
        return {d: self.settled.runs_in(self._read(d, self.settled), 0) for d in layouts}

    def _read(self, stored: bytes, settled: Layout) -> Layout:
        return settled if stored == self._stored else self._seen[stored].read()

    def _examine(self, settled: Layout, layout: Layout) -> _Findings:
        partial = self._spec.takes_partial
        differs = difference(layout, settled, self._whose, partial=partial)
        if differs is not None:
            return _Findings(differs)
        try:
            check_taken(layout, self._spec.codecs or ())
        except UpdateError as error:
            return _Findings(broken=str(error))
        covered = None
        if partial:
            try:
                covered = coverage_of(self._layers, layout.shapes)
            except UpdateError as error:
                return _Findings(broken=str(error))
        runs = settled.runs_in(layout, 0)
        further, excess = max(len(runs) - 1, 0), None
        if 0 < further <= MAX_RUNS:
            excess = Disorder.of(runs, settled.nbytes).excess(layout.nbytes)
        is_shared = isinstance(runs, EncodedRuns)
        return _Findings(covered=covered, further=further, is_shared=is_shared, excess=excess)

    def _unusable(self, sent: _Sent) -> str | None:
        """Say why the rule has no use for an update; None if it has."""
        found = self.findings[sent.layout]
        try:
            if self._spec.weights == STEPS:
                _check_steps(sent.report)
            if (
                found.broken is None
                and self._spec.partial_rule is not None
                and found.covered is not None
            ):
                check_usable(self._spec.partial_rule, self._layers, sent.client, found.covered)
        except UpdateError as error:
            return str(error)
        return found.broken


def _disordered(
    findings: Mapping[str, _Findings],
    layouts: Mapping[str, bytes],
    before: int,
    *,
    is_drawn: bool,
) -> dict[str, str]:
    """Say whose tensors stand in an order that costs too much, and why.

    Those with the most runs are left out until the rest, with as many as there were before, fits
    into the tasks' memory. Compressed updates that are stored alike share their runs.

    Raises
    ------
    PlanError
        The updates of clients that were drawn in secret do not fit. If some were left out, what one
        client adds would depend on whether another was drawn.
    """
    owners: dict[bytes | str, list[str]] = {}
    for client, found in findings.items():
        if found.further:
            owners.setdefault(layouts[client] if found.is_shared else client, []).append(client)
    counts = {owner: findings[clients[0]].further for owner, clients in owners.items()}
    total = before + sum(counts.values())
    why: dict[str, str] = {}
    for owner in sorted(counts, key=lambda owner: counts[owner], reverse=True):
        if total <= MAX_RUNS:
            break
        if is_drawn and counts[owner] <= MAX_RUNS:
            raise PlanError(
                f"tensors stand in other orders than the round's, in {total} further stretches, "
                f"and a round may have {MAX_RUNS}: {ADVICE}"
            )
        reason = (
            f"its tensors stand in another order than the round's, in {counts[owner] + 1} separate "
            f"stretches; with {total - counts[owner]} further ones of other updates these are over "
            f"the {MAX_RUNS} that a round may have; {ADVICE}"
        )
        why |= dict.fromkeys(owners[owner], reason)
        total -= counts[owner]
    for client, found in findings.items():
        if client not in why and found.excess is not None:
            why[client] = found.excess
    return why


def _check_steps(report: Report | None) -> None:
    if report is None or report.steps is None:
        notes = report.notes if report else ()
        note = next((note for note in notes if note.startswith("steps")), "steps is missing")
        raise UpdateError(f"weights by steps need the client's local steps in its metadata: {note}")
