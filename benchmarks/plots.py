"""``python -m benchmarks.plots FIGURES.json FOLDER``: the plots of docs/performance.md, as SVG."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.cost_plots import STYLE, WIDTH, Plot, Series
from benchmarks.runs import ARITHMETIC, FLOWER, FUNCTION, PUBLISHED, RECEIVE, SEQUENTIAL
from benchmarks.workload import VGG_16
from gradshard.papers.published_figures import SHARD_SWEEP_SECONDS
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.round_projection import project
from gradshard_core.costs.workload import Workload
from gradshard_core.planning import shard_count

COLORS: Final = {FUNCTION.name: 0, PUBLISHED.name: 1, SEQUENTIAL.name: 2, FLOWER.name: 3}
MODEL_MEMORIES_MB: Final = (128, 256, 1769)
PUBLISHED_SECONDS: Final = tuple((float(m), s) for m, s in SHARD_SWEEP_SECONDS.items())

_LEFT: Final = 130
_RIGHT: Final = 110
_BAR: Final = 16
_GROUP_GAP: Final = 34

Json = dict[str, Any]


def main(figures: str, folder: str) -> None:
    """Draw what the figures have."""
    results = json.loads(Path(figures).read_text())
    target = Path(folder)
    (target / "performance-cpu.svg").write_text(cpu(results["throughput"]))
    (target / "performance-memory.svg").write_text(memory(results["throughput"]))
    (target / "performance-shards.svg").write_text(seconds())


def cpu(cases: Sequence[Json]) -> str:
    """Bars: CPU-seconds per GB by row and case, the limit as one bar of two."""
    widest = max(row["cpu_seconds_per_gb"]["max"] for c in cases for row in c["rows"].values())
    scale = (WIDTH - _LEFT - _RIGHT) / widest
    pieces: list[str] = []
    y = 34
    for case in cases:
        y += _GROUP_GAP
        size = f"{case['clients']} × {case['megabytes']} MB, M = {case['shards']}"
        pieces.append(f'  <text class="dim" x="{_LEFT}" y="{y - 10}">{size}</text>')
        for name, figure, marks in _bars(case["rows"]):
            pieces += _bar(name, figure, marks, y, scale)
            y += _BAR + 5
    height = y + 12
    title = "CPU-seconds per GB of client bytes over HTTPS: median, with least and most"
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
                'font-family="system-ui, sans-serif" font-size="13" role="img" '
                'aria-labelledby="title">'
            ),
            f'  <title id="title">{title}</title>',
            f"  <style>{STYLE}\n  .faint {{ fill: #8c959f }}\n  </style>",
            f'  <rect class="bg" width="{WIDTH}" height="{height}"/>',
            f'  <text x="24" y="22">{title}</text>',
            *pieces,
            "</svg>\n",
        ]
    )


def _bars(rows: Json) -> list[tuple[str, dict[str, float], str]]:
    bars: list[tuple[str, dict[str, float], str]] = []
    if RECEIVE.name in rows and ARITHMETIC.name in rows:
        halves = [rows[row.name]["cpu_seconds_per_gb"] for row in (RECEIVE, ARITHMETIC)]
        limit = {key: sum(half[key] for half in halves) for key in halves[0]}
        bars.append(("limit", limit, "faint"))
    bars += [
        (name, rows[name]["cpu_seconds_per_gb"], f"f{color}")
        for name, color in COLORS.items()
        if name in rows
    ]
    return bars


def _bar(name: str, figure: dict[str, float], style: str, y: int, scale: float) -> list[str]:
    middle = y + _BAR / 2
    width, least, most = (figure[key] * scale for key in ("median", "min", "max"))
    note = " (in memory)" if name == FLOWER.name else ""
    return [
        f'  <text class="dim" x="{_LEFT - 8}" y="{middle + 4}" text-anchor="end">{name}</text>',
        f'  <rect class="{style}" x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR}"/>',
        f'  <path class="axis" fill="none" d="M{_LEFT + least:.1f} {middle}H{_LEFT + most:.1f}"/>',
        (
            f'  <text class="dim" x="{_LEFT + most + 8:.1f}" y="{middle + 4}">'
            f"{figure['median']:.2f}{note}</text>"
        ),
    ]


def memory(cases: Sequence[Json]) -> str:
    """Lines: peak memory above the idle interpreter against the update's size, M = 4."""
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in COLORS}
    for case in cases:
        if case["shards"] != 4 or case["clients"] != 20:
            continue
        for name in COLORS:
            if name in case["rows"]:
                peak = case["rows"][name]["peak_mib"]["median"]
                points[name].append((case["megabytes"], peak))
    return Plot(
        title="Peak memory above the idle interpreter, 20 clients, one task of M = 4",
        x_label="update, MB",
        y_label="MiB",
        x=(30, 700),
        y=(2, 3000),
        x_ticks=[(43, "43"), (100, "100"), (200, "200"), (512, "512")],
        y_ticks=[(n, f"{n:,}") for n in (3, 10, 30, 100, 300, 1000)],
        series=[
            Series(name, COLORS[name], line=sorted(found), points=found)
            for name, found in points.items()
            if found
        ],
    ).svg()


def seconds() -> str:
    """Lines: a round's seconds against M, as the planner's bandwidth model has it."""
    load = Workload(4 * VGG_16, ((20,),))
    most = shard_count.max_shards(load.nbytes)
    series = [
        Series(
            f"{memory_mb:,} MB",
            color,
            line=[
                (float(m), project(load, m, LambdaConfig(memory_mb, "arm64")).seconds)
                for m in _steps(most)
            ],
        )
        for color, memory_mb in enumerate(MODEL_MEMORIES_MB)
    ]
    series.append(
        Series("published, 3,008 MB", 3, line=PUBLISHED_SECONDS, points=PUBLISHED_SECONDS)
    )
    return Plot(
        title="20 clients × 512 MB: seconds of a round under the planner's bandwidth model",
        x_label="M, shards",
        y_label="seconds",
        x=(1, 100),
        y=(1, 300),
        x_ticks=[(m, str(m)) for m in (1, 2, 4, 8, 16, 32, 64, 100)],
        y_ticks=[(s, str(s)) for s in (1, 2, 5, 10, 20, 50, 100, 200)],
        series=series,
    ).svg()


def _steps(most: int) -> list[int]:
    return sorted({m for m in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, most) if m <= most})


if __name__ == "__main__":
    main(*sys.argv[1:])
