"""The results as tables on the terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import runs

Json = dict[str, Any]


def show(results: Json, console: Console) -> None:
    """Print everything that was measured, the targets, and what was left out."""
    for table in (
        *_throughput(results),
        *_compressed(results),
        *_rules(results),
        *_rate_limited(results),
        *_masked(results),
        *_cold_start(results),
        *_ceiling(results),
        *_scale(results),
        *_targets(results),
    ):
        console.print(table)
    for note in results["notes"]:
        console.print(f"left out: {note}", markup=False)


def _throughput(results: Json) -> Iterator[Table]:
    for case in results.get("throughput", []):
        tasks = case["tasks"]
        what = "all of them, one after another" if tasks == case["shards"] else "the first of them"
        table = _table(
            f"{case['clients']} clients × {case['megabytes']} MB, M = {case['shards']}, {what}: "
            f"{case['client_gb']:.2f} GB of updates",
            *("row", "GB/s", "CPU-s/GB", "peak MiB above idle", "idle MiB", "GETs", "PUTs"),
        )
        for name, row in case["rows"].items():
            table.add_row(
                name,
                _timed(row["gb_per_second"], 2),
                _timed(row["cpu_seconds_per_gb"], 3),
                _spread(row["peak_mib"], 1),
                f"{row['idle_mib']['median']:.1f}",
                f"{row['gets']['median']:.0f}",
                f"{row['puts']['median']:.0f}",
            )
        yield table
    if results.get("throughput"):
        table = _table("What was run", "row", "")
        for name, row in results["throughput"][0]["rows"].items():
            table.add_row(name, row["what"])
        yield table


def _compressed(results: Json) -> Iterator[Table]:
    if "compressed" not in results:
        return
    found = results["compressed"]
    table = _table(
        f"Compressed updates, {found['case']}: {found['decoded_gb']:.2f} GB once decoded",
        *("codec", "bytes of F32", "CPU-s/GB decoded", "CPU-s of F32's", "peak MiB above idle"),
    )
    for name, row in found["rows"].items():
        table.add_row(
            name,
            f"{row['stored']:.3f}",
            _timed(row["cpu_seconds_per_gb"], 3),
            _spread(row["cpu_to_plain"], 2),
            _spread(row["peak_mib"], 1),
        )
    yield table


def _rules(results: Json) -> Iterator[Table]:
    for found in results.get("rules", ()):
        table = _table(
            f"Rules, {found['case']}: {found['client_gb']:.2f} GB of updates",
            *("pass", "CPU-s/GB", "CPU-s of the mean's", "peak MiB above idle"),
        )
        for name, row in found["rows"].items():
            table.add_row(
                name,
                _timed(row["cpu_seconds_per_gb"], 3),
                _spread(row["cpu_to_mean"], 2),
                _spread(row["peak_mib"], 1),
            )
        yield table


def _rate_limited(results: Json) -> Iterator[Table]:
    if not results.get("rate_limited"):
        return
    table = _table(
        "Each connection held to a rate", "connections", "row", "MB/s", "of connections × limit"
    )
    for case in results["rate_limited"]:
        for name, row in case["rows"].items():
            rate = {key: value / 1e6 for key, value in row["rate"].items()}
            table.add_row(str(case["connections"]), name, _timed(rate, 0), f"{row['of_limit']:.2f}")
    yield table


def _masked(results: Json) -> Iterator[Table]:
    if not results.get("masked"):
        return
    table = _table(
        "Masked rounds, of GB of updates in memory",
        *("", "CPU-s/GB", "x the weighted sum", "MiB", "uploads MiB"),
    )
    for name, row in results["masked"].items():
        uploaded = "" if row["uploaded"] is None else f"{row['uploaded'] / 1024**2:.1f}"
        figures = (f"{row['cpu']:.3f}", f"{row['to_plain']:.2f}", f"{row['mib']:.1f}")
        table.add_row(name, *figures, uploaded)
    yield table


def _cold_start(results: Json) -> Iterator[Table]:
    if not results.get("cold_start"):
        return
    table = _table(
        "Importing a handler in a fresh interpreter",
        *("function", "ms", "CPU-s", "resident MiB", "modules"),
    )
    for name, row in results["cold_start"].items():
        table.add_row(
            name,
            _spread(row["milliseconds"], 0),
            _spread(row["cpu_seconds"], 3),
            f"{row['resident_mib']['median']:.1f}",
            f"{row['modules']['median']:.0f}",
        )
    yield table
    table = _table("What aggregate_shard's handler imports", "from", "packages and modules")
    for source, title in (("others", "beyond the standard library"), ("standard", "its library")):
        names = results["cold_start"]["aggregate_shard"][source]
        table.add_row(title, ", ".join(name for name in names if not name.startswith("_")))
    yield table


def _ceiling(results: Json) -> Iterator[Table]:
    if not results.get("ceiling"):
        return
    table = _table(
        "In a container of 128 MB, or as named (`sam local invoke`)",
        *("row", "shard", "outcome", "its process's peak MB", "container's peak MB", "seconds"),
    )
    for row in results["ceiling"]:
        table.add_row(
            row["row"],
            row["what"],
            row["outcome"],
            _figure(row["peak_mb"]),
            _figure(row["container_mb"]),
            _figure(row["seconds"]),
        )
    yield table


def _scale(results: Json) -> Iterator[Table]:
    scale = results.get("scale")
    if not scale:
        return
    table = _table(
        "Planned, not run: the cheapest M of one round",
        *("update GB", "clients", "topology", "memory MB", "M", "tasks", "part MB", "used MB"),
        *("task s", "round s", "$"),
    )
    remarks: list[str] = []
    for row in scale["plans"]:
        if "rejected" in row:
            remarks.append(f"{row['gigabytes']} GB × {row['clients']}: rejected, {row['rejected']}")
            continue
        remarks += [
            f"{row['gigabytes']} GB × {row['clients']}: over {limit}" for limit in row["over"]
        ]
        table.add_row(
            f"{row['gigabytes']:g}",
            str(row["clients"]),
            row["topology"],
            str(row["memory_mb"]),
            str(row["shards"]),
            str(row["tasks"]),
            f"{row['part_mb']:.1f}",
            f"{row['needed_mb']:.0f}",
            f"{row['task_seconds']:.0f}",
            f"{row['seconds']:.0f}",
            f"{row['dollars']:.2f}",
        )
    table.caption = "\n".join(remarks or ["all within every limit"])
    yield table
    seconds = scale["report_cpu_seconds"]
    milliseconds = {name: 1000 * value for name, value in seconds.items()}
    table = _table(
        "Planning and finalising, S3 in memory; "
        f"reading a report over the network takes {_spread(milliseconds, 2)} CPU-ms more",
        *("shards", "clients", "tasks", "plan CPU-s", "finalise CPU-s", "peak MiB above idle"),
    )
    for row in scale["measured"]:
        table.add_row(
            str(row["shards"]),
            str(row["clients"]),
            str(row["tasks"]),
            _spread(row["plan_cpu_seconds"], 3),
            _spread(row["finalise_cpu_seconds"], 3),
            _spread(row["peak_mib"], 1),
        )
    yield table


def _targets(results: Json) -> Iterator[Table]:
    if not results.get("targets"):
        return
    table = _table("Targets", "target", "wanted", "measured", "")
    for target in results["targets"]:
        table.add_row(
            target["target"],
            target["wanted"],
            target["measured"],
            "met" if target["met"] else "[bold red]missed",
        )
    yield table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _spread(figure: dict[str, float], digits: int) -> str:
    middle, least, most = (f"{figure[key]:.{digits}f}" for key in ("median", "min", "max"))
    return middle if least == most else f"{middle} ({least}–{most})"


def _timed(figure: dict[str, float], digits: int) -> str:
    return _spread(figure, digits) + (" noisy" if runs.is_wide(figure) else "")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
