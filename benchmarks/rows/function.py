"""aggregate_shard, the deployed function's handler, whole."""

import runpy
from pathlib import Path
from typing import Any

from benchmarks.rows.measure import Requests, Work, measure

_APP = Path(__file__).parents[2] / "functions" / "aggregate_shard" / "app.py"
handler = runpy.run_path(str(_APP))["handler"]


class _Context:
    """The context that Lambda gives a handler beside the event."""

    function_name = invoked_function_arn = aws_request_id = "benchmark"
    memory_limit_in_mb = 128

    def get_remaining_time_in_millis(self) -> int:
        """Return what is left of the time."""
        return 285_000


def setup(job: dict[str, Any]) -> Work:
    """Invoke it once per task, one after the other, as a warm function is."""

    def work() -> Requests:
        reports = [handler(task, _Context()) for task in job["tasks"]]
        if any(report["rejected"] for report in reports):
            raise RuntimeError(f"rejected: {reports}")
        return Requests(
            sum(report["gets"] for report in reports),
            sum(report["puts"] for report in reports),
            # Each task forgets the peak of the one before.
            max(report["peak_mb"] for report in reports),
        )

    return work


if __name__ == "__main__":
    measure(setup)
