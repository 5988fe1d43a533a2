"""The claim of a masked round: what follows from masked updates and the keeper's answer."""

from collections.abc import Callable, Sequence
from typing import Final

from gradshard.verification.round_provenance import StatedRound
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.planning.plan_parts import Contributor
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import Masking, encoding_of
from gradshard_core.specs.round_spec import RoundSpec

NOT_PROVED: Final = (
    "the keeper's answer was taken as it is: whether it is the sum of these clients' masks, and of "
    "nothing else, only the keeper can recompute (gradshard keeper answer {} shows whose masks it "
    "has summed)"
)


def read_masking(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec,
    stated: StatedRound,
    contributors: Sequence[Contributor],
    layout: Layout,
    contradict: Callable[[str], None],
) -> Masking:
    """Return how a masked round was unmasked, derived from its updates and its keeper's answer.

    Parameters
    ----------
    store, keys, spec, stated
        The round, and the statements of its manifest.
    contributors, layout
        Whose masked updates were added, and the layout of the result.
    contradict
        Called with each statement of the manifest that is not true.

    Raises
    ------
    SpecError
        The manifest names no answer.
    ChangedObjectError
        The answer is gone.
    UpdateError
        The answer has another size, or its count cannot be that of the contributors.
    """
    terms, answer = spec.masked, stated.masks
    if terms is None or answer is None:
        raise SpecError(
            f"round {keys.round_id!r} cannot be verified: its manifest names no answer of a keeper"
        )
    masking = Masking(terms, spec.expected, encoding_of(terms, layout), answer)
    if answer.key != keys.masks:
        contradict(f"the keeper's answer is {answer.key!r} in the manifest, not {keys.masks!r}")
    expected = masking.answer_bytes
    if answer.nbytes != expected:
        raise UpdateError(f"{answer.key} has {answer.nbytes} bytes, not {expected}")
    last = store.get_range(answer, expected - terms.ring_bits // 8, expected)
    counts = [c.share.masked_count for c in contributors if c.share is not None]
    total = masking.total_of(counts, last)
    if total != stated.samples:
        contradict(f"samples is {stated.samples!r} in the manifest, not {total!r}")
    return masking._replace(total=total)
