"""Why a robust rule has left out an update, in the words of its rejection."""

import itertools
from typing import Any, Final

from gradshard_core.formats.tensor_layout import shorten

MOST_TOLD: Final = 8
"""Layers of which a client reads why its update was left out."""


def reason_of(decision: dict[str, Any], entry: dict[str, Any]) -> str:
    """Say by what a rule has left out an update."""
    name, score = decision["rule"]["name"], decision["score"]
    if "layers" not in entry:
        return (
            f"rule {name} left this update out of the average: its {score} is "
            f"{entry['score']:.6g}, and its norm {entry['norm']:.6g}"
        )
    found = [
        f"in layer {shorten(layer)!r} its {score} is {figures['score']:.6g}, and its norm "
        f"{figures['norm']:.6g}"
        for layer, figures in itertools.islice(entry["layers"].items(), MOST_TOLD)
    ]
    more = len(entry["layers"]) - len(found)
    others = f"; and so on in {more} more" if more else ""
    return f"rule {name} left this update out of each layer that it has: {'; '.join(found)}{others}"
