"""Rounds whose functions are those that are deployed, handler and all, on a bucket in memory.

What goes through the state machine is weighed on its way.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.limits import aws_limits
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.specs.round_spec import RoundSpec
from tests import reference
from tests.notifications import uploaded
from tests.planned import levels_of
from tests.unit.fakes import MemoryStore, MemoryWire
from tests.unit.observability.test_embedded_metrics import Context

ROOT = Path(__file__).parents[2]
DEFINITION: dict[str, Any] = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())
MAX_CAUSE = 32_768
"""Characters of a cause,
https://docs.aws.amazon.com/step-functions/latest/apireference/API_SendTaskFailure.html"""

OPENED = {"reason": "complete", "attempt": 0}


def size(value: Any) -> int:
    return len(json.dumps(value, separators=(",", ":")).encode())


def payload_of(state: str) -> dict[str, str]:
    """Return what a state of the machine gives its function."""
    found: dict[str, str] = DEFINITION["States"][state]["Parameters"]["Payload"]
    return found


class Machine:
    """A round's functions on a bucket in memory, with every payload weighed on its way."""

    def __init__(self, functions: Callable[[str], ModuleType]) -> None:
        self._functions = functions
        self.store = MemoryStore()
        self.keeper: MemoryStore | None = None
        self._plannings = 0
        self.begin("r")

    def begin(self, name: str) -> None:
        """Turn to a round of this name."""
        self.name, self.keys = name, RoundKeys(name)

    def step(self, function: str, **event: Any) -> dict[str, Any]:
        weigh(f"to {function}", event)
        module = self._functions(function)
        vars(module).update(store=self.store, s3=MemoryWire(self.store), keeper=self.keeper)
        answer: dict[str, Any] = module.handler({"round": self.name, **event}, Context())
        weigh(f"of {function}", answer)
        return answer

    def open(self, **spec: Any) -> dict[str, Any]:
        return self.step(
            "open_round", spec=spec, started="2026-01-01T00:00:00+00:00", token="token"
        )

    def spec(self) -> RoundSpec:
        """Return the terms of the round as they were written."""
        opened = read_spec(self.store, self.keys)
        assert opened is not None
        return opened[0]

    def submit(self, name: str, update: dict[str, reference.Array]) -> str:
        body = reference.encode(update, {"num_samples": "1"})
        self.store.put_bytes(self.keys.update(name), body)
        return self.store.etags[self.keys.update(name)].strip('"')

    def collect(self, name: str, etag: str) -> dict[str, Any]:
        """Deliver the event of an upload."""
        return self.step("collect_update", **uploaded(self.keys.update(name), etag))

    def turn(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Plan, do the tasks and finalize, as the machine does once around."""
        self.aggregate(self.plan(outcome))
        return self.step("finalize_round")

    def finish(self) -> dict[str, Any]:
        """Go around until the round is not planned again; return its outcome."""
        outcome: dict[str, Any] = OPENED
        while (outcome := self.turn(outcome))["status"] == "replan":
            pass
        return outcome

    def plan(self, outcome: dict[str, Any]) -> dict[str, Any]:
        self._plannings += 1
        carried = [path[2:] for path in payload_of("PlanRound").values() if path.startswith("$.")]
        given = {name: outcome[name] for name in carried}
        return self.step(
            "plan_round", entered_at=f"2026-01-01T00:00:{self._plannings:02}Z", **given
        )

    def aggregate(self, planned: dict[str, Any]) -> None:
        for level in levels_of(planned):
            for batch in self.store.get_json(level["key"]):
                weigh("to a child", batch)
                for task in batch["tasks"]:
                    self.step("aggregate_shard", **task)


def weigh(what: str, value: Any) -> None:
    assert size(value) <= aws_limits.MAX_PAYLOAD_BYTES, what


def load(name: str) -> ModuleType:
    """Import a function by the name of its folder, as Lambda does: anew, in this environment."""
    path = ROOT / "functions" / name / "app.py"
    spec = importlib.util.spec_from_file_location(f"{name}_app", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Told:
    """Step Functions and the event bus."""

    def __init__(self) -> None:
        self.causes: list[str] = []
        self.events: list[Any] = []

    def call(self, _service: Any, operation: str, body: Mapping[str, Any], **_: str) -> Any:
        if operation == "SendTaskFailure":
            assert len(body["cause"]) <= MAX_CAUSE
            self.causes.append(body["cause"])
        if operation == "PutEvents":
            weigh("to the event bus", body["Entries"])
            self.events += body["Entries"]
            return {"FailedEntryCount": 0}
        return {}
