"""The application on LocalStack, put there by API calls: bucket, topic, functions, machine."""

import contextlib
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import boto3
from samcli.yamlhelper import yaml_parse  # type: ignore[import-untyped]

from tests.localstack.definition import definition
from tests.localstack.worker import MEMORY_MB, MILLISECONDS

ROOT = Path(__file__).parents[2]
STACK = "gradshard"
BUCKET = "second"
MAP_CONCURRENCY = 40
TOPIC = "updates"
GROUP = "gradshard-deadlines"
ACCOUNT = "000000000000"
QUEUE = "undelivered"
QUEUE_ARN = f"arn:aws:sqs:us-east-1:{ACCOUNT}:{QUEUE}"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/second"
FUNCTIONS = sorted(folder.name for folder in (ROOT / "functions").iterdir())
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


def deploy(functions_endpoint: str, faults: Path) -> None:
    """Deploy to the engine that boto3 talks to; functions talk to ``functions_endpoint``.

    The stack of the template's outputs holds nothing else.
    """
    boto3.client("iam").create_role(RoleName="second", AssumeRolePolicyDocument=json.dumps(TRUST))
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    boto3.client("scheduler").create_schedule_group(Name=GROUP)
    queue = boto3.client("sqs").create_queue(QueueName=QUEUE)["QueueUrl"]
    variables = function_variables(functions_endpoint, faults)
    arns = {folder: _create_function(folder, variables) for folder in FUNCTIONS}
    _send_events(arns["collect_update"])
    provided = {f"{_camel(folder)}Function": arn for folder, arn in arns.items()}
    machine = boto3.client("stepfunctions").create_state_machine(
        name="round", definition=definition({"Partition": "aws", **provided}), roleArn=ROLE
    )
    outputs = {
        "BucketName": BUCKET,
        "RoundStateMachineArn": machine["stateMachineArn"],
        "Architecture": "arm64",
        "AggregatorMemory": str(MEMORY_MB),
        "MapConcurrency": str(MAP_CONCURRENCY),
        "UndeliveredEventsUrl": queue,
        **{f"{_camel(folder)}FunctionName": folder for folder in FUNCTIONS},
    }
    _create_stack(outputs)


def _create_stack(outputs: dict[str, str]) -> None:
    template = {
        "Resources": {"Nothing": {"Type": "AWS::CloudFormation::WaitConditionHandle"}},
        "Outputs": {name: {"Value": value} for name, value in outputs.items()},
    }
    formation = boto3.client("cloudformation")
    formation.create_stack(StackName=STACK, TemplateBody=json.dumps(template))
    formation.get_waiter("stack_create_complete").wait(
        StackName=STACK, WaiterConfig={"Delay": 1, "MaxAttempts": 30}
    )


def function_variables(endpoint: str, faults: Path) -> dict[str, str]:
    """What the template gives functions, and what the tests' worker reads."""
    prefix = f"arn:aws:lambda:us-east-1:{ACCOUNT}:function:"
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "OPENBLAS_NUM_THREADS": "1",
        "GRADSHARD_STACK": STACK,
        "GRADSHARD_URL_SUFFIX": "amazonaws.com",
        "GRADSHARD_BUCKET": BUCKET,
        "GRADSHARD_BUCKET_HOST": "",
        "GRADSHARD_KEEPER_BUCKET": "",
        "GRADSHARD_KEEPER_BUCKET_HOST": "",
        "GRADSHARD_AGGREGATOR_MEMORY": str(MEMORY_MB),
        "GRADSHARD_ARCHITECTURE": "arm64",
        "GRADSHARD_MAP_CONCURRENCY": str(MAP_CONCURRENCY),
        "GRADSHARD_SCHEDULE_GROUP": GROUP,
        "GRADSHARD_SCHEDULE_ROLE_ARN": ROLE,
        "GRADSHARD_UNDELIVERED_ARN": QUEUE_ARN,
        "GRADSHARD_COLLECT_FUNCTION_ARN": f"{prefix}collect_update",
        "SECOND_FAULTS": str(faults),
    }


def _create_function(folder: str, variables: dict[str, str]) -> str:
    functions = boto3.client("lambda")
    # Its code is in functions/, where the worker runs it.
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(ROOT / "functions" / folder / "app.py", "app.py")
    arn: str = functions.create_function(
        FunctionName=folder,
        Runtime="python3.13",
        Role=ROLE,
        Handler="app.handler",
        Timeout=MILLISECONDS // 1000,
        Code={"ZipFile": package.getvalue()},
        Environment={"Variables": {**variables, "FUNCTION_FOLDER": folder}},
    )["FunctionArn"]
    functions.get_waiter("function_active_v2").wait(FunctionName=folder)
    return arn


def _send_events(collect: str) -> None:
    """Have S3 tell the function of updates, as the template has it."""
    sns = boto3.client("sns")
    topic = sns.create_topic(Name=TOPIC)["TopicArn"]
    functions = boto3.client("lambda")
    functions.add_permission(
        FunctionName="collect_update",
        StatementId="notifications",
        Action="lambda:InvokeFunction",
        Principal="sns.amazonaws.com",
        SourceArn=topic,
    )
    sns.subscribe(TopicArn=topic, Protocol="lambda", Endpoint=collect)
    template = yaml_parse((ROOT / "template.yaml").read_text())
    notified = template["Resources"]["Bucket"]["Properties"]["NotificationConfiguration"]
    boto3.client("s3").put_bucket_notification_configuration(
        Bucket=BUCKET,
        NotificationConfiguration={
            "TopicConfigurations": [
                {
                    "TopicArn": topic,
                    "Events": [told["Event"]],
                    "Filter": {"Key": {"FilterRules": told["Filter"]["S3Key"]["Rules"]}},
                }
                for told in notified["TopicConfigurations"]
                if told["Topic"] == {"Ref": "UpdateTopic"}
            ]
        },
    )
    functions.put_function_event_invoke_config(
        FunctionName="collect_update",
        DestinationConfig={"OnFailure": {"Destination": QUEUE_ARN}},
    )


def _camel(folder: str) -> str:
    return "".join(word.capitalize() for word in folder.split("_"))


@contextlib.contextmanager
def clock() -> Iterator[None]:
    """Fire schedules when they are due, which LocalStack only keeps."""
    stopped = threading.Event()
    scheduler, functions = boto3.client("scheduler"), boto3.client("lambda")

    def fire(name: str) -> None:
        schedule = scheduler.get_schedule(Name=name, GroupName=GROUP)
        at = schedule["ScheduleExpression"].removeprefix("at(").removesuffix(")")
        if datetime.fromisoformat(f"{at}+00:00") <= datetime.now(UTC):
            target = schedule["Target"]
            functions.invoke(
                FunctionName=target["Arn"], InvocationType="Event", Payload=target["Input"]
            )
            assert schedule["ActionAfterCompletion"] == "DELETE"
            scheduler.delete_schedule(Name=name, GroupName=GROUP)

    def run() -> None:
        while not stopped.wait(0.5):
            for found in scheduler.list_schedules(GroupName=GROUP)["Schedules"]:
                # The round may have ended meanwhile, and deleted it.
                with contextlib.suppress(scheduler.exceptions.ResourceNotFoundException):
                    fire(found["Name"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()
