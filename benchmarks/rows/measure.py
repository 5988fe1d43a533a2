"""The frame of every row: read the job, measure time and memory, report.

Imported by the rows, so it imports no more than any Python program has.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Requests(NamedTuple):
    """The requests of a row, and its peak memory if it measures that itself."""

    gets: int = 0
    puts: int = 0
    peak_mib: float = 0.0


Work = Callable[[], Requests]


def measure(setup: Callable[[dict[str, Any]], Work]) -> None:
    """Run a row on the job given on standard input; print what it took as the last line.

    Parameters
    ----------
    setup
        Makes the row's work from the job. Counts as memory, but not as time.
    """
    job = json.load(sys.stdin)
    gc.collect()
    idle = memory_kib("VmRSS")
    reset_peak()
    work = setup(job)
    wall, cpu = time.perf_counter(), time.process_time()
    requests = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    result = {
        "seconds": wall,
        "cpu_seconds": cpu,
        "idle_mib": idle / 1024,
        # Not getrusage's ru_maxrss: it outlives exec, and so may be the parent's.
        "peak_mib": max(requests.peak_mib, memory_kib("VmHWM") / 1024) - idle / 1024,
        "gets": requests.gets,
        "puts": requests.puts,
    }
    print(json.dumps(result), flush=True)


def reset_peak() -> None:
    """Forget the peak of the imports: the kernel's documented way, proc(5)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory_kib(field: str) -> int:
    """Return a figure of this process's memory, by the kernel's name."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
