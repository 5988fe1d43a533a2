"""The definition of the round's state machine, executed with stand-ins for its functions."""

import io
import itertools
import json
import re
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]

from gradshard_core.s3.store import S3Store

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "statemachine" / "round.asl.json").read_text()
DEFINITION: dict[str, Any] = json.loads(TEXT)
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
ROLE = "arn:aws:iam::000000000000:role/stub"
TRUST = {
    "Version": "2012-10-17",
    "Statement": [
        {
            "Effect": "Allow",
            "Principal": {"Service": ["lambda.amazonaws.com", "states.amazonaws.com"]},
            "Action": "sts:AssumeRole",
        }
    ],
}
ANSWERING = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Action": "states:SendTask*", "Resource": "*"}],
}
SECOND = timedelta(seconds=1)
SECONDS = 60

# What a stand-in does when it is called for the n-th time in a scenario: `[what, ...]`, the last
# entry from then on.
STUB = """
import json, os, pathlib

def handler(event, context):
    role, scenario = os.environ["ROLE"], event["round"]
    answers = json.loads(os.environ["ANSWERS"])[scenario]
    calls = pathlib.Path(os.environ["CALLS"], scenario)
    with calls.open("a") as file:
        file.write(json.dumps([role, event]) + "\\n")
    earlier = sum(json.loads(line)[0] == role for line in calls.read_text().splitlines()) - 1
    what, *value = answers[min(earlier, len(answers) - 1)]
    if what == "raise":
        raise type(value[0], (Exception,), {})(value[1])
    if what == "resume" or what == "give up":
        import boto3
        states = boto3.client("stepfunctions")
        if what == "resume":
            states.send_task_success(taskToken=event["token"], output=json.dumps(value[0]))
        else:
            states.send_task_failure(taskToken=event["token"], error=value[0], cause=value[1])
    if what == "tasks":
        following = {}
        for level in reversed(range(value[0] if value else 1)):
            tasks = {"bucket": "integration", "key": f"machine/{scenario}-{level}.json"}
            following = {"tasks": tasks, "concurrency": 2, "next": following}
        return {"attempt": event["attempt"], **following}
    return value[0] if value else None
"""
Answer = list[Any]

SHARDS = 3
KEPT = {"status": "failed", "error": "KeptError", "cause": "the cause that is kept"}

STRAIGHT: dict[str, list[Answer]] = {
    "OpenRound": [["resume", {"reason": "complete"}]],
    "PlanRound": [["tasks"]],
    "AggregateShard": [["return", {"peak_mb": 70}]],
    "FinalizeRound": [["resume", {"status": "completed"}]],
    "AbortRound": [["return", KEPT]],
}
SCENARIOS: dict[str, dict[str, list[Answer]]] = {
    "straight": {},
    "replanned": {
        "FinalizeRound": [
            ["give up", "Replan", '{"reason": "replan", "attempt": 1, "rejected": 2}'],
            ["resume", {"status": "completed"}],
        ]
    },
    "levels": {
        "PlanRound": [["tasks", 3]],
        "FinalizeRound": [
            *[["give up", "NextLevel", '{"status": "next_level"}']] * 2,
            ["resume", {"status": "completed"}],
        ],
    },
    "eager": {
        "OpenRound": [
            ["resume", {"reason": "complete"}],
            ["resume", {"reason": "deadline"}],
        ],
        "FinalizeRound": [
            ["give up", "Awaiting", '{"status": "awaiting"}'],
            ["resume", {"status": "completed"}],
        ],
    },
    "level-raises": {
        "PlanRound": [["tasks", 2]],
        "FinalizeRound": [["give up", "NextLevel", '{"status": "next_level"}']],
        "AggregateShard": [
            *[["return"]] * SHARDS,
            ["raise", "ChangedObjectError", "a partial sum is gone"],
        ],
    },
    "plan-rejected": {"PlanRound": [["raise", "QuorumError", "1 of 2"]]},
    "plan-raises": {"PlanRound": [["raise", "PlanError", "spec.json is missing"]]},
    "plan-stumbles": {"PlanRound": [["raise", "OSError", "a hiccup"], ["tasks"]]},
    "task-raises": {"AggregateShard": [["raise", "ChangedObjectError", "b is gone"]]},
    "finalize-raises": {"FinalizeRound": [["raise", "StoreError", "2 parts, not 3"]]},
    "answer-lost": {
        "FinalizeRound": [["raise", "OSError", "reset"]],
        "AbortRound": [["return", {"status": "completed"}]],
    },
    "terms-rejected": {"OpenRound": [["give up", "SpecError", "clients is missing"]]},
    "open-raises": {"OpenRound": [["raise", "StoreError", "AccessDenied"]]},
    "forgotten": {"OpenRound": [["return"]]},
}
AWAITING = "awaiting"
"""A round that waits until the test resumes it."""
FAILED = ("FAILED", KEPT["error"], KEPT["cause"])
SUCCEEDED = ("SUCCEEDED", "", "")


@dataclass(frozen=True)
class Run:
    """How a scenario went."""

    execution: dict[str, Any]
    states: list[str]
    children: list[dict[str, Any]]
    calls: list[tuple[str, dict[str, Any]]]

    @property
    def outcome(self) -> tuple[str, str, str]:
        return outcome_of(self.execution)

    def events(self, function: str) -> list[dict[str, Any]]:
        return [event for name, event in self.calls if name == function]


def outcome_of(execution: dict[str, Any]) -> tuple[str, str, str]:
    return execution["status"], execution.get("error", ""), execution.get("cause", "")


def tasks_of(scenario: str, level: int = 0) -> list[dict[str, Any]]:
    return [
        {"round": scenario, "attempt": 0, "task": {"level": level, "number": number}}
        for number in range(SHARDS)
    ]


def batches_of(scenario: str, level: int) -> list[dict[str, Any]]:
    """A level's tasks in a batch of two and one of the rest."""
    tasks = tasks_of(scenario, level)
    return [{"tasks": tasks[:2]}, {"tasks": tasks[2:]}]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-ins note how they were called."""
    return tmp_path_factory.mktemp("calls")


@pytest.fixture(scope="module")
def functions(store: S3Store, calls: Path) -> dict[str, str]:
    """The stand-ins, by the names the definition has for them."""
    create_role()
    for scenario in (*SCENARIOS, AWAITING):
        for level in range(3):
            store.put_json(f"machine/{scenario}-{level}.json", batches_of(scenario, level))
        (calls / scenario).touch()
    return {f"{role}Function": create_function(role, calls) for role in STRAIGHT}


@pytest.fixture(scope="module")
def machine(functions: dict[str, str]) -> str:
    """The machine of the definition."""
    return create_machine("machine", functions)


@pytest.fixture(scope="module")
def runs(functions: dict[str, str], machine: str, calls: Path) -> dict[str, Run]:
    """Every scenario, some at a time."""
    impatient = create_machine("impatient", functions, opening_seconds=1)

    def run(scenario: str) -> Run:
        return execute(impatient if scenario == "forgotten" else machine, scenario, calls)

    with ThreadPoolExecutor(4) as pool:
        return dict(zip(SCENARIOS, pool.map(run, SCENARIOS), strict=True))


def create_role() -> None:
    """Let the stand-ins answer; the engine holds them to it."""
    iam = boto3.client("iam")
    iam.create_role(RoleName="stub", AssumeRolePolicyDocument=json.dumps(TRUST))
    iam.put_role_policy(RoleName="stub", PolicyName="answer", PolicyDocument=json.dumps(ANSWERING))


def create_function(role: str, calls: Path) -> str:
    """Create a stand-in; return its ARN."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("app.py", STUB)
    scenarios = SCENARIOS | {AWAITING: {"OpenRound": [["return"]]}}
    answers = {name: (STRAIGHT | scenario)[role] for name, scenario in scenarios.items()}
    arn: str = boto3.client("lambda").create_function(
        FunctionName=f"stub-{role}",
        Runtime="python3.13",
        Role=ROLE,
        Handler="app.handler",
        Timeout=30,
        Code={"ZipFile": package.getvalue()},
        Environment={
            "Variables": {"ROLE": role, "ANSWERS": json.dumps(answers), "CALLS": str(calls)}
        },
    )["FunctionArn"]
    return arn


def create_machine(name: str, functions: dict[str, str], opening_seconds: int | None = None) -> str:
    """Create a state machine of the definition, less patient; return its ARN."""
    provided = {"Partition": "aws", **functions}
    definition = json.loads(PLACEHOLDER.sub(lambda match: provided[match[1]], TEXT))
    for state in states_of(definition):
        for retry in state.get("Retry", []):
            if retry["MaxAttempts"] > 0:
                retry |= {"MaxAttempts": 1, "IntervalSeconds": 1, "BackoffRate": 1}
    if opening_seconds:
        definition["States"]["OpenRound"]["TimeoutSeconds"] = opening_seconds
    return boto3.client("stepfunctions").create_state_machine(
        name=name, definition=json.dumps(definition), roleArn=ROLE
    )["stateMachineArn"]


def start(machine: str, scenario: str) -> str:
    """Start a scenario; return its execution's ARN."""
    return boto3.client("stepfunctions").start_execution(
        stateMachineArn=machine, name=scenario, input='{"clients": 2}'
    )["executionArn"]


def execute(machine: str, scenario: str, calls: Path) -> Run:
    """Run a scenario to its end."""
    states = boto3.client("stepfunctions")
    arn = start(machine, scenario)
    give_up = time.monotonic() + SECONDS
    while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        assert time.monotonic() < give_up, f"{scenario} has not ended"
        time.sleep(0.1)
    history = states.get_execution_history(executionArn=arn, maxResults=1000)["events"]
    children = [
        child["executionArn"]
        for map_run in states.list_map_runs(executionArn=arn)["mapRuns"]
        for child in states.list_executions(mapRunArn=map_run["mapRunArn"])["executions"]
    ]
    return Run(
        dict(execution),
        [e["stateEnteredEventDetails"]["name"] for e in history if "stateEnteredEventDetails" in e],
        [dict(states.describe_execution(executionArn=child)) for child in children],
        [tuple(json.loads(line)) for line in (calls / scenario).read_text().splitlines()],
    )


def named_states_of(machine: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Walk a definition's states, those of its maps too."""
    for name, state in machine["States"].items():
        yield name, state
        if "ItemProcessor" in state:
            yield from named_states_of(state["ItemProcessor"])


def states_of(machine: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return (state for _, state in named_states_of(machine))


def strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for entry in itertools.chain(value, value.values()):
            yield from strings_of(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from strings_of(entry)


# ------------------------------------------------------------------------------- the definition


def test_substitutions_stand_in_strings_and_the_template_provides_them() -> None:
    in_strings = [name for text in strings_of(DEFINITION) for name in PLACEHOLDER.findall(text)]
    assert len(in_strings) == TEXT.count("${")
    template = yaml_parse((ROOT / "template.yaml").read_text())
    machine = template["Resources"]["RoundStateMachine"]["Properties"]
    assert set(machine["DefinitionSubstitutions"]) == set(in_strings)


def test_every_task_retries_and_its_last_error_is_caught() -> None:
    tasks = [state for state in states_of(DEFINITION) if state["Type"] == "Task"]
    assert len(tasks) == 6
    for task in tasks:
        assert [retry["ErrorEquals"] for retry in task["Retry"]][-1] == ["States.ALL"]
        aborting = "AbortRound" in json.dumps(task["Parameters"])
        assert aborting or task["Catch"][-1]["ErrorEquals"] == ["States.ALL"]


def test_every_state_is_reached(runs: dict[str, Run]) -> None:
    reached = {state for run in runs.values() for state in run.states}
    assert reached == set(DEFINITION["States"])


def test_every_state_within_the_map_is_reached(runs: dict[str, Run]) -> None:
    # Express executions keep no history: look at what their states leave behind.
    run = runs["task-raises"]
    assert [
        name for name, _ in named_states_of(DEFINITION) if name not in DEFINITION["States"]
    ] == [
        "AggregateBatch",
        "AggregateShard",
        "GiveUp",
        "TaskFailed",
    ]
    assert len(run.events("AggregateShard")) == SHARDS
    assert [event for event in run.events("AbortRound") if "task" in event]
    assert [outcome_of(child) for child in run.children] == [FAILED] * 2


# ------------------------------------------------------------------------------- its executions


def test_the_straight_path(runs: dict[str, Run]) -> None:
    run = runs["straight"]
    assert run.outcome == SUCCEEDED
    [opened] = run.events("OpenRound")
    assert (opened["round"], opened["spec"]) == ("straight", {"clients": 2})
    assert abs(datetime.fromisoformat(opened["started"]) - run.execution["startDate"]) < SECOND
    [planned] = run.events("PlanRound")
    assert datetime.fromisoformat(planned.pop("entered_at")) >= run.execution["startDate"]
    assert planned == {"round": "straight", "reason": "complete", "attempt": 0, "retries": 0}
    tasks = sorted(run.events("AggregateShard"), key=lambda event: event["task"]["number"])
    assert tasks == tasks_of("straight")
    assert len(run.children) == 2
    [finalized] = run.events("FinalizeRound")
    assert finalized.pop("token") not in {"", opened["token"]}
    assert finalized == {"round": "straight", "next_level": {}}
    assert json.loads(run.execution["output"]) == {"status": "completed"}
    assert run.events("AbortRound") == []


def test_no_function_runs_from_the_opening_until_the_round_is_resumed(
    machine: str, calls: Path
) -> None:
    states = boto3.client("stepfunctions")
    arn = start(machine, AWAITING)

    def called() -> list[Any]:
        return [json.loads(line) for line in (calls / AWAITING).read_text().splitlines()]

    give_up = time.monotonic() + SECONDS
    while not called():
        assert time.monotonic() < give_up
        time.sleep(0.1)
    # A while in which whatever polled would have been called.
    time.sleep(3)
    [[function, event]] = called()
    assert function == "OpenRound"
    assert states.describe_execution(executionArn=arn)["status"] == "RUNNING"
    states.send_task_success(taskToken=event["token"], output=json.dumps({"reason": "complete"}))
    while states.describe_execution(executionArn=arn)["status"] == "RUNNING":
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert [function for function, _ in called()] == [
        "OpenRound",
        "PlanRound",
        *["AggregateShard"] * SHARDS,
        "FinalizeRound",
    ]


def test_a_second_plan_knows_that_it_is_the_second(runs: dict[str, Run]) -> None:
    run = runs["replanned"]
    assert run.outcome == SUCCEEDED
    first, second = run.events("PlanRound")
    assert (first["reason"], first["attempt"]) == ("complete", 0)
    assert (second["reason"], second["attempt"]) == ("replan", 1)
    # Who was rejected is in S3: a state could not carry thousands.
    assert first.keys() == second.keys() == {"round", "entered_at", "reason", "attempt", "retries"}
    assert first["entered_at"] < second["entered_at"]
    assert len(run.events("AggregateShard")) == 2 * SHARDS
    assert len(run.events("FinalizeRound")) == 2


def test_a_level_begins_when_the_one_before_it_is_done(runs: dict[str, Run]) -> None:
    run = runs["levels"]
    assert run.outcome == SUCCEEDED
    levels = [event["task"]["level"] for event in run.events("AggregateShard")]
    assert levels == [0] * SHARDS + [1] * SHARDS + [2] * SHARDS
    # After each level the function learns which tasks are left.
    told = [event["next_level"].get("tasks") for event in run.events("FinalizeRound")]
    assert [tasks and tasks["key"] for tasks in told] == [
        "machine/levels-1.json",
        "machine/levels-2.json",
        None,
    ]


def test_an_eager_round_waits_and_plans_again(runs: dict[str, Run]) -> None:
    run = runs["eager"]
    assert run.outcome == SUCCEEDED
    first, second = run.events("OpenRound")
    assert first["token"] != second["token"]
    assert (first["spec"], first["started"]) == (second["spec"], second["started"])
    plannings = [(event["reason"], event["attempt"]) for event in run.events("PlanRound")]
    assert plannings == [("complete", 0), ("deadline", 0)]
    assert len(run.events("AggregateShard")) == 2 * SHARDS


def test_a_failed_level_begins_no_further_one(runs: dict[str, Run]) -> None:
    run = runs["level-raises"]
    assert run.outcome == FAILED
    *by_tasks, _ = run.events("AbortRound")
    assert {event["task"]["level"] for event in by_tasks} == {1}
    assert len(run.events("FinalizeRound")) == 1


@pytest.mark.parametrize(
    ("scenario", "function", "error", "message", "tries"),
    [
        ("plan-rejected", "PlanRound", "QuorumError", "1 of 2", 1),
        ("plan-raises", "PlanRound", "PlanError", "spec.json is missing", 1),
        ("finalize-raises", "FinalizeRound", "StoreError", "2 parts, not 3", 2),
        ("open-raises", "OpenRound", "StoreError", "AccessDenied", 2),
    ],
)
def test_a_function_that_raises_aborts_the_round(
    runs: dict[str, Run], scenario: str, function: str, error: str, message: str, tries: int
) -> None:
    run = runs[scenario]
    assert run.outcome == FAILED
    [aborted] = run.events("AbortRound")
    assert (aborted["round"], aborted["error"]) == (scenario, error)
    assert json.loads(aborted["cause"])["errorMessage"] == message
    # The same input would fail again with our own errors; a store's failure may pass.
    assert len(run.events(function)) == tries


def test_a_hiccup_is_tried_again(runs: dict[str, Run]) -> None:
    run = runs["plan-stumbles"]
    assert run.outcome == SUCCEEDED
    first, second = run.events("PlanRound")
    assert (first.pop("retries"), second.pop("retries")) == (0, 1)
    assert first == second
    assert run.events("AbortRound") == []


def test_a_failed_task_aborts_the_round_with_its_own_cause(runs: dict[str, Run]) -> None:
    run = runs["task-raises"]
    assert run.outcome == FAILED
    *by_tasks, by_machine = run.events("AbortRound")
    for event in by_tasks:
        assert (event["round"], event["error"]) == ("task-raises", "ChangedObjectError")
        assert json.loads(event["cause"])["errorMessage"] == "b is gone"
    tried = [event["task"]["number"] for event in run.events("AggregateShard")]
    assert sorted(event["task"]["number"] for event in by_tasks) == sorted(tried) == [0, 1, 2]
    # The machine itself learns no more than that a child failed.
    assert set(by_machine) == {"round", "error", "cause"}
    assert by_machine["error"] == "States.ExceedToleratedFailureThreshold"
    assert run.events("FinalizeRound") == []


def test_a_late_failure_does_not_undo_a_finished_round(runs: dict[str, Run]) -> None:
    run = runs["answer-lost"]
    assert run.outcome == SUCCEEDED
    assert len(run.events("AbortRound")) == 1


def test_terms_that_open_round_gives_up_abort_the_round(runs: dict[str, Run]) -> None:
    run = runs["terms-rejected"]
    assert run.outcome == FAILED
    assert len(run.events("OpenRound")) == 1
    event = {"round": "terms-rejected", "error": "SpecError", "cause": "clients is missing"}
    assert run.events("AbortRound") == [event]


def test_a_round_that_is_never_resumed_ends(runs: dict[str, Run]) -> None:
    run = runs["forgotten"]
    assert run.outcome == FAILED
    assert len(run.events("OpenRound")) == 1
    [aborted] = run.events("AbortRound")
    assert aborted["error"] == "States.Timeout"
    assert aborted["cause"].startswith("Neither the last update nor the deadline")
