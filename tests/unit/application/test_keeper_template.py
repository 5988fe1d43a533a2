"""The keeper's template: what its roles may do, here and in the aggregator's bucket."""

import json
from typing import Any

import pytest

pytest.importorskip("samcli", reason="sam is not installed: `make setup`")

from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]

from gradshard_core.limits.aws_limits import MAX_EVENTS
from gradshard_core.mask_keeper.tasks import MOST_TASKS
from tests.unit.application.test_template import ROOT, Grant, as_list, shown, unknown_to_aws

HERE = "${Bucket.Arn}"
THERE = "arn:${AWS::Partition}:s3:::${AggregatorBucket}/"
FUNCTIONS = {
    "CheckRequest": "check_request",
    "SumMasks": "sum_masks",
    "GiveAnswer": "give_answer",
}


def transformed() -> dict[str, Any]:
    template = yaml_parse((ROOT / "keeper" / "template.yaml").read_text())
    for resource in template["Resources"].values():
        for local in ("CodeUri", "ContentUri", "DefinitionUri"):
            if local in resource.get("Properties", {}):
                resource["Properties"][local] = "s3://bucket/key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found: dict[str, Any] = Translator({}, Parser()).translate(template, {})
    return found


RESOURCES: dict[str, dict[str, Any]] = transformed()["Resources"]


def grants(name: str = "") -> list[Grant]:
    return [
        Grant(role, action, shown(resource))
        for role, found in RESOURCES.items()
        if found["Type"] == "AWS::IAM::Role" and role.startswith(name)
        for policy in found["Properties"].get("Policies", [])
        for statement in as_list(policy["PolicyDocument"]["Statement"])
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]


def test_the_keeper_reads_nothing_of_the_aggregator() -> None:
    there = [grant for grant in grants() if not grant.resource.startswith(HERE)]
    of_s3 = [grant for grant in there if grant.action.startswith("s3:")]
    assert {grant.action for grant in of_s3} == {
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    }
    answers = {f"{THERE}rounds/*/keeper/*", f"{THERE}rounds/*/keeper/masks"}
    assert {grant.resource for grant in of_s3} == answers


def test_the_aggregator_writes_requests_and_nothing_else() -> None:
    statements = RESOURCES["BucketPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    [allowed] = [s for s in statements if s["Effect"] == "Allow"]
    assert (allowed["Action"], shown(allowed["Resource"])) == (
        "s3:PutObject",
        f"{HERE}/requests/*",
    )


def test_the_private_key_is_read_by_those_that_open_seeds_and_written_by_nobody() -> None:
    of_key = {(g.role, g.action) for g in grants() if g.resource == f"{HERE}/private-key"}
    assert of_key == {
        ("CheckRequestFunctionRole", "s3:GetObject"),
        ("SumMasksFunctionRole", "s3:GetObject"),
    }


def test_nobody_deletes_or_replaces_what_must_be_kept() -> None:
    """Records are written on the condition that there is none: the code's part."""
    kept = [f"{HERE}/{folder}/*" for folder in ("answers", "seeds", "given", "refusals")]
    deleting = [g for g in grants() if g.action.startswith("s3:Delete") and g.resource in kept]
    assert deleting == []
    writing = {g.role for g in grants() if g.action == "s3:PutObject" and g.resource in kept[:2]}
    assert writing == {"CheckRequestFunctionRole"}
    enrolling = [g for g in grants() if g.resource == f"{HERE}/clients/*"]
    assert {g.action for g in enrolling} == {"s3:GetObject"}


def test_every_action_is_one_of_aws_on_a_resource_that_it_takes() -> None:
    longest = "arn:${AWS::Partition}:s3:::"
    s3 = [
        g._replace(resource=g.resource.replace("${AggregatorBucket}", "b" * 63))
        for g in grants()
        if g.action.startswith("s3:")
    ]
    assert s3
    assert unknown_to_aws(s3) == []
    assert longest in THERE


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function_has_its_role_log_group_and_both_layers(name: str) -> None:
    function = RESOURCES[f"{name}Function"]["Properties"]
    assert shown(function["Role"]) == f"${{{name}FunctionRole.Arn}}"
    assert len(function["Layers"]) == 2
    kebab = FUNCTIONS[name].replace("_", "-")
    group = RESOURCES[f"{name}LogGroup"]["Properties"]["LogGroupName"]
    assert shown(group) == f"/aws/lambda/${{AWS::StackName}}-{kebab}"
    assert (ROOT / "keeper" / "functions" / FUNCTIONS[name] / "app.py").is_file()
    logs = [g for g in grants(f"{name}FunctionRole") if g.action.startswith("logs:")]
    assert {g.resource for g in logs} == {f"${{{name}LogGroup.Arn}}"}


def test_the_bucket_is_private_and_keeps_no_versions() -> None:
    """Sealed seeds are deleted with the answer; a version of them would stay."""
    bucket = RESOURCES["Bucket"]
    assert "VersioningConfiguration" not in bucket["Properties"]
    assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
    assert bucket["UpdateReplacePolicy"] == "Retain"
    assert bucket["DeletionPolicy"] == "RetainExceptOnCreate"


def test_the_longest_history_is_below_step_functions_quota() -> None:
    """However often every task is tried: a new account runs ten functions at once, and not 40."""
    definition = ROOT / "keeper" / "statemachine" / "keeper.asl.json"
    states = json.loads(definition.read_text())["States"]
    task = states["SumMasks"]["ItemProcessor"]["States"]["SumMask"]

    def events(state: dict[str, Any]) -> int:
        # Entered and left; scheduled, started, and failed or succeeded, at each try.
        tries: int = 1 + sum(retrier["MaxAttempts"] for retrier in state["Retry"])
        return 2 + 3 * tries

    tasks = MOST_TASKS * (2 + events(task))  # an iteration begins and ends
    around = 2 + events(states["CheckRequest"]) + 4 + events(states["GiveAnswer"])
    assert 0.8 * MAX_EVENTS < tasks + around < MAX_EVENTS
