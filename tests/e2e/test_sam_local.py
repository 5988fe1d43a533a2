"""`sam local invoke`, as docs/deploying.md has it, runs every function in a container."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradshard.local_engine.lifecycle import Engine
from tests.e2e import example_round
from tests.e2e.deployed import Deployed

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

MEMORY_MB = 192
"""The default of AggregatorMemory, less than one of the example's updates."""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module", autouse=True)
def _docker() -> None:
    """Skip where there is no Docker to run the functions in."""
    if shutil.which("docker") is None or run("docker", "info").returncode != 0:
        pytest.skip("Docker does not answer (`docker info`)")
    if not run("docker", "images", "-q", "public.ecr.aws/lambda/python").stdout:
        pytest.skip("Docker has no image public.ecr.aws/lambda/python")
    if not Path("/sys/class/net/docker0").exists():
        pytest.skip("containers cannot reach the engine: there is no docker0 network")


def invoked(engine: Engine, function: str) -> tuple[Any, str]:
    """Run a function; return what it returns, and what sam says of it."""
    done = run(
        Path(sys.executable).with_name("sam"),
        *("local", "invoke", f"{function.title().replace('_', '')}Function"),
        *("-e", example_round.EVENTS / f"{function}.json"),
        *("--config-file", engine.container_settings, "--skip-pull-image"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "errorMessage" not in report, report
    return report, done.stderr


def test_every_function_runs_in_a_container(
    engine: Engine, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAM_CLI_TELEMETRY", "0")
    example_round.remove(deployed)
    example_round.upload(deployed)
    said = {name: invoked(engine, name) for name in example_round.ORDER}

    reports = {name: report for name, (report, _) in said.items()}
    assert reports["open_round"]["status"] == "opened"
    assert reports["collect_update"]["status"] == "accepted"
    assert reports["plan_round"]["shards"] == 1
    assert reports["finalize_round"] == {"status": "completed"}
    assert reports["abort_round"] == {"status": "completed"}  # too late

    # A task in less memory than one update.
    report = reports["aggregate_shard"]
    assert f"Memory Size: {MEMORY_MB} MB" in said["aggregate_shard"][1]
    task = example_round.event("aggregate_shard")["task"]
    assert task["end"] > MEMORY_MB * 2**20
    assert (report["start"], report["end"], report["rejected"]) == (0, task["end"], [])
    assert report["bytes_read"] >= 3 * task["end"]
    assert report["peak_mb"] < MEMORY_MB
    example_round.remove(deployed)
