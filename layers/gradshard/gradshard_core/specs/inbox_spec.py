"""The updates that a round of a buffered training takes: its inbox."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.formats.object_keys import check_id
from gradshard_core.specs.option_kinds import WholeNumber

MAX_VERSION: Final = 99_999_999
"""The keys of versions have eight digits."""

MAX_EXPONENT: Final = 10


class InboxSpec(NamedTuple):
    """Where a round of a buffered training gets its updates from, and how it weighs them.

    Parameters
    ----------
    training
        The training.
    oldest
        The oldest version of the model from which updates are taken.
    exponent
        a, of an update's discount (1 + τ)^-a, where τ is its staleness.
    repeated_round
        An earlier round that failed after it was planned: its updates are taken, and no others.
    """

    training: str
    oldest: int
    exponent: float
    repeated_round: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        fields = self._asdict()
        return (
            fields
            if self.repeated_round
            else {k: v for k, v in fields.items() if k != "repeated_round"}
        )


def parse_inbox(stated: Any) -> InboxSpec:
    """Read where a round of a buffered training gets its updates from."""
    known = set(InboxSpec._fields)
    if not isinstance(stated, Mapping) or not known - {"repeated_round"} <= stated.keys() <= known:
        raise SpecError(f"inbox is {stated!r}, not {{training: …, oldest: …, exponent: …}}")
    repeated_round = stated.get("repeated_round")
    return InboxSpec(
        check_id("training", stated["training"]),
        WholeNumber(1, MAX_VERSION).parse("inbox: oldest", stated["oldest"]),
        parse_exponent(stated["exponent"]),
        None if repeated_round is None else check_id("round", repeated_round),
    )


def parse_exponent(exponent: Any) -> float:
    """Check the exponent a of the discount (1 + τ)^-a."""
    is_number = isinstance(exponent, int | float) and not isinstance(exponent, bool)
    if not is_number or not 0 <= exponent <= MAX_EXPONENT:
        raise SpecError(
            f"staleness_exponent is {exponent!r}, not a number from 0, for no discount, to "
            f"{MAX_EXPONENT}"
        )
    return float(exponent)
