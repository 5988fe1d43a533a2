"""The names of clients in a round, from the nodes of Flower."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final

from flwr.serverapp import Grid

from gradshard_core.errors import SpecError

LOG: Final = logging.getLogger("flwr")


def by_number(_grid: Grid, nodes: Sequence[int]) -> dict[int, str]:
    """Name clients by their node ids, padded with zeros, so that text sorts as numbers do."""
    return {node: f"{node:020d}" for node in nodes}


def named(names: Mapping[int, str], nodes: Sequence[int]) -> dict[int, str]:
    """Return the names of those nodes that have one; the others may be gone, and are logged."""
    named = {node: names[node] for node in nodes if node in names}
    if len(named) < len(nodes):
        LOG.warning(
            "configure_train: client_names gave %d of %d nodes no name; they are left out",
            len(nodes) - len(named),
            len(nodes),
        )
    given = list(named.values())
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise SpecError(
            f"client_names gives {given.count(twice)} nodes the name {twice!r}: each needs its "
            "own, or the first upload keeps out the other"
        )
    return named
