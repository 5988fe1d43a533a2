"""How far a round is, read off its objects."""

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Final

from gradshard.errors import RoundNotFoundError
from gradshard.keys import RoundKeys, parse_update_key
from gradshard.stack import Execution, Stack
from gradshard.store import Store

READERS: Final = 8


def read_status(stack: Stack, keys: RoundKeys) -> dict[str, Any]:
    """Return how far a round is, as JSON.

    Raises
    ------
    RoundNotFoundError
        There is no such round.
    """
    store = stack.store
    # From the end to the beginning, so that what is seen together was true together.
    manifest = store.get_json(keys.manifest)
    plan = store.get_json(keys.plan)
    record = store.get_json(keys.spec)
    execution = stack.execution(keys.round_id) if manifest is None else None
    if record is None and execution is None and manifest is None:
        raise RoundNotFoundError(f"there is no round {keys.round_id!r}")
    record = record or {"spec": execution.input if execution else {}}
    arrived = _arrived(store, keys)
    refused, late = _rejections(store, keys, plan)
    return {
        "round": keys.round_id,
        "state": _state(manifest, plan, execution),
        "cause": _cause(manifest, execution),
        "opened_at": record.get("opened_at"),
        "deadline_at": record.get("deadline_at"),
        "spec": record["spec"],
        "arrived": arrived,
        "missing": _missing(record["spec"], arrived),
        "refused": refused,
        "late": late,
        "plan": plan and _summary(plan),
        "tasks_done": _tasks_done(store, keys, plan, manifest),
        "manifest": manifest,
    }


def _state(
    manifest: dict[str, Any] | None, plan: dict[str, Any] | None, execution: Execution | None
) -> str:
    if manifest is not None:
        return str(manifest["status"])
    if execution and execution.failed:
        return "failed"
    return "aggregating" if plan is not None else "awaiting"


def _cause(manifest: dict[str, Any] | None, execution: Execution | None) -> str | None:
    if manifest is not None:
        return manifest.get("cause")
    return execution.reason if execution and execution.failed else None


def _arrived(store: Store, keys: RoundKeys) -> list[dict[str, Any]]:
    return [
        {"client": key.client, "nbytes": entry.nbytes}
        for entry in store.list_objects(keys.updates)
        if (key := parse_update_key(entry.key))
    ]


def _missing(spec: dict[str, Any], arrived: list[dict[str, Any]]) -> list[str]:
    clients = spec.get("clients")
    if not isinstance(clients, list):
        return []
    return sorted(set(clients) - {update["client"] for update in arrived})


def _rejections(
    store: Store, keys: RoundKeys, plan: dict[str, Any] | None
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Return who was refused and who came too late, with the reasons, by client."""
    listed = [entry.key for entry in store.list_objects(keys.rejections)]
    with ThreadPoolExecutor(READERS) as pool:
        records = list(pool.map(store.get_json, listed))
    written = [record for record in records if record is not None]
    # A late upload's reason takes the place of an earlier refusal's, which the plan still has.
    refused = {refusal["client"]: refusal["reason"] for refusal in (plan or {}).get("refused", [])}
    refused |= {record["client"]: record["reason"] for record in written if not record["late"]}
    late = {record["client"]: record["reason"] for record in written if record["late"]}
    return _by_client(refused), _by_client(late)


def _by_client(reasons: dict[str, str]) -> list[dict[str, str]]:
    return [{"client": client, "reason": reasons[client]} for client in sorted(reasons)]


def _summary(plan: dict[str, Any]) -> dict[str, Any]:
    return {
        "attempt": plan["attempt"],
        "contributors": [contributor["client"] for contributor in plan["contributors"]],
        "topology": plan["topology"],
        "order": plan["order"],
        "shards": plan["shards"],
        "tasks": plan["shards"] * sum(len(level["groups"]) for level in plan["levels"]),
        "nbytes": plan["nbytes"],
        "tensors": plan["tensors"],
        "notes": plan["notes"],
        "projected": plan["projected"],
        "planned_at": plan["planned_at"],
    }


def _tasks_done(
    store: Store, keys: RoundKeys, plan: dict[str, Any] | None, manifest: dict[str, Any] | None
) -> int:
    if plan is None:
        return 0
    if manifest is not None and "totals" in manifest:
        return int(manifest["totals"]["tasks"])
    # Older reports are those of an attempt that was given up. S3 tells whole seconds.
    planned_at = datetime.fromisoformat(plan["planned_at"]).replace(microsecond=0)
    return sum(entry.modified >= planned_at for entry in store.list_objects(keys.reports))
