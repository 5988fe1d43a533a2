"""Trainings on a bucket in memory, as their state machine runs them, with functions that die.

The machine goes through ``federation.asl.json`` itself: its choices, its payloads, and what it does
after an error. Rounds run straight through; the clients are the library's.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from gradshard.client import training_loop
from gradshard.client.model import Model
from gradshard.client.rejection_watch import RejectionWatch
from gradshard.client.training import Training
from gradshard.client.training_participant import Member
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import GradshardError
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.planning.plan_parts import Task
from gradshard_core.records.training_state import Invitation, TrainingState, read_state
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from gradshard_core.s3.multipart_requests import Part
from gradshard_core.s3.store import ListedObject
from gradshard_core.trainings import advance_training as advancing
from gradshard_core.trainings.advance_training import advance_training
from gradshard_core.trainings.pause_training import pause_training
from gradshard_core.trainings.start_training import start_training
from tests.planned import levels_of
from tests.unit.fakes import MemoryStack, MemoryStore, MemoryWire

ROOT = Path(__file__).parents[3]
DEFINITION: dict[str, Any] = json.loads((ROOT / "statemachine" / "federation.asl.json").read_text())
AGGREGATOR = LambdaConfig(192, "arm64")
NAME = "t"
MODEL = {"w": np.arange(6, dtype="f4"), "b": np.zeros(2, "f4")}
ATTEMPTS = 4
"""How often a function is called that fails for no fault of its own, as the machine says."""


class Killed(BaseException):
    """A function dies: no handler of its own sees it."""


class TaskError(Exception):
    """What a state catches."""

    def __init__(self, error: str, cause: str) -> None:
        super().__init__(f"{error}: {cause}")
        self.error, self.cause = error, cause


class KeptState(NamedTuple):
    """A state as it was written once: its version, content and step."""

    head: Any
    body: bytes
    step: int


class DyingStore(MemoryStore):
    """A bucket that keeps versions, during whose requests the function that sends them may die.

    ``deaths`` are the numbers of requests, counted from 0: the caller dies before one takes effect
    at a number, and after it at its negative minus one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0
        self.deaths: set[int] = set()
        self.earlier: dict[tuple[str, str], bytes] = {}

    def _request(self, effect: Callable[[], Any]) -> Any:
        number = self.requests
        self.requests += 1
        if number in self.deaths:
            raise Killed
        done = effect()
        if -number - 1 in self.deaths:
            raise Killed
        return done

    def get_bytes(self, key: str) -> bytes | None:
        found: bytes | None = self._request(lambda: super(DyingStore, self).get_bytes(key))
        return found

    def head(self, key: str) -> Any:
        return self._request(lambda: super(DyingStore, self).head(key))

    def describe(self, key: str) -> Any:
        return self._request(lambda: super(DyingStore, self).describe(key))

    def put_bytes(self, key: str, body: bytes, **options: Any) -> bool:
        if key in self.objects:
            self.earlier[key, self.etags[key]] = self.objects[key]
        return bool(self._request(lambda: super(DyingStore, self).put_bytes(key, body, **options)))

    def list_objects(self, prefix: str, *, after: str = "") -> Iterator[ListedObject]:
        found = self._request(
            lambda: list(super(DyingStore, self).list_objects(prefix, after=after))
        )
        return iter(found)

    def get_head(self, key: str, nbytes: int) -> Any:
        return self._request(lambda: super(DyingStore, self).get_head(key, nbytes))

    def get_body(self, source: Any, start: int, end: int) -> Any:
        earlier = self.earlier.get((source.key, source.etag))
        if earlier is not None:
            return self._request(lambda: io.BytesIO(earlier[start:end]))
        return self._request(lambda: super(DyingStore, self).get_body(source, start, end))

    def delete(self, key: str, *, only: str | None = None) -> None:
        self._request(lambda: super(DyingStore, self).delete(key, only=only))

    def create_upload(
        self, key: str, metadata: dict[str, str] | None = None, *, checked: bool = False
    ) -> str:
        begin = partial(super().create_upload, key, metadata, checked=checked)
        return str(self._request(begin))

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[Part]) -> None:
        self._request(lambda: super(DyingStore, self).complete_upload(key, upload_id, parts))


Behaviour = Callable[[str, Mapping[str, Any], Invitation], Any]
"""What a client's training returns; None if it sends nothing."""


def training_of(client: str, model: Mapping[str, Any], invitation: Invitation) -> Any:
    """Train as a function of model, client and round alone."""
    rng = np.random.default_rng([invitation.number, *client.encode()])
    trained = {name: tensor + rng.normal(size=tensor.shape) for name, tensor in model.items()}
    metrics = {"loss": 1 / invitation.number}
    return {n: t.astype(model[n].dtype) for n, t in trained.items()}, 3 + len(client), metrics


def evaluation_of(_client: str, _model: Mapping[str, Any], invitation: Invitation) -> Any:
    return {"accuracy": invitation.number / 100}, 2


@dataclass
class Machine:
    """A federation with one training, in virtual time."""

    patch: pytest.MonkeyPatch
    store: DyingStore = field(default_factory=DyingStore)
    train: Behaviour = training_of
    evaluate: Behaviour = evaluation_of
    kill: dict[str, list[set[int]]] = field(default_factory=dict)
    """By function, the deaths of its calls, one call after another."""

    before_round: Callable[[Invitation], None] = lambda _: None
    skipped: set[str] = field(default_factory=set)
    """Clients that the test sends updates for."""

    calls: list[tuple[str, int]] = field(default_factory=list)
    executions: list[str] = field(default_factory=list)
    ended: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.patch.setattr(advancing, "utc_now", lambda: self.now)
        for name in ("resume", "schedule_deadline", "cancel_deadline", "publish"):
            self.patch.setattr(aws_requests, name, lambda *_: True)
        self.patch.setattr(aws_requests, "give_up", self._give_up)
        self.stack = MemoryStack(self.store)
        self.keys = TrainingKeys(NAME)
        self.training = Training(self.stack, NAME)
        self.model = Model(self.stack)
        self.model.put(MODEL)

    def _give_up(self, _token: str, error: str, cause: str) -> None:
        """Keep with which error a round was not opened."""
        self.not_opened = (error, cause)

    @property
    def state(self) -> TrainingState:
        found = read_state(self.store, self.keys)
        assert found is not None
        return found

    def keep_keys(self) -> dict[str, bytes]:
        """Return the keys of noise by round, which fills with those that are drawn."""
        drawn: dict[str, bytes] = {}
        put = self.store.put_json

        def putting(key: str, record: Any, **others: Any) -> bool:
            is_put = bool(put(key, record, **others))
            if "/secrets/" in key and is_put:
                drawn[key.split("/")[1]] = bytes.fromhex(record["key"])
            return is_put

        self.patch.setattr(self.store, "put_json", putting)
        return drawn

    def start(self, **options: Any) -> TrainingState:
        """Start a training and run it until nothing goes on."""
        of_round = options.pop("round", {"server_optimizer": "fedavg"})
        self.execute(NAME, {"round": of_round, "repeat_after": 1, **options})
        return self.state

    def resume(self) -> TrainingState:
        run = self.training.resume().run
        [*_, payload] = self.stack.trainings.started
        self.execute(self.keys.execution(run), json.loads(payload))
        return self.state

    def keep_state(self) -> KeptState:
        """Return the state as it is written now."""
        key = self.keys.state
        return KeptState(self.store.head(key), self.store.objects[key], self.state.step)

    def call_late(self, kept: KeptState, *, later: timedelta) -> dict[str, Any]:
        """Advance as a call does that has read a state before it was replaced, and decides late."""
        store, key, now = self.store, self.keys.state, self.now
        head, get, heads, bodies = store.head, store.get_bytes, [kept.head], [kept.body]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                store, "head", lambda name: heads.pop() if name == key and heads else head(name)
            )
            patch.setattr(
                store,
                "get_bytes",
                lambda name: bodies.pop() if name == key and bodies else get(name),
            )
            self.now += later
            answer = advance_training(store, NAME, run=1, step=kept.step, aggregator=AGGREGATOR)
        self.now = now
        assert not heads
        return answer

    # ------------------------------------------------------------------------ the state machine

    def execute(self, name: str, payload: Any) -> None:
        """Run an execution, and those that it starts, unless the name is taken."""
        if name in self.ended:
            return
        self.ended[name] = "running"
        self.executions.append(name)
        successors: list[tuple[str, Any]] = []
        state, data = DEFINITION["StartAt"], payload
        while True:
            step = DEFINITION["States"][state]
            if step["Type"] in {"Succeed", "Fail"}:
                self.ended[name] = step["Type"]
                break
            try:
                state, data = self._step(step, name, data, payload, successors)
            except TaskError as error:
                if "Catch" not in step:
                    self.ended[name] = "Fail"
                    break
                state, data = self._catch(step, data, error)
        for successor, given in successors:
            self.execute(successor, given)

    def _step(
        self, step: dict[str, Any], name: str, data: Any, payload: Any, successors: list[Any]
    ) -> tuple[str, Any]:
        match step["Type"]:
            case "Choice":
                return self._choose(step, data), data
            case "Wait":
                self.now += timedelta(seconds=data[step["SecondsPath"].removeprefix("$.")])
                return step["Next"], data
        context = {
            "$$.Execution.Name": name,
            "$$.Execution.Input": payload,
            "$$.Execution.StartTime": "2026-01-01T00:00:00+00:00",
        }
        given = fill(step["Parameters"], data, context)
        if "startExecution.sync" in step["Resource"]:
            self._round(given["Name"], given["Input"])
        elif "startExecution" in step["Resource"]:
            successors.append((given["Name"], given["Input"]))
        else:
            answer = self._function(given["FunctionName"][2:-1], given["Payload"])
            data = answer if step.get("OutputPath") == "$.Payload" else data
        return step["Next"], data

    def _choose(self, step: dict[str, Any], data: Any) -> str:
        for choice in step["Choices"]:
            name = choice["Variable"].removeprefix("$.")
            if ("IsPresent" in choice and name in data) or (
                "StringEquals" in choice and data[name] == choice["StringEquals"]
            ):
                return str(choice["Next"])
        return str(step["Default"])

    def _catch(self, step: dict[str, Any], data: Any, error: TaskError) -> tuple[str, Any]:
        rule = next(r for r in step["Catch"] if {error.error, "States.ALL"} & {*r["ErrorEquals"]})
        caught = {"Error": error.error, "Cause": error.cause}
        match rule.get("ResultPath", "$"):
            case None:
                return rule["Next"], data
            case "$":
                return rule["Next"], caught
            case path:
                return rule["Next"], {**data, path.removeprefix("$."): caught}

    # ---------------------------------------------------------------------- functions and rounds

    def _function(self, name: str, event: dict[str, Any]) -> Any:
        """Call a function as the machine does: again, if it died."""
        for _ in range(ATTEMPTS):
            deaths = self.kill.get(name, [])
            self.store.requests, self.store.deaths = 0, deaths.pop(0) if deaths else set()
            try:
                return json.loads(json.dumps(self._call(name, json.loads(json.dumps(event)))))
            except Killed:
                continue
            except GradshardError as error:
                cause = {"errorType": type(error).__name__, "errorMessage": str(error)}
                raise TaskError(type(error).__name__, json.dumps(cause)) from None
            finally:
                self.calls.append((name, self.store.requests))
                self.store.deaths = set()
        raise TaskError("Runtime.ExitError", "died too often")

    def _call(self, name: str, event: dict[str, Any]) -> Any:
        match name:
            case "StartTrainingFunction":
                return start_training(
                    self.store, event["training"], event["spec"], started=event["started"]
                )
            case "AdvanceTrainingFunction":
                return advance_training(
                    self.store,
                    event["training"],
                    run=event["run"],
                    step=event["step"],
                    aggregator=AGGREGATOR,
                )
            case "PauseTrainingFunction":
                return pause_training(
                    self.store,
                    event["training"],
                    run=event["run"],
                    error=event["error"],
                    cause=event["cause"],
                )
        assert name == "AbortRoundFunction"
        return abort_round(self.store, event["round"], error=event["error"], cause=event["cause"])

    def _round(self, name: str, spec: dict[str, Any]) -> None:
        invitation = self.state.invitation
        assert invitation is not None
        assert invitation.round_id == name
        self.before_round(invitation)
        if self.store.head(RoundKeys(name).spec) is not None:
            raise TaskError("StepFunctions.ExecutionAlreadyExistsException", name)
        opened = open_round(self.store, name, spec, started=self.now.isoformat(), token="t")
        if opened["status"] != "opened":
            error, cause = self.not_opened
            abort_round(self.store, name, error=error, cause=cause)
            raise TaskError("States.TaskFailed", "the round failed")
        for client in sorted({*invitation.clients} - self.skipped):
            self._answer(client, invitation)
        try:
            self._aggregate(name)
        except GradshardError as error:
            abort_round(self.store, name, error=type(error).__name__, cause=str(error))
            raise TaskError("States.TaskFailed", "the round failed") from None

    def _answer(self, client: str, invitation: Invitation) -> None:
        behaviour = self.evaluate if invitation.is_evaluation else self.train

        class SilentError(Exception):
            pass

        def work(model: Any, invitation: Invitation) -> Any:
            done = behaviour(client, model, invitation)
            if done is None:
                raise SilentError
            return done

        member = Member(self.stack, self.training, client)
        worker = training_loop._Worker(member, RejectionWatch(member), work, work, None, None)
        try:
            assert worker.answer(invitation)
        except SilentError:
            return

    def _aggregate(self, name: str) -> None:
        s3: Any = MemoryWire(self.store)
        outcome: dict[str, Any] = {"status": "replan", "reason": "complete", "attempt": 0}
        while outcome["status"] == "replan":
            attempt = outcome["attempt"]
            request = PlanRequest(f"2026-01-01T00:00:0{attempt}Z", outcome["reason"], attempt)
            planned = plan_round(self.store, name, request, aggregator=AGGREGATOR)
            for level in levels_of(planned):
                for batch in self.store.get_json(level["key"]):
                    for task in batch["tasks"]:
                        aggregate_shard(s3, name, attempt=attempt, task=Task(**task["task"]))
            outcome = finalize_round(self.store, name)
        assert outcome["status"] == "completed"


def fill(parameters: Any, data: Any, context: dict[str, Any]) -> Any:
    """Fill a payload template in, as JSONPath does."""
    if not isinstance(parameters, dict):
        return parameters
    filled: dict[str, Any] = {}
    for name, value in parameters.items():
        if not name.endswith(".$"):
            filled[name] = fill(value, data, context)
        elif value.startswith("$$"):
            filled[name[:-2]] = context[value]
        else:
            found = data
            for part in value.removeprefix("$.").split("."):
                found = found[part]
            filled[name[:-2]] = found
    return filled
