"""Permissions that only large rounds use, which tests of the deployed application cannot show."""

import re
from pathlib import Path

import pytest

TEMPLATE = (Path(__file__).parents[3] / "template.yaml").read_text()


def granted(function: str) -> dict[str, set[str]]:
    """Return the actions that a function's role allows, by pattern of objects."""
    [text] = re.findall(rf"\n  {function}Role:\n(.*?)(?=\n  \w+:\n)", TEMPLATE, re.DOTALL)
    found: dict[str, set[str]] = {}
    for statement in text.split("- Sid: ")[1:]:
        actions = set(re.findall(r"s3:\w+", statement.partition("Resource:")[0]))
        for pattern in re.findall(r"\$\{Bucket\.Arn\}/(\S+)", statement):
            found.setdefault(pattern, set()).update(actions)
    return found


FUNCTIONS = re.findall(r"\n  (\w+Function):\n", TEMPLATE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_who_may_read_and_write_records_may_do_so_with_their_pieces(function: str) -> None:
    allowed = granted(function)
    records = allowed.get("rounds/*/plan.json", set()) | (
        # finalize_round and abort_round write the manifest with its lists.
        allowed.get("rounds/*/manifest.json", set()) & {"s3:PutObject"}
    )
    records |= allowed.get("rounds/*/assignments.json", set())
    reads_nothing_long = function in {"PauseTrainingFunction", "StartTrainingFunction"}
    pieces = allowed.get("rounds/*/pieces/*", set())
    assert records <= pieces or reads_nothing_long, function
    # With least privilege: nobody else.
    assert records or not pieces, function


def test_arrivals_are_marked_by_those_that_look_for_them() -> None:
    marking = {f for f in FUNCTIONS if "rounds/*/arrived/*" in granted(f)}
    assert marking == {"OpenRoundFunction", "CollectUpdateFunction"}
    for function in marking:
        assert granted(function)["rounds/*/arrived/*"] == {"s3:GetObject", "s3:PutObject"}


def test_functions_that_check_who_is_expected_may_read_the_ids() -> None:
    """The others read terms without asking that; only who has a round opened writes ids."""
    found = {f: granted(f).get("rounds/*/clients/*") for f in FUNCTIONS}
    assert {f: actions for f, actions in found.items() if actions} == {
        "OpenRoundFunction": {"s3:GetObject"},
        "CollectUpdateFunction": {"s3:GetObject"},
        "PlanRoundFunction": {"s3:GetObject"},
        "AdvanceTrainingFunction": {"s3:PutObject"},
    }


def test_those_that_ask_whom_a_training_invites_read_the_pieces() -> None:
    """Clients, too; the other functions read a state without asking that."""
    found = {f: granted(f).get("trainings/*/pieces/*") for f in FUNCTIONS}
    assert {f: actions for f, actions in found.items() if actions} == {
        "OpenRoundFunction": {"s3:GetObject"},  # of a round in a tree of noise
        "AdvanceTrainingFunction": {"s3:GetObject", "s3:PutObject"},
        "WriteNoticesFunction": {"s3:GetObject"},
    }
    policy = (Path(__file__).parents[3] / "docs" / "client-policy.json").read_text()
    assert "trainings/TRAINING/pieces/*" in policy


def test_metrics_that_tasks_read_are_for_the_training_alone() -> None:
    found = {f: granted(f).get("rounds/*/metrics/*") for f in FUNCTIONS}
    assert {f: actions for f, actions in found.items() if actions} == {
        "AggregateShardFunction": {"s3:PutObject"},
        "AdvanceTrainingFunction": {"s3:GetObject"},
    }


def test_planning_lists_versions_and_reads_what_tasks_have_read() -> None:
    assert "s3:GetObject" in granted("PlanRoundFunction")["rounds/*/task-reports/*"]
    [text] = re.findall(r"\n  PlanRoundFunctionRole:\n(.*?)(?=\n  \w+:\n)", TEMPLATE, re.DOTALL)
    assert "s3:ListBucketVersions" in text
