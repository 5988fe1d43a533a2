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

from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.exceptions import BotoCoreError
from botocore.httpsession import URLLib3Session
from urllib3.exceptions import HTTPError

from gradshard.aws import client_timeouts
from gradshard.aws.boto_client import proxies_for
from gradshard.tickets.allowed_hosts import check_origin, origin_of
from gradshard_core.errors import TicketError
from gradshard_core.units import MIB

MAX_RESPONSE_BYTES: Final = 2 * MIB
"""Bound on a response that is read at once. The longest, a list of 1,000 parts, has 0.5 MB."""

ANSWER_SECONDS: Final = 60.0
"""Seconds that such a response may take after its first byte."""

_CHUNK_BYTES: Final = 64 * 1024

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
            "timeout": (
                client_timeouts.CONNECT_TIMEOUT_SECONDS,
                client_timeouts.READ_TIMEOUT_SECONDS,
            ),
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
