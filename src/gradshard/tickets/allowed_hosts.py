"""The hosts to which a ticket's requests may go.

A ticket may come from a stranger. So only S3 and hosts that the user has named are contacted.
"""

import os
import re
from typing import Final
from urllib.parse import urlsplit

from gradshard.local_engine import running_engines
from gradshard_core.errors import TicketError

HTTPS_PORT: Final = 443

_URL: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/[!-~]*")
"""Allows no character in the host that two URL parsers may interpret differently."""

_S3: Final = re.compile(
    r"https://(?:[a-z0-9._-]+\.)?s3(?:-fips|-accelerate)?(?:\.dualstack)?"
    r"(?:\.[a-z]{2,4}(?:-[a-z]+)+-\d{1,2})?(?:\.vpce)?\.amazonaws\.(?:com|com\.cn|eu)"
)
"""https://docs.aws.amazon.com/general/latest/gr/s3.html (2026-11)."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


def is_url(text: object) -> bool:
    """Return whether a text is a URL in the form that S3 and its clients use."""
    return isinstance(text, str) and _URL.fullmatch(text) is not None


def origin_of(url: str) -> str:
    """Return scheme, host and port of a URL, as one text; without a port that HTTPS implies."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    is_implied = parts.port is None or (parts.scheme == "https" and parts.port == HTTPS_PORT)
    port = "" if is_implied else f":{parts.port}"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}{port}"


def check_origin(origin: str) -> None:
    """Check that a ticket's host may be contacted.

    Allowed are S3 on AWS over HTTPS, a local engine that runs on this machine, and the host that
    ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL`` names. Names are not resolved, because they may
    resolve to something else at the request.

    Raises
    ------
    TicketError
        The URL names another host.
    """
    named = {os.environ.get("AWS_ENDPOINT_URL_S3"), os.environ.get("AWS_ENDPOINT_URL")} - {None, ""}
    if _S3.fullmatch(origin) or origin in {origin_of(str(url)) for url in named}:
        return
    parts = urlsplit(origin)
    is_here = parts.scheme == "http" and parts.hostname in _LOOPBACK and parts.port is not None
    if is_here and running_engines.status(parts.port or 0).running:
        return
    raise TicketError(
        f"the ticket goes to {origin}, which is neither S3 on AWS nor a local engine that runs on "
        f"this machine; if you trust who made it, set AWS_ENDPOINT_URL={origin}"
    )
