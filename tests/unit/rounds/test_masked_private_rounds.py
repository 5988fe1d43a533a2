"""Masked rounds with noise: the keeper adds it, and the aggregator never sees a sum without it."""

import hashlib
import itertools
import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from gradshard.client.round import Round
from gradshard.updates.mask import Mask
from gradshard.updates.mask import masked as mask_content
from gradshard.updates.upload_source import TensorContent
from gradshard_core.errors import SpecError, UpdateError
from gradshard_core.privacy.masked_noise import RingNoise, noise_key
from gradshard_core.privacy.noise import NoiseSource
from gradshard_core.records.privacy_ledger import read_ledger
from gradshard_core.specs.masking_options import Agreement, parse_masking
from gradshard_core.specs.option_parsers import parse_layout
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import masked, reference
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import Machine
from tests.unit.keeper_in_memory import Keeper, MaskedRound
from tests.unit.mask_keeper.test_attacks import Counted, Watched, answer_interrupted
from tests.unit.rounds.test_private_rounds import put_model

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

    def submit_all(self, updates: Updates, lost: tuple[str, ...] = (), **spec: Any) -> None:
        self.keeper.enrol([*updates])
        layout = {
            name: {"dtype": reference.NAMES[t.dtype], "shape": list(t.shape)}
            for name, t in next(iter(updates.values())).items()
        }
        of_model = "server_optimizer" in spec
        stated = {"clients": [*updates], "masked": self.terms, "dp": self.dp, **spec}
        opened = self.machine.open(**stated, **({} if of_model else {"layout": layout}))
        assert opened["status"] == "opened", opened
        agreement = Agreement.of(parse_spec(stated | {"layout": layout, "server_optimizer": None}))
        for client, update in updates.items():
            if client not in lost:
                mask = Mask(self.keeper.signing_keys[client], self.keeper.fingerprint)
                content = mask_content(
                    TensorContent(update, 7),
                    agreement,
                    parse_layout(layout),
                    mask,
                    client,
                    self.machine.name,
                )
                self.seeds.append(content._seed)
                body = content.read(0, content.nbytes)
                self.machine.store.put_bytes(self.machine.keys.update(client), body)

    def go(self, updates: Updates, lost: tuple[str, ...] = (), **spec: Any) -> dict[str, Any]:
        self.submit_all(updates, lost, **spec)
        self.ask()
        self.keeper.answer(self.machine.name)
        return self.finish()


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
    return [float(s - e) * step / len(flat) for s, e in zip(sums, noise.tolist(), strict=True)]


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
    assert (
        found.tolist() == np.array(expected(round_.dp, there, round_.seeds)).astype("f4").tolist()
    )
    assert manifest["samples"] == len(there)
    privacy = manifest["privacy"]
    assert privacy["cost"] == pytest.approx(1 / 1.5**2)
    assert privacy["clients"] == len(there)
    assert privacy["deviation"] == 1.5 * 2.0 / len(there)


def test_every_topology_and_cut_has_the_same_bits_and_verifies(
    machine: Machine, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    round_ = PrivateMaskedRound(machine, keeper)
    round_.go(updates_of(7, 900), topology="grid", fan_in=3)
    found = Round(MemoryStack(machine.store), machine.name).verify(sample=1.0, seed="s")
    assert (found.is_correct, found.contributors) == (True, 7)


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("start", [0, 8, 16384 * 8, 30_000 * 8 - 8])
def test_noise_is_a_function_of_key_and_element_but_for_the_count(
    ring_bits: int, start: int
) -> None:
    """Any range is that of the whole, so no number of tasks changes a bit."""
    elements, size = 30_000, ring_bits // 8
    start = start * size // 8
    expected = np.empty(elements, "i8")
    NoiseSource(b"k" * 32, 2, 0).read_into(memoryview(expected).cast("B"))
    expected[-1] = 0
    found = bytearray(elements * size - start)
    noise = RingNoise(b"k" * 32, 2, start, elements, ring_bits)
    for at in range(0, len(found), 4096 * size):
        noise.read_into(memoryview(found)[at : at + 4096 * size])
    wrapped = [int(e) % 2**ring_bits for e in expected[start // size :]]
    assert masked.elements(bytes(found), ring_bits) == wrapped


def test_the_answer_has_the_noise_and_the_aggregator_no_key_of_it(
    machine: Machine, keeper: Keeper
) -> None:
    round_ = PrivateMaskedRound(machine, keeper)
    zeros = {f"c{n}": {"w": np.zeros(20_000, "f4")} for n in range(3)}
    round_.go(zeros)
    answer = masked.elements(machine.store.objects[machine.keys.masks], 32)
    streams = [masked.elements(masked.stream(seed, 80_004), 32) for seed in round_.seeds]
    noise = [
        (m - sum(column) + 2**31) % 2**32 - 2**31
        for m, column in zip(answer, zip(*streams, strict=True), strict=True)
    ]
    assert noise[-1] == 0
    deviation = (
        np.std(noise[:-1]) * machine.store.get_json(machine.keys.manifest)["privacy"]["step"]
    )
    assert deviation == pytest.approx(1.5 * 2.0, rel=0.03)
    key = noise_key(round_.seeds)
    everything = b"".join([*machine.store.objects.values(), *keeper.store.objects.values()])
    for secret in (key, *round_.seeds):
        assert secret not in everything
        assert secret.hex().encode() not in everything
    assert machine.keys.noise_key not in machine.store.objects


@pytest.mark.parametrize("length", [1e-30, 1.0, 1.9999, 2.0, 2.0001, 1e30])
@pytest.mark.parametrize("elements", [1, 3, 70_000])
def test_what_a_client_adds_is_never_longer_than_the_clip(elements: int, length: float) -> None:
    fixed = parse_masking({"keeper": "ab" * 32, "dp": DP}).fixed(2, elements)
    rng = np.random.default_rng(elements)
    for values in (rng.standard_normal(elements), np.ones(elements), -np.eye(1, elements)[0]):
        update = values * (length / np.linalg.norm(values))
        out = np.empty(elements, fixed.dtype)
        norm = math.sqrt(math.fsum((update * update).tolist()))
        fixed.encode(update, fixed.scale(9, norm), out)
        steps = out.view("<i4").astype(object)
        assert Fraction(fixed.step) ** 2 * int(sum(steps * steps)) <= Fraction(DP["clip"]) ** 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 3e200])
def test_an_update_without_a_length_is_not_sent(
    machine: Machine, keeper: Keeper, value: float
) -> None:
    round_ = PrivateMaskedRound(machine, keeper)
    updates = {name: {"w": np.full(3, value, "f8")} for name in "ab"}
    with pytest.raises(UpdateError, match="the norm of the update is"):
        round_.go(updates)


def test_an_update_that_grows_while_it_is_sent_breaks_off(machine: Machine, keeper: Keeper) -> None:
    fixed = parse_masking({"keeper": "ab" * 32, "dp": DP}).fixed(2, 3)
    with pytest.raises(UpdateError, match="the update has changed meanwhile"):
        fixed.encode(np.array([0.1, math.nan, 0.1]), fixed.scale(1, 1.0), np.empty(3, "<u4"))
    with pytest.raises(UpdateError, match="the update has changed meanwhile"):
        fixed.encode(np.array([0.1, 2.1, 0.1]), fixed.scale(1, 1.0), np.empty(3, "<u4"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"masked": {"bound": 1.0}}, "masked: leave out bound: updates are clipped to dp's clip"),
        ({"masked": {"bits": 8}}, "leave out bits: dp's noise decides"),
        ({"masked": {"max_samples": 5}}, "leave out max_samples: dp counts every client alike"),
        ({"masked": {"dp": {**DP, "clip": 3.0}}}, "dp is an option of its own"),
        ({"masked": {"dp": DP}, "dp": None}, "dp is an option of its own"),
        (
            {
                "dp": {**DP, "noise_multiplier": 0.01},
                "clients": list("abcdefghijklmnopq"),
                "layout": {"w": {"dtype": "F32", "shape": [4_000_000]}},
            },
            "no room for 17 clients .* take a ring of 64 bits",
        ),
        ({"dp": {**DP, "quantile": 0.5}}, "masked: leave out quantile of dp"),
        ({"dp": {"clip": 1.0}}, "dp needs noise_multiplier"),
    ],
)
def test_terms_that_do_not_go_together_are_rejected(changes: dict[str, Any], text: str) -> None:
    stated: dict[str, Any] = {
        "clients": ["a", "b"],
        "layout": {"w": {"dtype": "F32", "shape": [3000]}},
        "dp": DP,
        **changes,
        "masked": {"keeper": "ab" * 32, **changes.get("masked", {})},
    }
    with pytest.raises(SpecError, match=text):
        parse_spec({k: v for k, v in stated.items() if v is not None})


def test_the_terms_come_back_as_they_were_stated() -> None:
    layout = {"w": {"dtype": "F32", "shape": [3]}}
    stated = {"clients": ["a", "b"], "layout": layout, "dp": DP, "masked": {"keeper": "ab" * 32}}
    spec = parse_spec(stated)
    assert parse_spec(spec.to_json()) == spec
    agreement = Agreement.of(spec)
    assert agreement is not None
    assert Agreement.from_json(agreement.to_json()) == agreement


def test_a_client_may_demand_noise(machine: Machine, keeper: Keeper) -> None:
    stated = {"clients": ["a", "b"], "layout": {"w": {"dtype": "F32", "shape": [3]}}, "dp": DP}
    terms = {"keeper": keeper.public_key}
    mask = Mask(b"k" * 32, keeper.fingerprint, least_noise=1.5)
    mask.check(Agreement.of(parse_spec({**stated, "masked": terms})), "a", "r")
    plain = {**stated, "dp": None, "masked": {**terms, "bound": 1.0, "max_samples": 1}}
    weak = {**stated, "dp": {**DP, "noise_multiplier": 1.4}, "masked": terms}
    for spec in (plain, weak):
        given = {k: v for k, v in spec.items() if v is not None}
        with pytest.raises(UpdateError, match=r"needs 1\.5 at least: nothing was sent"):
            mask.check(Agreement.of(parse_spec(given)), "a", "r")


# ----------------------------------------------------------------------- the ledger

APPLIED = {"model": "m", "optimizer": "fedavg", "updates": "deltas"}


def test_the_round_is_in_the_ledger_as_one_with_central_noise(
    machine: Machine, keeper: Keeper
) -> None:
    put_model(machine)  # 5 elements
    updates = {name: {"w": np.ones(5, "f4") / 3} for name in "abc"}
    manifest = PrivateMaskedRound(machine, keeper).go(updates, server_optimizer=APPLIED)
    ledger = read_ledger(machine.store, "m")
    assert ledger.spent == pytest.approx(1 / 1.5**2) == manifest["privacy"]["spent"]
    assert [e.mechanism for e in ledger.entries] == [DP]


@pytest.mark.parametrize(("is_asked", "spent"), [(False, 0.0), (True, 1 / 1.5**2)])
def test_a_failed_round_costs_nothing_only_if_the_keeper_was_not_asked(
    machine: Machine, keeper: Keeper, is_asked: bool, spent: float
) -> None:
    """The keeper may still answer what it was asked."""
    put_model(machine)
    updates = {name: {"w": np.ones(5, "f4") / 3} for name in "abc"}
    round_ = PrivateMaskedRound(machine, keeper)
    round_.submit_all(updates, server_optimizer=APPLIED)
    if is_asked:
        round_.ask()
    machine.step("abort_round", error="KeeperError", cause="the keeper is away")
    assert read_ledger(machine.store, "m").spent == pytest.approx(spent)


def test_whatever_comes_in_between_the_noise_is_drawn_once(
    machine: Machine, keeper: Keeper
) -> None:
    round_ = PrivateMaskedRound(machine, keeper)
    round_.submit_all(updates_of(3, 40))
    round_.ask()
    watched = Watched(round_)

    def second() -> None:
        watched.put(watched.request)
        watched.keeper.answer("r")

    for number in itertools.count(1):
        watched.reset()
        counted = Counted({number: second})
        answer_interrupted(watched.keeper, counted)
        assert len(watched.sums) == 1
        if counted.count < number:
            break
