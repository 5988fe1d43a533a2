"""The work that a client of a training should do in a round, beside the training's settings."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import Any

from gradshard_core.formats.long_lists import StoredList, is_in_pieces
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.records.plan_and_manifest import piece_reader, stored
from gradshard_core.records.training_state import Invitation
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.option_parsers import AssignmentSpec
from gradshard_core.stragglers.assignment_settings import AssignmentSettings
from gradshard_core.stragglers.assignments import (
    Assigned,
    Assignments,
    assign,
    base_assignment,
    find_target,
)
from gradshard_core.stragglers.client_report import Report


def write_assignments(
    store: S3Store,
    keys: RoundKeys,
    stated: AssignmentSpec,
    reports: Callable[[], Iterable[tuple[str, Report]]],
) -> None:
    """Decide what a round's clients should do next, and write it.

    Two passes over the reports, one of them for the target, and none is kept.

    Parameters
    ----------
    store, keys
        The bucket, and the keys of the round.
    stated
        The round's option.
    reports
        Returns the clients with their reports, sorted by client.
    """
    before = read_assignments(store, stated) or Assignments(stated.settings)
    target = find_target(stated.settings, reports(), before.clients)
    entries = assign(stated.settings, target, reports(), before.clients)
    document = {
        "settings": stated.settings.to_json(),
        "target_seconds": target,
        "new_clients": asdict(base_assignment(stated.settings)),
        "clients": stored(store, keys, entries, asdict),
    }
    store.put_json(keys.assignments, document)


def read_assignments(store: S3Store, stated: AssignmentSpec) -> Assignments | None:
    """Return what a round's clients should do; None if the round before has left nothing.

    Of many clients, those near to the one that is asked for are loaded.

    Parameters
    ----------
    store
        The bucket.
    stated
        The round's option.
    """
    if stated.after is None:
        return Assignments(stated.settings)
    keys = RoundKeys(stated.after)

    def parse(document: dict[str, Any]) -> Assignments:
        clients, settings = document["clients"], AssignmentSettings(**document["settings"])
        if is_in_pieces(clients):
            return Assignments(
                settings, StoredList(clients, piece_reader(store, keys.piece), _parse_piece)
            )
        return Assignments(settings, _parse_piece({"entries": clients}))

    return store.get_json(keys.assignments, parse)


def _parse_piece(piece: dict[str, Any]) -> list[Assigned]:
    return list(map(Assigned.from_json, piece["entries"]))


def assigned(
    store: S3Store, invitation: Invitation, stated: AssignmentSpec, client: str
) -> Invitation:
    """Return an invitation with a client's batch size, epochs and learning rate as settings.

    They are the base settings if the objects of the round before have expired.
    """
    found = (read_assignments(store, stated) or Assignments(stated.settings)).of(client)
    own = {
        "batch_size": found.batch_size,
        "epochs": found.epochs,
        "learning_rate": found.learning_rate,
    }
    return replace(invitation, settings={**invitation.settings, **own})
