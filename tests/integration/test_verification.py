"""Verifying rounds of every kind, and what is wrong with them, over real HTTP."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from gradshard.client import round as client_round
from gradshard.client.stack import Stack
from gradshard.verification.round_verification import Verification, VerificationError
from gradshard_core.errors import ChangedObjectError, GradshardError, RoundStateError, SpecError
from gradshard_core.formats.codecs.registry import CODECS
from gradshard_core.s3.store import S3Store
from tests import reference
from tests.integration import test_partial, test_topologies
from tests.integration.by_hand import Round, Update, put_model, small
from tests.integration.conftest import as_clients_do
from tests.unit.rounds.test_compressed_rounds import compress, tensors

CLIENTS = [f"c{number:02}" for number in range(13)]
SAMPLES = [5, 1, 900, 17, 3, 64, 2, 250, 31, 8, 77, 410, 6]


def verify(store: S3Store, name: str, sample: float = 1.0, seed: str = "s") -> Verification:
    stack = Stack("none", bucket=store.bucket, state_machine=None, endpoint_url=None, port=None)
    stack.store = as_clients_do(store)
    return client_round.Round(stack, name).verify(sample=sample, seed=seed)


def submit_all(round_: Round) -> None:
    for number, client in enumerate(CLIENTS):
        update = small(number)
        order = list(update) if number % 2 else list(reversed(update))
        round_.submit(client, update, SAMPLES[number], order=order)


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"order": "tree:4,4"},
        {"weights": "counts"},
        {"max_samples": 7},
        {"max_samples": 7, "weights": "counts"},
        {"topology": "lambda_fl"},
        {"topology": "lambda_fl", "fan_in": 9, "order": "tree:3,3,2"},
        {"topology": "lifl", "weights": "counts"},
        {"topology": "grid", "fan_in": 2},
    ],
    ids=json.dumps,
)
def test_every_topology_order_and_weight_is_verified(
    open_round: Callable[..., Round], terms: dict[str, Any]
) -> None:
    round_ = open_round(clients=CLIENTS, **terms)
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    found = verify(round_.store, round_.name)
    assert (found.is_correct, found.contributors) == (True, 13)
    assert found.sampled_nbytes == found.nbytes
    assert found.objects == (round_.keys.result,)
    assert (found.contradictions, found.notes) == ((), ())


@pytest.mark.parametrize("rule", ["fedavg", "fill", "drop", {"name": "salf", "p": 0.25}], ids=str)
def test_partial_updates_are_verified(open_round: Callable[..., Round], rule: Any) -> None:
    round_ = open_round(clients=8, rule=rule, layout=test_partial.LAYOUT, shards=3, min_clients=3)
    test_partial.submit_all(round_)
    assert round_.go() == {"status": "completed"}
    found = verify(round_.store, round_.name)
    assert (found.contradictions, found.notes) == ((), ())
    layers = round_.manifest()["layers"]
    layers[0]["p"] = 0.5
    lie(round_, layers=layers)
    with pytest.raises(VerificationError, match=r"layer conv1: p and weights is \(0\.5, "):
        verify(round_.store, round_.name)


def test_probabilities_estimated_from_past_rounds_are_verified_while_those_are_there(
    open_round: Callable[..., Round],
) -> None:
    first = open_round(clients=8, rule="fedavg", layout=test_partial.LAYOUT)
    test_partial.submit_all(first)
    first.go()
    rule = {"name": "salf", "p": {"model": "rounds", "rounds": [first.name]}}
    round_ = open_round(clients=8, rule=rule, layout=test_partial.LAYOUT)
    test_partial.submit_all(round_)
    round_.go()
    assert verify(round_.store, round_.name).notes == ()
    first.store.delete_versions(first.keys.root)
    [note] = verify(round_.store, round_.name).notes
    assert note.startswith("the weights of layers are the manifest's: p cannot be estimated from")


@pytest.mark.parametrize("terms", [{}, {"order": "tree:2,2"}, {"rule": "median"}], ids=str)
def test_compressed_updates_are_verified_in_any_order_of_tensors(
    open_round: Callable[..., Round], terms: dict[str, Any]
) -> None:
    round_ = open_round(clients=4, codecs=list(CODECS), **terms)
    rng = np.random.default_rng(0)
    for number, codec in enumerate(CODECS):
        update = tensors(rng)
        order = [*update] if number % 2 else [*update][::-1]
        round_.upload(CLIENTS[number], compress(rng, codec, update, order=order))
    assert round_.go() == {"status": "completed"}
    found = verify(round_.store, round_.name)
    assert (found.contributors, found.contradictions, found.notes) == (4, (), ())
    assert found.sampled_nbytes == found.nbytes


@pytest.mark.parametrize("rule", ["median", {"name": "trimmed_mean", "beta": 0.3}, "sign"], ids=str)
def test_rules_over_columns_are_verified(open_round: Callable[..., Round], rule: Any) -> None:
    round_ = open_round(clients=CLIENTS, rule=rule, shards=3)
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    assert verify(round_.store, round_.name).contradictions == ()
    lie(round_, rule="fedavg")
    with pytest.raises(VerificationError, match="rule is 'fedavg' in the manifest, not"):
        verify(round_.store, round_.name)


def test_a_rule_that_measured_is_rejected_with_the_reason(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, rule="geometric_median")
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    with pytest.raises(SpecError, match="its rule geometric_median decided on weights from"):
        verify(round_.store, round_.name)


def test_a_private_round_is_rejected_with_the_reason(open_round: Callable[..., Round]) -> None:
    dp = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    round_ = open_round(clients=CLIENTS[:2], dp=dp)
    for client in CLIENTS[:2]:
        round_.submit(client, {"w": np.ones(4, np.float32)})
    assert round_.go() == {"status": "completed"}
    with pytest.raises(SpecError, match="it is private, and the key of its noise was deleted"):
        verify(round_.store, round_.name)


def test_weights_by_steps_are_verified(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3, weights="steps")
    for number in range(3):
        metadata = {"num_samples": str(SAMPLES[number]), "steps": str(3 + 40 * number)}
        round_.upload(CLIENTS[number], reference.encode(small(number), metadata))
    round_.go()
    verify(round_.store, round_.name)
    contributors = round_.manifest()["contributors"]
    contributors[1]["weight"] = 0.25
    lie(round_, contributors=contributors)
    with pytest.raises(VerificationError, match=r"c01: weight is 0\.25 in the manifest, not"):
        verify(round_.store, round_.name)


@pytest.mark.parametrize("optimizer", ["fedavg", "fedavgm", "fedadagrad", "fedyogi", "fedadam"])
@pytest.mark.parametrize("updates", ["deltas", "models"])
def test_models_and_the_state_of_optimizers_are_verified(
    open_round: Callable[..., Round], store: S3Store, optimizer: str, updates: str
) -> None:
    name = f"verified-{optimizer}-{updates}"
    put_model(store, name, small(50))
    terms = {"optimizer": optimizer, "model": name, "updates": updates, "buffers": ["bn.*"]}
    objects = 0
    for first in (0, 3):
        round_ = open_round(clients=3, server_optimizer=terms, weights="counts")
        for number in range(3):
            round_.submit(CLIENTS[number], small(first + number), SAMPLES[number])
        round_.go()
        found = verify(round_.store, round_.name)
        objects = len(found.objects)
        assert (found.contradictions, found.notes) == ((), ())
    state = round_.manifest()["model"]["state"]
    assert objects == 2 + len(state)
    for stored in (round_.manifest()["model"]["tensors"], *state.values()):
        replaced = flip(round_, stored["key"], stored["data_offset"] + 4)
        model = round_.manifest()["model"]
        for entry in (model["tensors"], *model["state"].values()):
            if entry["key"] == stored["key"]:
                entry.update(replaced)
        lie(round_, model=model)
    with pytest.raises(VerificationError) as wrong:
        verify(round_.store, round_.name)
    assert wrong.value.verification.wrong_ranges == 1
    assert len(wrong.value.verification.differences) == 1 + len(state)


def test_a_record_of_a_model_that_was_changed_is_contradicted(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "swapped", small(50))
    round_ = open_round(clients=3, server_optimizer={"optimizer": "fedavg", "model": "swapped"})
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    key = "models/swapped/versions/00000002.json"
    record = store.get_json(key)
    first = store.get_json("models/swapped/versions/00000001.json")
    store.put_json(key, record | {"tensors": first["tensors"]})
    expected = "the record of version 2 of model 'swapped' is not the one in the manifest"
    with pytest.raises(VerificationError, match=expected):
        verify(store, round_.name)


@pytest.mark.parametrize("which", ["tensors", "state"])
def test_a_model_whose_header_swaps_tensors_is_contradicted(
    open_round: Callable[..., Round], store: S3Store, which: str
) -> None:
    name = f"headed-{which}"
    tensors = {"a": np.full(8, 1, "f4"), "b": np.full(8, 2, "f4")}
    put_model(store, name, tensors)
    round_ = open_round(clients=1, server_optimizer={"optimizer": "fedavgm", "model": name})
    round_.submit(CLIENTS[0], tensors, 3)
    round_.go()
    assert verify(store, round_.name).is_correct
    model = round_.manifest()["model"]
    entry = model["tensors"] if which == "tensors" else model["state"]["momentum"]
    blob = (store.get_bytes(entry["key"]) or b"").replace(b'"a"', b'"x"')
    blob = blob.replace(b'"b"', b'"a"').replace(b'"x"', b'"b"')
    store.put_bytes(entry["key"], blob)
    entry.update(published(round_, entry["key"]))
    store.put_json(f"models/{name}/versions/00000002.json", model)
    lie(round_, model=model)
    with pytest.raises(VerificationError, match="its header is not that of the round's tensors"):
        verify(store, round_.name)


@pytest.mark.parametrize(
    ("lies", "why"),
    [
        ({"buffers": ["bn.weight"]}, "the model's buffers is"),
        ({"round": "another"}, "the model's round is 'another'"),
        ({"state": {}}, "the optimizer's state is"),
    ],
)
def test_a_model_that_others_would_go_on_from_wrongly_is_contradicted(
    open_round: Callable[..., Round], store: S3Store, lies: dict[str, Any], why: str
) -> None:
    name = f"lied-{next(iter(lies))}"
    put_model(store, name, small(50))
    round_ = open_round(clients=1, server_optimizer={"optimizer": "fedavgm", "model": name})
    round_.submit(CLIENTS[0], small(1), 3)
    round_.go()
    model = round_.manifest()["model"] | lies
    store.put_json(f"models/{name}/versions/00000002.json", model)
    lie(round_, model=model)
    with pytest.raises(VerificationError, match=why):
        verify(store, round_.name)


def test_a_model_is_not_verified_when_the_version_before_it_is_gone(
    open_round: Callable[..., Round], store: S3Store
) -> None:
    put_model(store, "pruned", small(50))
    terms = {"optimizer": "fedavg", "model": "pruned"}
    round_ = open_round(clients=3, server_optimizer=terms)
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    store.delete_versions("models/pruned/versions/00000001.json")
    found = verify(store, round_.name)
    assert found.objects == (round_.keys.result,)
    [note] = found.notes
    assert note.startswith("the model was not checked: model 'pruned' has no version 1")


@pytest.mark.parametrize("sent", [range(8), (0, 1, 3, 6, 7), (2, 3, 5, 6, 7)], ids=str)
def test_eager_rounds_are_verified_whoever_is_missing(
    open_round: Callable[..., Round], sent: Sequence[int]
) -> None:
    round_, updates = test_topologies.eager(open_round)
    first, last = sent[len(sent) // 2 :], sent[: len(sent) // 2]
    for entered_at, indices, reason in (("1", first, "complete"), ("2", last, "deadline")):
        for index in indices:
            round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
        round_.plan(entered_at=entered_at, reason=reason)
        round_.aggregate()
        outcome = round_.finalize()
    assert outcome == {"status": "completed"}
    found = verify(round_.store, round_.name)
    assert (found.contributors, found.contradictions) == (len(sent), ())


def test_a_round_that_was_planned_again_is_verified(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3, topology="lambda_fl")
    for number in range(3):
        update = small(number)
        update["fc.double"][1] = np.nan if number == 1 else 1.0
        round_.submit(CLIENTS[number], update, SAMPLES[number])
    round_.go()
    assert round_.manifest()["attempts"] == 2
    assert verify(round_.store, round_.name).contributors == 2


def test_a_round_of_another_ones_updates_is_verified(open_round: Callable[..., Round]) -> None:
    first = open_round(clients=CLIENTS)
    submit_all(first)
    round_ = open_round(clients=CLIENTS[:4], updates_from=first.name, order="tree:2,2")
    round_.go()
    assert verify(round_.store, round_.name).contributors == 4


def test_nan_is_verified_as_nan_whatever_its_bits(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=2, allow_nonfinite=True)
    update = {"w": np.array([np.nan, np.inf, 1.0], "f4"), "h": np.array([np.nan], "f2")}
    for client in CLIENTS[:2]:
        round_.submit(client, update)
    round_.go()
    flip(round_, round_.keys.result, len(round_.result()) - 14, 0x01)  # in the first NaN
    lie(round_, update=published(round_, round_.keys.result) | {"tensors": 2})
    verify(round_.store, round_.name)


# --------------------------------------------------------------------------------------- attacks


def published(round_: Round, key: str) -> dict[str, Any]:
    """Return the newest version of an object as manifests name it."""
    head = round_.store.head(key)
    assert head is not None
    return head._asdict()


def lie(round_: Round, **fields: Any) -> None:
    """Write other fields into a round's manifest."""
    round_.store.put_json(round_.keys.manifest, round_.manifest() | fields)


def flip(round_: Round, key: str, byte: int, bit: int = 0x10) -> dict[str, Any]:
    """Flip a bit of an object, and return its new version."""
    blob = bytearray(round_.store.get_bytes(key) or b"")
    blob[byte] ^= bit
    round_.store.put_bytes(key, bytes(blob))
    return published(round_, key)


def large(seed: int) -> Update:
    """An update of 20 ranges."""
    return {"w": np.random.default_rng(seed).standard_normal(327_680, np.float32)}


@pytest.fixture
def wrong(open_round: Callable[..., Round]) -> tuple[Round, int]:
    """A round with a flipped bit in the last range of its result, and the result's size."""
    round_ = open_round(clients=3)
    for number in range(3):
        round_.submit(CLIENTS[number], large(number), SAMPLES[number])
    round_.go()
    flip(round_, round_.keys.result, len(round_.result()) - 2)
    lie(round_, update=published(round_, round_.keys.result) | {"tensors": 1})
    return round_, 4 * 327_680


def test_a_flipped_bit_is_found_if_its_range_is_drawn_and_only_then(
    wrong: tuple[Round, int],
) -> None:
    round_, nbytes = wrong
    outcomes = set()
    for seed in map(str, range(12)):
        found = outcome_of(round_, 0.25, seed)
        assert (found.ranges, found.sampled_ranges, found.nbytes) == (20, 5, nbytes)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gradshard.verification.round_verification.THREADS", 1)
            assert outcome_of(round_, 0.25, seed) == found
        outcomes.add((found.is_correct, found.wrong_ranges, len(found.differences)))
        for difference in found.differences:
            assert (difference.tensor, difference.element) == ("w", 327_679)
    assert outcomes == {(True, 0, 0), (False, 1, 1)}
    with pytest.raises(VerificationError, match=r"tensor 'w', element 327679: .* is published, "):
        verify(round_.store, round_.name)


def outcome_of(round_: Round, sample: float, seed: str) -> Verification:
    try:
        return verify(round_.store, round_.name, sample, seed)
    except VerificationError as error:
        return error.verification


def test_a_manifest_that_names_another_version_of_an_update_does_not_verify(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=3)
    for number in range(3):
        round_.submit(CLIENTS[number], large(number), SAMPLES[number])
    round_.go()
    round_.submit(CLIENTS[1], large(99), SAMPLES[1])
    contributors = round_.manifest()["contributors"]
    contributors[1] |= published(round_, round_.keys.update(CLIENTS[1]))
    lie(round_, contributors=contributors)
    with pytest.raises(VerificationError, match=r"1 of 1 range recomputed differ"):
        verify(round_.store, round_.name, 0.01)


def test_a_manifest_that_leaves_a_contributor_out_does_not_verify(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS[:3])
    for number in range(3):
        round_.submit(CLIENTS[number], large(number), SAMPLES[number])
    round_.go()
    lie(round_, contributors=round_.manifest()["contributors"][:2])
    with pytest.raises(VerificationError) as wrong:
        verify(round_.store, round_.name, 0.01)
    assert wrong.value.verification.wrong_ranges == 1
    contradictions = wrong.value.verification.contradictions
    assert "groups is [[3]] in the manifest, not [[2]]" in contradictions


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"samples": 6}, "c00: samples is 6 in the manifest, but its update states 5"),
        ({"weight": 0.5}, "c00: weight is 0.5 in the manifest, not 0.00"),
        ({"client": "c01"}, "c01: the manifest names it 2 times"),
        ({"client": "x"}, "x: the round does not expect it"),
        ({"client": "x"}, "c00.safetensors is not the key of its update"),
    ],
)
def test_a_manifest_that_lies_about_a_contributor_is_contradicted(
    open_round: Callable[..., Round], change: dict[str, Any], what: str
) -> None:
    round_ = open_round(clients=CLIENTS[:3])
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    contributors = round_.manifest()["contributors"]
    contributors[0] |= change
    lie(round_, contributors=contributors)
    with pytest.raises(VerificationError) as wrong:
        verify(round_.store, round_.name)
    assert what in str(wrong.value)


def test_a_result_below_the_quorum_and_with_other_terms_is_contradicted(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=3, min_clients=3)
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    lie(round_, contributors=round_.manifest()["contributors"][1:], order="tree:2,2", rule="fill")
    with pytest.raises(VerificationError) as wrong:
        verify(round_.store, round_.name)
    text = str(wrong.value)
    assert "2 contributors, but min_clients is 3" in text
    assert "order is 'tree:2,2' in the manifest, not 'sequential'" in text
    assert "rule is 'fill' in the manifest, not 'fedavg'" in text


@pytest.mark.parametrize(
    "fields",
    [
        {"contributors": [{"client": "c00"}]},
        {"contributors": 7},
        {"update": None},
        {"groups": 3},
        {"model": {"version": 2}},
    ],
)
def test_a_manifest_of_another_form_is_a_clear_error(
    open_round: Callable[..., Round], fields: dict[str, Any]
) -> None:
    round_ = open_round(clients=1)
    round_.submit(CLIENTS[0], small(0), 1)
    round_.go()
    lie(round_, **fields)
    with pytest.raises(GradshardError, match=r"manifest"):
        verify(round_.store, round_.name)


# --------------------------------------------------------------------------- what is not there


def test_the_plan_is_not_needed(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3)
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    for key in (round_.keys.plan, round_.keys.layout, round_.keys.task_reports):
        round_.store.delete_versions(key)
    verify(round_.store, round_.name)


def test_updates_that_are_gone_are_named(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3)
    for number in range(3):
        round_.submit(CLIENTS[number], small(number), SAMPLES[number])
    round_.go()
    round_.store.delete(round_.keys.update(CLIENTS[0]))  # its version is still there
    verify(round_.store, round_.name)
    for client in CLIENTS[:2]:
        round_.store.delete_versions(round_.keys.update(client))
    expected = r"2 of its 3 updates cannot be read in the version that the manifest names: c00 \("
    with pytest.raises(ChangedObjectError, match=expected) as gone:
        verify(round_.store, round_.name)
    assert "c01 (" in str(gone.value)


def test_a_round_that_goes_on_is_not_verified(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3)
    with pytest.raises(RoundStateError, match="has not ended"):
        verify(round_.store, round_.name)


# ---------------------------------------------------------------------------------------- memory

MEASURE = """
import resource, sys
from gradshard.client import round as client_round
from gradshard.client.stack import Stack

bucket, name = sys.argv[1:]
stack = Stack("none", bucket=bucket, state_machine=None, endpoint_url=None, port=None)
verify = client_round.Round(stack, name).verify
verify(sample=1e-9)  # everything is loaded, and connections are open
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = []
assert verify(sample=1.0, progress=lambda *at: done.append(at)).is_correct
assert done == sorted(done) and done[-1][0] == done[-1][1]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_depend_on_the_size_of_the_result(
    open_round: Callable[..., Round],
) -> None:
    grown = []
    for size in (1 << 19, 7 << 19):
        round_ = open_round(clients=3)
        for number in range(3):
            update = {"w": np.full(size, number, np.float32)}
            round_.submit(CLIENTS[number], update, SAMPLES[number])
        round_.go()
        program = [sys.executable, "-c", MEASURE, round_.store.bucket, round_.name]
        said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
        grown.append(int(said) / 1024)
    assert max(grown) < 40, f"MiB of 16 threads: {grown}"
    assert grown[1] < grown[0] + 8, f"MiB for 2 and 14 MiB: {grown}"
