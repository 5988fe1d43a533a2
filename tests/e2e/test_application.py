"""Rounds of the deployed application, through the client library."""

import itertools
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import safetensors

from gradshard import Federation, Round, RoundFailed
from gradshard_core.errors import RoundExistsError, RoundStateError, UpdateError
from gradshard_core.units import MIB
from tests import reference
from tests.e2e.deployed import Deployed, send_unchecked, until
from tests.notifications import uploaded

pytestmark = pytest.mark.e2e

Update = dict[str, reference.Array]

SECONDS = 120
"""How long a round may take on a busy machine before its test gives up."""


def update(seed: int) -> Update:
    rng = np.random.default_rng(seed)
    return {
        "fc.weight": reference.random_tensor(rng, "F32", (7, 5)),
        "fc.bias": reference.random_tensor(rng, "BF16", (5,)),
    }


def assert_average(
    result: Mapping[str, reference.Array], updates: Iterable[Update], samples: Iterable[int]
) -> None:
    expected = reference.average(list(updates), list(samples))
    assert set(result) == set(expected)
    for name, tensor in expected.items():
        assert (result[name].dtype, result[name].shape) == (tensor.dtype, tensor.shape)
        assert result[name].tobytes() == tensor.tobytes(), name


def contributors(manifest: dict[str, Any]) -> list[str]:
    return [contributor["client"] for contributor in manifest["contributors"]]


def rejection(round_: Round, client: str) -> str:
    """Wait for the reason that a client reads."""
    return until(lambda: round_.rejection(client))


def test_a_round_of_mixed_types(federation: Federation, deployed: Deployed) -> None:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "fc.weight": ("F32", (64, 33)),
        "fc.bias": ("BF16", (33,)),
        "half": ("F16", (3, 3)),
        "double": ("F64", (2,)),
        "bn.num_batches_tracked": ("I64", ()),
        "mask": ("U8", (5,)),
        "nothing": ("F32", (0, 4)),
    }
    updates = {
        client: {
            name: reference.random_tensor(rng, dtype, shape)
            for name, (dtype, shape) in shapes.items()
        }
        for client in "ab"
    }
    round_ = federation.open_round("mixed", clients=["a", "b"], min_clients=1, timeout=600)
    round_.submit("b", updates["b"], samples=100)
    round_.submit("a", updates["a"], samples=512)
    manifest = round_.wait(SECONDS)
    assert_average(round_.fetch(), updates.values(), [512, 100])
    weights = [(c["client"], c["samples"], c["weight"]) for c in manifest["contributors"]]
    assert weights == [("a", 512, 512 / 612), ("b", 100, 100 / 612)]
    read = dict(safetensors.deserialize(deployed.read("rounds/mixed/update.safetensors")))
    assert {(name, entry["dtype"], tuple(entry["shape"])) for name, entry in read.items()} == {
        (name, dtype, shape) for name, (dtype, shape) in shapes.items()
    }
    assert deployed.ended("mixed")["status"] == "SUCCEEDED"


def test_every_number_of_shards_and_order_of_arrival_gives_the_same_bytes(
    federation: Federation, deployed: Deployed, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    count = 20 * MIB // 4
    updates = [
        {
            "w": rng.standard_normal(count - 1001, np.float32),
            "b": rng.standard_normal(1001, np.float32),
        }
        for _ in range(5)
    ]
    results = set()
    for shards, order in ((1, (0, 1, 2, 3, 4)), (3, (4, 2, 0, 3, 1)), (None, (3, 4, 1, 0, 2))):
        name = f"m-{shards}"
        round_ = federation.open_round(name, clients=5, shards=shards, timeout=600)
        for i in order:
            round_.submit(f"c{i}", updates[i], samples=100 + i)
        manifest = round_.wait(SECONDS)
        assert manifest["shards"] == (shards or manifest["projected"]["shards"])
        results.add(round_.fetch(tmp_path / name).read_bytes())
        assert_average(round_.fetch(), updates, range(100, 105))
        # The engine keeps its objects in memory.
        for key in deployed.keys(f"rounds/{name}/updates/"):
            deployed.s3.delete_object(Bucket=deployed.bucket, Key=key)
    assert len(results) == 1


def test_at_the_deadline_the_round_goes_on_with_the_rest(
    federation: Federation, deployed: Deployed
) -> None:
    # Before the round, lest a slow machine miss the short deadline.
    for client, seed in (("a", 1), ("c", 2)):
        deployed.put("missing", client, reference.encode(update(seed), {"num_samples": str(seed)}))
    round_ = federation.open_round("missing", clients=["a", "b", "c"], min_clients=2, timeout=2)
    manifest = round_.wait(SECONDS)
    assert (contributors(manifest), manifest["missing"]) == (["a", "c"], ["b"])
    assert_average(round_.fetch(), [update(1), update(2)], [1, 2])


def test_below_the_quorum_the_round_fails_with_all_reasons(
    no_events: None, federation: Federation, deployed: Deployed
) -> None:
    # An update whose event comes when the round has failed is one that came too late.
    round_ = federation.open_round("quorum", clients=["a", "b", "c"], min_clients=2, timeout=600)
    bodies = {
        "a": reference.encode(update(1), {"num_samples": "1"}),
        "b": b"not an update at all",
    }
    for client, body in bodies.items():
        etag = deployed.put("quorum", client, body)
        deployed.call("collect_update", uploaded(round_.keys.update(client), etag))
    round_.close()
    with pytest.raises(RoundFailed) as failure:
        round_.wait(SECONDS)
    cause = str(failure.value)
    assert "1 good update, but min_clients is 2; missing: c; rejected: b: " in cause
    assert "rounds/quorum/updates/b.safetensors: " in cause
    execution = deployed.ended("quorum")
    assert (execution["status"], execution["error"]) == ("FAILED", "QuorumError")
    assert round_.status()["state"] == "failed"
    with pytest.raises(RoundFailed, match="min_clients is 2"):
        round_.fetch()
    assert round_.rejection("a") is None
    assert rejection(round_, "b") in cause
    assert deployed.update("quorum", "b") == b"not an update at all"
    assert deployed.open_uploads("quorum") == []


def test_a_corrupt_update_and_a_nan_cost_their_senders_the_round(
    federation: Federation, deployed: Deployed
) -> None:
    clients = ["corrupt", "fine", "nan", "well"]
    round_ = federation.open_round("bad", clients=clients, min_clients=2, timeout=600)
    nan = update(9)
    nan["fc.weight"][6, 4] = np.nan
    corrupt = reference.encode(update(8), {"num_samples": "3"})[:-1]
    deployed.put("bad", "corrupt", corrupt)
    assert "out of the object's" in rejection(round_, "corrupt")
    send_unchecked(round_, "nan", nan, samples=3)
    round_.submit("fine", update(1), samples=3)
    round_.submit("well", update(2), samples=5)
    manifest = round_.wait(SECONDS)
    assert_average(round_.fetch(), [update(1), update(2)], [3, 5])
    assert contributors(manifest) == ["fine", "well"]
    assert [rejection["client"] for rejection in manifest["rejected"]] == ["corrupt", "nan"]
    assert manifest["attempts"] == 2
    assert round_.rejection("fine") is None
    assert "'fc.weight' holds a NaN or an infinity at element 34" in rejection(round_, "nan")
    assert deployed.update("bad", "corrupt") == corrupt
    stored = reference.decode(deployed.update("bad", "nan"))
    assert all(stored[name].tobytes() == nan[name].tobytes() for name in nan)
    assert deployed.open_uploads("bad") == []


def test_too_few_remain_after_a_nan(federation: Federation, deployed: Deployed) -> None:
    round_ = federation.open_round("few", clients=["a", "b"], min_clients=2, timeout=600)
    nan = update(1)
    nan["fc.weight"][0, 0] = -np.inf
    round_.submit("a", update(2), samples=1)
    send_unchecked(round_, "b", nan, samples=1)
    with pytest.raises(RoundFailed, match=r"1 good update, .* b: .*'fc.weight' holds a NaN"):
        round_.wait(SECONDS)
    assert deployed.ended("few")["status"] == "FAILED"
    assert deployed.open_uploads("few") == []
    assert "rounds/few/update.safetensors" not in deployed.keys("rounds/few/")


def test_a_rejected_update_can_be_mended_in_time(
    federation: Federation, deployed: Deployed
) -> None:
    round_ = federation.open_round("mended", clients=["a", "b"], timeout=600)
    deployed.put("mended", "a", b"junk")
    assert "not a safetensors object" in rejection(round_, "a")
    round_.submit("a", update(1), samples=1)
    until(lambda: round_.rejection("a") is None)
    round_.submit("b", update(2), samples=1)
    manifest = round_.wait(SECONDS)
    assert (contributors(manifest), manifest["rejected"]) == (["a", "b"], [])
    assert_average(round_.fetch(), [update(1), update(2)], [1, 1])


def test_the_last_upload_before_planning_counts(federation: Federation) -> None:
    round_ = federation.open_round("twice", clients=["a", "b"], timeout=600)
    for seed in (1, 2, 3):
        round_.submit("a", update(seed), samples=seed)
    round_.submit("b", update(4), samples=4)
    round_.wait(SECONDS)
    assert_average(round_.fetch(), [update(3), update(4)], [3, 4])


def test_a_round_of_a_number_of_clients_takes_any_ids(federation: Federation) -> None:
    federation.open_round("anyone", clients=3, timeout=600)
    # A client need not know more than the bucket.
    round_ = Federation(bucket=federation.bucket).round("anyone")
    for i, client in enumerate(("zoe", "0", "Max-1"), 1):
        round_.submit(client, update(i), samples=i)
    assert contributors(round_.wait(SECONDS)) == ["0", "Max-1", "zoe"]
    assert_average(round_.fetch(), [update(2), update(3), update(1)], [2, 3, 1])


def test_opening_twice_is_once_but_not_with_other_options(
    federation: Federation, deployed: Deployed
) -> None:
    terms: dict[str, Any] = {"clients": ["b", "a"], "min_clients": 1, "timeout": 600}
    round_ = federation.open_round("again", **terms)
    federation.open_round("again", **terms)
    with pytest.raises(RoundExistsError, match="'again' was opened before, with other options"):
        federation.open_round("again", **(terms | {"min_clients": 2}))
    for client in "ab":
        round_.submit(client, update(1), samples=1)
    manifest = round_.wait(SECONDS)
    assert federation.open_round("again", **terms).wait(SECONDS) == manifest
    assert deployed.ended("again")["status"] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("spec", "cause"),
    [
        ('{"clients": []}', "clients has 0 ids"),
        ('{"clients": ["a", "../b"]}', "client id '../b' is not"),
        ('{"clients": 2, "min_clients": 3}', "min_clients is 3, over the 2 expected clients"),
        ('{"clients": 2, "epochs": 3}', "unknown field 'epochs'"),
        ("[1]", "a round's spec is a JSON object, not list"),
    ],
)
def test_terms_that_make_no_sense_fail_with_our_cause(
    federation: Federation, deployed: Deployed, spec: str, cause: str
) -> None:
    name = f"senseless-{len(spec)}"
    deployed.start(name, spec)
    execution = deployed.ended(name)
    assert (execution["status"], execution["error"]) == ("FAILED", "SpecError")
    assert cause in execution["cause"]
    manifest = json.loads(deployed.read(f"rounds/{name}/manifest.json"))
    assert (manifest["status"], manifest["cause"]) == ("failed", execution["cause"])
    with pytest.raises(RoundFailed) as failure:
        federation.round(name).wait(SECONDS)
    assert cause in str(failure.value)


def test_a_name_that_no_object_can_have(deployed: Deployed) -> None:
    deployed.start("_x", '{"clients": 1}')
    execution = deployed.ended("_x")
    assert (execution["status"], execution["error"]) == ("FAILED", "SpecError")
    assert "round id '_x' is not" in execution["cause"]


def test_an_update_may_come_before_its_round(federation: Federation, deployed: Deployed) -> None:
    deployed.put("early", "a", reference.encode(update(1), {"num_samples": "1"}))
    round_ = federation.open_round("early", clients=["a"], timeout=600)
    assert contributors(round_.wait(SECONDS)) == ["a"]
    assert_average(round_.fetch(), [update(1)], [1])


def test_a_late_upload_is_ignored_and_told_so(federation: Federation, deployed: Deployed) -> None:
    deployed.put("late", "a", reference.encode(update(1), {"num_samples": "1"}))
    round_ = federation.open_round("late", clients=["a", "b"], min_clients=1, timeout=2)
    manifest = round_.wait(SECONDS)
    for client in "ab":
        deployed.put("late", client, reference.encode(update(2), {"num_samples": "1"}))
    after = "uploaded after the round was planned; "
    assert f"{after}the version uploaded before" in rejection(round_, "a")
    assert f"{after}the client takes no part" in rejection(round_, "b")
    assert [entry["client"] for entry in round_.status()["late"]] == ["a", "b"]
    with pytest.raises(RoundStateError, match="takes no more updates"):
        round_.submit("b", update(2), samples=1)
    assert round_.wait(SECONDS) == manifest
    assert_average(round_.fetch(), [update(1)], [1])


def test_an_unexpected_client_is_rejected(federation: Federation, deployed: Deployed) -> None:
    round_ = federation.open_round("closed", clients=["a"], timeout=600)
    with pytest.raises(UpdateError, match="client 'eve' is not expected in round 'closed', only a"):
        round_.submit("eve", update(1), samples=1)
    deployed.put("closed", "eve", reference.encode(update(1), {"num_samples": "1"}))
    assert "client 'eve' is not expected" in rejection(round_, "eve")
    round_.submit("a", update(2), samples=1)
    assert contributors(round_.wait(SECONDS)) == ["a"]


def test_an_event_that_comes_twice_is_once(federation: Federation, deployed: Deployed) -> None:
    round_ = federation.open_round("echo", clients=["a", "b"], timeout=600)
    etag = deployed.put("echo", "a", reference.encode(update(1), {"num_samples": "1"}))
    event = uploaded(round_.keys.update("a"), etag)
    for _ in range(2):
        outcome = deployed.call("collect_update", event)
        assert (outcome["status"], outcome["resumed"]) == ("accepted", False)
    round_.submit("b", update(2), samples=1)
    manifest = round_.wait(SECONDS)
    repeated = deployed.call("collect_update", event)
    assert (repeated["status"], repeated["reason"]) == ("ignored", "planned already")
    assert round_.rejection("a") is None
    # So may the deadline.
    assert not deployed.call("collect_update", {"round": "echo", "deadline": True})["resumed"]
    assert round_.wait(SECONDS) == manifest
    assert_average(round_.fetch(), [update(1), update(2)], [1, 1])


def test_two_rounds_at_once(federation: Federation) -> None:
    rounds = [federation.open_round(f"side-{i}", clients=2, timeout=600) for i in range(2)]
    for i, client in itertools.product(range(2), "ab"):
        rounds[i].submit(client, update(10 * i + ord(client)), samples=1)
    for i, round_ in enumerate(rounds):
        round_.wait(SECONDS)
        updates = [update(10 * i + ord(client)) for client in "ab"]
        assert_average(round_.fetch(), updates, [1, 1])


def test_sixty_four_clients_all_at_once(federation: Federation) -> None:
    round_ = federation.open_round("many", clients=64, timeout=600)
    with ThreadPoolExecutor(16) as pool:
        for submitted in [
            pool.submit(round_.submit, f"c{i:02}", update(i), samples=i + 1) for i in range(64)
        ]:
            submitted.result()
    manifest = round_.wait(SECONDS)
    assert (len(manifest["contributors"]), manifest["rejected"]) == (64, [])
    assert_average(round_.fetch(), map(update, range(64)), range(1, 65))


def test_others_are_told_how_a_round_ended(federation: Federation, deployed: Deployed) -> None:
    events, sqs = boto3.client("events"), boto3.client("sqs")
    queue = sqs.create_queue(QueueName="ends")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    events.put_rule(Name="ends", EventPattern=json.dumps({"source": ["gradshard"]}))
    arn = attributes["Attributes"]["QueueArn"]
    events.put_targets(Rule="ends", Targets=[{"Id": "queue", "Arn": arn}])
    federation.open_round("told", clients=1, timeout=600).submit("a", update(1), samples=1)
    deployed.start("told-not", '{"clients": 0}')
    told: dict[str, dict[str, Any]] = {}

    def look() -> bool:
        for message in sqs.receive_message(QueueUrl=queue).get("Messages", []):
            event = json.loads(message["Body"])
            told[event["detail"]["round"]] = event
        # Others, too: a round says that it has ended some moments after its manifest.
        return {"told", "told-not"} <= told.keys()

    until(look, SECONDS)
    completed, failed = told["told"], told["told-not"]
    assert completed["detail-type"] == "RoundCompleted"
    assert completed["detail"] == {"round": "told", "bucket": deployed.bucket}
    assert failed["detail-type"] == "RoundFailed"
    assert "clients is 0" in failed["detail"]["cause"]
    events.remove_targets(Rule="ends", Ids=["queue"])
    events.delete_rule(Name="ends")
