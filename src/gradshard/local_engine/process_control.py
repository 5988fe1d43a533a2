"""Ports, variables, credentials and processes of local engines, for starting and stopping them."""

import contextlib
import http.client
import json
import os
import secrets
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gradshard.deployment import sam_command
from gradshard.local_engine.running_engines import REGION, Engine, url_of
from gradshard_core.s3.sigv4 import Credentials, sign

_TAIL_LINES: Final = 15


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def child_environment(engine: Engine) -> dict[str, str]:
    """Return the variables for an engine's process and for `sam`."""
    # Without the user's AWS variables: a profile or a session token would have priority. With
    # bytecode: every process of a function imports numpy, and each would compile it anew.
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    given = {"PATH": sam_command.search_path(), "SAM_CLI_TELEMETRY": "0"}
    return own | engine.environment | given


def is_group_alive(group: int) -> bool:
    """Return whether a process of the group still runs; one that ended uncollected (Z) does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(group, os.WNOHANG)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, its_group, *_ = stat.read_text().rpartition(")")[2].split()
            if int(its_group) == group and state != "Z":
                return True
    return False


def make_credentials(file: Path) -> None:
    """Write a new engine's key to a file that only its user may read."""
    record = {
        "access_key": f"LOCAL{secrets.token_hex(8).upper()}",
        "secret_key": secrets.token_urlsafe(30),
    }
    file.touch(0o600, exist_ok=False)
    file.write_text(json.dumps(record))


def answers(port: int, credentials: Credentials, address: str = "127.0.0.1") -> bool:
    """Return whether an engine with this key is ready on a port; asked without a proxy."""
    host = urlsplit(url_of(address, port)).netloc
    target, headers = sign(
        "GET",
        host,
        "/_ministack/ready",
        {},
        {},
        b"",
        region=REGION,
        credentials=credentials,
        now=datetime.now(UTC),
    )
    connection = http.client.HTTPConnection(address, port, timeout=2)
    try:
        connection.request("GET", target, headers=headers)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def is_ready(engine: Engine, address: str = "127.0.0.1") -> bool:
    """Return whether an engine answers on an address."""
    return answers(engine.port, engine.credentials, address)


def tail_of(path: Path) -> str:
    """Return the last lines of a log."""
    try:
        return "\n".join(path.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
    except OSError:
        return "(no log)"
