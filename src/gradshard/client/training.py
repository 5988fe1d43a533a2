"""A training: look at it, join it, pause, resume and stop it."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from botocore.exceptions import ClientError

from gradshard.client import operator_actions
from gradshard.client.stack import Stack
from gradshard.client.training_progress import ProgressReader
from gradshard.tickets.issuer import check_in_range
from gradshard.tickets.lifetime import DEFAULT_SECONDS, MAX_SECONDS
from gradshard.tickets.training_ticket import TrainingTicket, issue_training_ticket
from gradshard.utils.polling import poll
from gradshard_core.errors import (
    RoundNotFoundError,
    RoundStateError,
    ServiceError,
    SpecError,
    TicketError,
    TrainingFailed,
    TrainingNotFoundError,
    TrainingStateError,
    WaitTimeoutError,
)
from gradshard_core.formats import json_records
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.records.inbox import UncountedUpdate, count_rejected, list_inboxes, list_waiting
from gradshard_core.records.model_registry import read_current
from gradshard_core.records.plan_and_manifest import read_record
from gradshard_core.records.training_state import (
    ENDED,
    PAUSE,
    PAUSED,
    RUNNING,
    STOP,
    TrainingState,
    change_state,
    list_members,
    read_state,
    read_training_spec,
    requested,
)
from gradshard_core.s3.client_transfers import SINGLE_PUT_BYTES
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.specs.training_spec import TrainingSpec

LOOKS_PER_EXECUTION: Final = 15
"""Looks at the state per DescribeExecution call, which Step Functions throttles."""

ROUND_BEGINS_SECONDS: Final = 60.0
"""How long the round of an invitation is awaited to cancel it: longer than the state machine's
attempts to start it."""


class Training:
    """A training, for its clients and its operator.

    Parameters
    ----------
    stack
        The stack on which it runs.
    name
        Its id.
    """

    def __init__(self, stack: Stack, name: str) -> None:
        self.keys = TrainingKeys(name)
        self._stack = stack

    def __repr__(self) -> str:
        return f"Training({self.id!r})"

    @property
    def id(self) -> str:
        """The training's id."""
        return self.keys.name

    def spec(self) -> TrainingSpec:
        """Return the options that the training was started with.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        """
        spec = read_training_spec(self._stack.store, self.keys)
        if spec is None:
            raise TrainingNotFoundError.of(self.id)
        return spec

    def state(self) -> TrainingState:
        """Return the state of the training, in one request.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        """
        state = read_state(self._stack.store, self.keys)
        if state is None:
            raise TrainingNotFoundError.of(self.id)
        return state

    def records(
        self, known: Sequence[Mapping[str, Any]] = (), *, newest: int | None = None
    ) -> list[dict[str, Any]]:
        """Return the records of the rounds that have ended, oldest first.

        Parameters
        ----------
        known
            Records that are at hand, which are not read again.
        newest
            Read no more than so many, those of the last rounds; each is a request. By default all.
        """
        store = self._stack.store
        at_hand = {self.keys.record(record["round_id"]): dict(record) for record in known}
        keys = [entry.key for entry in store.list_objects(self.keys.records)]
        if newest is not None:
            keys = keys[-newest:]  # ids of rounds are in their order
        unread = [key for key in keys if key not in at_hand]
        with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
            read = pool.map(partial(read_record, store, self.keys), unread)
            at_hand |= {key: record for key, record in zip(unread, read, strict=True) if record}
        found = [at_hand[key] for key in keys if key in at_hand]
        order = ("number", "is_evaluation", "repetition")
        return sorted(found, key=lambda record: tuple(record[name] for name in order))

    def status(self) -> dict[str, Any]:
        """Return the state of the training, its options and the records of its rounds, as JSON.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        """
        spec, state = self.spec(), self.state()
        return {
            "training": self.id,
            "spec": spec.to_json(),
            **state.to_json(),
            "silent": dict(state.silent),
            "invitation": state.invitation and vars(state.invitation),
            "rounds": self.records(),
            **(self._inboxes_json(spec, state) if spec.is_buffered else {}),
        }

    def watch(
        self, timeout: float | None = None, *, changes_only: bool = True
    ) -> Iterator[TrainingState]:
        """Yield the state whenever it has changed, until the training has ended or paused.

        In a buffered training also when other updates wait (:meth:`waiting`).

        Parameters
        ----------
        timeout
            The longest wait, in seconds.
        changes_only
            False to yield it at each look, at most every 2 s.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingFailed
            Its execution has ended, so that it does not go on; it can be resumed.
        WaitTimeoutError
            The training goes on after the timeout.
        """
        last: tuple[TrainingState, list[UncountedUpdate]] | None = None
        spec = self.spec()
        for number in poll(timeout):
            state = self.state()
            seen = state, self._waiting(spec, state)
            if seen != last or not changes_only:
                yield state
            last = seen
            if number % LOOKS_PER_EXECUTION == LOOKS_PER_EXECUTION - 1:
                self._check_execution(state)
            if state.status != RUNNING:
                return
        raise WaitTimeoutError(f"training {self.id!r} has not ended within {timeout:g} s")

    def lost_execution(self, state: TrainingState) -> str | None:
        """Return how the execution ended in which a training seems to run; None if it goes on.

        It has ended if somebody stopped it, or if the function that pauses the training failed.
        None, too, for whoever may not ask Step Functions.

        Parameters
        ----------
        state
            The training's state.
        """
        if state.status != RUNNING:
            return None
        name = self.keys.execution(state.run)
        try:
            execution = self._stack.trainings.execution(name)
        except (ServiceError, ClientError):
            return None
        if execution is None or not execution.has_ended:
            return None
        now = self.state()  # it may have ended with the training
        if (now.status, now.run) != (RUNNING, state.run):
            return None
        return f"execution {name} has ended ({execution.reason or execution.status})"

    def _check_execution(self, state: TrainingState) -> None:
        lost = self.lost_execution(state)
        if lost is not None:
            raise TrainingFailed(f"training {self.id!r} does not go on: {lost}; resume it")

    def progress_reader(self) -> ProgressReader:
        """Return what reads how far the round is that is under way."""
        return ProgressReader(self._stack.store)

    def wait(self, timeout: float | None = None) -> TrainingState:
        """Wait until the training has ended, and return its last state.

        Raises
        ------
        TrainingFailed
            It has paused, with the cause, or its execution has ended.
        TrainingNotFoundError
            There is no such training.
        WaitTimeoutError
            It has not ended within the timeout.
        """
        *_, state = self.watch(timeout)
        if state.status == PAUSED:
            raise TrainingFailed(f"training {self.id!r} has paused: {state.cause}")
        return state

    def join(self, client: str) -> None:
        """Let the training invite a client, from its next round on; safe to repeat.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has a fixed list of clients, without this one, or has ended.
        """
        key, clients = self.keys.member(client), self.spec().clients
        if clients is not None:
            if client not in clients:
                raise TrainingStateError(
                    f"training {self.id!r} has a fixed list of clients, without {client!r}: "
                    f"{', '.join(clients[:10])}{', …' if len(clients) > 10 else ''}"
                )
            return
        state = self.state()
        if state.status == ENDED:
            raise TrainingStateError(f"training {self.id!r} has ended: {state.cause}")
        self._stack.store.put_bytes(key, b"", content_type="text/plain", replaces=None)

    def ticket(self, client: str, *, expires: int = DEFAULT_SECONDS) -> TrainingTicket:
        """Let a client without AWS credentials join, and make its ticket.

        Its holder can take part in all rounds to which the client is invited; see docs/tickets.md.
        The ticket is a secret: anyone who has it can act as that client.

        Parameters
        ----------
        client
            The client's id.
        expires
            Seconds from now, at most seven days. Temporary credentials end earlier, and the ticket
            with them, unless its holder has begun to take part.

        Raises
        ------
        TicketError
            S3 does not allow the time, or updates of the model are too large for a ticket.
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has a fixed list of clients, without this one, or has ended.
        """
        check_in_range("expires", expires, MAX_SECONDS)
        store = self._stack.store
        version = read_current(store, self.spec().server_optimizer.model)
        if (nbytes := version.tensors.source.nbytes) > SINGLE_PUT_BYTES:
            raise TicketError(
                f"the model has {nbytes} bytes, and a ticket of a training takes updates of up to "
                f"{SINGLE_PUT_BYTES}: give the client AWS credentials, or a ticket for each round"
            )
        self.join(client)
        return issue_training_ticket(store, self.keys, client, expires=expires)

    def revoke(self, client: str) -> bool:
        """Take a client's notice away; its ticket ends with its newest URLs, after some hours.

        Returns
        -------
        bool
            Whether there was one. It is safe to repeat.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        """
        key = self.keys.notice(client)
        self.state()
        had_ticket = self._stack.store.head(key) is not None
        self._stack.store.delete(key)
        return had_ticket

    def leave(self, client: str) -> None:
        """Let the training invite a client no more, from its next round on; safe to repeat."""
        self._stack.store.delete(self.keys.member(client))

    def members(self) -> list[str]:
        """Return the clients that have joined, or those of the fixed list."""
        clients = self.spec().clients
        if clients is not None:
            return list(clients)
        return list(list_members(self._stack.store, self.keys))

    def waiting(self) -> list[UncountedUpdate]:
        """Return the updates that wait in a buffered training, in the order of their arrival.

        A client has ``updates_per_client`` of them in the next version; its later ones are not
        listed.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        """
        return self._waiting(self.spec(), self.state())

    def _waiting(self, spec: TrainingSpec, state: TrainingState) -> list[UncountedUpdate]:
        if not spec.is_buffered or state.version is None:
            return []
        versions = range(state.oldest_version(spec.staleness), state.version + 1)
        return list_waiting(
            self._stack.store,
            self.keys,
            state.counted,
            versions,
            members=spec.clients,
            each=spec.updates_per_client,
        )

    def _inboxes_json(self, spec: TrainingSpec, state: TrainingState) -> dict[str, Any]:
        waiting = [
            {
                "client": arrival.client,
                "version": arrival.version,
                "etag": arrival.entry.etag,
                "nbytes": arrival.entry.nbytes,
                "arrived_at": arrival.entry.modified.isoformat(),
            }
            for arrival in self._waiting(spec, state)
        ]
        return {"waiting": waiting, "rejected": count_rejected(self._stack.store, self.keys)}

    def pause(self, reason: str) -> TrainingState:
        """Pause the training when its current round has ended, or at once if none is under way.

        It also pauses if its execution was stopped; the round is then given up.

        Raises
        ------
        SpecError
            There is no reason.
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has ended, or is to end when its round has ended.
        """
        return self._request(PAUSE, reason)

    def stop(self, reason: str, *, now: bool = False) -> TrainingState:
        """End the training when its current round has ended, or at once if none is under way.

        It also ends if its execution was stopped; the round is then given up. A buffered training
        that has paused ends a moment later: before that, the updates that wait are rejected.

        Parameters
        ----------
        reason
            The reason, for people who look at the training later.
        now
            Cancel the current round instead of waiting for it.

        Raises
        ------
        SpecError
            There is no reason.
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has ended.
        WaitTimeoutError
            The current round has not begun within a minute, so it cannot be cancelled yet.
        """
        state = self._request(STOP, reason)
        if now:
            self._cancel_round(state, reason)
        return state

    def _cancel_round(self, state: TrainingState, reason: str) -> None:
        """Cancel the current round, which begins a moment after its invitation is there."""
        for _ in poll(ROUND_BEGINS_SECONDS):
            if state.status != RUNNING or state.invitation is None:
                return
            keys = RoundKeys(state.invitation.round_id)
            try:
                operator_actions.cancel_round(self._stack, keys, reason)
            except RoundNotFoundError:
                state = self.state()
            except RoundStateError:
                return
            else:
                return
        raise WaitTimeoutError(
            f"training {self.id!r} is asked to stop, but its current round has not begun within "
            f"{ROUND_BEGINS_SECONDS:g} s: stop it once more to cancel the round"
        )

    def _request(self, request: str, reason: str) -> TrainingState:
        if not reason.strip():
            raise SpecError(f"give a reason for the {request}; others can read it")
        asked = self.state()
        is_lost = asked.invitation is not None and self.lost_execution(asked) is not None
        spec = read_training_spec(self._stack.store, self.keys) if request == STOP else None

        def change(state: TrainingState) -> TrainingState:
            if state.status == ENDED:
                raise TrainingStateError(f"training {self.id!r} has ended: {state.cause}")
            if state.status == PAUSED and request == STOP and not (spec and spec.is_buffered):
                cause = f"stopped: {reason.strip()}"
                return replace(state, status=ENDED, cause=cause, invitation=None)
            if state.status == PAUSED and request == PAUSE:
                return state
            if request == PAUSE and state.request == STOP:
                raise TrainingStateError(
                    f"training {self.id!r} ends when its round has ended, as it was asked to: "
                    f"{state.reason}; start another one to go on from its model"
                )
            is_over = state.status == PAUSED or state.invitation is None
            if is_over or (is_lost and state.run == asked.run):
                # Its execution has ended, may wait for as long as a day before it looks, or has
                # been stopped: another one does what is asked for.
                state = replace(
                    state, status=RUNNING, cause=None, run=state.run + 1, first_step=state.step
                )
            return requested(state, request, reason.strip())

        state = change_state(self._stack.store, self.keys, change)
        if state.status == RUNNING and state.run > 1:
            self._start_execution(state)
        return state

    def resume(self) -> TrainingState:
        """Let a training go on that has paused, or whose execution was stopped; safe to repeat.

        A training that is to pause when its round has ended goes on, too. One that is to stop ends.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has ended.
        """
        state = self.state()
        is_lost, lost_run = self.lost_execution(state) is not None, state.run

        def change(state: TrainingState) -> TrainingState:
            if state.status == ENDED:
                raise TrainingStateError(f"training {self.id!r} has ended: {state.cause}")
            if state.status == RUNNING and not (is_lost and state.run == lost_run):
                is_to_pause = state.request == PAUSE
                return replace(state, request=None, reason=None) if is_to_pause else state
            # Noise must not be taken out of a version by others: the training pauses at that.
            is_fixed = state.invitation or (state.tree and state.tree.live)
            is_to_stop = state.request == STOP
            return replace(
                state,
                status=RUNNING,
                run=state.run + 1,
                first_step=state.step,
                # The training goes on from the current version, even if others have made it.
                version=state.version if is_fixed else None,
                failures=0,
                cause=None,
                request=STOP if is_to_stop else None,
                reason=state.reason if is_to_stop else None,
                changed_at=datetime.now(UTC).isoformat(),
            )

        state = change_state(self._stack.store, self.keys, change)
        if state.run > 1:
            self._start_execution(state)
        return state

    def _start_execution(self, state: TrainingState) -> None:
        """Start the execution of a state, unless it runs: an earlier call may have died before."""
        going_on = {"training": self.id, "run": state.run, "step": state.first_step}
        name = self.keys.execution(state.run)
        self._stack.trainings.start(name, json_records.encode(going_on).decode())

    def remove(self) -> None:
        """Delete the objects of the training, all versions, for good; it must have ended.

        The updates of a buffered training are among them. Its rounds and the model's versions stay.
        Its name stays taken for 90 days after its first execution has ended.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has not ended.
        """
        state = self.state()
        if state.status != ENDED:
            raise TrainingStateError(f"training {self.id!r} is {state.status}: stop it first")
        for inbox in list_inboxes(self._stack.store, self.keys):
            self._stack.store.delete_versions(RoundKeys(inbox).root)
        self._stack.store.delete_versions(self.keys.root)
