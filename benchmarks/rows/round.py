"""plan_round and finalize_round of a round with many shards, with S3 played by a dictionary."""

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from benchmarks.rows.measure import memory_kib, reset_peak
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import Layout, encode_header
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.planning.plan_parts import Task
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.store import ANYTHING, ListedObject, S3Store
from gradshard_core.units import MIB

LAYERS: Final = 200
ETAG: Final = f'"{"0" * 32}"'


class _Memory(S3Store):
    """A bucket in memory for planning and finalizing; updates are headers without tensors."""

    def __init__(self, layout: Layout, clients: int) -> None:
        self.bucket, self.clients = "memory", clients
        self.objects: dict[str, bytes] = {}
        self.header = encode_header(layout, {"num_samples": "600"})
        self.nbytes = len(self.header) + layout.nbytes
        self.result_bytes = 0

    def get_head(self, key: str, nbytes: int) -> tuple[bytes, ObjectVersion]:
        return self.header[:nbytes], ObjectVersion(key, "", ETAG, self.nbytes)

    def get_bytes(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def head(self, key: str) -> ObjectVersion | None:
        # The result, once it is whole; there was no plan before.
        return ObjectVersion(key, "", ETAG, self.result_bytes) if self.result_bytes else None

    def describe(self, key: str) -> tuple[ObjectVersion, str] | None:
        source = self.head(key)
        return source and (source, "")

    def put_bytes(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "",  # noqa: ARG002
        replaces: str | None = ANYTHING,  # noqa: ARG002
        crc64nvme: str = "",  # noqa: ARG002
    ) -> bool:
        self.objects[key] = body
        return True

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:  # noqa: ARG002
        for client in range(self.clients):
            key = f"{prefix}c{client:04d}.safetensors"
            yield ListedObject(key, ETAG, self.nbytes, datetime.now(UTC))

    def create_upload(self, *_: Any, **__: Any) -> str:
        return "upload"

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> None: ...

    def abort_upload(self, key: str, upload_id: str) -> None: ...

    def delete(self, key: str, *, only: str | None = None) -> None: ...

    def delete_versions(self, prefix: str) -> None: ...


def measure(shards: int, clients: int) -> dict[str, Any]:
    """Plan and finalise a round of shards of 8 MiB."""
    elements = shards * 8 * MIB // 4 // LAYERS * LAYERS
    layout = Layout.pack((f"layer{i}", "F32", (elements // LAYERS,)) for i in range(LAYERS))
    store, keys = _Memory(layout, clients), RoundKeys("scale")
    spec = {"clients": clients, "shards": shards}
    record = {"round": "scale", "spec": spec, "opened_at": "2026-01-01T00:00:00+00:00"}
    store.put_json(keys.spec, record)
    aws_requests.publish = lambda *_: None
    aws_requests.cancel_deadline = lambda *_: None

    request = PlanRequest("2026-01-01T00:00:01", "complete", 0)
    planned = _timed(
        lambda: plan_round(store, "scale", request, aggregator=LambdaConfig(3008, "arm64"))
    )
    plan = parse_plan(store.get_json(keys.plan))
    _report(store, keys, plan)
    finalised = _timed(lambda: finalize_round(store, "scale"))
    if keys.manifest not in store.objects:
        raise RuntimeError("the round was not completed")
    if plan.computation.shards != shards:
        raise RuntimeError(f"planned {plan.computation.shards} shards, not {shards}")
    return {
        "shards": plan.computation.shards,
        "clients": clients,
        "tasks": plan.computation.shards * sum(len(level.groups) for level in plan.levels),
        "plan_cpu_seconds": planned,
        "finalise_cpu_seconds": finalised,
    }


def _report(store: _Memory, keys: RoundKeys, plan: Plan) -> None:
    """Leave behind what the tasks would have."""
    store.result_bytes = plan.layout.header.nbytes + plan.layout.nbytes
    for task in (task for level in range(len(plan.levels)) for task in plan.tasks(level)):
        report = report_of(task, plan.attempt)
        if plan.is_last(task.level):
            head = plan.layout.header.nbytes if task.number == 0 else 0
            report["parts"] = [[ETAG, head + task.end - task.start]]
        store.put_json(keys.task_report(task.level, task.number), report)


def report_of(task: Task, attempt: int) -> dict[str, Any]:
    """Return what a task reports."""
    return {
        "level": task.level,
        "task": task.number,
        "attempt": attempt,
        "start": task.start,
        "end": task.end,
        **dict.fromkeys(("gets", "puts", "retries", "bytes_read", "bytes_written"), 1),
        **dict.fromkeys(("seconds", "cpu_seconds", "peak_mb"), 1.0),
        "is_cold": False,
        "is_written": True,
        "rejected": [],
    }


def _timed(work: Callable[[], object]) -> float:
    cpu = time.process_time()
    work()
    return time.process_time() - cpu


if __name__ == "__main__":
    gc.collect()
    idle = memory_kib("VmRSS")
    reset_peak()
    result = measure(*map(int, sys.argv[1:]))
    print(json.dumps(result | {"peak_mib": (memory_kib("VmHWM") - idle) / 1024}))
