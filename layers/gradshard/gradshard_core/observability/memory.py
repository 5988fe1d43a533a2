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
    # Not getrusage where there is this file: its figure outlives exec, so it may be the parent's.
    with contextlib.suppress(FileNotFoundError):
        status = Path("/proc/self/status").read_bytes()
        return int(status.partition(b"VmHWM:")[2].split(maxsplit=1)[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
