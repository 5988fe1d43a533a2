"""A proxy between a client and the engine that spoils answers on demand."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Answer(NamedTuple):
    """What the engine said."""

    status: int
    headers: dict[str, str]
    body: bytes


Spoil = Callable[[Answer], Answer | None]
"""What the client gets instead; None: a closed connection and no answer."""


@dataclass
class Proxy:
    """A running proxy; ``spoils`` are used up one by one.

    So are ``cuts``: after how many bytes of a request's body the connection is closed.
    """

    url: str
    spoils: list[Spoil] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def spoiling(engine_port: int) -> Iterator[Proxy]:
    """Run a proxy in front of the engine."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            proxy.requests.append(self.command)
            announced = int(self.headers.get("Content-Length", 0))
            if announced and proxy.cuts:
                self.rfile.read(proxy.cuts.pop(0))
                self.close_connection = True
                return
            sent = self.rfile.read(announced)
            if len(sent) != announced:  # the client gave up
                self.close_connection = True
                return
            upstream = http.client.HTTPConnection("127.0.0.1", engine_port)
            upstream.request(self.command, self.path, sent or None, dict(self.headers))
            got = upstream.getresponse()
            answer: Answer | None = Answer(got.status, dict(got.getheaders()), got.read())
            upstream.close()
            if proxy.spoils and answer:
                answer = proxy.spoils.pop(0)(answer)
            if answer is None:
                self.close_connection = True
                return
            self.send_response_only(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
            # A body shorter than announced ends with the connection.
            length = int(answer.headers.get("Content-Length", len(answer.body)))
            self.close_connection = len(answer.body) != length

        do_GET = do_HEAD = do_PUT = do_POST = forward  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
