"""Buffered trainings in virtual time: clients that train at their own pace, and their events."""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from gradshard.client.inbox import Inbox
from gradshard.updates.deltas import change_of
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.planning.plan_parts import Task
from gradshard_core.records.training_state import Invitation
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.aggregate_shard import aggregate_shard
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.finalize_round import finalize_round
from gradshard_core.rounds.open_round import open_round
from gradshard_core.rounds.plan_context import PlanRequest
from gradshard_core.rounds.plan_round import plan_round
from tests.planned import levels_of
from tests.unit.fakes import MemoryWire
from tests.unit.trainings.machine import AGGREGATOR, Machine, TaskError

Events = Callable[[dict[str, Any]], Iterable[dict[str, Any]]]
"""What becomes of an upload's event: it is delivered once, twice, later or never."""


class LostError(TaskError):
    """A round's execution is gone, and has left no manifest."""


@dataclass
class BufferedMachine(Machine):
    """A federation with one buffered training.

    Parameters
    ----------
    paces
        The seconds that each client trains.
    codec
        The codec with which clients compress their updates.
    deliver
        The events that reach the function when one was sent.
    after_plan
        Called when a round was planned, and before its tasks run.
    """

    paces: dict[str, float] = field(default_factory=dict)
    codec: str | None = None
    deliver: Events = lambda event: [event]
    after_plan: Callable[[Invitation], None] = lambda _: None
    arrived: list[tuple[str, int]] = field(default_factory=list)
    """Client and version of each update, in their order."""

    queue: list[tuple[datetime, str, Invitation]] = field(default_factory=list)
    idle: dict[str, int] = field(default_factory=dict)
    """The last version that each client has trained which waits for the next one."""

    answers: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.store.clock = lambda: self.now
        self.idle = dict.fromkeys(self.paces, 0)

    def begin(self, invitation: Invitation) -> None:
        """Have idle clients train."""
        for client in sorted(self.idle):
            if self.idle[client] < invitation.version:
                del self.idle[client]
                self._begin(client, invitation)

    def _begin(self, client: str, invitation: Invitation) -> None:
        until = self.now + timedelta(seconds=self.paces[client])
        heapq.heappush(self.queue, (until, client, invitation))

    def send(self, client: str, invitation: Invitation) -> str:
        """Train, and upload the change; return the ETag."""
        before = self.model.fetch(version=invitation.version)
        trained, samples, metrics = self.train(client, before, invitation)
        inbox = self.inbox(invitation.version)
        change = change_of(before, trained)
        inbox.submit(client, change, samples, codec=self.codec, metrics=metrics)
        return self.store.etags[inbox.keys.update(client)].strip('"')

    def inbox(self, version: int) -> Inbox:
        return Inbox(self.stack, self.keys, self.training.spec(), version)

    def collect(self, client: str, version: int, etag: str) -> dict[str, Any]:
        """Deliver the event of an upload."""
        event = {"key": self.keys.inbox(version).update(client), "etag": etag}
        answer: dict[str, Any] = self._function("CollectUpdateFunction", event)
        self.answers.append(answer)
        return answer

    def _call(self, name: str, event: dict[str, Any]) -> Any:
        match name:
            case "CollectUpdateFunction":
                return collect_update(self.store, event["key"], event["etag"])
            case "OpenRoundFunction":
                return open_round(
                    self.store, event["round"], event["spec"], started=event["started"], token="t"
                )
            case "PlanRoundFunction":
                request = PlanRequest(event["entered_at"], "complete", event["attempt"])
                return plan_round(self.store, event["round"], request, aggregator=AGGREGATOR)
            case "FinalizeRoundFunction":
                return finalize_round(self.store, event["round"])
        return super()._call(name, event)

    def _round(self, name: str, spec: dict[str, Any]) -> None:
        invitation = self.state.invitation
        assert invitation is not None
        if invitation.is_evaluation:
            super()._round(name, spec)
            return
        self.before_round(invitation)
        if self.store.head(RoundKeys(name).spec) is not None:
            raise TaskError("StepFunctions.ExecutionAlreadyExistsException", name)
        event = {"round": name, "spec": spec, "started": self.now.isoformat()}
        opened = self._function("OpenRoundFunction", event)
        self.begin(invitation)
        deadline = self.now + timedelta(seconds=spec["timeout"])
        is_due = opened["resumed"]
        while not is_due and self.queue and self.queue[0][0] < deadline:
            is_due = self._next_arrival(invitation)
        if not is_due:
            self.now = deadline
        try:
            self._add_up(name, invitation)
        except LostError:
            raise
        except TaskError as error:
            abort_round(self.store, name, error=error.error, cause=str(error))
            raise TaskError("States.TaskFailed", "the round failed") from None

    def _next_arrival(self, current: Invitation) -> bool:
        self.now, client, invitation = heapq.heappop(self.queue)
        if client in self.skipped:
            return False
        etag = self.send(client, invitation)
        self.arrived.append((client, invitation.version))
        event = {"client": client, "version": invitation.version, "etag": etag}
        answers = [self.collect(**found) for found in self.deliver(event)]
        if invitation.version < current.version:
            self._begin(client, current)
        else:
            self.idle[client] = invitation.version
        return any(answer.get("resumed") for answer in answers)

    def _add_up(self, name: str, invitation: Invitation) -> None:
        s3: Any = MemoryWire(self.store)
        attempt = 0
        while True:
            event = {"round": name, "entered_at": self.now.isoformat(), "attempt": attempt}
            planned = self._function("PlanRoundFunction", event)
            self.after_plan(invitation)
            for level in levels_of(planned):
                for batch in self.store.get_json(level["key"]):
                    for task in batch["tasks"]:
                        aggregate_shard(s3, name, attempt=attempt, task=Task(**task["task"]))
            ended = self._function("FinalizeRoundFunction", {"round": name})
            if ended["status"] == "completed":
                return
            attempt = ended["attempt"]
