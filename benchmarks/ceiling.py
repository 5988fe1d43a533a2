"""The memory ceiling: a container of 128 MB, held by the kernel as Lambda holds a function.

A pass that holds a block of every update at once gets the smallest function that the planner
accepts.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import engine, runs
from benchmarks.ceiling_rounds import MEMORY_MB, Case, Planned, planned_round
from benchmarks.engine import Engine
from benchmarks.servers import BUCKET
from gradshard.aws.client_store import ClientStore
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.robust.inner_products import ExactSum
from gradshard_core.units import MIB

IMAGE: Final = "public.ecr.aws/lambda/python:3.13-x86_64"
HOST: Final = "172.17.0.1"
"""This machine, as containers see it."""
SUCCEEDS: Final = "succeeded, bytes as the reference"
KILLED: Final = "killed"

_SAM: Final = Path(sys.executable).with_name("sam")
_PUBLISHED_TEMPLATE: Final = """
Transform: AWS::Serverless-2016-10-31
Resources:
  Layer:
    Type: AWS::Serverless::LayerVersion
    Properties: {{ ContentUri: {layer} }}
  PublishedFunction:
    Type: AWS::Serverless::Function
    Properties:
      CodeUri: {code}
      Handler: published.handler
      Runtime: python3.13
      Architectures: [x86_64]
      MemorySize: {memory}
      Timeout: 285
      Layers: [!Ref Layer]
      Environment:
        Variables:
          AWS_ENDPOINT_URL: {endpoint}
          GRADSHARD_BUCKET: ""
          GRADSHARD_STACK: ""
"""

Json = dict[str, Any]

CASES: Final = (
    Case(4, 1024),
    *(Case(4, 1024, codec) for codec in CODECS),
    Case(4, 1024, masked=True),
    Case(64, 64),
    Case(64, 64, masked=True),
    Case(64, 64, rule="median"),
    Case(64, 64, rule="geometric_median"),
    Case(64, 1024, rule="median"),
    Case(64, 1024, rule="geometric_median"),
)


def measure(*, notes: list[str], say: Callable[[str], None]) -> list[Json]:
    """Run the function and the published pattern in containers; note why, where that cannot be."""
    if reason := _missing():
        notes.append(f"ceiling: {reason}")
        return []
    with tempfile.TemporaryDirectory(prefix="gradshard-bench-") as name:
        say("ceiling: sam build")
        build = Path(name, "build")
        _build(build)
        found = []
        for case in CASES:
            with engine.serve(bind=HOST) as server:
                say(f"ceiling: uploading {case.what}")
                planned = planned_round(server, case)
                say(f"ceiling: aggregate_shard, {case.what}, {planned.memory_mb} MB")
                found.append(_function(server, build, planned, case))
                if case == Case(64, 64):
                    say("ceiling: published")
                    found.append(_published(server, build, Path(name), case.mib))
        return found


def _missing() -> str | None:
    if platform.machine() != "x86_64":
        return f"the base image is for x86_64, not {platform.machine()}"
    if not shutil.which("docker") or not _succeeds("docker", "info"):
        return "Docker does not answer (`docker info`)"
    if not _succeeds("docker", "image", "inspect", IMAGE):
        return f"Docker has no image {IMAGE}"
    if not Path("/sys/class/net/docker0").exists():
        return "containers cannot reach the engine: there is no docker0 network"
    if not _SAM.exists():
        return "sam is not installed beside this Python"
    return None


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _build(folder: Path) -> None:
    done = subprocess.run(
        [_SAM, "build", "--build-dir", folder, "--parameter-overrides", "Architecture=x86_64"],
        cwd=runs.ROOT,
        env=os.environ | {"PATH": f"{_SAM.parent}:{os.environ['PATH']}", "SAM_CLI_TELEMETRY": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"sam build failed:\n{done.stderr[-2000:]}")


def _function(server: Engine, build: Path, planned: Planned, case: Case) -> Json:
    task = planned.task
    outcome = _invoke(
        server,
        build / "template.yaml",
        "AggregateShardFunction",
        task,
        "--parameter-overrides",
        "Architecture=x86_64",
        f"AggregatorMemory={planned.memory_mb}",
        f"EndpointUrl=http://{HOST}:{server.port}",
    )
    report = outcome.pop("answer")
    result: Json = {
        "row": "aggregate_shard",
        "what": f"{case.what}, {planned.memory_mb} MB" if case.rule else case.what,
        "wanted": SUCCEEDS,
        "peak_mb": None,
        **outcome,
    }
    if result["outcome"] == "answered":
        keys = RoundKeys(task["round"])
        store = ClientStore(BUCKET, server.s3)
        plan = parse_plan(store.get_json(keys.plan))
        if planned.products is None:
            parts = store.list_parts(keys.result, plan.upload_id) or []
            written = {str(part.number): part.etag.strip('"') for part in parts}
            is_right = written == planned.parts
        else:
            measured = ExactSum(case.clients)
            measured.add_json(store.get_json(keys.task_report(0, 0))["products"]["0"])
            longest = planned.products.max()
            is_right = np.allclose(measured.rounded(), planned.products, atol=1e-6 * longest)
        if not is_right:
            raise runs.WrongBytesError(
                f"ceiling: {result['what']}: parts differ from the reference"
            )
        result |= {"outcome": SUCCEEDS, "peak_mb": report["peak_mb"], "seconds": report["seconds"]}
    return result


def _published(server: Engine, build: Path, folder: Path, mib: int) -> Json:
    array = np.ones(mib * MIB // 4, np.float32)
    path = server.path("one.npy")
    np.save(path, array)
    server.publish("one.npy")
    code = folder / "published"
    code.mkdir()
    shutil.copy(runs.ROOT / "benchmarks" / "rows" / "in_container" / "published.py", code)
    template = folder / "published.yaml"
    template.write_text(
        _PUBLISHED_TEMPLATE.format(
            layer=build / "GradshardLayer",
            code=code,
            memory=MEMORY_MB,
            endpoint=f"http://{HOST}:{server.port}",
        )
    )
    event = {"bucket": BUCKET, "keys": ["one.npy"] * 4, "mean": "mean.npy"}
    outcome = _invoke(server, template, "PublishedFunction", event)
    del outcome["answer"]
    return {
        "row": "published",
        "what": f"{mib} MiB from 4 clients",
        "wanted": KILLED,
        "peak_mb": None,
        **outcome,
    }


def _invoke(server: Engine, template: Path, function: str, event: Json, *options: str) -> Json:
    """Run a function in its container; return its answer or how it ended, and its memory."""
    marker = f"benchmark-{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as name:
        variables = Path(name, "variables.json")
        variables.write_text(
            json.dumps({function: {"GRADSHARD_BUCKET": BUCKET, "GRADSHARD_STACK": marker}})
        )
        environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        environment |= {k: v for k, v in server.environment.items() if k != "AWS_ENDPOINT_URL"}
        began = time.perf_counter()
        with _watched(marker) as peak:
            done = subprocess.run(
                [
                    *(str(_SAM), "local", "invoke", function, "--skip-pull-image", "--event", "-"),
                    *("--template", str(template), "--env-vars", str(variables), *options),
                ],
                input=json.dumps(event),
                env=environment | {"SAM_CLI_TELEMETRY": "0"},
                capture_output=True,
                text=True,
                check=False,
            )
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    killed = re.search(
        r"signal: killed|OutOfMemory|exited with|Runtime exited", done.stderr + done.stdout
    )
    if isinstance(answer, dict) and "errorMessage" in answer:
        ended = KILLED if killed else f"failed: {answer['errorMessage']}"
    elif isinstance(answer, dict):
        ended = "answered"
    else:
        ended = KILLED if killed else f"failed: {(done.stdout or done.stderr)[-300:]}"
    return {
        "outcome": ended,
        "answer": answer,
        "seconds": time.perf_counter() - began,
        "container_mb": peak[0] / MIB if peak else None,
    }


@contextlib.contextmanager
def _watched(marker: str) -> Iterator[list[int]]:
    """Note the most memory of the container whose environment holds ``marker``, in bytes."""
    peak: list[int] = []
    over = threading.Event()

    def watch() -> None:
        folder: Path | None = None
        while not over.wait(0.1):
            folder = folder or _cgroup(marker)
            if folder:
                with contextlib.suppress(OSError):
                    peak[:] = [max(*peak, _used(folder))] if peak else [_used(folder)]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _cgroup(marker: str) -> Path | None:
    """Find the memory controller's folder of the container."""
    listed = subprocess.run(
        ["docker", "ps", "--quiet", "--no-trunc"], capture_output=True, text=True, check=False
    )
    for container in listed.stdout.split():
        shown = subprocess.run(
            ["docker", "inspect", "--format", "{{.Config.Env}}", container],
            capture_output=True,
            text=True,
            check=False,
        )
        if marker in shown.stdout:
            roots = Path("/sys/fs/cgroup").rglob(f"*{container}*")
            return next(
                (p for p in roots if (p / "memory.stat").exists()),
                None,
            )
    return None


def _used(folder: Path) -> int:
    """Return what cannot be given back: processes' memory, mapped files, the kernel's."""
    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    kernel = folder / "memory.kmem.usage_in_bytes"
    if kernel.exists():
        return int(stat["total_rss"]) + int(stat["total_mapped_file"]) + int(kernel.read_text())
    return sum(int(stat.get(name, 0)) for name in ("anon", "file_mapped", "kernel", "sock"))
