"""Measure the import of each function's handler, and list the modules of aggregate_shard."""

import json
import os
import subprocess
import sys
from typing import Any, Final

from benchmarks import runs
from benchmarks.servers import BUCKET, aws_environment

_SCRIPT: Final = """
import json, runpy, sys, time
before = set(sys.modules)
wall, cpu = time.perf_counter(), time.process_time()
runpy.run_path(sys.argv[1])
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
status = open("/proc/self/status").read().split()
names = {name.partition(".")[0] for name in set(sys.modules) - before}
print(json.dumps({
    "milliseconds": 1000 * wall,
    "cpu_seconds": cpu,
    "resident_mib": int(status[status.index("VmRSS:") + 1]) / 1024,
    "modules": len(set(sys.modules) - before),
    "standard": sorted(n for n in names if n in sys.stdlib_module_names),
    "others": sorted(n for n in names if n not in sys.stdlib_module_names),
}))
"""


def measure(times: int) -> dict[str, Any]:
    """Import every handler in fresh interpreters, a round of all after another."""
    apps = sorted((runs.ROOT / "functions").glob("*/app.py"))
    environment = {
        **os.environ,
        # Made clients are part of an import, requests are not.
        **aws_environment("http://127.0.0.1:9"),
        "GRADSHARD_BUCKET": BUCKET,
        "GRADSHARD_BUCKET_HOST": "",
        "GRADSHARD_AGGREGATOR_MEMORY": "128",
        "GRADSHARD_ARCHITECTURE": "arm64",
        "GRADSHARD_MAP_CONCURRENCY": "0",
        "GRADSHARD_SCHEDULE_GROUP": "benchmark",
        "GRADSHARD_COLLECT_FUNCTION_ARN": "benchmark",
        "GRADSHARD_SCHEDULE_ROLE_ARN": "benchmark",
        "GRADSHARD_STACK": "gradshard",
        "OPENBLAS_NUM_THREADS": "1",
        # The layer is deployed with bytecode: the first of the runs may have to write it.
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONPATH": runs.PYTHONPATH,
    }
    found: dict[str, list[dict[str, Any]]] = {app.parent.name: [] for app in apps}
    for _ in range(times):
        for app in apps:
            done = subprocess.run(
                [sys.executable, "-c", _SCRIPT, app],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            found[app.parent.name].append(json.loads(done.stdout))
    return {
        name: {
            **{
                figure: runs.summary([result[figure] for result in results])
                for figure in ("milliseconds", "cpu_seconds", "resident_mib", "modules")
            },
            "standard": results[0]["standard"],
            "others": results[0]["others"],
        }
        for name, results in found.items()
    }
