"""Private rounds, over real HTTP."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradshard_core.errors import PlanError
from gradshard_core.formats.object_keys import RoundKeys
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.records.noise_key import read_noise_key, write_noise_key
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration.by_hand import Round, Update, put_model

DP = {"clip": 2.0, "noise_multiplier": 1.1, "delta": 1e-5}
SIZES = {"w": ("f4", (300_001,)), "h": ("f2", (2, 3)), "d": ("f8", (3,))}


def update(seed: int) -> Update:
    """Return an update that is longer with the seed: some are clipped."""
    rng = np.random.default_rng(seed)
    return {
        name: (rng.standard_normal(shape) * (seed + 1) / 1000).astype(dtype)
        for name, (dtype, shape) in SIZES.items()
    }


UPDATES = {f"c{i}": update(i) for i in range(6)}


def expected(updates: list[Update], norms: list[float], noise: Any) -> Update:
    """Return the private average, from its definition.

    ``norms`` are as they were measured; ``noise`` is by element, and its deviation is σ.
    """
    # σ of two terms: 2480 · √(1 + 512²)
    step = 1.1 * 2.0 / (2480 * math.sqrt(1 + 512**2))
    made, at = {}, 0
    for name in updates[0]:
        tensor = updates[0][name]
        total = noise[at : at + tensor.size].astype(float)
        for sent, norm in zip(updates, norms, strict=True):
            factor = min(1.0, 2.0 / (norm * (1 + 2**-10)))
            total += np.trunc(sent[name].ravel().astype(float) * (factor / step))
        wide = total * step / len(updates)
        made[name] = wide.astype("f4" if tensor.itemsize < 8 else "f8").astype(tensor.dtype)
        made[name] = made[name].reshape(tensor.shape)
        at += tensor.size
    return made


def submitted(round_: Round, updates: dict[str, Update] = UPDATES) -> Round:
    for samples, (client, sent) in enumerate(updates.items(), 1):
        round_.submit(client, sent, samples)
    return round_


def go(round_: Round) -> tuple[bytes, np.ndarray]:
    """Run both passes; return the key of the noise, and the noise of all elements."""
    round_.plan(0)
    round_.aggregate()
    assert round_.finalize()["status"] == "replan"
    round_.plan(1)
    key = read_noise_key(round_.store, round_.keys)
    noise = np.empty(sum(math.prod(shape) for _, shape in SIZES.values()), np.int64)
    NoiseSource(key, 2, 0).read_into(memoryview(noise).cast("B"))
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    return key, noise


def test_result_is_the_truncated_sum_with_noise(open_round: Callable[..., Round]) -> None:
    round_ = submitted(open_round(clients=6, dp=DP))
    _, noise = go(round_)
    decision = round_.store.get_json(round_.keys.decision(1))
    norms = [entry["norm"] for entry in decision["clients"]]
    for norm, sent in zip(norms, UPDATES.values(), strict=True):
        true = math.sqrt(math.fsum(float(x) ** 2 for t in sent.values() for x in t.ravel()))
        assert norm == pytest.approx(true, rel=1e-6)
    found = reference.decode(round_.result())
    for name, tensor in expected(list(UPDATES.values()), norms, noise).items():
        assert found[name].tobytes() == tensor.tobytes(), name
    manifest = round_.manifest()
    assert manifest["privacy"]["clients"] == 6
    assert manifest["privacy"]["deviation"] == pytest.approx(1.1 * 2.0 / 6)


def test_manifest_and_plan_do_not_say_who_was_clipped(open_round: Callable[..., Round]) -> None:
    round_ = submitted(open_round(clients=6, dp=DP))
    go(round_)
    manifest, plan = round_.manifest(), round_.store.get_json(round_.keys.plan)
    assert manifest["measuring"]["clipped"] is None
    assert {c["weight"] for c in manifest["contributors"]} == {None}
    assert {c["weight"] for c in plan["contributors"]} == {0.0}
    decision = round_.store.get_json(round_.keys.decision(1))
    assert min(entry["weight"] for entry in decision["clients"]) < 0.7


def test_key_is_deleted_in_all_versions_when_the_round_ends(
    open_round: Callable[..., Round],
) -> None:
    round_ = submitted(open_round(clients=6, dp=DP))
    key, _ = go(round_)
    with pytest.raises(PlanError, match="it is deleted when the round ends"):
        read_noise_key(round_.store, round_.keys)
    # Deleting versions again finds none that is left.
    assert not list(round_.store.list_objects(round_.keys.secrets))
    for name in ("plan", "manifest"):
        assert key.hex() not in str(round_.store.get_json(getattr(round_.keys, name)))


def test_key_is_deleted_when_the_round_is_given_up(open_round: Callable[..., Round]) -> None:
    round_ = submitted(open_round(clients=6, dp=DP))
    round_.plan(0)
    round_.aggregate()
    round_.finalize()
    round_.plan(1)
    abort_round(round_.store, round_.name, error="E", cause="c")
    with pytest.raises(PlanError, match="is missing"):
        read_noise_key(round_.store, round_.keys)


def test_retries_and_shards_change_nothing_and_another_round_has_other_noise(
    open_round: Callable[..., Round], store: S3Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    updates = {f"c{i}": {"w": rng.standard_normal(2_700_001).astype("f4")} for i in range(3)}
    results: list[np.ndarray] = []
    earlier = RoundKeys("earlier")
    # The last one also takes out the noise of a round before.
    tree = {"training": "t", "tree": "1", "leaf": 2, "cancels": ["earlier"], "divisor": 3}
    applied = {"server_optimizer": {"optimizer": "fedavg", "model": "in-a-tree"}}
    put_model(store, "in-a-tree", {"w": np.zeros(2_700_001, "f4")})
    in_tree = {"dp": DP | {"tree": tree}, **applied}
    for shards, key, terms in ((1, 1, {"dp": DP}), (2, 1, {"dp": DP}), (2, 2, in_tree)):
        monkeypatch.setattr("os.urandom", lambda count, key=key: bytes([key]) * count)
        round_ = submitted(open_round(clients=3, shards=shards, **terms), updates)
        write_noise_key(round_.store, earlier)
        outcome: dict[str, Any] = {"attempt": 0}
        for _ in range(2):
            round_.plan(outcome["attempt"])
            round_.plan(outcome["attempt"])
            for task in [*reversed(round_.tasks()), round_.tasks()[0]]:
                round_.run(task)
            outcome = round_.finalize()
        assert round_.manifest()["shards"] == shards
        results.append(reference.decode(round_.result())["w"])
    assert results[0].tobytes() == results[1].tobytes()
    difference = (results[2] - results[1]).astype(float)
    assert difference.std() == pytest.approx(math.sqrt(1 + 2**2) * 1.1 * 2.0 / 3, rel=0.01)
    one, two = np.empty((2, 2_700_001), np.int64)
    for key, noise in ((1, one), (2, two)):
        NoiseSource(bytes([key]) * 32, 2, 0).read_into(memoryview(noise).cast("B"))
    step = 1.1 * 2.0 / (2480 * math.sqrt(1 + 512**2))
    np.testing.assert_allclose(difference, (two - 2 * one) * step / 3, atol=1e-5)


def test_client_that_sent_a_nan_is_rejected_before_noise_is_drawn(
    open_round: Callable[..., Round],
) -> None:
    updates = UPDATES | {"c1": UPDATES["c1"] | {"d": np.array([0, np.nan, 0])}}
    round_ = submitted(open_round(clients=6, dp=DP), updates)
    round_.plan(0)
    round_.aggregate()
    assert [r["client"] for r in round_.finalize()["rejected"]] == ["c1"]
    with pytest.raises(PlanError, match="is missing"):
        read_noise_key(round_.store, round_.keys)


def test_model_with_integers_is_refused(open_round: Callable[..., Round]) -> None:
    updates = {f"c{i}": {"w": np.ones(3, "f4"), "n": np.array([1])} for i in range(3)}
    round_ = submitted(open_round(clients=3, dp=DP), updates)
    with pytest.raises(PlanError, match="'n' is an integer or a buffer"):
        round_.plan(0)


def test_private_round_steps_the_model(
    open_round: Callable[..., Round], store: S3Store, tmp_path: Path
) -> None:
    del tmp_path
    put_model(store, "private", UPDATES["c0"])
    optimizer = {"model": "private", "optimizer": "fedavg", "updates": "deltas"}
    round_ = submitted(open_round(clients=6, dp=DP, server_optimizer=optimizer))
    go(round_)
    assert round_.manifest()["model"]["version"] == 2


def test_noise_beyond_the_type_becomes_its_largest_number(
    open_round: Callable[..., Round],
) -> None:
    updates = {f"c{i}": {"h": np.full(3000, 60_000, "f2")} for i in range(2)}
    dp = {"clip": 1e6, "noise_multiplier": 1.0, "delta": 1e-5}
    round_ = submitted(open_round(clients=2, dp=dp), updates)
    assert round_.go() == {"status": "completed"}
    result = reference.decode(round_.result())["h"]
    assert np.isfinite(result).all()
    assert np.abs(result).max() == 65504
