"""Checks before an update is sent: whether the round takes it, and whether it changes anything."""

from typing import Any, Final

from gradshard.aws.client_store import ClientStore
from gradshard.updates.upload_source import Content
from gradshard.updates.uploads import checksum_of
from gradshard_core.errors import RoundStateError, UpdateError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.records.model_registry import layout_of, read_version
from gradshard_core.records.plan_and_manifest import read_manifest, read_plan
from gradshard_core.specs.round_spec import RoundSpec

NAMED: Final = 20
"""Expected clients that an error names."""


def check_expected(spec: RoundSpec, client: str, round_id: str) -> None:
    """Raise :class:`UpdateError` unless the round expects the client."""
    if not spec.expects(client):
        assert not isinstance(spec.clients, int)  # noqa: S101 - for mypy: then all are expected
        named, more = ", ".join(spec.clients[:NAMED]), len(spec.clients) - NAMED
        others = f" and {more:,} others" if more > 0 else ""
        raise UpdateError(
            f"client {client!r} is not expected in round {round_id!r}, only {named}{others}"
        )


def check_partial(spec: RoundSpec, round_id: str) -> None:
    """Raise :class:`UpdateError` unless the round takes partial updates."""
    if not spec.takes_partial:
        raise UpdateError(
            f"round {round_id!r} averages whole updates only; open it with a rule for partial ones"
        )


def check_whole(spec: RoundSpec, layout: Layout | None, content: Content, round_id: str) -> None:
    """Raise :class:`UpdateError` if an update should have been sent as a partial one."""
    if layout is None or not spec.takes_partial:
        return
    sent = content.layout
    if layout.difference(sent) and not layout.difference(sent, partial=True):
        raise UpdateError(
            f"the update has {len(sent.tensors)} of the {len(layout.tensors)} tensors of round "
            f"{round_id!r}: send it with partial=True (--partial) if the client has no more"
        )


def known_layout(
    store: ClientStore, spec: RoundSpec, record: dict[str, Any] | None
) -> Layout | None:
    """Return the layout that updates must have, if it is known: the model's, or the spec's.

    Parameters
    ----------
    store
        The store of the round's bucket.
    spec
        The round's spec.
    record
        The record of the round's opening, once that exists.
    """
    if spec.server_optimizer is None or record is None:
        return spec.layout
    version = read_version(store, spec.server_optimizer.model, record["model_version"])
    return layout_of(store, version.tensors)


def differs(store: ClientStore, key: str, content: Content) -> bool:
    """Return whether another update is stored under this key already."""
    return store.head(key) is not None and store.checksum(key) != checksum_of(content)


def is_counted(
    store: ClientStore, keys: RoundKeys, spec: RoundSpec, client: str, content: Content
) -> bool:
    """Return whether this update is in the plan already, so that submitting it changes nothing.

    Raises
    ------
    RoundStateError
        The round takes no more updates, and has not got this one.
    """
    plan = read_plan(store, keys)
    if plan is None:
        manifest = read_manifest(store, keys)
        if manifest is None:
            return False
        raise RoundStateError(f"round {keys.round_id!r} has ended ({manifest['status']})")
    if spec.awaits(client, plan.stage.awaited):
        return False
    source = next((c.source for c in plan.contributors if c.client == client), None)
    if source and store.checksum(source.key, etag=source.etag) == checksum_of(content):
        return True
    raise RoundStateError(
        f"round {keys.round_id!r} was planned at {plan.planned_at} and takes no more updates"
    )
