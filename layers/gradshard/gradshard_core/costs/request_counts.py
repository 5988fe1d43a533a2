"""Count the S3 requests of a round's small functions: those that run around its tasks."""

from collections.abc import Sequence
from typing import Final, NamedTuple

from gradshard_core.costs import large_round_limits
from gradshard_core.limits import aws_limits, state_machine_history
from gradshard_core.robust.rules import RobustRule

HEADS_BEFORE_LIST: Final = 20
"""Expected clients, not seen before, that an arrival looks for before it lists all. If there are no
others, it lists nothing. In larger rounds 12 would cost least, by 2 %."""

LOOKS_OF_A_LIST: Final = 12
"""Looks that cost less than a listing."""


class Lists(NamedTuple):
    """The objects of a round besides its plan and its result, mostly one for each client.

    Parameters
    ----------
    is_named
        Whether the round expects clients by their ids, and all of them. In another small round each
        arrival lists the updates.
    ids_in_pieces
        Whether the ids are stored in pieces.
    assigns
        Whether the round ends with assignments.
    has_speeds
        Whether they go on from those of a round before.
    shows_clipped
        Whether the manifest lists the clients whose updates a rule has clipped, at most all.
    rule
        The robust rule that leaves clients out, each of which can read why; None if none does.
    draws_noise
        Whether a key of noise is kept until the round ends.
    waits_again
        Whether the round waits more than once, so that each arrival reads its spec and plan.
    stores_headers
        Whether headers of the result, and of the optimizer's state, are too large for the plan.
    groups
        The clients of each group of an eager round, whose arrivals look for those of their group;
        empty if the round is not eager.
    """

    is_named: bool = True
    ids_in_pieces: bool = False
    assigns: bool = False
    has_speeds: bool = False
    shows_clipped: bool = False
    rule: RobustRule | None = None
    draws_noise: bool = False
    waits_again: bool = False
    stores_headers: bool = False
    groups: tuple[int, ...] = ()

    @property
    def stages(self) -> int:
        """The stages of the round if each begins before further clients arrive: the most."""
        groups = len(self.groups)
        return -(-groups // state_machine_history.stage_size(groups)) if groups else 1


NO_LISTS: Final = Lists()


class Requests(NamedTuple):
    """S3 requests by price; a LIST is priced as a PUT."""

    gets: int
    puts: int

    def plus(self, other: "Requests") -> "Requests":
        """Return the sum."""
        return Requests(self.gets + other.gets, self.puts + other.puts)


def count_requests(
    tasks: Sequence[int],
    clients: int,
    models: int = 0,
    before: Sequence[int] = (),
    lists: Lists = NO_LISTS,
) -> Requests:
    """Count the small functions' requests in a round that goes straight through.

    Arrivals come one after another to one warm function. In rounds of more than 1,000 clients, the
    number of others that an arrival looks for is its expected value.
    tests/unit/costs/test_request_counts.py compares the count with the functions' requests.

    Parameters
    ----------
    tasks
        The number of tasks of each level; those of the last level are the parts of the result.
    clients
        The number of clients that send an update, each one once.
    models
        Objects that are written beside the update, where it is applied.
    before
        The tasks of each pass before, which read headers or measured.
    lists
        The objects of the round besides its plan and its result.
    """
    below = tasks[:-1]
    looks, listings = _looks(clients, lists)
    is_complete = lists.is_named and not large_round_limits.is_surveyed(clients)
    counted = Requests(
        # Opening: a look for a client, and whether the call comes late, by plan and manifest. An
        # arrival: the callback with the terms, the update's header, and looks for others. Planning:
        # each header again, the plan there may be, the manifest, spec. Finalizing: plan, reports,
        # the result. And the callback, with which the last arrival resumes the round.
        gets=3 + 2 * clients + round(looks) + (clients + 3) + (sum(tasks) + 2) + 1,
        # Opening: spec, callback. An arrival: a listing, seldom. Planning: a listing, unless it is
        # known that all have answered; upload, plan, tasks. Finalizing: completion, manifest, and
        # partial sums.
        puts=2
        + _listed_by_arrivals(clients, listings, lists)
        + ((0 if is_complete else _pages(clients)) + 2 + len(tasks))
        + (2 + (_pages(sum(below)) if below else 0)),
    )
    if lists.stores_headers:  # planning writes them, and finalizing reads one for the new version
        counted = counted.plus(Requests(gets=models > 0, puts=1 + (models > 1)))
    further = _recording(clients, lists).plus(_in_pieces(clients, sum(tasks)))
    further = further.plus(_listed(clients, lists))
    if lists.waits_again:
        # An arrival: spec, plan, manifest, and an earlier rejection. Opening: no plan, no manifest.
        further = further.plus(Requests(4 * clients - 2, 0))
    if lists.groups:
        further = further.plus(_staging(clients, models, round(listings), lists))
    further = further.plus(_replanning(clients, before, models, lists))
    return counted.plus(_applying(models)).plus(further)


def _listed_by_arrivals(clients: int, listings: float, lists: Lists) -> int:
    """Return the requests of all listings of arrivals: of the marks, or of the updates."""
    if _is_recorded(clients, lists):
        return round(listings)
    if lists.groups:
        return sum(_pages_in_turn(clients, round(listings)))
    return round(listings * _pages(clients))


def _staging(clients: int, models: int, listings: int, lists: Lists) -> Requests:
    """Count the small functions' requests that an eager round makes because it has stages.

    Each stage is opened, planned and finalized once more.
    """
    later = lists.stages - 1
    pages = sum(_pages_in_turn(clients, lists.stages)[:later])
    # Opening again: the spec and the callback are there, and compared; the deadline, the plan.
    # Planning again: the plan twice, spec and manifest. Finalizing: the plan, in which groups are
    # missing. And the callback, with which an arrival resumes the round. For a model, opening and
    # planning read which version is current, and its header.
    gets = later * (6 + 4 + 1 + 1 + (3 + 3) * bool(models))
    # Opening the first time: a deadline that has passed. An arrival that lists the updates reads
    # the plan, for the groups that are awaited.
    gets += 1 + listings
    # Opening the first time lists no updates. Each time after: listing, spec, and callback twice;
    # planning: listing, plan, tasks.
    return Requests(gets, 1 + later * (3 + 2) + 2 * pages)


def _is_recorded(clients: int, lists: Lists) -> bool:
    return large_round_limits.is_recorded(clients) and not lists.groups


def _recording(clients: int, lists: Lists) -> Requests:
    """Count the requests for the marks of arrivals, if two of them never write at once.

    Planning lists the updates once more if clients are expected by number.
    """
    if not _is_recorded(clients, lists):
        return Requests(0, 0)
    return Requests(clients, clients + (0 if lists.is_named else _pages(clients)))


def _listed(clients: int, lists: Lists) -> Requests:
    """Count the small functions' requests for ids in pieces, assignments, and a key of noise."""
    pieces, counted = large_round_limits.pieces(clients), Requests(0, 0)
    if lists.ids_in_pieces:
        # Opening: all. An arrival: that of its client. Planning: whether those that have sent are
        # expected, and who is missing.
        counted = counted.plus(Requests(clients + 3 * pieces, 0))
    if lists.assigns:
        # Finalizing: the contributors' reports, twice; and so the earlier speeds.
        counted = counted.plus(Requests(2 * pieces, pieces + 1))
    if lists.has_speeds:
        counted = counted.plus(Requests(2 * pieces + 1, 0))
    if lists.draws_noise:
        # Planning: the key. Finalizing: a listing of its versions, to delete all.
        counted = counted.plus(Requests(0, 2))
    return counted


def _in_pieces(clients: int, tasks: int) -> Requests:
    """Count the small functions' requests for lists in pieces, and for a survey's records."""
    contributors, records = large_round_limits.pieces(clients), large_round_limits.pieces(tasks)
    surveyed = contributors if large_round_limits.is_surveyed(clients) else 0
    return Requests(
        # Finalizing: the contributors, for the manifest, and of a survey. Planning after a survey:
        # its pieces, and what its tasks have read; they read the headers, and not planning.
        gets=contributors + 3 * surveyed - (clients if surveyed else 0),
        # Planning: the pieces, twice if there is a survey, which lists the versions, too.
        # Finalizing: those of the manifest, and of the tasks' records.
        puts=2 * contributors + records + surveyed + (_pages(clients) if surveyed else 0),
    )


def _replanning(clients: int, before: Sequence[int], models: int, lists: Lists) -> Requests:
    """Count the small functions' requests between the passes of a round."""
    counted = Requests(0, 0)
    for tasks in before:
        # Finalizing: plan and reports. Planning: the plan twice, spec, who was rejected, what was
        # found, the manifest, and which version is current. Finalizing: what was found; that nobody
        # was rejected. Planning: plan and tasks.
        counted = counted.plus(Requests((1 + tasks) + 6 + 2 * bool(models), 2 + 2))
    if len(before) > large_round_limits.is_surveyed(clients):
        # A pass measures. Finalizing: who was measured. Planning: the contributors, and the
        # decision. Finalizing again: decision and measurement, and all whose weight is shown.
        pieces = large_round_limits.pieces(clients)
        shown = pieces * lists.shows_clipped
        counted = counted.plus(Requests(2 * pieces + 2 + shown, 2 * pieces + 1 + shown))
        # Finalizing the last time: the reasons of those that are left out.
        left_out = lists.rule.count_left_out(clients) if lists.rule else 0
        counted = counted.plus(Requests(0, left_out))
    return counted


def _applying(models: int) -> Requests:
    """Count the small functions' requests for the model in a round that makes a version."""
    if not models:
        return Requests(0, 0)
    return Requests(
        # Opening: whether there is a privacy ledger. Opening and planning: which version is
        # current, by two objects each; and the model's header. Finalizing: each object as it
        # came to be; and that the new version, its round's manifest and no version after it make it
        # current.
        gets=1 + 2 + 2 + 1 + models + 4,
        # Planning: an upload each. Finalizing: the completion of each; the version and that it is
        # current.
        puts=2 * models + 2,
    )


def _pages(entries: int) -> int:
    """Return the requests of a listing."""
    return max(1, -(-entries // aws_limits.LISTED_ENTRIES))


def _pages_in_turn(clients: int, times: int) -> list[int]:
    """Return the requests of each of so many listings, while clients arrive one after another."""
    return [_pages(clients * turn // times) for turn in range(1, times + 1)]


def _looks(clients: int, lists: Lists) -> tuple[float, float]:
    """Return the expected numbers of HEADs and listings of all arrivals together.

    A function has seen those who came before, so the first client that it looks for is missing.
    Only the last arrival looks for all again, in one listing if they are many. Without names each
    arrival lists. In a large round many functions run side by side, and in an eager one an arrival
    looks for its group alone.
    """
    if lists.groups:
        in_groups = [_looks_in_group(size) for size in lists.groups]
        return sum(looks for looks, _ in in_groups), sum(listings for _, listings in in_groups)
    if not lists.is_named:
        return 0.0, float(clients)
    if large_round_limits.is_recorded(clients):
        return looks_apart(clients)
    before = max(0, clients - 1)
    return (before, 1.0) if clients > LOOKS_OF_A_LIST else (before + clients, 0.0)


def looks_apart(clients: int) -> tuple[float, float]:
    """Return the expected numbers of HEADs and listings if each arrival is at another function.

    With m of the N - 1 others missing, the first j others are all there with probability
    C(N-1-m, j) / C(N-1, j). Only then the next one is looked for, and all are listed only if
    HEADS_BEFORE_LIST were there, and more are expected. The sum over all m, from 0 to N - 1, is
    N / (j + 1). If no more are expected, the last one looks for its own update instead.
    """
    looks, listings = _looks_in_group(clients)
    if clients - 1 > HEADS_BEFORE_LIST:
        return looks, listings
    return looks + min(1, clients), 0.0


def _looks_in_group(clients: int) -> tuple[float, float]:
    """Return what :func:`looks_apart` does if all are listed whenever those looked for are there.

    In an eager round the clients of a group look for each other, and nobody is remembered.
    """
    looked = min(HEADS_BEFORE_LIST, max(0, clients - 1))
    return sum(clients / (others + 1) for others in range(looked)), clients / (looked + 1)
