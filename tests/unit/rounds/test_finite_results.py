"""No completed round holds a NaN or an infinity; whoever causes one is rejected by name."""

import itertools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradshard_core.aggregation.addition_order import parse_order
from gradshard_core.errors import PlanError
from gradshard_core.limits import state_machine_history
from gradshard_core.records import model_registry
from gradshard_core.rounds import bad_inputs, sum_overflow
from gradshard_core.rounds.quorum import QuorumError
from tests import reference
from tests.integration.by_hand import layout_of, put_model
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

Sent = tuple[Mapping[str, reference.Array], int] | tuple[Mapping[str, reference.Array], int, int]
"""An update, its number of samples and, where they count, its steps."""

NUMBER = itertools.count()
FLOATS = ["F64", "F32", "F16", "BF16"]


def run(machine: Machine, sent: Mapping[str, Sent], **terms: Any) -> dict[str, Any]:
    """Run a round to its end; return its manifest."""
    machine.begin(f"finite-{next(NUMBER)}")
    if "rule" in terms:
        largest = max((update for update, *_ in sent.values()), key=len)
        terms = {"layout": layout_of(dict(largest)), **terms}
    machine.open(**{"clients": len(sent), "min_clients": 1, **terms})
    for client, (update, samples, *steps) in sent.items():
        metadata = {"num_samples": str(samples), "partial": "true"}
        if steps:
            metadata["steps"] = str(steps[0])
        body = reference.encode(update, metadata)
        machine.store.put_bytes(machine.keys.update(client), body)
    outcome: dict[str, Any] = {**OPENED, "status": "replan"}
    attempts = 0
    while outcome["status"] == "replan":
        outcome = machine.turn(outcome)
        attempts += 1
        assert attempts <= len(sent), "each attempt rejects somebody"
    manifest: dict[str, Any] = machine.store.get_json(machine.keys.manifest)
    return manifest


def result_of(machine: Machine) -> dict[str, reference.Array]:
    return reference.decode(machine.store.objects[machine.keys.result])


def is_finite(tensors: Mapping[str, reference.Array]) -> bool:
    return all(np.isfinite(np.asarray(t).astype("f8")).all() for t in tensors.values())


def rejected(manifest: Mapping[str, Any]) -> list[str]:
    return [rejection["client"] for rejection in manifest["rejected"]]


def of(dtype: str, *values: float) -> dict[str, reference.Array]:
    return {"w": np.array(values).astype(reference.NUMPY[dtype])}


# ------------------------------------------------------------------------ overflowing sums


def test_a_count_that_overflows_the_sum_costs_its_sender_the_round(machine: Machine) -> None:
    sent: dict[str, Sent] = {
        "a": (of("F32", 1, 1), 5),
        "eve": (of("F32", 1, 3e38), 2**53),
        "z": (of("F32", 3, 3), 5),
    }
    manifest = run(machine, sent, weights="counts")
    assert rejected(manifest) == ["eve"]
    reason = manifest["rejected"][0]["reason"]
    for part in ("updates/eve.safetensors", "'w'", "element 1", "3e+38", "9.0072e+15", "F32"):
        assert part in reason
    assert result_of(machine)["w"].tolist() == [2, 2]


def test_steps_that_overflow_the_average_are_bounded(machine: Machine) -> None:
    sent: dict[str, Sent] = {
        client: (of("F32", 3e38), 1, steps) for client, steps in (("a", 1000), ("b", 1000))
    }
    manifest = run(machine, {**sent, "eve": (of("F32", 3e38), 1, 1)}, weights="steps")
    assert is_finite(result_of(machine))
    assert rejected(manifest) == ["eve"]


@pytest.mark.parametrize(("dtype", "value"), [("F16", 6e4), ("BF16", 3e38), ("F32", 3e38)])
@pytest.mark.parametrize("topology", ["shards", "grid", "lifl"])
def test_a_rule_whose_weights_are_over_one_overflows_the_type(
    machine: Machine, dtype: str, value: float, topology: str
) -> None:
    """SALF divides by 1 - p: finite updates, finite sums in F32, and no such F16."""
    sent: dict[str, Sent] = {"a": (of(dtype, 1, 2), 1), "b": (of(dtype, 3, 2), 1)}
    sent |= {"eve": (of(dtype, 1, value * 0.8), 1), "mallory": (of(dtype, 1, value), 1)}
    rule = {"name": "salf", "p": 0.7}
    manifest = run(machine, sent, topology=topology, rule=rule)
    assert is_finite(result_of(machine))
    assert rejected(manifest) == ["mallory"]
    sent = {"a": (of(dtype, value), 1)}
    with pytest.raises(Exception, match=rf"0 good .*a: .* overflow {dtype} .*element 0"):
        run(machine, sent, rule=rule)


def test_infinities_of_opposite_groups_do_not_become_a_nan(machine: Machine) -> None:
    sent: dict[str, Sent] = {
        client: (of("F32", value, 1), 2**50)
        for client, value in {"a": 1, "b": 3e38, "c": 1, "d": -3e38}.items()
    }
    ways: list[dict[str, Any]] = [
        {"topology": "shards"},
        {"topology": "lambda_fl", "fan_in": 2},
        {"topology": "grid", "fan_in": 2},
    ]
    for terms in ways:
        manifest = run(machine, sent, weights="counts", order="tree:2,2", **terms)
        assert rejected(manifest) == ["b", "d"]
        assert result_of(machine)["w"].tolist() == [1, 1]


def test_finite_updates_that_only_overflow_together(machine: Machine) -> None:
    """Each partial sum is finite; their sum is not, and the task that adds them finds out why."""
    value = float(np.finfo("f4").max) / 2**10
    sent: dict[str, Sent] = {f"c{i}": (of("F32", 1, value), 2**8) for i in range(4)}
    sent["c2"] = (of("F32", 1, value), 2**9)
    manifest = run(machine, sent, weights="counts", topology="lambda_fl", fan_in=2)
    assert rejected(manifest) == ["c2"]
    assert "with weight 512" in manifest["rejected"][0]["reason"]
    assert is_finite(result_of(machine))


def test_equal_contributions_cost_the_first_client(machine: Machine) -> None:
    value = float(np.finfo("f4").max) / 2
    sent: dict[str, Sent] = {c: (of("F32", value), 1) for c in ("c", "b", "a")}
    manifest = run(machine, sent, weights="counts", min_clients=1)
    assert rejected(manifest) == ["a"]


def test_many_attackers_of_one_element_cost_one_attempt(machine: Machine) -> None:
    sent: dict[str, Sent] = {f"c{i:02}": (of("F64", 1, i), 1) for i in range(10)}
    sent |= {f"e{i:02}": (of("F64", 1, 1e300), 2**53 - i) for i in range(9)}
    manifest = run(machine, sent, weights="counts", topology="grid", fan_in=3)
    assert rejected(manifest) == [f"e{i:02}" for i in range(9)]
    assert manifest["attempts"] == 2


def test_attackers_of_many_elements_cannot_have_the_round_planned_for_ever(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Sent] = {"a": (of("F32", *[1] * 5), 1)}
    sent |= {f"e{i}": (of("F32", *np.eye(5)[i] * 3e38), 2**53) for i in range(5)}
    assert run(machine, sent, weights="counts")["attempts"] == 6
    monkeypatch.setattr(state_machine_history, "most_attempts", lambda _levels: 3)
    with pytest.raises(PlanError, match=r"planned 3 times, .* 3 in all: e0, e1, e2; the last: "):
        run(machine, sent, weights="counts")


def test_a_nan_is_named_as_before(machine: Machine) -> None:
    sent: dict[str, Sent] = {c: (of("F16", 1, 2), 1) for c in ("a", "b")}
    manifest = run(machine, {**sent, "eve": (of("F16", 1, np.nan), 1)})
    assert rejected(manifest) == ["eve"]
    assert "holds a NaN or an infinity at element 1" in manifest["rejected"][0]["reason"]


def test_too_few_are_left_and_the_cause_names_them(machine: Machine) -> None:
    sent: dict[str, Sent] = {"a": (of("F32", 1), 1), "eve": (of("F32", 3e38), 2**53)}
    with pytest.raises(Exception, match=r"1 good update, .*eve: .*3e\+38 there with weight"):
        run(machine, sent, weights="counts", min_clients=2)


def test_allowed_overflow_is_the_result(machine: Machine) -> None:
    sent: dict[str, Sent] = {"a": (of("F32", 1), 1), "b": (of("F32", 3e38), 2**53)}
    manifest = run(machine, sent, weights="counts", allow_nonfinite=True)
    assert rejected(manifest) == []
    assert np.isinf(result_of(machine)["w"]).all()


@pytest.mark.parametrize("dtype", ["I8", "I64", "U64", "U8"])
def test_integers_stay_within_their_bounds(machine: Machine, dtype: str) -> None:
    bounds = np.iinfo(reference.NUMPY[dtype])
    updates = [{"w": np.array([bounds.max, bounds.min], reference.NUMPY[dtype])}] * 3
    rule = {"name": "salf", "p": 0.99}
    manifest = run(machine, {f"c{i}": (u, 2**53) for i, u in enumerate(updates)}, rule=rule)
    assert rejected(manifest) == []
    highest = np.nextafter(2.0**64, 0) if dtype == "U64" else np.nextafter(2.0**63, 0)
    assert result_of(machine)["w"].tolist() == [min(bounds.max, int(highest)), bounds.min]


@pytest.mark.parametrize("rule", ["fedavg", "fill", "drop"])
def test_rules_without_a_correction(machine: Machine, rule: str) -> None:
    """An honest client that adds little stays, whatever the layer of the other."""
    most = float(np.finfo("f4").max)
    sent: dict[str, Sent] = {
        c: ({"a.w": np.ones(2, "f4"), "b.w": np.array([most, 1], "f4")}, 1) for c in "xyz"
    }
    manifest = run(machine, sent, rule=rule)
    assert is_finite(result_of(machine))
    assert len(rejected(manifest)) <= 1


VALUES = st.sampled_from([0.0, 1.0, -1.0, 0.3, 1e-30, 60_000.0, 1e19, 3.3e38, -3.3e38, 1e305])


@pytest.mark.slow
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    clients=st.lists(
        st.tuples(st.lists(VALUES, min_size=5, max_size=5), st.sampled_from([1, 2, 7, 2**53])),
        min_size=1,
        max_size=9,
    ),
    dtype=st.sampled_from([*FLOATS, "I8", "I64"]),
    weights=st.sampled_from(["shares", "counts"]),
    topology=st.sampled_from(["shards", "lambda_fl", "lifl", "grid"]),
)
def test_any_updates_give_a_finite_average_of_the_remaining_clients(
    machine: Machine,
    clients: Sequence[tuple[Sequence[float], int]],
    dtype: str,
    weights: str,
    topology: str,
) -> None:
    kind = reference.NUMPY[dtype]
    most = 100.0 if kind.kind == "i" else float(ml_dtypes.finfo(kind).max)
    sent: dict[str, Sent] = {
        f"c{i}": (of(dtype, *np.clip(values, -most, most)), samples)
        for i, (values, samples) in enumerate(clients)
    }
    terms: dict[str, Any] = {"weights": weights, "topology": topology}
    if topology != "shards":
        terms["fan_in"] = 2
    try:
        manifest = run(machine, sent, **terms)
    except QuorumError as error:
        cause = str(error)
        assert all(f"{client}: " in cause for client in sent)
        return
    left = [sent[client] for client in sorted(set(sent) - set(rejected(manifest)))]
    tree = parse_order(manifest["order"])
    expected = reference.average(
        [update for update, *_ in left],
        [samples for _, samples, *_ in left],
        tree=tree,
        counts=weights == "counts",
    )
    assert is_finite(expected)
    assert result_of(machine)["w"].tobytes() == expected["w"].tobytes()
    if topology == "shards":
        assert sorted(rejected(manifest)) == to_reject(sent, weights == "counts")


def to_reject(sent: Mapping[str, Sent], counts: bool) -> list[str]:
    """Say by the rule alone who is rejected, where one task adds all updates."""
    left, out = dict(sorted(sent.items())), list[str]()
    while left:
        updates, samples = [u for u, *_ in left.values()], [n for _, n, *_ in left.values()]
        average = reference.average(updates, samples, counts=counts)["w"].astype("f8")
        bad = np.flatnonzero(~np.isfinite(average))
        if not len(bad):
            break
        shares = {
            client: n if counts else n / sum(samples)
            for client, n in zip(left, samples, strict=True)
        }
        size = {
            client: abs(Fraction(float(left[client][0]["w"][bad[0]])) * Fraction(share))
            for client, share in shares.items()
        }
        largest = sorted(left, key=lambda client: (-size[client], client))
        while largest:
            out.append(largest.pop(0))
            del left[out[-1]]
            # The rest, with the weights that they had.
            dtype = updates[0]["w"].dtype
            wide = np.dtype("f8" if dtype.kind in "iu" or dtype.itemsize == 8 else "f4")
            total = wide.type(0)
            with np.errstate(all="ignore"):
                for client in reversed(largest):
                    value = wide.type(left[client][0]["w"][bad[0]])
                    total += value * wide.type(shares[client])
                total = total / wide.type(sum(samples)) if counts else total
            if np.isfinite(np.asarray(total).astype(dtype).astype("f8")):
                break
    return sorted(out)


@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    clients=st.lists(
        st.tuples(st.integers(0, 2), st.lists(VALUES, min_size=3, max_size=3)),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from([*FLOATS, "I16"]),
    rule=st.sampled_from(["fedavg", "fill", "drop", "salf", "balanced"]),
    p=st.sampled_from([0.05, 0.3, 0.9, 1 - 2**-40]),
    shards=st.booleans(),
)
def test_any_partial_updates_give_finite_layers(
    machine: Machine,
    clients: Sequence[tuple[int, Sequence[float]]],
    dtype: str,
    rule: str,
    p: float,
    shards: bool,
) -> None:
    """Clients send the last of three layers, or the last two, or all."""
    kind, names = reference.NUMPY[dtype], ["a.w", "b.w", "c.w"]
    most = 100.0 if kind.kind == "i" else float(ml_dtypes.finfo(kind).max)
    sent: dict[str, Sent] = {
        f"c{i}": (
            {
                name: np.array([np.clip(value, -most, most)]).astype(kind)
                for name, value in list(zip(names, values, strict=True))[first:]
            },
            1 + i,
        )
        for i, (first, values) in enumerate(clients)
    }
    given_rule: dict[str, Any] = {"name": rule}
    if rule in {"salf", "balanced"}:
        given_rule = {"name": "salf", "p": p, "balanced": rule == "balanced"}
    layout = {name: {"dtype": dtype, "shape": [1]} for name in names}
    topology = {"topology": "shards"} if shards else {"topology": "grid", "fan_in": 2}
    try:
        manifest = run(machine, sent, rule=given_rule, layout=layout, **topology)
    except QuorumError as error:
        cause = str(error)
        assert all(f"{client}: " in cause for client in sent)
        return
    result = result_of(machine)
    assert is_finite(result)
    wide = np.dtype("f8" if kind.kind == "i" or kind.itemsize == 8 else "f4")
    for layer in manifest["layers"] if shards else ():
        name, total = f"{layer['name']}.w", None
        for client, weight in sorted(layer["weights"].items()):
            factor: reference.Array = np.array(weight).astype(wide)
            product: reference.Array = sent[client][0][name].astype(wide) * factor
            total = product if total is None else total + product
        total = np.zeros(1, wide) if total is None else total
        if kind.kind == "i":
            total = np.clip(np.rint(total), np.iinfo(kind).min, np.iinfo(kind).max)
        assert result[name].tobytes() == total.astype(kind).tobytes()


# ------------------------------------------------------------------------ overflowing steps


def applied(
    machine: Machine, model: Mapping[str, reference.Array], optimizer: str, **more: Any
) -> dict[str, Any]:
    name = f"m{next(NUMBER)}"
    put_model(machine.store, name, dict(model))
    return {"server_optimizer": {"optimizer": optimizer, "model": name, **more}}


def tensors_of(machine: Machine, name: str) -> list[dict[str, reference.Array]]:
    """Return the newest model and its optimizer's state."""
    version = model_registry.current(machine.store, name)
    assert version is not None
    kept = [version.tensors, *version.state.values()]
    return [reference.decode(machine.store.objects[t.source.key]) for t in kept]


@pytest.mark.parametrize("optimizer", ["fedadam", "fedyogi", "fedadagrad"])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("topology", ["shards", "lambda_fl"])
def test_one_client_whose_square_overflows_is_rejected(
    machine: Machine, optimizer: str, dtype: str, topology: str
) -> None:
    terms = applied(machine, of(dtype, 1, 1), optimizer)
    sent: dict[str, Sent] = {c: (of(dtype, 1, 0.5), 3) for c in ("a", "b", "c")}
    manifest = run(machine, {**sent, "eve": (of(dtype, 1, 2e20), 3)}, topology=topology, **terms)
    assert rejected(manifest) == ["eve"]
    for part in (optimizer, "learning_rate", "e+20", "weight 0.25", "element 1"):
        assert part in manifest["rejected"][0]["reason"]
    settings_ = manifest["model"]["optimizer"]
    average = reference.average([of(dtype, 1, 0.5)] * 3, [3] * 3)
    expected, _ = reference.step(optimizer, settings_, 1, of(dtype, 1, 1), average, {})
    found = tensors_of(machine, terms["server_optimizer"]["model"])
    assert all(map(is_finite, found))
    assert found[0]["w"].tobytes() == expected["w"].tobytes()


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm"])
@pytest.mark.parametrize(("dtype", "value"), [("F16", 6e4), ("BF16", 3e38), ("F32", 3e38)])
def test_one_client_whose_step_overflows_the_models_type_is_rejected(
    machine: Machine, optimizer: str, dtype: str, value: float
) -> None:
    model = of(dtype, value * 0.9, 1)
    terms = applied(machine, model, optimizer)
    sent: dict[str, Sent] = {c: (of(dtype, -1, 0.5), 1) for c in ("a", "b")}
    manifest = run(machine, {**sent, "eve": (of(dtype, value, 1), 1)}, **terms)
    assert rejected(manifest) == ["eve"]
    assert all(map(is_finite, tensors_of(machine, terms["server_optimizer"]["model"])))


def test_a_learning_rate_that_is_too_high_is_named(machine: Machine) -> None:
    terms = applied(machine, of("F32", 1, 1), "fedavg", learning_rate=3e38)
    sent: dict[str, Sent] = {c: (of("F32", 5, 5), 1) for c in ("a", "b", "c")}
    cause = r"0 good .*a: .*fedavg with learning_rate 3e\+38 .*lower.*b: .*c: "
    with pytest.raises(Exception, match=cause):
        run(machine, sent, **terms)


def test_no_client_is_rejected_for_a_model_that_is_not_finite(machine: Machine) -> None:
    terms = applied(machine, of("F32", 1, np.nan), "fedavg")
    with pytest.raises(
        Exception, match=r"whatever clients send: look at version 1 of model"
    ) as failed:
        run(machine, {"a": (of("F32", 1, 1), 1)}, **terms)
    assert type(failed.value).__name__ == "PlanError"
    # Models that are sent whole replace it.
    terms["server_optimizer"] |= {"updates": "models"}
    assert rejected(run(machine, {"a": (of("F32", 1, 1), 1)}, **terms)) == []


def test_models_that_are_sent_whole(machine: Machine) -> None:
    terms = applied(machine, of("F32", 1, 1), "fedadam", updates="models")
    sent: dict[str, Sent] = {c: (of("F32", 1.5, 1), 1) for c in ("a", "b", "c")}
    manifest = run(machine, {**sent, "eve": (of("F32", 1, -1e25), 1)}, **terms)
    assert rejected(manifest) == ["eve"]


@pytest.mark.slow
@settings(
    deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    rounds=st.lists(
        st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    optimizer=st.sampled_from(["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"]),
    learning_rate=st.sampled_from([0.1, 1.0, 1e20, 1e38]),
    dtype=st.sampled_from([*FLOATS, "I64"]),
    updates=st.sampled_from(["deltas", "models"]),
)
def test_any_updates_keep_model_and_state_finite(
    machine: Machine,
    rounds: Sequence[Sequence[Sequence[float]]],
    optimizer: str,
    learning_rate: float,
    dtype: str,
    updates: str,
) -> None:
    kind = reference.NUMPY[dtype]
    most = 2.0**40 if kind.kind == "i" else float(ml_dtypes.finfo(kind).max)
    model: Mapping[str, reference.Array] = of(dtype, 1, 1, 1)
    state: Mapping[str, Mapping[str, reference.Array]] = {}
    terms = applied(machine, model, optimizer, learning_rate=learning_rate, updates=updates)
    name, done = terms["server_optimizer"]["model"], 0
    for clients in rounds:
        sent: dict[str, Sent] = {
            f"c{i}": (of(dtype, *np.clip(values, -most, most)), 1)
            for i, values in enumerate(clients)
        }
        before = model_registry.current(machine.store, name)
        try:
            manifest = run(machine, sent, **terms)
        except (QuorumError, PlanError) as error:
            cause = str(error)
            assert model_registry.current(machine.store, name) == before
            if "whatever clients send" not in cause:
                assert all(f"{client}: " in cause for client in sent)
            continue
        done += 1
        left = [sent[client][0] for client in sorted(set(sent) - set(rejected(manifest)))]
        average = reference.average(left, [1] * len(left))
        with np.errstate(all="ignore"):
            model, state = reference.step(
                optimizer,
                manifest["model"]["optimizer"],
                done,
                model,
                average,
                state,
                models=updates == "models",
            )
        found = tensors_of(machine, name)
        assert all(map(is_finite, [average, *found]))
        assert found[0]["w"].tobytes() == model["w"].tobytes()


# ------------------------------------------------------------------------------- other paths


def test_a_nan_and_an_overflow_in_one_round(machine: Machine) -> None:
    sent: dict[str, Sent] = {c: (of("F32", 1, 1, 1), 1) for c in ("a", "b")}
    sent |= {"eve": (of("F32", 3e38, 1, 1), 2**53), "mallory": (of("F32", 1, 1, np.nan), 1)}
    for topology in ("shards", "lambda_fl"):
        manifest = run(machine, sent, weights="counts", topology=topology)
        assert sorted(rejected(manifest)) == ["eve", "mallory"]
        assert result_of(machine)["w"].tolist() == [1, 1, 1]


def test_groups_that_are_added_while_others_are_awaited(machine: Machine) -> None:
    value = float(np.finfo("f4").max) / 2**10
    sent = {f"c{i}": {"w": np.array([1, value], "f4")} for i in range(6)}
    machine.begin("eager")
    machine.open(
        clients=sorted(sent),
        topology="lambda_fl",
        fan_in=2,
        eager=True,
        weights="counts",
        layout=layout_of(sent["c0"]),
    )

    def submit(*clients: str) -> None:
        for client in clients:
            samples = {"c5": 2**10 - 1, "c0": 2}.get(client, 1)
            body = reference.encode(sent[client], {"num_samples": str(samples)})
            machine.store.put_bytes(machine.keys.update(client), body)

    submit("c4", "c5")
    assert machine.turn(OPENED)["status"] == "awaiting"
    submit("c0", "c1", "c2", "c3")
    outcome = machine.turn(OPENED)
    assert outcome["status"] == "replan"
    assert machine.turn(outcome) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    assert rejected(manifest) == ["c5"]
    assert is_finite(result_of(machine))


def test_a_version_that_is_gone_while_its_element_is_read_costs_its_sender(
    machine: Machine,
) -> None:
    value = float(np.finfo("f4").max) / 2**10
    sent: dict[str, Sent] = {f"c{i}": (of("F32", 1, value), 2**8) for i in range(4)}
    sent["c2"] = (of("F32", 1, value), 2**9)
    machine.begin("gone")
    machine.open(clients=4, weights="counts", topology="lambda_fl")
    for client, (update, samples, *_) in sent.items():
        body = reference.encode(update, {"num_samples": str(samples)})
        machine.store.put_bytes(machine.keys.update(client), body)
    found = sum_overflow.reject_largest

    def after_deletion(*arguments: Any) -> Any:
        machine.store.delete(machine.keys.update("c3"))
        return found(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bad_inputs, "reject_largest", after_deletion)
        outcome = machine.turn(OPENED)
    assert (outcome["status"], outcome["rejected"]) == ("replan", 1)
    assert machine.turn(outcome) == {"status": "completed"}
    assert rejected(machine.store.get_json(machine.keys.manifest)) == ["c3"]
