"""The memory that this process takes."""

import contextlib
import resource
from pathlib import Path


def reset_peak_memory() -> None:
    """Forget the peak of a warm function's earlier tasks, where the kernel lets us."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb() -> float:
    """Return the most memory this process has had resident, in MB of 1024² bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage, whose figure outlives exec and so may be the parent's.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
