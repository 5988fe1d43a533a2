"""The mask keeper, for its operator: its key, the enrolled clients, and what it has answered."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from gradshard.client.stack import Stack
from gradshard.deployment.defaults import DEFAULT_PORT, KEEPER_STACK
from gradshard.updates.mask_identity import need_libraries
from gradshard_core.errors import KeeperError
from gradshard_core.mask_keeper.records import CLIENTS, PRIVATE_KEY, KeeperKeys, client_key


class Keeper:
    """A deployed mask keeper.

    Parameters
    ----------
    stack
        The name of its CloudFormation stack.
    region, profile
        As of :class:`gradshard.client.federation.Federation`.
    local, port
        Use the local engine (``gradshard local up --keeper``), and its port.
    """

    def __init__(
        self,
        stack: str = KEEPER_STACK,
        *,
        region: str | None = None,
        profile: str | None = None,
        local: bool = False,
        port: int = DEFAULT_PORT,
    ) -> None:
        self.store = Stack(
            stack,
            bucket=None,
            state_machine=None,
            endpoint_url=None,
            region=region,
            profile=profile,
            port=port if local else None,
        ).store

    def public_key(self) -> str:
        """Return the keeper's public key in hexadecimal; the first call makes the pair.

        Rounds are opened with it.
        """
        need_libraries()
        from gradshard_core.masking import sealing

        self.store.put_bytes(PRIVATE_KEY, sealing.new_key().hex().encode(), replaces=None)
        private = self.store.get_bytes(PRIVATE_KEY)
        if private is None:
            raise KeeperError(f"{PRIVATE_KEY} is missing, and was there a moment ago")
        return sealing.public_key(bytes.fromhex(private.decode())).hex()

    def fingerprint(self) -> str:
        """Return the SHA-256 of the public key, in groups that people can compare."""
        from gradshard_core.masking import sealing

        return sealing.fingerprint(bytes.fromhex(self.public_key()))

    def enrol(self, client: str, key: str) -> None:
        """Enrol a client, or give it another key.

        Parameters
        ----------
        client
            The client's id.
        key
            Its public key in hexadecimal, as ``gradshard keeper identity`` prints it. It must come
            from the client, and not through the aggregator: an aggregator that enrols clients of
            its own learns the updates of the others.

        Raises
        ------
        KeeperError
            The key is not valid.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", key):
            raise KeeperError(f"{key!r} is no public key, which has 64 hexadecimal digits")
        enrolled = {
            "client": client,
            "key": key,
            "enrolled_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.store.put_json(client_key(client), enrolled)

    def expel(self, client: str) -> None:
        """Remove the enrolment of a client."""
        self.store.delete(client_key(client))

    def clients(self) -> Iterator[dict[str, Any]]:
        """Yield the enrolled clients, each with its key."""
        for entry in self.store.list_objects(CLIENTS):
            enrolled = self.store.get_json(entry.key)
            if enrolled is not None:
                yield enrolled

    def answers(self) -> Iterator[str]:
        """Yield the ids of the rounds whose masks were summed."""
        for entry in self.store.list_objects("answers/"):
            yield entry.key.removeprefix("answers/").removesuffix(".json")

    def answer(self, round_id: str) -> dict[str, Any]:
        """Return the record of what was decided about a round, and when the answer was given.

        Raises
        ------
        KeeperError
            Nothing was decided about it.
        """
        keys = KeeperKeys(round_id)
        record = self.store.get_json(keys.record)
        if record is None:
            raise KeeperError(f"the keeper has answered nothing in round {round_id!r}")
        given = self.store.get_json(keys.given)
        return {**record, "given_at": given and given["given_at"]}
