"""The option ``updates_from``: the rounds whose updates may be averaged again."""

from gradshard_core.errors import BrokenObjectError, SpecError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec


def check_source(store: S3Store, spec: RoundSpec) -> None:
    """Check that no updates are averaged which were sent to a private round.

    The other round has to be open before, or to have failed without opening. Otherwise it could
    become a private one after its updates were averaged without noise. Each planning checks again.

    Raises
    ------
    SpecError
        ``updates_from`` names a private round, or none.
    """
    if spec.updates_from is None:
        return
    keys = RoundKeys(spec.updates_from)
    try:
        opened = read_spec(store, keys)
    except BrokenObjectError:
        # Only who may write this object can break it, and can read the updates as well.
        return
    if opened is None and store.head(keys.manifest) is not None:
        return  # it has ended, so it makes no average any more
    if opened is None:
        raise SpecError(
            f"updates_from: there is no round {spec.updates_from!r}. Open it first: until then it "
            "may become a private one, whose updates serve for that round alone"
        )
    if opened[0].dp is not None:
        raise SpecError(
            f"updates_from: round {spec.updates_from!r} is private, and its updates serve for that "
            "round alone: two averages of them would reveal more than its ε says"
        )
