"""Find the updates that can be averaged together."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout, Runs
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.rounds import arrivals, rejections
from gradshard_core.rounds.buffered_round import Address
from gradshard_core.rounds.header_survey import Facts, Surveyed
from gradshard_core.rounds.layout_check import LayoutExaminer, SentUpdate
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.stragglers.layers import Coverage


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


def limit_to_capacity(
    spec: RoundSpec, clients: Sequence[str]
) -> tuple[list[str], tuple[Rejection, ...]]:
    """Return which of the clients that have answered may take part, and reject those too many."""
    expected = [client for client in clients if spec.expects(client)]
    # Comparing layer by layer takes memory for all pairs. Opening has checked it for the expected.
    most = spec.expected if spec.compares_layers else spec.capacity
    places = most if len(expected) > spec.expected else len(expected)
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
    """Check updates, and tell the senders of rejected ones if the updates are given by address.

    Others may be replaced until a plan names them. So their senders are told once there is a plan,
    or if none can be made: a planning may be killed before that, and the next one take an update
    that has replaced a rejected one.

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
    examiner = LayoutExaminer(store, spec)
    examiner.begin(settled, whose)
    # One thread reads all large headers, again and for the first time.
    with ThreadPoolExecutor(1) as large_headers:
        read = arrivals.check_updates(
            store, address_of, unknown, spec, look=examiner.look, large_headers=large_headers
        )
        found = [*read, *_recalled(examiner, known, address_of)]
        updates = {update.client: update for update in found if isinstance(update, SentUpdate)}
        bad = [*rejected, *(update for update in found if isinstance(update, Rejection))]
        large_headers.submit(examiner.examine_all).result()
        if examiner.settled is None and updates:
            large_headers.submit(examiner.vote, updates).result()
        bad += examiner.take_out_unfit(updates, held)
        runs = large_headers.submit(examiner.runs, updates).result()

    if addresses is not None:
        told = keys if spec.inbox is None else None
        # Those that did not come into the survey were told with its plan.
        untold = bad if surveyed is None else bad[len(rejected) :]
        rejections.reject_all(store, untold, lambda client: told or address_of(client).keys)
    contributors = _contributors(spec, updates.values(), runs, address_of)
    return Admission(contributors, examiner.of_result, tuple(bad), examiner.coverage(updates))


def _recalled(
    examiner: "LayoutExaminer", known: Mapping[str, Facts], address_of: Callable[[str], Address]
) -> Iterator[SentUpdate | Rejection]:
    """Return what tasks have read of frozen updates."""
    for client, facts in known.items():
        source = address_of(client).source
        if isinstance(facts, str) and source is not None:
            yield Rejection(client, facts, source.etag)
        elif isinstance(facts, Surveyed) and source is not None:
            yield examiner.recall(client, source, facts)


def _contributors(
    spec: RoundSpec,
    updates: Iterable[SentUpdate],
    runs: Mapping[bytes, Runs],
    address_of: Callable[[str], Address],
) -> tuple[Contributor, ...]:
    """Return contributors without weights; ``runs`` are those of each layout without a header."""

    @cache  # of a hundred thousand updates, a few differ
    def runs_at(layout: bytes, data_offset: int) -> Runs:
        return runs[layout].moved(data_offset)

    return tuple(
        Contributor(
            client=update.client,
            source=update.source,
            samples=spec.counted(update.samples),
            weight=0.0,
            runs=runs_at(update.layout, update.data_offset),
            report=update.report if spec.takes_reports else None,
            staleness=address_of(update.client).staleness,
            # It follows from the update itself, and the manifest of a private round hides that.
            codec_error=None if spec.dp else update.codec_error,
            share=update.share,
        )
        for update in updates
    )
