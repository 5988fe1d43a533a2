"""Which layout a round has, when its updates do not all agree."""

from collections import Counter
from collections.abc import Mapping

from gradshard.formats.layout import Layout


def agree(
    layouts: Mapping[str, Layout],
    declared: Layout | None,
    whose: str = "the one the round was opened with",
    *,
    partial: bool = False,
) -> tuple[Layout | None, dict[str, str]]:
    """Settle on the round's layout.

    The declared layout wins, else that of the majority, ties to the first client id. Updates of
    the same tensors in different orders agree; the result takes the most frequent order, which
    leaves the fewest contributors to be read in more than one run.

    Parameters
    ----------
    layouts
        By client id.
    declared
        The layout that is settled already, if any.
    whose
        What that is, for those who differ from it.
    partial
        Whether updates may lack tensors. The majority is then that of the updates with the most.

    Returns
    -------
    Layout or None
        The winner; None without any update or declaration.
    dict
        Client id → how its layout first differs, for those that do.
    """
    if declared is None and not layouts:
        return None, {}
    clients = sorted(layouts)
    if declared is not None:
        winner, which = declared, whose
    else:
        most = max(len(layout.tensors) for layout in layouts.values())
        voters = [c for c in clients if not partial or len(layouts[c].tensors) == most]
        # Counter.most_common keeps the order of insertion among equals: the first id's.
        shapes = {client: frozenset(layouts[client].shapes.items()) for client in voters}
        majority, count = Counter(shapes[client] for client in voters).most_common(1)[0]
        agreeing = [client for client in voters if shapes[client] == majority]
        winner = Counter(layouts[client] for client in agreeing).most_common(1)[0][0]
        which = f"that of {count} of the {len(clients)} updates, client {agreeing[0]!r} the first"
    differences = {
        client: f"its layout is not the round's ({which}): {difference}"
        for client in clients
        if (difference := winner.difference(layouts[client], partial=partial)) is not None
    }
    return winner, differences
