"""The local engine's process: MiniStack behind a gate, patched where it differs from AWS.

Run as ``python -m gradshard.local_engine.server --port 4566 --credentials FILE``.
"""

import argparse
import asyncio
import os
import resource
import select
import signal
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from gradshard.local_engine import kept_buckets, large_objects, ministack_patches
from gradshard.local_engine.access_gate import Gate, read_credentials
from gradshard_core.s3.sigv4 import Credentials


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(
        prog="python -m gradshard.local_engine.server", description=__doc__
    )
    parser.add_argument("--port", type=int, required=True, help="port to listen on")
    parser.add_argument("--bind", action="append", default=[], metavar="ADDRESS")
    parser.add_argument("--credentials", type=Path, required=True, metavar="FILE")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep objects and state there")
    parser.add_argument("--until", type=int, metavar="PID")
    options = parser.parse_args(arguments)
    if options.until is not None:
        _end_with(options.until)
    credentials = read_credentials(options.credentials)
    _configure(options.port, credentials)
    if options.keep:
        _configure_keeping(options.keep)
    ministack_patches.apply()
    if options.keep:
        large_objects.patch(options.keep)
        kept_buckets.patch()
    _serve(["127.0.0.1", *options.bind], options.port, credentials)


def _end_with(pid: int) -> None:
    """End this process and its functions when another process ends, however that happens.

    A signal at the parent's death (``PR_SET_PDEATHSIG``) would come when the thread that started
    this process ends, and only to this process.
    """
    owner = os.pidfd_open(pid)

    def wait() -> None:
        select.select([owner], [], [])
        os.killpg(os.getpgrp(), signal.SIGKILL)  # the group that it leads: objects are in memory

    threading.Thread(target=wait, daemon=True).start()


def _configure(port: int, credentials: Credentials) -> None:
    """Set what MiniStack reads from the environment when it is imported."""
    os.environ.update(
        GATEWAY_PORT=str(port),
        AWS_ACCESS_KEY_ID=credentials.access_key,
        AWS_SECRET_ACCESS_KEY=credentials.secret_key,
        # Functions inherit the engine's environment: they must talk to this engine, no other.
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}",
        # As on AWS: functions have their role's permissions and no others, signatures are verified.
        AUTH="true",
        # Two engines would compete for these fixed ports, and nothing here uses them.
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
        # The default is one folder for all engines.
        STATE_DIR=str(Path(tempfile.gettempdir(), "ministack-state")),
        # With a Docker daemon in reach it would remove the containers of other engines.
        DOCKER_HOST="unix:///nonexistent",
    )


def _configure_keeping(folder: Path) -> None:
    """Have MiniStack keep objects in files, and write its other state there when it ends."""
    os.environ.update(
        S3_PERSIST="1",
        S3_DATA_DIR=str(folder / "objects"),
        PERSIST_STATE="1",
        STATE_DIR=str(folder / "state"),
    )


def _serve(addresses: list[str], port: int, credentials: Credentials) -> None:
    from hypercorn.asyncio import serve
    from hypercorn.config import Config
    from ministack.app import app

    # A map over many shards holds a stream per contributor and function, all of them here.
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    config = Config()
    config.bind = [f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in addresses]
    config.keep_alive_timeout = 75
    config.graceful_timeout = 1
    asyncio.run(serve(Gate(app, credentials), config))


if __name__ == "__main__":
    main()
