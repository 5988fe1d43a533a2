"""The `gradshard` command as a fork of a process that has loaded it, which takes most of its time.

From its own file it is run by `test_installed`, which also runs the page that begins with it, and
by `test_local_engine`.
"""

import contextlib
import importlib
import json
import os
import pkgutil
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

CALL = """
import json, os, socket, sys
call = {"arguments": sys.argv[2:], "environment": dict(os.environ), "folder": os.getcwd()}
with socket.socket(socket.AF_UNIX) as server:
    server.connect(sys.argv[1])
    socket.send_fds(server, [json.dumps(call).encode() + b"\\n"], [0, 1, 2])
    code = server.recv(1)
sys.exit(code[0] if code else 1)
"""
"""What runs in the command's place, in its environment and folder, and with its files."""

SERVERS: list["subprocess.Popen[bytes]"] = []
"""The process that serves calls. Its input stays open as long as this process runs."""


def gradshard(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command in this process's environment and folder."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        call = {"arguments": [*map(str, arguments)], "environment": dict(os.environ)}
        with socket.socket(socket.AF_UNIX) as server, Path(os.devnull).open() as nothing:
            server.connect(str(_server()))
            message = json.dumps(call | {"folder": str(Path.cwd())}).encode() + b"\n"
            files = [nothing.fileno(), out.fileno(), err.fileno()]
            socket.send_fds(server, [message], files)
            code = server.recv(1)
        assert code, "the command was killed"
        out.seek(0)
        err.seek(0)
        said, warned = out.read().decode(), err.read().decode()
    return subprocess.CompletedProcess([*map(str, arguments)], code[0], said, warned)


def command_file(path: Path) -> Path:
    """Make a file that runs the command, for shells."""
    call = shlex.join([sys.executable, "-I", "-S", "-c", CALL, str(_server())])
    path.write_text(f'#!/bin/sh\nexec {call} "$@"\n')
    path.chmod(0o755)
    return path


@cache
def _server() -> Path:
    """Start the process; it ends with this one, which closes its input."""
    path = Path(tempfile.mkdtemp(), "command")  # a short one: a socket's has at most 107 characters
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.command", str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    SERVERS.append(process)
    return path


def main(path: str) -> None:
    """Serve calls until nobody has this process's input open any more."""
    from gradshard.utils.light_imports import hide_unused_libraries

    hide_unused_libraries()
    for package in ("gradshard.cli", "gradshard.client"):
        folder = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(folder, f"{package}."):
            importlib.import_module(module.name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks how children have ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            caller, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                _run(caller)
            caller.close()
    Path(path).unlink()
    Path(path).parent.rmdir()


def _run(caller: socket.socket) -> None:
    """Run a call in the environment, the folder and with the files of its caller."""
    from gradshard.__main__ import main as command

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    message, files, _, _ = socket.recv_fds(caller, 2**16, 3)
    while not message.endswith(b"\n"):
        message += caller.recv(2**16)
    call: dict[str, Any] = json.loads(message)
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    for fd, file in enumerate(files):
        os.dup2(file, fd)
        os.close(file)
    threading.Thread(target=_end_with, args=(caller,), daemon=True).start()
    sys.argv = ["gradshard", *call["arguments"]]
    code = 1
    try:
        command()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        caller.sendall(bytes([code]))
        os._exit(code)


def _end_with(caller: socket.socket) -> None:
    """End this process when its caller is killed."""
    with contextlib.suppress(OSError):
        caller.recv(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
