"""Which layout a round has that was opened without one, and which updates differ from it."""

import hashlib
from collections import Counter
from collections.abc import Mapping

from gradshard_core.errors import PlanError
from gradshard_core.formats.layout import Layout


def majority(layouts: Mapping[str, Layout]) -> tuple[Layout, str]:
    """Return the layout of more than half of the updates, and whose it is.

    Updates of the same tensors in different orders agree; the result takes the most frequent order,
    ties to the first client id, which leaves the fewest contributors to be read in more than one
    run. Fewer than half never decide: the others would be rejected, and a few clients would be the
    federation.

    Parameters
    ----------
    layouts
        By client id, of whole updates; at least one.

    Raises
    ------
    PlanError
        No layout is that of more than half.
    """
    clients = sorted(layouts)
    # Thousands of clients mostly share one layout in memory, so each object is looked at once.
    distinct = {id(layout): layout for layout in layouts.values()}
    tensors = {number: _digest_of_tensors(layout) for number, layout in distinct.items()}
    shapes = {client: tensors[id(layouts[client])] for client in clients}
    # Counter.most_common keeps the order of insertion among equals: the first id's.
    (most, count), *others = Counter(shapes.values()).most_common(2)
    agreeing = [client for client in clients if shapes[client] == most]
    winner = Counter(layouts[client] for client in agreeing).most_common(1)[0][0]
    if 2 * count <= len(clients):
        other = next(client for client in clients if shapes[client] == others[0][0])
        raise PlanError(
            f"no layout is that of more than half of the {len(clients)} updates: {count} have the "
            f"one of client {agreeing[0]!r}, and {others[0][1]} that of client {other!r}, whose "
            f"{winner.difference(layouts[other])}; open a round with the layout, which can average "
            "the updates of this one (--layout FILE --updates-from ROUND)"
        )
    return (
        winner,
        f"that of {count} of the {len(clients)} updates, client {agreeing[0]!r} the first",
    )


def _digest_of_tensors(layout: Layout) -> bytes:
    """Return a digest that is equal for layouts of the same tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, (dtype, shape) in sorted(layout.shapes.items()):
        digest.update(repr((name, dtype, shape)).encode())
    return digest.digest()


def differences(
    layouts: Mapping[str, Layout], settled: Layout, whose: str, *, partial: bool
) -> dict[str, str]:
    """Say how updates first differ from the round's layout.

    Parameters
    ----------
    layouts
        By client id.
    settled, whose
        The round's layout, and where it comes from.
    partial
        Whether updates may lack tensors.

    Returns
    -------
    dict
        Client id → how its layout first differs, for those that do.
    """
    return {
        client: f"its layout is not the round's ({whose}): {difference}"
        for client in sorted(layouts)
        if (difference := settled.difference(layouts[client], partial=partial)) is not None
    }
