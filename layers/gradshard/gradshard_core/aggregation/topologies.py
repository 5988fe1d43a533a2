"""Topologies: who adds up whose updates, as sizes of consecutive groups, level by level.

The first level's groups are of contributors, in the order of their ids; each further level's are
of the sums of the level below; the last level is one group. A topology is a function from the
number of contributors to those sizes: a new one is one such function and its line in
:data:`TOPOLOGIES`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, repeat
from typing import Final, NamedTuple

from gradshard_core.errors import SpecError

MAX_FAN_IN: Final = 64
"""Streams that a task holds open at once."""

AUTO: Final = "auto"

Levels = tuple[tuple[int, ...], ...]
"""Sizes of the groups, level by level; the last level has one group."""


class Topology(NamedTuple):
    """A rule that groups contributors, and says whether updates are cut.

    Parameters
    ----------
    group
        From the number of contributors and the group sizes that were asked for, level by level
        (maybe none), to the levels.
    is_cut
        Whether each sum is cut into M shards; else a task adds whole updates.
    title
        The name that people read.
    """

    group: Callable[[int, Sequence[int]], Levels]
    is_cut: bool
    title: str


def groups(inputs: int, size: int) -> tuple[int, ...]:
    """Return the sizes of consecutive groups of ``size``, the last one of the rest."""
    full, rest = divmod(inputs, size)
    return (size,) * full + ((rest,) if rest else ())


def shards(contributors: int, _sizes: Sequence[int] = ()) -> Levels:
    """One level: every task adds all contributors (GradsSharding, Barrak 2026)."""
    return ((contributors,),)


def lambda_fl(contributors: int, sizes: Sequence[int] = ()) -> Levels:
    """Leaves of k = ⌈√N⌉ updates and a root over their sums (Jayaram et al. 2022)."""
    [k, *_] = sizes or [math.isqrt(contributors - 1) + 1]
    return _tree(contributors, [k, contributors])


def lifl(contributors: int, sizes: Sequence[int] = ()) -> Levels:
    """Leaves and middles of b = max(2, ⌈N^⅓⌉), and a top (Qi et al., MLSys 2024)."""
    b = 2
    while b**3 < contributors:
        b += 1
    leaf, middle, *_ = [*sizes, *sizes[:1]] if sizes else [b, b]
    return _tree(contributors, [leaf, middle, contributors])


def grid(contributors: int, sizes: Sequence[int] = ()) -> Levels:
    """Group by at most 64, nearly equally, until one sum is left; each sum is cut into shards."""
    if sizes:
        return _tree(contributors, chain(sizes, repeat(sizes[-1])))
    levels: list[tuple[int, ...]] = []
    while not levels or len(levels[-1]) > 1:
        count = -(-contributors // MAX_FAN_IN)
        levels.append(groups(contributors, -(-contributors // count)))
        contributors = len(levels[-1])
    return tuple(levels)


def _tree(inputs: int, sizes: Iterable[int]) -> Levels:
    """Group level by level until one group is left."""
    levels: list[tuple[int, ...]] = []
    for size in sizes:
        levels.append(groups(inputs, size))
        inputs = len(levels[-1])
        if inputs == 1:
            break
    return tuple(levels)


TOPOLOGIES: Final = {
    "shards": Topology(shards, True, "shards"),
    "lambda_fl": Topology(lambda_fl, False, "λ-FL"),
    "lifl": Topology(lifl, False, "LIFL"),
    "grid": Topology(grid, True, "grid"),
}


def resolve(name: str, contributors: int) -> str:
    """Return the topology that ``auto`` stands for, or the one named.

    Up to 64 contributors nothing beats one level; more streams than that no task holds open.
    """
    if name != AUTO:
        return name
    return "shards" if contributors <= MAX_FAN_IN else "grid"


def group(name: str, contributors: int, sizes: Sequence[int] = ()) -> Levels:
    """Group contributors in a topology.

    Parameters
    ----------
    name
        One of :data:`TOPOLOGIES`.
    contributors
        N, at least one.
    sizes
        The group sizes that were asked for, level by level.

    Raises
    ------
    SpecError
        A task would have more than 64 inputs.
    """
    levels = TOPOLOGIES[name].group(contributors, sizes)
    for level, fan_ins in enumerate(levels):
        if max(fan_ins) > MAX_FAN_IN:
            what = "updates" if level == 0 else "partial sums"
            raise SpecError(
                f"topology {name} would have a task add {max(fan_ins)} {what} of {contributors} "
                f"clients, over the {MAX_FAN_IN} streams that a task holds open; take grid, or "
                "another fan-in"
            )
    return levels
