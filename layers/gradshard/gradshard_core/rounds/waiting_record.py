"""The record that a round waits: the tokens that resume it and, for its arrivals, its terms.

While the terms are there, the round waits for updates. An arrival then needs neither the spec nor
the plan nor the manifest. The record is deleted when the round is planned or ends: a deletion
costs nothing.
"""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from gradshard_core.errors import BrokenObjectError, StoreError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.records.plan_and_manifest import piece_reader
from gradshard_core.rounds import aws_requests
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_spec

TOKENS_KEPT = 8
"""More calls of open_round than can be under way at once."""

COMPLETE = "complete"
DEADLINE = "deadline"
"""The reasons why a round goes on."""

ROUNDS_SEEN: Final = 8
"""The rounds whose clients a process remembers."""


class Waiting(NamedTuple):
    """A round that waits for updates: its terms, and whether an arrival may have been rejected."""

    spec: RoundSpec
    has_rejections: bool


class Seen:
    """The clients whose updates a process has seen, by round.

    It only decides who is looked for first: an update may be deleted after it was seen.
    """

    def __init__(self) -> None:
        self._clients: dict[str, set[str]] = {}

    def of(self, round_id: str) -> set[str]:
        """Return the clients of a round, to be read and changed."""
        found = self._clients.pop(round_id, set())
        self._clients[round_id] = found
        while len(self._clients) > ROUNDS_SEEN:
            del self._clients[next(iter(self._clients))]
        return found


def waits_once(spec: RoundSpec) -> bool:
    """Return whether a round waits for updates once, and for nothing after them."""
    return not spec.eager and spec.masked is None


def read_waiting(store: S3Store, keys: RoundKeys) -> Waiting | None:
    """Return the record of a round that waits once; None if it does not wait, or waits again."""
    get = piece_reader(store, keys.expected)

    def parse(record: Any) -> Waiting | None:
        if "spec" not in record:
            return None
        return Waiting(parse_spec(record["spec"], get), record["has_rejections"])

    try:
        return store.get_json(keys.callback, parse)
    except BrokenObjectError:
        return None  # spec, plan and manifest tell


def note_rejection(store: S3Store, keys: RoundKeys) -> None:
    """Have later arrivals look whether an earlier update of theirs was rejected.

    If there is no record, one without tokens and terms is written. No arrival takes it for a wait;
    an ``open_round`` that is still at work adds both, and the note.

    Raises
    ------
    StoreError
        Others wrote the record in between, each time.
    """
    for _ in conditional_write_attempts(keys.callback):
        head = store.head(keys.callback)
        noted: dict[str, Any] = {"tokens": []}
        if head is not None:
            try:
                record = store.get_json(keys.callback, _checked)
            except BrokenObjectError:
                return  # without terms, every arrival looks
            if record is None or record.get("has_rejections", True):
                return
            noted = record | {"has_rejections": True}
        if store.put_json(keys.callback, noted, replaces=head.etag if head else None):
            return


def end_waiting(store: S3Store, keys: RoundKeys) -> None:
    """Delete the record of a round that is planned or has ended; safe to repeat."""
    store.delete(keys.callback)


def end_if_over(store: S3Store, keys: RoundKeys) -> None:
    """Empty a record that was written when the round was planned already, or had ended."""
    if store.head(keys.plan) is not None or store.head(keys.manifest) is not None:
        store.put_json(keys.callback, {"tokens": []})


def keep_token(
    store: S3Store, keys: RoundKeys, token: str, spec: RoundSpec | None = None
) -> list[str]:
    """Keep the token with which the round is resumed, beside those of earlier calls.

    Every call of ``open_round`` has a token of its own, of which the machine takes the newest only;
    and a call that it took for dead may write after the one that took its place.

    Parameters
    ----------
    store, keys, token
        The round, and the token.
    spec
        Its terms, if arrivals need no more than those.

    Returns
    -------
    list of str
        All that are kept.

    Raises
    ------
    StoreError
        Others wrote theirs in between, each time.
    """
    written = {"spec": spec.to_json(), "has_rejections": False} if spec else {}
    tokens, replaces = [token], None
    for _ in conditional_write_attempts(keys.callback):
        if store.put_json(keys.callback, written | {"tokens": tokens}, replaces=replaces):
            break
        # Looked at before it is read: if it is replaced meanwhile, writing fails again.
        head = store.head(keys.callback)
        try:
            record = store.get_json(keys.callback, _checked) or {"tokens": []}
        except BrokenObjectError:
            record = {"tokens": []}  # this call's is the one that is waited for, most likely
        kept = record["tokens"]
        tokens = [*(other for other in kept if other != token), token][-TOKENS_KEPT:]
        if spec:
            written["has_rejections"] = record.get("has_rejections", True)
        replaces = head.etag if head else None
    return tokens


def resume(store: S3Store, keys: RoundKeys, reason: str, known: Sequence[str] = ()) -> bool:
    """Resume the round; return False if it is not waiting.

    Parameters
    ----------
    store, keys, reason
        The round, and why it goes on.
    known
        Tokens from elsewhere, in case those that were kept are lost.
    """
    try:
        record = store.get_json(keys.callback, _checked)
    except StoreError:
        if not known:
            raise
        record = None
    tokens = record["tokens"] if record else []
    newest_first = dict.fromkeys(reversed([*known, *tokens]))
    return any(aws_requests.resume(token, reason) for token in newest_first)


def _checked(record: Any) -> dict[str, Any]:
    return {**record, "tokens": list(map(str, record["tokens"]))}
