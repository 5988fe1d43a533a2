"""Rounds of compressed updates: the bits are those of a round with the decoded updates."""

import itertools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard_core.formats.codecs.registry import CODECS
from tests import compressed, reference
from tests.compressed import UNIT_BYTES, random_entries, random_units, rows_of
from tests.integration.by_hand import layout_of, put_model
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

NUMBER = itertools.count()
Update = dict[str, reference.Array]
SAMPLES = [5, 1, 900, 17, 3]


def tensors(rng: np.random.Generator, *, longest: int = 266_001) -> Update:
    """Return tensors whose ends are in the middle of units, and some that stay as they are."""
    return {
        "conv.weight": rng.standard_normal((7, 3, 3)).astype("f4"),
        "conv.bias": rng.standard_normal(7).astype("f4"),
        "steps": np.array(rng.integers(0, 99), "i8"),
        "fc.weight": rng.standard_normal((40, 64)).astype("f4"),
        "empty": np.empty((0, 4), "f4"),
        "fc.bias": rng.standard_normal(65).astype(ml_dtypes.bfloat16),
        "scalar": np.array(rng.standard_normal(), "f4"),
        "tail": rng.standard_normal(longest).astype("f4"),
    }


def compress(rng: np.random.Generator, codec: str, update: Update, **options: Any) -> bytes:
    """Write an update whose encoded tensors are random units; some stand as they are."""
    units: dict[str, Any] = {
        name: random_entries(rng, tensor, 0.05)
        if codec == "topk"
        else random_units(rng, codec, rows_of(tensor))
        for name, tensor in update.items()
        if tensor.dtype in (np.float32, ml_dtypes.bfloat16) and rng.random() < 0.8
    }
    return compressed.write(codec, update, units, {"num_samples": "1"}, **options)


def with_samples(body: bytes, samples: int) -> bytes:
    length = int.from_bytes(body[:8], "little")
    header = body[8 : 8 + length].replace(
        b'"num_samples": "1"', f'"num_samples": "{samples}"'.encode()
    )
    return len(header).to_bytes(8, "little") + header + body[8 + length :]


def run(machine: Machine, bodies: Mapping[str, bytes], **terms: Any) -> dict[str, Any]:
    machine.begin(f"compressed-{next(NUMBER)}")
    machine.open(**{"clients": [*bodies], "min_clients": 1, "codecs": [*CODECS], **terms})
    for client, body in bodies.items():
        machine.store.put_bytes(machine.keys.update(client), body)
    outcome: dict[str, Any] = {**OPENED, "status": "replan"}
    while outcome["status"] == "replan":
        outcome = machine.turn(outcome)
    assert outcome["status"] == "completed"
    manifest: dict[str, Any] = machine.store.get_json(machine.keys.manifest)
    return manifest


def result_of(machine: Machine) -> bytes:
    return machine.store.objects[machine.keys.result]


def decoded(body: bytes, samples: int) -> bytes:
    return reference.encode(compressed.read(body), {"num_samples": str(samples)})


def compressed_in_any_order(
    rng: np.random.Generator, updates: Mapping[str, Update]
) -> tuple[dict[str, bytes], dict[str, Update]]:
    """Compress clients' updates by one codec after another; return bodies and what they decode to.

    Every second one has its tensors in the opposite order.
    """
    bodies, sent = {}, {}
    for number, (client, update) in enumerate(updates.items()):
        codec = list(CODECS)[number % len(CODECS)]
        order = sorted(update, reverse=number % 2 == 0)
        bodies[client] = compress(rng, codec, update, order=order)
        sent[client] = reference.decode(decoded(bodies[client], 1))
    return bodies, sent


def outputs_of(machine: Machine, manifest: Mapping[str, Any]) -> list[bytes]:
    """Return the model and the optimizer's state that a round has made."""
    model = manifest.get("model")
    if model is None:
        return []
    keys = [model["tensors"]["key"], *(kept["key"] for kept in model["state"].values())]
    return [machine.store.objects[key] for key in keys]


LAYERS = ["conv", "steps", "fc", "empty", "scalar", "tail"]

TERMS: list[dict[str, Any]] = [
    {},
    {"topology": "lambda_fl", "fan_in": 2},
    {"topology": "lifl"},
    {"topology": "grid", "fan_in": 3},
    {"order": "tree:2,3"},
    {"weights": "counts"},
    {"allow_nonfinite": True},
    {"rule": "fedavg", "layers": LAYERS},
    {"server_optimizer": {"optimizer": "fedadam", "learning_rate": 0.5}},
    {"topology": "lambda_fl", "fan_in": 2, "eager": True, "weights": "counts"},
    {"rule": {"name": "median"}, "min_clients": 5},
    {"rule": {"name": "trimmed_mean", "beta": 0.2}, "min_clients": 5},
    {"rule": {"name": "sign"}},
    {"rule": {"name": "multi_krum", "f": 1, "m": 2}, "min_clients": 5},
    {
        "rule": {"name": "norm_clip", "bound": 1.0},
        "server_optimizer": {"optimizer": "fedadam", "learning_rate": 0.5},
    },
    {
        "rule": "fedavg",
        "layers": LAYERS,
        "server_optimizer": {"optimizer": "fedavgm", "learning_rate": 0.5},
    },
]


@pytest.mark.parametrize("seed", range(len(TERMS)))
def test_the_bits_are_those_of_a_round_with_the_decoded_updates(
    machine: Machine, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # One tensor is longer than a block, and every third time longer than a unit of entries.
    longest = 70_001 if seed % 3 else 266_001
    updates = [tensors(rng, longest=longest) for _ in SAMPLES]
    bodies = {}
    terms = dict(TERMS[seed])
    if ("layers" in terms or "eager" in terms) and "server_optimizer" not in terms:
        terms["layout"] = layout_of(updates[0])
    if "server_optimizer" in terms:
        model = f"compressed-{seed}"
        put_model(machine.store, model, updates[0])
        terms["server_optimizer"] = terms["server_optimizer"] | {"model": model}
    if "layers" in terms:
        for update in updates[1::2]:
            del update["conv.weight"], update["conv.bias"]
    for i, (update, samples) in enumerate(zip(updates, SAMPLES, strict=True)):
        order = list(rng.permutation(list(update))) if seed % 2 and i % 2 else list(update)
        codec = [*CODECS, ""][(i + seed) % (len(CODECS) + 1)]
        if codec:
            bodies[f"c{i}"] = with_samples(compress(rng, codec, update, order=order), samples)
        else:
            metadata = {"num_samples": str(samples)}
            bodies[f"c{i}"] = reference.encode(update, metadata, order=order)
    manifest = run(machine, bodies, **terms)
    assert manifest["rejected"] == []
    result, state = result_of(machine), outputs_of(machine, manifest)
    if "server_optimizer" in terms:
        terms["server_optimizer"]["model"] += "-plain"
        put_model(machine.store, terms["server_optimizer"]["model"], updates[0])
    plain = {c: decoded(b, n) for (c, b), n in zip(bodies.items(), SAMPLES, strict=True)}
    manifest = run(machine, plain, **terms)
    assert result == result_of(machine)
    assert state == outputs_of(machine, manifest)
    if seed == 0:
        expected = reference.average([compressed.read(b) for b in bodies.values()], SAMPLES)
        for name, tensor in reference.decode(result).items():
            assert tensor.tobytes() == expected[name].tobytes(), name


def good(value: float = 1.0) -> bytes:
    tensors = {"v": np.ones(5, "f4"), "w": np.full(100, value, "f4")}
    return reference.encode(tensors, {"num_samples": "1"})


def scaled(codec: str, scale: float, code: int = 1) -> bytes:
    """Write an update of ones whose third unit of ``w`` has this scale."""
    tensors = {"v": np.ones(5, "f4"), "w": np.ones(100, "f4")}
    unit = np.full(compressed.UNIT_BYTES[codec], code, np.uint8)
    unit[:2] = np.array([1.0]).astype(ml_dtypes.bfloat16).view(np.uint8)
    units = {"v": np.tile(unit, (1, 1)), "w": np.tile(unit, (4, 1))}
    units["w"][2, :2] = np.array([scale]).astype(ml_dtypes.bfloat16).view(np.uint8)
    return compressed.write(codec, tensors, units, {"num_samples": "1"})


ENORMOUS = {"int8": (3e38, 100), "fp8": (3e38, 0x70), "int4": (3e38, 0x77)}


@pytest.mark.parametrize("codec", UNIT_BYTES)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, "enormous"])
def test_a_scale_of_no_use_costs_its_sender_the_round(
    machine: Machine, codec: str, scale: Any
) -> None:
    bad = scaled(codec, *ENORMOUS[codec]) if scale == "enormous" else scaled(codec, scale)
    manifest = run(machine, {"a": good(), "eve": bad, "z": good(3)})
    [rejection] = manifest["rejected"]
    assert rejection["client"] == "eve"
    assert "tensor 'w' holds a NaN or an infinity at element 64" in rejection["reason"]
    assert np.all(reference.decode(result_of(machine))["w"] == 2)


@pytest.mark.parametrize("codec", UNIT_BYTES)
def test_the_largest_contribution_is_rejected_if_the_sum_overflows(
    machine: Machine, codec: str
) -> None:
    # Each is finite, and so large that their sum is not.
    large = {"int8": (2.5e36, 127), "fp8": (7e35, 0x7E), "int4": (4.5e37, 0x77)}[codec]
    bodies = {
        "a": with_samples(scaled(codec, *large), 100),
        "b": with_samples(scaled(codec, *large), 101),
        "c": good(),
    }
    manifest = run(machine, bodies, weights="counts")
    assert [r["client"] for r in manifest["rejected"]] == ["a", "b"]
    assert "would overflow F32 at element 64 of tensor 'w'" in manifest["rejected"][0]["reason"]


@pytest.mark.parametrize("codec", UNIT_BYTES)
def test_a_scale_of_zero_makes_zeros(machine: Machine, codec: str) -> None:
    manifest = run(machine, {"a": scaled(codec, 0.0)})
    assert manifest["rejected"] == []
    assert np.all(reference.decode(result_of(machine))["w"][64:96] == 0)


def test_a_codec_that_the_round_does_not_take_is_rejected(machine: Machine) -> None:
    manifest = run(
        machine, {"a": good(), "b": scaled("int4", 1), "c": scaled("int8", 1)}, codecs=["int8"]
    )
    [rejection] = manifest["rejected"]
    assert rejection["client"] == "b"
    assert "compressed with codec 'int4', and the round takes int8" in rejection["reason"]
    manifest = run(machine, {"a": good(), "c": scaled("int8", 1)}, codecs=None)
    assert [r["client"] for r in manifest["rejected"]] == ["c"]
    assert "and the round takes none" in manifest["rejected"][0]["reason"]


def test_a_rejection_on_arrival_can_be_read_at_once(machine: Machine) -> None:
    machine.begin("on-arrival")
    machine.open(clients=["b"])
    machine.store.put_bytes(machine.keys.update("b"), scaled("int4", 1))
    etag = machine.store.etags[machine.keys.update("b")].strip('"')
    answer = machine.collect("b", etag)
    assert answer["status"] == "rejected"
    assert "the round takes none" in answer["reason"]


def test_contributors_that_store_their_updates_alike_share_their_runs(machine: Machine) -> None:
    rng = np.random.default_rng(3)
    update = tensors(rng)
    units = {n: random_units(rng, "int8", rows_of(t)) for n, t in update.items() if t.dtype == "f4"}
    body = compressed.write("int8", update, units, {"num_samples": "1"})
    run(machine, {f"c{i:02}": body for i in range(20)})
    plan = machine.store.get_json(machine.keys.plan)
    assert len(plan["encodings"]) == 1
    assert len({c["runs"]["table"] for c in plan["contributors"]}) == 1


def entries(counts: list[int], indices: list[int], values: list[float]) -> bytes:
    """Write an update of zeros whose 70,000 elements of ``w`` have these entries."""
    tensors = {"v": np.ones(5, "f4"), "w": np.zeros(70_000, "f4")}
    pieces = (np.array(counts, "<u4"), np.array(indices, "<u2"), np.array(values, "<f4"))
    unit = b"".join(piece.tobytes() for piece in pieces)
    return compressed.write("topk", tensors, {"w": [unit]}, {"num_samples": "1"})


MALFORMED = {
    "out of order": entries([2, 0], [7, 3], [1, 2]),
    "doubled": entries([2, 0], [3, 3], [1, 2]),
    "beyond the unit": entries([0, 1], [70_000 - 65_536], [1]),
    "too many counted": entries([3, 0], [1, 2], [1, 2]),
    "too few counted": entries([1, 0], [1, 2], [1, 2]),
    "immense counts": entries([2**32 - 1, 2**32 - 1], [1, 2], [1, 2]),
    "NaN": entries([1, 0], [7], [np.nan]),
    "infinite": entries([1, 0], [7], [-np.inf]),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_entries_of_no_use_cost_their_sender_the_round(machine: Machine, what: str) -> None:
    good = entries([1, 2], [9, 0, 4463], [1, 2, 3])
    manifest = run(machine, {"a": good, "eve": MALFORMED[what], "mallory": MALFORMED[what]})
    assert [r["client"] for r in manifest["rejected"]] == ["eve", "mallory"]
    assert manifest["attempts"] == 2
    position = 7 if what in {"NaN", "infinite"} else 0
    for rejection in manifest["rejected"]:
        assert f"tensor 'w' holds a NaN or an infinity at element {position}" in rejection["reason"]
        assert "or its entries there are not in order" in rejection["reason"]
    expected = np.zeros(70_000, "f4")
    expected[[9, 65_536, 69_999]] = 1, 2, 3
    assert np.array_equal(reference.decode(result_of(machine))["w"], expected)


def stating(body: bytes, error: str) -> bytes:
    """Return a compressed update that states an error of its encoding."""
    length = int.from_bytes(body[:8], "little")
    stated = f'"codec_error": "{error}", "codec": '.encode()
    header = body[8 : 8 + length].replace(b'"codec": ', stated)
    return len(header).to_bytes(8, "little") + header + body[8 + length :]


def test_the_manifest_has_bytes_by_codec_and_the_errors_that_clients_state(
    machine: Machine,
) -> None:
    bodies = {
        "a": stating(scaled("int8", 1.0), "0.0125"),
        "b": stating(scaled("int8", 1.0), "nan"),
        "c": scaled("int4", 1.0),
        "d": good(),
    }
    manifest = run(machine, bodies)
    assert manifest["rejected"] == []
    assert [c["codec"] for c in manifest["contributors"]] == ["int8", "int8", "int4", None]
    assert [c["codec_error"] for c in manifest["contributors"]] == [0.0125, None, None, None]
    assert manifest["codecs"] == {
        "int8": {"updates": 2, "nbytes": len(bodies["a"]) + len(bodies["b"])},
        "int4": {"updates": 1, "nbytes": len(bodies["c"])},
    }


def test_the_order_of_the_result_is_that_of_most_clients_whatever_their_codecs(
    machine: Machine,
) -> None:
    update = {"v": np.ones(40, "f4"), "w": np.full(70, 2, "f4")}
    odd = reference.encode(update, {"num_samples": "1"}, order=["w", "v"])
    bodies = {"a": odd, "b": odd}
    for count, client in enumerate("cde", start=1):
        # Each has another number of entries, so no two of them are stored alike.
        pieces = (np.array([count], "<u4"), np.arange(count, dtype="<u2"), np.ones(count, "<f4"))
        unit = b"".join(piece.tobytes() for piece in pieces)
        bodies[client] = compressed.write("topk", update, {"w": [unit]}, {"num_samples": "1"})
    run(machine, bodies)
    result = result_of(machine)
    assert result.index(b'"v"') < result.index(b'"w"')
    run(machine, {client: decoded(body, 1) for client, body in bodies.items()})
    assert result == result_of(machine)


def test_private_rounds_clip_and_add_decoded_updates_and_hide_errors(machine: Machine) -> None:
    rng = np.random.default_rng(0)
    floats = [
        {name: tensor for name, tensor in tensors(rng).items() if tensor.dtype != np.int64}
        for _ in CODECS
    ]
    bodies = {
        f"c{codec}": stating(compress(rng, codec, update), "0.01")
        for codec, update in zip(CODECS, floats, strict=True)
    }
    plain = {client: decoded(body, 1) for client, body in bodies.items()}
    results = []
    for sent in (bodies, plain):
        machine.begin(f"compressed-{next(NUMBER)}")
        dp = {"clip": 1.0, "noise_multiplier": 0.5, "delta": 1e-5}
        machine.open(clients=[*sent], codecs=[*CODECS], dp=dp)
        for client, body in sent.items():
            machine.store.put_bytes(machine.keys.update(client), body)
        machine.store.put_json(machine.keys.noise_key, {"key": "07" * 32})
        outcome: dict[str, Any] = {**OPENED, "status": "replan"}
        while outcome["status"] == "replan":
            outcome = machine.turn(outcome)
        assert outcome["status"] == "completed"
        results.append(result_of(machine))
        manifest = machine.store.get_json(machine.keys.manifest)
        assert {c["codec_error"] for c in manifest["contributors"]} == {None}
    assert results[0] == results[1]


def test_entries_that_are_all_in_one_shard_cost_that_shard_no_more_than_a_unit(
    machine: Machine,
) -> None:
    count = 4 * 2**20
    plain = {"w": np.zeros(count, "f4")}
    places = np.arange(compressed.UNIT // 8) * 8
    counts = np.bincount(places // compressed.CHUNK, minlength=4).astype("<u4")
    pieces = (counts, (places % compressed.CHUNK).astype("<u2"), np.full(len(places), 3, "<f4"))
    dense = b"".join(piece.tobytes() for piece in pieces)
    units = [dense] + [bytes(16)] * (count // compressed.UNIT - 1)
    body = compressed.write("topk", plain, {"w": units}, {"num_samples": "1"})
    manifest = run(machine, {"eve": body, "z": decoded(body, 1)}, shards=3)
    assert (manifest["rejected"], manifest["shards"]) == ([], 3)
    assert result_of(machine)[-4 * count :] == compressed.read(body)["w"].tobytes()
    read = [task["bytes_read"] for task in manifest["tasks"]]
    assert max(read) - min(read) < 2 * len(dense)
    # One entry more, and the header is no longer one.
    units[0] = dense + bytes(6)
    manifest = run(
        machine,
        {
            "a": decoded(body, 1),
            "eve": compressed.write("topk", plain, {"w": units}, {"num_samples": "1"}),
        },
    )
    [rejection] = manifest["rejected"]
    assert "tensor 'w': the size of unit 0 is 196630, not a whole number" in rejection["reason"]
