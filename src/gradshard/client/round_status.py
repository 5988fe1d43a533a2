"""The status of a round, read from its objects."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gradshard.client.executions import Execution
from gradshard.client.stack import Stack
from gradshard_core.errors import BrokenObjectError, RoundNotFoundError, UnreadableObjectError
from gradshard_core.formats.long_lists import StoredList, is_in_pieces
from gradshard_core.formats.object_keys import (
    UPDATE_SUFFIX,
    RoundKeys,
    TrainingKeys,
    is_client,
    parse_update_key,
)
from gradshard_core.records.manifest_status import parse_manifest
from gradshard_core.records.plan_and_manifest import piece_reader, with_decided, with_lists
from gradshard_core.s3.json_reads import JsonReads
from gradshard_core.s3.parallel_reads import SMALL_OBJECT_READERS
from gradshard_core.s3.store import ListedObject

if TYPE_CHECKING:
    from gradshard_core.specs.inbox_spec import InboxSpec

AWAITING: Final = "awaiting"
"""A round's state until its planning."""

AGGREGATING: Final = "aggregating"
"""A round's state from its planning to its end."""


def read_status(stack: Stack, keys: RoundKeys) -> dict[str, Any]:
    """Return the status of a round as JSON.

    Raises
    ------
    RoundNotFoundError
        There is no such round.
    """
    return StatusPoller(stack, keys).poll()


class StatusPoller:
    """Polls the status of a round, and reads only what is new.

    A look lists the round's objects, a request for each 1,000 of them, and reads those of spec,
    plan, manifest and rejections that it has not read before in that version. A client may not
    read what is told to the others, which is left out.

    Parameters
    ----------
    stack
        The deployed stack that runs the round.
    keys
        The names of its objects.
    """

    def __init__(self, stack: Stack, keys: RoundKeys) -> None:
        self._stack, self._keys = stack, keys
        self._listed: dict[str, ListedObject] = {}
        self._sent: tuple[ListedObject, ...] | None = None
        self._read: dict[str, tuple[str, Any]] = {}

    def _expected(self, spec: dict[str, Any]) -> Any:
        """Return the clients that the round expects; ids in pieces load when they are needed."""
        clients: Any = spec.get("clients")
        if not is_in_pieces(clients):
            return clients
        return StoredList[str](clients, piece_reader(self._stack.store, self._keys.expected))

    def poll(self, *, check_execution: bool = True) -> dict[str, Any]:
        """Return the status of the round as JSON.

        Parameters
        ----------
        check_execution
            Whether to ask the state machine, too, of a round that has no manifest yet: it alone
            knows of one that failed without.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        keys = self._keys
        self._listed = {entry.key: entry for entry in self._stack.store.list_objects(keys.root)}
        record, plan, manifest = self._get([keys.spec, keys.plan, keys.manifest])
        execution = None
        if manifest is None and (check_execution or record is None):
            execution = self._stack.execution(keys.round_id)
        if record is None and execution is None and manifest is None:
            raise RoundNotFoundError.of(keys.round_id)
        if record is None and manifest is None and execution and execution.succeeded:
            raise RoundNotFoundError.deleted(keys.round_id, execution.dates)
        record = record or {"spec": execution.input if execution else {}}
        arrived = _arrived(self._updates(record["spec"], plan))
        rejected, late = self._rejections(plan)
        done = self._tasks_done(plan, manifest)
        return {
            "round": keys.round_id,
            "state": _state(manifest, plan, execution),
            "cause": _cause(manifest, execution),
            "opened_at": record.get("opened_at"),
            "deadline_at": record.get("deadline_at"),
            "spec": record["spec"],
            "arrived": arrived,
            "missing": _missing(self._expected(record["spec"]), plan, arrived),
            "rejected": rejected,
            "late": late,
            "plan": plan and _summary(plan),
            "tasks_done": sum(done),
            "tasks_done_by_level": done,
            "manifest": manifest,
            "decision": self._decision(plan),
        }

    def _decision(self, plan: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return what a robust rule measured and decided; None for clients, who may not read it."""
        if plan is None or plan.get("measured") is None:
            return None
        [decision] = self._get([self._keys.decision(plan["attempt"])], of_others=True)
        return decision  # type: ignore[no-any-return]

    def tasks(self, most: int | None = None) -> list[dict[str, Any]]:
        """Return the records of the tasks that had finished at the last poll.

        Parameters
        ----------
        most
            The most reports to read that have not been read before; the others are left out. The
            manifest of a completed round has them all, unless they are too many.
        """
        plan, manifest = self._get([self._keys.plan, self._keys.manifest])
        if plan is None:
            return []
        if manifest is not None and manifest.get("tasks"):
            listed: list[dict[str, Any]] = manifest["tasks"]
            return listed
        entries = self._finished(plan)
        unread = [entry.key for entry in entries if not self._is_read(entry)][:most]
        self._get(unread, of_others=True)
        found = [self._read[entry.key][1] for entry in entries if self._is_read(entry)]
        return [report for report in found if report and report["attempt"] == plan["attempt"]]

    def plan(self) -> dict[str, Any] | None:
        """Return the plan as it was at the last poll."""
        plan: dict[str, Any] | None = self._get([self._keys.plan])[0]
        return plan

    def partial_updates(self) -> list[dict[str, Any]]:
        """Return the partial updates that have arrived, in the form of ``arrived``."""
        prefix = self._keys.partial_updates
        return [
            _arrival(client, entry)
            for entry in self._under(prefix)
            if is_client(client := entry.key.removeprefix(prefix).removesuffix(UPDATE_SUFFIX))
        ]

    def _updates(self, spec: dict[str, Any], plan: dict[str, Any] | None) -> Iterable[ListedObject]:
        if spec.get("inbox") is not None:
            # These load numpy, which the status of other rounds does without.
            from gradshard_core.specs.inbox_spec import parse_inbox

            return self._updates_in(parse_inbox(spec["inbox"]), plan)
        source = spec.get("updates_from")
        if source is None:
            return self._under(self._keys.updates)
        if self._sent is None:  # they are there when the round is opened
            self._sent = tuple(self._stack.store.list_objects(RoundKeys(source).updates))
        return self._sent

    def _updates_in(
        self, inbox: "InboxSpec", plan: dict[str, Any] | None
    ) -> Iterable[ListedObject]:
        """Return the updates that a round of a buffered training takes, or that wait for it."""
        from gradshard_core.records.inbox import list_waiting
        from gradshard_core.records.training_state import read_state, read_training_spec

        store, keys = self._stack.store, TrainingKeys(inbox.training)
        if plan is None:
            training, state = read_training_spec(store, keys), read_state(store, keys)
            if training is None or state is None or state.version is None:
                return ()
            versions = range(inbox.oldest, state.version + 1)
            each = training.updates_per_client
            waiting = list_waiting(
                store, keys, state.counted, versions, members=training.clients, each=each
            )
            return [arrival.entry for arrival in waiting]
        if self._sent is None:
            planned = {contributor["source"]["key"] for contributor in plan["contributors"]}
            listed = store.list_objects(keys.inboxes, after=keys.inbox(inbox.oldest).root)
            self._sent = tuple(entry for entry in listed if entry.key in planned)
        return self._sent

    def _under(self, prefix: str) -> Iterator[ListedObject]:
        return (entry for key, entry in self._listed.items() if key.startswith(prefix))

    def _is_read(self, entry: ListedObject) -> bool:
        return entry.key in self._read and self._read[entry.key][0] == entry.etag

    def _get(self, keys: Sequence[str], *, of_others: bool = False) -> list[Any]:
        """Return the listed JSON objects; only those that have changed are read.

        Those ``of_others`` may be forbidden: then they are None, and not asked for again.
        """
        changed = [
            key for key in keys if key in self._listed and not self._is_read(self._listed[key])
        ]
        read = partial(self._read_json, of_others=of_others)
        with ThreadPoolExecutor(SMALL_OBJECT_READERS) as pool:
            for key, (is_there, document) in zip(changed, pool.map(read, changed), strict=True):
                if is_there:
                    self._read[key] = (self._listed[key].etag, document)
        return [self._read[key][1] if key in self._read else None for key in keys]

    def _read_json(self, key: str, *, of_others: bool) -> tuple[bool, Any]:
        """Return whether an object exists, and its content; None if reading it is forbidden.

        Or junk: the round fails of that, and its manifest says so.
        """
        try:
            document = self._stack.store.get_json(key, self._form(key))
        except UnreadableObjectError:
            if not of_others:
                raise
            return True, None
        except BrokenObjectError:
            if key == self._keys.manifest:
                raise
            return True, None
        return document is not None, document

    def _form(self, key: str) -> Callable[[Any], Any]:
        """Return a function that checks the form of a record."""
        keys, store = self._keys, self._stack.store
        if key == keys.manifest:
            return lambda manifest: parse_manifest(with_lists(store, keys, manifest))
        if key == keys.plan:
            return lambda plan: with_lists(store, keys, _checked_plan(plan, store, keys))
        if key.startswith(keys.decisions):
            return lambda decision: with_decided(store, keys, decision)
        needed = {keys.spec: ["spec"]}.get(key, [])
        if key.startswith(keys.rejections):
            needed = ["client", "reason", "late"]
        return lambda document: document | {name: document[name] for name in needed}

    def _rejections(
        self, plan: dict[str, Any] | None
    ) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
        """Return the reasons of rejections and of late updates, by client."""
        listed = [entry.key for entry in self._under(self._keys.rejections)]
        records = self._get(listed, of_others=True)
        written = [record for record in records if record is not None]
        # A late upload's reason takes the place of an earlier rejection's, which the plan still
        # has.
        rejected = {
            rejection["client"]: rejection["reason"]
            for rejection in (plan or {}).get("rejected", [])
        }
        rejected |= {record["client"]: record["reason"] for record in written if not record["late"]}
        late = {record["client"]: record["reason"] for record in written if record["late"]}
        return _by_client(rejected), _by_client(late)

    def _finished(self, plan: dict[str, Any]) -> list[ListedObject]:
        # Older reports are those of an attempt that was given up. S3 tells whole seconds.
        planned_at = datetime.fromisoformat(plan["planned_at"]).replace(microsecond=0)
        return [
            entry
            for entry in self._under(self._keys.task_reports)
            if entry.modified >= planned_at
            # A client may be allowed to write to reports/updates/CLIENT.safetensors.
            and self._keys.reported_level(entry.key) in range(len(plan["levels"]))
        ]

    def _tasks_done(
        self, plan: dict[str, Any] | None, manifest: dict[str, Any] | None
    ) -> list[int]:
        """Return how many tasks of each level are done."""
        if plan is None:
            return []
        if manifest is not None and "groups" in manifest:
            return [manifest["shards"] * sum(map(bool, sizes)) for sizes in manifest["groups"]]
        done = [0] * len(plan["levels"])
        for entry in self._finished(plan):
            done[self._keys.reported_level(entry.key) or 0] += 1
        return done


def _state(
    manifest: dict[str, Any] | None, plan: dict[str, Any] | None, execution: Execution | None
) -> str:
    if manifest is not None:
        return str(manifest["status"])
    if execution and execution.failed:
        return "failed"
    return AGGREGATING if plan is not None else AWAITING


def _cause(manifest: dict[str, Any] | None, execution: Execution | None) -> str | None:
    if manifest is not None:
        return manifest.get("cause")
    return execution.reason if execution and execution.failed else None


def _arrived(entries: Iterable[ListedObject]) -> list[dict[str, Any]]:
    return [
        _arrival(key.client, entry)
        for entry in entries
        if (key := parse_update_key(entry.key)) and is_client(key.client)
    ]


def _arrival(client: str, entry: ListedObject) -> dict[str, Any]:
    return {
        "client": client,
        "nbytes": entry.nbytes,
        "etag": entry.etag,
        "arrived_at": entry.modified.isoformat(),
    }


def _missing(
    clients: Sequence[str] | int | None,
    plan: dict[str, Any] | None,
    arrived: list[dict[str, Any]],
) -> list[str]:
    if plan is not None and not plan["awaited"]:
        clients = plan["missing"]  # whose growing update counts is not
    if clients is None or isinstance(clients, int):
        return []
    return sorted(set(clients) - {update["client"] for update in arrived})


def _by_client(reasons: dict[str, str]) -> list[dict[str, str]]:
    return [{"client": client, "reason": reasons[client]} for client in sorted(reasons)]


def _checked_plan(plan: dict[str, Any], store: JsonReads, keys: RoundKeys) -> dict[str, Any]:
    """Return a plan's JSON if it is one."""
    # It loads numpy, which a round without a plan does not need.
    from gradshard_core.planning.plan_json import parse_plan

    parse_plan(plan, get=piece_reader(store, keys.piece))
    return plan


def _summary(plan: dict[str, Any]) -> dict[str, Any]:
    by_level = [plan["shards"] * len(level["groups"]) for level in plan["levels"]]
    masking = plan.get("masking")
    return {
        "attempt": plan["attempt"],
        "contributors": [contributor["client"] for contributor in plan["contributors"]],
        "topology": plan["topology"],
        "order": plan["order"],
        "shards": plan["shards"],
        "tasks": sum(by_level),
        "tasks_by_level": by_level,
        "nbytes": plan["nbytes"],
        "tensors": plan["tensors"],
        "notes": plan["notes"],
        "projected": plan["projected"],
        "planned_at": plan["planned_at"],
        # Of a masked round: whether its keeper has answered.
        **({"keeper_has_answered": masking["answer"] is not None} if masking else {}),
    }
