"""How the updates of a Flower run are combined: the average, a rule, or privately."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from gradshard_core.errors import SpecError
from gradshard_core.privacy.privacy_mechanism import LEAST_CLIENTS, parse_privacy
from gradshard_core.robust.rules import RobustRule
from gradshard_core.specs.option_parsers import parse_rule


class Combination(NamedTuple):
    """How updates are combined.

    Parameters
    ----------
    options
        The options of a round that say it.
    least
        The fewest updates that it takes.
    is_of_changes
        Whether clients send what training has changed, not whole models.
    """

    options: dict[str, Any]
    least: int = 1
    is_of_changes: bool = False


def combination_of(
    rule: str | Mapping[str, Any] | None, dp: Mapping[str, Any] | None
) -> Combination:
    """Check a rule or the terms of privacy.

    Raises
    ------
    SpecError
        It is no rule for whole updates, the terms are out of their bounds, or both are given.
    """
    if dp is not None:
        if rule is not None:
            raise SpecError("dp clips changes and averages them: leave out rule")
        return Combination({"dp": parse_privacy(dp).to_json()}, LEAST_CLIENTS, True)
    if rule is None:
        return Combination({})
    parsed = parse_rule(rule)
    if not isinstance(parsed, RobustRule):
        raise SpecError(
            f"rule {parsed.name} is for partial updates, and Flower's clients send whole ones: "
            "take a robust rule, such as median"
        )
    if parsed.layer_quorum is not None:
        raise SpecError(
            f"rule {parsed.name} with a layer_quorum is for partial updates, and Flower's clients "
            "send whole ones: leave out layer_quorum"
        )
    return Combination({"rule": rule}, parsed.least_clients, parsed.is_of_changes)
