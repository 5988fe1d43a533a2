"""The application on this machine: a process that stands in for AWS, with the same template.

It keeps objects and its application on disk, and has them again when it is started the next time.
An ephemeral one keeps them in memory.
"""

import contextlib
import importlib.util
import os
import platform
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from gradshard.deployment import lambda_layer_build, sam_command
from gradshard.deployment.defaults import DEFAULT_PORT, STACK
from gradshard.local_engine.application import Progress, deploy_if_changed, write_container_settings
from gradshard.local_engine.process_control import (
    child_environment,
    free_port,
    is_group_alive,
    is_ready,
    make_credentials,
    tail_of,
)
from gradshard.local_engine.running_engines import (
    EPHEMERAL,
    REGION,
    Engine,
    elsewhere,
    find,
    folder_of,
    has_application,
    running,
    session,
    status,
)
from gradshard.utils.atomic_file import add_path_to_errors
from gradshard.utils.polling import poll
from gradshard_core.errors import EngineError

__all__ = [
    "DEFAULT_PORT",
    "REGION",
    "STACK",
    "Engine",
    "down",
    "elsewhere",
    "find",
    "has_application",
    "running",
    "session",
    "status",
    "up",
]

_START_SECONDS: Final = 60.0
_START_PAUSE_SECONDS: Final = 0.1

# It writes its state when it ends, the functions' code included.
_STOP_SECONDS: Final = 60.0
_STOP_PAUSE_SECONDS: Final = 0.05


def up(
    port: int = DEFAULT_PORT,
    *,
    bind: str | None = None,
    ephemeral: bool = False,
    keeper: bool = False,
    progress: Progress | None = None,
    owner: int | None = None,
) -> Engine:
    """Start an engine unless it runs, and deploy the application if it has changed.

    Parameters
    ----------
    port
        The port to listen on; 0 for any free one.
    bind
        One more address to listen on beside 127.0.0.1, such as Docker's 172.17.0.1. Every machine
        and container that reaches the address can send requests, over plain HTTP; anyone who has
        the engine's key can run code as this user.
    ephemeral
        Whether a new engine keeps objects in memory, and nothing when it ends.
    keeper
        Whether to deploy the mask keeper of masked rounds, too.
    progress
        Called with a line at each step.
    owner
        The id of a process; an engine that is started ends when that process ends, even if a
        signal kills it. By default, it stays until it is stopped.

    Returns
    -------
    Engine
        The running engine.

    Raises
    ------
    EngineError
        The engine cannot run here, the port is taken, a command fails, or the engine runs
        already, without ``bind``.
    DeployError
        `sam`, or a program that it builds with, is not installed.
    """
    _check_machine()
    report = progress or _ignore
    port = port or free_port()
    with exclusive(port):
        engine = status(port)
        if not engine.running:
            report(f"starting the engine on port {engine.port}")
            start(engine, bind, ephemeral=ephemeral, owner=owner)
            engine = status(port)
        elif ephemeral and not engine.ephemeral:
            raise EngineError(
                f"the engine on port {engine.port} runs already and keeps its objects: "
                f"`{engine.stop_command}` first"
            )
        elif bind and not is_ready(engine, bind):
            raise EngineError(
                f"the engine on port {engine.port} runs already and does not listen on {bind}: "
                f"`{engine.stop_command}` first"
            )
        deploy_if_changed(engine, report, keeper=keeper)
        if bind:
            write_container_settings(engine, bind, report)
    report(f"ready at {engine.url}")
    return status(engine.port)


def down(port: int = DEFAULT_PORT, *, delete: bool = False) -> bool:
    """Stop an engine with its functions and remove its files, except what it keeps.

    Parameters
    ----------
    port
        The engine's port.
    delete
        Remove the rounds and models that it keeps, too.

    Returns
    -------
    bool
        Whether there was one running.
    """
    engine = status(port)
    stop(engine, forget=delete)
    if delete:
        shutil.rmtree(engine.kept, ignore_errors=True)
    return engine.running


def _check_machine() -> None:
    """Check that the functions can run here, before anything is started."""
    if sys.platform != "linux":
        raise EngineError(
            "the local engine runs functions with the layer's Linux libraries, not on "
            f"{sys.platform}: use Linux, or the container of docs/getting-started.md"
        )
    version = platform.python_version()
    if not version.startswith(f"{lambda_layer_build.RUNTIME}."):
        raise EngineError(
            f"the local engine runs the functions with its own interpreter, Python {version}, and "
            f"they need {lambda_layer_build.RUNTIME}: install gradshard[local] under that"
        )
    if importlib.util.find_spec("ministack") is None:
        raise EngineError(
            "the local engine is not installed: `pip install 'gradshard[local]'` installs it"
        )
    sam_command.find_sam()
    lambda_layer_build.check_builder()


def _ignore(line: str) -> None:
    pass


@contextlib.contextmanager
def exclusive(port: int) -> Iterator[None]:
    """Wait until no other process starts the engine of a port or deploys to it."""
    import fcntl  # which Windows has not, where this module is for clients

    folder = folder_of(port)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
