"""A federation: open rounds, list them, and get handles of rounds and models.

Methods import what only they need: most of the time of a short command goes into imports.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from gradshard.client import operations
from gradshard.client.stack import Stack
from gradshard.deployment import engine
from gradshard_core.errors import RoundNotFoundError, RoundStateError
from gradshard_core.formats.keys import DEFAULT_MODEL, RoundKeys

if TYPE_CHECKING:
    from gradshard.client.model import Model
    from gradshard.client.round import Round
    from gradshard.client.round_options import RoundOptions


class Federation:
    """A deployed stack of gradshard.

    Parameters
    ----------
    stack
        The name of its CloudFormation stack, whose outputs are read when they are needed.
    bucket
        Its bucket, for clients that have no permission to read the stack.
    state_machine
        The ARN of its state machine. With ``bucket``, it is needed to open rounds.
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
        port: int = engine.DEFAULT_PORT,
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
        **options: Unpack["RoundOptions"],
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
            The options are not valid, or too long.
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
        from gradshard.client.opening import encode_spec, wait_until_open
        from gradshard.client.round import Round
        from gradshard.client.upload_source import layout_record
        from gradshard_core.planning.spec import parse_new_spec
        from gradshard_core.records.round_spec import read_spec

        fields: dict[str, Any] = {"clients": clients, **options}
        if (layout := options.get("layout")) is not None:
            fields["layout"] = layout_record(layout)
        spec = parse_new_spec(fields)
        keys = RoundKeys(name)
        payload = encode_spec(spec)
        source = spec.updates_from
        if source is not None and read_spec(self.stack.store, RoundKeys(source)) is None:
            raise RoundNotFoundError.of(source)
        is_new = self.stack.start(keys.round_id, payload)
        wait_until_open(self.stack, name, spec, is_new=is_new)
        return Round(self.stack, name, is_new=is_new)

    def model(self, name: str = DEFAULT_MODEL) -> "Model":
        """Return a handle of the federation's model; this sends no request."""
        from gradshard.client.model import Model

        return Model(self.stack, name)

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
        """Return a handle of a round that was opened before; this sends no request."""
        from gradshard.client.round import Round

        return Round(self.stack, name)
