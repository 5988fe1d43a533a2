"""The functions' roles, by what whole rounds ask of them: the local engine evaluates IAM.

Every function runs with its role's credentials. What the rounds below may not do, they fail at;
what no round does, no role need allow.
"""

import fnmatch
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import boto3
import numpy as np
import pytest
from botocore.exceptions import ClientError

from gradshard import Federation, Round, RoundFailed
from gradshard.client.training_by_ticket import TicketTraining
from gradshard.local_engine.lifecycle import Engine
from gradshard_core.formats.object_keys import ModelKeys, RoundKeys
from tests import reference
from tests.e2e.deployed import Deployed, send_unchecked, until
from tests.e2e.masking import masked_round
from tests.notifications import uploaded

pytestmark = pytest.mark.e2e

SECONDS = 120
ROLES = (
    "OpenRoundFunctionRole",
    "CollectUpdateFunctionRole",
    "PlanRoundFunctionRole",
    "AggregateShardFunctionRole",
    "FinalizeRoundFunctionRole",
    "AbortRoundFunctionRole",
    "StartTrainingFunctionRole",
    "AdvanceTrainingFunctionRole",
    "PauseTrainingFunctionRole",
    "WriteNoticesFunctionRole",
)
DECISION = re.compile(r"iam (allowed|denied) gradshard-(\w+)-\w+ (\S+) (\S+)")


class Permission(NamedTuple):
    role: str
    action: str
    resource: str


UNUSED = {
    # Passed on by the engine without asking IAM.
    ("OpenRoundFunctionRole", "iam:PassRole"),
    # What cannot be delivered goes to the queue; the engine tries three times and drops it.
    ("CollectUpdateFunctionRole", "sqs:SendMessage"),
    # Not a request: it has S3 answer 404 instead of 403 where an object is not there.
    ("AggregateShardFunctionRole", "s3:ListBucket"),
    ("FinalizeRoundFunctionRole", "s3:ListBucket"),
    # If S3 has another part than the task has recorded, as under a KMS key.
    ("FinalizeRoundFunctionRole", "s3:ListMultipartUploadParts"),
    ("AbortRoundFunctionRole", "s3:ListBucket"),
    ("StartTrainingFunctionRole", "s3:ListBucket"),
    ("PauseTrainingFunctionRole", "s3:ListBucket"),
} | {
    # Lambda writes logs and traces as the function's role; the engine keeps both without asking.
    (role, action)
    for role in ROLES
    for action in (
        "logs:CreateLogStream",
        "logs:PutLogEvents",
        "xray:PutTraceSegments",
        "xray:PutTelemetryRecords",
    )
}
"""What no round here uses, or the engine does not ask IAM for."""

LARGE = (
    ("s3:GetObject", "/rounds/*/pieces/*"),
    ("s3:PutObject", "/rounds/*/pieces/*"),
    ("s3:GetObject", "/rounds/*/clients/*"),
    ("s3:PutObject", "/rounds/*/clients/*"),
    ("s3:GetObject", "/rounds/*/arrived/*"),
    ("s3:PutObject", "/rounds/*/arrived/*"),
    ("s3:GetObject", "/trainings/*/pieces/*"),
    ("s3:PutObject", "/trainings/*/pieces/*"),
    ("s3:GetObject", "/rounds/*/metrics/*"),
    ("s3:PutObject", "/rounds/*/metrics/*"),
    ("s3:PutObject", "/trainings/*/holders/*"),
    ("s3:DeleteObject", "/trainings/*/holders/*"),
)
"""What only rounds of more than 256, 512, 1,000 or 4,096 clients use; too many for a test."""

SURVEYS = (("s3:GetObject", "/rounds/*/task-reports/*"), ("s3:ListBucketVersions", ""))
"""What ``plan_round`` does only in rounds of more than 4,096 updates."""


def is_of_large_rounds(grant: Permission) -> bool:
    """Whether a permission is used by rounds that are too large for a test.

    tests/unit/application/test_large_round_permissions.py compares them with each other.
    """
    surveys = SURVEYS if grant.role == "PlanRoundFunctionRole" else ()
    return any(
        grant.action == action and grant.resource.endswith(resource)
        for action, resource in (*LARGE, *surveys)
    )


def update(seed: int) -> dict[str, reference.Array]:
    return {"w": np.random.default_rng(seed).standard_normal(50, np.float32)}


def asked(
    engine: Engine, decisions: re.Pattern[str] = DECISION
) -> Iterator[tuple[str, Permission]]:
    """Yield how the engine decided so far, and for which role's request."""
    for decision, role, action, resource in decisions.findall(engine.log.read_text()):
        yield decision, Permission(role, action, resource)


def granted() -> Iterator[Permission]:
    """What the deployed roles allow."""
    iam = boto3.client("iam")
    for role in iam.list_roles(MaxItems=1000)["Roles"]:
        found = re.fullmatch(r"gradshard-(\w+)-\w+", role["RoleName"])
        if found is None or found[1] not in ROLES:
            continue
        for policy in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
            answer = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=policy)
            document: Any = answer["PolicyDocument"]
            document = json.loads(document) if isinstance(document, str) else document
            for statement in document["Statement"]:
                for action in as_list(statement["Action"]):
                    for resource in as_list(statement["Resource"]):
                        yield Permission(found[1], action, resource)


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@pytest.fixture(scope="module")
def rounds(federation: Federation, deployed: Deployed) -> None:
    """Rounds of every kind, so that every function comes to do all that it ever does."""
    plain(federation, deployed)
    early(federation, deployed)
    measured(federation)
    private(federation, deployed)
    tree_with_nan(federation)
    eager(federation, deployed)
    failed_tree(federation, deployed)
    given_up(federation, deployed)
    cut_off(federation, deployed)
    assigned(federation)
    applied(federation, deployed)
    late(federation, deployed)
    trained(federation, deployed)
    trained_in_part(federation, deployed)
    trained_with_a_ticket(federation)
    trained_at_their_pace(federation, deployed)
    trained_in_a_tree(federation, deployed, "iam-grove", is_lost=False)
    trained_in_a_tree(federation, deployed, "iam-lost-grove", is_lost=True)
    masked(federation)


def plain(federation: Federation, deployed: Deployed) -> None:
    """Shards; one client mends a rejected update, one not; a killed planning left an upload."""
    round_ = federation.open_round("iam-plain", clients=["a", "b", "c"], timeout=600)
    for client in "ac":
        deployed.put("iam-plain", client, b"junk")
    until(lambda: round_.rejection("a"))
    round_.submit("a", update(1), samples=1)
    until(lambda: round_.rejection("a") is None)
    deployed.s3.create_multipart_upload(Bucket=deployed.bucket, Key=round_.keys.result)
    round_.submit("b", update(2), samples=1)
    round_.wait(SECONDS)
    # Of an update that was replaced while a planning was killed.
    outdated = {"client": "b", "reason": "bad", "etag": "e"}
    deployed.s3.put_object(
        Bucket=deployed.bucket, Key=round_.keys.rejection("b"), Body=json.dumps(outdated).encode()
    )
    plan_again(deployed, "iam-plain", attempt=0)
    assert round_.rejection("b") is None
    assert deployed.open_uploads("iam-plain") == []


def plan_again(deployed: Deployed, name: str, *, attempt: int) -> None:
    """Repeat a call of ``plan_round`` as the machine does if it was killed after its plan."""
    event = {"round": name, "entered_at": "2026-01-01T00:00:00Z", "attempt": attempt}
    deployed.call("plan_round", event | {"reason": "complete", "retries": 1})


def early(federation: Federation, deployed: Deployed) -> None:
    """The update comes before its round, and its header is longer than is read at first."""
    tensors = {f"{'w' * 100}{number}": np.ones(1, "f4") for number in range(1000)}
    body = reference.encode(tensors, {"num_samples": "1"})
    deployed.put("iam-early", "a", body)
    federation.open_round("iam-early", clients=["a"], timeout=600).wait(SECONDS)
    # Too early for its own event to be looked at.
    round_ = federation.open_round("iam-long", clients=["a"], timeout=600)
    deployed.put("iam-long", "a", body)
    round_.wait(SECONDS)


def measured(federation: Federation) -> None:
    """Two passes, of which the second leaves out most updates."""
    round_ = federation.open_round("iam-krum", 5, rule={"name": "krum", "f": 1}, timeout=600)
    for number in range(5):
        round_.submit(f"c{number}", update(number), samples=1)
    assert len(round_.wait(SECONDS)["left_out"]) == 4


def private(federation: Federation, deployed: Deployed) -> None:
    """A round with noise whose model has a ledger, and one that fails with a key."""
    model = federation.model("iam-private")
    model.put({"w": np.zeros(50, np.float32)})
    private_round(federation, deployed, "iam-private", is_bad=False)
    private_round(federation, deployed, "iam-private-failed", is_bad=True)
    # The failed one has cost nothing.
    until(lambda: model.privacy().spent == 1.0)


def private_round(federation: Federation, deployed: Deployed, name: str, *, is_bad: bool) -> None:
    terms: Any = {
        "dp": {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
        "server_optimizer": {"optimizer": "fedavg", "model": "iam-private", "updates": "deltas"},
    }
    round_ = federation.open_round(name, 2, timeout=600, **terms)
    # The engine lets its own key do all, and asks about versions from the second object on.
    planted = [f"{round_.keys.secrets}other"]
    if is_bad:
        # As if the second pass had been planned before.
        planted.append(round_.keys.noise_key)
    for key in planted:
        deployed.s3.put_object(Bucket=deployed.bucket, Key=key, Body=b'{"key": "00"}')
    for number in range(2):
        tensors = update(number)
        if is_bad and number:
            tensors["w"][7] = np.nan
        send_unchecked(round_, f"c{number}", tensors, samples=1)
    if is_bad:
        with pytest.raises(RoundFailed, match="min_clients is 2"):
            round_.wait(SECONDS)
    else:
        assert round_.wait(SECONDS)["privacy"]["clients"] == 2
    until(lambda: deployed.keys(round_.keys.secrets) == [])


def tree_with_nan(federation: Federation) -> None:
    """Two levels of partial sums, planned again without one client."""
    round_ = federation.open_round("iam-tree", 5, topology="lambda_fl", timeout=600)
    for number in range(5):
        tensors = update(number)
        if number == 2:
            tensors["w"][7] = np.nan
        send_unchecked(round_, f"c{number}", tensors, samples=1)
    manifest = round_.wait(SECONDS)
    assert [rejection["client"] for rejection in manifest["rejected"]] == ["c2"]


def eager(federation: Federation, deployed: Deployed) -> None:
    """A group before the others, and the rest at the deadline."""
    clients = [f"c{i}" for i in range(4)]
    round_ = federation.open_round(
        "iam-eager",
        clients,
        topology="lifl",
        eager=True,
        weights="counts",
        timeout=600,
        layout=update(0),
    )
    for i in (0, 1):
        round_.submit(clients[i], update(i), samples=1)
    until(lambda: deployed.keys("rounds/iam-eager/task-reports/0/"))
    round_.submit(clients[3], update(3), samples=1)
    round_.close()
    manifest = round_.wait(SECONDS)
    assert manifest["missing"] == ["c2"]


def failed_tree(federation: Federation, deployed: Deployed) -> None:
    """Partial sums are there when too few clients remain: nothing of them stays."""
    round_ = federation.open_round(
        "iam-failed", 7, topology="lambda_fl", min_clients=7, timeout=600
    )
    # As if the upload had been completed, and the answer lost.
    deployed.s3.put_object(Bucket=deployed.bucket, Key=round_.keys.result, Body=b"")
    for number in range(7):
        tensors = update(number)
        if number == 6:
            tensors["w"][7] = np.inf
        send_unchecked(round_, f"c{number}", tensors, samples=1)
    with pytest.raises(RoundFailed, match="min_clients is 7"):
        round_.wait(SECONDS)
    assert deployed.ended("iam-failed")["status"] == "FAILED"
    assert deployed.keys("rounds/iam-failed/partial-sums/") == []
    assert round_.keys.result not in deployed.keys(round_.keys.root)
    deployed.start("iam-senseless", '{"clients": 0}')
    assert deployed.ended("iam-senseless")["error"] == "SpecError"


def given_up(federation: Federation, deployed: Deployed) -> None:
    """Somebody gives the round up while it is planned, or averaged: no result may be seen."""
    manifest = {"round": "iam-given-up", "status": "failed", "error": "Stopped", "cause": "by hand"}
    place: Any = {"Bucket": deployed.bucket, "Body": json.dumps(manifest).encode()}
    round_ = federation.open_round("iam-given-up", clients=2, timeout=600)
    round_.submit("a", update(1), samples=1)
    deployed.s3.put_object(Key=round_.keys.manifest, **place)
    deployed.call("collect_update", {"round": "iam-given-up", "deadline": True})
    assert deployed.ended("iam-given-up")["cause"] == "by hand"
    assert round_.keys.result not in deployed.keys(round_.keys.root)

    round_ = federation.open_round("iam-given-up-late", clients=1, timeout=600)
    round_.submit("a", update(1), samples=1)
    round_.wait(SECONDS)
    # As if it had been given up between the result and the manifest.
    deployed.s3.put_object(Key=round_.keys.manifest, **place)
    with pytest.raises(AssertionError, match="was given up: by hand"):
        deployed.call("finalize_round", {"round": round_.id})
    assert round_.keys.result not in deployed.keys(round_.keys.root)


def cut_off(federation: Federation, deployed: Deployed) -> None:
    """Updates that grow, with long headers; then a round whose rule looks at this one."""
    layers = {
        layer: {f"{layer}.{'w' * 100}{number}": np.ones(1, "f4") for number in range(600)}
        for layer in ("first", "last")
    }
    earlier = "iam-cut-off-uniform"
    for participation in ({"model": "uniform"}, {"model": "rounds", "rounds": [earlier]}):
        name = f"iam-cut-off-{participation['model']}"
        rule = {"name": "salf", "p": participation}
        round_ = federation.open_round(
            name, ["a", "b"], rule=rule, timeout=600, layout=layers["first"] | layers["last"]
        )
        round_.submit("a", layers["first"] | layers["last"], 1)
        round_.layer_upload("b", 1).add(layers["last"])
        # As if it had sent all, and deleted it again.
        gone = uploaded(round_.keys.update("b"), "gone")
        deployed.call("collect_update", gone)
        round_.close()
        round_.wait(SECONDS)


def assigned(federation: Federation) -> None:
    """A round whose assignments go on from those of another."""
    terms: dict[str, Any] = {"batch_size": 16, "epochs": 1, "learning_rate": 0.1}
    training = {"train_seconds": 3.0, "batch_size": 16, "epochs": 1, "steps": 10}
    for name, after in (("iam-week-1", {}), ("iam-week-2", {"after": "iam-week-1"})):
        round_ = federation.open_round(name, ["a"], assignments=terms | after, timeout=600)
        round_.submit("a", update(1), 160, training=training)
        round_.wait(SECONDS)


def applied(federation: Federation, deployed: Deployed) -> None:
    """Rounds that make versions of a model: planned again, failed, given up, aborted too late."""
    model = federation.model("iam")
    # Headers that are too long for a plan.
    further = {f"{'v' * 100}{number}": np.ones(1, np.float32) for number in range(700)}
    model.put({"w": np.zeros(50, np.float32), **further})
    terms: dict[str, Any] = {
        "clients": 2,
        "min_clients": 1,
        "timeout": 600,
        "server_optimizer": {"optimizer": "fedadam", "model": "iam", "buffers": ["w"]},
    }

    def begin(name: str, *, bad: bool = False, **more: Any) -> Round:
        round_ = federation.open_round(name, **terms | more)
        made = ModelKeys("iam").next_model(name)
        # What a killed planning, and a killed finalizing, left behind.
        deployed.s3.create_multipart_upload(Bucket=deployed.bucket, Key=made)
        deployed.s3.put_object(Bucket=deployed.bucket, Key=made, Body=b"")
        round_.submit("a", update(1) | further, samples=1)
        tensors = update(2) | further
        tensors["w"][7] = np.nan if bad else 1
        send_unchecked(round_, "b", tensors, samples=1)
        return round_

    def forget_current() -> None:
        """As if nobody had noted which version is current, which is done after the manifest."""
        key = ModelKeys("iam").current
        until(lambda: federation.stack.store.head(key) is not None)
        until(lambda: federation.stack.store.get_json(key) == model.current().to_json())
        deployed.s3.delete_object(Bucket=deployed.bucket, Key=ModelKeys("iam").current)

    begin("iam-next-1", bad=True).wait(SECONDS)
    plan_again(deployed, "iam-next-1", attempt=1)
    forget_current()
    # And as if a round had been stopped while it ended, long ago.
    stopped = replace(model.version(1), number=3, round_id="iam-next-gone").to_json()
    federation.stack.store.put_json(ModelKeys("iam").version(3), stopped)
    begin("iam-next-2").wait(SECONDS)
    aborted = {"round": "iam-next-2", "error": "Timeout", "cause": "too late"}
    assert deployed.call("abort_round", aborted) == {"status": "completed"}
    with pytest.raises(RoundFailed, match="min_clients is 2"):
        begin("iam-next-failed", bad=True, min_clients=2).wait(SECONDS)
    round_ = begin("iam-next-given-up")
    round_.wait(SECONDS)
    plan_again(deployed, "iam-next-given-up", attempt=0)
    # As if it had been given up between its version's reservation and the manifest.
    forget_current()
    manifest = {"round": round_.id, "status": "failed", "error": "Stopped", "cause": "by hand"}
    deployed.s3.put_object(
        Bucket=deployed.bucket, Key=round_.keys.manifest, Body=json.dumps(manifest).encode()
    )
    with pytest.raises(AssertionError, match="was given up: by hand"):
        deployed.call("finalize_round", {"round": round_.id})
    assert [version.round_id for version in model.history()] == [None, "iam-next-1", "iam-next-2"]
    made = [key for key in deployed.keys("models/iam/rounds/") if "failed" in key or "given" in key]
    assert made == []
    uploads = deployed.s3.list_multipart_uploads(Bucket=deployed.bucket, Prefix="models/iam/")
    assert uploads.get("Uploads", []) == []


def masked(federation: Federation) -> None:
    """A masked round whose keeper first refuses a client, and then answers for the others."""
    manifest = masked_round(federation, "iam-masked", ["a", "b", "c"], enrolled=["a", "b"])
    assert [rejection["client"] for rejection in manifest["rejected"]] == ["c"]


def late(federation: Federation, deployed: Deployed) -> None:
    """An upload after the end."""
    round_ = federation.round("iam-plain")
    deployed.put("iam-plain", "b", reference.encode(update(3), {"num_samples": "1"}))
    until(lambda: round_.rejection("b"))


def trained(federation: Federation, deployed: Deployed) -> None:
    """Two trainings of a model, one after the other; the second one pauses with an error."""
    federation.model("iam-trained").put(update(0))
    optimizer = {"optimizer": "fedavg", "model": "iam-trained", "buffers": ["w"]}
    options: Any = {"server_optimizer": optimizer, "poll_interval": 0.2, "timeout": 60}
    training = federation.train("iam-training", rounds=1, evaluate_every=1, sample=1, **options)
    started = {"spec": training.spec().to_json(), "started": training.state().started_at}
    again = deployed.call("start_training", {"training": training.id, **started})
    assert again == {"training": training.id, "run": 1, "step": 0}
    federation.participate(
        "a",
        lambda model, _: (model, 1, {"loss": 1}),
        lambda *_: ({"x": 1}, 1),
        training=training.id,
    )
    assert [record["metrics"] for record in training.records()] == [{"loss": 1}, {"x": 1}]
    # As if finalize_round had died before it noted the version.
    deployed.s3.delete_object(Bucket=deployed.bucket, Key=ModelKeys("iam-trained").current)
    pausing = federation.train("iam-pausing", rounds=1, sample=1, **options)
    deployed.s3.delete_object(Bucket=deployed.bucket, Key=pausing.keys.spec)
    assert until(lambda: pausing.state().status == "paused")


def trained_in_part(federation: Federation, deployed: Deployed) -> None:
    """Of a client that has sent a part of its update only, at the deadline."""
    federation.model("iam-part").put(update(0))
    optimizer = {"optimizer": "fedavg", "model": "iam-part"}
    # Before the round, lest a slow machine miss the short deadline.
    body = reference.encode(update(1), {"num_samples": "1"})
    key = RoundKeys("iam-part-00001").partial_update("a")
    deployed.s3.put_object(Bucket=deployed.bucket, Key=key, Body=body)
    training = federation.train(
        "iam-part", rounds=1, clients=["a"], server_optimizer=optimizer, rule="fill", timeout=5
    )
    assert training.wait(SECONDS).completed == 1


def trained_with_a_ticket(federation: Federation) -> None:
    """By a client whose requests the function's role has signed."""
    federation.model("iam-ticket").put(update(0))
    optimizer = {"optimizer": "fedavg", "model": "iam-ticket"}
    base = {"batch_size": 16, "epochs": 1, "learning_rate": 0.1}
    options: Any = {"server_optimizer": optimizer, "poll_interval": 0.2, "timeout": 60}
    # The second round's assignment is among those that the first one has computed.
    options |= {"assignments": base}
    training = federation.train("iam-ticket", rounds=2, clients=["a"], **options)
    held = TicketTraining(training.ticket("a"))
    invitation = until(lambda: held.state().invitation)
    round_ = held.round(invitation)
    # A renewal request to the URL that the function has signed.
    held._first_accepted("PUT")
    held.participate(lambda model, _: (model, 1))
    assert round_.rejection() is None
    assert round_.fetch().keys() == {"w"}


def trained_at_their_pace(federation: Federation, deployed: Deployed) -> None:
    """A buffered training: a version of an update after a bad one, and one that comes too late."""
    federation.model("iam-pace").put(update(0))
    training = federation.train(
        "iam-pace",
        rounds=3,
        mode="buffered",
        updates_per_version=1,
        max_staleness=0,
        server_optimizer={"optimizer": "fedavg", "model": "iam-pace"},
        timeout=600,
        repeat_after=1,
    )
    bad = update(1)
    bad["w"][7] = np.nan

    def send(client: str, version: int, tensors: dict[str, reference.Array]) -> str:
        key = training.keys.inbox(version).update(client)
        body = reference.encode(tensors, {"num_samples": "1"})
        etag: str = deployed.s3.put_object(Bucket=deployed.bucket, Key=key, Body=body)["ETag"]
        return etag.strip('"')

    for client in "ab":
        training.join(client)
    send("a", 1, bad)
    until(lambda: training.state().repeated_round == "iam-pace-00001")
    etag = send("a", 1, update(1))
    until(lambda: training.state().version == 2)
    send("b", 1, update(2))
    send("a", 2, update(3))
    until(lambda: training.state().version == 3)
    send("a", 3, update(4))
    send("b", 3, update(5))
    assert training.wait(SECONDS).completed == 3
    told = [training.keys.inbox(3).rejection(client) for client in "ab"]
    # What waits is rejected once the state of the end is written.
    [waited] = until(lambda: [*filter(None, map(federation.stack.store.get_json, told))])
    assert waited["reason"].endswith("has ended: all 3 rounds have completed")
    late = uploaded(training.keys.inbox(1).update("a"), etag)
    answer = deployed.call("collect_update", late)
    assert answer["reason"] == "counted already"
    # As if advance_training had died before it told them, and before the newest version was noted.
    for key in (*told, ModelKeys("iam-pace").current):
        deployed.s3.delete_object(Bucket=deployed.bucket, Key=key)
    lost = {"training": training.id, "run": training.state().run, "error": "E", "cause": "dead"}
    assert deployed.call("pause_training", lost)["status"] == "ended"
    assert [*filter(None, map(federation.stack.store.get_json, told))] == [waited]


def trained_in_a_tree(
    federation: Federation, deployed: Deployed, name: str, *, is_lost: bool
) -> None:
    """A private training whose noise cancels; or one that pauses before its second round ends."""
    model = federation.model(name)
    model.put({"w": np.zeros(50, np.float32)})
    training = federation.train(
        name,
        rounds=2,
        clients=["a", "b", "c", "d"],
        sample=2,
        noise_tree=2,
        dp={"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5},
        server_optimizer={"optimizer": "fedavg", "model": name, "updates": "deltas"},
        timeout=600,
    )
    first, second = (federation.round(f"{name}-0000{number}") for number in (1, 2))
    invited: list[str] = []
    for round_ in (first, second):
        until(partial(deployed.keys, round_.keys.spec))
        invitation = training.state().invitation
        assert invitation is not None
        assert invitation.round_id == round_.keys.round_id
        invited += invitation.clients
        planted = f"{round_.keys.secrets}other"  # as in a private round
        deployed.s3.put_object(Bucket=deployed.bucket, Key=planted, Body=b"{}")
        if is_lost and round_ is second:
            deployed.s3.delete_object(Bucket=deployed.bucket, Key=training.keys.spec)
        for client in invitation.clients:
            send_unchecked(round_, client, update(1), samples=1)
    assert sorted(invited) == ["a", "b", "c", "d"]
    until(lambda: training.state().status == ("paused" if is_lost else "ended"))
    for round_ in (first, second):
        # Keys are deleted after the state that drops them has been written.
        until(partial(deployed.has_none, round_.keys.secrets))
    privacy = second.wait(SECONDS)["privacy"]
    assert privacy["tree"]["cancels"] == [first.keys.round_id]
    assert (privacy["cost"], privacy["spent"]) == (1.0, 2.0)
    # Does the training keep the key?
    aborted = {"round": first.keys.round_id, "error": "Timeout", "cause": "too late"}
    assert deployed.call("abort_round", aborted) == {"status": "completed"}
    [one, both] = (round_.fetch()["w"] for round_ in (first, second))
    np.testing.assert_allclose(model.fetch()["w"], one + both, atol=1e-6)


@pytest.mark.usefixtures("rounds")
def test_no_function_is_denied_an_action(engine: Engine) -> None:
    decided = list(asked(engine))
    assert {permission.role for _, permission in decided} >= set(ROLES)
    assert [permission for decision, permission in decided if decision == "denied"] == []


@pytest.mark.usefixtures("rounds")
def test_every_permission_of_a_function_is_used(engine: Engine) -> None:
    used = {permission for decision, permission in asked(engine) if decision == "allowed"}
    unused = {
        grant
        for grant in granted()
        if not any(
            (grant.role, grant.action) == (use.role, use.action)
            and (use.resource == "*" or fnmatch.fnmatchcase(use.resource, grant.resource))
            for use in used
        )
    }
    found = sorted(
        " ".join(grant)
        for grant in unused
        if grant[:2] not in UNUSED and not is_of_large_rounds(grant)
    )
    assert "\n".join(found) == ""


@pytest.mark.usefixtures("rounds")
def test_a_function_may_not_use_permissions_of_another(engine: Engine, deployed: Deployed) -> None:
    """The engine's denials are real: with a task's role, what planning and clients may."""
    role = next(
        role["Arn"]
        for role in boto3.client("iam").list_roles(MaxItems=1000)["Roles"]
        if "AggregateShardFunctionRole" in role["RoleName"]
    )
    session = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="try")["Credentials"]
    s3 = boto3.client(
        "s3",
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    place: dict[str, Any] = {"Bucket": deployed.bucket}
    s3.get_object(Key="rounds/iam-plain/plan.json", **place)
    for rejected in (
        lambda: s3.get_object(Key="rounds/iam-plain/callback.json", **place),
        lambda: s3.get_object(Key="rounds/iam-plain/updates/a.safetensors", **place),
        lambda: s3.put_object(Key="rounds/iam-plain/updates/a.safetensors", Body=b"", **place),
        lambda: s3.put_object(Key="rounds/iam-plain/manifest.json", Body=b"", **place),
        lambda: s3.delete_object(Key="rounds/iam-plain/update.safetensors", **place),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            rejected()


@pytest.mark.usefixtures("rounds")
def test_nobody_but_one_role_each_reads_or_brings_the_key_of_noise(deployed: Deployed) -> None:
    iam, name = boto3.client("iam"), "reader-of-everything"
    iam.create_user(UserName=name)
    allow = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_user_policy(UserName=name, PolicyName="all", PolicyDocument=document)
    made = iam.create_access_key(UserName=name)["AccessKey"]
    s3 = boto3.client(
        "s3",
        aws_access_key_id=made["AccessKeyId"],
        aws_secret_access_key=made["SecretAccessKey"],
    )
    place: dict[str, Any] = {"Bucket": deployed.bucket}
    s3.get_object(Key="rounds/iam-private/plan.json", **place)
    key = RoundKeys("iam-private").noise_key
    for rejected in (
        lambda: s3.get_object(Key=key, **place),
        lambda: s3.put_object(Key=key, Body=b"{}", **place),
    ):
        with pytest.raises(ClientError, match="AccessDenied"):
            rejected()
