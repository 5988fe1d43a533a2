"""Attacks on the keeper: whatever is asked and whoever dies, no seed is in two sums."""

import contextlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gradshard_core.errors import BrokenObjectError, StoreError
from gradshard_core.mask_keeper.records import KeeperKeys
from gradshard_core.mask_keeper.request import Refusal
from tests.unit.fakes import MemoryWire
from tests.unit.in_memory import Machine
from tests.unit.keeper_in_memory import Keeper, KilledError, MaskedRound
from tests.unit.mask_keeper.test_keeper import sum_of
from tests.unit.observability.test_embedded_metrics import Context

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

KEYS = KeeperKeys("r")
Request = dict[str, Any]


class Watched:
    """A round that has asked its keeper, and every sum that the keeper ever uploads."""

    def __init__(self, round_: MaskedRound) -> None:
        self.round, self.machine, self.keeper = round_, round_.machine, round_.keeper
        self.request: Request = self.keeper.store.get_json(KEYS.request)
        self.begin = dict(self.keeper.store.objects), dict(self.machine.store.objects)
        self.sums: set[bytes] = set()
        self._watch()

    def _watch(self) -> None:
        take = self.machine.store.upload_part

        def upload_part(key: str, upload: str, number: int, body: Any, nbytes: int) -> Any:
            assert key == self.machine.keys.masks
            self.sums.add(body.getvalue())
            return take(key, upload, number, body, nbytes)

        self.machine.store.upload_part = upload_part  # type: ignore[method-assign, assignment]

    def reset(self) -> None:
        """Go back to when the keeper was asked."""
        for store, objects in zip((self.keeper.store, self.machine.store), self.begin, strict=True):
            store.objects.clear()
            store.etags.clear()
            for key, body in objects.items():
                store.put_bytes(key, body)
        self.machine.store.uploads.clear()
        self.sums.clear()

    def without(self, *clients: str) -> Request:
        """Return the request without some contributors."""
        kept = [c for c in self.request["contributors"] if c["client"] not in clients]
        return self.request | {"contributors": kept}

    def put(self, request: Request) -> None:
        self.keeper.store.put_json(KEYS.request, request)

    def refusal(self) -> Refusal | None:
        return self.machine.store.get_json(self.machine.keys.refusal, Refusal.from_json)


@pytest.fixture
def watched(asked: MaskedRound) -> Watched:
    """A round of four."""
    return Watched(asked)


class Interrupted:
    """A bucket at whose n-th request something else happens first."""

    def __init__(self, store: Any, counted: "Counted") -> None:
        self._store, self._counted = store, counted

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not callable(found):
            return found

        def request(*arguments: Any, **named: Any) -> Any:
            self._counted.next()
            return found(*arguments, **named)

        return request


class Counted:
    """What happens before requests, by their number."""

    def __init__(self, happens: Mapping[int, Callable[[], Any]]) -> None:
        self.count, self._happens = 0, happens

    def next(self) -> None:
        self.count += 1
        self._happens.get(self.count, lambda: None)()


def answer_interrupted(keeper: Keeper, counted: Counted) -> None:
    """Answer the round; at the n-th request of these functions, something else happens."""

    def step(name: str, **event: Any) -> Any:
        module = keeper.load(name)
        found = {
            "store": Interrupted(keeper.store, counted),
            "answers": Interrupted(keeper.aggregator, counted),
            "s3": MemoryWire(keeper.aggregator),
        }
        vars(module).update(found)
        try:
            return module.handler(event, Context())
        except StoreError:  # the machine tries again
            vars(module).update(found)
            return module.handler(event, Context())

    decided = step("check_request", key=KEYS.request)
    for task in decided["tasks"]:
        step("sum_masks", **task)
    step("give_answer", round=decided["round"])


@pytest.mark.parametrize("others", ["", "d"])
def test_whatever_comes_in_between_there_is_one_sum(watched: Watched, others: str) -> None:
    """A second execution answers the same or another request, at any moment of the first."""

    def second() -> None:
        watched.put(watched.without(*others))
        watched.keeper.answer("r")

    for number in itertools.count(1):
        watched.reset()
        counted = Counted({number: second})
        answer_interrupted(watched.keeper, counted)
        check_one_sum(watched)
        if not others:
            assert not secrets_left(watched.keeper)
        if counted.count < number:
            break
    assert number > 5


def check_one_sum(watched: Watched) -> None:
    """Check that all that was ever uploaded is the sum that the record names."""
    summed = watched.keeper.store.get_json(KEYS.record)["summed"]
    assert watched.sums == {sum_of("".join(sorted(summed)))}


def secrets_left(keeper: Keeper) -> list[str]:
    return [key for key in keeper.store.objects if key.startswith(("work/", "requests/"))]


def die() -> None:
    raise KilledError


@pytest.mark.parametrize("later", [1, 2, 3])
def test_a_late_check_that_dies_leaves_no_sealed_seeds(watched: Watched, later: int) -> None:
    """It begins anew what was answered meanwhile, and is killed before it is done."""
    for number in itertools.count(1):
        watched.reset()
        counted = Counted({number: lambda: watched.keeper.answer("r"), number + later: die})
        with contextlib.suppress(KilledError):
            answer_interrupted(watched.keeper, counted)
        watched.keeper.answer("r")  # the machine tries again
        check_one_sum(watched)
        assert not secrets_left(watched.keeper)
        if counted.count < number:
            break


def test_an_answered_request_that_is_sent_again_is_deleted_again(watched: Watched) -> None:
    """An aggregator's planning may run twice, and asks each time."""
    watched.keeper.answer("r")
    watched.put(watched.request)
    watched.keeper.answer("r")
    assert not secrets_left(watched.keeper)
    check_one_sum(watched)


@pytest.mark.parametrize(
    "garbage",
    [b"", b"[]", b"null", b"{}", b'{"round": "r"}', b"[" * 100_000, b"\xff\xfe"],
    ids=["empty", "list", "null", "object", "few fields", "deep", "no text"],
)
def test_a_garbage_request_fails_with_its_key_and_decides_nothing(
    watched: Watched, garbage: bytes
) -> None:
    watched.keeper.store.put_bytes(KEYS.request, garbage)
    with pytest.raises(BrokenObjectError, match=r"requests/r\.json: "):
        watched.keeper.answer("r")
    watched.put(watched.request)
    watched.keeper.answer("r")
    assert watched.sums == {sum_of("abcd")}


@pytest.mark.parametrize(
    ("encoding", "reason"),
    [
        (f'{{"elements":{2**100},"ring_bits":32}}', "are too long for 500 parts"),
        ("[" * 100_000, "not those of this protocol"),
        ('{"elements":5,"ring_bits":[32]}', "not those of this protocol"),
        ('{"elements":5,"elements":5,"ring_bits":32}', "is not written as the protocol says"),
    ],
    ids=["huge", "deep", "no number", "twice"],
)
def test_terms_that_no_client_can_have_are_refused(
    watched: Watched, encoding: str, reason: str
) -> None:
    watched.put(watched.request | {"encoding": encoding})
    watched.keeper.answer("r")
    refusal = watched.refusal()
    assert refusal is not None
    assert reason in refusal.reason
    assert not watched.sums


LOW_ORDER = [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18, 2**256 - 1]
"""Points of X25519 with which everybody gets the same secret."""


@pytest.mark.parametrize("point", LOW_ORDER)
def test_an_enrolled_client_that_signs_a_bad_seed_is_named_alone(
    watched: Watched, point: int
) -> None:
    sealed = point.to_bytes(32, "little") + bytes(48)
    signing_key = Ed25519PrivateKey.from_private_bytes(watched.keeper.signing_keys["c"])
    signature = signing_key.sign(watched.round.info("c") + sealed).hex()
    bad = {"client": "c", "sealed_seed": sealed.hex(), "signature": signature}
    others = [c for c in watched.request["contributors"] if c["client"] != "c"]
    watched.put(watched.request | {"contributors": [*others, bad]})
    watched.keeper.answer("r")
    refusal = watched.refusal()
    assert refusal is not None
    assert refusal.bad.keys() == {"c"}
    assert not watched.sums


def test_rounds_that_share_seeds_at_once_sum_each_seed_once(
    machine: Machine, keeper: Keeper
) -> None:
    """A client's own program seals one seed for two rounds, which are answered at one time."""
    updates = {name: {"w": np.ones(5, "f4")} for name in "abc"}
    keeper.enrol([*updates])
    for name in ("r", "s"):
        machine.begin(name)
        round_ = MaskedRound(machine, keeper)
        round_.open([*updates], updates["a"], min_clients=2)
        for client, update in updates.items():
            own = client if client == "c" else client + name
            round_.submit(client, update, 3, (own * 32).encode()[:32])
        round_.ask()
    before = dict(keeper.store.objects), dict(machine.store.objects)
    for number in itertools.count(1):
        for store, objects in zip((keeper.store, machine.store), before, strict=True):
            store.objects.clear()
            store.etags.clear()
            for key, body in objects.items():
                store.put_bytes(key, body)
        counted = Counted({number: lambda: keeper.answer("s")})
        answer_interrupted(keeper, counted)
        summed = [
            digest
            for name in "rs"
            for digest in (keeper.store.get_json(KeeperKeys(name).record) or {"summed": {}})[
                "summed"
            ].values()
        ]
        assert len(summed) == len(set(summed)) == 3
        if counted.count < number:
            break
