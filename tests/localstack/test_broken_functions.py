"""Rounds of every kind while functions die, lose their answers, fail, or S3 does, on LocalStack."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import boto3
import pytest

from gradshard import Federation, RoundFailed
from gradshard.aws.boto_client import make_client
from gradshard.aws.client_store import ClientStore
from tests import reference
from tests.e2e.deployed import Deployed
from tests.integration.by_hand import layout_of
from tests.integration.machine import APPLIED, EAGER, TREE, UPDATES, FunctionError, Machine
from tests.integration.proxy import Fault
from tests.localstack.conftest import LocalStack
from tests.localstack.worker import OUT_OF_TIME, SLOW, break_next

SECONDS = 240
"""How long a round may take on a busy machine; retries wait up to 14 s."""
COUNTER = itertools.count()
KINDS: dict[str, Mapping[str, Any]] = {
    "shards": {},
    "tree": TREE,
    "three levels": {"topology": "lifl", "fan_in": 2},
    "grid": {"topology": "grid", "fan_in": 2, "order": "tree:2,2"},
    "eager": EAGER,
    "partial": {"rule": "fedavg", "layout": layout_of(UPDATES[0])},
    "model": APPLIED,
}
ALL = ("open_round", "collect_update", "plan_round", "aggregate_shard", "finalize_round")
SURVIVED: dict[str, tuple[str, ...]] = {
    "dies before it begins": ("die",),
    "dies after its end": ("die after",),
    "fails twice": ("StoreError", "StoreError"),
}
S3_FAULTS = (
    Fault("503", "PUT"),
    Fault("500", "GET"),
    Fault("reset", "PUT"),
    Fault("unseen", "PUT"),
    Fault("reset in body", "GET"),
    Fault("unseen", "POST"),
    Fault("cut", "GET"),
)
"""Each strikes once, at a request about the round."""


def no_call(function: str, event: dict[str, Any]) -> dict[str, Any]:
    raise FunctionError(function, "LocalStack calls the functions here")


class Executed(Machine):
    """A round that LocalStack's state machine runs, with what must be true of it in the end."""

    def __init__(
        self, federation: Federation, deployed: Deployed, terms: Mapping[str, Any]
    ) -> None:
        super().__init__(no_call, ClientStore(deployed.bucket, make_client()), terms)
        self.name = self.before.model if self.before else f"broken-{next(COUNTER)}"
        self.keys = type(self.keys)(self.name)
        self.federation, self.deployed = federation, deployed

    def run(self) -> dict[str, Any]:
        options: Any = {"timeout": 600, **self.terms}
        round_ = self.federation.open_round(self.name, list(self.clients), **options)
        for client in self.clients:
            self.submit(client)
        try:
            return round_.wait(SECONDS)
        except RoundFailed:
            failed: dict[str, Any] = self.store.get_json(self.keys.manifest)
            return failed

    def check_end(self, manifest: dict[str, Any]) -> None:
        # The manifest is there before the last function has cleaned up.
        execution = self.deployed.ended(self.name)
        has_completed = manifest["status"] == "completed"
        assert execution["status"] == ("SUCCEEDED" if has_completed else "FAILED")
        assert self.store.open_uploads(self.keys.result) == []
        assert list(self.versions(self.keys.partial_sums)) == []
        result = self.store.get_bytes(self.keys.result)
        self.check_model(has_next=has_completed)
        if has_completed:
            assert result is not None
            tree = [] if manifest["order"] == "sequential" else [2, 2]
            counts = self.terms.get("weights") == "counts"
            expected = reference.average(self.updates, self.samples, tree=tree, counts=counts)
            found = reference.decode(result)
            assert {name: tensor.tobytes() for name, tensor in found.items()} == {
                name: tensor.tobytes() for name, tensor in expected.items()
            }
        else:
            assert manifest["cause"]
            assert result is None


@pytest.fixture
def make(federation: Federation, deployed: Deployed) -> Callable[..., Executed]:
    """Make a round of a kind; it is not open yet."""
    return lambda kind: Executed(federation, deployed, KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("faults", SURVIVED)
def test_a_round_survives_when_every_function(
    engine: LocalStack, make: Callable[..., Executed], kind: str, faults: str
) -> None:
    round_ = make(kind)
    for function in ALL:
        break_next(engine.faults, function, round_.name, *SURVIVED[faults])
    manifest = round_.run()
    assert manifest["status"] == "completed", manifest
    round_.check_end(manifest)
    assert list(engine.faults.glob(f"*:{round_.name}:*")) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_round_survives_what_s3_does(
    engine: LocalStack, make: Callable[..., Executed], kind: str
) -> None:
    round_ = make(kind)
    proxy = engine.functions_proxy
    proxy.faults += [fault._replace(path=f"/{round_.name}/") for fault in S3_FAULTS]
    manifest = round_.run()
    assert proxy.faults == []
    assert manifest["status"] == "completed", manifest
    round_.check_end(manifest)


@pytest.mark.parametrize("kind", ["tree", "eager", "model"])
@pytest.mark.parametrize(
    ("function", "faults", "cause"),
    [
        ("plan_round", ["PlanError"], "injected"),
        ("plan_round", ["die", "die"], "exited without"),
        ("aggregate_shard", ["ChangedObjectError"], ": injected"),
        ("aggregate_shard", [OUT_OF_TIME], "timed out"),
        ("finalize_round", ["StoreError"] * 4, "injected"),
    ],
)
def test_a_round_that_cannot_be_saved_fails_and_leaves_nothing(
    engine: LocalStack,
    make: Callable[..., Executed],
    kind: str,
    function: str,
    faults: list[str],
    cause: str,
) -> None:
    round_ = make(kind)
    break_next(engine.faults, function, round_.name, *faults)
    manifest = round_.run()
    assert manifest["status"] == "failed"
    assert cause in manifest["cause"]
    round_.check_end(manifest)


def test_tasks_that_lambda_throttles_wait_for_a_free_slot(
    engine: LocalStack, make: Callable[..., Executed]
) -> None:
    round_ = make("tree")
    functions = boto3.client("lambda")
    functions.put_function_concurrency(
        FunctionName="aggregate_shard", ReservedConcurrentExecutions=1
    )
    break_next(engine.faults, "aggregate_shard", round_.name, SLOW, SLOW)
    try:
        manifest = round_.run()
    finally:
        functions.delete_function_concurrency(FunctionName="aggregate_shard")
    assert manifest["status"] == "completed", manifest
    round_.check_end(manifest)
