"""The policies in docs/ suffice, and have no statement too many: the local engine evaluates IAM."""

import json
from collections.abc import Callable
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from gradshard import Federation, GradshardError
from gradshard.client.round_by_ticket import TicketRound
from gradshard.local_engine.lifecycle import REGION, Engine
from gradshard.papers.topology_trials import Outcome, compare, trials
from gradshard_core.errors import RoundFailed
from tests.docs.pages import ROOT

pytestmark = pytest.mark.e2e

ACCOUNT = "000000000000"
SECONDS = 120
MANY = [f"c{number:063}" for number in range(4200)]
"""Ids that are stored in pieces, because the machine's input has no room for them."""
UPDATE = {"w": np.ones(4, np.float32)}

Become = Callable[..., None]


def policy(name: str, **given: str) -> dict[str, Any]:
    """Read one of the policies in docs/, with its placeholders filled in."""
    text = (ROOT / "docs" / f"{name}-policy.json").read_text()
    for word, value in given.items():
        assert word in text
        text = text.replace(word, value)
    document: dict[str, Any] = json.loads(text)
    return document


@pytest.fixture
def become(engine: Engine, outputs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Become:
    """Take a role that has a policy; what it may not do fails from then on."""
    machine = outputs["RoundStateMachineArn"]

    def become(document: dict[str, Any]) -> None:
        iam = boto3.client("iam")
        name = f"docs-{abs(hash(json.dumps(document)))}"
        trust = {
            "Version": "2012-10-17",
            "Statement": [
                {"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}
            ],
        }
        role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))["Role"]
        iam.put_role_policy(RoleName=name, PolicyName="docs", PolicyDocument=json.dumps(document))
        taken = boto3.client("sts").assume_role(RoleArn=role["Arn"], RoleSessionName="docs")
        credentials = taken["Credentials"]
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials["AccessKeyId"])
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", credentials["SecretAccessKey"])
        monkeypatch.setenv("AWS_SESSION_TOKEN", credentials["SessionToken"])

    assert ACCOUNT in machine
    return become


def coordinator(outputs: dict[str, str], name: str = "coordinator") -> dict[str, Any]:
    return policy(
        name,
        REGION=REGION,
        ACCOUNT=ACCOUNT,
        STATE_MACHINE=outputs["RoundStateMachineArn"].rpartition(":")[2],
        BUCKET=outputs["BucketName"],
    )


def test_the_coordinators_policy_opens_and_follows_rounds(
    outputs: dict[str, str], become: Become
) -> None:
    everyone = Federation()
    assert everyone.bucket  # with the credentials of now
    become(coordinator(outputs))
    federation = Federation()
    round_ = federation.open_round("policy-open", ["a"], timeout=600)
    assert round_.status()["missing"] == ["a"]
    with pytest.raises(GradshardError, match="AccessDenied"):
        round_.submit("a", UPDATE, samples=1)
    everyone.round("policy-open").submit("a", UPDATE, samples=1)
    assert round_.wait(SECONDS)["status"] == "completed"
    assert list(round_.fetch()) == ["w"]
    assert federation.open_round("policy-many", MANY, timeout=600).status()["missing"] == MANY


def test_every_statement_of_the_coordinators_policy_is_needed(
    outputs: dict[str, str], become: Become
) -> None:
    whole = coordinator(outputs)
    for number, statement in enumerate(whole["Statement"]):
        if statement["Action"] == "s3:ListBucket":
            continue  # no request by itself: it makes a 404 of a 403
        less = {**whole, "Statement": [s for s in whole["Statement"] if s is not statement]}
        become(less)
        federation = Federation()
        with pytest.raises((GradshardError, ClientError), match="AccessDenied"):
            federation.open_round(f"policy-less-{number}", MANY, timeout=600).status()


def test_the_comparers_policy_runs_trials_and_every_statement_of_it_is_needed(
    outputs: dict[str, str], become: Become
) -> None:
    round_ = Federation().open_round("policy-compare", ["a"], timeout=600)
    round_.submit("a", UPDATE, samples=1)
    round_.wait(SECONDS)
    chosen = trials(1, ["shards"])
    both = [*coordinator(outputs)["Statement"], *coordinator(outputs, "compare")["Statement"]]

    def compared(statements: list[Any]) -> list[Outcome]:
        become({"Version": "2012-10-17", "Statement": statements})
        federation = Federation()
        return list(compare(federation, federation.round("policy-compare"), chosen))

    [outcome] = compared(both)
    assert (outcome.rejected, outcome.tasks) == ("", 1)
    for statement in coordinator(outputs, "compare")["Statement"]:
        with pytest.raises((GradshardError, ClientError), match="AccessDenied"):
            compared([other for other in both if other != statement])


def operator(outputs: dict[str, str]) -> dict[str, Any]:
    return policy(
        "operator",
        REGION=REGION,
        ACCOUNT=ACCOUNT,
        STATE_MACHINE=outputs["RoundStateMachineArn"].rpartition(":")[2],
        BUCKET=outputs["BucketName"],
        COLLECT_UPDATE=outputs["CollectUpdateFunctionName"],
        ABORT_ROUND=outputs["AbortRoundFunctionName"],
    )


def test_the_operators_policy_operates_rounds_and_every_statement_of_it_is_needed(
    outputs: dict[str, str], become: Become
) -> None:
    everyone = Federation()
    assert everyone.bucket
    both = [*coordinator(outputs)["Statement"], *operator(outputs)["Statement"]]

    def operate(number: int, statements: list[Any]) -> None:
        names = [f"operated-{number}-{n}" for n in range(2)]
        become({"Version": "2012-10-17", "Statement": statements})
        federation = Federation()
        closed, cancelled = (federation.open_round(name, ["a"], timeout=600) for name in names)
        assert {found.round for found in federation.rounds("awaiting")} >= set(names)
        assert cancelled.cancel("why") == "cancelled: why"
        assert closed.close()
        with pytest.raises(RoundFailed, match=r"quorum|update"):
            closed.wait(SECONDS)
        assert closed.log()
        cancelled.remove()
        assert cancelled.store.head(cancelled.keys.manifest) is None

    operate(0, both)
    for number, statement in enumerate(operator(outputs)["Statement"], 1):
        with pytest.raises((GradshardError, ClientError), match="AccessDenied"):
            operate(number, [other for other in both if other != statement])


def test_the_ticket_makers_policy_makes_tickets(outputs: dict[str, str], become: Become) -> None:
    everyone = Federation()
    assert everyone.bucket
    maker = policy("ticket", BUCKET=outputs["BucketName"])["Statement"]
    become({"Version": "2012-10-17", "Statement": [*coordinator(outputs)["Statement"], *maker]})
    round_ = Federation().open_round("policy-ticket", ["a", "b"], timeout=600)
    TicketRound(round_.ticket("a", max_bytes=10_000)).submit(UPDATE, samples=1)
    TicketRound(round_.ticket("b", max_bytes=2 * 1024**3)).submit(UPDATE, samples=1)
    assert len(round_.wait(SECONDS)["contributors"]) == 2


def test_the_verifiers_policy_verifies_a_round_and_every_statement_of_it_is_needed(
    outputs: dict[str, str], become: Become
) -> None:
    everyone = Federation()
    if not any(True for _ in everyone.stack.store.list_objects("models/verified/")):
        everyone.model("verified").put(UPDATE)
    optimizer = {"optimizer": "fedavg", "model": "verified"}
    round_ = everyone.open_round("verified", clients=2, server_optimizer=optimizer)
    for client in ("a", "b"):
        round_.submit(client, UPDATE, samples=1)
    round_.wait(SECONDS)
    whole = policy("verifier", BUCKET=outputs["BucketName"])
    become(whole)
    mine = Federation(bucket=outputs["BucketName"]).round("verified")
    assert len(mine.verify().objects) == 2
    with pytest.raises(GradshardError, match="AccessDenied"):
        mine.submit("a", UPDATE, samples=1)
    for statement in whole["Statement"][:2]:
        others = [other for other in whole["Statement"] if other is not statement]
        become({**whole, "Statement": others})
        with pytest.raises(GradshardError, match="AccessDenied"):
            Federation(bucket=outputs["BucketName"]).round("verified").verify()
