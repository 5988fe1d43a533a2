"""Layers of partial updates: the clients that hold each layer, and their weights."""

from collections.abc import Sequence
from statistics import median
from typing import Final

from gradshard.report.charts import Axis, Chart, bins, heat_map, numbered
from gradshard.report.markup import Markup, joined, named
from gradshard.report.parts.part import Part
from gradshard.report.round_facts import Facts
from gradshard.report.row_limits import Detail
from gradshard.report.tables import NUMBER, Column, measured, table
from gradshard.utils.text import pluralize

MAX_CELLS: Final = 1_000
"""More weights than this are drawn as a heat map instead of written in a table."""

MAX_HEADING: Final = 60
"""Characters of a layer's name above its weights, because each of its cells repeats them."""


def layers_part(facts: Facts, detail: Detail) -> Part | None:
    """Return the part about the layers of a round; None if its updates were whole."""
    layers, clients = facts["layers"], [entry["client"] for entry in facts["contributors"]]
    if not layers:
        return None
    covered = [len(layer["weights"]) for layer in layers]
    summary = (
        f"{pluralize(len(layers), 'layer')} · "
        f"each covered by {min(covered):,} to {pluralize(max(covered), 'client')}"
    )
    if len(clients) * len(layers) <= MAX_CELLS:
        weights = _weights(layers, clients)
    else:
        weights = _heat_map(layers, clients, detail)
    return Part("layers", "Layers", summary, joined(_table(layers, detail), weights))


def _table(layers: Sequence[Facts], detail: Detail) -> Markup:
    names = ("number", "clients", "p", "weight, least", "weight, median", "weight, most")
    most = max(len(layer["weights"]) for layer in layers)
    return table(
        "Layers, from the input to the output",
        [Column("layer"), *(Column(name, NUMBER) for name in names)],
        [_layer_row(n, layer, most) for n, layer in enumerate(layers, 1)],
        most=detail.rows,
    )


def _layer_row(number: int, layer: Facts, most: int) -> list[object]:
    weights = list(layer["weights"].values())
    figures = (min(weights), median(weights), max(weights)) if weights else ()
    return [
        named(layer["name"]),
        f"{number}",
        measured(f"{len(weights):,}", len(weights), most, "c0"),
        "" if layer["p"] is None else f"{layer['p']:.4g}",
        *(f"{value:.4g}" for value in figures),
        *([""] * (3 - len(figures))),
    ]


def _weights(layers: Sequence[Facts], clients: Sequence[str]) -> Markup:
    """Write the weight of each client in each layer."""
    most = max((w for layer in layers for w in layer["weights"].values()), default=0.0)
    return table(
        "Weight by client and layer; empty if the client lacks the layer",
        [
            Column("client"),
            *(
                Column(f"{n}: {layer['name'][:MAX_HEADING]}", NUMBER)
                for n, layer in enumerate(layers, 1)
            ),
        ],
        [
            [named(client), *(_weight(layer["weights"].get(client), most) for layer in layers)]
            for client in clients
        ],
    )


def _weight(weight: float | None, most: float) -> object:
    return "" if weight is None else measured(f"{weight:.4g}", weight, most, "c0")


def _heat_map(layers: Sequence[Facts], clients: Sequence[str], detail: Detail) -> Markup:
    """Draw the weights of many clients and layers."""
    rows = bins(len(clients), detail.cells)
    cols = bins(len(layers), detail.cells)
    cells = [
        [_mean([layers[c]["weights"].get(clients[r]) for r in row for c in col]) for col in cols]
        for row in rows
    ]
    is_whole = len(rows) == len(clients) and len(cols) == len(layers)
    most = max((w for layer in layers for w in layer["weights"].values()), default=0)
    return Chart(
        "Weight by client (down) and layer (across, from the input)"
        + ("" if is_whole else ", means of several"),
        f"{pluralize(len(clients), 'client')} and {pluralize(len(layers), 'layer')}; "
        f"a deeper colour is a larger weight, at most {most:.4g}; "
        "a cell is empty if the client lacks the layer.",
        heat_map(cells, "c0"),
        numbered([f"{col[0] + 1}" for col in cols]),
        _from_the_top([f"{row[0] + 1:,}" for row in rows]),
        [("c0", f"up to {most:.4g}")],
        height=min(24.0, 3 + 1.2 * len(rows)),
    ).html()


def _from_the_top(names: Sequence[str]) -> Axis:
    """Return an axis with the first name at the top; axes are counted from the bottom."""
    upwards = numbered(names, is_ruled=False)
    ticks = [(len(names) - place, name) for place, name in upwards.ticks]
    return upwards._replace(ticks=ticks)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
