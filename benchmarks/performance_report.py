"""``python -m benchmarks.performance_report f.json``: write a run's figures into results.md.

It replaces the text between the two marks; the rest of the page is written by hand.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import runs

PAGE: Final = Path(__file__).with_name("results.md")
BEGIN: Final = "<!-- figures: python -m benchmarks.performance_report f.json -->\n"
END: Final = "<!-- end of figures -->\n"

Figures = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Read the JSON that ``make bench`` wrote, and write the page."""
    [path] = arguments
    report: Figures = json.loads(Path(path).read_text())
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + figures(report) + END + after)


def figures(report: Figures) -> str:
    """Return everything between the marks."""
    sections = (machine, throughput, targets, rate_limited, ceiling, cold_start, scale)
    return "\n" + "\n".join(section(report) for section in sections) + "\n"


def machine(report: Figures) -> str:
    """Say what it was measured on."""
    m = report["machine"]
    kernel, openssl = m["kernel"].split("-")[0], m["openssl"].rsplit(" ", 3)[0]
    loads = sorted(case["load"] for case in report["throughput"])
    return (
        f"Measured on {m['date']}: {m['cores']} cores of a shared {m['processor']}, "
        f"Linux {kernel}, Python {m['python']}, {openssl}, numpy {m['numpy']}, boto3 {m['boto3']}. "
        "The server is "
        "nginx over HTTPS on the loopback interface, on the same cores. Medians of "
        f"{report['runs']} interleaved runs, least and most in brackets; GB are 10⁹ bytes of "
        f"client updates. The load was {loads[0]:.0f} to {loads[-1]:.0f}. A median is marked "
        f"*noisy* if least and most differ by more than {100 * runs.WIDE:.0f} % of it.\n"
    )


def throughput(report: Figures) -> str:
    """Tabulate the rows."""
    rows = []
    for case in report["throughput"]:
        tasks = "all tasks" if case["tasks"] == case["shards"] else "one task"
        name = f"{case['clients']} × {case['megabytes']} MB, M={case['shards']}, {tasks}"
        for row, f in case["rows"].items():
            rows.append(
                (
                    name,
                    row,
                    _timed(f["gb_per_second"], 2),
                    _timed(f["cpu_seconds_per_gb"], 2),
                    _spread(f["peak_mib"], 1),
                    *(f"{f[k]['median']:.0f}" for k in ("idle_mib", "gets", "puts")),
                )
            )
            name = ""
    titles = ("", "row", "GB/s", "CPU-s/GB", "peak MiB above idle", "idle MiB", "GETs", "PUTs")
    return "## The table\n\n" + _table(titles, rows, left=2)


def targets(report: Figures) -> str:
    """Tabulate the targets, missed ones included."""
    rows = [
        (t["target"], t["wanted"], t["measured"], "met" if t["met"] else "**missed**")
        for t in report["targets"]
    ]
    return "## Targets\n\n" + _table(("target", "wanted", "measured", ""), rows, left=4)


def rate_limited(report: Figures) -> str:
    """Tabulate what connections of a limited rate gave."""
    rows = [
        (
            str(case["connections"]),
            row,
            _timed({name: rate / 1e6 for name, rate in f["rate"].items()}, 0),
            f"{f['of_limit']:.2f}",
        )
        for case in report["rate_limited"]
        for row, f in case["rows"].items()
    ]
    titles = ("connections", "row", "MB/s", "of connections × 60 MB/s")
    return "## Each connection held to 60 MB/s\n\n" + _table(titles, rows, left=2)


def ceiling(report: Figures) -> str:
    """Tabulate what became of the containers."""
    rows = [
        (c["row"], c["what"], c["outcome"], _whole(c["peak_mb"]), _whole(c["container_mb"]))
        for c in report.get("ceiling", [])
    ]
    titles = ("row", "shard", "outcome", "process's peak MB", "container's peak MB")
    return (
        "## The memory ceiling\n\n`sam local invoke` in a container of 128 MB, or as named, which "
        "the kernel enforces, against the local engine over HTTP. The container's figure is its "
        "memory that cannot be reclaimed, sampled ten times a second, with the emulator's "
        "11 MiB.\n\n" + _table(titles, rows, left=3)
    )


def cold_start(report: Figures) -> str:
    """Tabulate what importing the handlers takes."""
    rows = [
        (
            name,
            _spread(f["milliseconds"], 0),
            _spread(f["cpu_seconds"], 3),
            f"{f['resident_mib']['median']:.0f}",
            f"{f['modules']['median']:.0f}",
        )
        for name, f in report["cold_start"].items()
    ]
    others = ", ".join(report["cold_start"]["aggregate_shard"]["others"])
    return (
        "## Cold start\n\nImporting a handler in a fresh interpreter:\n\n"
        + _table(("function", "ms", "CPU-s", "resident MiB", "modules"), rows, left=1)
        + f"\nBeyond the standard library `aggregate_shard` imports {others}.\n"
    )


def scale(report: Figures) -> str:
    """Tabulate plans of large updates, and what planning takes."""
    plans = [
        (str(p["gigabytes"]), f"{p['clients']:,}", p["topology"], *_plan(p))
        for p in report["scale"]["plans"]
    ]
    over = [
        f"{p['gigabytes']} GB of {p['clients']:,} clients, {limit}"
        for p in report["scale"]["plans"]
        for limit in p.get("over", ())
    ]
    measured = [
        (
            f"{m['shards']:,}",
            f"{m['clients']:,}",
            f"{m['tasks']:,}",
            _spread(m["plan_cpu_seconds"], 3),
            _spread(m["finalise_cpu_seconds"], 3),
            _spread(m["peak_mib"], 1),
        )
        for m in report["scale"]["measured"]
    ]
    return (
        "## Large updates, on paper\n\nThe planner's projection for float32 on arm64: the cheapest "
        "M within a minute, if there is one, in the smallest function that keeps every limit "
        "(parts, payloads, Map items, descriptors, seconds and memory). Reading a task record "
        "over HTTPS takes "
        f"{1000 * report['scale']['report_cpu_seconds']['median']:.2f} ms of a whole processor. "
        "All tasks of a level run at once; more than 1,000 need a raised quota. "
        + (f"Over a limit: {'; '.join(over)}.\n\n" if over else "None is over a limit.\n\n")
        + _table(
            (
                *("GB", "clients", "topology", "memory MB", "M", "tasks"),
                *("part MB", "used MB", "task s", "round s", "$"),
            ),
            plans,
            left=0,
        )
        + "\nPlanning and finalizing 200 tensors, with a dictionary in place of S3:\n\n"
        + _table(
            (
                *("shards", "clients", "tasks"),
                *("plan CPU-s", "finalize CPU-s", "peak MiB above idle"),
            ),
            measured,
            left=0,
        )
    )


def _plan(plan: Figures) -> tuple[str, ...]:
    if "rejected" in plan:
        return ("rejected", "", "", "", "", "", "", "")
    return (
        str(plan["memory_mb"]),
        f"{plan['shards']:,}",
        f"{plan['tasks']:,}",
        f"{plan['part_mb']:.0f}",
        f"{plan['needed_mb']:.0f}",
        f"{plan['task_seconds']:.0f}",
        f"{plan['seconds']:.0f}",
        f"{plan['dollars']:.2f}",
    )


def _table(titles: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, left: int) -> str:
    rule = ["---"] * left + ["--:"] * (len(titles) - left)
    return "".join(f"| {' | '.join(row)} |\n" for row in (titles, tuple(rule), *rows))


def _spread(figure: dict[str, float], digits: int) -> str:
    median, least, most = (f"{figure[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least}–{most})"


def _timed(figure: dict[str, float], digits: int) -> str:
    return _spread(figure, digits) + (" *noisy*" if runs.is_wide(figure) else "")


def _whole(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.0f}"


if __name__ == "__main__":
    main(sys.argv[1:])
