"""Reading tasks' reports as ``finalize_round`` does, from a real server."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.rows.measure import Requests, Work, measure
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.task_client import TaskS3Client


def setup(job: dict[str, Any]) -> Work:
    """Read all of them."""
    s3 = TaskS3Client(job["bucket"])

    def work() -> Requests:
        with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
            reports = list(pool.map(s3.get_json, job["keys"]))
        if None in reports:
            raise RuntimeError("a report is missing")
        return Requests(len(reports))

    return work


if __name__ == "__main__":
    measure(setup)
