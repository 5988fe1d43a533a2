"""Check an update that has arrived, and resume the round when no more are awaited."""

from typing import Any

from gradshard_core.errors import SpecError
from gradshard_core.formats.compressed_updates import EncodedLayout
from gradshard_core.formats.object_keys import (
    RoundKeys,
    check_id,
    parse_answer_key,
    parse_inbox_id,
    parse_update_key,
)
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.records.plan_and_manifest import read_manifest, read_plan
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds import arrivals, rejections, resume_round, waiting_record
from gradshard_core.rounds.collect_buffered_update import collect_buffered_update
from gradshard_core.rounds.waiting_record import Seen, Waiting
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec


def collect_update(store: S3Store, key: str, etag: str, seen: Seen | None = None) -> dict[str, Any]:
    """Check an uploaded update and resume the round if it is the last one; safe to repeat.

    Parameters
    ----------
    store
        The bucket.
    key
        The key of the uploaded object.
    etag
        The ETag of the uploaded version, without quotes.
    seen
        The clients that this process has seen there, which saves it looks.

    Returns
    -------
    dict
        ``status`` is ``accepted``, ``rejected`` or ``ignored``, the latter two with a ``reason``;
        ``late`` is true of an update that came after planning, and ``codec`` names the codec of a
        compressed update. For a keeper's answer: ``answered``.
    """
    answered = parse_answer_key(key)
    if answered is not None:
        return _keeper_answered(store, RoundKeys(answered))
    parsed = parse_update_key(key)
    try:
        keys = RoundKeys(parsed.round_id) if parsed else None
        client = check_id("client", parsed.client) if parsed else ""
    except SpecError as error:
        return {"status": "ignored", "reason": str(error)}
    if keys is None:
        return {"status": "ignored", "reason": f"{key}: there is no such round"}
    inbox = parse_inbox_id(keys.round_id)
    waits = waiting_record.read_waiting(store, keys) if inbox is None else None
    if waits is not None:
        return _collect(store, keys, waits.spec, client, etag, waits=waits, seen=seen)
    opened = read_spec(store, keys)
    if opened is None and inbox is not None:
        return collect_buffered_update(store, inbox, client, etag)
    if opened is None:
        return {"status": "ignored", "reason": f"{key}: there is no such round"}
    spec, _ = opened
    plan = read_plan(store, keys)
    may_have_ended = plan is None or not plan.is_complete
    ended = read_manifest(store, keys) if may_have_ended else None
    is_late = plan is not None and not spec.awaits(client, plan.stage.awaited)
    if is_late or ended is not None:
        outcome = {"round": keys.round_id, "client": client}
        return outcome | rejections.reject_late(store, keys, client, etag, plan, ended)
    return _collect(store, keys, spec, client, etag, waits=None, seen=seen)


def _collect(
    store: S3Store,
    keys: RoundKeys,
    spec: RoundSpec,
    client: str,
    etag: str,
    *,
    waits: Waiting | None,
    seen: Seen | None,
) -> dict[str, Any]:
    """Check the newest update of a client, and resume the round if it is the last one."""
    outcome: dict[str, Any] = {"round": keys.round_id, "client": client}
    key = keys.update(client)
    if spec.expects(client):
        update = arrivals.check_update(store, keys, client, spec)
    else:
        update = Rejection(client, f"{key}: client {client!r} is not expected in this round", etag)
    if isinstance(update, Rejection):
        if waiting_record.waits_once(spec) and not (waits and waits.has_rejections):
            waiting_record.note_rejection(store, keys)  # before it is there to be taken back
        replaced_by = rejections.reject_arrival(store, keys, update)
        if replaced_by:
            return collect_update(store, key, replaced_by, seen)
        outcome |= {"status": "rejected", "reason": update.reason}
    else:
        if waits is None or waits.has_rejections:
            # Compare with the newest version: the event may be late, and its upload replaced.
            there = etag if update is None else update.source.etag.strip('"')
            rejections.withdraw_rejection(store, keys, client, there)
        outcome |= {"status": "accepted"}
        if update is not None and isinstance(update.header.layout, EncodedLayout):
            outcome |= {"codec": update.header.layout.codec}
    return outcome | {"resumed": resume_round.resume_if_due(store, keys, spec, client, seen)}


def _keeper_answered(store: S3Store, keys: RoundKeys) -> dict[str, Any]:
    """Resume a masked round that waits for its keeper; planning reads the answer."""
    plan = read_plan(store, keys)
    # An answer that was not asked for would end the wait for updates.
    is_due = plan is not None and plan.awaits_keeper
    resumed = is_due and waiting_record.resume(store, keys, waiting_record.COMPLETE)
    return {"round": keys.round_id, "answered": True, "resumed": resumed}
