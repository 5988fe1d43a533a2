"""The mods of Flower's clients: they fetch the model, and upload the update."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict

from gradshard.client.round_by_ticket import TicketRound
from gradshard.flower.arrays import RECORD, read_arrays, view
from gradshard.tickets.round_ticket import Ticket
from gradshard.updates.deltas import change_of
from gradshard.updates.mask import Mask
from gradshard.updates.tensors import pack
from gradshard_core.errors import UpdateError
from gradshard_core.formats.tensor_layout import Layout


def s3_mod(
    message: Message, context: Context, call_next: Callable[[Message, Context], Message]
) -> Message:
    """Fetch the model that a message names, and upload the trained model; a mod for Flower.

    With ``ClientApp(mods=[s3_mod])``, ``train`` and ``evaluate`` find the model in their message
    and reply as they do without the mod. Messages of other strategies pass unchanged.

    Raises
    ------
    UpdateError
        The reply has not one ArrayRecord and one MetricRecord, or its arrays differ from the
        model's layout; nothing was sent. Flower's server gets the text as the reply's error.
    TicketError
        S3 does not accept the ticket any more.
    """
    order = message.content.config_records.get(RECORD)
    if order is None:
        return call_next(message, context)
    return _answer(order, message, context, call_next, None)


def mask_of_node(context: Context) -> Mask:
    """Return the mask of a node, by ``mask-key`` and ``keeper`` in its configuration.

    A SuperNode gets them with ``--node-config 'mask-key="alice.key" keeper="FINGERPRINT"'``.

    Raises
    ------
    UpdateError
        One of them is missing.
    """
    config = context.node_config
    for name in ("mask-key", "keeper"):
        if not config.get(name):
            raise UpdateError(
                f"this node's configuration lacks {name}: start the SuperNode with --node-config "
                '\'mask-key="FILE" keeper="FINGERPRINT"\''
            )
    return Mask(str(config["mask-key"]), str(config["keeper"]))


def s3_masked_mod(
    mask_of: Callable[[Context], Mask] = mask_of_node,
) -> Callable[[Message, Context, Callable[[Message, Context], Message]], Message]:
    """Return the mod of clients that mask their updates, in place of :func:`s3_mod`.

    It answers only messages for training in masked rounds, so that no model and no metrics of this
    client leave it in the clear. Replies have no metrics and no other records, and one sample each.

    Parameters
    ----------
    mask_of
        Returns the client's key and its keeper.
    """

    def mod(
        message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        order = message.content.config_records.get(RECORD)
        if order is None or "ticket" not in order:
            raise UpdateError(
                f"this client takes part in masked rounds only, and a reply to a message of type "
                f"{message.metadata.message_type!r} would not be masked: set fraction_evaluate=0"
            )
        return _answer(order, message, context, call_next, mask_of(context))

    return mod


def _answer(
    order: ConfigRecord,
    message: Message,
    context: Context,
    call_next: Callable[[Message, Context], Message],
    mask: Mask | None,
) -> Message:
    """Answer a message of :class:`.S3FedAvg`."""
    if mask is not None:
        TicketRound(Ticket.loads(order["ticket"])).check_mask(mask)
    with tempfile.TemporaryDirectory(prefix="gradshard-") as folder:
        model = TicketRound(Ticket.loads(order["model"]))
        file = model.fetch(Path(folder) / "model.safetensors")
        arrays, layout = read_arrays(file, order["names"])
        before = file if order.get("changes") else None
        if before is None:
            file.unlink()
        records = {name: record for name, record in message.content.items() if name != RECORD}
        message.content = RecordDict(records | {order["arrays"]: arrays})
        # Free the memory of the model before the upload.
        del arrays, records
        reply = call_next(message, context)
        if "ticket" not in order or reply.has_error():
            return reply
        ticket = Ticket.loads(order["ticket"])
        return _uploading(
            reply,
            ticket,
            layout,
            order["weighted-by"],
            order.get("codec"),
            before=before,
            mask=mask,
        )


def _uploading(
    reply: Message,
    ticket: Ticket,
    layout: Layout,
    weighted_by: str,
    codec: str | None = None,
    *,
    before: Path | None = None,
    mask: Mask | None = None,
) -> Message:
    """Upload a reply's arrays and replace them by a note of that.

    With the file of the model ``before``, upload what training has changed.
    """
    records = reply.content
    counted = len(records.array_records), len(records.metric_records)
    if counted != (1, 1):
        raise UpdateError(
            f"the reply has {counted[0]} ArrayRecords and {counted[1]} MetricRecords: reply with "
            "one of each"
        )
    [(name, arrays)] = records.array_records.items()
    [metrics] = records.metric_records.values()
    tensors = {key: view(array) for key, array in arrays.items()}
    difference = layout.difference(pack(tensors)[0])
    if difference:
        raise UpdateError(
            f"what was trained is not laid out as the model of round {ticket.round_id!r}: "
            f"{difference}; reply with the model's tensors, in its names, types and shapes"
        )
    if before is not None:
        model, _ = read_arrays(before, tensors)
        tensors = change_of({key: view(array) for key, array in model.items()}, tensors)
    # The round rejects NaN, and so tells the server, which is where Flower's users look.
    round_ = TicketRound(replace(ticket, allow_nonfinite=True))
    round_.submit(tensors, samples=_samples(metrics, weighted_by), codec=codec, mask=mask)
    if mask is not None:
        # Flower's server wants a weight in each.
        silent = MetricRecord({weighted_by: 1})
        records = RecordDict(dict.fromkeys(records.metric_records, silent))
    content = {key: record for key, record in records.items() if key != name}
    reply.content = RecordDict(content | {RECORD: ConfigRecord({"round": ticket.round_id})})
    return reply


def _samples(metrics: MetricRecord, key: str) -> int:
    """Return a client's weight, which has to be a whole number."""
    value = metrics.get(key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int):
        raise UpdateError(
            f"the reply's {key!r} is {value!r}, not a whole number above zero: put the number of "
            "samples into its MetricRecord"
        )
    return value
