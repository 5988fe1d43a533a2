"""The order of additions, which is part of the definition of a result.

``sequential`` adds contributor after contributor. ``tree:k₁,k₂,…`` adds consecutive groups of k₁
that way, then groups of k₂ of those sums, and so on, until one sum is left. A function may execute
a whole tree, with an accumulator for each of its levels, or any of its subtrees. The topology
decides which function does so, and that changes no bit.
"""

import re
from collections.abc import Sequence
from typing import Final

from gradshard_core.aggregation.topologies import MAX_FAN_IN, Levels, groups
from gradshard_core.errors import SpecError

Order = tuple[int, ...]
"""Group sizes, level by level; none for sequential."""

SEQUENTIAL: Final[Order] = ()

_TREE: Final = re.compile(r"tree:(\d{1,4}(?:,\d{1,4})*)")


def parse_order(text: object) -> Order:
    """Read an order such as ``sequential`` or ``tree:4,4``.

    Raises
    ------
    SpecError
        The text is no order, or a group size is not from 2 to 64.
    """
    if text == "sequential":
        return SEQUENTIAL
    match = _TREE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise SpecError(f"order is {text!r}, neither sequential nor such as tree:4,4")
    order = tuple(int(size) for size in match[1].split(","))
    for size in order:
        if not 2 <= size <= MAX_FAN_IN:
            raise SpecError(f"order {text} has groups of {size}; a group is of 2 to {MAX_FAN_IN}")
    return order


def format_order(order: Order) -> str:
    """Write an order as :func:`parse_order` reads it."""
    return "tree:" + ",".join(map(str, order)) if order else "sequential"


def check_order(order: Order, contributors: int) -> None:
    """Check that an order adds so many contributors up to one sum, no level for nothing.

    Raises
    ------
    SpecError
        The order does not fit; the text has the numbers.
    """
    if not order:
        return
    sums = contributors
    for level, size in enumerate(order):
        if sums == 1:
            raise SpecError(
                f"order {format_order(order)} has {len(order)} levels, but {contributors} "
                f"contributors are one sum after {level}: give {format_order(order[:level])}"
            )
        sums = -(-sums // size)
    if sums > 1:
        fitting = format_order((*order, sums)) if sums <= MAX_FAN_IN else "more levels"
        raise SpecError(
            f"order {format_order(order)} adds {contributors} contributors up to {sums} sums, not "
            f"to one: give {fitting}"
        )


def natural_order(levels: Levels) -> Order:
    """Return the order in which a topology adds when each task adds one after another."""
    return tuple(max(sizes) for sizes in levels) if len(levels) > 1 else SEQUENTIAL


def split_order(order: Order, levels: Levels) -> tuple[Order, ...]:
    """Give each level of a topology the part of the order that its tasks execute.

    Raises
    ------
    SpecError
        The order's groups are not the topology's.
    """
    if not order:
        if len(levels) > 1:
            raise _mismatch(order, levels)
        return (SEQUENTIAL,)
    rest = list(order)
    parts: list[Order] = []
    for sizes in levels:
        inputs, size = sum(sizes), 1
        part: list[int] = []
        while groups(inputs, size) != sizes:
            if not rest:
                raise _mismatch(order, levels)
            part.append(rest.pop(0))
            size *= part[-1]
        parts.append(tuple(part) if len(part) > 1 else SEQUENTIAL)
    return tuple(parts)


def _mismatch(order: Order, levels: Sequence[Sequence[int]]) -> SpecError:
    sizes = " and then ".join(f"groups of {max(level)}" for level in levels)
    return SpecError(
        f"order {format_order(order)} is not one that the topology can add in: it adds {sizes}; "
        f"give {format_order(natural_order(tuple(map(tuple, levels))))}, or another fan-in"
    )
