"""Rounds that measure a sample of the elements, on a bucket in memory."""

from typing import Any

import numpy as np
import pytest

from tests import reference
from tests.unit.in_memory import Machine
from tests.unit.rounds.test_compressed_rounds import compress, decoded, with_samples
from tests.unit.rounds.test_compressed_rounds import run as run_bodies

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

SIZE = 1_200_000


def updates(count: int) -> dict[str, dict[str, reference.Array]]:
    rng = np.random.default_rng(8)
    return {
        f"c{i}": {
            "w": (rng.standard_normal(2 * SIZE // 3) * (i + 1)).astype("f4"),
            "v": (rng.standard_normal(SIZE // 3) * 3).astype("f4"),
        }
        for i in range(count)
    }


def run(machine: Machine, sent: dict[str, dict[str, reference.Array]], **spec: Any) -> Any:
    """Run a round to its end; return its manifest."""
    assert machine.open(clients=sorted(sent), **spec)["status"] == "opened"
    for client, update in sent.items():
        machine.collect(client, machine.submit(client, update))
    assert machine.finish() == {"status": "completed"}
    return machine.store.get_json(machine.keys.manifest)


def decided(machine: Machine, attempt: int = 1) -> dict[str, dict[str, Any]]:
    decision = machine.store.get_json(machine.keys.decision(attempt))
    return {entry["client"]: entry for entry in decision["clients"]}


@pytest.mark.parametrize("rule", ["norm_clip", {"name": "multi_krum", "f": 1}])
def test_estimates_are_within_the_stated_error(machine: Machine, rule: Any) -> None:
    sent = updates(5)
    manifest = run(machine, sent, rule=rule, measure_one_in=2)
    stated = manifest["measuring"]["sample"]
    assert stated["one_in"] == 2
    assert stated["stretches"] == -(-SIZE * 4 // (2 * 65536))
    assert 0.4 * SIZE * 4 < stated["nbytes"] < 0.6 * SIZE * 4
    assert 0 < stated["error"] < 0.3
    for client, entry in decided(machine).items():
        true = np.sqrt(sum((t.astype(float) ** 2).sum() for t in sent[client].values()))
        assert abs(entry["norm"] / true - 1) < 5 * stated["error"]
    assert manifest["measuring"]["totals"]["bytes_read"] < 5 * 0.6 * SIZE * 4 + 100_000


def test_decision_is_the_same_for_every_m_and_repetition(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 100_000)
    sent, found = updates(3), []
    for shards in (1, 3, 7):
        machine.begin(f"r{shards}")
        manifest = run(machine, sent, rule="geometric_median", measure_one_in=3, shards=shards)
        assert manifest["shards"] == shards
        result = machine.store.get_bytes(machine.keys.result)
        found.append((decided(machine), manifest["measuring"]["sample"], result))
    assert found[0] == found[1] == found[2]


def test_groups_that_measure_apart_state_the_same_error(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    monkeypatch.setattr("gradshard_core.limits.aws_limits.MIN_PART_BYTES", 100_000)
    sent, found = updates(3), []
    # In the first group, so that nothing of it is measured at first.
    sent["a"] = {name: np.full_like(tensor, np.nan) for name, tensor in sent["c0"].items()}
    for terms in ({}, {"topology": "grid", "fan_in": 2, "shards": 3}):
        machine.begin(f"r{len(terms)}")
        manifest = run(machine, sent, rule="norm_clip", measure_one_in=2, **terms)
        assert len(manifest["measuring"]["tasks"]) == (6 if terms else manifest["shards"])
        found.append((decided(machine, 2), manifest["measuring"]["sample"]))
    assert found[0] == found[1]
    assert found[0][1]["error"] > 0


def test_update_that_is_too_small_for_a_sample_is_measured_whole(machine: Machine) -> None:
    small = {client: {"w": np.ones(9, "f4")} for client in "abc"}
    manifest = run(machine, small, rule="norm_clip", measure_one_in=2)
    assert manifest["measuring"]["sample"] is None
    [note] = manifest["notes"]
    assert note.startswith("all elements are measured, not one in 2: the error of a sample can be")
    assert note.endswith("for updates of at least 4194304 bytes, and these have 36")


def test_nan_costs_its_sender_the_round_in_the_sample_and_outside_of_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    sent, was_missed = updates(3), []
    stratum = sent["c2"]["w"][: 2 * 16384].reshape(2, 16384)
    for stretch in range(2):
        machine.begin(f"r{stretch}")
        before = stratum[stretch].copy()
        stratum[stretch] = np.nan
        manifest = run(machine, sent, min_clients=1, rule="norm_clip", measure_one_in=2)
        stratum[stretch] = before
        assert [r["client"] for r in manifest["rejected"]] == ["c2"]
        # Then the first decision was about it, too.
        was_missed.append(machine.store.get_json(machine.keys.decision(1)) is not None)
    assert sorted(was_missed) == [False, True]


def test_compressed_updates_are_sampled_as_what_they_decode_to(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    monkeypatch.setattr("gradshard_core.robust.measured_sample.LEAST_STRATA", 2)
    rng = np.random.default_rng(6)
    bodies = {}
    for number, codec in enumerate(["int8", "int4", "topk"]):
        update = {n: rng.standard_normal(60_000).astype("f4") for n in ("w", "v")}
        order = ["v", "w"] if number == 1 else ["w", "v"]
        bodies[f"c{number}"] = with_samples(compress(rng, codec, update, order=order), 1)
    terms = {"rule": "geometric_median", "min_clients": 3, "measure_one_in": 2}
    found = []
    for sent in (bodies, {client: decoded(body, 1) for client, body in bodies.items()}):
        manifest = run_bodies(machine, sent, **terms)
        assert manifest["measuring"]["sample"]["stretches"] == 4
        found.append((decided(machine), machine.store.get_bytes(machine.keys.result)))
    assert found[0] == found[1]
