"""Starting and stopping the process of a local engine."""

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from gradshard.deployment import application_sources
from gradshard.local_engine.running_engines import (
    EPHEMERAL,
    REGION,
    Engine,
    folder_of,
    status,
    url_of,
)
from gradshard.utils.atomic_file import add_path_to_errors
from gradshard.utils.polling import poll
from gradshard_core.errors import EngineError
from gradshard_core.s3.sigv4 import Credentials, sign

_START_SECONDS: Final = 60.0
_START_PAUSE_SECONDS: Final = 0.1
# It writes its state when it ends, the functions' code included.
_STOP_SECONDS: Final = 60.0
_STOP_PAUSE_SECONDS: Final = 0.05
_TAIL_LINES: Final = 15


@contextlib.contextmanager
def exclusive(port: int) -> Iterator[None]:
    """Wait until no other process starts the engine of a port or deploys to it."""
    import fcntl  # which Windows has not, where this module is for clients

    folder = folder_of(port)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(engine: Engine, bind: str | None, *, ephemeral: bool, owner: int | None = None) -> None:
    """Start an engine's process and wait until it is ready.

    Parameters
    ----------
    engine
        The engine, which does not run.
    bind
        One more address to listen on.
    owner
        The id of the process with which it ends; None if it stays until it is stopped.

    Raises
    ------
    EngineError
        An address cannot be used, or the engine does not start.
    """
    for address, option in (("127.0.0.1", "--port"), (bind, "--bind")):
        if address:
            _check_address(address, engine.port, option)
    shutil.rmtree(engine.folder, ignore_errors=True)  # of an engine that was killed
    temporary = engine.folder / "tmp"
    temporary.mkdir(parents=True)
    engine.folder.chmod(0o700)
    make_credentials(engine.credentials_file)
    if ephemeral:
        (engine.folder / EPHEMERAL).touch()
    else:
        engine.kept.mkdir(parents=True, exist_ok=True)
        engine.kept.chmod(0o700)
    command = [
        sys.executable,
        "-m",
        "gradshard.local_engine.server",
        "--port",
        str(engine.port),
    ]
    command += ["--credentials", str(engine.credentials_file)]
    command += ["--bind", bind] if bind else []
    command += [] if ephemeral else ["--keep", str(engine.kept)]
    command += ["--until", str(owner)] if owner else []
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # In a session of its own, it outlives this process, and is one group with its functions.
    pid = os.posix_spawn(
        sys.executable,
        command,
        child_environment(engine) | {"TMPDIR": str(temporary)},
        setsid=True,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(engine.log), log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
    )
    try:
        with add_path_to_errors(engine.folder):
            (engine.folder / "pid").write_text(str(pid))
    except OSError:
        _end_group(pid, (signal.SIGKILL,))
        raise
    for _ in poll(_START_SECONDS, pause=_START_PAUSE_SECONDS):
        if is_ready(engine):
            return
        # Engine.pid cannot tell: a process that was just spawned has no command line yet.
        ended, _status = os.waitpid(pid, os.WNOHANG)
        if ended:
            break
    log_end = tail_of(engine.log)
    stop(status(engine.port))
    raise EngineError(f"the engine did not start:\n{log_end}")


def stop(engine: Engine, *, forget: bool = False) -> None:
    """Stop an engine with its functions and remove its files, except what it keeps.

    Parameters
    ----------
    engine
        The engine, running or not.
    forget
        Whether what it keeps is of no use, so that it need not write its state.
    """
    if engine.pid is not None:
        # It takes seconds to write its state when it ends, which nobody would read.
        at_once = forget or engine.ephemeral
        _end_group(engine.pid, (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL))
    shutil.rmtree(engine.folder, ignore_errors=True)


def _check_address(address: str, port: int, option: str) -> None:
    """Check that an engine could listen there, and nowhere else."""
    if address in {"0.0.0.0", "::"}:  # noqa: S104 - to reject it
        raise EngineError(
            f"{address} is every address of this machine: name the one that others are to reach, "
            f"with {option}"
        )
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        # As a server does: the closed connections of an engine just stopped do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise EngineError(
                f"port {port} of {address} cannot be used ({error.strerror}): choose another with "
                f"{option}"
            ) from error


def _end_group(pid: int, signals: Sequence[signal.Signals]) -> None:
    """Send an engine's group one signal after the other until all its processes have ended."""
    for number in signals:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, number)
        for _ in poll(_STOP_SECONDS, pause=_STOP_PAUSE_SECONDS):
            if not is_group_alive(pid):
                return
    raise EngineError(f"the engine's processes (group {pid}) cannot be stopped")


def child_environment(engine: Engine) -> dict[str, str]:
    """Return the variables for an engine's process and for `sam`."""
    # Without the user's AWS variables: a profile or a session token would have priority. With
    # bytecode: every process of a function imports numpy, and each would compile it anew.
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("AWS_") and name != "PYTHONDONTWRITEBYTECODE"
    }
    given = {"PATH": application_sources.search_path(), "SAM_CLI_TELEMETRY": "0"}
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
