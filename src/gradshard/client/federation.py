"""The client library: open a round, submit updates to it, wait for it, fetch what it averaged."""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Unpack, overload

from gradshard.client import operations
from gradshard.client.downloads import fetch_tensors
from gradshard.client.model import Model
from gradshard.client.round_options import RoundOptions
from gradshard.client.stack import Execution, Stack
from gradshard.client.status import StatusPoller, read_status
from gradshard.client.tensors import Array
from gradshard.client.tickets import DEFAULT_SECONDS, Ticket
from gradshard.client.upload_source import (
    Content,
    check_finite,
    content_of,
    in_order_of,
    layout_terms,
)
from gradshard.client.uploads import Progress, has_checksum, upload
from gradshard.deployment import local_engine
from gradshard.utils.polling import sleep_before_poll
from gradshard_core.aggregation.server_optimizers import DEFAULT_MODEL
from gradshard_core.errors import (
    GradshardError,
    RoundExistsError,
    RoundFailed,
    RoundNotFoundError,
    RoundStateError,
    SpecError,
    TicketError,
    UpdateError,
    WaitTimeoutError,
)
from gradshard_core.formats.keys import ObjectVersion, RoundKeys
from gradshard_core.formats.layout import Layout, encode_header
from gradshard_core.planning import limits
from gradshard_core.planning.plan import Plan
from gradshard_core.planning.spec import RoundSpec, parse_new_spec, parse_spec
from gradshard_core.records.manifest import COMPLETED, parse_manifest
from gradshard_core.records.model_registry import Version, layout_of, read_version
from gradshard_core.records.round_spec import read_spec
from gradshard_core.s3.store import S3Store
from gradshard_core.stragglers.assignments import Assignment, Assignments

OPENING_SECONDS: Final = 20.0
"""How long opening a round waits for its terms to appear."""

LOOKS_PER_EXECUTION: Final = 5
"""Looks for a manifest between two at the execution, which Step Functions throttles."""

METADATA_ROOM_BYTES: Final = 64 * 1024
"""What a ticket leaves for a client's metadata where it goes by the round's layout."""

PAYLOAD_ROOM_BYTES: Final = 4096
"""What the state machine adds to a round's spec: its name, a time and a callback token."""


class Federation:
    """A deployed gradshard.

    Parameters
    ----------
    stack
        The name of its CloudFormation stack, which is asked for the rest when it is needed.
    bucket
        Its bucket, for clients that may not look at the stack.
    state_machine
        The ARN of its state machine, needed beside ``bucket`` to open rounds.
    endpoint_url
        Where AWS is, if not at AWS; ``AWS_ENDPOINT_URL`` says the same.
    region
        The AWS region of the stack; that of the AWS configuration if none is given.
    profile
        The AWS profile whose credentials are used; those of the AWS configuration if none is given.
    local
        Use the local engine (``gradshard local up``).
    port
        The local engine's port.
    """

    def __init__(
        self,
        stack: str = "gradshard",
        *,
        bucket: str | None = None,
        state_machine: str | None = None,
        endpoint_url: str | None = None,
        region: str | None = None,
        profile: str | None = None,
        local: bool = False,
        port: int = local_engine.DEFAULT_PORT,
    ) -> None:
        self.stack = Stack(
            stack,
            bucket=bucket,
            state_machine=state_machine,
            endpoint_url=endpoint_url,
            region=region,
            profile=profile,
            port=port if local else None,
        )

    @property
    def bucket(self) -> str:
        """The bucket's name."""
        return self.stack.store.bucket

    def open_round(
        self,
        name: str,
        clients: Sequence[str] | int,
        **options: Unpack[RoundOptions],
    ) -> "Round":
        """Open a round; opening it again with the same options gives the same round.

        Parameters
        ----------
        name
            The round's id.
        clients
            The ids of the expected clients, or their number.
        options
            As in :class:`gradshard.client.round_options.RoundOptions`; None is as good as leaving
            an option out.

        Raises
        ------
        SpecError
            An option is unknown or out of its bounds, or does not go with another, or all of them
            are too long.
        UpdateError
            ``layout`` is of a file or of tensors that could not be averaged.
        RoundExistsError
            There is such a round with other options, or there was one whose objects have been
            deleted: Step Functions keeps a name for 90 days after its execution has ended.
        RoundNotFoundError
            There is no round ``updates_from``.
        RoundFailed
            It could not be opened.
        """
        fields: dict[str, Any] = {"clients": clients, **options}
        if (layout := options.get("layout")) is not None:
            fields["layout"] = layout_terms(layout)
        spec = parse_new_spec(fields)
        keys = RoundKeys(name)
        payload = _encode_terms(spec)
        source = spec.updates_from
        if source is not None and read_spec(self.stack.store, RoundKeys(source)) is None:
            raise RoundNotFoundError.of(source)
        is_new = self.stack.start(keys.round_id, payload)
        round_ = Round(self.stack, name, is_new=is_new)
        _await_terms(self.stack, round_, spec)
        return round_

    def model(self, name: str = DEFAULT_MODEL) -> Model:
        """Return a handle of the federation's model; nothing is looked up yet."""
        return Model(self.stack, name)

    def assignment(self, name: str, client: str) -> Assignment:
        """Return a client's settings for a round; see :meth:`Round.assignment`."""
        return self.round(name).assignment(client)

    def rounds(self, state: str | None = None) -> Iterator[operations.ListedRound]:
        """Yield the rounds that run or have run in the last 90 days, the newest first.

        Parameters
        ----------
        state
            Only those that are ``awaiting``, ``aggregating``, ``completed`` or ``failed``.

        Raises
        ------
        SpecError
            There is no such state.
        """
        return operations.list_rounds(self.stack, state)

    def cancel_all(self, reason: str) -> Iterator["Round"]:
        """Cancel every round that has not ended, and yield each when that is done.

        Raises
        ------
        SpecError
            There is no reason.
        """
        operations.check_reason(reason)
        seen: set[str] = set()
        while running := operations.running(self.stack) - seen:
            for name in sorted(running):
                round_ = self.round(name)
                # It may have been completed since it was listed.
                with contextlib.suppress(RoundStateError):
                    round_.cancel(reason)
                    yield round_
            seen |= running

    def round(self, name: str) -> "Round":
        """Return a handle of a round that was opened before; nothing is looked up yet."""
        return Round(self.stack, name)


class Round:
    """A round, as its clients and its operator see it.

    Parameters
    ----------
    stack
        Where it runs.
    name
        Its id.
    is_new
        Whether it was just opened, and its name was not that of a round that had ended by then.
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
    def store(self) -> S3Store:
        """The bucket it is in."""
        return self._stack.store

    def spec(self) -> RoundSpec:
        """Return what the round was opened with.

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
            The round is not applied to a model, or is just being opened.
        RoundNotFoundError
            There is no such round.
        """
        spec, record = self._opened()
        if spec.server_optimizer is None:
            raise RoundStateError(f"round {self.id!r} is not applied to a model")
        if record is None:
            raise RoundStateError(f"round {self.id!r} is just being opened; try again")
        return read_version(self._stack.store, spec.server_optimizer.model, record["model_version"])

    @overload
    def fetch_model(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch_model(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch_model(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the model that the round began from, as :meth:`fetch` does the average.

        Raises
        ------
        RoundStateError
            The round is not applied to a model, or is just being opened.
        """
        return fetch_tensors(self._stack.store, self.model().tensors.source, path, progress)

    def _opened(self) -> tuple[RoundSpec, dict[str, Any] | None]:
        """Return the round's terms, and the record of its opening, once that is there."""
        opened = read_spec(self._stack.store, self.keys)
        if opened is not None:
            return opened
        # It may just be opening.
        execution = self._stack.execution(self.id)
        if execution is None:
            raise RoundNotFoundError.of(self.id)
        if execution.failed:
            raise RoundFailed(f"round {self.id!r} failed: {execution.reason}")
        if execution.has_ended:
            # It may have been opened, and have ended, between the two looks.
            if (opened := read_spec(self._stack.store, self.keys)) is None:
                raise RoundNotFoundError.deleted(self.id, execution.dates)
            return opened
        return parse_spec(execution.input), None

    def submit(
        self,
        client: str,
        update: Mapping[str, Any] | str | Path,
        samples: int | None = None,
        *,
        partial: bool = False,
        training: Mapping[str, float] | None = None,
        progress: Progress | None = None,
    ) -> bool:
        """Upload a client's update; until the round is planned, the last one counts.

        Tensors in memory are not copied and a file is read as it is sent: a few MB are held. Where
        the connection breaks, a large update goes up in parts, which submitting again resumes. If
        the round has a layout or a model, the tensors go up in its order.

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
        training
            What the client says of its training: ``train_seconds``, ``batch_size``, ``epochs``
            and ``steps``, as far as they are known.
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
        with content_of(update, samples, training) as content:
            spec, ordered = self.fitted(client, content, partial=partial)
            if self._is_counted(spec, client, ordered):
                return False
            replaces = self._differs(key, ordered)
            upload(self._stack.store, key, ordered, progress)
            return replaces

    def layer_upload(
        self, client: str, samples: int, *, training: Mapping[str, float] | None = None
    ) -> "LayerUpload":
        """Begin a partial update that grows, layer by layer, as back-propagation reaches them.

        What has been added when the deadline passes is counted.

        Raises
        ------
        UpdateError
            The round takes whole updates only, or the client is not expected.
        """
        spec = self.spec()
        _check_expected(spec, client, self.id)
        _check_partial(spec, self.id)
        return LayerUpload(self, client, samples, training)

    def assignment(self, client: str) -> Assignment:
        """Return the settings with which a client should train for this round.

        They are what the round before, of which this one's ``assignments`` tell, ended with; the
        base settings for a client of which nothing is known.

        Raises
        ------
        RoundStateError
            The round was opened without assignments, or the one before has not ended.
        """
        stated = self.spec().assignments
        if stated is None:
            raise RoundStateError(f"round {self.id!r} was opened without assignments")
        if stated.after is None:
            return Assignments(stated.settings).of(client)
        key = RoundKeys(stated.after).assignments
        document = self._stack.store.get_json(key, Assignments.from_json)
        if document is None:
            raise RoundStateError(
                f"round {stated.after!r}, the one before {self.id!r}, has not ended with "
                "assignments; wait for it"
            )
        return document.of(client)

    def ticket(
        self, client: str, *, expires: int = DEFAULT_SECONDS, max_bytes: int | None = None
    ) -> Ticket:
        """Make a ticket: with it a client that has no AWS credentials takes part in the round.

        It uploads one update, once, and reads why it was rejected and what was averaged; see
        docs/tickets.md. It is a secret: whoever has it is that client.

        Parameters
        ----------
        client
            The client's id.
        expires
            Seconds from now, at most seven days. Temporary credentials end earlier, and the ticket
            with them.
        max_bytes
            How long the update may be, its header included; by default what the round's layout
            takes, if the round has one.

        Raises
        ------
        UpdateError
            The client is not expected.
        TicketError
            S3 takes no such time or size, or none was given and the round has no layout.
        RoundNotFoundError
            There is no such round.
        """
        spec, record = self._opened()
        _check_expected(spec, client, self.id)
        layout = self._layout(spec, record)
        if max_bytes is None:
            if layout is None:
                raise TicketError(
                    f"round {self.id!r} has no layout to go by: give max_bytes (--max-size), how "
                    "large the update may be"
                )
            header = len(encode_header(layout, {}))
            max_bytes = header + METADATA_ROOM_BYTES + layout.nbytes
        return Ticket.make(
            self._stack.store,
            self.keys,
            client,
            expires=expires,
            max_bytes=max_bytes,
            # A rule takes parts of it, too.
            layout=None if spec.rule else layout,
            allow_nonfinite=spec.allow_nonfinite,
            model=self.model().tensors.source if spec.server_optimizer else None,
        )

    def wait(
        self,
        timeout: float | None = None,
        *,
        progress: Callable[[dict[str, Any]], None] | None = None,
        observer: StatusPoller | None = None,
    ) -> dict[str, Any]:
        """Wait until the round has ended and return its manifest.

        Parameters
        ----------
        timeout
            Seconds to wait at most.
        progress
            Called with :meth:`status` each time the round is looked at.
        observer
            What looks, for who wants to ask more of it in ``progress``.

        Raises
        ------
        RoundFailed
            With the cause.
        RoundNotFoundError
            There is no such round.
        WaitTimeoutError
            The round goes on.
        """
        give_up = None if timeout is None else time.monotonic() + timeout
        observer = observer or self.observer()
        self.spec()
        for looks in itertools.count():
            manifest = self._manifest(check_execution=looks % LOOKS_PER_EXECUTION == 0)
            if progress:
                progress(observer.poll(check_execution=False))
            if manifest is not None:
                return manifest
            if give_up is not None and time.monotonic() >= give_up:
                break
            sleep_before_poll(looks, give_up)
        raise WaitTimeoutError(f"round {self.id!r} has not ended within {timeout:g} s")

    def status(self) -> dict[str, Any]:
        """Return how far the round is, as JSON.

        ``state`` is ``awaiting``, ``aggregating``, ``completed`` or ``failed``; ``arrived``,
        ``missing``, ``rejected`` and ``late`` say who has and has not taken part, and why;
        ``plan`` and ``tasks_done`` how far the aggregation is; ``manifest`` is the record of a
        round that has ended.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        return read_status(self._stack, self.keys)

    def observer(self) -> StatusPoller:
        """Return what looks at the round again and again, reading only what is new."""
        return StatusPoller(self._stack, self.keys)

    def close(self) -> bool:
        """Let the round go on with the updates that are there, as its deadline would.

        Returns
        -------
        bool
            Whether it was waiting; False if it goes on already.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        RoundStateError
            It has ended, or is just being opened.
        """
        return operations.close_round(self._stack, self.keys)

    def cancel(self, reason: str) -> str:
        """Stop the round and clean up: it has failed, with the reason as its cause.

        Returns
        -------
        str
            The cause that its manifest has, which is another one if it had failed before.

        Raises
        ------
        SpecError
            There is no reason.
        RoundNotFoundError
            There is no such round.
        RoundStateError
            It was completed, maybe just now, and stays so.
        """
        return operations.cancel_round(self._stack, self.keys, reason)

    def remove(self) -> None:
        """Delete the objects of the round, all versions, for good; it must have ended.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        RoundStateError
            It has not ended.
        """
        operations.remove_round(self._stack, self.keys)

    def log(self) -> list[operations.LogLine]:
        """Return what the functions logged about the round, the newest last.

        Raises
        ------
        RoundNotFoundError
            There is no such round.
        """
        return operations.round_log(self._stack, self.keys)

    def has_ended(self) -> bool:
        """Whether the round has ended, well or not."""
        return self.store.head(self.keys.manifest) is not None

    def rejection(self, client: str) -> str | None:
        """Return why the client's update was rejected or came too late; None if it was not."""
        record = self._stack.store.get_json(self.keys.rejection(client))
        return None if record is None else str(record["reason"])

    @overload
    def fetch(self, *, progress: Progress | None = None) -> dict[str, Array]: ...

    @overload
    def fetch(self, path: str | Path, *, progress: Progress | None = None) -> Path: ...

    def fetch(
        self, path: str | Path | None = None, *, progress: Progress | None = None
    ) -> dict[str, Array] | Path:
        """Fetch the averaged update.

        Parameters
        ----------
        path
            The file to write, in a few MB of memory; it appears when it is whole.
        progress
            Called with the bytes received and the total.

        Returns
        -------
        dict or Path
            Arrays by name, which share one buffer; or ``path``.

        Raises
        ------
        RoundFailed
            There is none, with the cause.
        RoundStateError
            There is none yet.
        """
        manifest = self._manifest(check_execution=True)
        if manifest is None:
            self.spec()
            raise RoundStateError(f"round {self.id!r} has not ended; wait for it first")
        update = manifest["update"]
        source = ObjectVersion(update["key"], update["version"], update["etag"], update["nbytes"])
        return fetch_tensors(self._stack.store, source, path, progress)

    def _manifest(self, *, check_execution: bool) -> dict[str, Any] | None:
        """Return the manifest of a completed round; None while it goes on."""
        store = self._stack.store
        manifest: dict[str, Any] | None = store.get_json(self.keys.manifest, parse_manifest)
        if manifest is None and check_execution:
            execution = self._stack.execution(self.id)
            # The manifest may have come between the two looks.
            if execution and execution.has_ended:
                manifest = store.get_json(self.keys.manifest, parse_manifest)
                if manifest is None and execution.failed:
                    raise RoundFailed(f"round {self.id!r} failed: {execution.reason}")
                if manifest is None:
                    raise RoundNotFoundError.deleted(self.id, execution.dates)
        if manifest is not None and manifest["status"] != COMPLETED:
            raise RoundFailed(f"round {self.id!r} failed: {manifest['cause']}")
        return manifest

    def fitted(self, client: str, content: Content, *, partial: bool) -> tuple[RoundSpec, Content]:
        """Check that an update may be sent.

        Returns
        -------
        RoundSpec
            The round's terms.
        Content
            The update, in the order of the round's layout where it has one.

        Raises
        ------
        UpdateError
            Its client is not expected, its layout is not the round's, or it holds NaN or
            infinities, which the round does not allow.
        """
        spec, record = self._opened()
        _check_expected(spec, client, self.id)
        if partial:
            _check_partial(spec, self.id)
        layout = self._layout(spec, record)
        difference = layout and layout.difference(content.layout, partial=partial)
        if difference:
            raise UpdateError(
                f"its layout is not the one round {self.id!r} was opened with: {difference}"
            )
        if not spec.allow_nonfinite:
            check_finite(content)
        return spec, in_order_of(layout, content)

    def _layout(self, spec: RoundSpec, record: dict[str, Any] | None) -> Layout | None:
        """Return the layout that updates must have, if that is known: the model's, or a stated."""
        if spec.server_optimizer is None or record is None:
            return spec.layout
        store = self._stack.store
        version = read_version(store, spec.server_optimizer.model, record["model_version"])
        return layout_of(store, version.tensors)

    def _differs(self, key: str, content: Content) -> bool:
        """Whether there is an update already, and it is not this very one."""
        store = self._stack.store
        if store.head(key) is None:
            return False
        checksum = store.checksum(key)
        return checksum is None or not has_checksum(content, checksum)

    def _is_counted(self, spec: RoundSpec, client: str, content: Content) -> bool:
        """Whether this very update was planned already, so that its submission is a repetition.

        Raises
        ------
        RoundStateError
            The round takes no more updates, and has not got this one.
        """
        store = self._stack.store
        plan = store.get_json(self.keys.plan, Plan.from_json)
        if plan is None:
            manifest = store.get_json(self.keys.manifest, parse_manifest)
            if manifest is None:
                return False
            raise RoundStateError(f"round {self.id!r} has ended ({manifest['status']})")
        if spec.awaits(client, plan.awaited):
            return False
        counted = {c.client: c.source for c in plan.contributors}
        if (source := counted.get(client)) is not None:
            checksum = store.checksum(source.key, etag=source.etag)
            if checksum is not None and has_checksum(content, checksum):
                return True
        raise RoundStateError(
            f"round {self.id!r} was planned at {plan.planned_at} and takes no more updates"
        )


def _encode_terms(spec: RoundSpec) -> str:
    """Return a round's terms as the input of its execution.

    Raises
    ------
    SpecError
        They are longer than Step Functions takes.
    """
    terms = spec.to_json()
    # ASCII, so that a character is a byte.
    encoded = {name: json.dumps(value, separators=(",", ":")) for name, value in terms.items()}
    payload = "{" + ",".join(f'"{name}":{value}' for name, value in encoded.items()) + "}"
    most = limits.MAX_PAYLOAD_BYTES - PAYLOAD_ROOM_BYTES
    if len(payload) <= most:
        return payload
    largest = max(encoded, key=lambda name: len(encoded[name]))
    remedies = {
        "clients": f"give their number, {spec.expected}, or shorter ids",
        "layout": "shorten the tensors' names, or apply the round to a model, which has a layout",
    }
    raise SpecError(
        f"the round's terms are {len(payload)} bytes of JSON, over {most}, which is what Step "
        f"Functions' {limits.MAX_PAYLOAD_BYTES} leave for them; {largest} takes "
        f"{len(encoded[largest])}: {remedies.get(largest, 'shorten it')}"
    )


def _check_expected(spec: RoundSpec, client: str, round_id: str) -> None:
    if not spec.expects(client):
        assert not isinstance(spec.clients, int)  # noqa: S101 - for mypy: then all are expected
        raise UpdateError(
            f"client {client!r} is not expected in round {round_id!r}, only "
            f"{', '.join(spec.clients)}"
        )


class LayerUpload:
    """A client's update as far as it has come; see :meth:`Round.layer_upload`.

    Every addition sends all tensors so far: the last layers, which come first, are sent again with
    each layer that follows.
    """

    def __init__(
        self,
        round_: Round,
        client: str,
        samples: int,
        training: Mapping[str, float] | None,
    ) -> None:
        self._round, self._client = round_, client
        self._samples, self._training = samples, training
        self._tensors: dict[str, Any] = {}

    def add(self, tensors: Mapping[str, Any]) -> None:
        """Send further tensors, all of a layer or of several.

        They stand before those that were sent already, as layers reached later are nearer to the
        input, so that the update has its layers in their order.

        Raises
        ------
        UpdateError
            They could not be averaged; what was sent before stays.
        """
        before = {name: t for name, t in self._tensors.items() if name not in tensors}
        tensors = {**tensors, **before}
        with content_of(tensors, self._samples, self._training) as content:
            _, ordered = self._round.fitted(self._client, content, partial=True)
            upload(self._round.store, self._round.keys.partial_update(self._client), ordered)
        self._tensors = tensors

    def finish(self, *, training: Mapping[str, float] | None = None) -> None:
        """Say that this is all: the round awaits this client no longer."""
        self._round.submit(
            self._client,
            self._tensors,
            self._samples,
            partial=True,
            training=self._training if training is None else training,
        )


def _check_partial(spec: RoundSpec, round_id: str) -> None:
    if spec.rule is None:
        raise UpdateError(
            f"round {round_id!r} averages whole updates only; open it with a rule for partial ones"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the names of the terms that are not the same."""
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


def _await_terms(stack: Stack, round_: Round, spec: RoundSpec) -> None:
    """Wait until the round is open in these terms; not for long, since early updates count too."""
    give_up = time.monotonic() + OPENING_SECONDS
    for looks in itertools.count():
        opened = read_spec(stack.store, round_.keys)
        execution = None if opened else stack.execution(round_.id)
        if execution and execution.has_ended:
            # It may have been opened, and have ended, between the two looks.
            opened = read_spec(stack.store, round_.keys)
            if opened is None:
                raise _not_opened(round_, execution)
        terms = opened[0].to_json() if opened else execution and execution.input
        if terms is not None and (others := _differing(terms, spec.to_json())):
            raise RoundExistsError(
                f"round {round_.id!r} was opened before, in other terms ({', '.join(others)}); "
                "choose another name"
            )
        if opened:
            return
        if time.monotonic() >= give_up:
            break
        sleep_before_poll(looks, give_up)
    if not round_.is_new and execution is None:
        raise RoundExistsError(
            f"Step Functions says that the name {round_.id!r} is taken, but has no execution of "
            "it to look at; choose another name"
        )


def _not_opened(round_: Round, execution: Execution) -> GradshardError:
    """Return what is wrong with a round that has ended and has no terms in the bucket."""
    if round_.is_new and execution.failed:
        return RoundFailed(
            f"round {round_.id!r} could not be opened ({execution.reason}); choose another name, "
            "since that one is taken now"
        )
    kept = (
        f"choose another name: it ran {execution.dates}, its objects are not there any more, and "
        f"Step Functions keeps a name for {limits.NAME_KEPT_DAYS} days after its execution has "
        "ended"
    )
    if execution.failed:
        return RoundFailed(
            f"round {round_.id!r} failed when its name was first used ({execution.reason}); {kept}"
        )
    return RoundExistsError(f"round {round_.id!r} was opened before, and completed; {kept}")
