"""A round without its state machine: its functions, called one after the other, over real HTTP."""

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.object_keys import ModelKeys, RoundKeys, StoredTensors
from gradshard_core.formats.tensor_layout import PREFIX_BYTES
from gradshard_core.planning.plan_parts import Rejection, Task
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.plan_and_manifest import read_manifest
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.task_client import TaskS3Client
from tests import reference
from tests.planned import levels_of

AGGREGATOR = LambdaConfig(memory_mb=512, architecture="arm64")
COUNTER = itertools.count()
Update = dict[str, reference.Array]


class Round:
    """A round without its state machine: the test is the machine."""

    def __init__(self, store: S3Store, **spec: Any) -> None:
        self.store, self.name = store, f"it-{next(COUNTER)}"
        self.keys = RoundKeys(self.name)
        self.aggregator = AGGREGATOR
        began_from = spec.pop("model_version", None)
        record: dict[str, Any] = {
            "round": self.name,
            "spec": spec,
            "opened_at": "2026-01-01T00:00:00+00:00",
        }
        if "server_optimizer" in spec:
            newest = model_registry.current(store, spec["server_optimizer"]["model"])
            record["model_version"] = began_from or (newest.number if newest else None)
        store.put_json(self.keys.spec, record)

    def upload(self, client: str, body: bytes) -> str:
        self.store.put_bytes(self.keys.update(client), body)
        head = self.store.head(self.keys.update(client))
        assert head is not None
        return head.etag.strip('"')

    def submit(self, client: str, update: Update, samples: Any = 1, **options: Any) -> str:
        return self.upload(
            client, reference.encode(update, {"num_samples": str(samples)}, **options)
        )

    def plan(
        self,
        attempt: int = 0,
        rejected: Sequence[Rejection] = (),
        *,
        entered_at: str = "2026-01-01T00:00:01Z",
        reason: str = "complete",
        is_repeated: bool = False,
        aggregator: LambdaConfig | None = None,
    ) -> dict[str, Any]:
        if rejected:  # as finalize_round leaves it
            self.store.put_json(self.keys.replan(attempt - 1), [vars(r) for r in rejected])
        request = PlanRequest(entered_at, reason, attempt, is_repeated)
        self.planned = plan_round(
            self.store, self.name, request, aggregator=aggregator or self.aggregator
        )
        return self.planned

    def tasks(self, level: int = 0) -> list[dict[str, Any]]:
        batches = self.store.get_json(list(levels_of(self.planned))[level]["key"])
        return [task for batch in batches for task in batch["tasks"]]

    def aggregate(self) -> None:
        for level, _ in enumerate(levels_of(self.planned)):
            for task in self.tasks(level):
                self.run(task)

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        with contextlib.closing(TaskS3Client(self.store.bucket)) as s3:
            return aggregate_shard(
                s3, task["round"], attempt=task["attempt"], task=Task(**task["task"])
            )

    def finalize(self) -> dict[str, Any]:
        return finalize_round(self.store, self.name)

    def go(self) -> dict[str, Any]:
        """Plan, aggregate and finalize until the round has ended."""
        outcome: dict[str, Any] = {"attempt": 0}
        while True:
            self.plan(outcome["attempt"])
            self.aggregate()
            outcome = self.finalize()
            if outcome["status"] == "completed":
                return outcome

    def result(self) -> bytes:
        body = self.store.get_bytes(self.keys.result)
        assert body is not None
        return body

    def manifest(self) -> dict[str, Any]:
        manifest = read_manifest(self.store, self.keys)
        assert manifest is not None
        return manifest

    def reason(self, client: str) -> str:
        rejection = self.store.get_json(self.keys.rejection(client))
        assert rejection is not None
        return str(rejection["reason"])


def put_model(store: S3Store, name: str, tensors: Update) -> None:
    """Make a model's first version, of an object as any safetensors writer makes it."""
    key = ModelKeys(name).put("first")
    body = reference.encode(tensors, {"format": "pt"})
    store.put_bytes(key, body)
    source = store.head(key)
    assert source is not None
    offset = 8 + int.from_bytes(body[:8], "little")
    model_registry.reserve(store, Version(name, 1, StoredTensors(source, offset)))
    model_registry.note_current(store, name)


def small(seed: int) -> Update:
    rng = np.random.default_rng(seed)
    return {
        "fc.weight": reference.random_tensor(rng, "F32", (17, 5)),
        "fc.brain": reference.random_tensor(rng, "BF16", (9,)),
        "fc.half": reference.random_tensor(rng, "F16", (2, 3)),
        "fc.double": reference.random_tensor(rng, "F64", (3,)),
        "bn.count": reference.random_tensor(rng, "I64", ()),
        "bn.bytes": reference.random_tensor(rng, "U8", (3,)),
        "empty": np.zeros((0, 4), np.float32),
    }


def layout_of(update: Update) -> dict[str, Any]:
    """Return an update's layout as a round's terms have it, in the order of its bytes."""
    blob = reference.encode(update, {"num_samples": "1"})
    end = PREFIX_BYTES + int.from_bytes(blob[:PREFIX_BYTES], "little")
    return parse_header(blob[PREFIX_BYTES:end], len(blob)).layout.to_json()


def assert_average(blob: bytes, updates: Sequence[Update], samples: Sequence[int]) -> None:
    result, expected = reference.decode(blob), reference.average(updates, samples)
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert (result[name].dtype, result[name].shape) == (tensor.dtype, tensor.shape)
        assert result[name].tobytes() == tensor.tobytes(), name
