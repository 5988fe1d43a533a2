"""Correct where MiniStack's Step Functions differ from AWS's."""

import json
from contextvars import ContextVar
from typing import Any


def apply() -> None:
    """Apply these patches, in a process that is an engine."""
    _patch_max_concurrency_path()
    _patch_callback_failures()
    _patch_stopped_executions()
    _patch_nested_executions()


def _patch_max_concurrency_path() -> None:
    """Honour ``MaxConcurrencyPath`` of a distributed map, which MiniStack ignores."""
    from ministack.services import stepfunctions

    run_distributed_map = stepfunctions._run_distributed_map

    def run(state: dict[str, Any], raw: Any, effective: Any, *rest: Any) -> Any:
        if path := state.get("MaxConcurrencyPath"):
            state = {**state, "MaxConcurrency": stepfunctions._resolve_path(path, effective)}
        return run_distributed_map(state, raw, effective, *rest)

    stepfunctions._run_distributed_map = run


def _patch_callback_failures() -> None:
    """Fail a ``.waitForTaskToken`` task when its function fails.

    MiniStack drops that error and waits for a callback that nobody will send.
    """
    from ministack.services import stepfunctions

    invoke_with_callback = stepfunctions._invoke_with_callback
    call_lambda = stepfunctions._call_lambda
    waiting_token: ContextVar[str | None] = ContextVar("waiting_token", default=None)

    def invoke(resource: str, payload: Any, token: str, state: dict[str, Any]) -> Any:
        outer = waiting_token.set(token)
        try:
            return invoke_with_callback(resource, payload, token, state)
        finally:
            waiting_token.reset(outer)

    def call(function: str, event: Any) -> Any:
        try:
            return call_lambda(function, event)
        except stepfunctions._ExecutionError as error:
            if task := stepfunctions._task_tokens.get(waiting_token.get()):
                task["error"] = {"Error": error.error, "Cause": error.cause}
                task["event"].set()
            raise

    stepfunctions._invoke_with_callback = invoke
    stepfunctions._call_lambda = call


class _StoppedError(BaseException):
    """The execution was stopped: neither ``Retry`` nor ``Catch`` is asked."""


def _patch_stopped_executions() -> None:
    """Let a stopped execution await no callback, so that the one that started it goes on.

    MiniStack marks it, but waits on for the callback, and so does whoever waits for its end.
    """
    from ministack.services import stepfunctions

    run_execution, stop = stepfunctions._run_execution, stepfunctions._stop_execution
    invoke_with_callback = stepfunctions._invoke_with_callback
    call_lambda = stepfunctions._call_lambda
    running: ContextVar[str] = ContextVar("running", default="")
    tokens: dict[str, str] = {}  # of executions that await a callback

    def is_stopped(execution: str) -> bool:
        found = stepfunctions._executions.get(execution)
        return found is not None and found["status"] == "ABORTED"

    def wake(execution: str) -> None:
        task = stepfunctions._task_tokens.get(tokens.get(execution))
        if task and is_stopped(execution):
            task["event"].set()

    def run(execution: str) -> None:
        outer = running.set(execution)
        try:
            run_execution(execution)
        except _StoppedError:
            pass
        finally:
            running.reset(outer)

    def invoke(resource: str, payload: Any, token: str, state: dict[str, Any]) -> Any:
        execution = running.get()
        tokens[execution] = token
        try:
            return invoke_with_callback(resource, payload, token, state)
        finally:
            tokens.pop(execution, None)
            if is_stopped(execution):
                raise _StoppedError

    def call(function: str, event: Any) -> Any:
        try:
            return call_lambda(function, event)
        finally:
            wake(running.get())  # it may have been stopped before there was a token

    def stop_now(request: dict[str, Any]) -> Any:
        answer = stop(request)
        wake(request["executionArn"])
        return answer

    stepfunctions._run_execution, stepfunctions._stop_execution = run, stop_now
    stepfunctions._invoke_with_callback, stepfunctions._call_lambda = invoke, call


def _patch_nested_executions() -> None:
    """Start a nested execution of a name once, and report its failure under AWS's error names.

    MiniStack runs an execution anew in the place of the one that had its name before.
    """
    from ministack.services import stepfunctions

    start_sync, start = stepfunctions._start_sync_execution, stepfunctions._start_execution

    def exists(error: str, request: dict[str, Any]) -> bool:
        """Whether there is an execution of the name; it is an error if that one has ended."""
        machine = request["stateMachineArn"].replace(":stateMachine:", ":execution:")
        found = stepfunctions._executions.get(f"{machine}:{request.get('name')}")
        if found is None:
            return False
        if found["status"] == "RUNNING" and found["input"] == request["input"]:
            return True
        raise stepfunctions._ExecutionError(error, f"Execution already exists: {request['name']}")

    def run(_resource: str, input_data: Any) -> Any:
        request = stepfunctions._nested_start_execution_request(input_data)
        if exists("StepFunctions.ExecutionAlreadyExistsException", request):
            raise stepfunctions._ExecutionError("States.TaskFailed", "it runs already")
        _, _, body = start_sync(request)
        answer = json.loads(body)
        if answer.get("status") != "SUCCEEDED":
            raise stepfunctions._ExecutionError("States.TaskFailed", json.dumps(answer))
        return answer | {"output": json.loads(answer["output"])}

    def begin(_resource: str, input_data: Any) -> Any:
        request = stepfunctions._nested_start_execution_request(input_data)
        if not exists("StepFunctions.ExecutionAlreadyExistsException", request):
            start(request)
        return {}

    stepfunctions._invoke_nested_start_execution_sync = run
    stepfunctions._invoke_nested_start_execution = begin
