"""Give the sum of the masks: complete its upload, and delete what was needed for it."""

from datetime import UTC, datetime
from typing import Any

from gradshard_core.errors import KeeperError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.mask_keeper.records import KeeperKeys, Work
from gradshard_core.s3.store import S3Store


def give_answer(store: S3Store, answers: S3Store, round_id: str) -> dict[str, Any]:
    """Complete the answer, and delete the sealed seeds; safe to repeat.

    Parameters
    ----------
    store
        The keeper's bucket.
    answers
        The aggregator's bucket.
    round_id
        The round.

    Raises
    ------
    KeeperError
        A task has not been done.
    """
    if not round_id:
        return {"given": False}
    keys = KeeperKeys(round_id)
    work = store.get_json(keys.work, Work.from_json)
    key = RoundKeys(round_id).masks
    if store.head(keys.given) is not None:
        if work is not None:  # a late repetition began once more, when the answer was being given
            answers.abort_upload(key, work.upload_id)
    elif work is None:
        return {"given": False}
    else:
        parts = answers.list_parts(key, work.upload_id)
        if parts is not None:
            if len(parts) != work.tasks:
                raise KeeperError(f"{key} has {len(parts)} parts, not {work.tasks}")
            answers.complete_upload(key, work.upload_id, parts)
        # Without parts it was completed before, or the round was given up, and nobody waits.
        given = {"given_at": datetime.now(UTC).isoformat(), "request": work.request.digest}
        store.put_json(keys.given, given, replaces=None)
    # The aggregator may have asked again what was answered.
    store.delete(keys.request)
    store.delete(keys.work)
    return {"given": True}
