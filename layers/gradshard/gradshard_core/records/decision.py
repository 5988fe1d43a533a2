"""A robust rule's decision: what was measured of each update, and what the rule made of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What shows a decision needs no numpy.
    from gradshard_core.planning.plan import Plan


def verdict_on(entry: Mapping[str, Any]) -> str:
    """Say what a robust rule made of an update, from its entry in the decision."""
    full = entry["full_weight"]
    if full is None:
        return "kept" if entry["weight"] else "left out"
    if entry["weight"] >= full:
        return "whole"
    return f"clipped to {entry['weight'] / full:.1%}"


def sample_in_words(sample: Mapping[str, Any]) -> str:
    """Say what was measured of the elements, from a sample in a decision or a manifest."""
    return (
        f"one in {sample['one_in']} elements, in {sample['stretches']} stretches: norms are off by "
        f"up to {sample['error']:.2g} of themselves, as standard errors"
    )


def is_clipped(entry: Mapping[str, Any]) -> bool:
    """Whether a robust rule gives an update less than its weight without the rule."""
    return entry["full_weight"] is not None and entry["weight"] < entry["full_weight"]


def with_weights(plan: "Plan", decision: dict[str, Any]) -> "Plan":
    """Return a plan whose contributors have the weights of a decision."""
    weights = {entry["client"]: entry["weight"] for entry in decision["clients"]}
    contributors = tuple(replace(c, weight=weights[c.client]) for c in plan.contributors)
    return replace(plan, participants=replace(plan.participants, contributors=contributors))
