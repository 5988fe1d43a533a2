"""A round's spec as it was opened with, and the record of its opening."""

from typing import Any

from gradshard_core.errors import BrokenObjectError, SpecError
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.planning.spec import RoundSpec, parse_spec
from gradshard_core.s3.store import S3Store


def read_spec(store: S3Store, keys: RoundKeys) -> tuple[RoundSpec, dict[str, Any]] | None:
    """Return the terms of a round and its record of times; None if it was never opened."""
    return store.get_json(keys.spec, lambda record: (parse_spec(record["spec"]), record))


def check_source(store: S3Store, spec: RoundSpec) -> None:
    """Check that no updates are averaged which were sent to a private round.

    The other round may open later than the one that averages its updates, so each planning checks
    again.

    Raises
    ------
    SpecError
        ``updates_from`` names a private round.
    """
    if spec.updates_from is None:
        return
    try:
        opened = read_spec(store, RoundKeys(spec.updates_from))
    except BrokenObjectError:
        # Only who may write this object can break it, and can read the updates as well.
        return
    if opened is not None and opened[0].dp is not None:
        raise SpecError(
            f"updates_from: round {spec.updates_from!r} is private, and its updates serve for that "
            "round alone: two averages of them would reveal more than its ε says"
        )
