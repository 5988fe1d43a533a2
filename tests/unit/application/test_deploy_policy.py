"""docs/deploy-policy.json, held to what CloudFormation asks for each resource of the template.

``tests/aws_handlers.json`` is what the handlers of each type say that they may call, from their
schemas in CloudFormation's registry (`aws cloudformation describe-type`, 2026-08).
"""

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import Any

import pytest

pytest.importorskip("samcli", reason="sam is not installed: `make setup`")

from tests.unit.application.test_template import RESOURCES, ROOT, SERVICES, as_list, matches

TEXT = (ROOT / "docs" / "deploy-policy.json").read_text()
HANDLERS: dict[str, list[str]] = json.loads((ROOT / "tests" / "aws_handlers.json").read_text())
FILLED_IN = {"REGION": "ap-southeast-2", "ACCOUNT": "1" * 12, "STACK": "gradshard"}

UNUSED = {
    "kms:*": "no key for code, logs or the machine",
    "ec2:*": "no function in a network",
    "elasticfilesystem:*": "no file system",
    "s3files:*": "no file system",
    "s3tables:*": "no table of the bucket's metadata",
    "firehose:*": "no stream of logs",
    "s3:*Metadata*": "no table of the bucket's metadata",
    "s3:*Accelerate*": "a feature that the bucket has not",
    "s3:*Analytics*": "a feature that the bucket has not",
    "s3:*C[Oo][Rr][Ss]": "a feature that the bucket has not",
    "s3:*Logging": "a feature that the bucket has not",
    "s3:*ObjectLock*": "a feature that the bucket has not",
    "s3:*Replication*": "a feature that the bucket has not",
    "s3:*Website": "a feature that the bucket has not",
    "s3:*Tiering*": "a feature that the bucket has not",
    "s3:*Inventory*": "a feature that the bucket has not",
    "s3:*Metrics*": "a feature that the bucket has not",
    "s3:*Acl": "ownership is enforced",
    "s3:*Abac": "a feature that the bucket has not",
    "s3:DeleteBucketEncryption": "the template always has it",
    "s3:DeleteBucketLifecycle": "the template always has it",
    "s3:DeleteBucketTagging": "SAM's tags are always there",
    "s3:REST*": "the name of a request, not of an action",
    "lambda:*CodeSigning*": "code is not signed",
    "lambda:*Concurrency": "nothing is reserved",
    "lambda:*Capacity*": "no capacity of one's own",
    "lambda:*Scaling*": "no capacity of one's own",
    "lambda:PutFunctionRecursionConfig": "the default",
    "lambda:PutRuntimeManagementConfig": "the default",
    "lambda:PublishVersion": "no versions of functions",
    "logs:*DataProtectionPolicy": "a feature that the groups have not",
    "logs:*IndexPolicy": "a feature that the groups have not",
    "logs:*BearerToken*": "a feature that the groups have not",
    "logs:*KmsKey": "no key",
    "logs:*DeletionProtection": "a feature that the groups have not",
    "logs:PutResourcePolicy": "the group has none",
    "logs:DeleteResourcePolicy": "the group has none",
    "logs:CreateLogDelivery": "the machine's role does that",
    "sns:PutDataProtectionPolicy": "the topic has none",
    "iam:*GroupPolicy": "policies of roles only",
    "iam:*UserPolicy": "policies of roles only",
    "iam:ListRoleTags": "tags are not read",
}
"""What a handler asks for what the template does not use, and why it does not."""

READ = {"lambda:GetFunctionCodeSigningConfig", "logs:GetDataProtectionPolicy"}
"""What is read though it is not used."""

PASSING_NONE = {"AWS::S3::Bucket", "AWS::SNS::Topic"}
"""Types whose handlers may pass a role, to which the template gives none."""

OBJECTS = {"s3:GetObject", "s3:GetObjectVersion", "s3:PutObject", "s3:DeleteObject"}

NEWER = {
    ("s3:TagResource", "bucket"): "buckets have tags of their own since 2025",
    ("s3:UntagResource", "bucket"): "the same",
    ("s3:ListTagsForResource", "bucket"): "the same",
}
"""What cfn-lint's copy of AWS's list does not have yet."""

IN = "ap-southeast-2:111111111111"
ARNS = {
    "AWS::CloudWatch::Alarm": [f"arn:aws:cloudwatch:{IN}:alarm:gradshard-round-failed"],
    "AWS::CloudWatch::Dashboard": [
        "arn:aws:cloudwatch::111111111111:dashboard/gradshard-ap-southeast-2"
    ],
    "AWS::IAM::Policy": ["arn:aws:iam::111111111111:role/gradshard-PlanRoundFunctionRole-1AB"],
    "AWS::IAM::Role": ["arn:aws:iam::111111111111:role/gradshard-PlanRoundFunctionRole-1AB"],
    "AWS::Lambda::EventInvokeConfig": [f"arn:aws:lambda:{IN}:function:gradshard-Collect-1AB"],
    "AWS::Lambda::Function": [
        f"arn:aws:lambda:{IN}:function:gradshard-PlanRoundFunction-1AB",
        f"arn:aws:lambda:{IN}:layer:GradshardLayer:3",
        "arn:aws:iam::111111111111:role/gradshard-PlanRoundFunctionRole-1AB",
        "arn:aws:s3:::aws-sam-cli-managed-default-samclisourcebucket-1ab/gradshard/abc",
    ],
    "AWS::Lambda::LayerVersion": [
        f"arn:aws:lambda:{IN}:layer:GradshardLayer",
        f"arn:aws:lambda:{IN}:layer:GradshardLayer:3",
        "arn:aws:s3:::aws-sam-cli-managed-default-samclisourcebucket-1ab/gradshard/abc",
    ],
    "AWS::Lambda::Permission": [f"arn:aws:lambda:{IN}:function:gradshard-Collect-1AB"],
    "AWS::Logs::LogGroup": [
        f"arn:aws:logs:{IN}:log-group:/aws/lambda/gradshard-plan-round",
        f"arn:aws:logs:{IN}:log-group:/aws/vendedlogs/states/gradshard-round",
    ],
    "AWS::S3::Bucket": ["arn:aws:s3:::gradshard-bucket-1ab"],
    "AWS::S3::BucketPolicy": ["arn:aws:s3:::gradshard-bucket-1ab"],
    "AWS::SNS::Subscription": [f"arn:aws:sns:{IN}:gradshard-UpdateTopic-1AB"],
    "AWS::SNS::TopicPolicy": [f"arn:aws:sns:{IN}:gradshard-UpdateTopic-1AB"],
    "AWS::SNS::Topic": [f"arn:aws:sns:{IN}:gradshard-AlarmTopic-1AB"],
    "AWS::SQS::Queue": [f"arn:aws:sqs:{IN}:gradshard-UndeliveredEvents-1AB"],
    "AWS::SQS::QueuePolicy": [f"arn:aws:sqs:{IN}:gradshard-UndeliveredEvents-1AB"],
    "AWS::Scheduler::ScheduleGroup": [
        f"arn:aws:scheduler:{IN}:schedule-group/gradshard-deadlines",
        f"arn:aws:scheduler:{IN}:schedule/gradshard-deadlines/r1",
    ],
    "AWS::StepFunctions::StateMachine": [
        f"arn:aws:states:{IN}:stateMachine:gradshard-round",
        "arn:aws:iam::111111111111:role/gradshard-RoundStateMachineRole-1AB",
        "arn:aws:s3:::aws-sam-cli-managed-default-samclisourcebucket-1ab/gradshard/abc",
    ],
}
"""What each type's handlers act on, in a stack `gradshard`."""


def filled_in() -> list[dict[str, Any]]:
    text = TEXT
    for placeholder, value in FILLED_IN.items():
        text = text.replace(placeholder, value)
    found: list[dict[str, Any]] = json.loads(text)["Statement"]
    return found


STATEMENTS = filled_in()


def granted(action: str, arn: str) -> bool:
    return any(
        action in as_list(statement["Action"])
        and any(fnmatchcase(arn, pattern) for pattern in as_list(statement["Resource"]))
        for statement in STATEMENTS
    )


def needed(kind: str) -> set[str]:
    """Return what the handlers of a type ask for, for what the template uses of it."""
    asked = {
        action
        for action in HANDLERS[kind]
        if action in READ or not any(fnmatchcase(action, pattern) for pattern in UNUSED)
    }
    if kind in PASSING_NONE:
        asked -= {"iam:PassRole", "iam:GetRole"}
    # Of objects a bucket's handler deletes and writes none.
    return asked - OBJECTS if kind == "AWS::S3::Bucket" else asked


TYPES = sorted({resource["Type"] for resource in RESOURCES.values()})


@pytest.mark.parametrize("kind", TYPES)
def test_the_policy_allows_the_calls_of_cloudformation(kind: str) -> None:
    missing = {
        action for action in needed(kind) if not any(granted(action, arn) for arn in ARNS[kind])
    }
    assert missing == set()


def test_the_policy_allows_nothing_that_neither_cloudformation_nor_sam_does() -> None:
    actions = {action for s in STATEMENTS for action in as_list(s["Action"])}
    by_handlers = {action for kind in TYPES for action in needed(kind)}
    # SAM: the stacks, and the bucket that takes the code.
    assert {a for a in actions - by_handlers if not a.startswith("cloudformation:")} == (
        OBJECTS - {"s3:GetObject", "s3:GetObjectVersion"}
    ) | {"s3:GetBucketLocation"}


def kinds_of(action: str) -> list[str]:
    service, name = action.split(":")
    found: list[str] = SERVICES[service]["Actions"][name.lower()].get("Resources", [])
    return found


def pairs(statement: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each action of a statement with each resource that it is asked for."""
    for action in as_list(statement["Action"]):
        known = SERVICES[action.split(":")[0]]["Resources"]
        for resource in as_list(statement["Resource"]):
            kinds = kinds_of(action) + [kind for name, kind in NEWER if name == action]
            # The list's own keys are in lower case, mostly.
            arns = [known.get(kind) or known[kind.lower()] for kind in kinds]
            if resource == "*" or any(
                matches(resource, kind, arn["ARNFormats"])
                for kind, arn in zip(kinds, arns, strict=True)
            ):
                yield action, resource


def test_every_action_acts_on_a_resource_and_every_resource_is_acted_on() -> None:
    for statement in STATEMENTS:
        assert statement["Effect"] == "Allow"
        found = list(pairs(statement))
        idle = set(as_list(statement["Action"])) - {action for action, _ in found}
        assert idle == set()
        assert set(as_list(statement["Resource"])) == {resource for _, resource in found} | {
            # SAM's transform is a resource of CloudFormation's own, in no list.
            r
            for r in as_list(statement["Resource"])
            if ":transform/" in r
        }


def test_actions_on_all_resources_support_no_resource() -> None:
    everything = [s for s in STATEMENTS if "*" in as_list(s["Resource"])]
    assert len(everything) == 1
    naming = {action for action in everything[0]["Action"] if kinds_of(action)}
    # Of a template that is not a stack's yet.
    assert naming == {"cloudformation:GetTemplateSummary"}


def test_roles_are_of_the_stack_and_passed_to_its_services_only() -> None:
    for statement in STATEMENTS:
        if any(action.startswith("iam:") for action in as_list(statement["Action"])):
            assert statement["Resource"] == "arn:aws:iam::111111111111:role/gradshard-*"
    [passing] = [s for s in STATEMENTS if "iam:PassRole" in as_list(s["Action"])]
    services = passing["Condition"]["StringEquals"]["iam:PassedToService"]
    assert services == ["lambda.amazonaws.com", "states.amazonaws.com"]


def test_the_policy_fits_into_a_managed_policy() -> None:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html."""
    whole = json.loads(TEXT) | {"Statement": STATEMENTS}
    assert len(json.dumps(whole, separators=(",", ":"))) <= 6144
