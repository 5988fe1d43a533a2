"""`sam local invoke` runs a task in a container with its memory limit."""

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gradshard.deployment.local_engine import Engine
from tests.e2e import example_round
from tests.e2e.deployed import Deployed

pytestmark = [pytest.mark.e2e, pytest.mark.docker]

IMAGE = "public.ecr.aws/lambda/python:3.13-x86_64"
HOST = "172.17.0.1"
"""This machine, as containers see it; the `engine` fixture listens there too."""

MEMORY_MB = 128
"""The smallest function there is, smaller than the example's updates."""


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module", autouse=True)
def _docker() -> None:
    """Skip where there is no Docker to run the function in."""
    if platform.machine() != "x86_64":
        pytest.skip(f"the base image is for x86_64, not {platform.machine()}")
    if shutil.which("docker") is None or run("docker", "info").returncode != 0:
        pytest.skip("Docker does not answer (`docker info`)")
    if run("docker", "image", "inspect", IMAGE).returncode != 0:
        pytest.skip(f"Docker has no image {IMAGE}")
    if not Path("/sys/class/net/docker0").exists():
        pytest.skip("containers cannot reach the engine: there is no docker0 network")


def test_a_task_runs_in_a_container_smaller_than_one_update(
    engine: Engine, deployed: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example_round.remove(deployed)
    example_round.upload(deployed)
    for function in ("open_round", "plan_round"):
        deployed.call(function, example_round.event(function))

    variables = tmp_path / "variables.json"
    variables.write_text(json.dumps({"Parameters": {"GRADSHARD_BUCKET": deployed.bucket}}))
    # The shell's would win over the template's.
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("SAM_CLI_TELEMETRY", "0")
    overrides = {
        "EndpointUrl": f"http://{HOST}:{engine.port}",
        "Architecture": "x86_64",
        "AggregatorMemory": MEMORY_MB,
    }
    done = run(
        Path(sys.executable).with_name("sam"),
        *("local", "invoke", "AggregateShardFunction", "--skip-pull-image"),
        *("--event", example_round.EVENTS / "aggregate_shard.json"),
        *("--template", engine.folder / "build" / "template.yaml"),
        *("--env-vars", variables),
        "--parameter-overrides",
        *(f"{name}={value}" for name, value in overrides.items()),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert "errorMessage" not in report, report
    assert f"Memory Size: {MEMORY_MB} MB" in done.stderr

    task = example_round.event("aggregate_shard")["task"]
    assert task["end"] > MEMORY_MB * 2**20
    assert (report["start"], report["end"], report["rejected"]) == (0, task["end"], [])
    assert report["bytes_read"] >= 3 * task["end"]
    assert report["peak_mb"] < MEMORY_MB
    assert deployed.call("finalize_round", {"round": "r1"}) == {"status": "completed"}
    example_round.remove(deployed)
