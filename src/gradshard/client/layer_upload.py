"""A partial update that is uploaded layer by layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gradshard.updates.compression import Compression, keep_residual
from gradshard.updates.upload_source import content_of
from gradshard.updates.uploads import upload

if TYPE_CHECKING:
    from gradshard.client.round import Round


class LayerUpload:
    """A partial update of a client that grows layer by layer.

    :meth:`gradshard.client.round.Round.layer_upload` makes one.

    Every addition uploads all tensors so far, so the last layers, which back-propagation reaches
    first, are sent again with each layer that follows.

    Parameters
    ----------
    round_
        The round.
    client, samples, codec, training
        The arguments of :meth:`gradshard.client.round.Round.submit`.
    """

    def __init__(
        self,
        round_: "Round",
        client: str,
        samples: int,
        codec: str | Compression | None,
        training: Mapping[str, float] | None,
    ) -> None:
        self._round, self._client = round_, client
        self._samples, self._codec, self._training = samples, codec, training
        self._tensors: dict[str, Any] = {}

    def add(self, tensors: Mapping[str, Any]) -> None:
        """Upload further tensors: all of one layer, or of several.

        They are placed before those that were sent already, because layers that are reached later
        are nearer to the input. So the update has its layers in their order.

        Raises
        ------
        UpdateError
            They could not be averaged; what was sent before stays.
        """
        before = {name: t for name, t in self._tensors.items() if name not in tensors}
        tensors = {**tensors, **before}
        with content_of(tensors, self._samples, self._training) as content:
            _, ordered = self._round.prepare(self._client, content, partial=True, codec=self._codec)
            upload(self._round.store, self._round.keys.partial_update(self._client), ordered)
            # Layers that are sent again with the next ones start from the state before the round.
            keep_residual(ordered)
        self._tensors = tensors

    def finish(self, *, training: Mapping[str, float] | None = None) -> None:
        """Declare the update complete, so that the round stops waiting for this client."""
        self._round.submit(
            self._client,
            self._tensors,
            self._samples,
            partial=True,
            codec=self._codec,
            training=self._training if training is None else training,
        )
