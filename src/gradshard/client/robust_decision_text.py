"""A robust rule's decision in words."""

from collections.abc import Mapping, Sequence
from typing import Any


def verdict_on(entry: Mapping[str, Any]) -> str:
    """Say what a robust rule made of an update, from its entry in the decision."""
    if "layers" in entry:
        return _verdict_by_layer(list(map(verdict_on, entry["layers"].values())))
    full = entry["full_weight"]
    if full is None:
        return "kept" if entry["weight"] else "left out"
    if entry["weight"] >= full:
        return "whole"
    return f"clipped to {entry['weight'] / full:.1%}"


def _verdict_by_layer(verdicts: Sequence[str]) -> str:
    """Say what a robust rule made of an update, from what it made of each layer."""
    if not verdicts:
        return "in no layer with a quorum"
    if len(set(verdicts)) == 1 and "clipped" not in verdicts[0]:
        return verdicts[0]
    count = len(verdicts)
    if "kept" in verdicts:
        return f"left out of {verdicts.count('left out')} of {count} layers"
    return f"clipped in {count - verdicts.count('whole')} of {count} layers"


def sample_in_words(sample: Mapping[str, Any]) -> str:
    """Say what was measured of the elements, from a sample in a decision or a manifest."""
    return (
        f"one in {sample['one_in']} elements, in {sample['stretches']} stretches: norms are off by "
        f"up to {sample['error']:.2g} of themselves, as standard errors"
    )
