"""Reject updates: write the reasons where their clients read them, and take back old ones."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gradshard_core.costs.request_counts import HEADS_BEFORE_LIST
from gradshard_core.formats.object_keys import (
    RoundKeys,
    parse_inbox_id,
    parse_update_key,
    sender_of,
)
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.plan_parts import Contributor, Rejection
from gradshard_core.rounds.arrivals import arrived, newest_updates
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec

AT_ONCE = 16
"""So many records are read or written side by side.

Functions that plan or finalize a round of 100,000 clients may have to reject all but a few.
"""
AT_A_TIME = 512
"""A future takes 2 kB, and so those of 100,000 rejections most of a function's memory."""


def reject(store: S3Store, keys: RoundKeys, rejection: Rejection) -> None:
    """Write the reason where its client can read it."""
    store.put_json(keys.rejection(sender_of(rejection.client)), vars(rejection))


def reject_arrival(store: S3Store, keys: RoundKeys, rejection: Rejection) -> str:
    """Write the reason; return the ETag, unquoted, of an update that has replaced the bad one.

    It is empty if there is none. The function of a better update may have looked for a rejection
    before this one was written, so the caller looks at that update again.
    """
    reject(store, keys, rejection)
    newest = store.head(keys.update(rejection.client)) if rejection.etag else None
    etag = newest.etag.strip('"') if newest else ""
    return "" if etag == rejection.etag.strip('"') else etag


def withdraw_rejection(store: S3Store, keys: RoundKeys, client: str, etag: str) -> None:
    """Take back the rejection of an upload that this one replaced."""
    rejection = store.head(keys.rejection(client))
    if rejection is None:
        return
    rejected = store.get_json(keys.rejection(client)) or {}
    if rejected.get("etag", "").strip('"') != etag.strip('"') and not rejected.get("late"):
        # Planning may be rejecting this very upload at the same time, so delete only the version
        # of the rejection that was read.
        store.delete(keys.rejection(client), only=rejection.etag)


def withdraw_outdated(store: S3Store, keys: RoundKeys, plan: Plan) -> None:
    """Take back the rejections of updates that contributors had replaced before a plan was made.

    A planning that failed told of them, and was killed before it could say that it failed. The next
    one found better updates, whose events had come before those rejections were there. A rejected
    update that came after the one that counts is the newest still: it was not replaced.
    """
    listed = {
        entry.key.removeprefix(keys.rejections).removesuffix(".json"): entry
        for entry in store.list_objects(keys.rejections)
    }
    # Once through a list of maybe 100,000, which is in pieces.
    counted = [c for c in plan.contributors if c.client in listed] if listed else []

    def look(contributor: Contributor) -> None:
        client, source = contributor.client, contributor.source
        rejected = store.get_json(keys.rejection(client)) or {"late": True}
        if rejected.get("late") or rejected.get("etag", "").strip('"') == source.etag.strip('"'):
            return
        newest = store.head(source.key)
        if newest is not None and newest.etag.strip('"') == source.etag.strip('"'):
            store.delete(keys.rejection(client), only=listed[client].etag)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in range(0, len(counted), AT_A_TIME):
            list(pool.map(look, counted[first : first + AT_A_TIME]))


def reject_all(
    store: S3Store, rejections: Sequence[Rejection], keys_of: Callable[[str], RoundKeys]
) -> None:
    """Write several clients' reasons side by side: there may be thousands.

    ``keys_of`` returns the round under which a client reads of its update's rejection.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for first in range(0, len(rejections), AT_A_TIME):
            some = rejections[first : first + AT_A_TIME]
            list(pool.map(lambda found: reject(store, keys_of(found.client), found), some))


def reject_overlooked(store: S3Store, keys: RoundKeys, spec: RoundSpec, plan: Plan) -> None:
    """Reject the updates that have arrived and that a plan does not know.

    They were uploaded while the round was being planned, after its updates were listed, or in the
    place of a bad one after that was read. The function that their events have called may have
    found no plan yet: it told nobody, and withdrew the rejection of the bad one.

    Parameters
    ----------
    store, keys, spec
        The round.
    plan
        Its plan, which is written.
    """
    bad = {found.client: found.etag for found in plan.participants.rejected if found.etag}

    def look(client: str) -> None:
        head = store.head(keys.update(client))
        if head is None or head.etag.strip('"') == bad.get(client, "").strip('"'):
            return
        reason = (
            f"{head.key}: uploaded while the round was being planned; the client takes no part in "
            "this round"
        )
        reject(store, keys, Rejection(client, reason, head.etag, late=True))

    replaced = [*bad]
    if len(bad) > HEADS_BEFORE_LIST:
        newest = newest_updates(store, keys, bad)
        replaced = [c for c in newest if newest[c].etag.strip('"') != bad[c].strip('"')]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(look, [*_perhaps_overlooked(store, keys, spec, plan), *replaced]))


def _perhaps_overlooked(
    store: S3Store, keys: RoundKeys, spec: RoundSpec, plan: Plan
) -> Sequence[str]:
    """Return the clients that a plan misses; of many, or of unnamed ones, those that are there."""
    missing = plan.participants.missing
    if not isinstance(spec.clients, int):
        if len(missing) <= HEADS_BEFORE_LIST:
            return missing
        return sorted({*missing} & {*arrived(store, keys)})
    if spec.inbox is not None or spec.updates_from is not None:
        return ()
    known = {c.client for c in plan.contributors} | {c.client for c in plan.participants.rejected}
    return sorted({*arrived(store, keys)} - known)


def rejection_keys(keys: RoundKeys, update_key: str) -> RoundKeys:
    """Return the round under which a client reads of its update's rejection.

    It is the round that takes the update; of a buffered training it is the inbox that the client
    has sent it to.
    """
    parsed = parse_update_key(update_key)
    if parsed is None or parse_inbox_id(parsed.round_id) is None:
        return keys
    return RoundKeys(parsed.round_id)


def reject_late(
    store: S3Store,
    keys: RoundKeys,
    client: str,
    etag: str,
    plan: Plan | None,
    ended: dict[str, Any] | None,
) -> dict[str, Any]:
    """Reject an upload that came after planning; ignore the late event of an earlier upload."""
    if plan is not None:
        counted = plan.contributor(client)
        planned = (counted.source.etag if counted else _rejected(plan, client)).strip('"')
        newest = store.head(keys.update(client))
        # The event may also be the late one of an upload that was replaced before planning.
        if planned and planned in {etag, newest.etag.strip('"') if newest else ""}:
            withdraw_rejection(store, keys, client, planned)
            return {"status": "ignored", "reason": "planned already"}
        which = (
            "the version uploaded before is the one that counts"
            if counted
            else "the client takes no part in this round"
        )
        reason = f"{keys.update(client)}: uploaded after the round was planned; {which}"
    else:
        status = ended["status"] if ended else ""
        reason = f"{keys.update(client)}: the round has ended ({status}); this upload was ignored"
    reject(store, keys, Rejection(client, reason, etag, late=True))
    return {"status": "ignored", "reason": reason, "late": True}


def _rejected(plan: Plan, client: str) -> str:
    """Return the ETag of the update of a client that the plan leaves out; empty if it has none."""
    return next((found.etag for found in plan.participants.rejected if found.client == client), "")
