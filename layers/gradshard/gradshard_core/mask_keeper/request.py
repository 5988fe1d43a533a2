"""An aggregator's request to its mask keeper, and the keeper's answer or refusal: JSON and keys.

- ``requests/ROUND.json`` in the keeper's bucket: ``protocol``, "gradshard masked round 1";
  ``round``; ``clients``, ``min_clients`` and ``encoding``, the terms with which seeds are sealed
  (:mod:`gradshard_core.masking`); ``contributors``, a list of ``client``, ``sealed_seed`` and
  ``signature``. The aggregator writes it.
- ``rounds/ROUND/keeper/masks`` in the aggregator's bucket: the sum of the masks, elements of the
  ring, least significant byte first; the last one is for the counts.
- ``rounds/ROUND/keeper/refusal.json`` there, instead: ``request``, the SHA-256 of the request as
  JSON, with sorted names and without spaces, in hexadecimal; ``reason``; and ``bad``, an object
  with the reason for each client without whom the keeper may be asked again.

**With noise**, the answer is Σmᵢ + v. v is the noise of :mod:`gradshard_core.privacy.noise`
with t terms, and 0 for the counts. Its key is SHA-256("gradshard noise 1" ‖ seeds), with the
contributors' seeds in the order of their ids.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Self

from gradshard_core.formats.masked_updates import PROTOCOL

REQUESTS: Final = "requests/"


class SealedSeed(NamedTuple):
    """A contributor's sealed seed and its signature of that, in hexadecimal."""

    client: str
    sealed_seed: str
    signature: str


class Request(NamedTuple):
    """A request for the sum of some masks.

    Parameters
    ----------
    round_id
        The round.
    clients, min_clients, encoding
        The terms with which the seeds were sealed: the roster, the quorum, and the text of encoding
        and layout.
    contributors
        The sealed seeds of the masks to add up.
    protocol
        The version of the protocol that the aggregator speaks.
    """

    round_id: str
    clients: tuple[str, ...]
    min_clients: int
    encoding: str
    contributors: tuple[SealedSeed, ...]
    protocol: str = PROTOCOL

    @property
    def key(self) -> str:
        """The key of the request in the keeper's bucket."""
        return f"{REQUESTS}{self.round_id}.json"

    @property
    def digest(self) -> str:
        """The SHA-256 of the request as JSON with sorted names and without spaces."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "protocol": self.protocol,
            "round": self.round_id,
            "clients": list(self.clients),
            "min_clients": self.min_clients,
            "encoding": self.encoding,
            "contributors": [seed._asdict() for seed in self.contributors],
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        return cls(
            str(fields["round"]),
            tuple(map(str, fields["clients"])),
            int(fields["min_clients"]),
            str(fields["encoding"]),
            tuple(
                SealedSeed(*(str(seed[name]) for name in SealedSeed._fields))
                for seed in fields["contributors"]
            ),
            str(fields["protocol"]),
        )


class Refusal(NamedTuple):
    """A keeper's refusal to answer.

    Parameters
    ----------
    request
        The digest of the request.
    reason
        The reason of the refusal.
    bad
        The clients whose seeds cannot be used, each with the reason. Without them, the request may
        be answered.
    """

    request: str
    reason: str
    bad: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self._asdict()

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        bad = {str(client): str(reason) for client, reason in fields["bad"].items()}
        return cls(str(fields["request"]), str(fields["reason"]), bad)
