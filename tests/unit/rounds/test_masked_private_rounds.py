"""Masked rounds with noise: the keeper adds it, and the aggregator never sees a sum without it."""

import hashlib
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradshard_core.aggregation.noise import NoiseSource
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.planning.spec import parse_spec
from tests import reference
from tests.unit.in_memory import Machine
from tests.unit.keeping import Keeper, MaskedRound
from tests.unit.rounds.test_masked_rounds import library_content

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

DP = {"clip": 2.0, "noise_multiplier": 1.5, "delta": 1e-5}
Updates = dict[str, dict[str, reference.Array]]


class PrivateMaskedRound(MaskedRound):
    """A masked round with noise, whose clients use the library."""

    def __init__(self, machine: Machine, keeper: Keeper, **dp: Any) -> None:
        super().__init__(machine, keeper)
        self.dp = {**DP, **dp}
        self.terms = {"keeper": keeper.public_key}
        self.seeds: list[bytes] = []

    def go(self, updates: Updates, lost: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
        self.keeper.enrol([*updates])
        first = next(iter(updates.values()))
        layout = None if "server_optimizer" in spec else reference_layout(first)
        opened = self.machine.open(
            **{"clients": [*updates], "masked": self.terms, "dp": self.dp, **spec},
            **({} if layout is None else {"layout": layout}),
        )
        assert opened["status"] == "opened", opened
        for client, update in updates.items():
            if client not in lost:
                content = library_content(self, client, update, 7)
                self.seeds.append(content._seed)
                body = content.read(0, content.nbytes)
                self.machine.store.put_bytes(self.machine.keys.update(client), body)
        self.ask()
        self.keeper.answer(self.machine.name)
        return self.finish()


def reference_layout(update: dict[str, reference.Array]) -> dict[str, Any]:
    return {
        name: {"dtype": reference.NAMES[t.dtype], "shape": list(t.shape)}
        for name, t in update.items()
    }


def updates_of(clients: int, elements: int, length: float = 3.0) -> Updates:
    rng = np.random.default_rng(clients)
    found = {}
    for number in range(clients):
        flat = rng.standard_normal(elements)
        flat *= rng.uniform(0.1, length) / np.linalg.norm(flat)
        half = elements // 2
        found[f"c{number:03}"] = {"a": flat[:half].astype("f4"), "b": flat[half:].astype("f4")}
    return found


def expected(dp: dict[str, float], updates: Updates, seeds: list[bytes]) -> list[float]:
    """Return the average, from the definition: clip, truncate, add, subtract the noise, divide."""
    flat = [np.concatenate([t.ravel() for t in u.values()]).astype("f8") for u in updates.values()]
    count = len(flat[0])
    wanted = dp["noise_multiplier"] * 128 * math.sqrt(count)
    deviations = [2480.0, 2480 * math.sqrt(1 + 512**2), 2480 * math.sqrt(1 + 512**2 + 512**4)]
    terms = next((t for t in (1, 2) if deviations[t - 1] >= wanted), 3)
    step = dp["noise_multiplier"] * dp["clip"] / deviations[terms - 1]
    sums = [0] * count
    for update in flat:
        norm = math.sqrt(math.fsum(x * x for x in update.tolist()))
        factor = min(1.0, dp["clip"] / (norm * (1 + 2**-10)))
        for at, x in enumerate(update.tolist()):
            sums[at] += math.trunc(x * (factor / step))
    noise = np.empty(count, "i8")
    key = hashlib.sha256(b"gradshard noise 1" + b"".join(seeds)).digest()
    NoiseSource(key, terms, 0).read_into(memoryview(noise).cast("B"))
    assert noise.any()
    return [
        float(s - e) * step / len(flat) for s, e in zip(sums, noise.tolist(), strict=True)
    ]


@pytest.mark.parametrize("kind", [{}, {"topology": "lambda_fl", "fan_in": 2}])
@pytest.mark.parametrize(("clients", "elements"), [(2, 2), (3, 11), (9, 5000), (70, 6)])
def test_the_average_is_that_of_clipped_updates_with_the_keepers_noise(
    machine: Machine, keeper: Keeper, clients: int, elements: int, kind: dict[str, Any]
) -> None:
    round_ = PrivateMaskedRound(machine, keeper)
    updates = updates_of(clients, elements)
    lost = tuple(updates)[: clients // 4]
    manifest = round_.go(updates, lost, **kind)
    there = {c: u for c, u in updates.items() if c not in lost}
    found = np.concatenate([np.asarray(t).ravel() for t in round_.result().values()])
    assert found.tolist() == np.array(expected(round_.dp, there, round_.seeds)).astype("f4").tolist()
    assert manifest["samples"] == len(there)
    privacy = manifest["privacy"]
    assert privacy["cost"] == pytest.approx(1 / 1.5**2)
    assert privacy["clients"] == len(there)
    assert privacy["deviation"] == 1.5 * 2.0 / len(there)
