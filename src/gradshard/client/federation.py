"""A federation: open rounds, start trainings, and get handles of rounds, trainings and models.

Methods import what only they need: most of the time of a short command goes into imports.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Unpack

from gradshard.client import operator_actions
from gradshard.client.stack import Stack
from gradshard.deployment.defaults import DEFAULT_PORT
from gradshard_core.errors import RoundNotFoundError, RoundStateError, TrainingStateError
from gradshard_core.formats.object_keys import DEFAULT_MODEL, RoundKeys

if TYPE_CHECKING:
    from gradshard.client.model import Model
    from gradshard.client.rejection_watch import OnRejection
    from gradshard.client.round import Round
    from gradshard.client.round_options import RoundOptions
    from gradshard.client.training import Training
    from gradshard.client.training_loop import Evaluate, Participation, Train
    from gradshard.client.training_start import ListedTraining, TrainingOptions
    from gradshard.updates.compression import Compression
    from gradshard.updates.mask import Mask


class Federation:
    """A deployed stack of gradshard.

    Parameters
    ----------
    stack
        The name of its CloudFormation stack, whose outputs are read when they are needed.
    bucket
        The name of the bucket, for clients that have no permission to read the stack.
    state_machine
        The ARN of its state machine. With ``bucket``, it is needed to open rounds.
    endpoint_url
        The endpoint to use instead of AWS, as in ``AWS_ENDPOINT_URL``.
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
        port: int = DEFAULT_PORT,
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
            The options of :class:`gradshard.client.round_options.RoundOptions`; None stands for the
            default.

        Raises
        ------
        SpecError
            The options are not valid, or too long.
        UpdateError
            The tensors of ``layout`` could not be averaged.
        RoundExistsError
            There is a round of this name with other options, or there was one in the last 90 days
            whose objects were deleted.
        RoundNotFoundError
            There is no round ``updates_from``.
        RoundFailed
            The round could not be opened.
        """
        from gradshard.client.round import Round
        from gradshard.client.round_opening import encode_spec, wait_until_open
        from gradshard.updates.upload_source import layout_record
        from gradshard_core.records.stored_spec import read_spec, with_room
        from gradshard_core.specs.round_spec_checks import parse_new_spec

        fields: dict[str, Any] = {"clients": clients, **options}
        if (layout := options.get("layout")) is not None:
            fields["layout"] = layout_record(layout)
        keys = RoundKeys(name)
        spec = with_room(parse_new_spec(fields), self.stack.store, keys)
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

    def rounds(self, state: str | None = None) -> Iterator[operator_actions.ListedRound]:
        """Yield the rounds that run or have run in the last 90 days, the newest first.

        Parameters
        ----------
        state
            List only rounds in this state: ``awaiting``, ``aggregating``, ``completed`` or
            ``failed``.

        Raises
        ------
        SpecError
            There is no such state.
        """
        return operator_actions.list_rounds(self.stack, state)

    def cancel_all(self, reason: str) -> Iterator["Round"]:
        """Cancel every round that has not ended, and yield each cancelled round.

        Raises
        ------
        SpecError
            There is no reason.
        """
        operator_actions.check_reason(reason)
        seen: set[str] = set()
        while running := operator_actions.running(self.stack) - seen:
            for name in sorted(running):
                round_ = self.round(name)
                # It may have been completed since it was listed.
                with contextlib.suppress(RoundStateError):
                    round_.cancel(reason)
                    yield round_
            seen |= running

    def train(
        self,
        name: str,
        *,
        rounds: int,
        clients: Sequence[str] | None = None,
        **options: Unpack["TrainingOptions"],
    ) -> "Training":
        """Start a training; starting it again with the same options gives the same training.

        Parameters
        ----------
        name
            The training's id.
        rounds
            End after this number of completed rounds.
        clients
            The ids of the clients; None for everybody who joins.
        options
            As in :class:`gradshard.client.training_start.TrainingOptions`; None is as good as
            leaving an option out.

        Raises
        ------
        SpecError
            The options are not valid.
        TrainingExistsError
            There is such a training with other options, or there was one that is removed.
        TrainingFailed
            It could not be started.
        """
        from gradshard.client.training_start import start_training

        return start_training(self.stack, name, rounds=rounds, clients=clients, **options)

    def training(self, name: str) -> "Training":
        """Return a handle of a training that was started before; this sends no request."""
        from gradshard.client.training import Training

        return Training(self.stack, name)

    def trainings(self, status: str | None = None) -> Iterator["ListedTraining"]:
        """Yield the trainings whose objects are there, by name.

        Parameters
        ----------
        status
            Only those that are ``running``, ``paused`` or ``ended``.

        Raises
        ------
        SpecError
            There is no such status.
        """
        from gradshard.client.training_start import list_trainings

        return list_trainings(self.stack, status)

    def join(self, training: str, client: str) -> None:
        """Let a training invite a client, from its next round on; safe to repeat.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            It has a fixed list of clients, without this one, or has ended.
        """
        self.training(training).join(client)

    def leave(self, training: str, client: str) -> None:
        """Let a training invite a client no more, from its next round on; safe to repeat."""
        self.training(training).leave(client)

    def participate(
        self,
        client: str,
        train: "Train",
        evaluate: "Evaluate | None" = None,
        *,
        training: str | None = None,
        on_rejection: "OnRejection | None" = None,
        codec: "str | Compression | None" = None,
        mask: "Mask | None" = None,
        patience: float | None = None,
    ) -> "Participation":
        """Take part in a training until it has ended.

        The loop keeps nothing on this machine: if it is stopped and started again, it goes on with
        the round that is under way. While the connection is lost it tries again.

        Parameters
        ----------
        client
            The client's id.
        train
            Gets the model, as arrays by name, and the
            :class:`~gradshard_core.records.training_state.Invitation`. Returns the trained tensors,
            the number of samples and, if there are any, metrics by name.
        evaluate
            Gets the same in an evaluation; returns metrics by name and the number of samples.
            Without it the client sends nothing in evaluations.
        training
            The training's id; None for the only one that has not ended.
        on_rejection
            Called with each :class:`~gradshard.client.rejection_watch.RejectedUpdate`, when the
            client reads why one of its updates did not count. It is logged in any case.
        codec
            Compress the updates, as in :meth:`gradshard.client.round.Round.submit`; metrics of
            evaluations are sent as they are. To a seed the number of the round is added.
        mask
            Mask the updates, in trainings with masked rounds (docs/masked-rounds.md): the client's
            key and its keeper. No metrics are sent, neither those that ``train`` returns nor those
            of evaluations, and nothing to a round that is not masked, or has another keeper.
        patience
            The seconds that a lost connection may last; None for a day.

        Raises
        ------
        TrainingNotFoundError
            There is no such training.
        TrainingStateError
            No training was named, and not exactly one has not ended.
        UpdateError
            The value that ``train`` or ``evaluate`` returned could not be averaged.
        StoreError, ServiceError
            S3 rejects the client's requests, or cannot be reached for longer than ``patience``.
        """
        from gradshard.client.training_loop import DEFAULT_PATIENCE_SECONDS, participate
        from gradshard.client.training_participant import Member

        name = self._only_training() if training is None else training
        seconds = DEFAULT_PATIENCE_SECONDS if patience is None else patience
        member = Member(self.stack, self.training(name), client)
        return participate(
            member,
            train,
            evaluate,
            on_rejection=on_rejection,
            codec=codec,
            mask=mask,
            patience=seconds,
        )

    def _only_training(self) -> str:
        from gradshard_core.records.training_state import ENDED

        names = [entry.training for entry in self.trainings() if entry.state.status != ENDED]
        if len(names) != 1:
            found = ", ".join(names) or "none"
            raise TrainingStateError(f"name the training: those that have not ended are {found}")
        return names[0]

    def round(self, name: str) -> "Round":
        """Return a handle of a round that was opened before; this sends no request."""
        from gradshard.client.round import Round

        return Round(self.stack, name)
