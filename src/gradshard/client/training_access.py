"""A client's way to a training: the same actions with AWS credentials and with a ticket."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from gradshard.client.model import Model
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard.client.tensors import Array
from gradshard.client.training import Training
from gradshard_core.planning.training_spec import TrainingSpec
from gradshard_core.records.training_state import Invitation, TrainingState


class ClientRound(Protocol):
    """A round to which a client is invited, for that client."""

    def has_sent(self) -> bool:
        """Return whether the client has sent an update."""

    def has_ended(self) -> bool:
        """Return whether the round has ended."""

    def fetch_model(self) -> dict[str, Array]:
        """Fetch the version of the model that is trained or evaluated."""

    def submit(
        self,
        update: Mapping[str, Any],
        samples: int,
        *,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> object:
        """Send the client's update."""


class TrainingAccess(Protocol):
    """A training, for one of its clients."""

    @property
    def client(self) -> str:
        """The client."""

    def poll_seconds(self) -> float:
        """Return the seconds between two looks at the state."""

    def updates(self) -> str:
        """Return what updates hold: ``models`` or ``deltas``."""

    def join(self) -> None:
        """Let the training invite the client."""

    def state(self) -> TrainingState:
        """Return how far the training is."""

    def round(self, invitation: Invitation) -> ClientRound:
        """Return the round of an invitation.

        Raises
        ------
        RoundNotFoundError
            The client cannot take part in it, or cannot yet.
        """

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
        self.join = lambda: training.join(client)
        self.state = training.state

    @cached_property
    def _spec(self) -> TrainingSpec:
        return self._training.spec()

    def poll_seconds(self) -> float:
        """Return the seconds between two looks at the state."""
        return self._spec.poll_seconds

    def updates(self) -> str:
        """Return what updates hold."""
        return self._spec.server_optimizer.updates

    def round(self, invitation: Invitation) -> "MemberRound":
        """Return the round of an invitation."""
        model = self._spec.server_optimizer.model
        return MemberRound(self._stack, invitation, model, self.client)

    def renew(self) -> bool:
        """Return False: credentials are not the library's to renew."""
        return False


class MemberRound:
    """A round to which a client with AWS credentials is invited.

    Parameters
    ----------
    stack, invitation, model, client
        The round, the name of its model, and the client's id.
    """

    def __init__(self, stack: Stack, invitation: Invitation, model: str, client: str) -> None:
        self._round = round_ = Round(stack, invitation.round_id)
        self._model, self._invitation, self._client = Model(stack, model), invitation, client
        self.has_ended = round_.has_ended

    def has_sent(self) -> bool:
        """Return whether the client has sent an update."""
        return self._round.store.head(self._round.keys.update(self._client)) is not None

    def fetch_model(self) -> dict[str, Array]:
        """Fetch the version of the model that is trained or evaluated."""
        if self._invitation.is_evaluation:
            return self._model.fetch(version=self._invitation.version)
        return self._round.fetch_model()

    def submit(
        self,
        update: Mapping[str, Any],
        samples: int,
        *,
        training: Mapping[str, float] | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Send the client's update."""
        self._round.submit(self._client, update, samples, training=training, metrics=metrics)
