"""The objects that a round writes: the average, and the next version of the model."""

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import BrokenObjectError
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.keys import ModelKeys, StoredTensors
from gradshard_core.formats.layout import PREFIX_BYTES, Layout


class StoredHeader(NamedTuple):
    """Size and SHA-256 of a safetensors header that planning wrote to an object of its own."""

    nbytes: int
    sha256: str

    @classmethod
    def of(cls, header: bytes) -> "StoredHeader":
        """Measure a header."""
        return cls(len(header), hashlib.sha256(header).hexdigest())


NO_HEADER: Final = StoredHeader(0, "")
"""There is no such header."""


class Output(NamedTuple):
    """An object that the tasks of the last level write, one part each.

    Parameters
    ----------
    key
        The key of the object.
    upload_id
        The multipart upload that becomes it.
    header_key, header
        The object that has its safetensors header, and what that header must be. The first task
        writes the header in front of its part.
    nbytes
        Size of its tensors.
    """

    key: str
    upload_id: str
    header_key: str
    header: StoredHeader
    nbytes: int

    def check_header(self, header: bytes | None) -> bytes:
        """Return the header that was read if it is the planned one.

        Raises
        ------
        BrokenObjectError
            The object is missing, or another one.
        """
        if header is None or len(header) != self.header.nbytes:
            raise BrokenObjectError(
                f"{self.header_key} has {len(header or b'')} bytes, not the planned "
                f"{self.header.nbytes}"
            )
        if StoredHeader.of(header) != self.header:
            # A planning that was repeated late wrote the header for other uploads.
            raise BrokenObjectError(f"{self.header_key} is not the one that was planned")
        return header

    def layout(self, header: bytes | None) -> Layout:
        """Parse the header that was read, after :meth:`check_header`."""
        header = self.check_header(header)
        return parse_header(header[PREFIX_BYTES:], len(header) + self.nbytes).layout


@dataclass(frozen=True)
class NextModel:
    """The version of the model that a round makes.

    Parameters
    ----------
    server_optimizer
        The server optimizer of the round, if it has one.
    version
        The number of the new version.
    step
        t, the number of the optimizer's step that makes it, from 1.
    model
        The current version of the model.
    state
        The optimizer's current state; empty at its first step.
    uploads
        The multipart uploads that become the model and the optimizer's state.
    """

    server_optimizer: ServerOptimizer
    version: int
    step: int
    model: StoredTensors
    state: tuple[StoredTensors, ...]
    uploads: tuple[str, ...]


def next_model_keys(server_optimizer: ServerOptimizer, round_id: str) -> list[str]:
    """Return the keys of the new model and of the optimizer's new state, in this order."""
    keys = ModelKeys(server_optimizer.model)
    return [
        keys.next_model(round_id),
        *(keys.state(round_id, name) for name in server_optimizer.state),
    ]
