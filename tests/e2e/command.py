"""The `gradshard` command as a fork of a process that has loaded it, which takes most of its time.

From its own file it is run by `tests/docs`, `test_installed` and `test_local_engine`.
"""

import importlib
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def gradshard(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the command in this process's environment and folder."""
    process = _loaded()
    assert process.stdin is not None
    assert process.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        call: dict[str, Any] = {
            "arguments": [*map(str, arguments)],
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
            "files": [str(out), str(err)],
        }
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        code = int(process.stdout.readline())
        return subprocess.CompletedProcess(
            call["arguments"], code, out.read_text(), err.read_text()
        )


@cache
def _loaded() -> "subprocess.Popen[str]":
    """Start the process; it ends with this one, which closes its input."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.command"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def main() -> None:
    """Serve calls, a line each, until there are no more."""
    from gradshard.utils.light_imports import hide_unused_libraries

    hide_unused_libraries()
    for package in ("gradshard.cli", "gradshard.client"):
        path = importlib.import_module(package).__path__
        for module in pkgutil.iter_modules(path, f"{package}."):
            importlib.import_module(module.name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _run(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(call: dict[str, Any]) -> None:
    from gradshard.__main__ import main as command

    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    for fd, path in enumerate((os.devnull, *call["files"])):
        with Path(path).open("r+" if fd == 0 else "w") as file:
            os.dup2(file.fileno(), fd)
    sys.argv = ["gradshard", *call["arguments"]]
    code = 0
    try:
        command()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
