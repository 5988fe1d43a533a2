"""An HTTPS server whose every connection is held to a rate, as S3's are.

The kernel paces each socket (``SO_MAX_PACING_RATE``, socket(7)): evenly, and on time however busy
the machine is. nginx's ``limit_rate`` loses what its millisecond timers are late by, and with
several connections gave three quarters of the rate it was told.
"""

import contextlib
import hashlib
import http.server
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Final

from benchmarks.nginx import Nginx
from benchmarks.servers import BUCKET, aws_environment

_SO_MAX_PACING_RATE: Final = getattr(socket, "SO_MAX_PACING_RATE", 47)
_CHUNK: Final = 256 * 1024


class Limited:
    """The same objects as nginx's, at a rate."""

    transport = "HTTPS, each connection paced by the kernel"
    holds = 1 << 40

    def __init__(self, origin: Nginx, port: int, written: dict[str, bytes]) -> None:
        self._origin, self._written = origin, written
        self.environment = origin.environment | aws_environment(f"https://127.0.0.1:{port}")
        self.path, self.publish, self.etag = origin.path, origin.publish, origin.etag
        self.create_upload = origin.create_upload

    def take_written(self) -> dict[str, str]:
        """Return what was PUT since last asked, request target → MD5, and forget it."""
        digests = {
            target: hashlib.md5(body, usedforsecurity=False).hexdigest()
            for target, body in self._written.items()
        }
        self._written.clear()
        return digests


@contextlib.contextmanager
def serve(origin: Nginx, bytes_per_second: int) -> Iterator[Limited]:
    """Serve nginx's files under its certificate, in threads of this process."""
    written: dict[str, bytes] = {}
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(origin.folder / "server.pem", origin.folder / "server.key")

    class Handler(_Handler):
        root = origin.folder / "objects"
        put = written

        def setup(self) -> None:
            self.request.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, bytes_per_second)
            self.request = context.wrap_socket(self.request, server_side=True)
            super().setup()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Limited(origin, server.server_port, written)
        finally:
            server.shutdown()
            thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    put: dict[str, bytes]

    def do_GET(self) -> None:
        """Answer with a file or a range of it; plans have their own ETags checked by nginx."""
        path = self.root / self.path.lstrip("/")
        if not path.is_file():
            self._answer(HTTPStatus.NOT_FOUND, 0)
            return
        size = path.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, size)
        status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK
        self._answer(status, end - start, f"bytes {start}-{end - 1}/{size}" if wanted else None)
        buffer = memoryview(bytearray(_CHUNK))
        # A client may have had enough.
        with path.open("rb") as file, contextlib.suppress(OSError):
            file.seek(start)
            while start < end:
                count = file.readinto(buffer[: end - start])
                self.connection.sendall(buffer[:count])
                start += count

    def do_PUT(self) -> None:
        """Keep the body."""
        target = self.path.removeprefix(f"/{BUCKET}/")
        self.put[target] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(HTTPStatus.OK, 0)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _answer(self, status: HTTPStatus, length: int, content_range: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
