"""A proxy between a client and the engine that spoils answers on demand."""

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the engine said."""

    status: int
    headers: dict[str, str]
    body: bytes


Spoil = Callable[[Answer], Answer | None]
"""What the client gets instead; None: a closed connection and no answer."""


class Fault(NamedTuple):
    """What breaks, at the first request that it matches.

    Parameters
    ----------
    kind
        Before the engine hears of the request: ``500``, ``503``, ``denied``, ``skewed``,
        ``replaced``, ``conflict``, ``rested`` or ``200`` (an error, in the body too) instead of an
        answer, ``reset``, or ``half sent`` (a reset within the request's body). The engine gets a
        ``damaged`` request's body with another last byte.
        After the engine has answered: ``unseen`` (a reset instead of the answer), ``late`` (the
        answer comes when the client has gone), ``reset in body``, ``reset at end``, ``cut``,
        ``stall`` (no more bytes after half of them), ``hold`` (the other half when the proxy's
        ``gate`` is opened), ``drip`` (one at a time), ``range`` (another
        Content-Range), ``half`` and ``empty`` (that much of the body, and a Content-Length that
        says so).
    method, path
        The request's method, and what its path contains.
    """

    kind: str
    method: str = ""
    path: str = ""


DRIP_SECONDS = 0.05
_FRAMING = {"content-length", "transfer-encoding"}
"""Say how a body comes from the engine; the proxy sends it in one piece."""
BEFORE = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "200": (200, "InternalError"),
    "rested": (400, "RequestTimeout"),
    "conflict": (409, "ConditionalRequestConflict"),
    "denied": (403, "AccessDenied"),
    "replaced": (400, "InvalidPart"),
    "skewed": (403, "RequestTimeTooSkewed"),
}
MOST_SKEW = timedelta(minutes=15)
"""As S3 has it."""


@dataclass
class Proxy:
    """A running proxy; ``spoils`` and ``faults`` are used up one by one.

    So are ``cuts``: after how many bytes of a request's body the connection is closed.

    ``throttled`` of all requests are answered with 503. ``watch`` is told of every request, by
    its path: ``begun`` when the first byte of its body is there, ``before`` and ``after`` the
    engine has it.
    """

    url: str
    spoils: list[Spoil] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    throttled: float = 0.0
    injected: int = 0
    watch: Callable[[str, str], None] = lambda *_: None
    gate: threading.Event = field(default_factory=threading.Event)
    go_away: Callable[[], None] = lambda: None
    come_back: Callable[[], None] = lambda: None
    _seen: int = 0
    _strikes: dict[int, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _random: random.Random = field(default_factory=lambda: random.Random(0))  # noqa: S311

    def strike(self, number: int, kind: str) -> None:
        """Break one of the requests to come, by its number."""
        with self._lock:
            self._strikes, self._seen = {number: kind}, 0

    def fault_for(self, method: str, path: str) -> str:
        """Return the kind of fault that a request gets, and use it up."""
        with self._lock:
            self._seen += 1
            if self._seen - 1 in self._strikes:
                self.injected += 1
                return self._strikes.pop(self._seen - 1)
            for fault in self.faults:
                if fault.method in {"", method} and fault.path in path:
                    self.faults.remove(fault)
                    self.injected += 1
                    return fault.kind
            if self.throttled and self._random.random() < self.throttled:
                self.injected += 1
                return "503"
        return ""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Kept, for tests that do not let anybody sleep.
    pause = staticmethod(time.sleep)
    # Else each answer's body waits 40 ms for the client to acknowledge its head.
    disable_nagle_algorithm = True
    proxy: Proxy
    engine_port: int

    def setup(self) -> None:
        super().setup()
        # As long as that of the client.
        self._upstream = http.client.HTTPConnection("127.0.0.1", self.engine_port)

    def finish(self) -> None:
        self._upstream.close()
        super().finish()

    def forward(self) -> None:
        proxy = self.proxy
        proxy.requests.append(self.command)
        announced = int(self.headers.get("Content-Length", 0))
        if announced and proxy.cuts:
            self.rfile.read(proxy.cuts.pop(0))
            self.close_connection = True
            return
        kind = proxy.fault_for(self.command, self.path) or self._skew()
        sent = self.rfile.read(min(announced, 1))
        proxy.watch("begun", self.path)
        rest = announced - len(sent)
        sent += self.rfile.read(rest // 2 if kind == "half sent" else rest)
        if kind in {"reset", "half sent"}:
            self._reset()
            return
        if len(sent) != announced:  # the client gave up
            self.close_connection = True
            return
        if kind in BEFORE:
            self._answer(error(*BEFORE[kind]))
            return
        if kind == "damaged":
            sent = sent[:-1] + bytes([sent[-1] ^ 1])
        proxy.watch("before", self.path)
        answer: Answer | None = self._ask(sent)
        proxy.watch("after", self.path)
        if proxy.spoils and answer:
            answer = proxy.spoils.pop(0)(answer)
        if answer is None:
            self.close_connection = True
        else:
            self._answer(answer, kind)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward  # noqa: N815 - the library's names

    def _skew(self) -> str:
        """Return the fault of a request whose sender's clock is off."""
        said = self.headers.get("x-amz-date")
        if not said:
            return ""
        off = datetime.strptime(said, "%Y%m%dT%H%M%S%z") - datetime.now(UTC)
        return "skewed" if abs(off) > MOST_SKEW else ""

    def _ask(self, sent: bytes) -> Answer:
        upstream = self._upstream
        upstream.request(self.command, self.path, sent or None, dict(self.headers))
        got = upstream.getresponse()
        body = got.read()
        headers = {name: value for name, value in got.getheaders() if name.lower() not in _FRAMING}
        if sent_length := got.getheader("Content-Length", str(len(body)) if body else None):
            headers["Content-Length"] = sent_length
        return Answer(got.status, headers, body)

    def _answer(self, answer: Answer, kind: str = "") -> None:
        if kind == "unseen":
            self._reset()
            return
        if kind == "late":
            self._await_end()
        if kind == "range":
            answer = answer._replace(headers=answer.headers | {"content-range": "bytes 0-9/10"})
        if kind in {"half", "empty"}:
            answer = shortened(answer, len(answer.body) // 2 if kind == "half" else 0)
        # A client that is killed, or that gives up, is no failure of the proxy's.
        with contextlib.suppress(OSError):
            self._send(answer, kind)

    def _send(self, answer: Answer, kind: str) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = answer.body
        if kind == "drip":
            for at in range(len(body)):
                self.wfile.write(body[at : at + 1])
                self.pause(DRIP_SECONDS)
        if kind in {"reset in body", "cut", "stall", "hold"}:
            body = body[: len(body) // 2]
        self.wfile.write(body)
        if kind == "hold":
            self.proxy.gate.wait(120)
            self.wfile.write(answer.body[len(body) :])
            body = answer.body
        if kind == "stall":
            self._await_end()
        elif kind.startswith("reset"):
            self._reset()
        # A body shorter than announced ends with the connection.
        length = int(answer.headers.get("Content-Length", len(body)))
        self.close_connection = len(body) != length or bool(kind)

    def _reset(self) -> None:
        """Close the connection as a host does that knows nothing of it."""
        self.close_connection = True
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # The handler's files hold the socket open, too.
        self.rfile.close()
        self.connection.close()

    def _await_end(self) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(OSError):
            self.connection.recv(1)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def server_activate(self) -> None:
        self.connections: set[socket.socket] = set()
        super().server_activate()

    def finish_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        try:
            super().finish_request(request, client_address)
        finally:
            self.connections.discard(request)

    def begin(self) -> None:
        self.thread = threading.Thread(target=self.serve_forever, args=(0.02,))
        self.thread.start()

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self.thread.join()

    def go_away(self) -> None:
        """Refuse connections, and break those that are open: a host that is not there."""
        self.end()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def come_back(self) -> None:
        """Listen again, on the same port."""
        self.socket = socket.socket(self.address_family, self.socket_type)
        self.server_bind()
        self.server_activate()
        self.begin()

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that broke: they are to."""


def error(status: int, code: str) -> Answer:
    """Return what S3 answers to a request it rejects."""
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code></Error>'.encode()
    return Answer(status, {"Content-Length": str(len(body))}, body)


def shortened(answer: Answer, nbytes: int) -> Answer:
    """Return an answer whose body is shorter, by all it says."""
    headers = {k: v for k, v in answer.headers.items() if k.lower() != "content-length"}
    return answer._replace(
        headers=headers | {"Content-Length": str(nbytes)}, body=answer.body[:nbytes]
    )


@contextmanager
def spoiling(engine_port: int) -> Iterator[Proxy]:
    """Run a proxy in front of the engine."""

    class Handler(_Handler):
        pass

    server = _Server(("127.0.0.1", 0), Handler)
    proxy = Handler.proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    proxy.go_away, proxy.come_back = server.go_away, server.come_back
    Handler.engine_port = engine_port
    server.begin()
    try:
        yield proxy
    finally:
        server.end()
