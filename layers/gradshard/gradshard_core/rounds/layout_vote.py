"""The vote on the layout of a round that was opened without one."""

from collections import Counter
from collections.abc import Mapping

from gradshard_core.errors import PlanError
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.rounds.seen_layouts import SeenLayout


def majority(layouts: Mapping[str, SeenLayout], *, is_private: bool = False) -> tuple[Layout, str]:
    """Return the layout of more than half of the updates, and whose it is.

    Updates of the same tensors in different orders agree; the result takes the most frequent order,
    ties to the first client id, which leaves the fewest contributors to be read in more than one
    run. Fewer than half never decide: the others would be rejected, and a few clients would be the
    federation.

    Parameters
    ----------
    layouts
        The layouts of whole updates by client id, at least one.
    is_private
        Whether the round is private, so that no other round may average its updates.

    Raises
    ------
    PlanError
        No layout is that of more than half.
    """
    clients = sorted(layouts)
    # Counter.most_common keeps the order of insertion among equals: the first id's.
    (most, count), *others = Counter(layouts[c].digests.tensors for c in clients).most_common(2)
    agreeing = [client for client in clients if layouts[client].digests.tensors == most]
    # The order once decoded: each update of ``topk`` is stored in a way of its own.
    order = Counter(layouts[client].digests.order for client in agreeing).most_common(1)[0][0]
    winner = next(layouts[c] for c in agreeing if layouts[c].digests.order == order).read().decoded
    if 2 * count <= len(clients):
        other = next(c for c in clients if layouts[c].digests.tensors == others[0][0])
        advice = (
            "to which the clients send again (--layout FILE)"
            if is_private
            else "which can average the updates of this one (--layout FILE --updates-from ROUND)"
        )
        raise PlanError(
            f"no layout is that of more than half of the {len(clients)} updates: {count} have the "
            f"one of client {agreeing[0]!r}, and {others[0][1]} that of client {other!r}, whose "
            f"{winner.difference(layouts[other].read())}; open a round with the layout, {advice}"
        )
    return (
        winner,
        f"that of {count} of the {len(clients)} updates, client {agreeing[0]!r} the first",
    )


def difference(layout: Layout, settled: Layout, whose: str, *, partial: bool) -> str | None:
    """Say how an update's layout first differs from the round's; None if it does not.

    Parameters
    ----------
    layout
        The update's.
    settled, whose
        The round's layout, and where it comes from.
    partial
        Whether updates may lack tensors.
    """
    found = settled.difference(layout, partial=partial)
    return None if found is None else f"its layout is not the round's ({whose}): {found}"
