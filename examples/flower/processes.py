"""Train in Flower's processes on this machine: a SuperLink, a SuperNode for each client.

The ServerApp then has a process of its own, as it has where Flower is deployed.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
PROGRAMS: Final = Path(sys.executable).parent
APP: Final = ("pyproject.toml", "client_app.py", "server_app.py", "task.py")
SECONDS: Final = 1800


def train(folder: Path, clients: int, variables: Mapping[str, str], awaited: Path) -> None:
    """Start the processes, train until the ServerApp has written a file, and stop them.

    Raises
    ------
    TimeoutError
        The file did not come, or the SuperLink did not.
    """
    port, *ports = free_ports(1 + clients)
    link = f"127.0.0.1:{port}"
    app = folder / "app"
    app.mkdir(exist_ok=True)
    for name in APP:
        (app / name).write_bytes((HERE / name).read_bytes())
    (folder / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n[superlink.here]\naddress = "{link}"\ninsecure = true\n'
    )
    # Flower copies the app away from the modules beside it.
    paths = [str(HERE.parent / "digits"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **variables,
        "FLWR_HOME": str(folder),
        "FLWR_TELEMETRY_ENABLED": "0",
        "PATH": f"{PROGRAMS}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join(filter(None, paths)),
    }
    superlink = ["flower-superlink", "--insecure", "--port", str(port)]
    commands = [[*superlink, "--disable-runtime-dependency-installation"]]
    supernode = ["flower-supernode", "--insecure", "--superlink", link]
    for partition, own in enumerate(ports):
        node = f"partition-id={partition} num-partitions={clients}"
        commands.append([*supernode, "--port", str(own), "--node-config", node])
    with running(commands, environment, folder):
        until(lambda: is_open(port), f"no SuperLink on port {port}; see {folder}")
        command = [str(PROGRAMS / "flwr"), "run", str(app), "here"]
        subprocess.run(  # noqa: S603 - Flower's own program
            command, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        until(awaited.exists, f"the training has not ended within {SECONDS} s; see {folder}")


@contextmanager
def running(commands: list[list[str]], environment: dict[str, str], folder: Path) -> Iterator[None]:
    """Have programs run, each with its children a process group of its own."""
    started = []
    try:
        for number, (program, *arguments) in enumerate(commands):
            with (folder / f"{program}-{number}.log").open("wb") as log:
                process = subprocess.Popen(  # noqa: S603 - Flower's own programs
                    [PROGRAMS / program, *arguments],
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            started.append(process)
        yield
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def until(condition: Callable[[], bool], otherwise: str) -> None:
    """Wait for something."""
    give_up = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(otherwise)
        time.sleep(0.5)


def is_open(port: int) -> bool:
    """Return whether somebody listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
