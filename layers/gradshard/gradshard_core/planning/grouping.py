"""The groups of a round's contributors, and the weights of their updates.

Both follow from the round's spec and its contributors alone, so planning and verification compute
them with the same code.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from gradshard_core.aggregation import addition_order
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.arithmetic import COUNTS, EQUAL, MEASURED, STEPS, shares_of
from gradshard_core.aggregation.ring_sum import ADDED
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.formats.layout import Layout
from gradshard_core.planning.inbox_spec import InboxSpec
from gradshard_core.planning.masking_options import MASKED
from gradshard_core.planning.plan_parts import Contributor, LayerRanges, Level
from gradshard_core.planning.round_spec import RoundSpec
from gradshard_core.stragglers.fednova import bounded_steps, normalised_weights
from gradshard_core.stragglers.layers import layers_of


class Grouping(NamedTuple):
    """The groups in which contributors are added.

    Parameters
    ----------
    topology
        Its name.
    sizes
        The groups' sizes; in an eager round, those of a round in which every client answers.
    order
        The order of the additions.
    levels
        The groups.
    contributors
        In the order of the additions, with their weights.
    """

    topology: str
    sizes: Levels
    order: Order
    levels: tuple[Level, ...]
    contributors: tuple[Contributor, ...]


def group(spec: RoundSpec, contributors: Sequence[Contributor], weights: str) -> Grouping:
    """Sort contributors by id, weigh them and divide them into groups."""
    ordered = sorted(contributors, key=lambda contributor: contributor.client)
    topology, sizes = spec.levels(spec.expected if spec.eager else len(ordered))
    order = addition_order.natural_order(sizes) if spec.order is None else spec.order
    first_level = list(sizes[0])
    if spec.eager:
        # The groups of an eager round are those of the expected clients, so some may be smaller.
        present = {contributor.client for contributor in ordered}
        first_level = [len(present.intersection(clients)) for clients in spec.groups()]
    orders = addition_order.split_order(order, sizes)
    levels = tuple(map(Level.of_sizes, (first_level, *sizes[1:]), orders))
    weighed = weigh(ordered, weights)
    if spec.inbox is not None:
        weighed = _discounted(weighed, spec.inbox)
    return Grouping(topology, sizes, order, levels, weighed)


def weights_of(spec: RoundSpec, *, is_decided: bool = False) -> str:
    """Return how contributors are weighed; ``is_decided`` if a rule has measured and decided."""
    if is_decided:
        return MEASURED
    if spec.masked is not None:
        return MASKED
    return EQUAL if spec.robust_rule is not None or spec.dp is not None else spec.weights


def weigh(contributors: Sequence[Contributor], weights: str) -> tuple[Contributor, ...]:
    """Give contributors their weights.

    Parameters
    ----------
    contributors
        All of the round's contributors.
    weights
        ``counts``, which do not depend on the other contributors, ``shares``, ``steps``,
        ``equal``, ``masked`` or ``measured``.
    """
    samples = [contributor.samples for contributor in contributors]
    if weights == COUNTS:
        values = list(map(float, samples))
    elif weights == EQUAL:
        values = [1 / len(contributors)] * len(contributors)
    elif weights == MASKED:
        values = [ADDED] * len(contributors)
    elif weights == MEASURED:
        # A plan is read by clients, and the rule's weights would tell them the norms of others.
        values = [0.0] * len(contributors)
    elif weights == STEPS:
        steps = bounded_steps(list(local_steps(contributors).values()))
        values = list(normalised_weights(samples, steps))
    else:
        values = shares_of(samples)
    return tuple(
        replace(contributor, weight=weight)
        for contributor, weight in zip(contributors, values, strict=True)
    )


def _discounted(contributors: Sequence[Contributor], inbox: InboxSpec) -> tuple[Contributor, ...]:
    """Discount weights by staleness: what stale updates lose, nobody gains."""
    return tuple(
        replace(contributor, weight=contributor.weight * inbox.discount(contributor.staleness))
        for contributor in contributors
    )


def local_steps(contributors: Sequence[Contributor]) -> dict[str, int]:
    """Return the local steps by client; updates that report none were rejected before."""
    return {c.client: c.report.steps for c in contributors if c.report and c.report.steps}


def layer_ranges(spec: RoundSpec, layout: Layout) -> tuple[LayerRanges, ...]:
    """Return the layers of partial updates and their places in the layout; none for whole ones."""
    if not spec.takes_partial:
        return ()
    position = {tensor.name: (tensor.start, tensor.end) for tensor in layout.tensors}
    return tuple(
        LayerRanges(
            layer.name,
            tuple(position[t] for t in layer.tensors if position[t][0] < position[t][1]),
        )
        for layer in layers_of(layout, spec.layers)
    )
