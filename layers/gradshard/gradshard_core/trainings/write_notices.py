"""Write the notices of clients without AWS credentials: when a training goes on, or when one asks.

A notice is there once a coordinator has made a ticket of the training for its client; if it is
deleted, the ticket is worth nothing from the end of its URLs on.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gradshard_core.errors import ModelNotFoundError, TrainingNotFoundError
from gradshard_core.formats.keys import (
    NOTICE_SUFFIX,
    RoundKeys,
    TrainingKeys,
    is_client,
    parse_renewal_key,
)
from gradshard_core.formats.layout import Layout
from gradshard_core.planning.masking import Agreement
from gradshard_core.planning.training_spec import TrainingSpec
from gradshard_core.records import model_registry
from gradshard_core.records.assignment import assigned
from gradshard_core.records.notice import Notice, NoticeUrls, seen_by
from gradshard_core.records.ticket_urls import (
    METADATA_ROOM_BYTES,
    Presigner,
    build_ticket,
    max_update_bytes,
    sent_layout,
)
from gradshard_core.records.training_state import (
    ENDED,
    TrainingState,
    read_state,
    read_training_spec,
)
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.trainings.inviting import training_round

SECONDS: Final = 12 * 3600
"""For which URLs are signed: no session of a role lasts longer,
https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_manage-assume.html (2026-11). Lambda does
not say when the credentials of a function end
(https://repost.aws/knowledge-center/presigned-url-s3-bucket-expiration), so holders ask often."""

WRITERS: Final = 16


def write_notices(store: S3Store, signer: Presigner, key: str) -> dict[str, Any]:
    """Write the notices that an object's creation concerns; safe to repeat.

    Parameters
    ----------
    store, signer
        The bucket, and what signs URLs.
    key
        The object that was created: a renewal request, or a training's state. If the training goes
        on, the notices of the invited clients are written; if it has ended, and in a buffered
        training, all.

    Returns
    -------
    dict
        ``training`` and the number of notices that were ``written``.
    """
    renewal = parse_renewal_key(key)
    if renewal is None:
        return {"training": None, "written": 0}
    keys = TrainingKeys(renewal.training)
    holders = set(_holders(store, keys)) if renewal.client is None else {renewal.client}
    if not holders:
        return {"training": keys.name, "written": 0}
    spec, state = read_training_spec(store, keys), read_state(store, keys)
    if spec is None or state is None:
        return {"training": keys.name, "written": 0}
    invitation = state.invitation
    if renewal.client is None and state.status != ENDED and not (invitation and invitation.is_open):
        holders &= set(invitation.clients) if invitation else set()
    writer = _Writer(store, signer, keys, spec)
    with ThreadPoolExecutor(WRITERS) as pool:
        written = sum(pool.map(writer.write, sorted(holders)))
    return {"training": keys.name, "written": written}


def _holders(store: S3Store, keys: TrainingKeys) -> Iterator[str]:
    for entry in store.list_objects(keys.notices):
        name = entry.key.removeprefix(keys.notices).removesuffix(NOTICE_SUFFIX)
        if is_client(name):
            yield name


class _Writer:
    """Writes notices of one training."""

    def __init__(
        self, store: S3Store, signer: Presigner, keys: TrainingKeys, spec: TrainingSpec
    ) -> None:
        self._store, self._signer, self._keys, self._spec = store, signer, keys, spec

    def write(self, client: str) -> bool:
        """Write one notice; return False if there is none, which is so if it was taken away."""
        key = self._keys.notice(client)
        for _ in conditional_write_attempts(key):
            # Looked at before the state is read: the last of two writers has the newer state.
            head = self._store.head(key)
            if head is None:
                return False
            state = read_state(self._store, self._keys)
            if state is None:
                raise TrainingNotFoundError.of(self._keys.name)
            record = self._notice(client, state).to_json()
            if self._store.put_json(key, record, replaces=head.etag):
                break
        return True

    def _notice(self, client: str, state: TrainingState) -> Notice:
        now, signer = datetime.now(UTC), self._signer
        optimizer = self._spec.server_optimizer
        return Notice(
            client,
            self._spec.poll_seconds,
            optimizer.updates,
            self._seen_by(client, state),
            self._ticket(client, state, now),
            NoticeUrls(
                signer.presign_read(self._keys.notice(client), SECONDS),
                signer.presign_empty(self._keys.renewal(client), SECONDS),
            ),
            now.isoformat(),
        )

    def _seen_by(self, client: str, state: TrainingState) -> TrainingState:
        """Return the state as the client may know it, with its assignment among the settings."""
        seen = seen_by(client, state)
        invitation = seen.invitation
        if invitation is None or invitation.is_evaluation or self._spec.terms.assignments is None:
            return seen
        stated = training_round(self._keys, self._spec, state).assignments
        assert stated is not None  # noqa: S101 - for mypy: each round of the training has them
        return replace(seen, invitation=assigned(self._store, invitation, stated, client))

    def _ticket(self, client: str, state: TrainingState, now: datetime) -> dict[str, Any] | None:
        invitation = state.invitation
        if invitation is None:
            return None
        if not invitation.is_open and client not in invitation.clients:
            return None
        model = self._spec.server_optimizer.model
        try:
            version = model_registry.read_version(self._store, model, invitation.version)
        except ModelNotFoundError:
            return None  # it was pruned meanwhile; the round fails, and says so
        terms: dict[str, Any] = {"max_bytes": METADATA_ROOM_BYTES}
        if not invitation.is_evaluation:
            layout = model_registry.layout_of(self._store, version.tensors)
            terms = self._terms(layout, self._agreement(state))
        return build_ticket(
            self._signer,
            RoundKeys(invitation.answered_to(self._keys)),
            client,
            seconds=SECONDS,
            expires_at=now + timedelta(seconds=SECONDS),
            model=version.tensors.source,
            **terms,
        )

    def _agreement(self, state: TrainingState) -> Agreement | None:
        """Return what the clients of a masked round agree to; None in other trainings."""
        if self._spec.terms.masked is None:
            return None
        return Agreement.of(training_round(self._keys, self._spec, state))

    def _terms(self, layout: Layout, agreement: Agreement | None) -> dict[str, Any]:
        """Return what a ticket says of updates: their layout, lengths, codecs and masks."""
        spec = self._spec.terms
        sent = sent_layout(layout, agreement)
        most = max_update_bytes(sent)
        is_whole = not (spec.codecs or spec.takes_partial)
        return {
            "max_bytes": most,
            # Updates without a codec differ in their metadata alone.
            "min_bytes": max(1, sent.nbytes) if is_whole else 1,
            "layout": None if spec.takes_partial else layout,
            "allow_nonfinite": spec.allow_nonfinite,
            "codecs": spec.codecs or (),
            "agreement": agreement,
        }
