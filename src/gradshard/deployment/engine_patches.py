"""The local engine's patches: what MiniStack does otherwise than AWS, corrected while it runs.

Each patch below says what AWS does and what MiniStack 1.5.33 does instead. Remove a patch when
MiniStack does the same.
"""

import hashlib
import io
import json
import os
import secrets
import sys
import tempfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from gradshard.utils.crc64 import crc64_text

_SCHEDULER_TICK: Final = 1  # seconds
PROCESSES_OF_A_FUNCTION: Final = max(4, 2 * (os.cpu_count() or 1))
"""Invocations of one function that run at once."""

_EVENTS_AT_ONCE: Final = 4
_EVENT_PAUSES: Final = (0, 1, 2)  # seconds before each attempt


class _NamedError(str):
    """A function's error message that remembers the name of the exception it came from."""

    __slots__ = ("name",)
    name: str


def apply() -> None:
    """Apply all patches, in a process that is an engine."""
    _patch_functions_keys()
    _patch_user_ids()
    _patch_asked_arns()
    _patch_conditional_writes()
    _tell_decisions()
    _patch_versioned_ranges()
    _patch_etags_under_kms()
    _patch_checksums()
    _patch_max_concurrency_path()
    _patch_callback_failures()
    _patch_stopped_executions()
    _patch_nested_executions()
    _patch_error_names()
    _patch_events_to_functions()
    _patch_scheduler_tick()
    _patch_crowds()
    _patch_layers()
    _patch_cold_starts()


def _patch_functions_keys() -> None:
    """Give functions keys that nobody can guess; MiniStack computes them from their names."""
    from ministack.core import lambda_runtime

    salt = secrets.token_bytes(32)

    def sha256(data: bytes = b"") -> Any:
        return hashlib.sha256(salt + data)

    # The module's own name for the library, which it uses for nothing else.
    lambda_runtime.hashlib = SimpleNamespace(sha256=sha256)


def _patch_user_ids() -> None:
    """Give a function's session the user id of its role; MiniStack begins it with the name."""
    from ministack.services import iam, sts

    register_session = sts.register_session

    def register(key: str, session: dict[str, Any], *rest: Any) -> Any:
        name, _, session_name = session.get("UserId", "").partition(":")
        account = session.get("Arn", "").split(":")[4:5]
        role = iam._roles.get_scoped(*account, None, name) if account else None
        if role is not None:
            session = {**session, "UserId": f"{role['RoleId']}:{session_name}"}
        return register_session(key, session, *rest)

    sts.register_session = register


def _tell_decisions() -> None:
    """Write to the log what each role asked for and whether it may, as CloudTrail would.

    A line is ``iam allowed ROLE ACTION RESOURCE``, or ``iam denied …``.
    """
    from ministack.core import iam_evaluator

    enforce = iam_evaluator.enforce

    def tell(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", **more: Any
    ) -> Any:
        denied = enforce(key, action, service, region, resource_arn, **more)
        caller = iam_evaluator.resolve_caller_identity(key) or {}
        _, assumed, role = caller.get("userArn", "").partition(":assumed-role/")
        if assumed:
            decision = "denied" if denied else "allowed"
            line = f"iam {decision} {role.partition('/')[0]} {action} {resource_arn}\n"
            # Not print, which writes a line's end apart, maybe after another thread's line.
            sys.stdout.write(line)
            sys.stdout.flush()
        return denied

    iam_evaluator.enforce = tell


def _patch_conditional_writes() -> None:
    """Tell IAM whether a write to S3 is conditional; MiniStack knows no ``s3:if-none-match``."""
    from ministack.core import iam_evaluator

    enforce, pin_signed_request = iam_evaluator.enforce, iam_evaluator.pin_signed_request
    condition: ContextVar[bytes | None] = ContextVar("if-none-match", default=None)

    def pin(
        method: str, path: str, query: Any, headers: list[tuple[bytes, bytes]], *more: Any
    ) -> None:
        condition.set({name.lower(): value for name, value in headers}.get(b"if-none-match"))
        pin_signed_request(method, path, query, headers, *more)

    def ask(
        key: str, action: str, service: str, region: str, resource_arn: str = "*", **more: Any
    ) -> Any:
        if service == "s3" and (given := condition.get()) is not None:
            known = more.get("service_context") or {}
            more["service_context"] = {**known, "s3:if-none-match": given.decode()}
        return enforce(key, action, service, region, resource_arn, **more)

    iam_evaluator.enforce, iam_evaluator.pin_signed_request = ask, pin


def _patch_asked_arns() -> None:
    """Tell IAM of a schedule's group, and of a map run; MiniStack says ``default``, and nothing."""
    from ministack.core import iam_actions

    extract_resource_arn = iam_actions.extract_resource_arn

    def extract(service: str, method: str, path: str, headers: Any, body: bytes, *rest: Any) -> str:
        arn: str = extract_resource_arn(service, method, path, headers, body, *rest)
        if service == "scheduler" and ":schedule/default/" in arn:
            query = rest[0] or {}
            group = json.loads(body or b"{}").get("GroupName") or query.get("groupName", "default")
            group = group[0] if isinstance(group, list) else group
            arn = arn.replace(":schedule/default/", f":schedule/{group}/")
        if service == "states" and arn == "*" and body:
            arn = json.loads(body).get("mapRunArn", arn)
        return arn

    iam_actions.extract_resource_arn = extract


def _patch_versioned_ranges() -> None:
    """Honour ``Range`` when a version is read; MiniStack answers 200 with the whole object."""
    from ministack.services import s3

    get_object = s3._get_object

    def get(bucket: str, key: str, headers: dict[str, str], query: Any = None) -> Any:
        wanted = headers.get("range")
        if not wanted or "versionId" not in (query or {}):
            return get_object(bucket, key, headers, query)
        # The checksum of the whole object does not hold for a part of it.
        headers = {name: headers[name] for name in headers if name != "x-amz-checksum-mode"}
        status, answer, body = get_object(bucket, key, headers, query)
        if status != HTTPStatus.OK:
            return status, answer, body
        span = s3._parse_range(wanted, len(body))
        if span is None:
            message = "The requested range is not satisfiable"
            return s3._error("InvalidRange", message, 416, f"/{bucket}/{key}")
        first, last = span
        answer["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        answer["Content-Length"] = str(last - first + 1)
        return HTTPStatus.PARTIAL_CONTENT, answer, body[first : last + 1]

    s3._get_object = get


def _patch_etags_under_kms() -> None:
    """Give objects under a KMS key an ETag that is not the MD5 of their bytes.

    MiniStack's is, whatever the bucket encrypts with; programs that take one for the other would
    go unnoticed.
    """
    from ministack.services import s3

    put_object, upload_part, md5_hash = s3._put_object, s3._upload_part, s3.md5_hash
    complete_upload = s3._complete_multipart_upload
    storing: ContextVar[bool] = ContextVar("storing", default=False)
    joining: ContextVar[bool] = ContextVar("joining", default=False)

    def put(bucket: str, key: str, body: bytes, headers: dict[str, str]) -> Any:
        sse, _ = s3._resolve_sse_write_headers(headers, bucket)
        return within(storing, sse, put_object, bucket, key, body, headers)

    def part(bucket: str, key: str, body: bytes, query: Any, headers: dict[str, str]) -> Any:
        return within(storing, sse_of(query), upload_part, bucket, key, body, query, headers)

    def complete(bucket: str, key: str, body: bytes, query: Any, *rest: Any) -> Any:
        return within(joining, sse_of(query), complete_upload, bucket, key, body, query, *rest)

    def sse_of(query: Any) -> Any:
        return s3._stored_sse_headers(s3._multipart_uploads.get(s3._qp(query, "uploadId")) or {})

    def within(var: ContextVar[bool], sse: Any, call: Any, *given: Any) -> Any:
        algorithm = (sse or {}).get("x-amz-server-side-encryption", "")
        outer = var.set(algorithm.startswith("aws:kms"))
        try:
            return call(*given)
        finally:
            var.reset(outer)

    def hash_of(body: bytes) -> str:
        return secrets.token_hex(16) if storing.get() else str(md5_hash(body))

    def md5(data: bytes = b"") -> Any:
        digest = hashlib.md5(data, usedforsecurity=False)
        if joining.get():
            digest.update(secrets.token_bytes(16))
        return digest

    s3._put_object, s3._upload_part, s3.md5_hash = put, part, hash_of
    s3._complete_multipart_upload = complete
    # The module's own name for the library, for the ETag of joined parts.
    s3.hashlib = SimpleNamespace(**{**vars(hashlib), "md5": md5})


def _patch_checksums() -> None:
    """Keep the CRC-64/NVME of every object that has no other checksum, as S3 does.

    MiniStack keeps none then, makes one of the parts' CRCs where parts bring them, and takes a
    second of a processor for 10 MB.
    """
    from ministack.services import s3

    compute, composite = s3._compute_s3_checksum, s3._composite_checksum
    record_version = s3._record_object_version

    def checksum_of(algorithm: str, body: Any) -> Any:
        return crc64_text(body) if algorithm == "CRC64NVME" else compute(algorithm, body)

    def composite_of(algorithm: str, parts: list[str]) -> Any:
        return None if algorithm == "CRC64NVME" else composite(algorithm, parts)

    def record(bucket: str, key: str, prior: Any, made: dict[str, Any], data: Any) -> Any:
        if not made.get("checksums"):
            made |= {"checksums": {"CRC64NVME": crc64_text(data)}, "checksum_type": "FULL_OBJECT"}
        return record_version(bucket, key, prior, made, data)

    s3._compute_s3_checksum, s3._composite_checksum = checksum_of, composite_of
    s3._record_object_version = record


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
