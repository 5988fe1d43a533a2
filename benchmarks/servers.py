"""The interface of an object server for the rows."""

import os
from pathlib import Path
from typing import Final, Protocol

from gradshard_core.s3.sigv4 import Credentials

BUCKET: Final = "bench"
REGION: Final = "us-east-1"
ANY: Final = Credentials("any", "any")
"""For servers that ask for none."""


class Server(Protocol):
    """An object server that runs.

    Attributes
    ----------
    transport
        The name of the transport in the tables.
    environment
        Variables that make a row talk to it and trust it.
    holds
        The bytes of objects that the server can hold.
    """

    transport: str
    environment: dict[str, str]
    holds: int

    def path(self, key: str) -> Path:
        """Return where an object's file is to be written."""

    def publish(self, key: str) -> None:
        """Serve the file that was written."""

    def etag(self, key: str) -> str:
        """Return an object's ETag."""

    def create_upload(self, key: str) -> str:
        """Start a multipart upload."""

    def take_written(self) -> dict[str, str]:
        """Return what was PUT since last asked, request target → MD5, and forget it."""


def aws_environment(url: str, credentials: Credentials = ANY) -> dict[str, str]:
    """Return variables that make any AWS client talk to one endpoint and to nothing else."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": credentials.access_key,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        # For the functions' log lines.
        "GRADSHARD_STACK": "gradshard",
    }
