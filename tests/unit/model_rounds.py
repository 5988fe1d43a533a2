"""A federation whose rounds are applied to its model, on a bucket in memory."""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gradshard.client.model import Model
from gradshard.updates.tensors import Array
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_json import parse_plan
from gradshard_core.planning.plan_parts import Task
from gradshard_core.records.model_registry import Version
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from tests import reference
from tests.planned import levels_of
from tests.unit.fakes import MemoryStack, MemoryStore, MemoryWire


class MemoryFederation:
    """Rounds that go straight through, called one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rejected: list[str] = []
        monkeypatch.setattr(aws_requests, "give_up", lambda _token, *why: self.rejected.extend(why))
        for name in ("resume", "schedule_deadline", "cancel_deadline", "publish"):
            monkeypatch.setattr(aws_requests, name, lambda *_: True)
        self.store = MemoryStore()
        self.s3: Any = MemoryWire(self.store)
        self.model = Model(MemoryStack(self.store))
        self._rounds = 0

    def open(self, clients: int, **terms: Any) -> RoundKeys:
        """Open a round; why it is rejected stands in ``rejected``."""
        self._rounds += 1
        name = f"r{self._rounds}"
        fields = {"clients": [f"c{number}" for number in range(clients)], **terms}
        open_round(self.store, name, fields, started="2026-01-01T00:00:00+00:00", token="t")
        return RoundKeys(name)

    def go(
        self,
        updates: Sequence[Mapping[str, Any]],
        samples: Sequence[int],
        steps: Sequence[int] | None = None,
        **terms: Any,
    ) -> Version:
        """Do a round of these updates, and return the version that it makes."""
        keys = self.open(len(updates), **terms)
        for number, update in enumerate(updates):
            metadata = {"num_samples": str(samples[number])}
            if steps:
                metadata["steps"] = str(steps[number])
            body = reference.encode(dict(update), metadata)
            self.store.put_bytes(keys.update(f"c{number}"), body)
        request = PlanRequest("2026-01-01T00:00:01Z", "complete", 0)
        planned = plan_round(
            self.store, keys.round_id, request, aggregator=LambdaConfig(512, "arm64")
        )
        for level in levels_of(planned):
            for batch in self.store.get_json(level["key"]):
                for task in batch["tasks"]:
                    aggregate_shard(self.s3, keys.round_id, attempt=0, task=Task(**task["task"]))
        assert finalize_round(self.store, keys.round_id) == {"status": "completed"}
        self.manifest = self.store.get_json(keys.manifest)
        self.plan = self.store.get_json(keys.plan, parse_plan)
        return self.model.current()

    def tensors(self, version: Version | None = None) -> dict[str, Array]:
        """Return the current model, or a version's."""
        found = (version or self.model.current()).tensors.source.key
        return reference.decode(self.store.objects[found])

    def state(self, name: str) -> dict[str, Array]:
        """Return what the optimizer keeps."""
        return reference.decode(self.store.objects[self.model.current().state[name].source.key])
