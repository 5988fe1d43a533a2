"""Events that come twice, late, in another order or never; callers and deployments in between."""

import io
import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest

from gradshard import Federation
from gradshard.aws.boto_client import make_client
from gradshard.aws.client_store import ClientStore
from gradshard.local_engine import lifecycle
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.errors import WaitTimeoutError
from gradshard_core.formats.s3_notifications import parse_notifications
from gradshard_core.rounds import aws_requests
from tests import reference
from tests.e2e.deployed import Deployed, until
from tests.e2e.test_application import SECONDS, assert_average, contributors, update
from tests.notifications import uploaded

pytestmark = pytest.mark.e2e


def blob(seed: int) -> bytes:
    return reference.encode(update(seed), {"num_samples": str(seed)})


def test_when_every_event_is_lost_the_deadline_carries_the_round(
    no_events: None, federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("lost", clients=["a", "b", "c"], min_clients=2, timeout=8)
    seeds = {"a": 1, "b": 2}
    etags = {client: deployed.put("lost", client, blob(seed)) for client, seed in seeds.items()}
    manifest = round_.wait(SECONDS)
    assert (contributors(manifest), manifest["missing"]) == (["a", "b"], ["c"])
    assert_average(round_.fetch(), [update(1), update(2)], [1, 2])
    # They come after all, when everything is over.
    for client, etag in etags.items():
        event = uploaded(round_.keys.update(client), etag)
        outcome = deployed.call("collect_update", event)
        assert (outcome["status"], outcome["reason"]) == ("ignored", "planned already")
        assert round_.rejection(client) is None
    assert round_.wait(SECONDS) == manifest


def test_events_in_any_order_and_twice(
    no_events: None, federation: Federation, deployed: Deployed
) -> None:
    for number, order in enumerate(itertools.permutations(range(3))):
        name = f"order-{number}"
        round_ = federation.open_round(name, clients=["a", "b"], timeout=600)
        uploads = [("a", deployed.put(name, "a", b"junk"))]
        uploads += [
            ("a", deployed.put(name, "a", blob(1))),
            ("b", deployed.put(name, "b", blob(2))),
        ]
        for client, etag in [uploads[index] for index in (*order, *order)]:
            event = uploaded(round_.keys.update(client), etag)
            deployed.call("collect_update", event)
        manifest = round_.wait(SECONDS)
        assert (contributors(manifest), manifest["rejected"]) == (["a", "b"], [])
        assert_average(round_.fetch(), [update(1), update(2)], [1, 2])
        assert round_.rejection("a") is None


def test_a_client_that_never_ends_its_upload_is_not_waited_for(
    federation: Federation, deployed: Deployed
) -> None:
    deployed.put("endless", "a", blob(1))
    key = "rounds/endless/updates/b.safetensors"
    store = ClientStore(deployed.bucket, make_client())
    upload = store.create_upload(key)
    store.upload_part(key, upload, 1, io.BytesIO(blob(2)[:50]), 50)
    round_ = federation.open_round("endless", clients=["a", "b"], min_clients=1, timeout=2)
    manifest = round_.wait(SECONDS)
    assert (contributors(manifest), manifest["missing"]) == (["a"], ["b"])
    # What it has sent is its own, and goes after a week (AbortForgottenUploads).
    assert deployed.open_uploads("endless") == [key]
    store.abort_upload(key, upload)


def schedule_of(name: str) -> dict[str, Any]:
    """Return the schedule of a round's deadline, which is made some moments after its spec."""
    scheduler = boto3.client("scheduler")

    def look() -> dict[str, Any] | None:
        try:
            return dict(scheduler.get_schedule(Name=name, GroupName="gradshard-deadlines"))
        except scheduler.exceptions.ResourceNotFoundException:
            return None

    return until(look)


def undelivered(deployed: Deployed, about: str) -> list[dict[str, Any]]:
    """Take from the queue what collect_update could not take note of, of one round."""
    queue = boto3.client("sqs")
    url = deployed.outputs["UndeliveredEventsUrl"]
    found = []
    for message in queue.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", []):
        body = json.loads(message["Body"])
        if about in message["Body"]:
            found.append(body)
            queue.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return found


def test_a_deadline_that_fails_is_kept_and_can_be_delivered_by_hand(
    federation: Federation, deployed: Deployed
) -> None:
    names = ("unwoken", "woken")
    schedules: dict[str, Any] = {}
    for name in names:
        federation.open_round(name, clients=["a", "b"], min_clients=1, timeout=600)
        schedules[name] = schedule_of(name)
    round_, other = map(federation.round, names)
    # What the function cannot read, it fails at, whenever it is tried.
    place: Any = {"Bucket": deployed.bucket, "Key": round_.keys.callback}
    token = deployed.read(round_.keys.callback)
    for one in (round_, other):
        deployed.put(one.id, "a", blob(1))
        deployed.s3.put_object(Bucket=deployed.bucket, Key=one.keys.callback, Body=b"{")
    # One loses its tokens where the deadline has them, too.
    schedules["unwoken"]["Target"]["Input"] = json.dumps({"round": "unwoken", "deadline": True})
    for schedule in schedules.values():
        named = ("Name", "GroupName", "Target", "FlexibleTimeWindow", "ActionAfterCompletion")
        due = datetime.now(UTC) + timedelta(seconds=2)
        boto3.client("scheduler").update_schedule(
            **{name: schedule[name] for name in named},
            ScheduleExpression=f"at({due:%Y-%m-%dT%H:%M:%S})",
        )
    assert contributors(other.wait(SECONDS)) == ["a"]
    [message] = until(lambda: undelivered(deployed, "unwoken"))
    assert message["requestPayload"] == {"round": "unwoken", "deadline": True}
    assert message["responsePayload"]["errorType"] == "BrokenObjectError"
    assert round_.status()["state"] == "awaiting"
    # As docs/operations.md has it: mend what was wrong, then say again what is in the queue.
    deployed.s3.put_object(**place, Body=token)
    deployed.call("collect_update", message["requestPayload"])
    assert contributors(round_.wait(SECONDS)) == ["a"]


def test_an_event_that_fails_is_kept_and_the_update_counts_all_the_same(
    federation: Federation, deployed: Deployed
) -> None:
    deployed.s3.put_object(Bucket=deployed.bucket, Key="rounds/unnoted/spec.json", Body=b"{")
    deployed.put("unnoted", "a", blob(1))
    [message] = until(lambda: undelivered(deployed, "unnoted"))
    [lost] = parse_notifications(message["requestPayload"])
    assert lost.key == "rounds/unnoted/updates/a.safetensors"
    deployed.s3.delete_object(Bucket=deployed.bucket, Key="rounds/unnoted/spec.json")
    round_ = federation.open_round("unnoted", clients=["a"], timeout=600)
    assert contributors(round_.wait(SECONDS)) == ["a"]


def test_a_deadline_says_how_long_it_is_tried_and_where_it_goes_then(
    federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("scheduled", clients=["a"], timeout=600)
    target = schedule_of("scheduled")["Target"]
    assert target["RetryPolicy"]["MaximumEventAgeInSeconds"] == aws_requests.TIMEOUT_SECONDS
    queue = boto3.client("sqs").get_queue_attributes(
        QueueUrl=deployed.outputs["UndeliveredEventsUrl"], AttributeNames=["QueueArn"]
    )["Attributes"]
    assert target["DeadLetterConfig"]["Arn"] == queue["QueueArn"]
    role = target["RoleArn"].rpartition("/")[2]
    policies = boto3.client("iam")
    [name] = policies.list_role_policies(RoleName=role)["PolicyNames"]
    document: Any = policies.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
    document = json.loads(document) if isinstance(document, str) else document
    allowed = {s["Action"]: s["Resource"] for s in document["Statement"]}
    assert allowed == {"lambda:InvokeFunction": target["Arn"], "sqs:SendMessage": queue["QueueArn"]}
    # A round that ends before its deadline takes it back, so nothing is called for it any more.
    round_.submit("a", update(1), samples=1)
    round_.wait(SECONDS)

    def left() -> list[str]:
        answer = boto3.client("scheduler").list_schedules(
            GroupName="gradshard-deadlines", NamePrefix="scheduled"
        )
        found = answer["Schedules"]
        return [schedule["Name"] for schedule in found]

    assert until(lambda: not left())


def test_a_round_without_its_deadline_can_be_woken(
    federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("untimed", clients=["a", "b"], min_clients=1, timeout=8)
    schedule_of("untimed")
    boto3.client("scheduler").delete_schedule(Name="untimed", GroupName="gradshard-deadlines")
    round_.submit("a", update(1), samples=1)
    with pytest.raises(WaitTimeoutError):
        round_.wait(11)
    deployed.call("collect_update", {"round": "untimed", "deadline": True})
    assert contributors(round_.wait(SECONDS)) == ["a"]


def test_two_callers_open_one_round_at_once(federation: Federation, deployed: Deployed) -> None:
    with ThreadPoolExecutor(4) as pool:
        rounds = list(
            pool.map(lambda _: Federation().open_round("both", clients=2, timeout=600), range(4))
        )
    for seed, client in enumerate("ab", 1):
        rounds[seed].submit(client, update(seed), samples=seed)
    manifests = [round_.wait(SECONDS) for round_ in rounds]
    assert all(manifest == manifests[0] for manifest in manifests)
    assert_average(rounds[0].fetch(), [update(1), update(2)], [1, 2])
    assert deployed.ended("both")["status"] == "SUCCEEDED"


def test_twenty_rounds_at_once(federation: Federation, deployed: Deployed) -> None:
    names = [f"twenty-{number}" for number in range(20)]
    rounds = [federation.open_round(name, clients=2, timeout=600) for name in names]
    with ThreadPoolExecutor(8) as pool:
        for number, round_ in enumerate(rounds):
            for seed, client in enumerate("ab", 1):
                pool.submit(round_.submit, client, update(10 * number + seed), samples=seed)
    for number, round_ in enumerate(rounds):
        round_.wait(SECONDS)
        assert_average(round_.fetch(), [update(10 * number + 1), update(10 * number + 2)], [1, 2])
    assert [name for name in names if deployed.open_uploads(name)] == []


def test_a_round_that_is_open_while_the_stack_is_deployed_again(
    engine: Engine, federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("updated", clients=["a", "b"], timeout=600)
    round_.submit("a", update(1), samples=1)
    (engine.state / "deployed").write_text("another version")
    lifecycle.up(engine.port)
    round_.submit("b", update(2), samples=2)
    assert contributors(round_.wait(SECONDS)) == ["a", "b"]
    assert_average(round_.fetch(), [update(1), update(2)], [1, 2])
    assert deployed.ended("updated")["status"] == "SUCCEEDED"
    assert until(lambda: lifecycle.status(engine.port).deployed)
