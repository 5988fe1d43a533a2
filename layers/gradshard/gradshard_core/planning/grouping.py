"""The groups in which a round's contributors are added, in their order.

They follow from the round's spec and its contributors alone, as do the weights, so planning and
verification compute them with the same code.
"""

from collections.abc import Sequence
from typing import NamedTuple

from gradshard_core.aggregation import addition_order
from gradshard_core.aggregation.addition_order import Order
from gradshard_core.aggregation.topologies import Levels
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.planning.client_weights import discounted, weigh
from gradshard_core.planning.plan_parts import Contributor, LayerRanges, Level
from gradshard_core.specs.round_spec import RoundSpec
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
        weighed = discounted(weighed, spec.inbox)
    return Grouping(topology, sizes, order, levels, weighed)


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
