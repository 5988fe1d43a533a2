"""A round: submit updates to it, wait for it, fetch its average, operate it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from gradshard.aws.client_store import ClientStore
from gradshard.client import operator_actions, round_logs
from gradshard.client.layer_upload import LayerUpload
from gradshard.client.round_participant import RoundAccess, Source
from gradshard.client.round_status import StatusPoller, read_status
from gradshard.client.stack import Stack
from gradshard.tickets.issuer import issue_ticket
from gradshard.tickets.lifetime import DEFAULT_SECONDS
from gradshard.tickets.round_ticket import Ticket
from gradshard.updates.compression import Compression, compressed, keep_residual
from gradshard.updates.mask import Mask, check_unmasked, check_unreported, masked
from gradshard.updates.submission_checks import (
    check_expected,
    check_partial,
    check_whole,
    differs,
    is_counted,
    known_layout,
)
from gradshard.updates.upload_source import Content, content_of
from gradshard.updates.uploads import Progress, upload
from gradshard.verification.round_verification import Verification
from gradshard.verification.verification_ticket import (
    VerificationTicket,
    check_claim,
    issue_verification_ticket,
    read_round_claim,
)
from gradshard_core.errors import RoundFailed, RoundNotFoundError, RoundStateError, TicketError
from gradshard_core.formats.compressed_updates import check_taken
from gradshard_core.formats.object_keys import ObjectVersion, RoundKeys
from gradshard_core.records.assignment import read_assignments
from gradshard_core.records.manifest_status import COMPLETED
from gradshard_core.records.model_registry import Version, read_version
from gradshard_core.records.plan_and_manifest import piece_reader, read_manifest
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.records.ticket_urls import max_update_bytes, sent_layout
from gradshard_core.specs.masking_options import Agreement
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.round_spec_checks import parse_spec
from gradshard_core.stragglers.assignments import Assignment

POLLS_PER_EXECUTION: Final = 5
"""Manifest polls per DescribeExecution call, which Step Functions throttles."""


class Round(RoundAccess):
    """A round, for its clients and its operator.

    Parameters
    ----------
    stack
        The deployed stack that runs the round.
    name
        The id of the round.
    is_new
        Whether it was just opened, under a name that no earlier round has.
    """

    def __init__(self, stack: Stack, name: str, *, is_new: bool = False) -> None:
        self.keys = RoundKeys(name)
        self.is_new = is_new
        self._stack = stack

    def __repr__(self) -> str:
        return f"Round({self.id!r})"

    @property
    def id(self) -> str:
        """The round's id."""
        return self.keys.round_id

    @property
    def store(self) -> ClientStore:
        """The store of its bucket."""
        return self._stack.store

    def spec(self) -> RoundSpec:
        """Return the options with which the round was opened.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        return self._opened()[0]

    def model(self) -> Version:
        """Return the version of the model that the round began from, for clients to train.

        Raises
        ------
        RoundStateError
            The round makes no version of a model, or is just being opened.
        RoundNotFoundError
            There is no such round.
        """
        spec, record = self._opened()
        if spec.server_optimizer is None:
            raise self._makes_no_version()
        if record is None:
            raise RoundStateError(f"round {self.id!r} is just being opened; try again")
        return read_version(self.store, spec.server_optimizer.model, record["model_version"])

    def _model(self) -> Source:
        return self.store, self.model().tensors.source, ""

    def _opened(self) -> tuple[RoundSpec, dict[str, Any] | None]:
        """Return the round's spec, and the record of its opening once that exists."""
        opened = read_spec(self.store, self.keys)
        if opened is not None:
            return opened
        # It may just be opening.
        execution = self._stack.execution(self.id)
        if execution is None:
            raise RoundNotFoundError.of(self.id)
        if execution.failed:
            raise RoundFailed(f"round {self.id!r} failed: {execution.reason}")
        if execution.has_ended:
            # The round may have been opened, and have ended, between the two requests.
            if (opened := read_spec(self.store, self.keys)) is None:
                raise RoundNotFoundError.deleted(self.id, execution.dates)
            return opened
        return parse_spec(execution.input, piece_reader(self.store, self.keys.expected)), None

    def submit(
        self,
        client: str,
        update: Mapping[str, Any] | str | Path,
        samples: int | None = None,
        *,
        partial: bool = False,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
        parallel: bool = False,
        progress: Progress | None = None,
    ) -> bool:
        """Upload a client's update; until the round is planned, the last one counts.

        The call holds a few MB, because it reads tensors in place. If the connection breaks, a
        large update is sent in parts, and submitting again resumes. If the round has a layout or a
        model, the tensors are sent in its order.

        Parameters
        ----------
        client
            The client's id.
        update
            Tensors by name (numpy arrays or torch tensors), or the path of a .safetensors file.
        samples
            The number of samples it was trained on; a file may have it in its metadata, as
            ``num_samples``.
        partial
            It holds only some of the round's layers, and that is all the client has; the round's
            rule must allow that.
        codec
            Compress the update with this codec, such as ``int8``, which the round must take; a
            :class:`Compression` says more.
        mask
            The client's key and its keeper, for masked rounds (docs/masked-rounds.md). With it,
            nothing is sent to a round that is not masked, or has another keeper.
        training
            The client's report of its training: ``train_seconds``, ``batch_size``, ``epochs``
            and ``steps``, as far as they are known.
        metrics
            Numbers that the client measured, at most 32 by any names. A training averages them.
        parallel
            Send an update of more than 16 MiB over four connections at once, for a line that is
            faster than one of them. That takes about eleven requests instead of one.
        progress
            Called with the bytes sent and the total.

        Returns
        -------
        bool
            Whether it replaced another update that the client had sent.

        Raises
        ------
        UpdateError
            The update could not be averaged, or its client is not expected; nothing was sent.
        RoundNotFoundError
            There is no such round.
        RoundStateError
            The round takes no more updates.
        """
        key = self.keys.update(client)
        if mask is not None:
            check_unreported(training, metrics, codec)
        with content_of(update, samples, training, metrics) as content:
            spec, ordered = self.prepare(client, content, partial=partial, codec=codec, mask=mask)
            if is_counted(self.store, self.keys, spec, client, ordered):
                # Again, since the program may have died between sending it and this.
                keep_residual(ordered)
                return False
            replaces = differs(self.store, key, ordered)
            upload(self.store, key, ordered, progress, parallel=parallel)
            keep_residual(ordered)
            return replaces

    def layer_upload(
        self,
        client: str,
        samples: int,
        *,
        codec: str | Compression | None = None,
        training: Mapping[str, float] | None = None,
    ) -> LayerUpload:
        """Begin a partial update that grows layer by layer, as back-propagation reaches them.

        The layers that were added before the deadline are averaged. The parameters are those of
        :meth:`submit`.

        Raises
        ------
        UpdateError
            The round takes whole updates only, or the client is not expected.
        """
        spec = self.spec()
        check_expected(spec, client, self.id)
        check_partial(spec, self.id)
        return LayerUpload(self, client, samples, codec, training)

    def assignment(self, client: str) -> Assignment:
        """Return the settings with which a client should train for this round.

        They were computed at the end of the round that ``assignments`` names as ``after``. A client
        that did not take part in it gets the base settings.

        Raises
        ------
        RoundStateError
            The round was opened without assignments, or the one before has not ended.
        """
        stated = self.spec().assignments
        if stated is None:
            raise RoundStateError(f"round {self.id!r} was opened without assignments")
        document = read_assignments(self.store, stated)
        if document is None:
            raise RoundStateError(
                f"round {stated.after!r}, the one before {self.id!r}, has not ended with "
                "assignments; wait for it"
            )
        return document.of(client)

    def ticket(
        self, client: str, *, expires: int = DEFAULT_SECONDS, max_bytes: int | None = None
    ) -> Ticket:
        """Make a ticket for a client without AWS credentials.

        Its holder can upload one update once, and read its rejection and the average; see
        docs/tickets.md. The ticket is a secret: anyone who has it can act as that client.

        Parameters
        ----------
        client
            The client's id.
        expires
            Seconds from now, at most seven days. Temporary credentials end earlier, and the ticket
            with them.
        max_bytes
            The most bytes of the update, with its header; by default, the size of an update of the
            round's layout.

        Raises
        ------
        UpdateError
            The client is not expected.
        TicketError
            S3 does not allow the time or the size, or the round has no layout and no size was
            given.
        RoundNotFoundError
            There is no such round.
        """
        spec, record = self._opened()
        check_expected(spec, client, self.id)
        layout, agreement = known_layout(self.store, spec, record), Agreement.of(spec)
        if max_bytes is None:
            if layout is None:
                raise TicketError(
                    f"round {self.id!r} has no layout to go by: give max_bytes (--max-size), how "
                    "large the update may be"
                )
            max_bytes = max_update_bytes(sent_layout(layout, agreement))
        return issue_ticket(
            self.store,
            self.keys,
            client,
            expires=expires,
            max_bytes=max_bytes,
            # With a rule, an update may have only some of its tensors.
            layout=None if spec.takes_partial else layout,
            allow_nonfinite=spec.allow_nonfinite,
            codecs=spec.codecs or (),
            model=self.model().tensors.source if spec.server_optimizer else None,
            agreement=agreement,
        )

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
        poller: StatusPoller | None = None,
    ) -> dict[str, Any]:
        """Wait until the round has ended and return its manifest.

        Parameters
        ----------
        timeout
            The longest wait, in seconds.
        progress
            Called with the :meth:`status` at each poll.
        poller
            Reads the status for ``progress``; give your own to use it there, too.

        Raises
        ------
        RoundFailed
            With the cause.
        RoundNotFoundError
            There is no such round.
        WaitTimeoutError
            The round has not ended within the timeout.
        """
        poller = poller or self.status_poller()
        self.spec()

        def look(number: int) -> dict[str, Any] | None:
            manifest = self._manifest(check_execution=number % POLLS_PER_EXECUTION == 0)
            if progress:
                progress(poller.poll(check_execution=False))
            return manifest

        return self._wait(timeout, look)

    def status(self) -> dict[str, Any]:
        """Return the state of the round, as JSON.

        ``state`` is ``awaiting``, ``aggregating``, ``completed`` or ``failed``; ``arrived``,
        ``missing``, ``rejected`` and ``late`` list clients; ``plan`` and ``tasks_done`` describe
        the aggregation; ``manifest`` is the record of a round that has ended.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        return read_status(self._stack, self.keys)

    def status_poller(self) -> StatusPoller:
        """Return a poller of the round's status, which reads only what is new."""
        return StatusPoller(self._stack, self.keys)

    def close(self) -> bool:
        """Stop waiting and aggregate the updates that have arrived, as at the deadline.

        Returns
        -------
        bool
            Whether the round was waiting; False if it aggregates already.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        RoundStateError
            The round has ended, or neither opening nor planning it ends; or its clients were drawn
            in secret.
        """
        return operator_actions.close_round(self._stack, self.keys)

    def cancel(self, reason: str) -> str:
        """Stop the round and clean up; it has then failed, with the reason as its cause.

        Returns
        -------
        str
            The cause in its manifest, which is another one if the round had failed before.

        Raises
        ------
        SpecError
            There is no reason.
        RoundNotFoundError
            There is no such round.
        RoundStateError
            The round was completed, maybe just now, and stays so.
        """
        return operator_actions.cancel_round(self._stack, self.keys, reason)

    def remove(self) -> None:
        """Delete the objects of the round, all versions, for good; it must have ended.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        RoundStateError
            The round has not ended.
        """
        operator_actions.remove_round(self._stack, self.keys)

    def log(self) -> list[round_logs.LogLine]:
        """Return what the functions logged about the round, the newest last.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        return round_logs.round_log(self._stack, self.keys)

    def verify(
        self, *, sample: float = 0.01, seed: str | None = None, progress: Progress | None = None
    ) -> Verification:
        """Recompute random byte ranges of the result from the updates, and compare the bits.

        This needs permission to read every update in the version that was averaged. A few MB are
        held for each of the threads.

        Parameters
        ----------
        sample
            The fraction of the result to recompute, over 0 and at most 1.
        seed
            Decides which ranges. By default, one is drawn at random.
        progress
            Called with the bytes of the result that were recomputed, and how many will be.

        Raises
        ------
        VerificationError
            A bit is not as published, or the manifest contradicts the spec or the updates;
            ``verification`` has everything that was found.
        ChangedObjectError
            Updates are gone in the version that was averaged; the text says which ones.
        RoundStateError
            The round has not ended.
        RoundFailed
            The round failed, so there is no result.
        SpecError
            The sample is out of its bounds.
        """
        self._completed()
        claim = read_round_claim(self.store, self.keys)
        return check_claim(self.store, claim, sample=sample, seed=seed, progress=progress)

    def verification_ticket(
        self, client: str, *, expires: int = DEFAULT_SECONDS
    ) -> VerificationTicket:
        """Make a ticket with which a client verifies the masked round, without AWS credentials.

        Its holder reads the masked updates of all contributors, which tell nothing without their
        masks. This needs permission to read them.

        Parameters
        ----------
        client
            The client's id.
        expires
            Seconds from now, as in :meth:`ticket`.

        Raises
        ------
        TicketError
            The round is not masked, or S3 does not allow the time.
        RoundStateError, RoundFailed
            The round has no result, or none yet.
        UpdateError
            The client is not expected.
        """
        check_expected(self.spec(), client, self.id)
        self._completed()
        return issue_verification_ticket(self.store, self.keys, client, expires=expires)

    def has_ended(self) -> bool:
        """Return whether the round has ended, completed or failed."""
        return self.store.head(self.keys.manifest) is not None

    def rejection(self, client: str) -> str | None:
        """Return the reason why the client's update was rejected or late, or None."""
        record = self.store.get_json(self.keys.rejection(client))
        return None if record is None else str(record["reason"])

    def _average(self) -> Source:
        update = self._completed()["update"]
        source = ObjectVersion(update["key"], update["version"], update["etag"], update["nbytes"])
        return self.store, source, update["crc64nvme"]

    def _completed(self) -> dict[str, Any]:
        """Return the manifest of the round; raise if it has none, or has failed."""
        manifest = self._manifest(check_execution=True)
        if manifest is None:
            self.spec()
            raise self._not_ended()
        return manifest

    def _manifest(self, *, check_execution: bool) -> dict[str, Any] | None:
        """Return the manifest of a completed round; None while it goes on."""
        store = self.store
        manifest: dict[str, Any] | None = read_manifest(store, self.keys)
        if manifest is None and check_execution:
            execution = self._stack.execution(self.id)
            # The manifest may have been written between the two requests.
            if execution and execution.has_ended:
                manifest = read_manifest(store, self.keys)
                if manifest is None and execution.failed:
                    raise RoundFailed(f"round {self.id!r} failed: {execution.reason}")
                if manifest is None:
                    raise RoundNotFoundError.deleted(self.id, execution.dates)
        if manifest is not None and manifest["status"] != COMPLETED:
            raise RoundFailed(f"round {self.id!r} failed: {manifest['cause']}")
        return manifest

    def prepare(
        self,
        client: str,
        content: Content,
        *,
        partial: bool,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
    ) -> tuple[RoundSpec, Content]:
        """Check that an update may be sent, and prepare it as the round wants it.

        Its tensors are put in the round's order, and it is compressed or masked while it is read.

        Returns
        -------
        RoundSpec
            The round's spec.
        Content
            The update as it is sent, in the order of the round's layout where it has one.

        Raises
        ------
        UpdateError
            Its client is not expected, its layout is not the round's, or it holds NaN or
            infinities, which the round does not allow.
        """
        spec, record = self._opened()
        check_expected(spec, client, self.id)
        if partial:
            check_partial(spec, self.id)
        layout = known_layout(self.store, spec, record)
        if not partial:
            check_whole(spec, layout, content, self.id)
        fitted = self._fit(content, layout, partial=partial, allow_nonfinite=spec.allow_nonfinite)
        check_taken(fitted.layout, (spec.codecs or ()))
        if mask is not None:
            return spec, masked(fitted, Agreement.of(spec), layout, mask, client, self.id)
        check_unmasked(Agreement.of(spec), self.id)
        return spec, compressed(fitted, codec, (spec.codecs or ()), self.id)
