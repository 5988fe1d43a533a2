"""Trials of topologies, and what is said of those that did not run."""

import pytest

from gradshard import comparison
from gradshard.comparison import Trial
from gradshard.errors import RoundFailed
from gradshard.federation import Federation, Round
from tests.unit.fakes import MemoryStack, MemoryStore
from tests.unit.test_federation import OPENED


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ("round 'x' failed: PlanError: no room", "PlanError: no room"),
        ("round 'x' could not be opened: throttled", "round 'x' could not be opened: throttled"),
    ],
)
def test_a_trial_that_failed_says_why(
    monkeypatch: pytest.MonkeyPatch, failure: str, reason: str
) -> None:
    def fail(*_: object, **terms: object) -> Round:
        assert terms["updates_of"] == "r1"
        raise RoundFailed(failure)

    store = MemoryStore()
    store.put_json("rounds/r1/spec.json", OPENED)
    store.put_bytes("rounds/r1/updates/a.safetensors", b"12")
    federation, stack = Federation(), MemoryStack(store)
    federation.stack = stack
    monkeypatch.setattr(federation, "open_round", fail)
    [outcome] = comparison.compare(federation, Round(stack, "r1"), [Trial("shards", "shards")])
    assert outcome.refused == reason
    assert outcome.to_json()["refused"] == reason
