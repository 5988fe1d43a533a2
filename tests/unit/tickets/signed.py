"""Tickets for AWS, and what a signature lets through."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache

from gradshard.aws.boto_client import make_client, make_session
from gradshard.aws.client_store import ClientStore
from gradshard.tickets.round_ticket import Ticket
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.s3.sigv4 import Credentials
from tests.presigned import rejection

SECRET = "a secret"
KEYS = RoundKeys("r1")
MAX_BYTES = 200_000
Make = Callable[..., Ticket]


@cache
def store_in(region: str, token: str) -> ClientStore:
    session = make_session(region=region, credentials=Credentials("AKID", SECRET, token))
    return ClientStore("bucket", make_client(session=session))


def verdict(
    method: str, url: str, headers: dict[str, str] | None = None, *, later: float = 0
) -> str | None:
    now = datetime.now(UTC) + timedelta(seconds=later)
    return rejection(method, url, headers or {}, SECRET, now=now)
