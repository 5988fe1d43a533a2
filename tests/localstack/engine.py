"""LocalStack in a process of its own, started and stopped."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from gradshard.local_engine.process_control import free_port

ROOT = Path(__file__).parents[2]
START_SECONDS = 120
REGION = "us-east-1"


@contextlib.contextmanager
def localstack(python: Path, folder: Path) -> Iterator[int]:
    """Run LocalStack with an interpreter that has it; give its port.

    Its files, and its log ``engine.log``, are in ``folder``.
    """
    port = free_port()
    settings = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "FILESYSTEM_ROOT": str(folder / "files"),
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "GATEWAY_SERVER": "hypercorn",
        "S3_SKIP_SIGNATURE_VALIDATION": "0",
        "SECOND_FUNCTIONS_PYTHON": sys.executable,
        # An event that failed is tried again after a minute and after two, as on AWS.
        "LAMBDA_RETRY_BASE_DELAY": "1",
        # No server for names, no statistics and no certificate from elsewhere.
        "DNS_ADDRESS": "0",
        "DISABLE_EVENTS": "1",
        "SKIP_SSL_CERT_DOWNLOAD": "1",
    }
    with (folder / "engine.log").open("w") as log:
        command = [str(python), "-m", "tests.localstack.localstack_process"]
        process = subprocess.Popen(
            command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            _await_start(process, port, folder / "engine.log")
            yield port
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _await_start(process: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/_localstack/health"),
        ):
            return
        time.sleep(0.1)
    raise AssertionError(f"LocalStack did not start:\n{log.read_text()[-4000:]}")
