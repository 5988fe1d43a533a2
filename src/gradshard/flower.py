"""Flower over S3: clients upload their updates, and the server opens a round for them.

``S3FedAvg`` takes the place of Flower's ``FedAvg`` in a ServerApp, ``s3_mod`` is a mod of its
ClientApp. Models then pass between clients and S3: neither the server nor Flower's messages hold
them. Importing this module imports flwr; the rest of gradshard does not.
"""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

import io
import json
import logging
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

import numpy as np
import numpy.typing as npt

from gradshard.client.deltas import change_of
from gradshard.client.downloads import download_file
from gradshard.client.federation import Federation
from gradshard.client.mask import Mask
from gradshard.client.tensors import pack
from gradshard.client.ticket_issuer import (
    DEFAULT_SECONDS,
    issue_download_ticket,
    issue_ticket,
)
from gradshard.client.ticket_round import TicketRound
from gradshard.client.tickets import Ticket
from gradshard.client.upload_source import model_content_of
from gradshard.client.uploads import upload
from gradshard_core.aggregation.privacy import LEAST_CLIENTS, parse_privacy
from gradshard_core.aggregation.robust_rules import RobustRule
from gradshard_core.errors import RoundFailed, RoundStateError, SpecError, UpdateError
from gradshard_core.formats.dtypes import DTYPES
from gradshard_core.formats.headers import Header, header_length, parse_header
from gradshard_core.formats.keys import RoundKeys
from gradshard_core.formats.layout import PREFIX_BYTES, Layout
from gradshard_core.formats.masked import roster_digest
from gradshard_core.planning import limits
from gradshard_core.planning.masking import (
    LEAST_MASKED,
    Agreement,
    check_layout,
    check_unused,
    parse_masking,
)
from gradshard_core.planning.option_parsers import parse_rule
from gradshard_core.planning.spec import default_quorum
from gradshard_core.records import model_registry
from gradshard_core.records.ticket_record import max_update_bytes, sent_layout

try:
    from flwr.app import (
        Array,
        ArrayRecord,
        ConfigRecord,
        Context,
        Message,
        MetricRecord,
        RecordDict,
    )
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import FedAvg
    from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency
except ImportError:
    raise ImportError(
        "gradshard.flower needs Flower, 1.41 or newer: `pip install 'gradshard[flower]'`",
        name="flwr",
    ) from None

Numpy = npt.NDArray[Any]
ClientNames = Callable[[Grid, Sequence[int]], Mapping[int, str]]

RECORD: Final = "gradshard"
"""The ConfigRecord of a message that is between :class:`S3FedAvg` and :func:`s3_mod`."""

UPLOADED_TIMEOUT: Final = 60
"""Seconds a round waits for uploads that clients say they have made: S3 has them at once."""

LAYOUT_BYTES: Final = limits.MAX_PAYLOAD_BYTES // 2
"""A layout longer than this in JSON is left out of a round's spec, which are bounded."""

_READER: Final = "reader"
_ADDED: Final = {"optimizer": "fedavg", "updates": "deltas"}
"""The server optimizer that adds the average of changes to the model."""
_NUMPY: Final = "numpy.ndarray"
_LOG: Final = logging.getLogger("flwr")


def by_number(_grid: Grid, nodes: Sequence[int]) -> dict[int, str]:
    """Name clients by their node ids, padded with zeros, so that text sorts as numbers do."""
    return {node: f"{node:020d}" for node in nodes}


class _Combination(NamedTuple):
    """How updates are combined.

    Parameters
    ----------
    options
        The options of a round that say it.
    least
        The fewest updates that it takes.
    is_of_changes
        Whether clients send what training has changed, not whole models.
    """

    options: dict[str, Any]
    least: int = 1
    is_of_changes: bool = False


def _combination(
    rule: str | Mapping[str, Any] | None, dp: Mapping[str, Any] | None
) -> _Combination:
    """Check a rule or the terms of privacy.

    Raises
    ------
    SpecError
        It is no rule for whole updates, the terms are out of their bounds, or both are given.
    """
    if dp is not None:
        if rule is not None:
            raise SpecError("dp clips changes and averages them: leave out rule")
        return _Combination({"dp": parse_privacy(dp).to_json()}, LEAST_CLIENTS, True)
    if rule is None:
        return _Combination({})
    parsed = parse_rule(rule)
    if not isinstance(parsed, RobustRule):
        raise SpecError(
            f"rule {parsed.name} is for partial updates, and Flower's clients send whole ones: "
            "take a robust rule, such as median"
        )
    return _Combination({"rule": rule}, parsed.least_clients, parsed.is_of_changes)


class _Place(NamedTuple):
    """A model's object, its layout, and the order of its tensors in Flower's records."""

    round_id: str
    key: str
    layout: Layout
    names: tuple[str, ...]


class S3FedAvg(FedAvg):
    """Flower's FedAvg, with updates in S3 that gradshard averages.

    Every message to a client has the place of the model and a ticket for the upload: the client
    needs :func:`s3_mod`, and no AWS credentials. Its reply has metrics only. When the replies have
    arrived, a round is opened for the clients that announce an upload, so it does not wait for a
    client that failed.

    For float32 and float64, the bits are those of Flower's FedAvg if that gets the replies in the
    order of the clients' names.

    Other strategies can be combined with this class if they change the messages (FedProx) or
    continue from the average (FedAdam): ``class S3FedAdam(FedAdam, S3FedAvg): pass``, then
    ``strategy.federation = …``.

    Parameters
    ----------
    federation
        The federation that opens the rounds; by default the stack named gradshard.
    run
        The beginning of the rounds' ids, ``{run}-1`` and so on. By default a random name.
    keep_arrays
        Fetch each average, for ``evaluate_fn`` and the result of ``strategy.start``. If not, these
        get empty records, and the server holds no model but the first. :meth:`fetch` gets the
        model at any time.
    quorum
        The number of uploads below which a round fails, and training goes on from the model
        before; by default more than half of the clients that were asked.
    timeout
        Seconds that a round waits for announced uploads.
    rule
        The rule that combines models, such as ``"median"`` or ``{"name": "krum", "f": 1}``
        (docs/robust.md); by default the average. For rules that go by lengths or directions, such
        as ``"norm_clip"``, clients send changes instead.
    dp
        Make each round private, for example
        ``{"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}`` (docs/privacy.md). Clients send
        changes. If the clip adapts, each round takes that of the one before.
    model
        The model of the federation that changes are added to, by default named as the run. Its
        ledger has the private rounds, and its budget bounds them.
    max_samples
        The most samples of a client that count, whatever it states.
    round_options
        More options of the rounds: see :meth:`gradshard.client.federation.Federation.open_round`.
    client_names
        A function that gives nodes their client ids; a node without an id is left out of the
        round. The order of the ids is that of the additions.
    ticket_seconds
        The seconds that a client may take, from its message to the end of its upload.
    codec
        Clients compress their updates with this codec, such as ``int8``.
    masked
        The terms of masked rounds (docs/masked-rounds.md). Clients need :func:`s3_masked_mod`, and
        the names that ``client_names`` gives them are those that are enrolled with the keeper.
    **options
        The options of Flower's FedAvg.
    """

    def __init__(
        self,
        federation: Federation | None = None,
        *,
        run: str | None = None,
        keep_arrays: bool = True,
        quorum: int | None = None,
        timeout: int = UPLOADED_TIMEOUT,
        rule: str | Mapping[str, Any] | None = None,
        dp: Mapping[str, Any] | None = None,
        model: str | None = None,
        max_samples: int | None = None,
        round_options: Mapping[str, Any] | None = None,
        client_names: ClientNames = by_number,
        ticket_seconds: int = DEFAULT_SECONDS,
        codec: str | None = None,
        masked: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.federation = federation or Federation()
        self.run = run or f"flower-{uuid.uuid4().hex[:12]}"
        self.keep_arrays = keep_arrays
        self.quorum = quorum
        self.timeout = timeout
        self.model = model
        self._combination = _combination(rule, dp)
        self.round_options = dict(round_options or {}) | self._combination.options
        if max_samples is not None:
            self.round_options["max_samples"] = max_samples
        self.client_names = client_names
        self.ticket_seconds = ticket_seconds
        self.codec = codec
        self._codecs = () if codec is None else (codec,)
        self._masked = None if masked is None else parse_masking(masked)
        if self._masked is not None:
            self._combination = self._combination._replace(least=LEAST_MASKED)
            _check_unmaskable(self)
        self._names: dict[int, str] = {}
        # The record that strategy.start was given last, or gave, and where that model is.
        self._model: tuple[ArrayRecord, _Place] | None = None

    def summary(self) -> None:
        """Log the configuration of the strategy."""
        super().summary()
        _LOG.info("\t└──> gradshard:")
        _LOG.info("\t\t├── Rounds: '%s-1', …", self.run)
        _LOG.info("\t\t├── Quorum: %s", self.quorum or "more than half of those asked")
        _LOG.info("\t\t└── Averages on the server: %s", "kept" if self.keep_arrays else "no")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages for training: the place of the model, and a ticket for each upload."""
        messages = list(super().configure_train(server_round, ArrayRecord(), config, grid))
        if not messages:
            return []
        place = self._place(server_round, arrays)
        nodes = [message.metadata.dst_node_id for message in messages]
        self._names = _named(self.client_names(grid, nodes), nodes)
        agreement = self._agreement(place.layout)
        sent = sent_layout(place.layout, agreement)
        keys = self._keys(server_round)
        order = self._order(place)
        return [
            _with_order(
                message,
                order
                | {
                    "weighted-by": self.weighted_by_key,
                    "ticket": issue_ticket(
                        self.federation.stack.store,
                        keys,
                        self._names[node],
                        expires=self.ticket_seconds,
                        max_bytes=max_update_bytes(sent),
                        min_bytes=1 if self.codec else sent.nbytes,
                        layout=place.layout if agreement else None,
                        codecs=self._codecs,
                        agreement=agreement,
                    ).dumps(),
                }
                | ({"codec": self.codec} if self.codec else {})
                | ({"changes": True} if self._combination.is_of_changes else {}),
            )
            for node, message in zip(nodes, messages, strict=True)
            if node in self._names
        ]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages for evaluation, with the place of the model."""
        messages = list(super().configure_evaluate(server_round, ArrayRecord(), config, grid))
        if not messages:
            return []
        order = self._order(self._place(server_round, arrays))
        return [_with_order(message, order) for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the uploads, and return the average and the contributors' metrics.

        If the round fails, the log has the reason for each client, and ``strategy.start`` goes on
        from the model before.
        """
        uploaded = self._uploaded(server_round, replies)
        if len(uploaded) < self._needed():
            _LOG.error(
                "aggregate_train: %d clients have uploaded, under the quorum of %d; the model "
                "stays as it is",
                len(uploaded),
                self._needed(),
            )
            return None, MetricRecord(_counts(0, 0, 0))
        assert self._model is not None  # noqa: S101 - for mypy: configure_train came before
        place = self._model[1]._replace(
            round_id=self._keys(server_round).round_id, key=self._keys(server_round).result
        )
        manifest = self._average(place, sorted(uploaded))
        if manifest.get("model"):
            made = self.federation.model(self._model_name).version(manifest["model"]["version"])
            place = place._replace(key=made.tensors.source.key)
        rejected, missing = manifest["rejected"], manifest["missing"]
        for rejection in rejected:
            _LOG.warning("\t> Rejected: %s", rejection["reason"])
        for client in missing:
            _LOG.warning(
                "\t> Client %s says it has uploaded to round '%s', which had nothing of it after "
                "%d s",
                client,
                place.round_id,
                self.timeout,
            )
        clients = [contributor["client"] for contributor in manifest["contributors"]]
        counts = _counts(len(clients), len(rejected), len(missing))
        if not clients:
            return None, MetricRecord(counts)
        metrics = self.train_metrics_aggr_fn(
            [uploaded[client] for client in clients if client in uploaded], self.weighted_by_key
        )
        metrics.update(counts)
        return self._fetched(place), metrics

    @overload
    def fetch(self) -> ArrayRecord: ...

    @overload
    def fetch(self, path: str | Path) -> Path: ...

    def fetch(self, path: str | Path | None = None) -> ArrayRecord | Path:
        """Fetch the model as it is after the last round.

        Parameters
        ----------
        path
            The .safetensors file to write, in a few MB of memory.

        Raises
        ------
        RoundStateError
            No round has begun.
        """
        if self._model is None:
            raise RoundStateError(f"run {self.run!r} has no model yet: start the strategy first")
        place = self._model[1]
        if path is not None:
            self._download(place, Path(path))
            return Path(path)
        with tempfile.TemporaryDirectory(prefix="gradshard-") as folder:
            file = Path(folder) / "model.safetensors"
            self._download(place, file)
            return _read_arrays(file, place.names)[0]

    @property
    def _model_name(self) -> str:
        return self.model or self.run

    def _keys(self, server_round: int) -> RoundKeys:
        return RoundKeys(f"{self.run}-{server_round}")

    def _place(self, server_round: int, arrays: ArrayRecord) -> _Place:
        """Return where a model is, which is uploaded first if it is no round's result."""
        if self._model is None or self._model[0] is not arrays:
            round_id = self._keys(server_round).round_id
            key, layout = self._put(server_round, arrays)
            self._model = arrays, _Place(round_id, key, layout, tuple(arrays))
        return self._model[1]

    def _put(self, server_round: int, arrays: ArrayRecord) -> tuple[str, Layout]:
        """Upload a model; return its key and its layout."""
        store = self.federation.stack.store
        tensors = {name: _view(array) for name, array in arrays.items()}
        if self._combination.is_of_changes:
            version = self.federation.model(self._model_name).put(tensors)
            return version.tensors.source.key, model_registry.layout_of(store, version.tensors)
        key = f"{self._keys(server_round).root}model.safetensors"
        with model_content_of(tensors) as content:
            upload(store, key, content)
            return key, content.layout

    def _order(self, place: _Place) -> dict[str, Any]:
        """Return what every client is told: a ticket for the model, and its record's key."""
        ticket = issue_download_ticket(
            self.federation.stack.store,
            RoundKeys(place.round_id),
            _READER,
            place.key,
            expires=self.ticket_seconds,
        )
        return {
            "model": ticket.dumps(),
            "names": list(place.names),
            "arrays": self.arrayrecord_key,
        }

    def _uploaded(self, server_round: int, replies: Iterable[Message]) -> dict[str, RecordDict]:
        """Return the replies of clients that say they have uploaded, by client; log the others."""
        round_id = self._keys(server_round).round_id
        uploaded: dict[str, RecordDict] = {}
        failed = 0
        for reply in replies:
            node = reply.metadata.src_node_id
            reason = _failure(reply, round_id)
            if reason is None:
                uploaded[self._names[node]] = reply.content
            else:
                failed += 1
                _LOG.warning("\t> No upload of node %d (%s): %s", node, self._names[node], reason)
        _LOG.info("aggregate_train: %d uploads and %d failures", len(uploaded), failed)
        silent = len(self._names) - len(uploaded) - failed
        if silent:
            _LOG.warning("\t> %d of %d clients have not answered", silent, len(self._names))
        if uploaded:
            validate_message_reply_consistency(
                list(uploaded.values()), self.weighted_by_key, check_arrayrecord=False
            )
        return uploaded

    def _needed(self) -> int:
        """Return how many uploads this round needs."""
        quorum = default_quorum(len(self._names)) if self.quorum is None else self.quorum
        return max(self._combination.least, quorum)

    def _agreement(self, layout: Layout) -> Agreement | None:
        """Return what the clients of a masked round are asked to agree to.

        Raises
        ------
        SpecError
            Updates of this layout, or of so many clients, cannot be masked.
        """
        if self._masked is None:
            return None
        asked = tuple(self._names.values())
        check_layout(self._masked, len(asked), layout)
        return Agreement(self._masked, len(asked), roster_digest(asked), self._needed())

    def _average(self, place: _Place, clients: Sequence[str]) -> dict[str, Any]:
        """Have a round, and return its manifest; one without contributors where it failed."""
        if self._combination.is_of_changes:
            terms: dict[str, Any] = {"server_optimizer": {**_ADDED, "model": self._model_name}}
        else:
            layout = place.layout.to_json()
            fits = len(json.dumps(layout)) <= LAYOUT_BYTES
            terms = {"layout": layout} if fits else {}
        if self._masked is not None:
            # Clients have sealed their seeds for all who were asked, not for those who answered.
            asked = sorted(self._names.values())
            enough = len(clients) if len(clients) < len(asked) else None
            terms |= {"masked": self._masked.to_json(), "enough_clients": enough}
            clients = asked
        round_ = self.federation.open_round(
            place.round_id,
            list(clients),
            min_clients=self._needed(),
            timeout=self.timeout,
            codecs=list(self._codecs) or None,
            **terms | self.round_options,
        )
        try:
            manifest = round_.wait()
        except RoundFailed as error:
            _LOG.error("aggregate_train: %s; the model stays as it is", error)
            status = round_.status()
            return {key: status[key] for key in ("rejected", "missing")} | {"contributors": []}
        if manifest["privacy"]:  # a clip that adapts goes on from round to round
            clip = manifest["privacy"]["next_clip"]
            self.round_options["dp"] = {**self.round_options["dp"], "clip": clip}
        return manifest

    def _fetched(self, place: _Place) -> ArrayRecord:
        """Return a round's average as Flower has it, and remember where it is."""
        self._model = ArrayRecord(), place
        if self.keep_arrays:
            self._model = self.fetch(), place
        return self._model[0]

    def _download(self, place: _Place, path: Path) -> None:
        store = self.federation.stack.store
        source = store.head(place.key)
        if source is None:
            raise RoundStateError(f"{place.key} was deleted: fetch a model before removing its run")
        download_file(store, source, path)


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
    client leave it in the clear. Replies have no metrics, and one sample each.

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
    """Answer a message of :class:`S3FedAvg`."""
    if mask is not None:
        TicketRound(Ticket.loads(order["ticket"])).check_mask(mask)
    with tempfile.TemporaryDirectory(prefix="gradshard-") as folder:
        model = TicketRound(Ticket.loads(order["model"]))
        file = model.fetch(Path(folder) / "model.safetensors")
        arrays, layout = _read_arrays(file, order["names"])
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
    tensors = {key: _view(array) for key, array in arrays.items()}
    difference = layout.difference(pack(tensors)[0])
    if difference:
        raise UpdateError(
            f"what was trained is not laid out as the model of round {ticket.round_id!r}: "
            f"{difference}; reply with the model's tensors, in its names, types and shapes"
        )
    if before is not None:
        model, _ = _read_arrays(before, tensors)
        tensors = change_of({key: _view(array) for key, array in model.items()}, tensors)
    # The round rejects NaN, and so tells the server, which is where Flower's users look.
    round_ = TicketRound(replace(ticket, allow_nonfinite=True))
    round_.submit(tensors, samples=_samples(metrics, weighted_by), codec=codec, mask=mask)
    if mask is not None:
        records = RecordDict({key: _silent(of, weighted_by) for key, of in records.items()})
    content = {key: record for key, record in records.items() if key != name}
    reply.content = RecordDict(content | {RECORD: ConfigRecord({"round": ticket.round_id})})
    return reply


def _silent(record: Any, weighted_by: str) -> Any:
    """Return a record of a reply without metrics; Flower's server wants a weight in each."""
    return MetricRecord({weighted_by: 1}) if isinstance(record, MetricRecord) else record


def _check_unmaskable(strategy: S3FedAvg) -> None:
    """Check that a strategy with masked rounds asks for nothing that would not be masked.

    Raises
    ------
    SpecError
        It does.
    """
    codecs = () if strategy.codec is None else ("codecs",)
    check_unused({*strategy.round_options, *codecs})
    if strategy.fraction_evaluate > 0:
        raise SpecError(
            "masked: give fraction_evaluate=0: evaluations send each client's metrics in the clear"
        )


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


def _failure(reply: Message, round_id: str) -> str | None:
    """Say why a reply announces no upload; None if it does."""
    if reply.has_error():
        return str(reply.error.reason)
    announced = reply.content.config_records.get(RECORD)
    if announced is None:
        return "it replied without uploading; its ClientApp needs mods=[gradshard.flower.s3_mod]"
    if announced["round"] != round_id:
        return f"it uploaded to round {announced['round']!r}, not to {round_id!r}"
    return None


def _named(names: Mapping[int, str], nodes: Sequence[int]) -> dict[int, str]:
    """Return the names of those nodes that have one; the others may be gone, and are logged."""
    named = {node: names[node] for node in nodes if node in names}
    if len(named) < len(nodes):
        _LOG.warning(
            "configure_train: client_names gave %d of %d nodes no name; they are left out",
            len(nodes) - len(named),
            len(nodes),
        )
    given = list(named.values())
    twice = next((name for name in given if given.count(name) > 1), None)
    if twice is not None:
        raise SpecError(
            f"client_names gives {given.count(twice)} nodes the name {twice!r}: each needs its "
            "own, or the first upload keeps out the other"
        )
    return named


def _with_order(message: Message, order: Mapping[str, Any]) -> Message:
    """Return a message with what :func:`s3_mod` needs; its other records are shared."""
    return Message(
        RecordDict(dict(message.content) | {RECORD: ConfigRecord(dict(order))}),
        dst_node_id=message.metadata.dst_node_id,
        message_type=message.metadata.message_type,
    )


def _counts(contributors: int, rejected: int, missing: int) -> dict[str, int]:
    return {
        "gradshard-contributors": contributors,
        "gradshard-rejected": rejected,
        "gradshard-missing": missing,
    }


def _view(array: Array) -> Numpy:
    """Return a Flower array's elements where they are; ``Array.numpy`` copies them."""
    file = io.BytesIO(array.data)
    if array.stype != _NUMPY or np.lib.format.read_magic(file) != (1, 0):
        return np.asarray(array.numpy())
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    elements: Numpy = np.frombuffer(array.data, dtype, offset=file.tell())
    return elements.reshape(shape, order="F" if is_fortran else "C")


def _read_arrays(path: Path, names: Iterable[str]) -> tuple[ArrayRecord, Layout]:
    """Read a .safetensors file as Flower's arrays, one at a time, in this order."""
    with path.open("rb") as file:
        header = _read_header(file.read(PREFIX_BYTES), file, path.stat().st_size)
        tensors = {tensor.name: tensor for tensor in header.layout.tensors}
        arrays = {}
        for name in names:
            tensor = tensors[name]
            dtype = DTYPES[tensor.dtype].storage
            npy = io.BytesIO()
            np.lib.format.write_array_header_1_0(
                npy,
                {
                    "descr": np.lib.format.dtype_to_descr(dtype),
                    "fortran_order": False,
                    "shape": tensor.shape,
                },
            )
            file.seek(header.data_offset + tensor.start)
            npy.write(file.read(tensor.end - tensor.start))
            arrays[name] = Array(str(dtype), tensor.shape, _NUMPY, npy.getvalue())
    return ArrayRecord(arrays), header.layout


def _read_header(prefix: bytes, file: io.BufferedReader, nbytes: int) -> Header:
    return parse_header(file.read(header_length(prefix, nbytes)), nbytes)
