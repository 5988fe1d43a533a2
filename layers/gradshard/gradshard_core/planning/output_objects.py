"""The objects that a round writes: the average, and the next version of the model."""

import hashlib
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from gradshard_core.aggregation.server_optimizers import ServerOptimizer
from gradshard_core.errors import BrokenObjectError
from gradshard_core.formats.headers import parse_header
from gradshard_core.formats.object_keys import ModelKeys, StoredTensors
from gradshard_core.formats.tensor_layout import PREFIX_BYTES, Layout

IN_PLAN_BYTES: Final = 64 * 1024
"""A header of up to this size is in the plan: an object of its own is a request more."""


class ObjectReads(Protocol):
    """Reads objects."""

    def get_bytes(self, key: str) -> bytes | None:
        """Read a small object; None if there is none."""


class StoredHeader(NamedTuple):
    """A safetensors header of what tasks write.

    Parameters
    ----------
    nbytes, sha256
        Its size, and its SHA-256.
    text
        Its JSON; empty if it is too large for the plan, and in an object of its own.
    """

    nbytes: int
    sha256: str
    text: str = ""

    @classmethod
    def of(cls, header: bytes) -> "StoredHeader":
        """Describe a header, which is in the plan if it is short."""
        text = header[PREFIX_BYTES:].decode() if len(header) <= IN_PLAN_BYTES else ""
        return cls(len(header), hashlib.sha256(header).hexdigest(), text)

    @property
    def in_plan(self) -> bytes | None:
        """The header that is in the plan."""
        text = self.text.encode()
        return len(text).to_bytes(PREFIX_BYTES, "little") + text if text else None


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
        Its safetensors header, and the object that has it if it is not in the plan. The first task
        writes the header in front of its part.
    nbytes
        Size of its tensors.
    """

    key: str
    upload_id: str
    header_key: str
    header: StoredHeader
    nbytes: int

    def read_header(self, store: ObjectReads) -> bytes:
        """Return the planned header.

        Raises
        ------
        BrokenObjectError
            The object that has it is missing, or another one.
        """
        header = self.header.in_plan or store.get_bytes(self.header_key)
        if header is None or len(header) != self.header.nbytes:
            raise BrokenObjectError(
                f"{self.header_key} has {len(header or b'')} bytes, not the planned "
                f"{self.header.nbytes}"
            )
        if StoredHeader.of(header) != self.header:
            # A planning that was repeated late wrote the header for other uploads.
            raise BrokenObjectError(f"{self.header_key} is not the one that was planned")
        return header

    def read_layout(self, store: ObjectReads) -> Layout:
        """Parse the planned header, as :meth:`read_header` reads it."""
        header = self.read_header(store)
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
