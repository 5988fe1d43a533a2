"""Requests with presigned URLs, to a host that the author of a ticket chose.

A ticket may come from a stranger. So only S3 and hosts that the user has named are contacted,
redirections are not followed, the length of answers is bounded, and answers of other servers than
S3 are not accepted: networks that ask for a login answer every request with 200 and a page.
"""

import os
import re
import time
from collections.abc import Mapping
from typing import IO, Any, Final, NamedTuple
from urllib.parse import urlsplit

from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from urllib3.exceptions import HTTPError

from gradshard.aws.boto_client import CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS, proxies_for
from gradshard.local_engine import running_engines
from gradshard_core.errors import TicketError
from gradshard_core.units import MIB

MAX_RESPONSE_BYTES: Final = 2 * MIB
"""Bound on a response that is read at once. The longest, a list of 1,000 parts, has 0.5 MB."""

ANSWER_SECONDS: Final = 60.0
"""Seconds that such a response may take after its first byte."""

HTTPS_PORT: Final = 443

_CHUNK_BYTES: Final = 64 * 1024

_URL: Final = re.compile(r"https?://(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:]+\])(?::\d{1,5})?/[!-~]*")
"""Allows no character in the host that two URL parsers may interpret differently."""

_S3: Final = re.compile(
    r"https://(?:[a-z0-9._-]+\.)?s3(?:-fips|-accelerate)?(?:\.dualstack)?"
    r"(?:\.[a-z]{2,4}(?:-[a-z]+)+-\d{1,2})?(?:\.vpce)?\.amazonaws\.(?:com|com\.cn|eu)"
)
"""https://docs.aws.amazon.com/general/latest/gr/s3.html (2026-11)."""

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_CODE: Final = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")


class Response(NamedTuple):
    """A response: ``content`` is its body, or ``raw`` reads it."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes
    raw: Any

    @property
    def code(self) -> str | None:
        """The name of S3's error, if there is one."""
        found = _CODE.search(self.content)
        return found[1].decode() if found else None

    @property
    def is_of_s3(self) -> bool:
        """Whether it comes from S3, or from a server that behaves like S3."""
        return bool(self.headers.get("x-amz-request-id"))


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


class HttpClient:
    """Sends HTTP requests to one host.

    It uses botocore's HTTP session: that can wait for 100 Continue, follows no redirection, and
    reads proxies and certificates from the same variables as boto3.

    Parameters
    ----------
    url
        Any URL of the host.

    Raises
    ------
    TicketError
        The host may not be contacted.
    """

    def __init__(self, url: str) -> None:
        self.origin = origin_of(url)
        check_origin(self.origin)
        settings: dict[str, Any] = {
            "verify": os.environ.get("AWS_CA_BUNDLE") or True,
            "proxies": proxies_for(url),
            "timeout": (CONNECT_TIMEOUT_SECONDS, READ_TIMEOUT_SECONDS),
        }
        self._session = URLLib3Session(**settings)

    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, Any],
        body: IO[bytes] | bytes | None = None,
        *,
        stream: bool = False,
    ) -> Response:
        """Send a request, without retries.

        Raises
        ------
        OSError
            The connection broke. Without details, because botocore's errors contain the URL.
        TicketError
            The answer is longer than S3's are, or takes too long.
        """
        request = AWSRequest(method, url, headers, body, stream_output=True)
        try:
            response = self._session.send(request.prepare())
            content = b"" if stream else self._read(response)
        except (BotoCoreError, HTTPError) as error:
            raise OSError(f"the connection broke ({type(error).__name__})") from None
        return Response(response.status_code, response.headers, content, response.raw)

    def _read(self, response: AWSResponse) -> bytes:
        """Read a response to its end, within the bounds on length and time."""
        give_up = time.monotonic() + ANSWER_SECONDS
        content = bytearray()
        try:
            for chunk in response.raw.stream(_CHUNK_BYTES, decode_content=False):
                content += chunk
                self._check_end(len(content), give_up)
        except BaseException:
            response.raw.close()
            raise
        response.raw.release_conn()
        return bytes(content)

    def _check_end(self, nbytes: int, give_up: float) -> None:
        if nbytes > MAX_RESPONSE_BYTES or time.monotonic() > give_up:
            raise TicketError(
                f"{self.origin} answers with more than {MAX_RESPONSE_BYTES} bytes, or for more "
                f"than {ANSWER_SECONDS:g} s, where S3 has little to say: it is not S3"
            )
