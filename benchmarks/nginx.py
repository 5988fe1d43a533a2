"""An HTTPS object server on the loopback interface: nginx, speaking just enough S3.

Files are path-style GETs with ranges and If-Match. A PUT is answered with 200 once its body is in
a file of its own, so that what a row wrote can be checked after every run, outside of its time.
"""

import contextlib
import hashlib
import http.client
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.servers import BUCKET, aws_environment

_HOST: Final = "127.0.0.1"
_START_SECONDS: Final = 10.0

_CONFIGURATION: Final = """
daemon off;
user {user};
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  log_format put '$request_uri $request_body_file';
  client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  client_max_body_size 0;
  keepalive_requests 1000000;
  keepalive_timeout 600;
  ssl_certificate {folder}/server.pem;
  ssl_certificate_key {folder}/server.key;
  # What S3 agrees on, by its access logs. nginx alone would take what the client names first.
  ssl_protocols TLSv1.3;
  ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
  root {folder}/objects;
  server {{
    listen {host}:{port} ssl;
    {locations}
  }}
  server {{
    listen unix:{folder}/discard.sock;
    location / {{ return 200; }}
  }}
}}
"""

_FILES: Final = """
    location / {{
      if ($request_method = PUT) {{ rewrite ^ /put last; }}
    }}
    location = /put {{
      internal;
      client_body_in_file_only on;
      access_log {folder}/puts.log put;
      proxy_pass http://unix:{folder}/discard.sock;
      proxy_pass_request_body off;
      proxy_set_header Content-Length "";
    }}
"""
_BEHIND: Final = """
    location / {{
      proxy_pass http://unix:{behind}:;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_buffering off;
      # Or it would send TLS records of 4 KiB.
      proxy_buffer_size 64k;
      proxy_buffers 8 64k;
      proxy_request_buffering off;
      proxy_read_timeout 600;
    }}
"""


def find() -> str | None:
    """Return nginx's path, taking it out of Debian's package where it is not installed."""
    installed = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if installed or not shutil.which("apt-get"):
        return installed
    # Unpacked, not installed: nothing is left on the machine and no service starts.
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "gradshard", "nginx")
    unpacked = cache / "usr" / "sbin" / "nginx"
    if not unpacked.exists():
        cache.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            subprocess.run(["apt-get", "update", "-qq"], check=False, capture_output=True)
        subprocess.run(
            ["apt-get", "download", "nginx"], cwd=cache, check=False, capture_output=True
        )
        for package in cache.glob("nginx_*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, cache], check=False, capture_output=True)
    works = unpacked.exists() and subprocess.run([unpacked, "-v"], check=False, capture_output=True)
    return str(unpacked) if works and works.returncode == 0 else None


class Nginx:
    """A running server.

    Attributes
    ----------
    url
        The endpoint.
    folder
        The folder for objects, certificates and logs.
    environment
        Variables that make a row talk to it and trust it.
    """

    transport = "HTTPS, nginx"
    holds = 1 << 40

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.url = f"https://{_HOST}:{port}"
        authority = str(folder / "authority.pem")
        self.environment = {
            **aws_environment(self.url),
            "SSL_CERT_FILE": authority,
            "AWS_CA_BUNDLE": authority,
        }

    def path(self, key: str) -> Path:
        """Return where an object's file stands; written there, it can be read at once."""
        path = self.folder / "objects" / BUCKET / key
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def publish(self, key: str) -> None:
        """Do nothing: files are served as they stand."""

    def create_upload(self, key: str) -> str:  # noqa: ARG002
        """Return an upload's id; parts of any are taken."""
        return "benchmark"

    def etag(self, key: str) -> str:
        """Return an object's ETag, which is nginx's own."""
        context = ssl.create_default_context(cafile=self.environment["SSL_CERT_FILE"])
        host = self.url.removeprefix("https://")
        with contextlib.closing(http.client.HTTPSConnection(host, context=context)) as connection:
            connection.request("HEAD", f"/{BUCKET}/{key}")
            answer = connection.getresponse()
            etag = answer.getheader("ETag")
        if answer.status != http.HTTPStatus.OK or not etag:
            raise RuntimeError(f"nginx answered HEAD {key} with {answer.status}, ETag {etag}")
        return etag

    def take_written(self) -> dict[str, str]:
        """Return what was PUT since last asked, request target → MD5, and forget it."""
        log = self.folder / "puts.log"
        written = {}
        for line in log.read_text().splitlines():
            target, body = line.rsplit(" ", 1)
            with Path(body).open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
            written[target.removeprefix(f"/{BUCKET}/")] = digest.hexdigest()
            Path(body).unlink()
        os.truncate(log, 0)
        return written


@contextlib.contextmanager
def serve(binary: str, behind: Path | None = None) -> Iterator[Nginx]:
    """Run nginx with its files in a temporary folder.

    With ``behind``, it passes all requests on to a server at that Unix socket.
    """
    with tempfile.TemporaryDirectory(prefix="gradshard-bench-") as name:
        folder = Path(name)
        (folder / "objects" / BUCKET).mkdir(parents=True)
        _make_certificates(folder)
        port = _free_port()
        configuration = folder / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                folder=folder,
                locations=(_BEHIND if behind else _FILES).format(folder=folder, behind=behind),
                user=pwd.getpwuid(os.getuid()).pw_name,
                host=_HOST,
                port=port,
            )
        )
        error_log = folder / "error.log"
        process = subprocess.Popen(
            [binary, "-e", error_log, "-p", folder, "-c", configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _await(process, port, error_log)
            yield Nginx(folder, port)
        finally:
            process.terminate()
            process.wait()


def _await(process: "subprocess.Popen[bytes]", port: int, error_log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection((_HOST, port), timeout=1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"nginx did not start:\n{error_log.read_text()}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _make_certificates(folder: Path) -> None:
    """Make an authority for this one run, and a server's certificate that it signed."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(
        *("req", "-x509", *key, "-days", "2", "-subj", "/CN=gradshard benchmarks"),
        *("-addext", "keyUsage=critical,keyCertSign"),
        *("-keyout", "authority.key", "-out", "authority.pem"),
    )
    openssl(
        *("req", *key, "-subj", f"/CN={_HOST}", "-keyout", "server.key", "-out", "server.csr"),
    )
    (folder / "extensions").write_text(f"subjectAltName=IP:{_HOST}\nauthorityKeyIdentifier=keyid\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-days", "2", "-CAcreateserial"),
        *("-CA", "authority.pem", "-CAkey", "authority.key"),
        *("-extfile", "extensions", "-out", "server.pem"),
    )
