"""Executions as the user reads of them."""

import json

from gradshard.client.executions import Execution


def test_the_reason_of_a_failed_execution_is_what_the_function_said() -> None:
    cause = json.dumps({"errorType": "ModelNotFoundError", "errorMessage": "there is no model"})
    assert Execution("FAILED", {}, "ModelNotFoundError", cause).reason == "there is no model"
    assert Execution("FAILED", {}, "E", "by hand").reason == "by hand"
    assert Execution("TIMED_OUT", {}, "", "").reason == "the execution ended as TIMED_OUT"
