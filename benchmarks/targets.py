"""The targets of the project, beside the measured values."""

from typing import Any

from benchmarks.runs import FUNCTION, is_wide
from benchmarks.suite import whole_memory
from gradshard_core.costs import memory_projection

Json = dict[str, Any]

# What the handler's path uses beyond the standard library.
USED = {"gradshard", "numpy"}


def check(results: Json) -> list[Json]:
    """Compare; targets whose rows were not run are not listed."""
    found: list[Json] = []
    cases = [case for case in results.get("throughput", []) if FUNCTION.name in case["rows"]]
    for case in cases:
        found += _throughput(case)
    found += _same_peak(cases)
    for name, most in (("int8", 0.5), ("int4", 0.6)):
        if "compressed" in results:
            figure = results["compressed"]["rows"][name]["cpu_to_plain"]
            found.append(
                _target(
                    f"{name}: CPU-s over F32's",
                    f"≤ {most}",
                    f"{figure['median']:.2f}{_noise(figure)}",
                    figure["median"] <= most,
                )
            )
    for name, figure_name, what, most in (
        ("masked sum", "to_plain", "CPU-s over the weighted sum's", 1.05),
        ("keeper", "cpu", "CPU-s/GB", 0.3),
    ):
        if "masked" in results:
            value = results["masked"][name][figure_name]
            found.append(_target(f"{name}: {what}", f"≤ {most}", f"{value:.2f}", value <= most))
    for limited in results.get("rate_limited", []):
        row = limited["rows"][FUNCTION.name]
        share = row["of_limit"]
        found.append(
            _target(
                f"rate-limited, {limited['connections']} connections",
                "≥ 0.9 × limit",
                f"{share:.2f}{_noise(row['rate'])}",
                share >= 0.9,
            )
        )
    if cold := results.get("cold_start"):
        unused = sorted(set(cold["aggregate_shard"]["others"]) - USED)
        found.append(
            _target(
                "aggregate_shard imports only what its path uses",
                "nothing else",
                ", ".join(unused) or "nothing else",
                not unused,
            )
        )
    for row in results.get("ceiling", []):
        found.append(
            _target(
                f"128 MB: {row['row']}, {row['what']}",
                row["wanted"],
                row["outcome"],
                row["outcome"] == row["wanted"],
            )
        )
    return found


def _throughput(case: Json) -> list[Json]:
    name = f"{case['clients']} × {case['megabytes']} MB, M={case['shards']}"
    row = case["rows"][FUNCTION.name]
    found = []
    for ratio, text, most in (
        ("function_to_limit", "CPU-s/GB over receive + arithmetic", 1.15),
        ("function_to_published", "CPU-s/GB over published", 0.6),
    ):
        if ratio in case["ratios"]:
            figure = case["ratios"][ratio]
            value = figure["median"]
            said = f"{value:.2f}{_noise(figure)}"
            found.append(_target(f"{name}: {text}", f"≤ {most}", said, value <= most))
    peak = row["peak_mib"]["max"]
    found.append(_target(f"{name}: peak above idle", "≤ 32 MiB", f"{peak:.1f}", peak <= 32))
    resident = row["idle_mib"]["median"] + peak + memory_projection.RUNTIME_MB
    found.append(
        _target(
            f"{name}: process with Lambda's client", "< 100 MiB", f"{resident:.1f}", resident < 100
        )
    )
    times = case["projected_mb"] / whole_memory(case)
    found.append(
        _target(
            f"{name}: projected over measured memory", "1 to 1.5", f"{times:.2f}", 1 <= times <= 1.5
        )
    )
    return found


def _same_peak(cases: list[Json]) -> list[Json]:
    """Compare the large updates' peak with the small ones' of as many clients."""
    peaks: dict[int, list[float]] = {}
    for case in cases:
        if case["clients"] == 20:
            peaks.setdefault(case["megabytes"], []).append(
                case["rows"][FUNCTION.name]["peak_mib"]["median"]
            )
    if len(peaks) < 2:
        return []
    small, large = (max(peaks[size]) for size in (min(peaks), max(peaks)))
    return [
        _target(
            f"peak at {max(peaks)} MB less that at {min(peaks)} MB",
            "≤ 4 MiB",
            f"{large - small:.1f}",
            large - small <= 4,
        )
    ]


def _noise(figure: dict[str, float]) -> str:
    return ", noisy" if is_wide(figure) else ""


def _target(target: str, wanted: str, measured: str, met: bool) -> Json:
    return {"target": target, "wanted": wanted, "measured": measured, "met": met}
