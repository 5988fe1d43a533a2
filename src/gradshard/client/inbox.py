"""The inbox of a buffered training: where clients send updates from one version of the model."""

from typing import Any

from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard_core.formats.object_keys import TrainingKeys
from gradshard_core.specs.round_spec import RoundSpec
from gradshard_core.specs.training_spec import TrainingSpec


class Inbox(Round):
    """A round that is never opened: a client can submit an update to it, and read its rejection.

    Parameters
    ----------
    stack
        Where the training runs.
    keys, spec
        The training.
    version
        The version of the model from which the updates begin.
    """

    def __init__(self, stack: Stack, keys: TrainingKeys, spec: TrainingSpec, version: int) -> None:
        super().__init__(stack, keys.inbox(version).round_id)
        self._spec = spec.buffered_round_spec(keys.name, version, None)
        self._version = version

    def _opened(self) -> tuple[RoundSpec, dict[str, Any] | None]:
        return self._spec, {"model_version": self._version}
