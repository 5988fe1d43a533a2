"""The strategy of Flower's server: it opens a round for the clients that have uploaded."""

# Annotations stay unread, so that the documentation can be built without Flower.
from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, overload

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import validate_message_reply_consistency

from gradshard.client.federation import Federation
from gradshard.flower.arrays import read_arrays, view
from gradshard.flower.client_names import LOG, by_number, named
from gradshard.flower.strategy_messages import counted, failure, with_order
from gradshard.flower.update_combination import combination_of
from gradshard.tickets.issuer import issue_download_ticket, issue_ticket
from gradshard.tickets.lifetime import DEFAULT_SECONDS
from gradshard.updates.downloads import download_file
from gradshard.updates.upload_source import model_content_of
from gradshard.updates.uploads import upload
from gradshard_core.errors import RoundFailed, RoundStateError, SpecError
from gradshard_core.formats.masked_updates import roster_digest
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.formats.tensor_layout import Layout
from gradshard_core.limits import aws_limits
from gradshard_core.records import model_registry
from gradshard_core.records.ticket_urls import max_update_bytes, sent_layout
from gradshard_core.specs.masking_options import (
    LEAST_MASKED,
    Agreement,
    check_layout,
    check_unused,
    parse_masking,
)
from gradshard_core.specs.round_spec_checks import default_quorum

ClientNames = Callable[[Grid, Sequence[int]], Mapping[int, str]]

UPLOADED_TIMEOUT: Final = 60
"""Seconds a round waits for uploads that clients say they have made: S3 has them at once."""

LAYOUT_BYTES: Final = aws_limits.MAX_PAYLOAD_BYTES // 2
"""A layout longer than this in JSON is left out of a round's spec, which are bounded."""

_READER: Final = "reader"
_ADDED: Final = {"optimizer": "fedavg", "updates": "deltas"}
"""The server optimizer that adds the average of changes to the model."""


class _Place(NamedTuple):
    """A model's object, its layout, and the order of its tensors in Flower's records."""

    round_id: str
    key: str
    layout: Layout
    names: tuple[str, ...]


class S3FedAvg(FedAvg):
    """Flower's FedAvg, with updates in S3 that gradshard averages.

    Every message to a client has the place of the model and a ticket for the upload: the client
    needs :func:`.s3_mod`, and no AWS credentials. Its reply has metrics only. When the replies have
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
        The terms of masked rounds (docs/masked-rounds.md). Clients need :func:`.s3_masked_mod`, and
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
        self._combination = combination_of(rule, dp)
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
        LOG.info("\t└──> gradshard:")
        LOG.info("\t\t├── Rounds: '%s-1', …", self.run)
        LOG.info("\t\t├── Quorum: %s", self.quorum or "more than half of those asked")
        LOG.info("\t\t└── Averages on the server: %s", "kept" if self.keep_arrays else "no")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the messages for training: the place of the model, and a ticket for each upload."""
        messages = list(super().configure_train(server_round, ArrayRecord(), config, grid))
        if not messages:
            return []
        place = self._place(server_round, arrays)
        nodes = [message.metadata.dst_node_id for message in messages]
        self._names = named(self.client_names(grid, nodes), nodes)
        agreement = self._agreement(place.layout)
        sent = sent_layout(place.layout, agreement)
        keys = self._keys(server_round)
        order = self._order(place)
        return [
            with_order(
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
        return [with_order(message, order) for message in messages]

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average the uploads, and return the average and the contributors' metrics.

        If the round fails, the log has the reason for each client, and ``strategy.start`` goes on
        from the model before.
        """
        uploaded = self._uploaded(server_round, replies)
        if len(uploaded) < self._needed():
            LOG.error(
                "aggregate_train: %d clients have uploaded, under the quorum of %d; the model "
                "stays as it is",
                len(uploaded),
                self._needed(),
            )
            return None, MetricRecord(counted(0, 0, 0))
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
            LOG.warning("\t> Rejected: %s", rejection["reason"])
        for client in missing:
            LOG.warning(
                "\t> Client %s says it has uploaded to round '%s', which had nothing of it after "
                "%d s",
                client,
                place.round_id,
                self.timeout,
            )
        clients = [contributor["client"] for contributor in manifest["contributors"]]
        counts = counted(len(clients), len(rejected), len(missing))
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
            return read_arrays(file, place.names)[0]

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
        tensors = {name: view(array) for name, array in arrays.items()}
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
            reason = failure(reply, round_id)
            if reason is None:
                uploaded[self._names[node]] = reply.content
            else:
                failed += 1
                LOG.warning("\t> No upload of node %d (%s): %s", node, self._names[node], reason)
        LOG.info("aggregate_train: %d uploads and %d failures", len(uploaded), failed)
        silent = len(self._names) - len(uploaded) - failed
        if silent:
            LOG.warning("\t> %d of %d clients have not answered", silent, len(self._names))
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
            LOG.error("aggregate_train: %s; the model stays as it is", error)
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


def _check_unmaskable(strategy: S3FedAvg) -> None:
    """Check that a strategy with masked rounds asks for nothing that would not be masked.

    Raises
    ------
    SpecError
        It does.
    """
    codecs = () if strategy.codec is None else ("codecs",)
    check_unused({*strategy.round_options, *codecs})
    if "dp" in strategy.round_options:
        raise SpecError(
            "masked: leave out dp: a Flower run is masked or private; for both, open the rounds of "
            "a training (docs/masked-rounds)"
        )
    if strategy.fraction_evaluate > 0:
        raise SpecError(
            "masked: give fraction_evaluate=0: evaluations send each client's metrics in the clear"
        )
