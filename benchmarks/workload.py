"""The input of the rows: clients' updates as files, a plan, and the expected bytes."""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.servers import BUCKET, Server
from gradshard.updates.compression import Compression, DecodedContent, EncodedContent
from gradshard.updates.upload_source import Content, FileContent, header_bytes
from gradshard_core.aggregation.arithmetic import SHARES
from gradshard_core.costs import memory_projection
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.workload import Workload
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout, encode_header
from gradshard_core.planning import shard_count
from gradshard_core.planning.client_weights import weigh
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_json import plan_to_json
from gradshard_core.planning.plan_parts import (
    Computation,
    Contributor,
    Level,
    Participants,
    PlannedLayout,
    Task,
)

RESNET_18: Final = 11_181_642
VGG_16: Final = 134_301_514
DISTINCT: Final = 4
"""Different updates; further clients' files are links to these, weighted differently."""

_MEMORY_MB: Final = 128
_CHUNK: Final = 1 << 20

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One size of round.

    Parameters
    ----------
    clients
        The number of clients.
    elements
        float32 numbers in an update.
    shards
        M, or None for the planner's own choice.
    whole
        Whether a run does all shards, one after the other, or only the first.
    codec
        The codec of the updates; empty if they are not compressed.
    """

    clients: int
    elements: int
    shards: int | None
    whole: bool
    codec: str = ""

    @property
    def megabytes(self) -> int:
        """An update's size in MB of 1024² bytes, as the papers name it."""
        return round(self.elements * 4 / 2**20)

    @property
    def round_id(self) -> str:
        """The name of its round."""
        codec = self.codec and f"-{self.codec}"
        return f"{self.clients}x{self.megabytes}-M{self.shards or 'planner'}{codec}"


@dataclass(frozen=True)
class Prepared:
    """A case whose objects are on the server.

    Attributes
    ----------
    job
        The job of a row, as JSON.
    shards
        M.
    projected_mb
        The memory that the planner projects for a task, in MB.
    client_bytes
        The bytes of client updates that one run aggregates, once decoded.
    expected
        What the rows must have written, target → MD5: the planned parts, the weighted sum as one
        object, and the plain mean as ``.npy``.
    """

    case: Case
    job: dict[str, Any]
    shards: int
    projected_mb: float
    client_bytes: int
    expected: dict[str, str]


class Workloads:
    """Makes updates once for all cases that share them."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def prepare(self, case: Case) -> Prepared:
        """Put a case's objects on the server and work out what must come of them."""
        layout = _layout(case.elements)
        header = encode_header(layout, {"num_samples": "1"})
        plan, projection = self._plan(case, layout, len(header))
        keys = RoundKeys(case.round_id)
        paths = [
            self._update(case.elements, index % DISTINCT, f"{case.codec}-decoded")
            if case.codec
            else self._server.path(c.source.key)
            for index, c in enumerate(plan.contributors)
        ]
        tasks = plan.tasks(0)[: None if case.whole else 1]
        shards: list[dict[str, Any]] = []
        expected: dict[str, str] = {}
        for task in tasks:
            updates: list[Floats] = [
                np.memmap(path, "<f4", "r", _data_offset(path) + task.start, shape=_count(task))
                for path in paths
            ]
            weights = [c.weight for c in plan.contributors]
            total, mean = _averages(updates, weights)
            sum_key, mean_key = (f"{case.round_id}/{n}/{task.number}" for n in ("sum", "mean"))
            expected |= _part(plan, task, keys.result, encode_header(layout, {}), total)
            expected[sum_key], expected[mean_key] = _md5(total.tobytes()), _md5(_npy(mean))
            shards.append(
                {
                    "start": task.start,
                    "end": task.end,
                    "sum": sum_key,
                    "mean": mean_key,
                    "npy": [] if case.codec else self._precut(case, task, updates),
                }
            )
        job = {
            "bucket": BUCKET,
            "tasks": [
                {"round": case.round_id, "attempt": 0, "task": task._asdict()} for task in tasks
            ],
            "shards": shards,
            "clients": [
                {
                    "key": c.source.key,
                    # Links share their path, so that what is loaded by path is loaded once.
                    "path": str(paths[index % DISTINCT]),
                    "data_offset": len(header),
                    "weight": c.weight,
                    "samples": c.samples,
                }
                for index, c in enumerate(plan.contributors)
            ],
        }
        nbytes = sum(shard["end"] - shard["start"] for shard in shards)
        return Prepared(
            case, job, plan.computation.shards, projection, nbytes * case.clients, expected
        )

    def _plan(self, case: Case, layout: Layout, data_offset: int) -> tuple[Plan, float]:
        keys = RoundKeys(case.round_id)
        contributors = []
        for index in range(case.clients):
            client = f"c{index:02d}"
            path = self._server.path(keys.update(client))
            if not path.exists():
                os.link(self._update(case.elements, index % DISTINCT, case.codec), path)
            self._server.publish(keys.update(client))
            source = ObjectVersion(
                keys.update(client), "", self._server.etag(keys.update(client)), path.stat().st_size
            )
            runs = layout.runs_in(layout, data_offset)
            if case.codec:
                with FileContent(path, None) as content:
                    runs = layout.runs_in(content.layout, header_bytes(content))
            contributors.append(Contributor(client, source, 600 + 37 * index, 0.0, runs))
        projection, notes = shard_count.choose(
            Workload(
                layout.nbytes,
                ((case.clients,),),
                plan_bytes=memory_projection.plan_bytes(case.clients),
                stored_bytes=contributors[0].runs.nbytes if case.codec else None,
            ),
            LambdaConfig(_MEMORY_MB, "arm64"),
            shards=case.shards,
        )
        plan = Plan(
            case.round_id,
            Participants(weigh(contributors, SHARES)),
            Computation((Level.of_sizes([case.clients]),), projection.shards),
            PlannedLayout.of(layout),
            upload_id=self._server.create_upload(keys.result),
            notes=tuple(notes),
            projected=projection.to_json(),
        )
        self._put(keys.plan, json.dumps(plan_to_json(plan)).encode())
        return plan, projection.needed_mb

    def _put(self, key: str, data: bytes) -> None:
        self._server.path(key).write_bytes(data)
        self._server.publish(key)

    def _update(self, elements: int, number: int, form: str = "") -> Path:
        """Return the file of one of the distinct updates.

        ``form`` is a codec, or such as ``int8-decoded`` for what comes of decoding it.
        """
        path = self._server.path(f"updates/{elements}-{number}{form}.safetensors")
        if path.exists():
            return path
        if form:
            codec, is_encoded, _ = form.partition("-")
            with FileContent(
                self._update(elements, number, codec if is_encoded else ""), None
            ) as c:
                _write(
                    path, DecodedContent(c) if is_encoded else EncodedContent(c, Compression(codec))
                )
        else:
            header = encode_header(_layout(elements), {"num_samples": "1"})
            rng = np.random.default_rng(number)
            with path.open("wb") as file:
                file.write(header)
                for start in range(0, elements, _CHUNK):
                    count = min(_CHUNK, elements - start)
                    file.write(rng.standard_normal(count, np.float32).tobytes())
        return path

    def _precut(self, case: Case, task: Task, updates: list[Floats]) -> list[str]:
        """Write one ``.npy`` object per client, which is what the published code reads."""
        keys = [f"{case.round_id}/npy/{task.number}/c{i:02d}.npy" for i in range(len(updates))]
        paths = [self._server.path(key) for key in keys]
        for index, (update, key, path) in enumerate(zip(updates, keys, paths, strict=True)):
            if index < DISTINCT:
                np.save(path, update)
            else:
                os.link(paths[index % DISTINCT], path)
            self._server.publish(key)
        return keys


def _write(path: Path, content: Content) -> None:
    with path.open("wb") as file:
        for start in range(0, content.nbytes, _CHUNK):
            file.write(content.read(start, min(start + _CHUNK, content.nbytes)))


def _data_offset(path: Path) -> int:
    """Return where the tensors of a file begin."""
    with path.open("rb") as file:
        return PREFIX_BYTES + int.from_bytes(file.read(PREFIX_BYTES), "little")


def _layout(elements: int) -> Layout:
    return Layout.pack([("features", "F32", (elements - 10,)), ("classifier", "F32", (10,))])


def _averages(updates: list[Floats], weights: list[float]) -> tuple[Floats, Floats]:
    """Return the weighted sum and the plain mean, in client order, by a plain loop."""
    total, mean = np.empty_like(updates[0]), np.empty_like(updates[0])
    for start in range(0, len(total), _CHUNK):
        pieces = [update[start : start + _CHUNK] for update in updates]
        acc = pieces[0] * np.float32(weights[0])
        plain = pieces[0]
        for piece, weight in zip(pieces[1:], weights[1:], strict=True):
            acc = acc + piece * np.float32(weight)
            plain = plain + piece
        total[start : start + _CHUNK] = acc
        mean[start : start + _CHUNK] = plain / len(updates)
    return total, mean


def _part(plan: Plan, task: Task, key: str, header: bytes, total: Floats) -> dict[str, str]:
    data = (header if task.number == 0 else b"") + total.tobytes()
    return {f"{key}?partNumber={task.part}&uploadId={plan.upload_id}": _md5(data)}


def _npy(array: Floats) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _count(task: Task) -> int:
    return (task.end - task.start) // 4
