"""The keeper answers each round once, sums each seed once, and survives death at any request."""

import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from gradshard_core.mask_keeper.records import KeeperKeys
from gradshard_core.mask_keeper.request import Refusal
from gradshard_core.mask_keeper.tasks import Stream
from tests import masked
from tests.unit.fakes import MemoryStore, MemoryWire
from tests.unit.in_memory import Machine
from tests.unit.keeper_in_memory import Fate, Keeper, KilledError, MaskedRound, Mortal
from tests.unit.observability.test_embedded_metrics import Context

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

ELEMENTS = 1_400_000
"""Two tasks of at least the 5 MiB of a part, and some more."""


def request_of(round_: MaskedRound) -> dict[str, Any]:
    stored: dict[str, Any] = round_.keeper.store.get_json(KeeperKeys("r").request)
    return stored


def resend(round_: MaskedRound, **changes: Any) -> Refusal | None:
    """Send the keeper another request for the same round; return its refusal, if it refuses."""
    original = json.loads(json.dumps(round_.request))  # type: ignore[attr-defined]
    changed = {k: v(original[k]) if callable(v) else v for k, v in changes.items()}
    round_.keeper.store.put_json(KeeperKeys("r").request, original | changed)
    round_.machine.store.delete(round_.machine.keys.refusal)
    round_.keeper.answer("r")
    return round_.machine.store.get_json(round_.machine.keys.refusal, Refusal.from_json)


def sum_of(seeds: str, elements: int = 6) -> bytes:
    """Return the sum of the masks of seeds, from the protocol's description."""
    streams = [masked.elements(masked.stream(s.encode() * 32, 4 * elements), 32) for s in seeds]
    return b"".join(
        (sum(column) % 2**32).to_bytes(4, "little") for column in zip(*streams, strict=True)
    )


def test_the_answer_is_the_sum_of_the_masks(asked: MaskedRound) -> None:
    asked.keeper.answer("r")
    assert asked.machine.store.objects[asked.machine.keys.masks] == sum_of("abcd")


def test_the_same_request_again_gets_the_same_answer(asked: MaskedRound) -> None:
    asked.request = request_of(asked)  # type: ignore[attr-defined]
    asked.keeper.answer("r")
    first = asked.machine.store.objects[asked.machine.keys.masks]
    record = asked.keeper.store.objects[KeeperKeys("r").record]
    for _ in range(3):
        assert resend(asked) is None
    assert asked.machine.store.objects[asked.machine.keys.masks] == first
    assert asked.keeper.store.objects[KeeperKeys("r").record] == record
    assert asked.machine.keys.masks not in dict(asked.machine.store.uploads.values())


@pytest.mark.parametrize("when", ["before it was given", "after it was given"])
def test_a_round_is_never_answered_for_others(asked: MaskedRound, when: str) -> None:
    """The difference of two answers would be the masks of single clients."""
    asked.request = request_of(asked)  # type: ignore[attr-defined]
    if when == "after it was given":
        asked.keeper.answer("r")
    else:
        asked.keeper.step("check_request", key=KeeperKeys("r").request)
    answered = dict(asked.machine.store.objects)
    refusal = resend(asked, contributors=lambda found: found[:3])
    assert refusal is not None
    assert "was answered for other contributors" in refusal.reason
    assert not refusal.bad
    masks = asked.machine.keys.masks
    if when == "after it was given":
        assert asked.machine.store.objects[masks] == answered[masks] == sum_of("abcd")
    assert asked.keeper.store.get_json(KeeperKeys("r").record)["summed"].keys() == set("abcd")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"contributors": lambda found: found[:1]},
            "1 masks are to be summed, fewer than the least",
        ),
        ({"contributors": lambda found: [*found, found[0]]}, "a client contributes twice"),
        ({"contributors": []}, "0 masks are to be summed"),
        ({"clients": ["a", "b", "c"]}, "client 'd' is not on the roster"),
        ({"encoding": '{"ring_bits": 32}'}, "not those of this protocol"),
        ({"encoding": "no JSON"}, "not those of this protocol"),
        ({"encoding": '{"elements":true,"ring_bits":32}'}, "not those of this protocol"),
        ({"clients": ["a", "b", "c", "d", "../e"]}, "no client's id"),
        ({"protocol": "gradshard masked round 0"}, "deploy both stacks from one version"),
    ],
)
def test_what_is_refused_whole(asked: MaskedRound, changes: dict[str, Any], reason: str) -> None:
    asked.request = request_of(asked)  # type: ignore[attr-defined]
    refusal = resend(asked, **changes)
    assert refusal is not None
    assert reason in refusal.reason
    assert not refusal.bad
    assert resend(asked) is None  # the refusal decided nothing
    assert asked.machine.store.objects[asked.machine.keys.masks] == sum_of("abcd")


def other_clients(found: list[dict[str, str]]) -> list[dict[str, str]]:
    """Give two clients each other's seeds."""
    first, second, *others = found
    swapped = [first | {"client": second["client"]}, second | {"client": first["client"]}]
    return [*swapped, *others]


@pytest.mark.parametrize(
    ("changes", "bad"),
    [
        ({"min_clients": 3}, "abcd"),  # the quorum is sealed
        ({"clients": ["a", "b", "c", "d", "e"]}, "abcd"),  # so is the roster
        ({"contributors": other_clients}, "ab"),
        ({"contributors": lambda f: [f[0] | {"sealed_seed": "00" * 80}, *f[1:]]}, "a"),
        ({"contributors": lambda f: [f[0] | {"sealed_seed": "xy"}, *f[1:]]}, "a"),
        ({"contributors": lambda f: [f[0] | {"signature": ""}, *f[1:]]}, "a"),
    ],
)
def test_seeds_open_only_for_what_they_were_sealed_for(
    asked: MaskedRound, changes: dict[str, Any], bad: str
) -> None:
    asked.request = request_of(asked)  # type: ignore[attr-defined]
    refusal = resend(asked, **changes)
    assert refusal is not None
    assert refusal.bad.keys() == set(bad)
    assert asked.machine.keys.masks not in asked.machine.store.objects


def test_a_keeper_with_another_key_opens_nothing(asked: MaskedRound) -> None:
    from gradshard_core.mask_keeper.records import PRIVATE_KEY
    from gradshard_core.masking import sealing

    asked.keeper.store.put_bytes(PRIVATE_KEY, sealing.new_key().hex().encode())
    asked.keeper.answer("r")
    refusal = asked.machine.store.get_json(asked.machine.keys.refusal, Refusal.from_json)
    assert refusal is not None
    assert refusal.bad.keys() == set("abcd")
    assert "sealed to another key" in refusal.bad["a"]


@pytest.mark.parametrize("days", [-400, 400])
def test_the_keepers_clock_decides_nothing(
    asked: MaskedRound, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=days)

    for module in ("check_request", "give_answer"):
        monkeypatch.setattr(f"gradshard_core.mask_keeper.{module}.datetime", Clock)
    asked.keeper.answer("r")
    asked.finish()
    record = asked.keeper.store.get_json(KeeperKeys("r").record)
    assert abs((datetime.fromisoformat(record["decided_at"]) - datetime.now(UTC)).days) >= 399


def test_the_record_says_whose_masks_were_summed_and_has_no_seed(asked: MaskedRound) -> None:
    asked.keeper.answer("r")
    record = asked.keeper.store.get_json(KeeperKeys("r").record)
    assert record["clients"] == [*"abcd"]
    assert record["summed"].keys() == set("abcd")
    assert record["min_clients"] == 2
    kept = b"".join(asked.keeper.store.objects.values())
    for seed in "abcd":
        assert seed.encode() * 32 not in kept
        assert (seed.encode() * 32).hex().encode() not in kept
    assert not [key for key in asked.keeper.store.objects if key.startswith(("work", "requests"))]


@pytest.mark.parametrize(
    "key", ["requests/", "requests/a/b.json", "other/r.json", "requests/.json"]
)
def test_an_object_that_is_no_request_is_ignored(keeper: Keeper, key: str) -> None:
    assert keeper.step("check_request", key=key)["tasks"] == []
    assert keeper.step("give_answer", round="") == {"given": False}


# ------------------------------------------------------------------------ death at any request


STEPS: list[tuple[str, dict[str, Any]]] = [
    ("check_request", {"key": "requests/r.json"}),
    ("sum_masks", {"round": "r", "task": {"level": 0, "number": 0}}),
    ("give_answer", {"round": "r"}),
]


def step(keeper: Keeper, function: str, event: dict[str, Any], fate: Fate) -> None:
    """Call a function on buckets in which it may die; threads would hide the death."""
    mortal = MortalKeeper(keeper, fate)
    mortal.step(function, **event)


class MortalKeeper(Keeper):
    def __init__(self, keeper: Keeper, fate: Fate) -> None:
        vars(self).update(vars(keeper))
        self.store, self.aggregator = Mortal(keeper.store, fate), keeper.aggregator  # type: ignore[assignment]
        self._fate = fate

    def step(self, function: str, **event: Any) -> dict[str, Any]:
        module = self.load(function)
        s3 = MemoryWire(self.aggregator)
        answers = Mortal(self.aggregator, self._fate)
        vars(module).update(store=self.store, answers=answers, s3=s3)
        answer: dict[str, Any] = module.handler(event, Context())
        return answer


@pytest.mark.slow
@pytest.mark.parametrize("asks_again", [False, True])
@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("dying", range(3))
def test_a_function_that_is_killed_at_any_request_is_done_when_it_runs_again(
    asked: MaskedRound, dying: int, is_done: bool, asks_again: bool
) -> None:
    asked.request = request_of(asked)  # type: ignore[attr-defined]
    before = dict(asked.keeper.store.objects), dict(asked.machine.store.objects)
    number = 0
    while True:
        number += 1
        for store, objects in zip((asked.keeper.store, asked.machine.store), before, strict=True):
            store.objects.clear()
            store.etags.clear()
            for key, body in objects.items():
                store.put_bytes(key, body)
        asked.machine.store.uploads.clear()
        for function, event in STEPS[:dying]:
            asked.keeper.step(function, **event)
        function, event = STEPS[dying]
        asked.keeper.load(function)
        fate = Fate(number, is_done=is_done)
        with contextlib.suppress(KilledError):
            step(asked.keeper, function, event, fate)
        if asks_again:
            asked.keeper.store.put_json(KeeperKeys("r").request, asked.request)  # type: ignore[attr-defined]
            asked.keeper.answer("r")
        for function, event in STEPS[dying:]:
            asked.keeper.step(function, **event)
        check_end(asked)
        if fate.count < number:
            break
    assert number > 2


def check_end(asked: MaskedRound) -> None:
    assert asked.machine.store.objects[asked.machine.keys.masks] == sum_of("abcd")
    kept = asked.keeper.store.objects
    assert KeeperKeys("r").given in kept
    assert not [key for key in kept if key.startswith(("work", "requests"))]
    assert sum(key.startswith("seeds/") for key in kept) == 4


def test_every_step_may_run_twice(asked: MaskedRound) -> None:
    keeper = asked.keeper
    for function, event in STEPS:
        keeper.step(function, **event)
        keeper.step(function, **event)
    check_end(asked)
    late = keeper.step("sum_masks", **STEPS[1][1])
    assert late["is_late"]


# ------------------------------------------------------------------------ cutting the masks


@pytest.mark.parametrize("clients", [2, 100, 4096])
@pytest.mark.parametrize("elements", [1, 1_300_000, 10**9, 2 * 10**11])
@pytest.mark.parametrize("ring_bits", [32, 64])
def test_parts_are_such_as_s3_takes(clients: int, elements: int, ring_bits: int) -> None:
    stream = Stream(elements, ring_bits)
    tasks = stream.tasks(clients)
    shards = stream.shards(tasks)
    sizes = [shard.end - shard.start for shard in shards]
    assert sum(sizes) == stream.nbytes
    assert all(size >= 5 * 1024**2 for size in sizes[:-1])
    assert all(size <= 5 * 1024**3 for size in sizes)
    assert tasks <= 1000 or stream.nbytes > 1000 * 4 * 1024**3


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_parts_join_to_the_same_sum(
    machine: Machine, keeper: Keeper, ring_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.mask_keeper.tasks.TASK_BYTES", 1)
    round_ = MaskedRound(machine, keeper, ring_bits=ring_bits)
    keeper.enrol(["a", "b"])
    update = {"w": np.ones(ELEMENTS * 2, "f4")}
    round_.open(["a", "b"], update)
    info = {client: round_.info(client) for client in "ab"}
    for client in "ab":
        body = small_share(round_, client, info[client])
        machine.store.put_bytes(machine.keys.update(client), body)
    round_.ask()
    decided = keeper.step("check_request", key=KeeperKeys("r").request)
    assert len(decided["tasks"]) == ring_bits // 16
    keeper.answer("r")
    found = np.frombuffer(machine.store.objects[machine.keys.masks], f"<u{ring_bits // 8}")
    size = found.nbytes
    streams = [
        np.frombuffer(fast_stream(client.encode() * 32, size), found.dtype) for client in "ab"
    ]
    assert np.array_equal(found, streams[0] + streams[1])


def fast_stream(seed: bytes, nbytes: int) -> bytes:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    return Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor().update(bytes(nbytes))


def small_share(round_: MaskedRound, client: str, info: bytes) -> bytes:
    """Return an update of the right size whose elements nobody looks at."""
    from tests import reference

    few = masked.masked_update(
        round_.terms,
        {"w": np.ones(1, "f4")},
        1,
        client.encode() * 32,
        round_.keeper.signing_keys[client],
        info,
    )
    length = int.from_bytes(few[:8], "little")
    metadata = json.loads(few[8 : 8 + length])["__metadata__"]
    bits = round_.terms["ring_bits"]
    return reference.encode({"masked": np.zeros(ELEMENTS * 2, f"u{bits // 8}")}, metadata)


def test_another_bucket_in_memory_is_not_touched(keeper: Keeper) -> None:
    assert isinstance(keeper.store, MemoryStore)
    assert keeper.store is not keeper.aggregator
