"""Correct where MiniStack's Lambda and its events differ from AWS's."""

import hashlib
import io
import json
import os
import secrets
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

PROCESSES_OF_A_FUNCTION: Final = max(4, 2 * (os.cpu_count() or 1))
"""Invocations of one function that run at once."""

_EVENTS_AT_ONCE: Final = 4

_EVENT_PAUSES: Final = (0, 1, 2)  # seconds before each attempt

_SCHEDULER_TICK: Final = 1  # seconds


def apply() -> None:
    """Apply these patches, in a process that is an engine."""
    _patch_functions_keys()
    _patch_error_names()
    _patch_crowds()
    _patch_layers()
    _patch_cold_starts()
    _patch_events_to_functions()
    _patch_scheduler_tick()


def _patch_functions_keys() -> None:
    """Give functions keys that nobody can guess; MiniStack computes them from their names."""
    from ministack.core import lambda_runtime

    salt = secrets.token_bytes(32)

    def sha256(data: bytes = b"") -> Any:
        return hashlib.sha256(salt + data)

    # The module's own name for the library, which it uses for nothing else.
    lambda_runtime.hashlib = SimpleNamespace(sha256=sha256)


class _NamedError(str):
    """A function's error message that remembers the name of the exception it came from."""

    __slots__ = ("name",)
    name: str


def _patch_error_names() -> None:
    """Report a function's failure under its exception's name and keep its process, as AWS does.

    MiniStack calls every one ``Runtime.HandlerError``, so retries and readers cannot tell errors
    apart, and starts another process. The name travels from the worker process in its answer, which
    is ``ok`` for MiniStack, then on the message itself.
    """
    from ministack.core import lambda_runtime
    from ministack.services import lambda_svc

    lambda_runtime._PYTHON_WORKER_SCRIPT = lambda_runtime._PYTHON_WORKER_SCRIPT.replace(
        '"status": "error", "error": str(e), "trace"',
        '"status": "ok", "error": str(e), "name": type(e).__name__, "trace"',
    )
    worker_invoke = lambda_runtime.Worker.invoke
    execute_function = lambda_svc._execute_function_warm

    def invoke(self: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        response: dict[str, Any] = worker_invoke(self, *args, **kwargs)
        if "error" in response:
            response["status"] = "error"
            died = response["error"] == "Worker process died"
            error = _NamedError(response["error"])
            error.name = "Runtime.ExitError" if died else response.get("name", "")
            response["error"] = error
        return response

    def execute(*args: Any, **kwargs: Any) -> dict[str, Any]:
        result: dict[str, Any] = execute_function(*args, **kwargs)
        if result.get("error"):
            message = result["body"]["errorMessage"]
            if isinstance(message, _NamedError) and message.name:
                result["body"]["errorType"] = message.name
        return result

    lambda_runtime.Worker.invoke = invoke
    lambda_svc._execute_function_warm = execute


def _patch_crowds() -> None:
    """Run a function in a few processes at once; further invocations wait for one of them.

    On AWS each concurrent invocation has a machine of its own. MiniStack starts a process for each
    on this one: with a hundred rounds opened at once, all processors import numpy and boto3 a
    hundred times before the first round gets on. No function invokes another, so whoever waits for
    a process gets one.
    """
    from ministack.services import lambda_svc

    execute_function = lambda_svc._execute_function_warm
    slots: dict[str, threading.Semaphore] = {}

    def execute(function: dict[str, Any], *rest: Any) -> dict[str, Any]:
        name = (function.get("config") or function).get("FunctionName", "")
        with slots.setdefault(name, threading.Semaphore(PROCESSES_OF_A_FUNCTION)):
            result: dict[str, Any] = execute_function(function, *rest)
        return result

    lambda_svc._execute_function_warm = execute


def _patch_layers() -> None:
    """Extract a layer once for all processes of functions, which read it and write only bytecode.

    MiniStack extracts it for each process anew. That takes a second of a processor, and as much
    again to compile numpy, which has no bytecode in a folder that is new.
    """
    from ministack.core.lambda_runtime import Worker
    from ministack.services import lambda_svc

    spawn = Worker._spawn
    lock = threading.Lock()

    def extracted(reference: Any) -> str | None:
        data = lambda_svc._resolve_layer_zip(reference)
        if not data:
            return None
        folder = Path(tempfile.gettempdir(), f"layer-{hashlib.sha256(data).hexdigest()}")
        with lock:
            if not folder.exists():
                partial = folder.with_suffix(".partial")
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    archive.extractall(partial)
                partial.rename(folder)
        return str(folder)

    def spawn_with_shared(self: Any) -> None:
        config = self.config
        folders = os.pathsep.join(filter(None, map(extracted, config.get("Layers") or [])))
        variables = (config.get("Environment") or {}).get("Variables", {})
        # Of this variable MiniStack's processes read where the layers are.
        shared = {"Variables": {**variables, "_LAMBDA_LAYERS_DIRS": folders}}
        self.config = {**config, "Layers": [], "Environment": shared}
        try:
            spawn(self)
        finally:
            self.config = config

    Worker._spawn = spawn_with_shared


def _patch_cold_starts() -> None:
    """Start a function's process with nothing imported but the function, as on AWS.

    MiniStack imports botocore first, to count how deep functions invoke each other. No function
    here invokes another, and none imports botocore, which takes longer than all else they import.
    """
    from ministack.core import lambda_runtime

    lambda_runtime._PYTHON_WORKER_SCRIPT = lambda_runtime._PYTHON_WORKER_SCRIPT.replace(
        "    _ms_install_invoke_depth()\n", ""
    )


def _patch_events_to_functions() -> None:
    """Queue events for functions, try twice more what fails, then pass it on, as AWS does.

    MiniStack runs every event at once, each in a process of its own, and drops those that fail or
    that are one too many: sixty updates arriving together would take a minute or lose one.
    Schedules and topics pass events on in two ways.
    """
    from ministack.services import eventbridge, lambda_svc, sns

    pool = ThreadPoolExecutor(_EVENTS_AT_ONCE)

    def deliver(function: dict[str, Any], event: Any) -> None:
        for pause in _EVENT_PAUSES:
            time.sleep(pause)
            result = lambda_svc._execute_function_with_config_scope(function, event)
            if not result.get("error"):
                return
        config = (function.get("event_invoke_configs") or {}).get("$LATEST") or {}
        destination = config.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination")
        if destination:
            name = function["config"]["FunctionName"]
            lambda_svc._run_with_function_config_scope(
                function, lambda_svc._route_async_failure, destination, name, event, result
            )

    def dispatch(arn: str, payload: str) -> None:
        function, config, _ = lambda_svc._get_func_record_for_ref(arn)
        if function and config:
            record = lambda_svc._execution_record_for_config(function, config)
            pool.submit(deliver, record, json.loads(payload))

    def notify(arn: str, message: str, _topic: str, subscription: str, *_: Any) -> None:
        told = {"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": json.loads(message)}
        told["EventSubscriptionArn"] = subscription
        dispatch(arn, json.dumps({"Records": [told]}))

    eventbridge._dispatch_to_lambda = dispatch
    sns._deliver_to_lambda = notify


def _patch_scheduler_tick() -> None:
    """Look for due schedules every second; AWS is that punctual, MiniStack looks every 10 s."""
    from ministack.services import scheduler

    scheduler._SCHEDULE_TICK_INTERVAL = _SCHEDULER_TICK
