"""The quorum of a round: whether enough good updates came to make a plan."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from gradshard_core.errors import GradshardError, PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds import rejections
from gradshard_core.rounds.contributors import Admission
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec

NAMED: Final = 20
"""Clients that an error names."""


class QuorumError(GradshardError):
    """Fewer good updates than the round's ``min_clients``."""


def check_quorum(admission: Admission, spec: RoundSpec, missing: Sequence[str]) -> None:
    """Check that enough clients take part.

    Raises
    ------
    QuorumError
        They are too few; the text says who is missing, and why others were rejected.
    """
    count = len(admission.contributors)
    # To know that a round of drawn clients had a quorum would be to know something of the draw.
    if count >= spec.min_clients or spec.is_drawn:
        return
    updates = "update" if count == 1 else "updates"
    text = f"{count} good {updates}, but min_clients is {spec.min_clients}"
    if missing:
        text += f"; missing: {first_of(missing, ', ')}"
    if admission.rejected:
        reasons = [f"{rejection.client}: {rejection.reason}" for rejection in admission.rejected]
        text += f"; rejected: {first_of(reasons, '; ')}"
    raise QuorumError(text)


@contextlib.contextmanager
def telling_if_it_fails(
    store: S3Store, keys: RoundKeys, rejected: Sequence[Rejection]
) -> Iterator[None]:
    """Tell the senders of rejected updates if no plan can be made of the others."""
    try:
        yield
    except (QuorumError, PlanError):
        rejections.reject_all(store, rejected, lambda _: keys)
        raise


def first_of(names: Sequence[str], separator: str) -> str:
    """Join names, not so many that an error's text would be cut off (:data:`NAMED`)."""
    more = len(names) - NAMED
    return separator.join(names[:NAMED]) + (f"{separator}and {more} more" if more > 0 else "")
