"""The template as `sam` transforms it: who may do what, what is rejected, what is watched."""

import fnmatch
import json
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("samcli", reason="sam is not installed: `make setup`")

from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]
from samtranslator.parser.parser import Parser  # type: ignore[import-untyped]
from samtranslator.translator.translator import Translator  # type: ignore[import-untyped]

from gradshard.tickets.lifetime import MAX_SECONDS
from gradshard_core.costs import assumed_speeds
from gradshard_core.formats.object_keys import RoundKeys, TrainingKeys
from gradshard_core.limits.aws_limits import MAX_STACK_NAME
from gradshard_core.limits.own_limits import MAX_CLIENTS, MAX_TIMEOUT
from gradshard_core.rounds import aws_requests, rejections
from tests.localstack.deployed import function_variables

ROOT = Path(__file__).parents[3]

FUNCTIONS = [
    "OpenRoundFunction",
    "CollectUpdateFunction",
    "PlanRoundFunction",
    "AggregateShardFunction",
    "FinalizeRoundFunction",
    "AbortRoundFunction",
    "StartTrainingFunction",
    "AdvanceTrainingFunction",
    "PauseTrainingFunction",
    "WriteNoticesFunction",
]

ANYTHING_BY = (
    {
        ("OpenRoundFunctionRole", "states:SendTaskSuccess"): "the token names the execution",
        ("OpenRoundFunctionRole", "states:SendTaskFailure"): "the token names the execution",
        ("CollectUpdateFunctionRole", "states:SendTaskSuccess"): "the token names the execution",
        ("FinalizeRoundFunctionRole", "states:SendTaskSuccess"): "the token names the execution",
        ("FinalizeRoundFunctionRole", "states:SendTaskFailure"): "the token names the execution",
    }
    | {
        (f"{machine}StateMachineRole", f"logs:{action}"): "log delivery has no resource to name"
        for machine in ("Round", "Federation")
        for action in (
            "CreateLogDelivery",
            "GetLogDelivery",
            "UpdateLogDelivery",
            "DeleteLogDelivery",
            "ListLogDeliveries",
            "PutResourcePolicy",
            "DescribeResourcePolicies",
            "DescribeLogGroups",
        )
    }
    | {
        (f"{name}Role", f"xray:{action}"): "tracing has no resource to name"
        for name in FUNCTIONS
        for action in ("PutTraceSegments", "PutTelemetryRecords")
    }
)
"""Who may do what to ``*``, and why it cannot be narrower."""

MANAGED = {
    (f"{machine}StateMachineRole", "AWSXrayWriteOnlyAccess"): (
        "SAM adds it for tracing, which has no resource to name"
    )
    for machine in ("Round", "Federation")
}
"""AWS's own policies that roles have, and why."""

WHOLE_BUCKET = {
    "s3:ListBucket": "a missing object is told from a forbidden one; no prefix holds for that",
    "s3:ListBucketVersions": "partial sums are removed by version",
    "s3:ListBucketMultipartUploads": "an upload left by a killed planning is found and aborted",
}
"""What is allowed on the bucket as a whole, and why. Reading or writing objects never is."""

NAMING = {
    "AlarmName",
    "BucketName",
    "DashboardName",
    "FunctionName",
    "LayerName",
    "LogGroupName",
    "Name",
    "QueueName",
    "RoleName",
    "StateMachineName",
    "TopicName",
}

# Its file is found without importing it, which takes a second.
CFN_LINT = find_spec("cfnlint")
assert CFN_LINT is not None
assert CFN_LINT.origin is not None
SERVICES: dict[str, Any] = json.loads(
    Path(CFN_LINT.origin).with_name("data").joinpath("AdditionalSpecs/Policies.json").read_text()
)
"""What IAM knows of each service, as cfn-lint has it from AWS's Service Authorization Reference."""


class Grant(NamedTuple):
    role: str
    action: str
    resource: str


def transformed() -> dict[str, Any]:
    template = yaml_parse((ROOT / "template.yaml").read_text())
    for resource in template["Resources"].values():
        for local in ("CodeUri", "ContentUri", "DefinitionUri"):
            if local in resource.get("Properties", {}):
                # As after `sam package`; nothing is fetched.
                resource["Properties"][local] = "s3://bucket/key"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        found: dict[str, Any] = Translator({}, Parser()).translate(template, {})
    return found


TEMPLATE = transformed()
RESOURCES: dict[str, dict[str, Any]] = TEMPLATE["Resources"]


def of_type(kind: str) -> dict[str, dict[str, Any]]:
    found = {name: r["Properties"] for name, r in RESOURCES.items() if r["Type"] == kind}
    assert found, f"the template has no {kind}"
    return found


@pytest.mark.parametrize("function", ["PlanRoundFunction", "FinalizeRoundFunction"])
def test_a_function_has_time_to_reject_all_clients_of_the_largest_round(function: str) -> None:
    """Of other layouts, or after a training has diverged."""
    seconds = MAX_CLIENTS * assumed_speeds.REQUEST_SECONDS / rejections.AT_ONCE
    assert seconds < 0.75 * RESOURCES[function]["Properties"]["Timeout"]


@pytest.mark.parametrize(
    ("function", "prop", "planned"),
    [
        ("PlanRoundFunction", "MemorySize", assumed_speeds.PLAN_MEMORY_MB),
        ("FinalizeRoundFunction", "MemorySize", assumed_speeds.FINALIZE_MEMORY_MB),
        ("FinalizeRoundFunction", "Timeout", assumed_speeds.FINALIZE_TIMEOUT_SECONDS),
    ],
)
def test_plans_count_on_the_functions_of_the_template(
    function: str, prop: str, planned: float
) -> None:
    assert RESOURCES[function]["Properties"][prop] == planned


NONE = {"Ref": "AWS::NoValue"}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def shown(value: Any) -> str:
    """An ARN or reference as text."""
    if isinstance(value, str):
        return value
    [(function, argument)] = value.items()
    if function == "Fn::Sub":
        return str(argument)
    return "${" + (".".join(argument) if function == "Fn::GetAtt" else argument) + "}"


def statements() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every statement that a role has, inline or attached."""
    for role, properties in of_type("AWS::IAM::Role").items():
        for policy in properties.get("Policies", []):
            for statement in as_list(policy["PolicyDocument"]["Statement"]):
                yield role, statement
    for properties in of_type("AWS::IAM::Policy").values():
        for role in properties["Roles"]:
            for statement in as_list(properties["PolicyDocument"]["Statement"]):
                yield shown(role)[2:-1], statement


def grants() -> list[Grant]:
    return [
        Grant(role, action, shown(resource))
        for role, statement in statements()
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]


KEEPERS_REQUESTS = "arn:${AWS::Partition}:s3:::${KeeperBucket}/requests/*"

MODELS = {
    "${Bucket.Arn}/models/*.json": "which version is current, and each version's record",
    "${Bucket.Arn}/models/*/ledger.json": "what its rounds have revealed",
    "${Bucket.Arn}/models/*.safetensors": "models, whether a round made them or somebody put them",
    "${Bucket.Arn}/models/*/rounds/*.safetensors": "what rounds make: models, optimizers' state",
    "${Bucket.Arn}/models/*/training.json": "which training has the model",
}

TRAININGS = {
    "${Bucket.Arn}/trainings/*/spec.json": "the options",
    "${Bucket.Arn}/trainings/*/state.json": "how far it is",
    "${Bucket.Arn}/trainings/*/rounds/*": "the records of its rounds",
    "${Bucket.Arn}/trainings/*/notices/*": "what holders of tickets read",
    "${Bucket.Arn}/trainings/*/renewals/*": "what they write, to have it renewed",
    "${Bucket.Arn}/trainings/*/holders/*": "what a function writes, to have those of many renewed",
    "${Bucket.Arn}/trainings/*/members/*": "who has joined",
    "${Bucket.Arn}/trainings/*/pieces/*": "pieces of long lists in state and records",
}


def patterns_of_a_rounds_objects() -> set[str]:
    """Every object of a round, and every folder, as policies name them."""
    names = vars(RoundKeys("r"))
    ends = {value.removeprefix("rounds/r/") for value in names.values() if "/" in value}
    ends -= {""}
    return {f"${{Bucket.Arn}}/rounds/*/{end}{'*' * end.endswith('/')}" for end in ends}


# ------------------------------------------------------------------------------------- the roles


def test_every_function_has_a_role_of_its_own() -> None:
    roles = [shown(function["Role"]) for function in of_type("AWS::Lambda::Function").values()]
    assert sorted(roles) == sorted(f"${{{name}Role.Arn}}" for name in FUNCTIONS)


def test_statements_allow_and_use_no_negations() -> None:
    for _, statement in statements():
        assert statement["Effect"] == "Allow"
        assert {"NotAction", "NotResource"}.isdisjoint(statement)


def test_no_role_may_do_any_action() -> None:
    assert [grant for grant in grants() if "*" in grant.action or "?" in grant.action] == []


def test_every_statement_on_all_resources_has_a_reason() -> None:
    assert {(role, action) for role, action, resource in grants() if resource == "*"} == set(
        ANYTHING_BY
    )


def test_policies_of_aws_are_listed_with_a_reason() -> None:
    attached = {
        (name, shown(arn).rpartition("/")[2])
        for name, role in of_type("AWS::IAM::Role").items()
        for arn in role.get("ManagedPolicyArns", [])
    }
    assert attached == set(MANAGED)


def test_no_role_may_create_a_log_group() -> None:
    """A late event would make the group anew once the stack and its group are deleted."""
    creating = [grant for grant in grants() if grant.action == "logs:CreateLogGroup"]
    assert creating == []
    assert "AWSLambdaBasicExecutionRole" not in {policy for _, policy in MANAGED}


def test_every_function_writes_to_its_own_log_group_and_no_other() -> None:
    groups = {
        name: shown(function["LoggingConfig"]["LogGroup"])[2:-1]
        for name, function in of_type("AWS::Lambda::Function").items()
    }
    assert set(groups.values()) | {"RoundLogGroup", "FederationLogGroup"} == set(
        of_type("AWS::Logs::LogGroup")
    )
    writing = {g for g in grants() if g.action in {"logs:CreateLogStream", "logs:PutLogEvents"}}
    assert writing == {
        Grant(f"{name}Role", action, f"${{{group}.Arn}}")
        for name, group in groups.items()
        for action in ("logs:CreateLogStream", "logs:PutLogEvents")
    }


def test_every_role_has_the_permissions_boundary_that_is_given() -> None:
    boundary = {"Fn::If": ["HasPermissionsBoundary", {"Ref": "PermissionsBoundaryArn"}, NONE]}
    for role in of_type("AWS::IAM::Role").values():
        assert role["PermissionsBoundary"] == boundary
    assert TEMPLATE["Parameters"]["PermissionsBoundaryArn"]["Default"] == ""


@pytest.mark.parametrize(
    ("parameter", "good", "bad"),
    [
        (
            "PermissionsBoundaryArn",
            ["", "arn:aws:iam::123456789012:policy/teams/ml", "arn:aws:iam::aws:policy/PowerUser"],
            ["ml", "arn:aws:iam::123456789012:role/ml", "arn:aws:iam::123:policy/ml"],
        ),
        (
            "AlarmTopicArn",
            ["", "arn:aws-cn:sns:cn-north-1:123456789012:on-call"],
            [
                "on-call",
                "arn:aws:sqs:eu-west-1:123456789012:q",
                "arn:aws:sns:r:123456789012:t.fifo",
            ],
        ),
    ],
)
def test_arns_that_are_given_are_of_their_kind(
    parameter: str, good: list[str], bad: list[str]
) -> None:
    pattern = TEMPLATE["Parameters"][parameter]["AllowedPattern"]
    assert [value for value in good if not re.fullmatch(pattern, value)] == []
    assert [value for value in bad if re.fullmatch(pattern, value)] == []


def test_no_role_reads_or_writes_more_of_the_bucket_than_kinds_of_objects() -> None:
    of_s3 = [grant for grant in grants() if grant.action.startswith("s3:")]
    on_bucket = {grant.action for grant in of_s3 if grant.resource == "${Bucket.Arn}"}
    assert on_bucket == set(WHOLE_BUCKET)
    named = {grant.resource for grant in of_s3} - {"${Bucket.Arn}", KEEPERS_REQUESTS}
    assert named <= patterns_of_a_rounds_objects() | {*MODELS, *TRAININGS}


def test_planning_alone_may_do_anything_in_the_keepers_bucket_and_only_ask() -> None:
    asking = [g for g in grants() if "KeeperBucket" in g.resource]
    assert asking == [Grant("PlanRoundFunctionRole", "s3:PutObject", KEEPERS_REQUESTS)]
    assert RESOURCES["AskKeeper"]["Condition"] == "HasKeeper"


def test_the_keepers_account_may_only_write_answers() -> None:
    [policy] = of_type("AWS::S3::BucketPolicy").values()
    allowed = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Allow"]
    [statement] = allowed
    assert statement["Action"] == [
        "s3:PutObject",
        "s3:AbortMultipartUpload",
        "s3:ListMultipartUploadParts",
    ]
    assert shown(statement["Resource"]) == "${Bucket.Arn}/rounds/*/keeper/*"
    own = {"Ref": "AWS::AccountId"}
    account = {"Fn::If": ["HasKeeperAccount", {"Ref": "KeeperAccount"}, own]}
    assert statement["Principal"] == {"AWS": account}


def test_no_function_may_change_an_uploaded_model() -> None:
    reading = {"s3:GetObject", "s3:GetObjectVersion"}
    actions = {g.action for g in grants() if g.resource == "${Bucket.Arn}/models/*.safetensors"}
    assert actions <= reading


def test_no_function_may_change_an_update() -> None:
    writing = [
        grant
        for grant in grants()
        if re.search("/(updates|progress)/", grant.resource)
        and not grant.action.startswith("s3:GetObject")
    ]
    # Holders of tickets send updates with its signatures: they can make one, and change none.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes-enforce.html
    creating = [
        (role, statement["Condition"])
        for role, statement in statements()
        if "updates/*" in json.dumps(statement["Resource"])
        and "s3:PutObject" in as_list(statement["Action"])
    ]
    only_new = {"Null": {"s3:if-none-match": False}}
    assert creating == [("WriteNoticesFunctionRole", only_new)]
    assert [(grant.role, grant.action) for grant in writing] == [
        ("WriteNoticesFunctionRole", "s3:PutObject")
    ]


def test_the_state_machines_invoke_their_functions_and_nothing_else() -> None:
    invoking = {(role, resource) for role, action, resource in grants() if "Invoke" in action}
    of_trainings = [name for name in FUNCTIONS if "Training" in name]
    by_events = {"CollectUpdateFunction", "WriteNoticesFunction"}
    of_rounds = [name for name in FUNCTIONS if name not in {*by_events, *of_trainings}]
    assert invoking == {
        *(("RoundStateMachineRole", f"${{{name}.Arn}}") for name in of_rounds),
        *(
            ("FederationStateMachineRole", f"${{{name}.Arn}}")
            for name in (*of_trainings, "AbortRoundFunction")
        ),
        ("ScheduleRole", "${CollectUpdateFunction.Arn}"),
    }


def test_the_machine_may_read_tasks_and_start_follow_and_redrive_its_children() -> None:
    """What the engine asks no role for, in the names that the machine and its definition have.

    https://docs.aws.amazon.com/step-functions/latest/dg/iam-policies-eg-dist-map.html
    """
    machine = of_type("AWS::StepFunctions::StateMachine")["RoundStateMachine"]
    here, name = "states:${AWS::Region}:${AWS::AccountId}", shown(machine["StateMachineName"])
    arns = "arn:${AWS::Partition}:" + here
    granted = {(g.action, g.resource) for g in grants() if g.role == "RoundStateMachineRole"}
    assert granted >= {
        ("s3:GetObject", "${Bucket.Arn}/rounds/*/tasks/*"),
        ("states:StartExecution", f"{arns}:stateMachine:{name}"),
        ("states:DescribeExecution", f"{arns}:execution:{name}:*"),
        ("states:StopExecution", f"{arns}:execution:{name}:*"),
        ("states:RedriveExecution", f"{arns}:execution:{name}/*:*"),
    }
    assert fnmatch.fnmatch(RoundKeys("r").tasks(0), "rounds/*/tasks/*")


def test_the_federations_machine_may_start_and_follow_rounds_and_start_its_successor() -> None:
    """What waiting for another execution needs.

    https://docs.aws.amazon.com/step-functions/latest/dg/connect-stepfunctions.html
    """
    machines = of_type("AWS::StepFunctions::StateMachine")
    rounds, itself = (
        shown(machines[name]["StateMachineName"])
        for name in ("RoundStateMachine", "FederationStateMachine")
    )
    here = "${AWS::Region}:${AWS::AccountId}"
    arns, rule = "arn:${AWS::Partition}:states:" + here, "StepFunctionsGetEventsForStepFunctions"
    granted = {(g.action, g.resource) for g in grants() if g.role == "FederationStateMachineRole"}
    assert {(a, r) for a, r in granted if a.startswith(("states:", "events:"))} == {
        ("states:StartExecution", f"{arns}:stateMachine:{rounds}"),
        ("states:StartExecution", f"{arns}:stateMachine:{itself}"),
        ("states:DescribeExecution", f"{arns}:execution:{rounds}:*"),
        ("states:StopExecution", f"{arns}:execution:{rounds}:*"),
    } | {
        (f"events:{action}", "arn:${AWS::Partition}:events:" + f"{here}:rule/{rule}ExecutionRule")
        for action in ("PutTargets", "PutRule", "DescribeRule")
    }
    given = machines["FederationStateMachine"]["DefinitionSubstitutions"]
    assert shown(given["SuccessorStateMachine"]) == f"{arns}:stateMachine:{itself}"
    assert shown(given["RoundStateMachine"]) == "${RoundStateMachine}"


def test_other_services_are_let_in_for_this_stack_only() -> None:
    for role in of_type("AWS::IAM::Role").values():
        for statement in role["AssumeRolePolicyDocument"]["Statement"]:
            [service] = as_list(statement["Principal"]["Service"])
            assert service in {"lambda.amazonaws.com", "states.amazonaws.com"} or (
                statement["Condition"]["StringEquals"].keys()
                == {"aws:SourceAccount", "aws:SourceArn"}
            )
    permissions = of_type("AWS::Lambda::Permission").values()
    assert {permission["Principal"] for permission in permissions} == {"sns.amazonaws.com"}
    assert {(shown(p["FunctionName"]), shown(p["SourceArn"])) for p in permissions} == {
        ("${CollectUpdateFunction}", "${UpdateTopic}"),
        ("${WriteNoticesFunction}", "${TrainingTopic}"),
    }
    [queue] = of_type("AWS::SQS::QueuePolicy").values()
    for statement in queue["PolicyDocument"]["Statement"]:
        assert statement["Principal"] == {"Service": "sns.amazonaws.com"}
        assert shown(statement["Condition"]["ArnEquals"]["aws:SourceArn"]) == "${UpdateTopic}"
    policies = of_type("AWS::SNS::TopicPolicy").values()
    topics = [shown(topic) for policy in policies for topic in policy["Topics"]]
    assert sorted(topics) == ["${TrainingTopic}", "${UpdateTopic}"]
    for topic, policy in zip(topics, policies, strict=True):
        for statement in policy["PolicyDocument"]["Statement"]:
            assert shown(statement["Resource"]) == topic
            assert statement["Principal"] == {"Service": "s3.amazonaws.com"}
            assert shown(statement["Condition"]["StringEquals"]["aws:SourceAccount"]) == (
                "${AWS::AccountId}"
            )


KEYS = RoundKeys("round-1")
TOLD = {
    "UpdateTopic": [
        KEYS.update("client-1"),
        TrainingKeys("training").inbox(12).update("client-1"),
        KEYS.masks,
        KEYS.refusal,
    ],
    "TrainingTopic": [
        TrainingKeys("t").state,
        TrainingKeys("t").renewal("client-1"),
        TrainingKeys("t").renewal_for("client-1", "client-2"),
    ],
}


@pytest.mark.parametrize(("topic", "key"), [(t, key) for t, keys in TOLD.items() for key in keys])
def test_s3_tells_of_what_functions_wait_for_and_once(topic: str, key: str) -> None:
    told = RESOURCES["Bucket"]["Properties"]["NotificationConfiguration"]["TopicConfigurations"]
    filters = [
        (
            shown(one["Topic"]),
            {rule["Name"]: rule["Value"] for rule in one["Filter"]["S3Key"]["Rules"]},
        )
        for one in told
    ]
    found = [
        name
        for name, rule in filters
        if key.startswith(rule["prefix"]) and key.endswith(rule["suffix"])
    ]
    assert found == [f"${{{topic}}}"]
    # S3 takes no two filters that a key could pass.
    suffixes = [rule["suffix"] for _, rule in filters]
    assert not [a for a in suffixes for b in suffixes if a != b and a.endswith(b)]
    assert len(set(suffixes)) == len(suffixes)


def test_the_key_opens_nothing_but_this_bucket() -> None:
    keyed = [(role, s) for role, s in statements() if "kms:" in json.dumps(s["Action"])]
    actions = {role: set(as_list(statement["Action"])) for role, statement in keyed}
    both = {"kms:Decrypt", "kms:GenerateDataKey"}
    assert actions == {f"{name}Role": both for name in FUNCTIONS} | {
        "RoundStateMachineRole": {"kms:Decrypt"}
    }
    for _, statement in keyed:
        assert shown(statement["Resource"]) == "${KmsKeyArn}"
        condition = statement["Condition"]
        assert shown(condition["StringEquals"]["kms:ViaService"]) == (
            "s3.${AWS::Region}.${AWS::URLSuffix}"
        )
        context = condition["StringLike"]["kms:EncryptionContext:aws:s3:arn"]
        assert [shown(arn) for arn in context] == ["${Bucket.Arn}", "${Bucket.Arn}/*"]
    for policy in ("FunctionsUseKey", "MachineReadsWithKey"):
        assert RESOURCES[policy]["Condition"] == "HasKmsKey"


# ------------------------------------------------------------------------ what AWS knows and takes


def as_aws_has_it(text: str) -> str:
    """An ARN or a name of the longest kind that the template makes."""
    values = {
        "AWS::Partition": "aws-us-gov",
        "AWS::Region": "ap-southeast-2",
        "AWS::AccountId": "1" * 12,
        "AWS::StackName": "s" * MAX_STACK_NAME,
        "AWS::URLSuffix": "amazonaws.com",
        "Bucket.Arn": "arn:aws-us-gov:s3:::" + "b" * 63,
        "KeeperBucket": "k" * 63,
        "KmsKeyArn": f"arn:aws-us-gov:kms:ap-southeast-2:{'1' * 12}:key/{'k' * 36}",
        "ScheduleGroup": "g" * 64,
        "ScheduleRole.Arn": f"arn:aws-us-gov:iam::{'1' * 12}:role/{'r' * 64}",
        "UndeliveredEvents.Arn": f"arn:aws-us-gov:sqs:ap-southeast-2:{'1' * 12}:{'q' * 80}",
    } | {
        f"{name}.Arn": f"arn:aws-us-gov:lambda:ap-southeast-2:{'1' * 12}:function:{'f' * 64}"
        for name in FUNCTIONS
    }
    for group in of_type("AWS::Logs::LogGroup"):
        values[f"{group}.Arn"] = (
            f"arn:aws-us-gov:logs:ap-southeast-2:{'1' * 12}:log-group:{'l' * 99}:*"
        )
    return re.sub(r"\$\{([\w:.]+)\}", lambda found: values[found[1]], text)


def matches(resource: str, kind: str, formats: list[str]) -> bool:
    """Whether an ARN is of a kind of resource, of which AWS's list has the form."""
    if kind in {"bucket", "object"} and ("/" in resource) != (kind == "object"):
        return False
    patterns = (re.sub(r"\$\{\w+\}", "[^:]*", arn) for arn in formats)
    return any(re.fullmatch(pattern, resource) for pattern in patterns)


def unknown_to_aws(granted: Iterable[Grant]) -> list[Grant]:
    """Grants of actions that there are not, or on what they are not asked for.

    A policy of either kind is valid, and allows nothing.
    """
    return [grant for grant in granted if not _is_known(grant)]


def _is_known(grant: Grant) -> bool:
    service, action = grant.action.split(":")
    known = SERVICES[service]["Actions"].get(action.lower())
    if known is None:
        return False
    kinds = known.get("Resources", [])
    if not kinds:
        return grant.resource == "*"
    resource = as_aws_has_it(grant.resource)
    kept = SERVICES[service]["Resources"]
    return any(matches(resource, kind, kept[kind]["ARNFormats"]) for kind in kinds)


def test_every_action_is_one_of_aws_on_a_resource_that_it_takes() -> None:
    assert unknown_to_aws(grants()) == []


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("s3:ListParts", "${Bucket.Arn}/*"),  # the request's name, not the action's
        ("s3:ListBucket", "${Bucket.Arn}/*"),
        ("s3:GetObject", "${Bucket.Arn}"),
        ("states:SendTaskSuccess", "arn:aws:states:r:1:stateMachine:m"),
        ("states:DescribeMapRun", "arn:aws:states:r:1:execution:m:*"),
        ("scheduler:CreateSchedule", "arn:aws:scheduler:r:1:schedule-group/g"),
    ],
)
def test_an_action_on_a_wrong_resource_is_found(action: str, resource: str) -> None:
    grant = Grant("role", action, resource)
    assert unknown_to_aws([grant]) == [grant]


def test_the_policies_of_the_documentation_name_actions_and_resources_of_aws() -> None:
    names = ("client", "coordinator", "ticket", "operator", "compare")
    texts = [(ROOT / "docs" / f"{name}-policy.json").read_text() for name in names]
    granted = [
        Grant("", action, resource)
        for text in texts
        for statement in json.loads(text)["Statement"]
        for action in as_list(statement["Action"])
        for resource in as_list(statement["Resource"])
    ]
    assert unknown_to_aws(granted) == []


def test_the_policies_of_a_role_fit_into_its_quota() -> None:
    """IAM takes 10,240 characters of a role's inline policies, white space not counted."""
    said: dict[str, int] = {}
    for role, statement in statements():
        text = json.dumps(json.loads(as_aws_has_it(flat(statement))), separators=(",", ":"))
        said[role] = said.get(role, 0) + len(text) + 100
    assert max(said.values()) <= 10_240


def flat(statement: dict[str, Any]) -> str:
    """A statement with its references as text."""
    return json.dumps(
        statement
        | {"Resource": [shown(resource) for resource in as_list(statement["Resource"])]}
        | {"Condition": "c" * 200}
    )


NAMES = {
    "AWS::CloudWatch::Alarm": ("AlarmName", 255),
    "AWS::CloudWatch::Dashboard": ("DashboardName", 255),
    # SAM names it; stacks number their versions of it together.
    "AWS::Lambda::LayerVersion": ("LayerName", 140),
    "AWS::Logs::LogGroup": ("LogGroupName", 512),
    "AWS::Scheduler::ScheduleGroup": ("Name", 64),
    "AWS::StepFunctions::StateMachine": ("StateMachineName", 80),
}
"""Where the template gives a name, and how long that may be."""


def test_names_are_short_enough_for_every_stack_that_the_documentation_allows() -> None:
    page = (ROOT / "docs" / "deploying.md").read_text()
    assert f"at most {MAX_STACK_NAME} characters" in page
    longest = {
        kind: max(len(as_aws_has_it(shown(found[key]))) for found in of_type(kind).values())
        for kind, (key, _) in NAMES.items()
    }
    assert all(longest[kind] <= limit for kind, (_, limit) in NAMES.items())
    # It is what the shortest of them leaves.
    assert longest["AWS::Scheduler::ScheduleGroup"] == 64


def test_only_listed_types_have_a_name() -> None:
    """Names of others, made by CloudFormation, keep stacks of an account apart."""
    for resource in RESOURCES.values():
        properties = set(resource.get("Properties", {}))
        if resource["Type"] in {"AWS::Lambda::EventInvokeConfig", "AWS::Lambda::Permission"}:
            properties.remove("FunctionName")  # whose they are
        named = sorted(properties & NAMING)
        assert named == ([NAMES[resource["Type"]][0]] if resource["Type"] in NAMES else [])


def test_a_name_that_is_the_accounts_tells_regions_apart() -> None:
    [dashboard] = of_type("AWS::CloudWatch::Dashboard").values()
    assert shown(dashboard["DashboardName"]) == "${AWS::StackName}-${AWS::Region}"


# ------------------------------------------------------------------------------------ the bucket


def bucket() -> dict[str, Any]:
    [found] = of_type("AWS::S3::Bucket").values()
    return found


def test_the_bucket_is_closed_to_the_public() -> None:
    assert bucket()["PublicAccessBlockConfiguration"] == {
        "BlockPublicAcls": True,
        "BlockPublicPolicy": True,
        "IgnorePublicAcls": True,
        "RestrictPublicBuckets": True,
    }
    [rule] = bucket()["OwnershipControls"]["Rules"]
    assert rule == {"ObjectOwnership": "BucketOwnerEnforced"}


def test_the_bucket_and_its_objects_stay_when_the_stack_goes() -> None:
    # Once it has been made: a first deployment that fails leaves none behind.
    # What protects it stays with it.
    for name in ("Bucket", "BucketPolicy"):
        assert RESOURCES[name]["DeletionPolicy"] == "RetainExceptOnCreate"
        assert RESOURCES[name]["UpdateReplacePolicy"] == "Retain"


def test_the_bucket_keeps_versions() -> None:
    assert bucket()["VersioningConfiguration"] == {"Status": "Enabled"}


def test_the_bucket_encrypts_with_the_key_that_is_given() -> None:
    [rule] = bucket()["BucketEncryption"]["ServerSideEncryptionConfiguration"]
    default = rule["ServerSideEncryptionByDefault"]
    assert default["SSEAlgorithm"] == {"Fn::If": ["HasKmsKey", "aws:kms", "AES256"]}
    assert default["KMSMasterKeyID"]["Fn::If"][:2] == ["HasKmsKey", {"Ref": "KmsKeyArn"}]
    assert rule["BucketKeyEnabled"] == {"Fn::If": ["HasKmsKey", True, False]}


def denials() -> dict[str, dict[str, Any]]:
    [policy] = of_type("AWS::S3::BucketPolicy").values()
    found = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] != "Allow"]
    assert {(s["Effect"], s["Principal"]) for s in found} == {("Deny", "*")}
    return {statement["Sid"]: statement for statement in found}


def test_the_bucket_rejects_everything_over_plain_http() -> None:
    denial = denials()["DenyPlainHttp"]
    assert denial["Condition"] == {"Bool": {"aws:SecureTransport": False}}
    assert denial["Action"] == "s3:*"
    assert [shown(arn) for arn in denial["Resource"]] == ["${Bucket.Arn}", "${Bucket.Arn}/*"]


@pytest.mark.parametrize(
    ("sid", "header", "but"),
    [
        ("DenyCustomerKeys", "x-amz-server-side-encryption-customer-algorithm", None),
        (
            "DenyOtherKmsKeys",
            "x-amz-server-side-encryption-aws-kms-key-id",
            {"Fn::If": ["HasKmsKey", {"Ref": "KmsKeyArn"}, "none"]},
        ),
        ("DenyArchiving", "x-amz-storage-class", "STANDARD"),
    ],
)
def test_the_bucket_rejects_objects_that_functions_cannot_read(
    sid: str, header: str, but: Any
) -> None:
    denial = denials()[sid]
    assert (denial["Action"], shown(denial["Resource"])) == ("s3:PutObject", "${Bucket.Arn}/*")
    condition = {"Null": {f"s3:{header}": False}}
    if but is not None:
        condition["StringNotEquals"] = {f"s3:{header}": but}
    assert denial["Condition"] == condition


@pytest.mark.parametrize(
    ("sid", "actions", "role"),
    [
        (
            "DenyReadingNoiseKeys",
            ["s3:GetObject", "s3:GetObjectVersion"],
            "AggregateShardFunctionRole",
        ),
        ("DenyBringingNoiseKeys", ["s3:PutObject"], "PlanRoundFunctionRole"),
    ],
)
def test_the_key_of_noise_is_for_one_role_each(sid: str, actions: list[str], role: str) -> None:
    denial = denials()[sid]
    assert as_list(denial["Action"]) == actions
    assert shown(denial["Resource"]) == "${Bucket.Arn}/rounds/*/secrets/*"
    [(operator, keys)] = denial["Condition"].items()
    assert operator == "StringNotLike"
    assert shown(keys["aws:userid"]) == f"${{{role}.RoleId}}:*"


def test_forgotten_uploads_go_after_a_day_and_rounds_when_the_operator_says() -> None:
    rules = {rule["Id"]: rule for rule in bucket()["LifecycleConfiguration"]["Rules"]}
    uploads = rules["AbortForgottenUploads"]
    assert uploads["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    # As long as a ticket may last, which is for an upload that is begun when it is made.
    assert MAX_SECONDS == 7 * 24 * 3600
    assert "Prefix" not in uploads
    assert rules["DeleteOldRounds"]["ExpirationInDays"] == {"Ref": "RetentionDays"}
    assert {rule["Status"] for rule in rules.values()} == {"Enabled"}


# ---------------------------------------------------------------------------- what is watched

ALARMS = of_type("AWS::CloudWatch::Alarm")
STACK = "${AWS::StackName}"


def test_the_functions_name_their_metrics_after_the_stack() -> None:
    for function in of_type("AWS::Lambda::Function").values():
        service = function["Environment"]["Variables"]["GRADSHARD_STACK"]
        assert shown(service) == STACK


def test_alarms_notify_the_configured_topics() -> None:
    for alarm in ALARMS.values():
        assert alarm["AlarmActions"] == [
            {"Fn::If": ["HasAlarmEmail", {"Ref": "AlarmTopic"}, NONE]},
            {"Fn::If": ["HasAlarmTopic", {"Ref": "AlarmTopicArn"}, NONE]},
        ]


def test_every_alarm_says_where_its_answer_is() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    headings = {heading.strip() for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for alarm in ALARMS.values():
        end = shown(alarm["AlarmName"]).removeprefix(f"{STACK}-")
        assert alarm["AlarmDescription"].endswith(f": docs/operations.md#{end}")
        assert end.replace("-", " ").capitalize() in headings


def test_there_are_alarms_for_each_way_to_lose_a_round() -> None:
    watched = {alarm["MetricName"] for alarm in ALARMS.values()}
    assert watched == {
        "ExecutionsFailed",
        "ExecutionsAborted",
        "MemoryUsed",
        "TimeUsed",
        "Throttles",
        "ApproximateNumberOfMessagesVisible",
        "InvocationDroppedCount",
    }


def test_alarms_notify_nobody_by_default() -> None:
    assert RESOURCES["AlarmTopic"]["Condition"] == "HasAlarmEmail"
    assert TEMPLATE["Outputs"]["AlarmTopicArn"]["Condition"] == "HasAlarmEmail"
    for condition, parameter in (
        ("HasAlarmEmail", "AlarmEmail"),
        ("HasAlarmTopic", "AlarmTopicArn"),
    ):
        empty = {"Fn::Equals": [{"Ref": parameter}, ""]}
        assert TEMPLATE["Conditions"][condition] == {"Fn::Not": [empty]}
        assert TEMPLATE["Parameters"][parameter]["Default"] == ""


def test_events_at_which_collect_update_fails_are_kept() -> None:
    queue = "${UndeliveredEvents.Arn}"
    [config] = of_type("AWS::Lambda::EventInvokeConfig").values()
    assert shown(config["FunctionName"]) == "${CollectUpdateFunction}"
    assert shown(config["DestinationConfig"]["OnFailure"]["Destination"]) == queue
    subscribed = of_type("AWS::SNS::Subscription")["CollectUpdateFunctionUpdateArrived"]
    assert shown(subscribed["RedrivePolicy"]["deadLetterTargetArn"]) == queue
    assert shown(subscribed["TopicArn"]) == "${UpdateTopic}"
    [kept] = of_type("AWS::SQS::Queue").values()
    assert kept["SqsManagedSseEnabled"] is True
    # Deadlines: the scheduler sends with the role it invokes with, and is told where by open_round.
    sending = {(role, shown(resource)) for role, action, resource in grants() if "sqs:" in action}
    assert sending == {("CollectUpdateFunctionRole", queue), ("ScheduleRole", queue)}
    opening = of_type("AWS::Lambda::Function")["OpenRoundFunction"]["Environment"]["Variables"]
    assert shown(opening["GRADSHARD_UNDELIVERED_ARN"]) == queue


def test_undelivered_events_are_kept_longer_than_a_round() -> None:
    [kept] = of_type("AWS::SQS::Queue").values()
    assert kept["MessageRetentionPeriod"] > MAX_TIMEOUT
    alarm = ALARMS["EventsUndeliveredAlarm"]
    assert shown(alarm["Dimensions"][0]["Value"]) == "${UndeliveredEvents.QueueName}"


def test_the_machine_gives_a_round_up_after_the_longest_deadline() -> None:
    definition = json.loads((ROOT / "statemachine" / "round.asl.json").read_text())
    waiting = definition["States"]["OpenRound"]
    assert waiting["TimeoutSeconds"] > MAX_TIMEOUT + aws_requests.TIMEOUT_SECONDS
    assert waiting["Catch"][0] == {"ErrorEquals": ["States.Timeout"], "Next": "RoundForgotten"}


def test_the_published_application_has_the_packages_version_and_license() -> None:
    published = yaml_parse((ROOT / "template.yaml").read_text())["Metadata"][
        "AWS::ServerlessRepo::Application"
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert published["SemanticVersion"] == project["version"]
    assert published["SpdxLicenseId"] == project["license"]
    for name in ("LicenseUrl", "ReadmeUrl"):
        assert (ROOT / published[name]).is_file()


def test_the_second_engine_gives_functions_every_variable_of_the_template() -> None:
    functions = [each for each in RESOURCES.values() if each["Type"] == "AWS::Lambda::Function"]
    names = {name for each in functions for name in each["Properties"]["Environment"]["Variables"]}
    given = function_variables("http://127.0.0.1:1", Path("faults")).keys()
    assert names <= given
