"""The application on this machine: a process that stands in for AWS, with the same template.

It keeps objects and its application on disk, and has them again when it is started the next time.
An ephemeral one keeps them in memory.
"""

import importlib.util
import platform
import shutil
import sys

from gradshard.deployment import application_sources, layer_build
from gradshard.deployment.defaults import DEFAULT_PORT, STACK
from gradshard.local_engine.application import (
    Progress,
    deploy_if_changed,
    write_container_settings,
)
from gradshard.local_engine.process_control import exclusive, free_port, is_ready, start, stop
from gradshard.local_engine.running_engines import (
    REGION,
    Engine,
    elsewhere,
    find,
    has_application,
    running,
    session,
    status,
)
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
    if not version.startswith(f"{layer_build.RUNTIME}."):
        raise EngineError(
            f"the local engine runs the functions with its own interpreter, Python {version}, and "
            f"they need {layer_build.RUNTIME}: install gradshard[local] under that"
        )
    if importlib.util.find_spec("ministack") is None:
        raise EngineError(
            "the local engine is not installed: `pip install 'gradshard[local]'` installs it"
        )
    application_sources.find_sam()
    layer_build.check_builder()


def _ignore(line: str) -> None:
    pass
