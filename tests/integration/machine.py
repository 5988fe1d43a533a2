"""A round as the state machine runs it, with its retries, but in the test's hands.

The functions are those that are deployed, handler and all; how they are called is the caller's:
in this process, or in one of their own that can be killed.
"""

import contextlib
import itertools
import json
import runpy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gradshard_core.formats.object_keys import ModelKeys, RoundKeys
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration.by_hand import Update, layout_of, put_model, small
from tests.notifications import uploaded
from tests.planned import levels_of

ROOT = Path(__file__).parents[2]
FUNCTIONS = sorted(folder.name for folder in (ROOT / "functions").iterdir())
DELIVERIES = 3
"""How often an event comes whose function fails."""

COUNTER = itertools.count()
CLIENTS = ["a", "b", "c", "d"]
SAMPLES = [5, 1, 900, 17]
MODEL: Update = small(99)
UPDATES: list[Update] = [small(seed) for seed in range(4)]
TREE: dict[str, Any] = {"topology": "lambda_fl"}
APPLIED: dict[str, Any] = {
    "shards": 1,
    "server_optimizer": {"optimizer": "fedadam", "learning_rate": 0.5},
}
EAGER: dict[str, Any] = {
    "topology": "lambda_fl",
    "eager": True,
    "weights": "counts",
    "layout": layout_of(UPDATES[0]),
}

COLUMNS: dict[str, Any] = {"rule": "median"}
MEASURED: dict[str, Any] = {**APPLIED, "rule": {"name": "cosine_filter", "least": -1}}
"""Two passes, in the end of which all updates have their shares."""

Call = Callable[[str, dict[str, Any]], dict[str, Any]]
"""Invokes a function by the name of its folder."""


class FunctionError(Exception):
    """A function failed; ``error`` is what the machine calls it."""

    def __init__(self, error: str, message: str) -> None:
        super().__init__(f"{error}: {message}")
        self.error = error
        self.cause = json.dumps({"errorType": error, "errorMessage": message})


class _Rule(NamedTuple):
    errors: frozenset[str]
    attempts: int


def _retries() -> dict[str, list[_Rule]]:
    """Read from the definition how often each of its tasks is tried again."""
    definition = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())
    found: dict[str, list[_Rule]] = {}

    def walk(states: dict[str, Any]) -> None:
        for name, state in states.items():
            if "Retry" in state:
                found[name] = [
                    _Rule(frozenset(rule["ErrorEquals"]), rule["MaxAttempts"])
                    for rule in state["Retry"]
                ]
            if "ItemProcessor" in state:
                walk(state["ItemProcessor"]["States"])

    walk(definition["States"])
    return found


RETRIES = _retries()


class Context:
    """What the logger wants of Lambda's context."""

    function_name = function_version = invoked_function_arn = aws_request_id = "test"
    memory_limit_in_mb = 1024

    def get_remaining_time_in_millis(self) -> int:
        return 30_000


@contextlib.contextmanager
def in_this_process() -> Iterator[Call]:
    """Call functions here, as warm ones: by what the environment says when this begins."""
    modules = {
        name: runpy.run_path(str(ROOT / "functions" / name / "app.py")) for name in FUNCTIONS
    }

    def call(function: str, event: dict[str, Any]) -> dict[str, Any]:
        # What comes to a function, and what leaves it, is JSON.
        event = json.loads(json.dumps(event))
        try:
            outcome = modules[function]["handler"](event, Context())
        except Exception as error:
            raise FunctionError(type(error).__name__, str(error)) from error
        answer: dict[str, Any] = json.loads(json.dumps(outcome))
        return answer

    yield call
    for module in modules.values():
        if "store" in module:
            module["store"].close()
        if "s3" in module:
            module["s3"].close()


@dataclass
class Machine:
    """One round's execution.

    Parameters
    ----------
    call
        How functions are called.
    store
        The bucket, past all faults.
    terms
        The round's, beside its clients.
    clients, updates, samples
        Who takes part, with what.
    lost
        Clients that send nothing.
    """

    call: Call
    store: S3Store
    terms: Mapping[str, Any]
    clients: Sequence[str] = tuple(CLIENTS)
    updates: Sequence[Update] = tuple(UPDATES)
    samples: Sequence[int] = tuple(SAMPLES)
    lost: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.name = f"machine-{next(COUNTER)}"
        self.keys = RoundKeys(self.name)
        self.sent: dict[str, str] = {}
        self.before: Version | None = None
        if apply := self.terms.get("server_optimizer"):
            self.terms = {**self.terms, "server_optimizer": {"model": self.name, **apply}}
            name = self.terms["server_optimizer"]["model"]
            if model_registry.current(self.store, name) is None:
                put_model(self.store, name, MODEL)
            self.before = model_registry.current(self.store, name)

    # ------------------------------------------------------------------------------ the round

    def run(self) -> dict[str, Any]:
        """Go through the round; return its manifest."""
        try:
            self._run()
        except FunctionError as failure:
            self._abort(failure)
        manifest: dict[str, Any] = self.store.get_json(self.keys.manifest)
        return manifest

    def _run(self) -> None:
        eager = self.terms.get("eager", False)
        stages = [self.clients[:2], self.clients[2:]] if eager else [self.clients]
        outcome: dict[str, Any] = {"status": "awaiting"}
        for clients in stages:
            self.open()
            for client in clients:
                if client not in self.lost:
                    self.submit(client)
                self.collect(client)
            outcome = self.aggregate({"reason": "complete", "attempt": 0})
        assert outcome["status"] == "completed"

    def open(self) -> None:
        spec = {"clients": list(self.clients), "timeout": 3600, **self.terms}
        event = {"round": self.name, "spec": spec, "started": "2026-01-01T00:00:00+00:00"}
        opened = self.step("OpenRound", "open_round", event | {"token": "nobody-waits"})
        assert opened["status"] == "opened"

    def submit(self, client: str) -> None:
        if "updates_from" in self.terms:
            return
        self.store.put_bytes(self.keys.update(client), self.blob(client))
        head = self.store.head(self.keys.update(client))
        assert head is not None
        self.sent[client] = head.etag.strip('"')

    def blob(self, client: str) -> bytes:
        index = self.clients.index(client)
        return reference.encode(self.updates[index], {"num_samples": str(self.samples[index])})

    def collect(self, client: str) -> None:
        """Deliver the event of an upload; it is lost if its function goes on failing."""
        if client not in self.sent:
            return
        event = uploaded(self.keys.update(client), self.sent[client])
        for _ in range(DELIVERIES):
            try:
                self.call("collect_update", event)
            except FunctionError:
                continue
            return

    def aggregate(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Plan, do the tasks and finalize until nothing more can be done for now."""
        for planning in itertools.count():
            time = f"2026-01-01T00:{len(self.sent):02}:{planning:02}Z"
            carried = {name: outcome[name] for name in ("reason", "attempt")}
            event = {"round": self.name, "entered_at": time, **carried}
            planned = self.step("PlanRound", "plan_round", event)
            for level in levels_of(planned):
                for batch in self.store.get_json(level["key"]):
                    for task in batch["tasks"]:
                        self.do(task)
            outcome = self.step("FinalizeRound", "finalize_round", {"round": self.name})
            if outcome["status"] != "replan":
                break
        return outcome

    def do(self, task: dict[str, Any]) -> None:
        try:
            self.step("AggregateShard", "aggregate_shard", task)
        except FunctionError as failure:
            self._abort(failure, task["task"])
            raise

    def step(self, state: str, function: str, event: dict[str, Any]) -> dict[str, Any]:
        """Call a function as a state of the machine does: again, if its errors allow it."""
        failures: Counter[_Rule] = Counter()
        while True:
            if state == "PlanRound":
                event |= {"retries": failures.total()}
            try:
                return self.call(function, event)
            except FunctionError as failure:
                rule = next(r for r in RETRIES[state] if {failure.error, "States.ALL"} & r.errors)
                failures[rule] += 1
                if failures[rule] > rule.attempts:
                    raise

    def _abort(self, failure: FunctionError, task: dict[str, Any] | None = None) -> None:
        event = {"round": self.name, "error": failure.error, "cause": failure.cause}
        self.step("AbortRound", "abort_round", event if task is None else event | {"task": task})

    # ------------------------------------------------------------------------ what must be true

    def check(self, manifest: dict[str, Any], again: Call) -> None:
        """Check that the round ended well, or failed with a cause and left nothing behind.

        ``again`` calls functions that nothing breaks.
        """
        assert self.store.open_uploads(self.keys.result) == []
        assert list(self.versions(self.keys.partial_sums)) == []
        result = self.store.get_bytes(self.keys.result)
        if manifest["status"] == "completed":
            assert result is not None
            self.check_result(result)
        else:
            assert manifest["cause"]
            assert result is None
        self.check_model(has_next=manifest["status"] == "completed")
        for client in self.sent:
            assert self.store.get_bytes(self.keys.update(client)) == self.blob(client)
        if manifest["status"] == "completed" and self.before is None:
            # Another round reads nothing of this one but its updates, and has the same result.
            return
        for client in self.clients:
            if client not in self.sent:  # an eager round failed before it was its turn
                self.submit(client)
        terms = {**self.terms, "updates_from": self.name}
        if terms.pop("eager", False):
            terms["weights"] = "counts"
        if self.lost:
            return
        repeated = Machine(again, self.store, terms, self.clients, self.updates, self.samples)
        assert repeated.run()["status"] == "completed"
        repeated.check_model(has_next=True)
        repeated.check_result(self.store.get_bytes(repeated.keys.result) or b"")

    def check_model(self, *, has_next: bool) -> None:
        """Check that the model has a next version, or that nothing of one is there."""
        if self.before is None:
            return
        name = self.before.model
        now = model_registry.current(self.store, name)
        assert now is not None
        assert now.number == self.before.number + has_next
        listed = self.store.call("list_multipart_uploads", Prefix=f"models/{name}/")
        assert listed.get("Uploads", []) == []
        made = list(self.store.list_objects(ModelKeys(name).made_by(self.name)))
        assert len(made) == (3 if has_next else 0)
        if has_next and now.steps == 1:
            average = reference.average(self.updates, self.samples)
            settings = dict(now.optimizer or {})
            expected, _ = reference.step("fedadam", settings, 1, MODEL, average, {})
            blob = self.store.get_bytes(now.tensors.source.key)
            found = reference.decode(blob or b"")
            assert {n: t.tobytes() for n, t in found.items()} == {
                n: t.tobytes() for n, t in expected.items()
            }

    def check_result(self, blob: bytes) -> None:
        tree = [2, 2] if self.terms.get("topology") == "lambda_fl" else []
        counts = self.terms.get("weights") == "counts"
        expected = reference.average(self.updates, self.samples, tree=tree, counts=counts)
        if self.terms.get("rule") == "median":
            expected = reference.columns(self.updates, "median")
        result = reference.decode(blob)
        assert set(result) == set(expected)
        for name, tensor in expected.items():
            assert np.asarray(result[name]).tobytes() == tensor.tobytes(), name

    def versions(self, prefix: str) -> Iterator[str]:
        """List every version under a prefix."""
        listed = self.store.call("list_object_versions", Prefix=prefix)
        for version in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]:
            yield version["Key"]
