"""boto3's clients with gradshard's settings."""

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError
from botocore.utils import get_environ_proxies

from gradshard.aws.boto_errors import settings_error
from gradshard_core.errors import StoreError
from gradshard_core.s3.retries import MAX_ATTEMPTS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS: Final = 16
CONNECT_TIMEOUT_SECONDS: Final = 10
READ_TIMEOUT_SECONDS: Final = 30


def make_client(
    connections: int = CONNECTIONS,
    *,
    session: boto3.Session | None = None,
    endpoint_url: str | None = None,
) -> "S3Client":
    """Make an S3 client with gradshard's settings.

    Parameters
    ----------
    connections
        The number of connections that may be open at once.
    session, endpoint_url
        The credentials and the endpoint; by default those of the environment.
    """
    custom_endpoint = bool(
        endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    )
    config = Config(
        max_pool_connections=connections,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=READ_TIMEOUT_SECONDS,
        retries={"mode": "standard", "total_max_attempts": MAX_ATTEMPTS},
        # S3 has no checksum for a range that is not a part, and lockstep never reads one whole.
        response_checksum_validation="when_required",
        request_checksum_calculation="when_required",
        # For presigned URLs botocore would take version 2, which signs no headers.
        signature_version="s3v4",
        s3={
            # bucket.localhost resolves on few machines. On AWS, "auto" would leave the region out
            # of the host of presigned URLs.
            "addressing_style": "path" if custom_endpoint else "virtual",
            # Or botocore reads a body twice: once for its digest, then to send it. The bucket takes
            # nothing but TLS, which protects it too.
            "payload_signing_enabled": False,
        },
    )
    try:
        client: S3Client = connect(session or boto3, "s3", config, endpoint_url)
    except BotoCoreError as error:
        raise StoreError(f"cannot reach S3: {error}") from None
    except ValueError as error:
        raise StoreError(f"cannot reach S3: {settings_error(error) or error}") from None
    return client


def connect(session: Any, service: str, config: Config, endpoint_url: str | None) -> Any:
    """Make a client of an AWS service, which uses no proxy to reach this machine.

    Parameters
    ----------
    session
        A session, or boto3 for the default one.
    service
        The name of the service in boto3.
    config
        Settings; without proxies, which the environment gives.
    endpoint_url
        The endpoint; by default that of settings and environment.
    """
    client = session.client(service, config=config, endpoint_url=endpoint_url)
    url = client.meta.endpoint_url
    if not is_loopback(url):
        return client
    # The endpoint is known only when there is a client, and that one has its proxies already.
    direct = config.merge(Config(proxies={}))
    return session.client(service, config=direct, endpoint_url=url)


def proxies_for(url: str) -> dict[str, str]:
    """Return the proxies for a URL, by scheme: none on this machine.

    For other machines they are those of the environment (HTTPS_PROXY, NO_PROXY).
    """
    return {} if is_loopback(url) else dict(get_environ_proxies(url))


def is_loopback(url: str) -> bool:
    """Return whether a URL is one of this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
