"""Trials of topologies, and what is said of those that did not run."""

import pytest

from gradshard.client.federation import Federation
from gradshard.client.round import Round
from gradshard.papers import topology_trials
from gradshard.papers.topology_trials import Outcome, Trial
from gradshard_core.errors import RoundFailed
from tests.unit.client.test_federation import OPENED
from tests.unit.fakes import MemoryStack, MemoryStore


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
        assert terms["updates_from"] == "r1"
        raise RoundFailed(failure)

    store = MemoryStore()
    store.put_json("rounds/r1/spec.json", OPENED)
    store.put_bytes("rounds/r1/updates/a.safetensors", b"12")
    federation, stack = Federation(), MemoryStack(store)
    federation.stack = stack
    monkeypatch.setattr(federation, "open_round", fail)
    [outcome] = topology_trials.compare(federation, Round(stack, "r1"), [Trial("shards", "shards")])
    assert outcome.rejected == reason
    assert outcome.to_json()["rejected"] == reason


def test_trials_of_few_clients_are_in_groups_and_beside_them_shards_in_their_orders() -> None:
    found = topology_trials.trials(13)
    assert [(trial.label, trial.fan_in, trial.order) for trial in found] == [
        ("shards", None, None),
        ("λ-FL", None, None),
        ("shards tree:4,4", None, "tree:4,4"),
        ("LIFL", None, None),
        ("shards tree:3,3,2", None, "tree:3,3,2"),
        ("grid", 4, None),
    ]


@pytest.mark.parametrize(
    ("order", "weights", "agree"),
    [("sequential", "shares", False), ("sequential", "counts", True), ("tree:2,2", "shares", True)],
)
def test_only_the_same_order_and_weights_must_give_the_same_bytes(
    order: str, weights: str, agree: bool
) -> None:
    one = Outcome(Trial("one", "shards"), order="sequential", digest="a")
    other = Outcome(Trial("other", "shards", weights=weights), order=order, digest="b")
    rejected = Outcome(Trial("none", "lifl"), rejected="no room", order="sequential")
    assert topology_trials.agreement([one, rejected, other]) is agree
