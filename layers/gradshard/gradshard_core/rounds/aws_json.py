"""Requests to the AWS services that take and give JSON.

Each service has one of AWS's protocols:

- Step Functions and EventBridge name the operation in ``X-Amz-Target``
  (https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html and 1_1),
- EventBridge Scheduler names it by method and path
  (https://docs.aws.amazon.com/scheduler/latest/APIReference/API_CreateSchedule.html).
"""

import contextlib
import http.client
import json
import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from gradshard_core.errors import ServiceError, StoreError
from gradshard_core.s3.http_connections import (
    Failure,
    HttpRequests,
    Request,
    Response,
    endpoint_url,
)
from gradshard_core.s3.traffic import Meter


class RejectedError(ServiceError):
    """A service rejected a request; ``code`` is its name for the reason."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class Service(NamedTuple):
    """A service: its name in hosts and signatures, and the variable of its URL."""

    name: str
    variable: str
    content_type: str
    target: str = ""


STEP_FUNCTIONS: Final = Service("states", "SFN", "application/x-amz-json-1.0", "AWSStepFunctions")
EVENT_BRIDGE: Final = Service("events", "EVENTBRIDGE", "application/x-amz-json-1.1", "AWSEvents")
SCHEDULER: Final = Service("scheduler", "SCHEDULER", "application/json")


def call(
    service: Service,
    operation: str,
    body: Mapping[str, Any] | None,
    *,
    method: str = "POST",
    path: str = "/",
    query: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Send a request, with retries after transient failures, and return the answer.

    Parameters
    ----------
    service, operation, body
        The name of the service, the name of the operation, and its parameters, None for none.
    method, path, query
        Of a service without ``target``.

    Raises
    ------
    RejectedError
        The service rejects the request.
    ServiceError
        It cannot be reached, or kept failing.
    """
    headers = {"content-type": service.content_type}
    if service.target:
        headers["x-amz-target"] = f"{service.target}.{operation}"
    sent = b"" if body is None else json.dumps(body).encode()
    request = Request(method, path, f"{service.name} {operation}", query or {}, headers, sent)

    def accept(response: Response) -> dict[str, Any]:
        with response:
            text = response.read()
        # An answer without results may be empty.
        found: dict[str, Any] = json.loads(text or b"{}")
        return found

    def reject(failure: Failure) -> RejectedError:
        return RejectedError(failure.code, f"{operation}: {service.name} answered {failure.text}")

    try:
        return _requests(service).send(request, accept, reject)
    except StoreError as error:
        raise ServiceError(str(error)) from None


@cache
def _requests(service: Service) -> HttpRequests:
    url = endpoint_url(service.variable)
    if url is None:
        region, suffix = os.environ["AWS_REGION"], os.environ["GRADSHARD_URL_SUFFIX"]
        url = f"https://{service.name}.{region}.{suffix}"
    return HttpRequests(service.name, url, Meter(), _explain)


def _explain(response: Response) -> Failure:
    """Return the name of a service's error, and a text that describes it."""
    body = b""
    with contextlib.suppress(OSError, http.client.HTTPException):
        body = response.read()
    found: Any = None
    with contextlib.suppress(ValueError):
        found = json.loads(body)
    fields: dict[str, Any] = found if isinstance(found, dict) else {}
    named = response.header("x-amzn-errortype") or fields.get("__type") or str(int(response.status))
    # A name may have a namespace before it and a URL behind it.
    code = named.partition(":")[0].rpartition("#")[2]
    message = fields.get("message") or fields.get("Message")
    return Failure(code, f"{int(response.status)} {code}{f': {message}' if message else ''}")
