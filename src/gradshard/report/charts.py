"""Pictures that fit any width: shapes are drawn in SVG and stretched, their labels are HTML."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

from gradshard.report.markup import Markup, tag
from gradshard.utils.text import format_duration

SIDE: Final = 1000
"""Width and height of a drawing before it is stretched."""

DEPTHS: Final = 8
"""Shades of a heat map."""

MAX_BAR: Final = 60
"""Width of the widest bar: one alone would be a wall."""


class Axis(NamedTuple):
    """From 0 to ``high``, with labelled ticks; those of numbers are ruled across."""

    high: float
    ticks: Sequence[tuple[float, str]]
    is_ruled: bool = True

    def at(self, value: float) -> float:
        """Return where a value stands, from 0 to :data:`SIDE`."""
        return round(min(max(value / self.high, 0.0), 1.0) * SIDE, 1)


def axis(high: float, label: Callable[[float], str], *, whole: bool = False) -> Axis:
    """Return an axis with round numbers, that reaches to at least ``high``.

    Parameters
    ----------
    high
        The largest value.
    label
        Writes a tick.
    whole
        Only whole numbers make sense.
    """
    high = high if high > 0 else 1.0
    rough = high / 4
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= rough * 0.999)
    if whole:
        step = float(max(1, math.ceil(step)))
    steps = math.ceil(high / step - 1e-9)
    return Axis(steps * step, [(n * step, label(n * step)) for n in range(steps + 1)])


def time_axis(high: float) -> Axis:
    """Return an axis of seconds, with ticks at times of the clock where it is that long."""
    steps = (15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200, 86_400)
    step = next((step for step in steps if 4 * step >= high), 2 * 86_400)
    if high <= 40:
        return axis(high, format_duration)
    count = math.ceil(high / step)
    return Axis(count * step, [(n * step, format_duration(n * step)) for n in range(count + 1)])


def numbered(names: Sequence[str]) -> Axis:
    """Return an axis for bars, one for each name; beyond a few only some are labelled."""
    every = max(1, math.ceil(len(names) / 6))
    ticks = [(n + 0.5, name) for n, name in enumerate(names) if n % every == 0]
    return Axis(max(1, len(names)), ticks)


@dataclass(frozen=True)
class Picture:
    """A drawing in its frame.

    Parameters
    ----------
    title
        What it shows.
    description
        What it says, for those who do not see it.
    shapes
        The drawing.
    x, y
        Its axes.
    legend
        Names of its styles.
    height
        In rem.
    is_named
        The y axis has names instead of numbers, which take more room.
    """

    title: str
    description: str
    shapes: Sequence[Markup]
    x: Axis
    y: Axis
    legend: Sequence[tuple[str, str]] = ()
    height: float = 11
    is_named: bool = False

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
            class_="plot named" if self.is_named else "plot",
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


def _path(class_: str, d: str, hint: str | None = None) -> Markup:
    return tag("path", *([tag("title", hint)] if hint else ()), class_=class_, d=d)


class Box(NamedTuple):
    """A bar: where it stands, how it is drawn, and what is said when it is pointed at."""

    x: tuple[float, float]
    y: tuple[float, float]
    style: str
    hint: str


def boxes(bars: Iterable[Box], x: Axis, y: Axis) -> list[Markup]:
    """Draw bars; the narrowest can still be seen."""
    shapes = []
    for bar in bars:
        left, right = (x.at(value) for value in bar.x)
        bottom, top = (SIDE - y.at(value) for value in bar.y)
        width, height = max(right - left, 1.5), bottom - top
        d = f"M{left:g} {bottom:g}v{-height:g}h{width:g}v{height:g}z"
        shapes.append(_path(f"box {bar.style}", d, bar.hint))
    return shapes


def columns(heights: Sequence[tuple[float, str, str]], y: Axis) -> list[Markup]:
    """Draw a bar for each height, style and hint, side by side."""
    x = Axis(max(1, len(heights)), ())
    half = min(0.42, MAX_BAR / SIDE * x.high)
    return boxes(
        (
            Box((n + 0.5 - half, n + 0.5 + half), (0, height), style, hint)
            for n, (height, style, hint) in enumerate(heights)
        ),
        x,
        y,
    )


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis, style: str) -> Markup:
    """Draw a line through points."""
    d = "L".join(f"{x.at(px):g} {SIDE - y.at(py):g}" for px, py in points)
    return _path(f"line {style}", f"M{d}")


def dots(points: Sequence[tuple[float, float, str]], x: Axis, y: Axis, style: str) -> list[Markup]:
    """Draw a dot at each point, with a hint; round however the drawing is stretched."""
    return [
        _path(f"dot {style}", f"M{x.at(px):g} {SIDE - y.at(py):g}h0", hint)
        for px, py, hint in points
    ]


def level(value: float, y: Axis, style: str) -> Markup:
    """Draw a line across, at one value."""
    return _path(f"line dash {style}", f"M0 {SIDE - y.at(value):g}H{SIDE}")


def heat_map(cells: Sequence[Sequence[float | None]], style: str) -> list[Markup]:
    """Draw rows of cells, from the top; the larger a number the deeper, None stays empty.

    Parameters
    ----------
    cells
        Not negative; the largest is the deepest.
    style
        Its colour.
    """
    most = max((value for row in cells for value in row if value is not None), default=0.0) or 1.0
    shades: list[list[str]] = [[] for _ in range(DEPTHS)]
    height = SIDE / max(1, len(cells))
    for r, row in enumerate(cells):
        width = SIDE / max(1, len(row))
        for c, value in enumerate(row):
            if value is None:
                continue
            shade = min(DEPTHS - 1, int(value / most * DEPTHS))
            shades[shade].append(
                f"M{c * width:.1f} {r * height:.1f}h{width:.1f}v{height:.1f}h{-width:.1f}z"
            )
    return [
        tag("path", class_=f"cell {style}", d="".join(d), fill_opacity=(n + 1) / DEPTHS)
        for n, d in enumerate(shades)
        if d
    ]


def bins(count: int, most: int) -> list[range]:
    """Cut ``count`` things in a row into at most so many pieces of nearly equal length."""
    pieces = max(1, min(most, count))
    cuts = [count * n // pieces for n in range(pieces + 1)]
    return [range(start, end) for start, end in pairwise(cuts) if start < end]
