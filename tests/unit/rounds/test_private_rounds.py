"""Private rounds from opening to end, on a bucket in memory."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradshard.client.privacy_accounting import is_installed, privacy_in_words
from gradshard_core.errors import PlanError, SpecError, StoreError
from gradshard_core.formats.object_keys import ModelKeys, StoredTensors
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.records.noise_key import read_noise_key
from gradshard_core.records.privacy_ledger import PrivacyBudget, change_ledger, read_ledger
from tests import reference
from tests.unit.in_memory import OPENED, Machine
from tests.unit.trainings.machine import DyingStore, Killed

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

DP = {"clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-5}
APPLIED = {
    "clients": ["a", "b", "c"],
    "server_optimizer": {"model": "m", "optimizer": "fedavg", "updates": "deltas"},
}


@pytest.fixture
def private(machine: Machine) -> Machine:
    """A machine whose bucket has a model of version 1."""
    put_model(machine)
    return machine


def put_model(machine: Machine) -> None:
    body = reference.encode({"w": np.zeros(5, "f4")}, {"format": "pt"})
    store, key = machine.store, ModelKeys("m").put("first")
    store.put_bytes(key, body)
    source = store.head(key)
    assert source is not None
    offset = 8 + int.from_bytes(body[:8], "little")
    model_registry.reserve(store, Version("m", 1, StoredTensors(source, offset)))


def limit(machine: Machine, allowance: float) -> None:
    budget = PrivacyBudget(8.0, 1e-5, allowance)
    change_ledger(machine.store, "m", lambda ledger: replace(ledger, budget=budget))


def run(machine: Machine, name: str, **spec: Any) -> dict[str, Any]:
    machine.begin(name)
    assert machine.open(**APPLIED, **spec)["status"] == "opened"
    for client in "abc":
        etag = machine.submit(client, {"w": np.ones(5, "f4")})
        machine.collect(client, etag)
    return machine.finish()


def test_a_rejection_tells_no_element_of_an_update(private: Machine) -> None:
    private.begin("huge")
    assert private.open(**APPLIED, min_clients=2, dp=DP)["status"] == "opened"
    for client, value in (("a", 1), ("b", 3e38), ("c", 1)):
        private.collect(client, private.submit(client, {"w": np.full(5, value, "f4")}))
    outcome = OPENED
    while (outcome := private.turn(outcome))["status"] == "replan":
        pass
    assert outcome == {"status": "completed"}
    [rejected] = private.store.get_json(private.keys.manifest)["rejected"]
    assert rejected["client"] == "b"
    assert "this update is too large there" in rejected["reason"]
    assert "e+38 there" not in rejected["reason"]
    assert "weight" not in rejected["reason"]


def test_rounds_are_charged_before_they_open_and_refused_over_the_budget(private: Machine) -> None:
    limit(private, 0.6)
    for name in ("r1", "r2"):
        assert run(private, name, dp=DP) == {"status": "completed"}
    private.begin("r3")
    answer = private.open(**APPLIED, dp=DP)
    assert answer["status"] == "rejected"
    assert "2 rounds have spent 0.5" in answer["reason"]
    assert private.store.head(private.keys.spec) is None
    private.begin("r4")
    assert "allows no round without noise" in private.open(**APPLIED)["reason"]
    assert model_registry.read_current(private.store, "m").number == 3


@pytest.mark.parametrize("training", ["t", "missing"])
def test_a_round_of_a_tree_is_opened_by_its_training_alone(private: Machine, training: str) -> None:
    tree = {"training": training, "tree": "1", "leaf": 3, "cancels": [], "divisor": 3}
    private.begin("r1")
    answer = private.open(**APPLIED, dp=DP | {"tree": tree})
    assert f"training '{training}' does not ask for round 'r1'" in answer["reason"]
    answer = private.open(clients=["a", "b"], dp=DP | {"tree": tree})
    assert "tree is for rounds of a training" in answer["reason"]
    assert read_ledger(private.store, "m").entries == ()


def test_opening_twice_is_charged_once(private: Machine) -> None:
    private.begin("r1")
    for _ in range(2):
        assert private.open(**APPLIED, dp=DP)["status"] == "opened"
    assert read_ledger(private.store, "m").spent == 0.25


@pytest.mark.parametrize(("has_noise", "spent"), [(False, 0.0), (True, 0.25)])
def test_failed_round_costs_nothing_only_if_no_noise_was_drawn(
    private: Machine, has_noise: bool, spent: float
) -> None:
    private.begin("r1")
    private.open(**APPLIED, dp=DP)
    for client in "abc":
        private.collect(client, private.submit(client, {"w": np.ones(5, "f4")}))
    outcome = private.turn(OPENED)
    if has_noise:
        private.plan(outcome)
        assert private.store.head(private.keys.noise_key) is not None
    private.step("abort_round", error="E", cause="c")
    assert private.store.head(private.keys.noise_key) is None
    assert read_ledger(private.store, "m").spent == spent


def test_round_without_noise_counts_from_its_opening_unless_it_is_never_planned(
    private: Machine,
) -> None:
    assert run(private, "r1", dp=DP) == {"status": "completed"}
    for name, spent in (("r2", 0.25), ("r3", math.inf)):
        private.begin(name)
        private.open(**APPLIED)
        for client in "abc":
            private.collect(client, private.submit(client, {"w": np.ones(5, "f4")}))
        assert read_ledger(private.store, "m").spent == math.inf
        if name == "r3":
            private.plan(OPENED)
        private.step("abort_round", error="E", cause="c")
        assert read_ledger(private.store, "m").spent == spent


def test_integer_tensor_of_a_private_round_is_named(machine: Machine) -> None:
    machine.open(clients=["a", "b", "c"], dp=DP)
    for client in "abc":
        update = {"w": np.ones(5, "f4"), "steps": np.array([3])}
        machine.collect(client, machine.submit(client, update))
    with pytest.raises(PlanError, match="trained, and 'steps' is an integer or a buffer"):
        machine.turn(OPENED)


def test_updates_of_a_private_round_serve_for_it_alone(private: Machine) -> None:
    assert run(private, "r1", dp=DP) == {"status": "completed"}
    private.begin("r2")
    answer = private.open(clients=["a", "b", "c"], updates_from="r1")
    assert "round 'r1' is private, and its updates serve for that round alone" in answer["reason"]


def test_updates_sent_before_a_private_round_opens_are_averaged_by_no_other(
    machine: Machine,
) -> None:
    machine.begin("r1")
    for client in "abc":
        machine.submit(client, {"w": np.ones(5, "f4")})
    machine.begin("r2")
    answer = machine.open(clients=["a", "b", "c"], updates_from="r1")
    assert answer["status"] == "rejected"
    assert "there is no round 'r1'. Open it first" in answer["reason"]
    assert machine.store.head(machine.keys.spec) is None


def test_updates_of_a_round_that_failed_to_open_serve_for_another_one(machine: Machine) -> None:
    """It can make no average any more: planning it is refused."""
    machine.begin("r1")
    for client in "abc":
        machine.submit(client, {"w": np.ones(5, "f4")})
    machine.store.put_json(machine.keys.manifest, {"status": "failed", "cause": "S3 was away"})
    machine.begin("r2")
    assert machine.open(clients=["a", "b", "c"], updates_from="r1")["status"] == "opened"
    machine.begin("r1")
    machine.open(clients=["a", "b", "c"], dp=DP)
    with pytest.raises(PlanError, match="round 'r1' has ended"):
        machine.turn(OPENED)


def test_planning_looks_again_whether_the_other_round_is_private(machine: Machine) -> None:
    machine.begin("r1")
    machine.open(clients=["a", "b", "c"])
    for client in "abc":
        machine.submit(client, {"w": np.ones(5, "f4")})
    machine.begin("r2")
    assert machine.open(clients=["a", "b", "c"], updates_from="r1")["status"] == "opened"
    # As if its spec had been deleted and the round opened anew.
    machine.begin("r1")
    machine.store.delete(machine.keys.spec)
    machine.open(clients=["a", "b", "c"], dp=DP)
    machine.begin("r2")
    with pytest.raises(SpecError, match="round 'r1' is private"):
        machine.turn(OPENED)


def test_round_of_a_deleted_ones_name_is_charged_again(private: Machine) -> None:
    limit(private, 0.3)
    assert run(private, "r1", dp=DP) == {"status": "completed"}
    private.store.delete(private.keys.spec)
    again = {"spec": {**APPLIED, "dp": DP}, "started": "2026-07-01T00:00:00+00:00"}
    answer = private.step("open_round", **again, token="token")
    assert "1 rounds have spent 0.25" in answer["reason"]


@pytest.mark.parametrize("terms", [{"dp": DP}, {}], ids=["private", "plain"])
def test_round_of_a_taken_name_costs_nothing(private: Machine, terms: dict[str, Any]) -> None:
    """It does not open; one without noise would have made ε unbounded."""
    assert run(private, "r1", dp=DP) == {"status": "completed"}
    again = {"spec": {**APPLIED, **terms}, "started": "2026-07-01T00:00:00+00:00"}
    answer = private.step("open_round", **again, token="token")
    assert "round 'r1' was opened before" in answer["reason"]
    private.step("abort_round", error="RoundExistsError", cause=answer["reason"])
    assert [entry.cost for entry in read_ledger(private.store, "m").entries] == [0.25, 0.0]


def test_round_that_was_given_up_while_a_planning_was_killed_publishes_nothing(
    private: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refunded: its plan was not there. The planning dies before it looks for that."""
    assert private.open(**APPLIED, dp=DP)["status"] == "opened"
    for client in "abc":
        private.collect(client, private.submit(client, {"w": np.ones(5, "f4")}))
    outcome = private.turn(OPENED)
    put = private.store.put_bytes

    def give_up_and_die(key: str, body: bytes, **options: Any) -> bool:
        if key != private.keys.plan:
            return put(key, body, **options)
        monkeypatch.setattr(private.store, "put_bytes", put)
        private.step("abort_round", error="RoundLost", cause="it was lost")
        put(key, body, **options)
        raise Killed

    monkeypatch.setattr(private.store, "put_bytes", give_up_and_die)
    repeated = {"entered_at": "2026-01-01T00:01:00Z", "retries": 1, **outcome}
    carried = {name: repeated[name] for name in ("entered_at", "retries", "reason", "attempt")}
    with pytest.raises(Killed):
        private.step("plan_round", **carried)
    assert read_ledger(private.store, "m").spent == 0
    for _ in range(2):
        with pytest.raises(PlanError, match="'r' has ended: there is nothing to plan"):
            private.step("plan_round", **carried)
    assert not private.store.uploads


def test_late_call_that_knows_other_options_refunds_no_round_that_was_opened(
    private: Machine,
) -> None:
    """Another version was deployed after a call that opened the round and seemed to be dead."""
    assert run(private, "r1", dp=DP) == {"status": "completed"}
    written = private.store.get_json(private.keys.spec)
    written["spec"]["unheard_of"] = None
    private.store.put_json(private.keys.spec, written)
    assert "was opened before" in private.open(**APPLIED, dp=DP)["reason"]
    assert read_ledger(private.store, "m").spent == 0.25


def test_round_whose_opening_dies_for_good_stays_charged(
    private: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing tells it from one that was opened, and whose objects were deleted."""
    put = private.store.put_bytes

    def broken(key: str, body: bytes, **options: Any) -> bool:
        if key == private.keys.spec:
            raise StoreError(f"{key}: 503")
        return put(key, body, **options)

    monkeypatch.setattr(private.store, "put_bytes", broken)
    with pytest.raises(StoreError):
        private.open(**APPLIED, dp=DP)
    private.step("abort_round", error="StoreError", cause="503")
    assert read_ledger(private.store, "m").spent == 0.25


def test_round_without_a_model_needs_no_ledger(machine: Machine) -> None:
    machine.open(clients=["a", "b", "c"], dp=DP)
    for client in "abc":
        machine.collect(client, machine.submit(client, {"w": np.ones(5, "f4")}))
    assert machine.turn(machine.turn(OPENED)) == {"status": "completed"}
    privacy = machine.store.get_json(machine.keys.manifest)["privacy"]
    assert {name: privacy[name] for name in DP} == DP
    assert [key for key in machine.store.objects if "ledger" in key] == []


@pytest.mark.slow
def test_canary_is_seen_without_noise_and_hidden_with_it(machine: Machine) -> None:
    """An element that one client alone changes, in forty rounds with it and forty without.

    Without noise all forty would be the same: there are two.

    An attacker who sees the average says "present" from the middle on. With ε of a round and δ, no
    attack's true positives exceed e^ε times its false positives, plus δ.
    """
    rng = np.random.default_rng(5)
    honest = [(rng.standard_normal(100) * 0.01).astype("f4") for _ in range(3)]
    mechanism = {"clip": 1.0, "noise_multiplier": 4.0, "delta": 1e-5}
    rates = {}
    for dp in (None, mechanism):
        found = {}
        for is_present in (False, True):
            values = []
            for number in range(40 if dp else 2):
                machine.begin(f"{'dp' if dp else 'plain'}-{is_present}-{number}")
                machine.open(clients=["a", "b", "c"], **({"dp": dp} if dp else {}))
                for client, update in zip("abc", honest, strict=True):
                    sent = update.copy()
                    if client == "a" and is_present:
                        sent[17] = 1.0
                    machine.collect(client, machine.submit(client, {"w": sent}))
                machine.finish()
                result = machine.store.get_bytes(machine.keys.result)
                assert result is not None
                values.append(float(reference.decode(result)["w"][17]))
            found[is_present] = np.mean(np.array(values) > 1 / 6)
        rates["dp" if dp else "plain"] = found
    assert rates["plain"] == {False: 0.0, True: 1.0}
    # Of the Gaussian with σ = 4: 0.55 and 0.45; five standard errors of forty are 0.39.
    assert abs(rates["dp"][True] - 0.55) < 0.39
    assert abs(rates["dp"][False] - 0.45) < 0.39


def test_manifest_says_what_the_model_has_spent_with_the_round(private: Machine) -> None:
    spent = []
    for name in ("r1", "r2"):
        run(private, name, dp=DP)
        privacy = private.store.get_json(private.keys.manifest)["privacy"]
        assert privacy["cost"] == 0.25
        spent.append(privacy["spent"])
    assert spent == [0.25, 0.5]
    words = privacy_in_words(privacy)
    start = "clip 1, noise multiplier 2: a deviation of 0.6667 in each element of the average of 3;"
    assert words.startswith(start)
    if is_installed():
        assert words.endswith("ε 2.166 at δ 1e-05, and 3.189 with the rounds before it")
    else:
        assert words.endswith("1/z² 0.25")


def test_adaptive_clip_publishes_the_noisy_count_and_the_next_clip(private: Machine) -> None:
    adaptive = DP | {"quantile": 0.5, "clip_rate": 0.3, "count_deviation": 8.0}
    private.begin("r1")
    assert private.open(**APPLIED, dp=adaptive)["status"] == "opened"
    for client, value in (("a", 0.1), ("b", 3.0), ("c", 0.2)):
        private.collect(client, private.submit(client, {"w": np.full(5, value, "f4")}))
    planned = private.plan(private.turn(OPENED))
    key = read_noise_key(private.store, private.keys)
    # Twice, as if the tasks had been thought dead.
    for _ in range(2):
        private.aggregate(planned)
    assert private.step("finalize_round") == {"status": "completed"}
    privacy = private.store.get_json(private.keys.manifest)["privacy"]
    noise = np.empty(1, np.int64)
    NoiseSource(key, 1, 2**62).read_into(memoryview(noise).cast("B"))
    # "a" and "c" are whole, each as many whole steps as fit into one.
    step = 8.0 / 2480
    assert privacy["whole"] == pytest.approx((2 * math.floor(1 / step) + noise[0]) * step)
    moved = math.exp(-0.3 * (privacy["whole"] / 3 - 0.5))
    assert privacy["next_clip"] == pytest.approx(moved, rel=1e-8)
    assert privacy["cost"] == 1 / 4 + 1 / 64
    assert read_ledger(private.store, "m").spent == privacy["cost"]
    assert "so the next clip is" in privacy_in_words(privacy)


def result_of(machine: Machine) -> dict[str, reference.Array]:
    body = machine.store.get_bytes(machine.keys.result)
    assert body is not None
    return reference.decode(body)


@pytest.mark.parametrize("clients", [9, 70])
def test_groups_of_clients_have_the_bits_of_the_definition(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    """More clients than a task reads at once, in every topology, with the same key."""
    monkeypatch.setattr("os.urandom", lambda count: bytes(range(count)))
    rng = np.random.default_rng(2)
    sent = {f"c{i:02}": (rng.standard_normal(5) * (i % 3)).astype("f4") for i in range(clients)}
    adaptive = DP | {"quantile": 0.5}
    topologies = ["auto", "grid", "lambda_fl", "lifl"]
    found, manifests = {}, {}
    for topology in topologies:
        machine.begin(f"r-{topology}")
        machine.open(clients=sorted(sent), topology=topology, dp=adaptive)
        for client, update in sent.items():
            machine.collect(client, machine.submit(client, {"w": update}))
        assert machine.turn(machine.turn(OPENED)) == {"status": "completed"}
        found[topology] = result_of(machine)["w"].tobytes()
        manifests[topology] = machine.store.get_json(machine.keys.manifest)
        assert [key for key in machine.store.objects if "partial-sums" in key] == []
    noise = np.empty(5, np.int64)
    NoiseSource(bytes(range(32)), 1, 0).read_into(memoryview(noise).cast("B"))
    step, total = 2.0 / 2480, noise.astype(float)
    measured = machine.store.get_json(machine.keys.decision(1))["clients"]
    for entry in measured:
        update = sent[entry["client"]].astype(float)
        assert entry["norm"] == pytest.approx(np.linalg.norm(update), rel=1e-5)
        factor = min(1.0, 1 / (entry["norm"] * (1 + 2**-10))) if entry["norm"] else 1.0
        total += np.trunc(update * (factor / step))
    expected = (total * step / clients).astype("f4").tobytes()
    assert found == dict.fromkeys(topologies, expected)
    assert len(manifests["auto"]["groups"]) == (1 if clients <= 64 else 2)
    assert len({m["privacy"]["next_clip"] for m in manifests.values()}) == 1


def test_norm_clip_takes_groups_of_clients(machine: Machine) -> None:
    sent = {f"c{i:02}": np.full(4, i + 1, "f4") for i in range(70)}
    machine.open(clients=sorted(sent), rule={"name": "norm_clip", "bound": 10.0})
    for client, update in sent.items():
        machine.collect(client, machine.submit(client, {"w": update}))
    assert machine.turn(machine.turn(OPENED)) == {"status": "completed"}
    # Norms are 2, 4, 6, …: all but the first five are shortened to 10, which is 5 in each element.
    expected = sum(min(i + 1, 5) for i in range(70)) / 70
    assert result_of(machine)["w"] == pytest.approx(np.full(4, expected), rel=1e-6)
    manifest = machine.store.get_json(machine.keys.manifest)
    assert len(manifest["measuring"]["clipped"]) == 65
    assert manifest["groups"] == [[35, 35], [2]]


def test_refusal_of_an_adaptive_clip_names_noise_that_would_fit(private: Machine) -> None:
    limit(private, 0.2)
    private.begin("r1")
    reason = private.open(**APPLIED, dp=DP | {"quantile": 0.5})["reason"]
    assert "noise_multiplier of at least 2.281 and a count_deviation of at least 11.402" in reason
    fits = DP | {"noise_multiplier": 2.281, "quantile": 0.5, "count_deviation": 11.402}
    assert private.open(**APPLIED, dp=fits)["status"] == "opened"


def test_model_with_buffers_is_refused_at_opening(private: Machine) -> None:
    version = model_registry.read_current(private.store, "m")
    model_registry.reserve(private.store, replace(version, number=2, buffers=("w",)))
    answer = private.open(**APPLIED, dp=DP)
    assert "'w' is an integer or a buffer, whose average would reveal clients" in answer["reason"]
    assert read_ledger(private.store, "m").entries == ()


def with_deaths(machine: Machine, deaths: set[int], call: Callable[[], Any]) -> Any:
    """Call a function that dies at these requests, and call it again until it answers."""
    store = machine.store
    assert isinstance(store, DyingStore)
    for left in (deaths, set[int]()):
        store.requests, store.deaths = 0, left
        try:
            return call()
        except Killed:
            continue
        finally:
            store.deaths = set()
    raise AssertionError("died without a reason")


@pytest.mark.slow
@pytest.mark.parametrize("moment", [*range(14), *range(-14, 0)])
def test_functions_that_die_at_any_request_neither_change_the_noise_nor_the_ledger(
    machine: Machine, moment: int
) -> None:
    machine.store = DyingStore()
    put_model(machine)
    limit(machine, 0.25)
    assert with_deaths(machine, {moment}, lambda: machine.open(**APPLIED, dp=DP)) is not None
    update = {"w": np.ones(5, "f4")}
    for client in "abc":
        machine.collect(client, machine.submit(client, update))
    outcome = machine.turn(OPENED)
    planned = with_deaths(machine, {moment}, lambda: machine.plan(outcome))
    key = read_noise_key(machine.store, machine.keys)
    # Twice, as if the first task had been thought dead.
    for _ in range(2):
        machine.aggregate(planned)
    assert read_noise_key(machine.store, machine.keys) == key
    ended = with_deaths(machine, {moment}, lambda: machine.step("finalize_round"))
    assert ended == {"status": "completed"}
    assert machine.store.head(machine.keys.noise_key) is None
    noise = np.empty(5, np.int64)
    NoiseSource(key, 1, 0).read_into(memoryview(noise).cast("B"))
    step = 2.0 / 2480
    factor = 1 / (math.sqrt(5) * (1 + 2**-10))
    expected = (3 * np.trunc(factor / step) + noise) * step / 3
    result = machine.store.get_bytes(machine.keys.result)
    assert result is not None
    assert np.allclose(reference.decode(result)["w"], expected, rtol=1e-6, atol=0)
    ledger = read_ledger(machine.store, "m")
    assert [(entry.round_id, entry.cost) for entry in ledger.entries] == [("r", 0.25)]
