"""A client's way to a training: the same actions with AWS credentials and with a ticket."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from gradshard.client.inbox import Inbox
from gradshard.client.model import Model
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard.client.training import Training
from gradshard.updates.compression import Compression
from gradshard.updates.mask import Mask
from gradshard.updates.tensors import Array
from gradshard_core.records.assignment import assigned
from gradshard_core.records.training_state import Invitation, TrainingState
from gradshard_core.specs.masking_options import Agreement
from gradshard_core.specs.training_spec import TrainingSpec


class ClientRound(Protocol):
    """A round to which a client is invited, for that client."""

    @property
    def id(self) -> str:
        """The id by which the answer to an invitation is known."""

    def has_sent(self) -> bool:
        """Return whether the client has sent an update."""

    def has_ended(self) -> bool:
        """Return whether the round has ended."""

    def fetch_model(self) -> dict[str, Array]:
        """Fetch the version of the model that is trained or evaluated."""

    def check_mask(self, mask: Mask) -> None:
        """Check that the round takes what this mask makes, before the client trains for it.

        Raises
        ------
        UpdateError
            It does not.
        """

    def submit(
        self,
        update: Mapping[str, Any],
        samples: int,
        *,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> object:
        """Send the client's update."""

    def rejection(self) -> str | None:
        """Return the reason why the client's update was rejected or late, or None."""


class TrainingAccess(Protocol):
    """A training, for one of its clients."""

    @property
    def client(self) -> str:
        """The client."""

    def poll_interval(self) -> float:
        """Return the seconds between two looks at the state."""

    def updates(self) -> str:
        """Return what updates hold: ``models`` or ``deltas``."""

    def join(self) -> None:
        """Let the training invite the client."""

    def state(self) -> TrainingState:
        """Return how far the training is."""

    def is_invited(self, invitation: Invitation) -> bool:
        """Return whether the client is invited; to train in a buffered training, everybody is."""

    def round(self, invitation: Invitation) -> ClientRound:
        """Return the round of an invitation.

        Raises
        ------
        RoundNotFoundError
            The client cannot take part in it, or cannot yet.
        """

    def assigned(self, invitation: Invitation) -> Invitation:
        """Return an invitation whose settings have the client's own assignment, if there is one."""

    def renew(self) -> bool:
        """Get other means to take part, if there are any, after S3 rejected those in use."""


class Member:
    """A client with AWS credentials.

    Parameters
    ----------
    stack, training, client
        The training and the client's id.
    """

    def __init__(self, stack: Stack, training: Training, client: str) -> None:
        self.client = client
        self._stack, self._training = stack, training
        self._invited: tuple[str, bool] = ("", False)

    def join(self) -> None:
        """Let the training invite the client."""
        self._training.join(self.client)

    def state(self) -> TrainingState:
        """Return how far the training is."""
        return self._training.state()

    @cached_property
    def _spec(self) -> TrainingSpec:
        return self._training.spec()

    def poll_interval(self) -> float:
        """Return the seconds between two looks at the state."""
        return self._spec.poll_interval

    def updates(self) -> str:
        """Return what updates hold."""
        return self._spec.server_optimizer.updates

    def round(self, invitation: Invitation) -> "MemberRound":
        """Return the round of an invitation."""
        model = Model(self._stack, self._spec.server_optimizer.model)
        if invitation.is_open:
            keys, version = self._training.keys, invitation.version
            round_: Round = Inbox(self._stack, keys, self._spec, version)
        else:
            round_ = Round(self._stack, invitation.round_id)
        return MemberRound(round_, invitation, model, self.client)

    def is_invited(self, invitation: Invitation) -> bool:
        """Return whether the client is invited; to train in a buffered training, everybody is."""
        round_id, _ = self._invited
        if round_id != invitation.round_id:  # of many clients, a piece of the list is read
            self._invited = invitation.round_id, invitation.invites(self.client)
        return self._invited[1]

    def assigned(self, invitation: Invitation) -> Invitation:
        """Return an invitation whose settings have the client's own assignment, if there is one."""
        if self._spec.terms.assignments is None:
            return invitation
        round_ = Round(self._stack, invitation.round_id)
        stated = round_.spec().assignments
        assert stated is not None  # noqa: S101 - for mypy: each round of the training has them
        return assigned(round_.store, invitation, stated, self.client)

    def renew(self) -> bool:
        """Return False: credentials are not the library's to renew."""
        return False


class MemberRound:
    """A round to which a client with AWS credentials is invited.

    Parameters
    ----------
    round_, invitation, model, client
        The round or inbox, its model, and the client's id.
    """

    def __init__(self, round_: Round, invitation: Invitation, model: Model, client: str) -> None:
        self._round, self._model = round_, model
        self._invitation, self._client = invitation, client
        self.id, self.has_ended = round_.id, round_.has_ended

    def has_sent(self) -> bool:
        """Return whether the client has sent an update."""
        return self._round.store.head(self._round.keys.update(self._client)) is not None

    def fetch_model(self) -> dict[str, Array]:
        """Fetch the version of the model that is trained or evaluated."""
        if self._invitation.is_evaluation:
            return self._model.fetch(version=self._invitation.version)
        return self._round.fetch_model()

    def check_mask(self, mask: Mask) -> None:
        """Check that the round takes what this mask makes, before the client trains for it."""
        mask.check(Agreement.of(self._round.spec()), self._client, self.id)

    def submit(
        self,
        update: Mapping[str, Any],
        samples: int,
        *,
        codec: str | Compression | None = None,
        mask: Mask | None = None,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Send the client's update."""
        self._round.submit(
            self._client,
            update,
            samples,
            codec=codec,
            mask=mask,
            training=training,
            metrics=metrics,
        )

    def rejection(self) -> str | None:
        """Return the reason why the client's update was rejected or late, or None."""
        return self._round.rejection(self._client)
