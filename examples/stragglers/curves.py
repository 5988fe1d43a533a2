"""Accuracy against rounds or seconds: means over seeds, their spread, and the plot of both."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

WIDTH: Final = 760
PANEL_HEIGHT: Final = 330
LEFT, RIGHT, TOP, BOTTOM = 64, 170, 56, 48
LABEL_GAP: Final = 16

LIGHT: Final = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")
DARK: Final = ("#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#f778ba", "#8b949e")


@dataclass(frozen=True)
class Curve:
    """One way to train, over seeds.

    Parameters
    ----------
    label
        The name of the curve.
    x
        Rounds or seconds.
    mean, spread
        The accuracy's mean over seeds at each x, and its standard deviation.
    figures
        Further figures.
    """

    label: str
    x: Floats
    mean: Floats
    spread: Floats
    figures: dict[str, Any]

    @classmethod
    def of(
        cls, label: str, x: Floats, runs: Sequence[Floats], figures: dict[str, Any] | None = None
    ) -> "Curve":
        """Take mean and spread of runs, one array of accuracies at all ``x`` for each seed."""
        stack = np.stack(runs)
        spread = stack.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(len(x))
        return cls(label, x, stack.mean(axis=0), spread, figures or {})

    def to_json(self) -> dict[str, Any]:
        """Return the numbers behind the plot."""
        return {
            "x": self.x.round(4).tolist(),
            "mean": self.mean.round(5).tolist(),
            "spread": self.spread.round(5).tolist(),
            **self.figures,
        }


@dataclass(frozen=True)
class Panel:
    """Curves that are drawn together."""

    title: str
    x_label: str
    curves: Sequence[Curve]

    def to_json(self) -> dict[str, Any]:
        """Return the numbers behind the plot."""
        return {curve.label: curve.to_json() for curve in self.curves}


def svg(title: str, panels: Sequence[Panel]) -> str:
    """Draw panels one below the other, readable in light and in dark."""
    height = PANEL_HEIGHT * len(panels)
    pieces = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="system-ui, sans-serif" font-size="13" role="img" '
            'aria-labelledby="title">'
        ),
        f'  <title id="title">{title}</title>',
        f"  <style>{_style()}\n  </style>",
        f'  <rect class="bg" width="{WIDTH}" height="{height}"/>',
    ]
    for index, panel in enumerate(panels):
        pieces.append(f'  <g transform="translate(0 {index * PANEL_HEIGHT})">')
        pieces += _Drawing(panel).pieces()
        pieces.append("  </g>")
    return "\n".join([*pieces, "</svg>\n"])


class _Drawing:
    """One panel, with linear axes from zero."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._end = max(float(curve.x[-1]) for curve in panel.curves)

    def pieces(self) -> list[str]:
        """Return the panel's elements."""
        return [
            f'  <text x="{LEFT}" y="36">{self._panel.title}</text>',
            *self._axes(),
            *self._bands(),
            *self._lines(),
            *self._labels(),
        ]

    def _at(self, x: float, accuracy: float) -> tuple[float, float]:
        right, bottom = WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM
        return (
            round(LEFT + (right - LEFT) * x / self._end, 1),
            round(bottom - (bottom - TOP) * min(max(accuracy, 0.0), 1.0), 1),
        )

    def _axes(self) -> list[str]:
        right, bottom = WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM
        pieces = []
        for value in _ticks(self._end):
            x, _ = self._at(value, 0)
            pieces += [
                f'  <path class="grid" d="M{x} {TOP}V{bottom}"/>',
                (
                    f'  <text class="dim" x="{x}" y="{bottom + 18}" text-anchor="middle">'
                    f"{value:g}</text>"
                ),
            ]
        for percent in range(0, 101, 20):
            _, y = self._at(0, percent / 100)
            pieces += [
                f'  <path class="grid" d="M{LEFT} {y}H{right}"/>',
                (
                    f'  <text class="dim" x="{LEFT - 8}" y="{y + 4}" text-anchor="end">'
                    f"{percent} %</text>"
                ),
            ]
        return [
            *pieces,
            f'  <path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>',
            (
                f'  <text class="dim" x="{(LEFT + right) / 2}" y="{bottom + 38}" '
                f'text-anchor="middle">{self._panel.x_label}</text>'
            ),
        ]

    def _bands(self) -> list[str]:
        pieces = []
        for color, curve in enumerate(self._panel.curves):
            above = self._path(curve.x, curve.mean + curve.spread)
            below = self._path(curve.x[::-1], (curve.mean - curve.spread)[::-1])
            pieces.append(f'  <path class="band f{color}" d="M{above}L{below}Z"/>')
        return pieces

    def _lines(self) -> list[str]:
        """Draw the first curves last: where some coincide, the first is seen."""
        return [
            f'  <path class="line s{color}" d="M{self._path(curve.x, curve.mean)}"/>'
            for color, curve in enumerate(self._panel.curves)
        ][::-1]

    def _path(self, xs: Floats, ys: Floats) -> str:
        places = (self._at(x, y) for x, y in zip(xs.tolist(), ys.tolist(), strict=True))
        return "L".join(f"{x} {y}" for x, y in places)

    def _labels(self) -> list[str]:
        """Label each line at its end, labels at least a line of text apart and all in the panel."""
        ends = sorted(
            (self._at(float(curve.x[-1]), float(curve.mean[-1]))[1], curve.label, color)
            for color, curve in enumerate(self._panel.curves)
        )
        lowest = TOP - LABEL_GAP
        places = []
        for y, label, color in ends:
            lowest = max(int(y) + 4, lowest + LABEL_GAP)
            places.append((lowest, label, color))
        return [
            f'  <text class="f{color}" x="{WIDTH - RIGHT + 8}" y="{y}">{label}</text>'
            for y, label, color in places
        ]


def _ticks(end: float) -> list[float]:
    """Return four to ten round numbers from zero to the end."""
    step = 10.0 ** np.floor(np.log10(end))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if end / s < 10)
    return [number * float(step) for number in range(int(end / step + 1e-9) + 1)]


def _style() -> str:
    def colors(palette: Sequence[str]) -> str:
        return " ".join(
            f".s{n} {{ stroke: {color} }} .f{n} {{ fill: {color} }}"
            for n, color in enumerate(palette)
        )

    return f"""
    .bg {{ fill: #ffffff }} text {{ fill: #1f2328 }} .dim {{ fill: #57606a; font-size: 12px }}
    .grid {{ stroke: #d0d7de; stroke-width: 1 }} .axis {{ stroke: #57606a; fill: none }}
    .line {{ fill: none; stroke-width: 2 }} .band {{ opacity: 0.15 }}
    {colors(LIGHT)}
    @media (prefers-color-scheme: dark) {{
      .bg {{ fill: #0d1117 }} text {{ fill: #e6edf3 }} .dim {{ fill: #8b949e }}
      .grid {{ stroke: #30363d }} .axis {{ stroke: #8b949e }}
      {colors(DARK)}
    }}"""
