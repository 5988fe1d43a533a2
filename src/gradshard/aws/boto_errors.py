"""boto3's errors as gradshard's errors, which say what to do."""

import contextlib
import json
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    EndpointConnectionError,
    EndpointResolutionError,
    NoCredentialsError,
    NoRegionError,
)
from botocore.parsers import ResponseParserError

from gradshard_core.errors import ServiceError, StoreError
from gradshard_core.s3.transport import ResponseError

NO_CREDENTIALS: Final = "no AWS credentials found: configure them (aws configure), or use --local"

_DAMAGE: Final = frozenset({"BadDigest", "XAmzContentSHA256Mismatch"})
"""S3's errors if the bytes are not those that a checksum was computed of."""

_NO_ENDPOINT: Final = "AWS_ENDPOINT_URL is to be a URL such as http://127.0.0.1:4566"


@contextlib.contextmanager
def translated(key: str, operation: str) -> Iterator[None]:
    """Turn what boto3 raises into gradshard's errors."""
    try:
        yield
    except ClientError as error:
        code = error_code(error)
        text = f"S3 answered {code}: {error}"
        if code in _DAMAGE:
            text += " They were damaged on the way, or changed while they were sent; try again."
        raise ResponseError(code, operation, text) from None
    except NoCredentialsError:
        raise StoreError(NO_CREDENTIALS) from None
    except EndpointConnectionError as error:
        raise StoreError(unreachable(error)) from None
    except EndpointResolutionError as error:
        raise StoreError(f"{error}; {_NO_ENDPOINT}") from None
    except BotoCoreError as error:
        raise StoreError(f"{key}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        if (reason := settings_error(error)) is None:
            raise
        raise StoreError(reason) from None


@contextlib.contextmanager
def as_service_errors() -> Iterator[None]:
    """Turn what boto3 raises before AWS answers into :class:`ServiceError`."""
    try:
        yield
    except NoCredentialsError:
        raise ServiceError(NO_CREDENTIALS) from None
    except NoRegionError:
        raise ServiceError(
            "no AWS region is configured: set AWS_DEFAULT_REGION, or use --local"
        ) from None
    except EndpointConnectionError as error:
        raise ServiceError(unreachable(error)) from None
    except ResponseParserError as error:
        # Only of S3's answers botocore makes an error of its own kinds.
        reason = str(error).partition(". ")[0]
        raise ServiceError(
            f"the answer is not one of AWS's ({reason}); is AWS_ENDPOINT_URL right?"
        ) from None
    except BotoCoreError as error:
        raise ServiceError(str(error)) from error
    except ValueError as error:
        if (setting := settings_error(error)) is None:
            raise
        raise ServiceError(setting) from None


def unreachable(error: EndpointConnectionError) -> str:
    """Return the error text for an endpoint that does not answer."""
    if ".amazonaws.com" in str(error):
        return f"{error}; is this machine connected, and is the region right (AWS_DEFAULT_REGION)?"
    port = urlsplit(error.kwargs.get("endpoint_url", "")).port
    option = f" --port {port}" if port else ""
    return f"{error}; is the local engine running (gradshard local status{option})?"


def error_code(error: ClientError) -> str:
    """Return the code of S3's error; empty if it has none."""
    return error.response.get("Error", {}).get("Code", "")


def settings_error(error: ValueError) -> str | None:
    """Return an error text if one of the user's settings is the cause of a ValueError, or None."""
    if isinstance(error, json.JSONDecodeError):
        return (
            f"the answer of credential_process is not JSON ({error}); run the command that the "
            "profile names, and see what it prints"
        )
    is_of_url = any(word in str(error).lower() for word in ("endpoint", "port", "url"))
    return f"{error}; {_NO_ENDPOINT}" if is_of_url else None
