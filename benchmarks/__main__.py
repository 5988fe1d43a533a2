"""``python -m benchmarks``: measure, print, and write the figures as JSON."""

import argparse
import contextlib
import json
import os
import platform
import signal
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from rich.console import Console

from benchmarks import (
    ceiling,
    coldstart,
    compressed,
    engine,
    masked,
    nginx,
    rate_limited_server,
    report,
    rules,
    runs,
    scale,
    suite,
    targets,
)
from benchmarks.nginx import Nginx
from benchmarks.servers import Server

PARTS = ("compressed", "rules", "masked", "rate-limited", "cold-start", "ceiling", "scale")
QUICK_TIMES = 2
FULL_TIMES = 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and report; raise an error if a row wrote other bytes than the reference."""
    # Ended from outside, it still stops the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = [row.name for row in runs.ROWS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="run few rows twice (1 to 2 minutes)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write all figures to this file")
    parser.add_argument(
        "--runs",
        type=int,
        metavar="N",
        help=f"number of runs of each row (default: {FULL_TIMES}, or {QUICK_TIMES} with --quick)",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*names, *PARTS],
        metavar="ROW",
        help=f"measure only these (default: all): {', '.join([*names, *PARTS])}",
    )
    options = parser.parse_args(arguments)
    times = options.runs or (QUICK_TIMES if options.quick else FULL_TIMES)
    wanted = set(options.only or [*names, *PARTS])
    if options.quick and not options.only:
        wanted -= {"ceiling", "masked"}
    console = Console(width=None if sys.stdout.isatty() else 140)
    progress = Console(stderr=True)
    results: dict[str, Any] = {"machine": _machine(), "runs": times, "notes": []}
    try:
        with progress.status("starting") as status:
            measure(results, wanted, quick=options.quick, say=status.update)
    finally:
        # What was measured before a failure is not lost.
        results["targets"] = targets.check(results)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
        report.show(results, console)
    return 0


def measure(results: dict[str, Any], wanted: set[str], *, quick: bool, say: suite.Progress) -> None:
    """Measure the wanted parts, and add them to ``results`` one by one."""
    notes, times = results["notes"], results["runs"]
    began = time.monotonic()
    rows = [row for row in runs.ROWS if row.name in wanted]
    with contextlib.ExitStack() as stack:
        if rows or wanted & {"compressed", "rules", "rate-limited", "scale"}:
            server = stack.enter_context(_object_server(notes))
            results["server"] = server.transport
        if rows:
            results["throughput"] = []
            # Extended one by one: what is there is kept when a later one fails.
            results["throughput"].extend(
                suite.throughput(server, rows, times, quick=quick, notes=notes, say=say)
            )
        for name, part in (("compressed", compressed.measure), ("rules", rules.measure)):
            if name in wanted:
                results[name] = part(server, times, quick=quick, say=say)
        if "rate-limited" in wanted:
            if isinstance(server, Nginx):
                slow = stack.enter_context(rate_limited_server.serve(server, suite.LIMIT))
                results["rate_limited"] = suite.rate_limited(
                    server, slow, times, quick=quick, say=say
                )
            else:
                notes.append("rate-limited: needs nginx's files and certificate")
        if "scale" in wanted:
            say("planning and finalizing many shards")
            results["scale"] = scale.measure(times, server)
    without_server: dict[str, Callable[[], Any]] = {
        "masked": lambda: masked.measure(times, notes=notes, say=say),
        "cold-start": lambda: coldstart.measure(times),
        "ceiling": lambda: ceiling.measure(notes=notes, say=say),
    }
    for name in without_server.keys() & wanted:
        say(name)
        results[name.replace("-", "_")] = without_server[name]()
    results["minutes"] = (time.monotonic() - began) / 60


def _object_server(notes: list[str]) -> contextlib.AbstractContextManager[Server]:
    binary = nginx.find()
    if binary:
        return nginx.serve(binary)
    notes.append(
        "HTTPS: nginx is missing and could not be taken from Debian's package; "
        "the rows ran over plain HTTP against the local engine, which is the bottleneck"
    )
    return engine.serve()


def _machine() -> dict[str, Any]:
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "openssl": ssl.OPENSSL_VERSION,
        "numpy": np.__version__,
        "boto3": boto3.__version__,
    }


if __name__ == "__main__":
    sys.exit(main())
