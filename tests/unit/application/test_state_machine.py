"""The state machines' definitions, held against what Step Functions takes.

The local engine runs what AWS would reject, and cfn-lint looks at no definition in a file. Sources:
https://states-language.net/spec.html, and of what AWS has besides
https://docs.aws.amazon.com/step-functions/latest/dg/concepts-amazon-states-language.html.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gradshard_core import errors
from gradshard_core.rounds import quorum
from gradshard_core.rounds.finalize_round import BRANCHES

ROOT = Path(__file__).parents[3]
DEFINITIONS: dict[str, dict[str, Any]] = {
    path.name.partition(".")[0]: json.loads(path.read_text())
    for path in (
        *(ROOT / "statemachine" / f"{name}.asl.json" for name in ("round", "federation")),
        ROOT / "keeper" / "statemachine" / "keeper.asl.json",
    )
}

ANY = {"Type", "Comment"}
PATHS = {"InputPath", "OutputPath"}
END = {"Next", "End"}
CAUGHT = {"ResultPath", "ResultSelector", "Retry", "Catch"}
FIELDS = {
    "Task": {"Resource", "Parameters", "TimeoutSeconds", "HeartbeatSeconds"} | PATHS | END | CAUGHT,
    "Map": {
        "ItemsPath",
        "ItemReader",
        "ItemSelector",
        "ItemBatcher",
        "ItemProcessor",
        "MaxConcurrency",
        "MaxConcurrencyPath",
        "Label",
    }
    | PATHS
    | END
    | CAUGHT,
    "Pass": {"Result", "Parameters", "ResultPath"} | PATHS | END,
    "Choice": {"Choices", "Default"} | PATHS,
    "Fail": {"Error", "ErrorPath", "Cause", "CausePath"},
    "Succeed": PATHS,
    "Wait": {"SecondsPath"} | PATHS | END,
}
"""What a state of each type may have, with JSONPath."""

NEEDED = {"Task": "Resource", "Map": "ItemProcessor", "Choice": "Choices"}
DISTRIBUTED_ALONE = {"ItemReader", "ItemBatcher", "Label"}
RETRYING = {
    "Comment",
    "ErrorEquals",
    "IntervalSeconds",
    "MaxAttempts",
    "BackoffRate",
    "MaxDelaySeconds",
    "JitterStrategy",
}
CATCHING = {"Comment", "ErrorEquals", "ResultPath", "Next"}

OF_STATES = {f"States.{name}" for name in ("ALL", "Timeout", "DataLimitExceeded")}
OF_LAMBDA = {
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "Runtime.ExitError",
    "Runtime.OutOfMemory",
    "Sandbox.Timedout",
}
"""Names that AWS gives, and that are handled apart."""

OF_STEP_FUNCTIONS = {"StepFunctions.ExecutionAlreadyExistsException"}

Scope = dict[str, Any]
"""A machine, or what a map runs for each item."""


def scopes(machine: Scope) -> Iterator[Scope]:
    yield machine
    for state in machine["States"].values():
        if state["Type"] == "Map":
            yield from scopes(state["ItemProcessor"])


SCOPES = {name: list(scopes(machine)) for name, machine in DEFINITIONS.items()}
STATES = {
    f"{machine}-{name}": state
    for machine, parts in SCOPES.items()
    for scope in parts
    for name, state in scope["States"].items()
}


def mode(state: dict[str, Any]) -> str:
    return str(state["ItemProcessor"]["ProcessorConfig"]["Mode"])


def rules(state: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = state.get(kind, [])
    return found


def test_states_have_names_of_their_own_that_logs_can_have() -> None:
    """https://docs.aws.amazon.com/step-functions/latest/apireference/API_StateExitedEventDetails.html."""
    assert len(STATES) == sum(len(s["States"]) for parts in SCOPES.values() for s in parts)
    assert [name for name in STATES if not re.fullmatch(r"[0-9A-Za-z_-]{1,80}", name)] == []


def test_a_distributed_map_stands_in_no_other_map() -> None:
    """No page of AWS's says that it may; a loop of a choice around it is ordinary."""
    distributed = [name for name, s in STATES.items() if s["Type"] == "Map" and mode(s) != "INLINE"]
    assert distributed == ["round-AggregateLevel"]
    assert "AggregateLevel" in DEFINITIONS["round"]["States"]


@pytest.mark.parametrize("name", STATES)
def test_a_state_has_only_fields_of_its_type(name: str) -> None:
    state = STATES[name]
    kind = state["Type"]
    assert set(state) <= ANY | FIELDS[kind]
    assert NEEDED.get(kind, "Type") in state
    assert ("Next" in state) + ("End" in state) == (kind not in {"Choice", "Fail", "Succeed"})
    assert state.get("End", True) is True


def test_every_transition_leads_to_a_state_beside_and_all_are_reached() -> None:
    for scope in itertools.chain.from_iterable(SCOPES.values()):
        targets = {scope["StartAt"]}
        for state in scope["States"].values():
            targets |= {state[key] for key in ("Next", "Default") if key in state}
            targets |= {rule["Next"] for rule in rules(state, "Catch")}
            targets |= {choice["Next"] for choice in state.get("Choices", [])}
        assert targets == set(scope["States"])


@pytest.mark.parametrize("name", [n for n, state in STATES.items() if state["Type"] == "Map"])
def test_a_map_has_only_fields_of_its_mode(name: str) -> None:
    state = STATES[name]
    config = state["ItemProcessor"]["ProcessorConfig"]
    assert set(state["ItemProcessor"]) == {"ProcessorConfig", "StartAt", "States"}
    assert not {"MaxConcurrency", "MaxConcurrencyPath"} <= set(state)
    if config["Mode"] == "INLINE":
        assert set(config) == {"Mode"}
        assert DISTRIBUTED_ALONE.isdisjoint(state)
        return
    assert config == {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}
    assert len(state["Label"]) <= 40
    assert set(state["ItemReader"]) == {"Resource", "ReaderConfig", "Parameters"}
    assert state["ItemReader"]["ReaderConfig"] == {"InputType": "JSON"}


def test_children_are_express_executions_without_callbacks_and_children() -> None:
    [children] = [
        state["ItemProcessor"]
        for state in STATES.values()
        if state["Type"] == "Map" and mode(state) == "DISTRIBUTED"
    ]
    for scope in scopes(children):
        for state in scope["States"].values():
            assert state["Type"] != "Map" or mode(state) == "INLINE"
            assert ".waitForTaskToken" not in state.get("Resource", "")
            assert ".sync" not in state.get("Resource", "")


@pytest.mark.parametrize("name", STATES)
def test_retries_and_catches_are_such_as_aws_takes(name: str) -> None:
    state = STATES[name]
    for kind, fields in (("Retry", RETRYING), ("Catch", CATCHING)):
        for rule in rules(state, kind):
            assert set(rule) <= fields
            assert rule["ErrorEquals"]
        # A wildcard stands alone, and last. States.TaskFailed is one, for all but States.Timeout:
        # https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html.
        before = [error for rule in rules(state, kind)[:-1] for error in rule["ErrorEquals"]]
        assert {"States.ALL", "States.TaskFailed"}.isdisjoint(before)
        for rule in rules(state, kind)[-1:]:
            assert "States.ALL" not in rule["ErrorEquals"] or len(rule["ErrorEquals"]) == 1
    for rule in rules(state, "Retry"):
        interval = rule.get("IntervalSeconds", 1)
        assert 1 <= interval < rule.get("MaxDelaySeconds", 31_622_400) <= 31_622_400
        assert rule.get("BackoffRate", 2) >= 1
        assert rule.get("JitterStrategy", "NONE") in {"FULL", "NONE"}


def test_errors_are_known_names() -> None:
    ours = {name for module in (errors, quorum) for name in vars(module)}
    ours |= set(BRANCHES.values())
    for state in STATES.values():
        for rule in (*rules(state, "Retry"), *rules(state, "Catch")):
            assert set(rule["ErrorEquals"]) <= OF_STATES | OF_LAMBDA | OF_STEP_FUNCTIONS | ours


def test_a_task_out_of_memory_is_retried_once_for_each_name_of_the_error() -> None:
    killed = {"Lambda.Unknown", "Runtime.ExitError", "Runtime.OutOfMemory"}
    for state in STATES.values():
        if "lambda:invoke" in state.get("Resource", ""):
            [rule] = [rule for rule in state["Retry"] if killed & set(rule["ErrorEquals"])]
            assert killed <= set(rule["ErrorEquals"])
            assert rule["MaxAttempts"] == 1


def test_computed_fields_are_paths_of_the_input_or_the_context() -> None:
    def values(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, inner in value.items():
                yield from values(inner, name)
        elif isinstance(value, list):
            for inner in value:
                yield from values(inner, key)
        else:
            yield key, value

    for key, value in itertools.chain.from_iterable(map(values, DEFINITIONS.values())):
        if key.endswith((".$", "Path")) and value is not None:
            path = value.removeprefix("States.StringToJson(")
            assert path == "$" or path.startswith(("$.", "$$."))
        elif key != "Variable":
            assert not str(value).startswith("$.")
