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
    """Return a plan whose contributors have the weights of a decision.

    In each layer of partial updates, an update loses as much of its share as in the whole.
    """
    entries = {entry["client"]: entry for entry in decision["clients"]}
    found = [entries[contributor.client] for contributor in plan.contributors]
    weights = [entry["weight"] for entry in found]
    contributors = tuple(
        replace(c, weight=weight) for c, weight in zip(plan.contributors, weights, strict=True)
    )
    layers = plan.computation.layers
    if layers:
        factors = [entry["weight"] / entry["full_weight"] for entry in found]
        layers = tuple(
            layer._replace(
                weights=tuple(
                    None if share is None else share * factor
                    for share, factor in zip(layer.weights, factors, strict=True)
                )
            )
            for layer in layers
        )
    return replace(
        plan,
        participants=replace(plan.participants, contributors=contributors),
        computation=replace(plan.computation, layers=layers),
    )
