"""LocalStack's process, with functions in processes of this machine instead of containers.

LocalStack's Lambda runs each execution environment with an executor, and its only one needs
Docker. :class:`ProcessExecutor` is another: one process of the tests' own interpreter per
environment (`worker.py`), kept warm, with the environment's variables. All else is LocalStack's:
how functions are created, invoked, throttled, and how asynchronous invocations are tried again.

Run as ``python -m tests.localstack.localstack_process`` with the interpreter that has LocalStack.
"""

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, Final

from localstack.services.lambda_.invocation.lambda_models import InvocationResult
from localstack.services.lambda_.invocation.plugins import DockerRuntimeExecutorPlugin
from localstack.services.lambda_.invocation.runtime_executor import RuntimeExecutor

from tests.localstack.worker import TIMEOUT_STATUS

ROOT: Final = Path(__file__).parents[2]
PYTHON: Final = "SECOND_FUNCTIONS_PYTHON"
"""The variable that names the interpreter of the functions."""


class ProcessExecutor(RuntimeExecutor):  # type: ignore[misc]
    """One execution environment: a process that runs one function, one event after the other."""

    def __init__(self, id: str, function_version: Any) -> None:  # noqa: A002 - the parent's name
        super().__init__(id, function_version)
        self._variables: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None

    def start(self, env_vars: dict[str, Any]) -> None:
        self._variables = {name: str(value) for name, value in env_vars.items()}
        self._begin()

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def invoke(self, payload: dict[str, str]) -> Any:
        """Have the process handle an event; one that died before is replaced."""
        if self._process is None or self._process.poll() is not None:
            self._begin()
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        seconds = self.function_version.config.timeout
        timeout = threading.Timer(seconds, process.kill)
        process.stdin.write(json.dumps({"event": json.loads(payload["payload"])}) + "\n")
        process.stdin.flush()
        timeout.start()
        line = process.stdout.readline()
        is_out_of_time = timeout.finished.is_set()
        timeout.cancel()
        outcome = json.loads(line) if line else self._death(is_out_of_time, seconds)
        return InvocationResult(
            request_id=payload["invoke-id"],
            payload=json.dumps(outcome.get("answer", outcome)).encode(),
            is_error="errorType" in outcome,
            logs="",
        )

    def _begin(self) -> None:
        function = self.function_version.config.environment["FUNCTION_FOLDER"]
        self._process = subprocess.Popen(
            [os.environ[PYTHON], "-W", "ignore", "-m", "tests.localstack.worker", function],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **self._variables},
        )

    def _death(self, is_out_of_time: bool, seconds: int) -> dict[str, str]:
        """Say of a dead process what Lambda says."""
        assert self._process is not None
        if self._process.wait() == TIMEOUT_STATUS or is_out_of_time:
            message = f"Task timed out after {seconds:.2f} seconds"
            return {"errorType": "Sandbox.Timedout", "errorMessage": message}
        message = "Runtime exited without providing a reason"
        return {"errorType": "Runtime.ExitError", "errorMessage": message}

    def get_address(self) -> str:
        return "127.0.0.1"

    get_endpoint_from_executor = get_address

    def get_runtime_endpoint(self) -> str:
        return ""

    def get_logs(self) -> str:
        return ""

    @classmethod
    def prepare_version(cls, function_version: Any) -> None:
        pass

    @classmethod
    def cleanup_version(cls, function_version: Any) -> None:
        pass


def main() -> None:
    """Serve until a signal ends the process."""
    DockerRuntimeExecutorPlugin.load = lambda _self, *_args, **_kwargs: ProcessExecutor

    from localstack.runtime.main import main as serve

    serve()


if __name__ == "__main__":
    main()
