"""Answers S3's requests of a transfer, behind nginx: ranges of one file, and uploads it discards.

Run as a module, it listens on a Unix socket, so its processor time is no client's. It keeps the
CRC-32 of each body that it has received instead of the body.
"""

import base64
import http.server
import io
import json
import re
import socket
import socketserver
import sys
import time
import zlib
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from awscrt.checksums import combine_crc64nvme

from gradshard.utils.crc64 import Crc64

BODIES: Final = "/bodies"
"""Where the sizes and checksums of what was sent are read, and forgotten."""

_NO_UPLOADS: Final = (
    b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
)
_CHUNK: Final = 256 * 1024
_MODIFIED: Final = "Fri, 27 Nov 2026 00:00:00 GMT"
_ETAG: Final = '"00000000000000000000000000000000"'


class _Bounded(io.RawIOBase):
    """The first bytes of a stream."""

    def __init__(self, stream: io.BufferedIOBase, nbytes: int) -> None:
        self._stream, self._left = stream, nbytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._stream.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        return count


class _Unframed(io.RawIOBase):
    """A body in chunks, of HTTP's or of S3's ``aws-chunked``, which have the same form."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream, self._left, self._is_over = stream, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._left and not self._is_over:
            self._left = int(self._stream.readline().split(b";")[0], 16)
            if not self._left:
                self._is_over = True
                # The trailer ends with an empty line; that of aws-chunked with the body.
                while self._stream.readline().strip():
                    pass
        if self._is_over:
            return 0
        count = self._stream.readinto(memoryview(buffer)[: self._left])
        self._left -= count
        if not self._left:
            self._stream.readline()
        return count


class Handler(http.server.BaseHTTPRequestHandler):
    """S3's answers to GET, HEAD, PUT and POST, without signatures and errors."""

    protocol_version = "HTTP/1.1"
    file: Path
    etag: str
    rate: float
    bodies: dict[int, tuple[int, int]]
    checksum: str
    sums: dict[int, int]
    uploads = 0

    def do_HEAD(self) -> None:
        """Describe the file, with the CRC-64/NVME of what was sent, or else of the file."""
        self._answer(
            HTTPStatus.OK,
            length=self.file.stat().st_size,
            ETag=self.etag,
            Last_Modified=_MODIFIED,
            x_amz_checksum_crc64nvme=self._joined() or self.checksum,
        )

    def do_GET(self) -> None:
        """Send the file, or a range of it."""
        url = urlsplit(self.path)
        if url.path == BODIES:
            found = json.dumps(sorted(self.bodies.items())).encode()
            self.bodies.clear()
            self.sums.clear()
            self._answer(HTTPStatus.OK, found)
            return
        if "uploads" in parse_qs(url.query, keep_blank_values=True):
            self._answer(HTTPStatus.OK, _NO_UPLOADS)
            return
        size = self.file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, end = 0, size
        headers = {"ETag": self.etag, "Last_Modified": _MODIFIED}
        if wanted:
            start, end = int(wanted[1]), min(int(wanted[2] or size - 1) + 1, size)
            headers["Content_Range"] = f"bytes {start}-{end - 1}/{size}"
        status = HTTPStatus.PARTIAL_CONTENT if wanted else HTTPStatus.OK
        self._answer(status, b"", end - start, **headers)
        began = time.monotonic()
        with self.file.open("rb") as file:
            for position in range(start, end, _CHUNK):
                count = min(_CHUNK, end - position)
                self.connection.sendfile(file, position, count)
                self._wait(began, position + count - start)

    def do_PUT(self) -> None:
        """Take a whole object, or a part."""
        number = int(parse_qs(urlsplit(self.path).query).get("partNumber", ["1"])[0])
        self.bodies[number] = self._receive()
        if checksum := self.headers.get("x-amz-checksum-crc64nvme"):
            self.sums[number] = int.from_bytes(base64.b64decode(checksum), "big")
        self._answer(HTTPStatus.OK, ETag=_ETAG)

    def do_POST(self) -> None:
        """Begin or complete an upload in parts."""
        url = urlsplit(self.path)
        key = escape(url.path)
        self._receive()
        if "uploads" in parse_qs(url.query, keep_blank_values=True):
            Handler.uploads += 1
            answer = (
                f"<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>{key}</Key>"
                f"<UploadId>{Handler.uploads}</UploadId></InitiateMultipartUploadResult>"
            )
        else:
            answer = (
                f"<CompleteMultipartUploadResult><Key>{key}</Key><ETag>{escape(_ETAG)}</ETag>"
                "</CompleteMultipartUploadResult>"
            )
        self._answer(HTTPStatus.OK, answer.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _receive(self) -> tuple[int, int]:
        """Read a body; return its length and CRC-32, without any framing."""
        stream: io.BufferedIOBase = self.rfile
        framing = [self.headers.get("Transfer-Encoding"), self.headers.get("Content-Encoding")]
        if framing[0] is None:
            stream = io.BufferedReader(_Bounded(stream, int(self.headers["Content-Length"])))
        for name in framing:
            if name in {"chunked", "aws-chunked"}:
                stream = io.BufferedReader(_Unframed(stream), _CHUNK)
        buffer = memoryview(bytearray(_CHUNK))
        length, checksum, began = 0, 0, time.monotonic()
        while count := stream.readinto(buffer):
            checksum = zlib.crc32(buffer[:count], checksum)
            length += count
            self._wait(began, length)
        return length, checksum

    def _joined(self) -> str:
        """Return the CRC-64/NVME of the parts together; empty if none was sent."""
        whole = 0
        for number, part in sorted(self.sums.items()):
            whole = combine_crc64nvme(whole, part, self.bodies[number][0])
        return base64.b64encode(whole.to_bytes(8, "big")).decode() if self.sums else ""

    def _wait(self, began: float, done: int) -> None:
        """Hold a connection to the rate."""
        if self.rate and (early := done / self.rate - (time.monotonic() - began)) > 0:
            time.sleep(early)

    def _answer(
        self, status: HTTPStatus, body: bytes = b"", length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("x-amz-request-id", "benchmark")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128
    server_name, server_port = "benchmark", 0

    def handle_error(self, request: Any, address: Any) -> None:
        """Say nothing of a client that has gone, which is seen there."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, address)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, _ = super().get_request()
        return connection, ("client", 0)


def main() -> None:
    """Serve until the process is ended: socket, file, its ETag, bytes per second or 0."""
    path, file, etag, rate = sys.argv[1:]
    crc = Crc64()
    with Path(file).open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            crc.update(chunk)
    state = {"file": Path(file), "etag": etag, "rate": float(rate), "bodies": {}, "sums": {}}
    handler = type("Configured", (Handler,), state | {"checksum": crc.text})
    with _Server(path, handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
