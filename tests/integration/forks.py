"""Functions in processes of their own, each of which can be killed, stopped or starved.

Run as a module it is their parent: everything is imported there once, and each call is a fork of
it, as quick as a warm function and as fresh as a cold one.
"""

import contextlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

from tests.integration.machine import FUNCTIONS, ROOT, Context, FunctionError


class Lane:
    """One machine that runs functions, one after the other.

    Attributes
    ----------
    pid
        The process at work.
    spare_mb
        Memory a function may take beyond what it has at its start; None for any. One that is
        rejected more and does not end well is killed, as Lambda kills it.
    seconds
        Its timeout.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._lock = threading.Lock()
        self.pid = 0
        self.spare_mb: int | None = None
        self.seconds = 240.0

    def __call__(self, function: str, event: dict[str, Any]) -> dict[str, Any]:
        """Run a function to its end."""
        with self._lock:
            self._send({"function": function, "event": event, "spare_mb": self.spare_mb})
            self.pid = self._receive()["pid"]
            timeout = threading.Timer(self.seconds, self.signal, [signal.SIGKILL])
            timeout.start()
            outcome = self._receive()
            is_out_of_time = timeout.finished.is_set()
            timeout.cancel()
            self.pid = 0
        if "answer" in outcome:
            answer: dict[str, Any] = outcome["answer"]
            return answer
        if "error" in outcome:
            raise FunctionError(outcome["error"], outcome["message"])
        if is_out_of_time:
            raise FunctionError("Sandbox.Timedout", f"timed out after {self.seconds} seconds")
        raise FunctionError("Runtime.ExitError", f"{function} was killed: signal {outcome['died']}")

    def signal(self, number: int) -> None:
        """Send the process at work a signal."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _send(self, message: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        message: dict[str, Any] = json.loads(self._process.stdout.readline())
        return message


@contextlib.contextmanager
def lane() -> Iterator[Lane]:
    """Start a machine; its functions find the environment as it is now."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.integration.forks"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        yield Lane(process)
        assert process.stdin is not None
        process.stdin.close()


def main() -> None:
    """Serve calls, a line each, until there are no more."""
    # What functions log is not for whoever asked.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    modules = {
        name: runpy.run_path(str(ROOT / "functions" / name / "app.py")) for name in FUNCTIONS
    }
    for line in sys.stdin:
        call = json.loads(line)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            with os.fdopen(writing, "w") as answers:
                json.dump(_outcome(modules[call["function"]]["handler"], call), answers)
                answers.flush()
            os._exit(0)
        os.close(writing)
        print(json.dumps({"pid": pid}), file=out, flush=True)
        with os.fdopen(reading) as answers:
            said = answers.read()
        _, status = os.waitpid(pid, 0)
        died = os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        print(json.dumps({"died": died}) if died else said, file=out, flush=True)


def _outcome(handler: Any, call: dict[str, Any]) -> dict[str, Any]:
    if call["spare_mb"] is not None:
        with open("/proc/self/statm") as statm:  # noqa: PTH123 - as little memory as can be
            size = int(statm.read().split()[0]) * resource.getpagesize()
        limit = size + call["spare_mb"] * 1024**2
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        return {"answer": handler(call["event"], Context())}
    except Exception as error:  # noqa: BLE001 - as Lambda does
        if call["spare_mb"] is not None:
            # What Python raises where memory is rejected depends on what it was about to do.
            os.kill(os.getpid(), signal.SIGKILL)
        return {"error": type(error).__name__, "message": str(error)}


if __name__ == "__main__":
    main()
