"""Admission to a round: find the updates that can be averaged together."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from gradshard_core.aggregation.arithmetic import STEPS
from gradshard_core.aggregation.gathering import ADVICE, MAX_RUNS, Disorder
from gradshard_core.errors import GradshardError, PlanError, UpdateError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.formats.layout import Layout, Runs
from gradshard_core.planning.plan import Contributor, Rejection
from gradshard_core.planning.spec import RoundSpec
from gradshard_core.rounds import arrivals
from gradshard_core.rounds.arrivals import Update
from gradshard_core.rounds.layout_vote import differences, majority
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.assignments import parse_report
from gradshard_core.stragglers.layers import Coverage, coverage_of, layers_of
from gradshard_core.stragglers.salf import check_usable

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
        Which layers each contributor of partial updates holds.
    """

    contributors: tuple[Contributor, ...]
    layout: Layout | None
    rejected: tuple[Rejection, ...]
    coverage: dict[str, Coverage]


def answered_clients(store: S3Store, keys: RoundKeys, spec: RoundSpec) -> list[str]:
    """List the clients that sent an update, or some layers of one if the round takes those."""
    sent = arrivals.sent_to(keys, spec)
    answered = arrivals.arrived(store, sent)
    if spec.rule is None:
        return answered
    return sorted({*answered, *arrivals.progressed(store, sent)})


def admit(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec,
    clients: Sequence[str],
    *,
    settled: Layout | None,
    whose: str = "",
    held: Sequence[Contributor] = (),
) -> Admission:
    """Check updates, and tell the senders of those that are rejected.

    Parameters
    ----------
    store, keys, spec
        The round.
    clients
        Whose updates are there, sorted.
    settled, whose
        The layout that the round has already, if it has one, and what it comes from.
    held
        The contributors that an eager round has already.

    Raises
    ------
    PlanError
        The round was opened without a layout, and its updates have no majority's.
    """
    entitled = [client for client in clients if spec.expects(client)]
    places = spec.capacity if len(entitled) > spec.expected else len(entitled)
    rejected = [
        Rejection(client, f"the round takes {places} clients, and others come before this one")
        for client in entitled[places:]
    ]
    updates: dict[str, Update] = {}
    sent = arrivals.sent_to(keys, spec)
    partial = spec.rule is not None
    for update in arrivals.check_updates(store, sent, entitled[:places], partial=partial):
        if isinstance(update, Update):
            updates[update.client] = update
        elif update is not None:
            rejected.append(update)
    layout, unfit = _agree(spec, updates, settled, whose)
    coverage: dict[str, Coverage] = {}
    if layout is not None:
        agreeing = {c: update for c, update in updates.items() if c not in unfit}
        unfit |= _unusable(spec, layout, agreeing, coverage)
        agreeing = {c: update for c, update in updates.items() if c not in unfit}
        before = sum(len(contributor.runs) - 1 for contributor in held)
        unfit |= _disordered(layout, agreeing, before)
    for client, reason in unfit.items():
        source = updates.pop(client).source
        rejected.append(Rejection(client, f"{source.key}: {reason}", source.etag))
    arrivals.reject_all(store, keys, rejected)
    contributors = tuple(
        Contributor(
            client=update.client,
            source=update.source,
            samples=update.samples,
            weight=0.0,
            runs=_runs(layout, update),
            report=_report(spec, update),
        )
        for update in updates.values()
        if layout is not None
    )
    return Admission(contributors, layout, tuple(rejected), coverage)


def check_quorum(admission_result: Admission, spec: RoundSpec, missing: Sequence[str]) -> None:
    """Check that enough clients take part.

    Raises
    ------
    QuorumError
        They are too few; the text says who is missing, and why others were rejected.
    """
    count = len(admission_result.contributors)
    if count >= spec.min_clients:
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


def _agree(
    spec: RoundSpec, updates: dict[str, Update], settled: Layout | None, whose: str
) -> tuple[Layout | None, dict[str, str]]:
    """Return the round's layout, and how the updates differ from it that do.

    Without one that is settled or stated, whole updates decide by majority.

    Raises
    ------
    PlanError
        They do not, or their votes would not count.
    """
    layouts = {client: update.header.layout for client, update in updates.items()}
    if settled is None and spec.layout is not None:
        settled, whose = spec.layout, "the one the round was opened with"
    if settled is None:
        if spec.undecided is not None:  # opened by a version that did not ask for a layout
            raise PlanError(spec.undecided)
        if not layouts:
            return None, {}
        settled, whose = majority(layouts)
    return settled, differences(layouts, settled, whose, partial=spec.rule is not None)


def _unusable(
    spec: RoundSpec, layout: Layout, updates: dict[str, Update], coverage: dict[str, Coverage]
) -> dict[str, str]:
    """Say which updates the rule has no use for, and why; note what the others cover."""
    why: dict[str, str] = {}
    layers = layers_of(layout, spec.layers) if spec.rule is not None else ()
    for client, update in updates.items():
        try:
            if spec.weights == STEPS:
                _check_steps(update)
            if spec.rule is not None:
                covered = coverage_of(layers, update.header.layout.shapes)
                check_usable(spec.rule, layers, covered)
                coverage[client] = covered
        except UpdateError as error:
            why[client] = str(error)
    return why


def _disordered(layout: Layout, updates: dict[str, Update], before: int) -> dict[str, str]:
    """Say whose tensors stand in an order that costs too much, and why.

    Those with the most runs are left out until the rest, with as many as there were before, fits
    into the tasks' memory.
    """
    counts = {client: len(_runs(layout, update)) - 1 for client, update in updates.items()}
    total, why = before + sum(counts.values()), {}
    for client in sorted(counts, key=lambda client: counts[client], reverse=True):
        if total <= MAX_RUNS:
            break
        why[client] = (
            f"its tensors stand in another order than the round's, in {counts[client] + 1} runs; "
            f"with {total - counts[client]} further ones of other updates they are over the "
            f"{MAX_RUNS} that a round may have; {ADVICE}"
        )
        total -= counts[client]
    for client, update in updates.items():
        if counts[client] > 0 and client not in why:
            disorder = Disorder.of(_runs(layout, update), layout.nbytes)
            excess = disorder.excess(update.header.layout.nbytes)
            if excess is not None:
                why[client] = excess
    return why


def _runs(layout: Layout, update: Update) -> Runs:
    return layout.runs_in(update.header.layout, update.header.data_offset)


def _check_steps(update: Update) -> None:
    report = parse_report(update.samples, update.header.metadata)
    if report.steps is None:
        note = next((note for note in report.notes if note.startswith("steps")), "steps is missing")
        raise UpdateError(f"weights by steps need the client's local steps in its metadata: {note}")


def _report(spec: RoundSpec, update: Update) -> dict[str, Any] | None:
    if spec.assignments is None and spec.weights != STEPS:
        return None
    return asdict(parse_report(update.samples, update.header.metadata))
