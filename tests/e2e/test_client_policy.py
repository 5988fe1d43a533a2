"""What a client may do with docs/client-policy.json: take part in a round, and nothing else.

The local engine evaluates the policy; its log says what was asked for and whether it was allowed.
"""

import fnmatch
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from gradshard import Federation
from gradshard.aws.boto_client import make_client
from gradshard.aws.client_store import ClientStore
from gradshard.local_engine.lifecycle import Engine
from gradshard.updates import uploads
from tests import reference
from tests.e2e.deployed import Deployed, until
from tests.e2e.test_permissions import as_list, asked

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).parents[2] / "docs"
ROLE = "policed-client-a"
DECISION = re.compile(rf"iam (allowed|denied) ({ROLE}) (\S+) (\S+)")
ROUND = "policed*"
SECONDS = 120
OF_LARGE_ROUNDS = "/pieces/*"
"""Read by clients of rounds of more than 512 clients, which are too many for a test."""
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
}


def policy(bucket: str) -> str:
    text = (DOCS / "client-policy.json").read_text()
    return (
        text.replace("BUCKET", bucket)
        .replace("ROUND", ROUND)
        .replace("TRAINING", ROUND)
        .replace("CLIENT", "a")
    )


def update(seed: int, size: int = 50) -> dict[str, reference.Array]:
    return {"first.w": np.random.default_rng(seed).standard_normal(size, np.float32)}


@pytest.fixture(scope="module")
def credentials(engine: Engine, deployed: Deployed) -> dict[str, str]:
    """Those of client a, in the variables that every program looks at."""
    iam = boto3.client("iam")
    arn = iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    document = policy(deployed.bucket)
    iam.put_role_policy(RoleName=ROLE, PolicyName="client", PolicyDocument=document)
    session = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="client-a")[
        "Credentials"
    ]
    return {
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }


@pytest.fixture
def as_client(
    credentials: dict[str, str], deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Federation]:
    """Become the client: from then on it knows the bucket, and nothing of the stack."""

    def become() -> Federation:
        for name, value in credentials.items():
            monkeypatch.setenv(name, value)
        return Federation(bucket=deployed.bucket)

    return become


def take_part(federation: Federation, become: Callable[[], Federation]) -> None:
    """Submit, look, wait, fetch, and submit again, beside a client whose update is rejected."""
    opened = federation.open_round("policed-plain", clients=["a", "b"], min_clients=1, timeout=600)
    opened.store.put_bytes(opened.keys.update("b"), b"junk")
    until(lambda: opened.rejection("b"))
    round_ = become().round("policed-plain")
    assert round_.status()["state"] == "awaiting"
    round_.submit("a", update(1), samples=3)
    states: list[str] = []
    manifest = round_.wait(SECONDS, progress=lambda status: states.append(status["state"]))
    assert [c["client"] for c in manifest["contributors"]] == ["a"]
    assert states[-1] == "completed"
    status = round_.status()
    # Why the other one was rejected stands in the plan; the note to it is its own.
    assert [rejection["client"] for rejection in status["rejected"]] == ["b"]
    assert round_.fetch()["first.w"].tobytes() == update(1)["first.w"].tobytes()
    assert round_.rejection("a") is None
    round_.submit("a", update(1), samples=3)


def test_a_client_takes_part(
    federation: Federation,
    as_client: Callable[[], Federation],
    engine: Engine,
    deployed: Deployed,
) -> None:
    take_part(federation, as_client)
    denied = {
        asking.resource for decision, asking in asked(engine, DECISION) if decision == "denied"
    }
    bucket = f"arn:aws:s3:::{deployed.bucket}"
    assert denied == {f"{bucket}/rounds/policed-plain/rejections/b.json"}


def test_a_client_sends_parts_and_a_growing_update_and_reads_its_assignment(
    federation: Federation,
    as_client: Callable[[], Federation],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terms: dict[str, Any] = {"batch_size": 16, "epochs": 1, "learning_rate": 0.1}
    training = {"train_seconds": 3.0, "batch_size": 16, "epochs": 1, "steps": 10}
    federation.open_round("policed-1", ["a"], assignments=terms, timeout=600)
    after = terms | {"after": "policed-1"}
    federation.open_round(
        "policed-2",
        ["a"],
        assignments=after,
        rule="fedavg",
        timeout=600,
        layout=update(2, 5_000_000),
    )
    monkeypatch.setattr(uploads, "SINGLE_PUT_BYTES", 0)
    client = as_client()
    first = client.round("policed-1")
    # Of an upload that broke: its parts are looked at, and thrown away.
    broken = ClientStore(client.bucket, make_client())
    upload_id = broken.create_upload(first.keys.update("a"))
    broken.upload_part(first.keys.update("a"), upload_id, 1, io.BytesIO(b"other"), 5)
    first.submit("a", update(1, 5_000_000), samples=160, training=training)
    first.wait(SECONDS)
    assert broken.list_parts(first.keys.update("a"), upload_id) is None
    second = client.round("policed-2")
    assert second.assignment("a").batch_size >= 16
    growing = second.layer_upload("a", 160, training=training)
    growing.add(update(2, 5_000_000))
    growing.finish()
    second.wait(SECONDS)


def test_a_client_trains_the_model(
    federation: Federation, as_client: Callable[[], Federation]
) -> None:
    federation.model("policed").put(update(3))
    federation.open_round(
        "policed-model", ["a"], server_optimizer={"model": "policed"}, timeout=600
    )
    round_ = as_client().round("policed-model")
    assert round_.fetch_model()["first.w"].tobytes() == update(3)["first.w"].tobytes()
    round_.submit("a", update(4), samples=1)
    assert round_.wait(SECONDS)["model"]["version"] == 2
    assert list(as_client().model("policed").fetch()) == ["first.w"]


def test_a_client_joins_a_training_takes_part_and_leaves(
    federation: Federation, as_client: Callable[[], Federation]
) -> None:
    name = "policed-training"
    federation.model(name).put(update(3))
    optimizer = {"optimizer": "fedavg", "model": name}
    training = federation.train(
        name, rounds=1, min_clients=1, server_optimizer=optimizer, poll_interval=0.2
    )
    client = as_client()
    client.join(name, "a")
    done = client.participate("a", lambda weights, _: (weights, 1), training=name)
    assert done.trained == (1,)
    client.leave(name, "a")
    assert client.training(name).state().status == "ended"
    assert training.id == name


def test_a_client_sends_to_a_round_with_thousands_of_ids(
    federation: Federation, as_client: Callable[[], Federation]
) -> None:
    many = [f"c{number:063}" for number in range(4200)]  # more than the machine's input takes
    federation.open_round("policed-large", ["a", *many], timeout=600)
    round_ = as_client().round("policed-large")
    round_.submit("a", update(5), samples=1)
    assert len(round_.status()["missing"]) == len(many)


@pytest.mark.usefixtures("as_client")
def test_a_client_may_do_nothing_else(credentials: dict[str, str], deployed: Deployed) -> None:
    s3 = boto3.client(
        "s3",
        aws_access_key_id=credentials["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=credentials["AWS_SECRET_ACCESS_KEY"],
        aws_session_token=credentials["AWS_SESSION_TOKEN"],
    )
    place: dict[str, Any] = {"Bucket": deployed.bucket}
    own, others = (
        "rounds/policed-plain/updates/a.safetensors",
        "rounds/policed-plain/updates/b.safetensors",
    )
    s3.head_object(Key=own, **place)
    for rejected in (
        lambda: s3.get_object(Key=others, **place),
        lambda: s3.put_object(Key=others, Body=b"", **place),
        lambda: s3.get_object(Key="rounds/policed-plain/callback.json", **place),
        lambda: s3.get_object(Key="rounds/policed-plain/rejections/b.json", **place),
        lambda: s3.get_object(Key="rounds/policed-plain/task-reports/0/00000.json", **place),
        lambda: s3.get_object(Key="rounds/other/manifest.json", **place),
        lambda: s3.put_object(Key="rounds/policed-plain/manifest.json", Body=b"", **place),
        lambda: s3.put_object(Key="rounds/policed-plain/update.safetensors", Body=b"", **place),
        lambda: s3.delete_object(Key=own, **place),
        lambda: s3.put_object(Key="models/policed/current.json", Body=b"", **place),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            rejected()


def test_a_client_uses_all_that_it_may(engine: Engine, deployed: Deployed) -> None:
    """After the tests above."""
    used = [permission for decision, permission in asked(engine, DECISION) if decision == "allowed"]
    for statement in json.loads(policy(deployed.bucket))["Statement"]:
        for action in as_list(statement["Action"]):
            for resource in as_list(statement["Resource"]):
                if resource.endswith(OF_LARGE_ROUNDS):
                    continue
                # What is sent in parts goes to either folder, here to one.
                in_parts = action in {"s3:ListMultipartUploadParts", "s3:AbortMultipartUpload"}
                named = resource.replace("/partial-updates/", "/updates/") if in_parts else resource
                assert any(
                    use.action == action and fnmatch.fnmatchcase(use.resource, named)
                    for use in used
                ), (action, resource)
