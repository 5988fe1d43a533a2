"""What the gate of the local engine answers if the operating system fails the engine."""

import errno
import os
from typing import Any

import pytest

from gradshard.local_engine.access_gate import Gate, OperatingSystemError
from gradshard_core.s3.sigv4 import Credentials

SCOPE = {
    "type": "http",
    "method": "PUT",
    "path": "/bucket/key",
    "raw_path": b"/bucket/key",
    "query_string": b"",
    "headers": [(b"host", b"127.0.0.1:4566")],
    "server": ("127.0.0.1", 4566),
}


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def answer_of(monkeypatch: pytest.MonkeyPatch, app: Any) -> list[dict[str, Any]]:
    """Return what a gate sends whose application this is."""

    async def verify(*_: Any) -> None:
        pass

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    monkeypatch.setattr(Gate, "_verify", verify)
    # Nothing here waits for an event, so no loop is needed.
    with pytest.raises(StopIteration):
        Gate(app, Credentials("key", "secret"))(dict(SCOPE), receive, send).__await__().__next__()
    return sent


def test_a_full_disk_is_named_in_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ministack", reason="the local engine is not installed: `make setup`")

    async def app(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    head, body = answer_of(monkeypatch, app)
    assert head["status"] == 500
    assert b"<Code>NoSpaceLeftOnDevice</Code>" in body["body"]
    assert b"No space left on device</Message>" in body["body"]


def test_an_answer_that_has_begun_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        answer_of(monkeypatch, app)


def test_an_error_without_a_number_has_a_code() -> None:
    assert OperatingSystemError.of(OSError("an object's file ends")).code == "InternalError"
