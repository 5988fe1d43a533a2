"""Compare the layouts of updates with the round's: which updates can be averaged together."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.reordered_reads import ADVICE, Disorder
from gradshard_core.errors import PlanError, UpdateError
from gradshard_core.formats.compressed_updates import (
    EncodedLayout,
    EncodedRuns,
    check_taken,
    further_runs,
    parse_codec_error,
)
from gradshard_core.formats.masked_updates import Share, masked_layout
from gradshard_core.formats.object_keys import ObjectVersion
from gradshard_core.formats.tensor_layout import Layout, Runs
from gradshard_core.limits.own_limits import MAX_RUNS
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.rounds.arrivals import Update
from gradshard_core.rounds.header_survey import Surveyed
from gradshard_core.rounds.layout_vote import difference, majority
from gradshard_core.rounds.seen_layouts import SeenLayout, SeenLayouts, digests_of
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import check_layout
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.client_report import Report, parse_report
from gradshard_core.stragglers.layers import Coverage, Layer, coverage_of, layers_of
from gradshard_core.stragglers.salf import check_usable


class SentUpdate(NamedTuple):
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


class LayoutExaminer:
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

    def look(self, update: Update) -> SentUpdate:
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
        return SentUpdate(client, source, samples, report, stored, header.data_offset, error, share)

    def recall(self, client: str, source: ObjectVersion, facts: Surveyed) -> SentUpdate:
        """Note the layout of an update whose header a task has read."""
        stored = facts.digests.stored
        if stored not in self._seen:
            self._seen[stored] = self._layouts.recall(facts.digests, source, facts.data_offset)
        return SentUpdate(
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

    def vote(self, updates: Mapping[str, SentUpdate]) -> None:
        """Take the layout of the majority, and examine all.

        Raises
        ------
        PlanError
            There is none.
        """
        layout, whose = majority(
            {c: self._seen[sent.layout] for c, sent in updates.items()},
            is_private=self._spec.dp is not None,
        )
        self._settle(layout, whose)
        self.examine_all()

    def take_out_unfit(
        self, updates: dict[str, SentUpdate], held: Sequence[Contributor]
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

    def _unfit(self, updates: Mapping[str, SentUpdate], before: int) -> dict[str, str]:
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

    def runs(self, updates: Mapping[str, SentUpdate]) -> dict[bytes, Runs]:
        """Return the runs of updates by layout, in objects without headers."""
        if self.settled is None:
            return {}
        layouts = dict.fromkeys(sent.layout for sent in updates.values())
        return {d: self.settled.runs_in(self._read(d, self.settled), 0) for d in layouts}

    def coverage(self, updates: Mapping[str, SentUpdate]) -> dict[str, Coverage]:
        """Return the layers that each update of a round of partial ones holds."""
        return {
            client: covered
            for client, sent in updates.items()
            if (covered := self.findings[sent.layout].covered) is not None
        }

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

    def _unusable(self, sent: SentUpdate) -> str | None:
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
