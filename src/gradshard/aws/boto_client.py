"""botocore's sessions and clients with gradshard's settings.

Without boto3: its clients are botocore's, and it takes time and memory of its own.
"""

import os
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoCredentialsError
from botocore.loaders import Loader, create_loader
from botocore.session import Session
from botocore.utils import get_environ_proxies

from gradshard.aws import client_timeouts
from gradshard.aws.boto_errors import settings_error
from gradshard_core.errors import StoreError
from gradshard_core.s3.retries import MAX_ATTEMPTS
from gradshard_core.s3.sigv4 import Credentials

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CONNECTIONS: Final = 16


class _QuickLoader(Loader):
    """Loads the descriptions of AWS services, without a look into the folder of every service."""

    def list_available_services(self, type_name: str) -> list[str]:
        """Return the services that have a folder, whether or not with that type of description.

        botocore checks with it that a service exists before it reads its description. The checks
        read 400 folders, a quarter of the time in which a first client is made. If the description
        is not in the folder, reading it fails as well.
        """
        del type_name
        folders = filter(os.path.isdir, self.search_paths)
        return [path.name for folder in folders for path in Path(folder).iterdir()]


def make_session(
    *,
    region: str | None = None,
    profile: str | None = None,
    credentials: Credentials | None = None,
    variables: dict[str, Any] | None = None,
) -> Session:
    """Make a session of botocore, from which clients are made.

    Parameters
    ----------
    region, profile
        Of the AWS configuration, if not those that it names.
    credentials
        The credentials that sign requests; by default those that botocore finds.
    variables
        Settings that replace botocore's ways to find them (``session_vars``).
    """
    session = Session(session_vars=variables)
    for name, value in {"region": region, "profile": profile}.items():
        if value is not None:
            session.set_config_variable(name, value)
    if credentials is not None:
        session.set_credentials(
            credentials.access_key, credentials.secret_key, credentials.token or None
        )
    usual = create_loader(session.get_config_variable("data_path"))
    loader = _QuickLoader(usual.search_paths, include_default_search_paths=False)
    session.register_component("data_loader", loader)
    return session


@cache
def default_session() -> Session:
    """Return the session of this process, which keeps the credentials that it finds first."""
    return make_session()


def make_client(
    connections: int = CONNECTIONS,
    *,
    session: Session | None = None,
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
        connect_timeout=client_timeouts.CONNECT_TIMEOUT_SECONDS,
        read_timeout=client_timeouts.READ_TIMEOUT_SECONDS,
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
        client: S3Client = connect(session or default_session(), "s3", config, endpoint_url)
    except BotoCoreError as error:
        raise StoreError(f"cannot reach S3: {error}") from None
    except ValueError as error:
        raise StoreError(f"cannot reach S3: {settings_error(error) or error}") from None
    return client


def credentials_of(client: "S3Client") -> Credentials:
    """Return the credentials with which a client signs now.

    Raises
    ------
    NoCredentialsError
        It has none.
    """
    # botocore has no other way from a client to them.
    signer: Any = client._request_signer  # type: ignore[attr-defined]
    if signer._credentials is None:
        raise NoCredentialsError
    frozen = signer._credentials.get_frozen_credentials()
    return Credentials(frozen.access_key, frozen.secret_key, frozen.token or "")


def connect(session: Session, service: str, config: Config, endpoint_url: str | None) -> Any:
    """Make a client of an AWS service, which uses no proxy to reach this machine.

    Parameters
    ----------
    session
        Whose credentials and settings it uses.
    service
        The name of the service in botocore.
    config
        Settings; without proxies, which the environment gives.
    endpoint_url
        The endpoint; by default that of settings and environment.
    """
    client: Any = session.create_client(service, config=config, endpoint_url=endpoint_url)
    url = client.meta.endpoint_url
    if not is_loopback(url) or not get_environ_proxies(url):
        return client
    # The endpoint is known only when there is a client, and that one has its proxies already.
    direct = config.merge(Config(proxies={}))
    return session.create_client(service, config=direct, endpoint_url=url)


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
