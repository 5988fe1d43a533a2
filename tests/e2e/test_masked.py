"""Masked rounds on two stacks: what they give, and what each stack is denied of the other."""

import json
import re
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from gradshard import Federation, Keeper, Mask, RoundFailed
from gradshard.local_engine.lifecycle import Engine
from gradshard.updates.mask_identity import make_identity
from gradshard.verification.verification_ticket import VerificationTicket
from gradshard_core.errors import TicketError, UpdateError
from gradshard_core.mask_keeper.records import PRIVATE_KEY
from tests import masked
from tests.e2e.deployed import Deployed, until
from tests.e2e.masking import SECONDS, identities, masked_round, samples_of, terms_of, update_of
from tests.e2e.test_client_policy import TRUST
from tests.e2e.test_training_tickets import without_credentials

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def keeper(engine: Engine) -> Keeper:
    return Keeper()


def test_the_result_is_the_plain_sum_bit_for_bit(federation: Federation, keeper: Keeper) -> None:
    clients = ["a", "b", "c", "d"]
    masks = identities(keeper, clients, clients)
    round_ = federation.open_round(
        "masked-plain", clients, layout=update_of("a"), masked=terms_of(keeper), timeout=600
    )
    for client in clients[:3]:
        round_.submit(client, update_of(client), samples_of(client), mask=masks[client])
    round_.close()  # d is lost
    manifest = round_.wait(SECONDS)
    expected = masked.average(
        terms_of(keeper), [update_of(c) for c in "abc"], [samples_of(c) for c in "abc"]
    )
    found = round_.fetch()
    assert {n: np.asarray(t).tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }
    assert manifest["missing"] == ["d"]
    record = keeper.answer("masked-plain")
    assert record["summed"].keys() == {"a", "b", "c"}
    # The round goes on when it has the answer; the keeper notes that it has given it after that.
    until(lambda: keeper.answer("masked-plain")["given_at"])
    until(lambda: not list(keeper.store.list_objects("requests/")))


def test_a_client_that_is_not_enrolled_costs_nobody_else(federation: Federation) -> None:
    manifest = masked_round(federation, "masked-stranger", ["a", "b", "x"], enrolled=["a", "b"])
    assert [entry["client"] for entry in manifest["contributors"]] == ["a", "b"]
    assert "not enrolled" in manifest["rejected"][0]["reason"]


def test_the_client_sends_nothing_to_other_terms(
    federation: Federation, keeper: Keeper, tmp_path: Path
) -> None:
    make_identity(tmp_path / "key")
    masked_ = federation.open_round(
        "masked-terms", ["a", "b"], layout=update_of("a"), masked=terms_of(keeper), timeout=600
    )
    plain = federation.open_round("masked-not", ["a", "b"], timeout=600)
    trusted = Mask(tmp_path / "key", keeper.fingerprint())
    with pytest.raises(UpdateError, match="has a keeper with the fingerprint"):
        masked_.submit("a", update_of("a"), 5, mask=Mask(tmp_path / "key", "00" * 32))
    few = Mask(tmp_path / "key", keeper.fingerprint(), least_clients=3)
    with pytest.raises(UpdateError, match="is to be hidden among 3 at least"):
        masked_.submit("a", update_of("a"), 5, mask=few)
    with pytest.raises(UpdateError, match="num_samples is 1001, not from 1 to 1000"):
        masked_.submit("a", update_of("a"), 1001, mask=trusted)
    with pytest.raises(UpdateError, match="takes masked updates only"):
        masked_.submit("a", update_of("a"), 5)
    with pytest.raises(UpdateError, match="is not masked"):
        plain.submit("a", update_of("a"), 5, mask=trusted)
    for round_ in (masked_, plain):
        assert list(federation.stack.store.list_objects(round_.keys.updates)) == []
        round_.cancel("nothing was sent")


def test_a_keeper_that_is_away_fails_the_round_with_that_cause(
    federation: Federation, keeper: Keeper
) -> None:
    clients = ["a", "b"]
    masks = identities(keeper, clients, clients)
    terms = terms_of(keeper)
    key = keeper.store.get_bytes(PRIVATE_KEY)
    assert key is not None
    keeper.store.delete(PRIVATE_KEY)
    try:
        round_ = federation.open_round(
            "masked-away", clients, layout=update_of("a"), masked=terms, timeout=10
        )
        for client in clients:
            round_.submit(client, update_of(client), 5, mask=masks[client])
        with pytest.raises(RoundFailed, match="the mask keeper has not answered by"):
            round_.wait(SECONDS)
    finally:
        keeper.store.put_bytes(PRIVATE_KEY, key)
    assert round_.keys.result not in [
        entry.key for entry in federation.stack.store.list_objects(round_.keys.root)
    ]


# ------------------------------------------------------------------- what each stack is denied


def roles_of(stack: str) -> dict[str, list[Any]]:
    """The functions' roles of a stack, each with its policies."""
    iam = boto3.client("iam")
    found = {}
    for role in iam.list_roles(MaxItems=1000)["Roles"]:
        name = re.fullmatch(rf"{stack}-([A-Za-z]+FunctionRole)-\w+", role["RoleName"])
        if name is None:
            continue
        policies = iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]
        found[name[1]] = [
            iam.get_role_policy(RoleName=role["RoleName"], PolicyName=policy)["PolicyDocument"]
            for policy in policies
        ]
    return found


def s3_as(policies: list[Any]) -> Any:
    """Become somebody with the policies of a role."""
    iam, name = boto3.client("iam"), f"as-{np.random.default_rng().integers(10**9)}"
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]["Arn"]
    for number, document in enumerate(policies):
        text = document if isinstance(document, str) else json.dumps(document)
        iam.put_role_policy(RoleName=name, PolicyName=f"p{number}", PolicyDocument=text)
    session = boto3.client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    return boto3.client(
        "s3",
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )


def allowed(s3: Any, bucket: str, keys: list[str]) -> set[tuple[str, str]]:
    """Try everything on some objects of a bucket; return what was allowed."""
    found = set()
    for key in keys:
        for action in ("get", "put", "delete"):
            more = {"Body": b"{}"} if action == "put" else {}
            try:
                getattr(s3, f"{action}_object")(Bucket=bucket, Key=key, **more)
            except ClientError as error:
                if error.response["Error"]["Code"] in {"AccessDenied", "403"}:
                    continue
            found.add((action, key))
    try:
        s3.list_objects_v2(Bucket=bucket)
        found.add(("list", ""))
    except ClientError:
        pass
    return found


def test_the_aggregator_may_do_nothing_with_the_keeper_but_ask(
    deployed: Deployed, keeper: Keeper, federation: Federation
) -> None:
    masked_round(federation, "masked-denied", ["a", "b"], enrolled=["a", "b"])
    keys = ["private-key", "clients/a.json", "answers/masked-denied.json"]
    keys += [entry.key for entry in keeper.store.list_objects("seeds/")][:1]
    keys += ["requests/nothing.json", "work/masked-denied.json", "given/masked-denied.json"]
    roles = roles_of("gradshard")
    assert len(roles) == 10
    for role, policies in roles.items():
        may = allowed(s3_as(policies), keeper.store.bucket, keys)
        expected = {("put", "requests/nothing.json")} if role == "PlanRoundFunctionRole" else set()
        assert may == expected, role


def test_the_keeper_may_do_nothing_with_the_aggregator_but_answer(
    deployed: Deployed, keeper: Keeper, federation: Federation
) -> None:
    masked_round(federation, "masked-denied-too", ["a", "b"], enrolled=["a", "b"])
    root = "rounds/masked-denied-too/"
    answers = [f"{root}keeper/masks", f"{root}keeper/refusal.json"]
    keys = [
        *(f"{root}{name}" for name in ("updates/a.safetensors", "update.safetensors")),
        *(f"{root}{name}" for name in ("plan.json", "spec.json", "manifest.json")),
        "models/model/current.json",
        *answers,
    ]
    roles = roles_of("gradshard-keeper")
    assert roles.keys() == {
        "CheckRequestFunctionRole",
        "SumMasksFunctionRole",
        "GiveAnswerFunctionRole",
    }
    for role, policies in roles.items():
        may = allowed(s3_as(policies), deployed.bucket, keys)
        writes = answers if role == "CheckRequestFunctionRole" else answers[:1]
        assert may == {("put", key) for key in writes}, role


# ------------------------------------------------------------- verifying, without credentials


def test_a_contributor_verifies_with_a_ticket(
    federation: Federation, keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, clients = "masked-verified", ["a", "b"]
    masked_round(federation, name, clients, enrolled=clients)
    round_ = federation.round(name)
    round_.verification_ticket("b").save(tmp_path / "b")
    with without_credentials():
        ticket = VerificationTicket.load(tmp_path / "b")
        found = ticket.verify(sample=1.0, seed="s")
    assert found == round_.verify(sample=1.0, seed="s")
    assert found.is_correct
    assert "only the keeper can recompute" in found.notes[0]
    assert ticket.objects[0].url not in repr(ticket)
    read = {entry.key.removeprefix(round_.keys.root) for entry in ticket.objects}
    assert read == {
        *("spec.json", "manifest.json", "update.safetensors", "keeper/masks"),
        *(f"updates/{client}.safetensors" for client in clients),
    }
    monkeypatch.setattr(VerificationTicket, "max_file_bytes", len(ticket.dumps()) - 1)
    with pytest.raises(TicketError, match="has 6 objects to read, and the URLs of so many"):
        round_.verification_ticket("b")
    plain = federation.open_round("masked-unverified", 1)
    plain.submit("a", update_of("a"), 5)
    plain.wait(SECONDS)
    with pytest.raises(TicketError, match="is not masked: with the ticket 'b' would read"):
        plain.verification_ticket("b")
