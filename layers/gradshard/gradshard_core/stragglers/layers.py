"""The layers of a model, and which of them a partial update covers.

Back-propagation works from the output to the input, so a client that is cut off has the gradients
of the last layers. A client has all tensors of a layer or none; a layout knows tensors only.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.formats.tensor_layout import Layout, shorten

Naming = Mapping[str, Sequence[str]] | Sequence[str]
"""Layers given by hand, from the input to the output: name → prefixes of its tensors' names, or
just prefixes, each then being a layer of its own."""

Coverage = tuple[bool, ...]
"""Whether an update holds each layer, from the input to the output."""


@dataclass(frozen=True)
class Layer:
    """Tensors that a client has all of or none of.

    Parameters
    ----------
    name
        The name, unique in the model.
    tensors
        The names of its tensors, in the layout's order.
    """

    name: str
    tensors: tuple[str, ...]


def layers_of(layout: Layout, naming: Naming | None = None) -> tuple[Layer, ...]:
    """Group a layout's tensors into layers, from the input to the output.

    Parameters
    ----------
    layout
        The layout of the round.
    naming
        The layers, if given by hand. A prefix stands for the tensor of that name and for names that
        continue with a dot after it; the longest prefix wins. By default, a tensor's layer is its
        name up to the last dot, or all of its name if it has none.

    Returns
    -------
    tuple of Layer
        The layers in the order given by hand, else in the order of their last tensors in the
        layout. If types are mixed, clients put wider types first, so a layer may be in several
        places; the last places keep the model's order if the wide types are counters. Otherwise
        give the order by hand, or open the round with a layout.

    Raises
    ------
    SpecError
        The layers given by hand leave a tensor out, hold none, or name a prefix twice.
    """
    names = [tensor.name for tensor in layout.tensors]
    if naming is None:
        groups: dict[str, list[str]] = {}
        for name in names:
            layer = name.rpartition(".")[0] or name
            # Put in anew, so that the layer stands where its last tensor does.
            tensors = groups.pop(layer, [])
            tensors.append(name)
            groups[layer] = tensors
    else:
        groups = _grouped(names, _parse_naming(naming))
    return tuple(Layer(layer, tuple(members)) for layer, members in groups.items())


def coverage_of(layers: Sequence[Layer], tensors: Collection[str]) -> Coverage:
    """Return the layers that an update holds, by the names of its tensors.

    Raises
    ------
    UpdateError
        The update holds a tensor of no layer, or half a layer. One step of back-propagation gives
        all gradients of a layer, so half a layer is a mistake under every rule.
    """
    held = set(tensors)
    strangers = held.difference(*(layer.tensors for layer in layers))
    if strangers:
        raise UpdateError(f"tensor {shorten(min(strangers))!r} is not in the round's layout")
    for layer in layers:
        missing = [name for name in layer.tensors if name not in held]
        if 0 < len(missing) < len(layer.tensors):
            raise UpdateError(
                f"layer {shorten(layer.name)!r} is there in part: {len(missing)} of its "
                f"{len(layer.tensors)} tensors are missing, {shorten(missing[0])!r} the first; "
                "send a layer whole, or leave it out"
            )
    return tuple(held.issuperset(layer.tensors) for layer in layers)


def check_depth(layers: Sequence[Layer], covered: Coverage) -> None:
    """Check that an update holds the last layers and no others, as back-propagation leaves it.

    Raises
    ------
    UpdateError
        The update holds a layer but not a later one.
    """
    first = covered.index(True) if True in covered else len(covered)
    hole = next((index for index in range(first, len(covered)) if not covered[index]), None)
    if hole is not None:
        raise UpdateError(
            f"the update has a hole: it holds layer {shorten(layers[first].name)!r}, but not "
            f"{shorten(layers[hole].name)!r}, which back-propagation reaches before it; send that "
            "too, or, if this is no hole, give the round its layers from the input to the output"
        )


def check_naming(naming: Any) -> Naming:
    """Check layers that are given by hand, and return them as JSON holds them.

    Raises
    ------
    SpecError
        The layers are not valid.
    """
    _parse_naming(naming)
    checked: Naming = naming
    return checked


def _parse_naming(naming: Any) -> dict[str, str]:
    """Return prefix → layer, in the order of the layers."""
    if isinstance(naming, str) or not isinstance(naming, Mapping | Sequence):
        raise SpecError(f"layers is {naming!r}, neither a list of prefixes nor {{layer: prefixes}}")
    entries = naming.items() if isinstance(naming, Mapping) else [(p, [p]) for p in naming]
    layer_of: dict[str, str] = {}
    for layer, prefixes in entries:
        if isinstance(prefixes, str) or not isinstance(prefixes, Sequence):
            raise SpecError(f"layer {layer!r} is {prefixes!r}, not a list of prefixes")
        for prefix in prefixes:
            if not isinstance(prefix, str) or not prefix:
                raise SpecError(f"layer {layer!r} has prefix {prefix!r}, which is not text")
            if prefix in layer_of:
                raise SpecError(
                    f"prefix {prefix!r} is given twice: for layer {layer_of[prefix]!r} and "
                    f"for {layer!r}"
                )
            layer_of[prefix] = layer
    return layer_of


def _grouped(names: Sequence[str], layer_of: Mapping[str, str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {layer: [] for layer in layer_of.values()}
    longest = max(map(len, layer_of), default=0)
    for name in names:
        end = len(name)
        while end > 0 and (end > longest or name[:end] not in layer_of):
            end = name.rfind(".", 0, end)
        if end <= 0:
            raise SpecError(
                f"tensor {shorten(name)!r} is in none of the {len(groups)} layers; give one of "
                "them a prefix of its name"
            )
        groups[layer_of[name[:end]]].append(name)
    empty = next((layer for layer, tensors in groups.items() if not tensors), None)
    if empty is not None:
        raise SpecError(f"layer {empty!r} holds no tensor of the {len(names)} in the layout")
    return groups
