"""A proxy between the store and the engine that spoils answers on demand."""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Spoil = Callable[[str, dict[str, str], bytes], tuple[dict[str, str], bytes]]
"""Given path, headers and body of a ranged answer: what the client gets instead."""


@dataclass
class Proxy:
    """A running proxy; ``spoils`` are used up one by one, by ranged GETs only."""

    url: str
    spoils: list[Spoil] = field(default_factory=list)


@contextmanager
def spoiling(engine_port: int) -> Iterator[Proxy]:
    """Run a proxy in front of the engine."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            upstream = http.client.HTTPConnection("127.0.0.1", engine_port)
            upstream.request("GET", self.path, headers=dict(self.headers))
            answer = upstream.getresponse()
            headers, body = dict(answer.getheaders()), answer.read()
            upstream.close()
            if "Range" in self.headers and proxy.spoils:
                headers, body = proxy.spoils.pop(0)(self.path, headers, body)
            self.send_response_only(answer.status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)
            self.close_connection = True

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
