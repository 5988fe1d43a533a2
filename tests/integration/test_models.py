"""Rounds that are applied to the federation's model: tasks, versions, and what may go wrong."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from gradshard_core.errors import ModelNotFoundError, ModelStateError
from gradshard_core.formats.object_keys import ModelKeys
from gradshard_core.records import model_registry
from gradshard_core.records.model_registry import Version
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.quorum import QuorumError
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration.by_hand import Round, Update, put_model, small

SAMPLES = [5, 1, 900]
ALL = ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"]


def apply(name: str, optimizer: str = "fedavg", **settings: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "model": name, **settings}


def read(store: S3Store, version: Version) -> dict[str, reference.Array]:
    body = store.get_bytes(version.tensors.source.key)
    assert body is not None
    return reference.decode(body)


def current(store: S3Store, name: str) -> Version:
    found = model_registry.current(store, name)
    assert found is not None
    return found


def assert_equal(got: Mapping[str, reference.Array], expected: Mapping[str, Any]) -> None:
    assert set(got) == set(expected)
    for name, tensor in expected.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        assert got[name].tobytes() == tensor.tobytes(), name


def submit_all(round_: Round, updates: Sequence[Update]) -> None:
    for number, update in enumerate(updates):
        round_.submit(f"c{number}", update, SAMPLES[number])


@pytest.mark.parametrize("optimizer", ALL)
def test_rounds_go_on_from_each_other_in_all_types(
    open_round: Callable[..., Round], store: S3Store, optimizer: str
) -> None:
    name = f"types-{optimizer}"
    model: Mapping[str, reference.Array] = small(50)
    state: Mapping[str, Mapping[str, reference.Array]] = {}
    put_model(store, name, small(50))
    terms = apply(name, optimizer, learning_rate=0.25)
    for number in range(1, 4):
        round_ = open_round(clients=3, server_optimizer=terms)
        updates = [
            {key: small(10 * number + i)[key] for key in reversed(list(model))} for i in range(3)
        ]
        submit_all(round_, updates)
        assert round_.go() == {"status": "completed"}
        average = reference.average(updates, SAMPLES)
        settings = round_.manifest()["model"]["optimizer"]
        model, state = reference.step(optimizer, settings, number, model, average, state)
        version = current(store, name)
        assert (version.number, version.steps) == (1 + number, number)
        assert version.round_id == round_.name
        assert_equal(read(store, version), model)
        # The averaged update itself is there as in any round.
        assert_equal(reference.decode(round_.result()), average)


class Large(NamedTuple):
    """A model, updates of it that three tasks can add up, and the round that has them."""

    model: Update
    updates: list[Update]
    sent: str


@pytest.fixture(scope="module")
def large(store: S3Store) -> Large:
    rng = np.random.default_rng(3)
    model: Update = {
        "b": rng.standard_normal(500_003).astype(ml_dtypes.bfloat16),
        "w": rng.standard_normal(3_800_001).astype("f4"),
        "n": np.array([3], "i8"),
    }
    updates: list[Update] = [
        {
            "w": rng.standard_normal(3_800_001).astype("f4"),
            "b": rng.standard_normal(500_003).astype(ml_dtypes.bfloat16),
            "n": np.array([i], "i8"),
        }
        for i in range(3)
    ]
    round_ = Round(store, clients=3)
    submit_all(round_, updates)
    return Large(model, updates, round_.name)


@pytest.mark.parametrize("updates", ["deltas", "models"])
def test_every_number_of_shards_and_topology_gives_the_same_bits(
    open_round: Callable[..., Round], store: S3Store, large: Large, updates: str
) -> None:
    average = reference.average(large.updates, SAMPLES, tree=(2,))
    expected: Mapping[str, reference.Array] = large.model
    state: Mapping[str, Mapping[str, reference.Array]] = {}
    settings = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
    for number in (1, 2):
        expected, state = reference.step(
            "fedadam", settings, number, expected, average, state, models=updates == "models"
        )
    ways: list[dict[str, Any]] = [
        {"shards": 1},
        {"shards": 3},
        {"topology": "lambda_fl", "fan_in": 2},
        {},
    ]
    for number, terms in enumerate(ways):
        name = f"bits-{updates}-{number}"
        put_model(store, name, large.model)
        for _ in range(2):
            round_ = open_round(
                clients=3,
                order="tree:2,2",
                updates_from=large.sent,
                **terms,
                server_optimizer=apply(name, "fedadam", updates=updates),
            )
            assert round_.go() == {"status": "completed"}
        assert_equal(read(store, current(store, name)), expected)


def test_a_task_may_run_twice_and_late(open_round: Callable[..., Round], store: S3Store) -> None:
    put_model(store, "twice", small(1))
    round_ = open_round(clients=3, server_optimizer=apply("twice", "fedadam"))
    submit_all(round_, [small(2), small(3), small(4)])
    round_.plan()
    for task in [*round_.tasks(), *round_.tasks()]:
        round_.run(task)
    assert round_.finalize() == {"status": "completed"}
    made = current(store, "twice")
    assert round_.finalize() == {"status": "completed"}
    assert current(store, "twice") == made
    assert [version.number for version in model_registry.history(store, "twice")] == [1, 2]


def test_a_client_that_sends_nan_is_left_out_of_the_model(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "nan", small(1))
    round_ = open_round(clients=3, server_optimizer=apply("nan", "fedavgm"))
    updates = [small(2), small(3), small(4)]
    bad = {**updates[1], "fc.half": np.full((2, 3), np.nan, "f2")}
    submit_all(round_, [updates[0], bad, updates[2]])
    assert round_.go() == {"status": "completed"}
    average = reference.average([updates[0], updates[2]], [SAMPLES[0], SAMPLES[2]])
    settings = round_.manifest()["model"]["optimizer"]
    expected, _ = reference.step("fedavgm", settings, 1, small(1), average, {})
    assert_equal(read(store, current(store, "nan")), expected)
    assert no_open_uploads(round_)


def test_another_optimizer_begins_anew(open_round: Callable[..., Round], store: S3Store) -> None:
    put_model(store, "other", small(1))
    model: Mapping[str, reference.Array] = small(1)
    for optimizer in ("fedadam", "fedavgm", "fedadam"):
        round_ = open_round(clients=1, server_optimizer=apply("other", optimizer))
        round_.submit("a", small(2))
        assert round_.go() == {"status": "completed"}
        settings = round_.manifest()["model"]["optimizer"]
        model, _ = reference.step(optimizer, settings, 1, model, small(2), {})
        assert current(store, "other").steps == 1
    assert_equal(read(store, current(store, "other")), model)


def test_an_update_of_another_layout_is_rejected(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "layout", small(1))
    round_ = open_round(clients=3, min_clients=1, server_optimizer=apply("layout"))
    # Even where the majority has the other layout.
    other = {**small(2), "fc.weight": np.zeros((5, 17), "f4")}
    submit_all(round_, [other, small(3), other])
    assert round_.go() == {"status": "completed"}
    assert "that of version 1 of model 'layout'): tensor 'fc.weight'" in round_.reason("c0")
    expected, _ = reference.step("fedavg", {"learning_rate": 1.0}, 1, small(1), small(3), {})
    assert_equal(read(store, current(store, "layout")), expected)


def test_two_rounds_of_one_version_cannot_both_count(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "race", small(1))
    first, second = (open_round(clients=1, server_optimizer=apply("race")) for _ in range(2))
    for round_ in (first, second):
        round_.submit("a", small(2))
        round_.plan()
        round_.aggregate()
    first.finalize()
    with pytest.raises(ModelStateError, match=f"version 2 .* is that of round '{first.name}'"):
        second.finalize()
    abort_round(store, second.name, error="ModelStateError", cause="…")
    assert second.manifest()["status"] == "failed"
    assert no_open_uploads(second)
    assert store.head(ModelKeys("race").next_model(second.name)) is None
    assert current(store, "race").round_id == first.name
    # A third one sees at planning that it is too late, before anything is computed.
    late = open_round(clients=1, server_optimizer=apply("race"), model_version=1)
    late.submit("a", small(2))
    with pytest.raises(ModelStateError, match=r"began from version 1 .* but version 2 is current"):
        late.plan()


def test_a_number_is_not_taken_for_ever_by_a_round_that_never_ended(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "stopped", small(1))
    stopped, after = (open_round(clients=1, server_optimizer=apply("stopped")) for _ in range(2))
    first = current(store, "stopped")
    reserved = replace(first, number=2, round_id=stopped.name)
    model_registry.reserve(store, reserved)
    after.submit("a", small(2))
    after.plan()
    after.aggregate()
    # While the round is there, it may go on.
    with pytest.raises(ModelStateError, match=f"version 2 .* is that of round '{stopped.name}'"):
        after.finalize()
    store.delete_versions(stopped.keys.root)
    assert after.finalize() == {"status": "completed"}
    assert current(store, "stopped").round_id == after.name


@pytest.mark.parametrize("killed", ["reserved", "manifest"])
def test_a_round_that_dies_while_it_ends_counts_whole_or_not_at_all(
    open_round: Callable[..., Round], store: S3Store, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    name = f"killed-{killed}"
    put_model(store, name, small(1))
    round_ = open_round(clients=1, server_optimizer=apply(name))
    round_.submit("a", small(2))
    round_.plan()
    round_.aggregate()

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    put_json = S3Store.put_json
    monkeypatch.setattr(
        S3Store,
        "put_json",
        lambda store, key, value, **more: (
            die()
            if key == (round_.keys.manifest if killed == "reserved" else ModelKeys(name).current)
            else put_json(store, key, value, **more)
        ),
    )
    with pytest.raises(KeyboardInterrupt):
        round_.finalize()
    monkeypatch.undo()
    # What is reserved does not count before the manifest says so; then it does.
    assert current(store, name).number == (1 if killed == "reserved" else 2)
    outcome = abort_round(store, round_.name, error="Killed", cause="…")
    assert outcome["status"] == ("failed" if killed == "reserved" else "completed")
    assert no_open_uploads(round_)
    noted = store.get_json(ModelKeys(name).current)
    assert noted["version"] == current(store, name).number == (1 if killed == "reserved" else 2)
    # And the next round goes on, in the place of one that failed.
    after = open_round(clients=1, server_optimizer=apply(name))
    after.submit("a", small(2))
    assert after.go() == {"status": "completed"}
    assert current(store, name).number == (2 if killed == "reserved" else 3)
    assert current(store, name).round_id == after.name


def test_a_model_that_would_not_be_finite_fails_the_round(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "wild", {"w": np.ones(40_000, "f4")})
    update = {"w": np.ones(40_000, "f4")}
    update["w"][39_999] = 1e30
    round_ = open_round(clients=1, server_optimizer=apply("wild", learning_rate=1e30))
    round_.submit("a", update)
    with pytest.raises(
        QuorumError,
        match=r"a: .* learning_rate 1e\+30 .* element 39999 of the model's tensor 'w'.* 1e\+30 "
        "there with weight 1, .* a lower learning rate",
    ):
        round_.go()
    abort_round(store, round_.name, error="QuorumError", cause="…")
    assert no_open_uploads(round_)
    assert current(store, "wild").number == 1
    # Its square would, and the element would never move again.
    round_ = open_round(clients=1, server_optimizer=apply("wild", "fedadagrad"))
    round_.submit("a", update)
    with pytest.raises(QuorumError, match=r"element 39999 .* the optimizer's state there"):
        round_.go()


def test_a_client_that_makes_the_next_model_overflow_is_left_out(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    model = small(1)
    put_model(store, "large", model)
    updates = [small(2), small(3), small(4)]
    large = {**updates[1], "fc.weight": updates[1]["fc.weight"].copy()}
    large["fc.weight"][3, 1] = 1e25
    terms: list[dict[str, Any]] = [{}, {"topology": "lambda_fl", "fan_in": 2}]
    for number, more in enumerate(terms):
        round_ = open_round(clients=3, server_optimizer=apply("large", "fedadam"), **more)
        submit_all(round_, [updates[0], large, updates[2]])
        assert round_.go() == {"status": "completed"}
        assert "element 16 of the model's tensor 'fc.weight'" in round_.reason("c1")
        assert current(store, "large").number == 2 + number
    assert no_open_uploads(round_)


def test_no_such_model(open_round: Callable[..., Round], store: S3Store) -> None:
    assert model_registry.current(store, "nobody") is None
    with pytest.raises(
        ModelNotFoundError, match=r"there is no model 'nobody': .*FILE --name nobody"
    ):
        open_round(clients=1, server_optimizer=apply("nobody"), model_version=1).plan()
    put_model(store, "one", small(1))
    with pytest.raises(ModelNotFoundError, match="'one' has no version 7; the newest is 1"):
        model_registry.read_version(store, "one", 7)


def test_versions_outlive_their_rounds(open_round: Callable[..., Round], store: S3Store) -> None:
    put_model(store, "old", small(1))
    for _ in range(3):
        round_ = open_round(clients=1, server_optimizer=apply("old"))
        round_.submit("a", small(2))
        round_.go()
        # As the bucket's lifecycle does after RetentionDays.
        store.delete_versions(round_.keys.root)
    assert current(store, "old").number == 4
    assert [version.number for version in model_registry.history(store, "old")] == [1, 2, 3, 4]
    assert model_registry.read_version(store, "old", 2).number == 2


def no_open_uploads(round_: Round) -> bool:
    listed = round_.store.call("list_multipart_uploads", Prefix="")
    return not [u for u in listed.get("Uploads", []) if round_.name in u["Key"].split("/")]
