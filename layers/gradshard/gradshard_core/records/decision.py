"""A robust rule's decision: what was measured of each update, and what the rule made of it."""

from collections.abc import Mapping
from typing import Any


def verdict_on(entry: Mapping[str, Any]) -> str:
    """Say what a robust rule made of an update, from its entry in the decision."""
    full = entry["full_weight"]
    if full is None:
        return "kept" if entry["weight"] else "left out"
    if entry["weight"] >= full:
        return "whole"
    return f"clipped to {entry['weight'] / full:.1%}"


def is_clipped(entry: Mapping[str, Any]) -> bool:
    """Whether a robust rule gives an update less than its weight without the rule."""
    return entry["full_weight"] is not None and entry["weight"] < entry["full_weight"]
