"""The work that a client of a training should do in a round, beside the training's settings."""

from dataclasses import replace

from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.option_parsers import AssignmentSpec
from gradshard_core.records.training_state import Invitation
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.assignments import Assignments


def read_assignments(store: S3Store, stated: AssignmentSpec) -> Assignments | None:
    """Return what a round's clients should do; None if the round before has left nothing.

    Parameters
    ----------
    store
        The bucket.
    stated
        The round's option.
    """
    if stated.after is None:
        return Assignments(stated.settings)
    return store.get_json(RoundKeys(stated.after).assignments, Assignments.from_json)


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
