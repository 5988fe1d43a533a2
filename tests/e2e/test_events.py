"""The example events are what the deployed functions take."""

import json
from pathlib import Path

import pytest

from gradshard_core.formats.s3_notifications import parse_notifications
from tests import reference
from tests.e2e import example_round
from tests.e2e.deployed import Deployed
from tests.planned import levels_of

pytestmark = pytest.mark.e2e

FUNCTIONS = Path(__file__).parents[2] / "functions"


def test_every_function_has_an_event() -> None:
    functions = {folder.name for folder in FUNCTIONS.iterdir()}
    assert {file.stem for file in example_round.EVENTS.iterdir()} == functions


def test_the_events_of_a_round_in_order(deployed: Deployed) -> None:
    example_round.remove(deployed)
    opened = deployed.call("open_round", example_round.event("open_round"))
    assert opened == {"round": "r1", "status": "opened", "resumed": False}

    etags = example_round.upload(deployed)
    event = example_round.event("collect_update")
    [uploaded] = parse_notifications(event)
    assert uploaded.etag == etags["c"]
    collected = deployed.call("collect_update", event)
    # Nobody waits for the example's token.
    assert collected == {"round": "r1", "client": "c", "status": "accepted", "resumed": False}

    planned = deployed.call("plan_round", example_round.event("plan_round"))
    assert (planned["attempt"], planned["shards"]) == (0, 1)
    task = example_round.event("aggregate_shard")
    [level] = levels_of(planned)
    assert json.loads(deployed.read(level["key"])) == [{"tasks": [task]}]

    report = deployed.call("aggregate_shard", task)
    nbytes = task["task"]["end"]
    assert report["bytes_read"] >= len(example_round.SAMPLES) * nbytes
    assert (report["bytes_written"] >= nbytes, report["rejected"]) == (True, [])

    finalized = deployed.call("finalize_round", example_round.event("finalize_round"))
    assert finalized == {"status": "completed"}
    result = reference.decode(deployed.read("rounds/r1/update.safetensors"))
    updates = [example_round.update(client) for client in example_round.SAMPLES]
    expected = reference.average(updates, list(example_round.SAMPLES.values()))
    assert {name: result[name].tobytes() == expected[name].tobytes() for name in result} == {
        "fc.weight": True,
        "fc.bias": True,
    }

    # Too late to fail it.
    aborted = deployed.call("abort_round", example_round.event("abort_round"))
    assert aborted == {"status": "completed"}
    example_round.remove(deployed)


def test_the_abort_event_alone(deployed: Deployed) -> None:
    example_round.remove(deployed)
    event = example_round.event("abort_round")
    cause = "task 0 of level 0: " + json.loads(event["cause"])["errorMessage"]
    aborted = deployed.call("abort_round", event)
    assert aborted == {"status": "failed", "error": event["error"], "cause": cause}
    assert json.loads(deployed.read("rounds/r1/manifest.json"))["cause"] == cause
    example_round.remove(deployed)
