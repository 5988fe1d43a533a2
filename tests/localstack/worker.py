"""A function's process: ``python -m tests.localstack.worker FOLDER`` handles events, a line each.

It runs the real handler of ``functions/FOLDER``. A test breaks it by a file (:func:`break_next`)
which the next event of the round consumes.
"""

import json
import os
import runpy
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
FAULTS: Final = "SECOND_FAULTS"
"""The variable that names the folder of the faults to come."""
MEMORY_MB, MILLISECONDS = 512, 60_000
OUT_OF_TIME, SLOW = "out of time", "slow"
TIMEOUT_STATUS: Final = 124
"""The exit status that tells the engine that the function's time was out."""
SLOW_SECONDS: Final = 3


def break_next(faults: Path, function: str, round_id: str, *kinds: str) -> None:
    """Break the next events of a round that a function gets, one kind of fault each.

    Kinds: ``die`` (before the handler), ``die after`` (it: the answer is lost), ``out of time``
    (as if it had run until its timeout), ``slow`` (some seconds), or the name of an error, which
    is raised.
    """
    for number, kind in enumerate(kinds):
        (faults / f"{function}:{round_id}:{number}").write_text(kind)


def main(function: str) -> None:
    """Handle events until there are no more."""
    # What functions log is not for whoever asked.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    handler = runpy.run_path(str(ROOT / "functions" / function / "app.py"))["handler"]
    faults = Path(os.environ[FAULTS])
    for line in sys.stdin:
        event = json.loads(line)["event"]
        fault = _take(faults, f"{function}:{round_of(event)}:")
        try:
            outcome = {"answer": _handle(handler, event, fault)}
        except Exception as error:  # noqa: BLE001 - as Lambda does
            outcome = {"errorType": type(error).__name__, "errorMessage": str(error)}
        print(json.dumps(outcome), file=out, flush=True)


def round_of(event: dict[str, Any]) -> str:
    """Return the id of the round that an event is about."""
    if "round" in event:
        return str(event["round"])
    # Not where LocalStack runs, which imports this module too.
    from gradshard_core.formats.s3_notifications import parse_notifications

    found = parse_notifications(event)
    return found[0].key.split("/")[1] if found else ""


def _handle(handler: Any, event: dict[str, Any], fault: str) -> Any:
    if fault == "die":
        os._exit(1)
    if fault == OUT_OF_TIME:
        os._exit(TIMEOUT_STATUS)
    if fault == SLOW:
        time.sleep(SLOW_SECONDS)
    elif fault and fault != "die after":
        raise type(fault, (Exception,), {})("injected")
    answer = handler(event, _context())
    if fault == "die after":
        os._exit(1)
    return answer


def _take(faults: Path, prefix: str) -> str:
    """Use up the first fault that is left; several processes may look at once."""
    for path in sorted(faults.glob(f"{prefix}*")):
        taken = path.with_name(f"taken:{os.getpid()}")
        try:
            path.rename(taken)
        except FileNotFoundError:
            continue
        kind = taken.read_text()
        taken.unlink()
        return kind
    return ""


def _context() -> Any:
    name = os.environ["AWS_LAMBDA_FUNCTION_NAME"]
    return SimpleNamespace(
        function_name=name,
        function_version="$LATEST",
        invoked_function_arn=name,
        aws_request_id="second",
        memory_limit_in_mb=MEMORY_MB,
        get_remaining_time_in_millis=lambda: MILLISECONDS,
    )


if __name__ == "__main__":
    main(sys.argv[1])
