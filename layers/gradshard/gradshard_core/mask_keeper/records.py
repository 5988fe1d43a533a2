"""The objects in the keeper's bucket: its key, the enrolled clients, and what it has answered.

=====================  =========================================================================
``private-key``        the private key, in hexadecimal
``clients/ID.json``    an enrolled client, with its Ed25519 public key
``requests/ROUND.json``  a request, as the aggregator wrote it; deleted with the answer
``answers/ROUND.json``  the record of a decision, written once and kept; it has no seed
``given/ROUND.json``   that the answer was given, and when
``work/ROUND.json``    what the tasks of an answer read; deleted with the answer
``refusals/ROUND/SHA256.json``  what was refused, and why
``seeds/SHA256.json``  the round in which a seed was summed, kept
=====================  =========================================================================
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from gradshard_core.errors import BrokenObjectError, KeeperError
from gradshard_core.formats.object_keys import check_id
from gradshard_core.mask_keeper.request import REQUESTS, Request
from gradshard_core.s3.store import S3Store

PRIVATE_KEY: Final = "private-key"
CLIENTS: Final = "clients/"

_REQUEST_KEY: Final = re.compile(rf"{REQUESTS}(?P<round>[A-Za-z0-9][A-Za-z0-9_-]{{0,63}})\.json")


def parse_request_key(key: str) -> str | None:
    """Read the round from the key of a request; None if it is none."""
    match = _REQUEST_KEY.fullmatch(key)
    return match and match["round"]


class KeeperKeys:
    """The keys of what the keeper has about one round."""

    def __init__(self, round_id: str) -> None:
        self.round_id = check_id("round", round_id)
        self.request = f"{REQUESTS}{round_id}.json"
        self.record = f"answers/{round_id}.json"
        self.given = f"given/{round_id}.json"
        self.work = f"work/{round_id}.json"


def client_key(client: str) -> str:
    """Return the key of an enrolled client's record."""
    return f"{CLIENTS}{check_id('client', client)}.json"


def seed_key(digest: str) -> str:
    """Return the key of what says where a seed was summed."""
    return f"seeds/{digest}.json"


def seed_digest(seed: bytes) -> str:
    """Return the SHA-256 of a seed in hexadecimal."""
    return hashlib.sha256(seed).hexdigest()


def read_private_key(store: S3Store) -> bytes:
    """Read the keeper's private key.

    Raises
    ------
    KeeperError
        There is none.
    BrokenObjectError
        The object has something else.
    """
    text = store.get_bytes(PRIVATE_KEY)
    if text is None:
        raise KeeperError("the keeper has no key yet: run `gradshard keeper key`")
    if not re.fullmatch(rb"[0-9a-f]{64}", text):
        raise BrokenObjectError(f"{PRIVATE_KEY} has {len(text)} bytes, and is no private key")
    return bytes.fromhex(text.decode())


class Work(NamedTuple):
    """The object that the tasks of an answer read.

    Parameters
    ----------
    request
        The request that is answered.
    tasks
        The number of tasks.
    upload_id
        The multipart upload that becomes the answer.
    """

    request: Request
    tasks: int
    upload_id: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "request": self.request.to_json(),
            "tasks": self.tasks,
            "upload_id": self.upload_id,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(Request.from_json(fields["request"]), fields["tasks"], fields["upload_id"])
