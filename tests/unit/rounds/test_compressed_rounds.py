"""Rounds of compressed updates: the bits are those of a round with the decoded updates."""

import itertools
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from gradshard_core.formats.codecs.registry import CODECS
from tests import compressed, reference
from tests.compressed import random_units, rows_of
from tests.unit.in_memory import OPENED, Machine

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

NUMBER = itertools.count()
Update = dict[str, reference.Array]
SAMPLES = [5, 1, 900, 17, 3]


def tensors(rng: np.random.Generator) -> Update:
    """Return tensors whose ends are in the middle of units, and some that stay as they are."""
    return {
        "conv.weight": rng.standard_normal((7, 3, 3)).astype("f4"),
        "conv.bias": rng.standard_normal(7).astype("f4"),
        "steps": np.array(rng.integers(0, 99), "i8"),
        "fc.weight": rng.standard_normal((40, 64)).astype("f4"),
        "empty": np.empty((0, 4), "f4"),
        "fc.bias": rng.standard_normal(65).astype(ml_dtypes.bfloat16),
        "scalar": np.array(rng.standard_normal(), "f4"),
        "tail": rng.standard_normal(70_001).astype("f4"),
    }


def compress(rng: np.random.Generator, codec: str, update: Update, **options: Any) -> bytes:
    """Write an update whose encoded tensors are random units; some stand as they are."""
    units = {
        name: random_units(rng, codec, rows_of(tensor))
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
    machine.open(**{"clients": len(bodies), "min_clients": 1, "codecs": [*CODECS], **terms})
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


TERMS: list[dict[str, Any]] = [
    {},
    {"topology": "lambda_fl", "fan_in": 2},
    {"topology": "lifl"},
    {"topology": "grid", "fan_in": 3},
    {"order": "tree:2,3"},
    {"weights": "counts"},
    {"allow_nonfinite": True},
]


@pytest.mark.parametrize("seed", range(len(TERMS)))
def test_the_bits_are_those_of_a_round_with_the_decoded_updates(
    machine: Machine, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    updates = [tensors(rng) for _ in SAMPLES]
    bodies = {}
    for i, (update, samples) in enumerate(zip(updates, SAMPLES, strict=True)):
        codec = [*CODECS, ""][(i + seed) % (len(CODECS) + 1)]
        if codec:
            bodies[f"c{i}"] = with_samples(compress(rng, codec, update), samples)
        else:
            bodies[f"c{i}"] = reference.encode(update, {"num_samples": str(samples)})
    run(machine, bodies, **TERMS[seed])
    result = result_of(machine)
    plain = {c: decoded(b, n) for (c, b), n in zip(bodies.items(), SAMPLES, strict=True)}
    run(machine, plain, **TERMS[seed])
    assert result == result_of(machine)
    if not TERMS[seed]:
        expected = reference.average([compressed.read(b) for b in bodies.values()], SAMPLES)
        for name, tensor in reference.decode(result).items():
            assert tensor.tobytes() == expected[name].tobytes(), name
