"""Write the notices of clients without AWS credentials: when a training goes on, or when one asks.

A notice is there once a coordinator has made a ticket of the training for its client; if it is
deleted, the ticket is worth nothing from the end of its URLs on.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

from gradshard_core.errors import ModelNotFoundError, TrainingNotFoundError
from gradshard_core.formats.object_keys import (
    NOTICE_SUFFIX,
    ObjectVersion,
    RenewalKey,
    RoundKeys,
    TrainingKeys,
    is_client,
    parse_renewal_key,
)
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records import model_registry
from gradshard_core.records.assignment import assigned
from gradshard_core.records.model_registry import Version
from gradshard_core.records.ticket_urls import (
    METADATA_ROOM_BYTES,
    Presigner,
    build_ticket,
    max_update_bytes,
    sent_layout,
)
from gradshard_core.records.training_notice import Notice, NoticeUrls
from gradshard_core.records.training_state import (
    ENDED,
    TrainingState,
    read_state,
    read_training_spec,
)
from gradshard_core.s3.retries import conditional_write_attempts
from gradshard_core.s3.store import S3Store
from gradshard_core.specs.masking_options import Agreement
from gradshard_core.specs.option_parsers import AssignmentSpec
from gradshard_core.specs.training_spec import TrainingSpec
from gradshard_core.trainings.next_round import training_round
from gradshard_core.trainings.state_for_tickets import seen_by

URL_SECONDS: Final = 12 * 3600
"""For which URLs are signed: no session of a role lasts longer,
https://docs.aws.amazon.com/IAM/latest/UserGuide/id_roles_manage-assume.html (2026-11). Lambda does
not say when the credentials of a function end
(https://repost.aws/knowledge-center/presigned-url-s3-bucket-expiration), so holders ask often."""

WRITERS: Final = 16

AT_ONCE: Final = 256
"""Notices that one call writes: 1.6 CPU-seconds, or 11 s of a function with 256 MB. More are
divided among calls, each of which is asked for."""


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
        ``training`` and the number of notices that were ``written``; of too many for one call
        instead the number of ``renewals`` by which others are asked for them.
    """
    renewal = parse_renewal_key(key)
    if renewal is None:
        return {"training": None, "written": 0}
    keys = TrainingKeys(renewal.training)
    holders = list(_holders(store, keys, renewal))
    if not holders:
        return {"training": keys.name, "written": 0}
    spec, state = read_training_spec(store, keys), read_state(store, keys)
    if spec is None or state is None:
        return {"training": keys.name, "written": 0}
    invitation = state.invitation
    is_own = renewal.first is not None and renewal.first == renewal.last
    if not is_own and state.status != ENDED and not (invitation and invitation.is_open):
        invited = set(invitation.clients) if invitation else set()
        holders = [client for client in holders if client in invited]
    if renewal.first is None and len(holders) > AT_ONCE:
        pieces = [holders[at : at + AT_ONCE] for at in range(0, len(holders), AT_ONCE)]
        asked = [keys.renewal_for(piece[0], piece[-1]) for piece in pieces]
        with ThreadPoolExecutor(WRITERS) as pool:
            list(pool.map(lambda key: store.put_bytes(key, b""), asked))
        return {"training": keys.name, "written": 0, "renewals": len(asked)}
    with ThreadPoolExecutor(WRITERS) as pool:
        written = _Writer(store, signer, keys, spec, pool).write(holders)
    if renewal.first is not None and not is_own:
        store.delete(key)  # each round would leave others
    return {"training": keys.name, "written": written}


def _holders(store: S3Store, keys: TrainingKeys, renewal: RenewalKey) -> Iterator[str]:
    """Yield the clients that a request is for, as far as they have notices."""
    if renewal.first is not None:
        yield renewal.first  # whoever writes its notice looks whether it is there
        if renewal.first == renewal.last:
            return
    after = "" if renewal.first is None else keys.notice(renewal.first)
    for entry in store.list_objects(keys.notices, after=after):
        if renewal.last is not None and entry.key > keys.notice(renewal.last):
            return
        name = entry.key.removeprefix(keys.notices).removesuffix(NOTICE_SUFFIX)
        if is_client(name):
            yield name


@dataclass(frozen=True)
class _Shared:
    """What the notices of a state have in common.

    Parameters
    ----------
    version
        The version of the model that the invited clients fetch, if there is one.
    terms
        What their tickets say of updates.
    assignments
        The terms of their assignments, in a round that has them.
    """

    version: Version | None = None
    terms: Mapping[str, Any] = field(default_factory=dict)
    assignments: AssignmentSpec | None = None


class _Writer:
    """Writes notices of one training, several at once."""

    def __init__(
        self,
        store: S3Store,
        signer: Presigner,
        keys: TrainingKeys,
        spec: TrainingSpec,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._store, self._signer, self._keys, self._spec = store, signer, keys, spec
        self._pool = pool

    def write(self, clients: Sequence[str]) -> int:
        """Write notices that are there; return how many. One that was taken away is not."""
        written, left = 0, list(clients)
        for _ in conditional_write_attempts(self._keys.notices):
            # Looked at before the state is read: the last of two writers has the newer state.
            heads = self._pool.map(lambda client: self._store.head(self._keys.notice(client)), left)
            there = [(client, head) for client, head in zip(left, heads, strict=True) if head]
            if not there:
                break
            state = read_state(self._store, self._keys)
            if state is None:
                raise TrainingNotFoundError.of(self._keys.name)
            shared = self._shared(state, [client for client, _ in there])
            put = partial(self._put, state, shared)
            taken = list(self._pool.map(put, there))
            written += sum(taken)
            left = [client for (client, _), is_put in zip(there, taken, strict=True) if not is_put]
            if not left:
                break
        return written

    def _put(self, state: TrainingState, shared: _Shared, found: tuple[str, ObjectVersion]) -> bool:
        client, head = found
        record = self._notice(client, state, shared).to_json()
        return self._store.put_json(self._keys.notice(client), record, replaces=head.etag)

    def _notice(self, client: str, state: TrainingState, shared: _Shared) -> Notice:
        now, signer = datetime.now(UTC), self._signer
        optimizer = self._spec.server_optimizer
        return Notice(
            client,
            self._spec.poll_interval,
            optimizer.updates,
            self._seen_by(client, state, shared),
            self._ticket(client, state, shared, now),
            NoticeUrls(
                signer.presign_read(self._keys.notice(client), URL_SECONDS),
                signer.presign_empty(self._keys.renewal(client), URL_SECONDS),
            ),
            now.isoformat(),
        )

    def _shared(self, state: TrainingState, clients: Sequence[str]) -> _Shared:
        """Look up what the notices of some clients have in common."""
        invitation = state.invitation
        if invitation is None or not any(map(invitation.invites, clients)):
            return _Shared()
        model = self._spec.server_optimizer.model
        try:
            version = model_registry.read_version(self._store, model, invitation.version)
        except ModelNotFoundError:
            return _Shared()  # it was pruned meanwhile; the round fails, and says so
        if invitation.is_evaluation:
            return _Shared(version, {"max_bytes": METADATA_ROOM_BYTES})
        layout = model_registry.layout_of(self._store, version.tensors)
        terms = self._terms(layout, self._agreement(state))
        if self._spec.terms.assignments is None:
            return _Shared(version, terms)
        return _Shared(version, terms, training_round(self._keys, self._spec, state).assignments)

    def _seen_by(self, client: str, state: TrainingState, shared: _Shared) -> TrainingState:
        """Return the state as the client may know it, with its assignment among the settings."""
        seen = seen_by(client, state)
        invitation, stated = seen.invitation, shared.assignments
        if invitation is None or stated is None:
            return seen
        return replace(seen, invitation=assigned(self._store, invitation, stated, client))

    def _ticket(
        self, client: str, state: TrainingState, shared: _Shared, now: datetime
    ) -> dict[str, Any] | None:
        invitation = state.invitation
        if invitation is None or shared.version is None or not invitation.invites(client):
            return None
        return build_ticket(
            self._signer,
            RoundKeys(invitation.answered_to(self._keys)),
            client,
            seconds=URL_SECONDS,
            expires_at=now + timedelta(seconds=URL_SECONDS),
            model=shared.version.tensors.source,
            **shared.terms,
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
