"""Drawings that fit any width: SVG shapes that are stretched, with labels in HTML."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from gradshard.report.markup import Markup, tag
from gradshard.utils.text import format_duration

SIDE: Final = 1000
"""Width and height of a drawing before it is stretched."""

SHADES: Final = 8
"""Shades of a heat map."""


class Axis(NamedTuple):
    """An axis from ``low`` to ``high``.

    Parameters
    ----------
    high
        The value at its end.
    ticks
        Values and their labels.
    is_ruled
        Whether a line is drawn across at each tick.
    low
        The value at its beginning.
    """

    high: float
    ticks: Sequence[tuple[float, str]]
    is_ruled: bool = True
    low: float = 0.0

    def at(self, value: float) -> float:
        """Return the position of a value, from 0 to :data:`SIDE`."""
        share = (value - self.low) / (self.high - self.low)
        return round(min(max(share, 0.0), 1.0) * SIDE, 1)


def axis(high: float, label: Callable[[float], str], *, whole: bool = False) -> Axis:
    """Return an axis with round numbers that ends at ``high`` or just above it.

    Parameters
    ----------
    high
        The largest value.
    label
        Returns a tick's label.
    whole
        Use whole numbers only.
    """
    high = high if high > 0 else 1.0
    rough = high / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= rough * 0.999)
    if whole:
        step = float(max(1, math.ceil(step)))
    steps = math.ceil(high / step - 1e-9)
    return Axis(steps * step, [(n * step, label(n * step)) for n in range(steps + 1)])


def axis_between(low: float, high: float, label: Callable[[float], str]) -> Axis:
    """Return an axis with round numbers: from 0, unless there are negative values."""
    if low >= 0:
        return axis(high, label)
    high = max(high, 0.0)
    step = axis(high - low, label).ticks[1][0]
    first, last = math.floor(low / step), math.ceil(high / step)
    ticks = [(n * step, label(n * step)) for n in range(first, last + 1)]
    return Axis(last * step, ticks, low=first * step)


def time_axis(high: float) -> Axis:
    """Return an axis of seconds; a long one has its ticks at whole minutes, hours or days."""
    steps = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)
    step = next((step for step in steps if 4 * step >= high), 2 * 86_400)
    if high <= 40:
        return axis(high, format_duration)
    count = math.ceil(high / step)
    return Axis(count * step, [(n * step, format_duration(n * step)) for n in range(count + 1)])


def numbered(names: Sequence[str], *, is_ruled: bool = True) -> Axis:
    """Return an axis with a place for each name; of many names only some are written."""
    every = max(1, math.ceil(len(names) / 6))
    ticks = [(n + 0.5, name) for n, name in enumerate(names) if n % every == 0]
    return Axis(max(1, len(names)), ticks, is_ruled)


@dataclass(frozen=True)
class Chart:
    """A drawing with its title, axes and legend.

    Parameters
    ----------
    title
        The title of the chart.
    description
        The content of the chart in words, for readers who cannot see it.
    shapes
        The drawing.
    x, y
        The axes.
    legend
        Classes that colour shapes, with their meanings.
    height
        The height in rem.
    """

    title: str
    description: str
    shapes: Sequence[Markup]
    x: Axis
    y: Axis
    legend: Sequence[tuple[str, str]] = ()
    height: float = 8

    def html(self) -> Markup:
        """Return the figure."""
        lines = [
            _path("grid", f"M0 {SIDE - self.y.at(v)}H{SIDE}")
            for v, _ in self.y.ticks
            if self.y.is_ruled
        ]
        drawing = tag(
            "svg",
            *lines,
            *self.shapes,
            role="img",
            aria_label=f"{self.title}. {self.description}",
            viewBox=f"0 0 {SIDE} {SIDE}",
            preserveAspectRatio="none",
        )
        plot = tag(
            "div",
            _labels("ys", "bottom", self.y),
            drawing,
            _labels("xs", "left", self.x),
            class_="plot",
            style=f"--height:{self.height:g}rem",
        )
        return tag("figure", tag("figcaption", self.title), plot, self._legend())

    def _legend(self) -> Markup:
        if not self.legend:
            return Markup("")
        keys = (tag("li", tag("i", class_=style), name) for style, name in self.legend)
        return tag("ul", *keys, class_="legend")


def _labels(class_: str, edge: str, scale: Axis) -> Markup:
    spans = (
        tag(
            "span",
            label,
            class_="last" if scale.at(value) == SIDE else None,
            style=f"{edge}:{scale.at(value) / 10:g}%",
        )
        for value, label in scale.ticks
        if label
    )
    return tag("div", *spans, class_=class_, aria_hidden="true")


def _path(class_: str, d: str) -> Markup:
    return tag("path", class_=class_, d=d)


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, style: str) -> Markup:
    """Draw a line through points."""
    d = "L".join(f"{x.at(px):g} {SIDE - y.at(py):g}" for px, py in points)
    return _path(f"line {style}", f"M{d}")


def dots(points: Sequence[tuple[float, float]], x: Axis, y: Axis, style: str) -> Markup:
    """Draw a dot at each point: a line without length stays round when it is stretched."""
    d = "".join(f"M{x.at(px):g} {SIDE - y.at(py):g}h0" for px, py in points)
    return _path(f"dot {style}", d)


def mark(value: float, x: Axis, style: str) -> Markup:
    """Draw a dashed line from the bottom to the top, at one value."""
    return _path(f"line dash {style}", f"M{x.at(value):g} 0V{SIDE}")


def heat_map(cells: Sequence[Sequence[float | None]], style: str) -> list[Markup]:
    """Draw rows of cells from the top: a larger number is deeper, None stays empty.

    Parameters
    ----------
    cells
        Numbers that are not negative.
    style
        The class that colours them.
    """
    most = max((value for row in cells for value in row if value is not None), default=0.0) or 1.0
    shades: list[list[str]] = [[] for _ in range(SHADES)]
    height = SIDE / max(1, len(cells))
    for r, row in enumerate(cells):
        width = SIDE / max(1, len(row))
        for c, value in enumerate(row):
            if value is None:
                continue
            shade = min(SHADES - 1, int(value / most * SHADES))
            shades[shade].append(
                f"M{c * width:.1f} {r * height:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"
            )
    return [
        tag("path", class_=f"cell {style}", d="".join(d), fill_opacity=(n + 1) / SHADES)
        for n, d in enumerate(shades)
        if d
    ]


def bins(count: int, most: int) -> list[range]:
    """Cut ``range(count)`` into at most ``most`` ranges of nearly equal length."""
    pieces = max(1, min(most, count))
    cuts = [count * n // pieces for n in range(pieces + 1)]
    return [range(start, end) for start, end in pairwise(cuts) if start < end]
