"""Plots of the cost model, as SVG that is readable in light and in dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

WIDTH: Final = 760
HEIGHT: Final = 430
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 40, 52

STYLE: Final = """
    .bg { fill: #ffffff } text { fill: #1f2328 } .dim { fill: #57606a; font-size: 12px }
    .grid { stroke: #d0d7de; stroke-width: 1 } .axis { stroke: #57606a }
    .line { fill: none; stroke-width: 2 } .dash { stroke-dasharray: 6 4 }
    .s0 { stroke: #0969da } .s1 { stroke: #bc4c00 } .s2 { stroke: #1a7f37 } .s3 { stroke: #8250df }
    .f0 { fill: #0969da } .f1 { fill: #bc4c00 } .f2 { fill: #1a7f37 } .f3 { fill: #8250df }
    .dot { stroke: #ffffff; stroke-width: 1.5 }
    @media (prefers-color-scheme: dark) {
      .bg { fill: #0d1117 } text { fill: #e6edf3 } .dim { fill: #8b949e }
      .grid { stroke: #30363d } .axis { stroke: #8b949e }
      .s0 { stroke: #58a6ff } .s1 { stroke: #f0883e } .s2 { stroke: #3fb950 }
      .s3 { stroke: #bc8cff }
      .f0 { fill: #58a6ff } .f1 { fill: #f0883e } .f2 { fill: #3fb950 } .f3 { fill: #bc8cff }
      .dot { stroke: #0d1117 }
    }"""


@dataclass(frozen=True)
class Series:
    """A line, its label at its end, and points that were measured."""

    label: str
    color: int
    line: Sequence[tuple[float, float]] = ()
    points: Sequence[tuple[float, float]] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Plot:
    """A plot with logarithmic axes."""

    title: str
    x_label: str
    y_label: str
    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    series: Sequence[Series] = field(default_factory=list)

    def svg(self) -> str:
        """Return the drawing."""
        pieces = [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
                'font-family="system-ui, sans-serif" font-size="13" role="img" '
                'aria-labelledby="title">'
            ),
            f'  <title id="title">{self.title}</title>',
            f"  <style>{STYLE}\n  </style>",
            f'  <rect class="bg" width="{WIDTH}" height="{HEIGHT}"/>',
            f'  <text x="{LEFT}" y="22">{self.title}</text>',
            *self._axes(),
            *self._lines(),
            *self._labels(),
            "</svg>",
        ]
        return "\n".join(pieces) + "\n"

    def _at(self, x: float, y: float) -> tuple[float, float]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        return (
            round(LEFT + (right - LEFT) * _fraction(x, self.x), 1),
            round(bottom - (bottom - TOP) * _fraction(y, self.y), 1),
        )

    def _axes(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        pieces = []
        for value, text in self.x_ticks:
            x, _ = self._at(value, self.y[0])
            pieces += [
                f'  <path class="grid" d="M{x} {TOP}V{bottom}"/>',
                f'  <text class="dim" x="{x}" y="{bottom + 18}" text-anchor="middle">{text}</text>',
            ]
        for value, text in self.y_ticks:
            _, y = self._at(self.x[0], value)
            pieces += [
                f'  <path class="grid" d="M{LEFT} {y}H{right}"/>',
                f'  <text class="dim" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{text}</text>',
            ]
        middle_x, middle_y = (LEFT + right) / 2, (TOP + bottom) / 2
        return [
            *pieces,
            f'  <path class="axis" fill="none" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
            (
                f'  <text class="dim" x="{middle_x}" y="{HEIGHT - 12}" text-anchor="middle">'
                f"{self.x_label}</text>"
            ),
            (
                f'  <text class="dim" x="16" y="{middle_y}" text-anchor="middle" '
                f'transform="rotate(-90 16 {middle_y})">{self.y_label}</text>'
            ),
        ]

    def _lines(self) -> list[str]:
        lines, dots = [], []
        for series in self.series:
            places = [self._at(x, y) for x, y in series.line]
            if places:
                path = "L".join(f"{x} {y}" for x, y in places)
                dash = " dash" if series.dashed else ""
                lines.append(f'  <path class="line s{series.color}{dash}" d="M{path}"/>')
            dots += [
                f'  <circle class="dot f{series.color}" cx="{x}" cy="{y}" r="5"/>'
                for x, y in (self._at(*point) for point in series.points)
            ]
        return lines + dots

    def _labels(self) -> list[str]:
        """Label each line at its end, labels at least a line of text apart."""
        ends = sorted(
            ((*self._at(*s.line[-1]), s.label, s.color) for s in self.series if s.line and s.label),
            key=lambda end: end[1],
        )
        pieces, lowest = [], TOP - 16.0
        for x, y, label, color in ends:
            lowest = max(y + 4, lowest + 16)
            pieces.append(
                f'  <text class="f{color}" style="font-size:12px" x="{x + 8}" '
                f'y="{round(lowest, 1)}">{label}</text>'
            )
        return pieces


def _fraction(value: float, limits: tuple[float, float]) -> float:
    low, high = (math.log(limit) for limit in limits)
    return (math.log(value) - low) / (high - low)
