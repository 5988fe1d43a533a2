"""The gate in front of the local engine: it decides who may use the engine.

MiniStack answers everybody: web pages, unsigned requests, keys that everybody knows. The gate lets
a request pass only if no web page sent it, and only if it is signed (SigV4) with the engine's own
key or with one that the engine gave out (a role's session, a user's access key).
"""

import json
import logging
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs
from uuid import uuid4

from gradshard_core.s3.sigv4 import Credentials

_log = logging.getLogger(__name__)

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OWN_PATHS: Final = "/_"
"""MiniStack's own paths begin so (reset, settings, code of functions); no bucket's name does."""

_TYPED: Final = "none"
"""The value of Sec-Fetch-Site if somebody typed the address."""

_HOST: Final = re.compile(r"(?:\[(?P<six>[0-9a-f:.]+)\]|(?P<name>[0-9a-z.]+))(?::[0-9]{1,5})?")

_FORM: Final = "application/x-www-form-urlencoded"
_OCTETS: Final = "binary/octet-stream"


class _AnswerError(Exception):
    """A request that is answered with an error: its code and its text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class _RejectedError(_AnswerError):
    """A request whose signature is missing or wrong, with AWS's code for it."""


class OperatingSystemError(_AnswerError):
    """The operating system failed the engine: its disk is full, for example."""

    @classmethod
    def of(cls, error: OSError) -> "OperatingSystemError":
        """Make the code of the error's name, since clients show of an error 500 its code alone."""
        name = os.strerror(error.errno) if error.errno else "internal error"
        code = "".join(word.capitalize() for word in re.findall(r"[A-Za-z]+", name))
        return cls(code, f"the local engine: {error}")


class _Body:
    """A request's body, which may be read before the application reads it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._ended = False
        self._read: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        """Return the next message; messages that were read already come first."""
        return self._read.pop(0) if self._read else await self._next()

    async def read(self) -> bytes:
        """Return all of the body, and keep it for the application."""
        while not self._ended:
            self._read.append(await self._next())
        return b"".join(message.get("body", b"") for message in self._read)

    async def drain(self) -> None:
        """Read the rest, because a sender misses an answer if the connection closes before."""
        while not self._ended:
            await self._next()

    async def _next(self) -> dict[str, Any]:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message


class Gate:
    """An ASGI application that passes allowed requests on to another one.

    Parameters
    ----------
    app
        The engine's own application, MiniStack's.
    credentials
        The engine's own key, which may do everything.
    """

    def __init__(self, app: App, credentials: Credentials) -> None:
        self._app = app
        self._own = credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await _reject_socket(receive, send)
            return
        body = _Body(receive)
        if reason := foreign(scope):
            await body.drain()
            await _answer(send, HTTPStatus.FORBIDDEN, {"content-type": "text/plain"}, reason)
            return
        try:
            await self._verify(scope, body)
        except _RejectedError as error:
            await body.drain()
            await _answer(send, *_as_aws(scope, error))
            return
        await self._pass(scope, body, send)

    async def _pass(self, scope: Scope, body: "_Body", send: Send) -> None:
        """Have the application answer; if the operating system failed it, answer with the cause."""
        started, failure = False, None

        async def sending(message: dict[str, Any]) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            # For MiniStack every request came over TLS, as on AWS: the bucket's policy rejects
            # others.
            await self._app({**scope, "scheme": "https"}, body.receive, sending)
        except OSError as error:
            if started:
                raise
            failure = OperatingSystemError.of(error)
            _log.exception(failure)
        # Not in the handler: the error holds what is left of the request's body on the disk.
        if failure is not None:
            await body.drain()
            await _answer(send, *_as_aws(scope, failure, HTTPStatus.INTERNAL_SERVER_ERROR))

    async def _verify(self, scope: Scope, body: "_Body") -> None:
        """Verify a request's signature.

        Raises
        ------
        _RejectedError
            The request is not signed, with an unknown key, or otherwise than it was sent.
        """
        from ministack.core import sigv4

        headers, query = _headers(scope), _query(scope)
        presigned = "authorization" not in headers
        signature = _signature(headers, query, presigned=presigned)
        token = query.get("X-Amz-Security-Token", [""])[0] if presigned else ""
        token = token or headers.get("x-amz-security-token", "")
        secret = self._secret(signature.access_key_id, token, scope["path"])
        data = await body.read() if not presigned and _signs_body(headers) else b""
        failure = sigv4.header_signature_failure(
            signature,
            secret,
            scope["method"],
            scope["raw_path"].decode("latin-1"),
            query,
            headers,
            data,
            presigned=presigned,
        )
        # S3 itself checks whether a presigned URL has expired.
        failure = failure or (None if presigned else sigv4.request_time_failure(signature))
        if failure:
            raise _RejectedError(*failure)
        if presigned:
            _check_signed_headers(scope, headers, signature.signed_headers)

    def _secret(self, access_key: str, token: str, path: str) -> str:
        """Return the secret of a key that the engine knows."""
        from ministack.core import iam_evaluator, responses

        if access_key == self._own.access_key:
            return self._own.secret_key
        # MiniStack takes "test", every number of twelve digits, and no key at all for its own.
        found = None
        if not iam_evaluator.is_root_access_key(access_key):
            account = responses._account_from_sts_session(access_key)
            account = account or iam_evaluator.find_iam_access_key_account(access_key)
            found = iam_evaluator.resolve_credential(access_key, account, token)
        if not isinstance(found, iam_evaluator.ResolvedCredential):
            code = getattr(found, "code", "InvalidClientTokenId")
            raise _RejectedError(
                code,
                f"access key {access_key!r} is not one of this local engine's: use --local, or "
                "the variables that `gradshard local env` prints",
            )
        if path.startswith(_OWN_PATHS):
            raise _RejectedError("AccessDenied", f"{path} is for the engine's own key alone")
        return str(found.secret_access_key)


def read_credentials(file: Path) -> Credentials:
    """Read an engine's own key, as :func:`gradshard.local_engine.lifecycle.up` keeps it."""
    record = json.loads(file.read_text())
    return Credentials(record["access_key"], record["secret_key"])


def foreign(scope: Scope) -> str | None:
    """Return why a request is not from a program on this machine; None if it may be.

    A browser says for whom it sends a request: a page's ``Origin``, or how the page is related to
    the address (``Sec-Fetch-Site``). A page whose name is made to lead here (DNS rebinding) shows
    in ``Host``, which then is that name: the engine goes by addresses.
    """
    found: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        found.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    said = {name: ", ".join(found[name]) for name in found}
    if "origin" in said:
        return f"the local engine answers no web page (Origin: {said['origin']})\n"
    if said.get("sec-fetch-site", _TYPED).strip().lower() != _TYPED:
        return f"the local engine answers no web page (Sec-Fetch-Site: {said['sec-fetch-site']})\n"
    server, _port = scope.get("server") or ("", None)
    if not _is_own_host(said.get("host", ""), server):
        return f"the local engine goes by its address or localhost (Host: {said.get('host', '')})\n"
    return None


def _is_own_host(host: str, server: str) -> bool:
    """Return whether a ``Host`` is the loopback or the address of the connection."""
    match = _HOST.fullmatch(host.strip().lower())
    if match is None:
        return False
    if match["name"] == "localhost":
        return True
    try:
        address = ip_address(match["name"] or match["six"])
    except ValueError:
        return False
    return address.is_loopback or str(address) == server


def _signature(headers: Mapping[str, str], query: Mapping[str, Any], *, presigned: bool) -> Any:
    """Parse a request's signature."""
    from ministack.core import sigv4

    in_query = [name for name in query if name.lower() in {"x-amz-signature", "x-amz-credential"}]
    if not presigned:
        if not headers["authorization"].startswith("AWS4-HMAC-SHA256 "):
            raise _RejectedError(
                "IncompleteSignature",
                "the local engine accepts only signatures by AWS4-HMAC-SHA256",
            )
        if in_query:
            raise _RejectedError("InvalidArgument", "a request has one signature, and this one two")
        signature = sigv4.parse_header_signature(headers)
    elif in_query:
        signature = sigv4.parse_query_signature(query)
    else:
        raise _RejectedError(
            "MissingAuthenticationToken", "the local engine accepts signed requests only"
        )
    if isinstance(signature, tuple):
        raise _RejectedError(*signature)
    if presigned and signature.service != "s3":
        # A page can have a browser ask for any address: S3's objects are what addresses are for.
        raise _RejectedError("AccessDenied", "the local engine accepts presigned URLs of S3 only")
    return signature


def _signs_body(headers: Mapping[str, str]) -> bool:
    """Return whether the signature cannot be verified without the body."""
    digest = headers.get("x-amz-content-sha256", "")
    return not digest or digest.startswith("STREAMING-AWS4")


def _check_signed_headers(scope: Scope, headers: Mapping[str, str], names: str) -> None:
    """Check that no unsigned header changes the meaning of a presigned URL.

    Raises
    ------
    _RejectedError
        One of AWS's headers is not signed. S3 rejects that too, and by some of these headers
        MiniStack would take the request for another service's.
    """
    signed = set(names.split(";"))
    for name in headers:
        if name.startswith("x-amz-") and name not in signed:
            raise _RejectedError("AccessDenied", f"header {name} is not signed")
    if headers.get("content-type", "").lower().startswith(_FORM) and "content-type" not in signed:
        # MiniStack would read an action from a form's fields; for S3 they are an object's bytes.
        scope["headers"] = [
            (name, _OCTETS.encode() if name.lower() == b"content-type" else value)
            for name, value in scope["headers"]
        ]


def _headers(scope: Scope) -> dict[str, str]:
    """Return a request's headers as they are signed: several of a name as one."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("utf-8", "replace")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope["query_string"].decode("utf-8", "replace"), keep_blank_values=True)


def _as_aws(
    scope: Scope, error: _AnswerError, status: HTTPStatus = HTTPStatus.FORBIDDEN
) -> tuple[int, dict[str, str], str | bytes]:
    """Return an error in the format of the service that was addressed."""
    from ministack import app
    from ministack.core import iam_evaluator, router

    headers = _headers(scope)
    service = router.detect_service(scope["method"], scope["path"], headers, _query(scope))
    failure = iam_evaluator.AuthError(error.code, str(error))
    request_id = str(uuid4())
    _, answer, body = app._credential_failure(service, "", request_id, failure, headers)
    # S3 sends it with every answer, and clients know S3 by it where there is no body.
    answer = answer | {"x-amz-request-id": request_id}
    return status, answer, b"" if scope["method"] == "HEAD" else body


async def _answer(send: Send, status: int, headers: Mapping[str, str], body: str | bytes) -> None:
    data = body.encode() if isinstance(body, str) else body
    fields = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": int(status), "headers": fields})
    await send({"type": "http.response.body", "body": data})


async def _reject_socket(receive: Receive, send: Send) -> None:
    """Reject a WebSocket, which the engine does not support, with a 403."""
    await receive()
    await send({"type": "websocket.close", "code": 1008})
