"""Masked rounds: the result is the plain fixed-point sum, and nobody sees a single update."""

import itertools
import re
import time
from functools import cache
from typing import Any, cast

import ml_dtypes
import numpy as np
import pytest

from gradshard.updates.mask import MaskedContent
from gradshard.updates.upload_source import TensorContent
from gradshard_core.aggregation.arithmetic import Array
from gradshard_core.errors import KeeperError, SpecError, UpdateError
from gradshard_core.rounds import aws_requests
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.quorum import QuorumError
from gradshard_core.specs.masking_options import Agreement, MaskingTerms
from gradshard_core.specs.round_spec_checks import parse_spec
from tests import masked, reference
from tests.planned import levels_of
from tests.unit.fakes import MemoryStore
from tests.unit.in_memory import OPENED, Machine
from tests.unit.keeper_in_memory import Fate, Keeper, KilledError, MaskedRound, Mortal

pytestmark = pytest.mark.filterwarnings("ignore:No application metrics")

Updates = dict[str, dict[str, reference.Array]]


def updates_of(clients: int, seed: int = 0) -> Updates:
    rng = np.random.default_rng(seed)
    return {
        f"c{number:04}": {
            "w": rng.normal(0, 1.5, (7, 11)).astype("f4"),
            "b": rng.normal(0, 1.5, 5).astype(ml_dtypes.bfloat16),
            "wide": rng.normal(0, 1.5, 3),
        }
        for number in range(clients)
    }


def samples_of(updates: Updates, seed: int = 0) -> dict[str, int]:
    rng = np.random.default_rng(seed)
    return {client: int(rng.integers(1, 1000)) for client in updates}


def check(round_: MaskedRound, updates: Updates, samples: dict[str, int], lost: Any = ()) -> None:
    present = [client for client in updates if client not in lost]
    expected = masked.average(
        round_.terms, [updates[c] for c in present], [samples[c] for c in present]
    )
    found = round_.result()
    assert {n: t.tobytes() for n, t in found.items()} == {
        n: t.tobytes() for n, t in expected.items()
    }


KINDS: list[dict[str, Any]] = [
    {},
    {"topology": "lambda_fl", "fan_in": 2},
    {"topology": "lifl"},
    {"topology": "grid", "fan_in": 3},
    {"time_budget": 60},
]


@pytest.mark.parametrize("ring_bits", [32, 64])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("clients", [2, 3, 7, 23])
def test_the_result_is_the_plain_sum_of_those_that_came(
    machine: Machine, keeper: Keeper, ring_bits: int, kind: dict[str, Any], clients: int
) -> None:
    round_ = MaskedRound(machine, keeper, ring_bits=ring_bits)
    updates = updates_of(clients, seed=clients)
    samples = samples_of(updates)
    lost = list(updates)[: int(0.3 * clients)]
    manifest = round_.run(updates, samples, lost, min_clients=2, **kind)
    check(round_, updates, samples, lost)
    assert manifest["samples"] == sum(n for client, n in samples.items() if client not in lost)
    assert manifest["missing"] == lost
    assert {c["samples"] for c in manifest["contributors"]} == {None}
    assert {c["weight"] for c in manifest["contributors"]} == {None}


@pytest.mark.slow
def test_a_thousand_clients(machine: Machine, keeper: Keeper) -> None:
    round_ = MaskedRound(machine, keeper, bits=8, max_samples=100)
    rng = np.random.default_rng(0)
    updates = {f"c{n:04}": {"w": rng.normal(0, 2, 3).astype("f4")} for n in range(1000)}
    samples = {client: int(rng.integers(1, 100)) for client in updates}
    lost = list(updates)[::4]
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        if client not in lost:
            round_.submit(client, update, samples[client], number.to_bytes(32, "big"))
    round_.ask()
    keeper.answer(machine.name)
    round_.finish()
    check(round_, updates, samples, lost)


@cache
def long_updates() -> dict[str, dict[str, Array]]:
    """Return updates whose masks fill three parts of an upload."""
    rng = np.random.default_rng(1)
    return {name: {"w": rng.normal(0, 1, 4_100_000).astype("f4")} for name in "abc"}


@cache
def long_average(step: float) -> bytes:
    """Average the long updates of clients with ten samples each."""
    sums = sum(
        10 * np.rint(np.clip(u["w"].astype("f8"), -4, 4) / step) for u in long_updates().values()
    )
    return bytes((sums * step / 30).astype("f4").tobytes())


@pytest.mark.parametrize("shards", [1, 2, 3])
def test_every_number_of_shards_gives_the_same_bits(
    machine: Machine, keeper: Keeper, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradshard_core.mask_keeper.tasks.TASK_BYTES", 2**23)
    updates = long_updates()
    round_ = MaskedRound(machine, keeper)
    keeper.enrol([*updates])
    round_.open([*updates], updates["a"], shards=shards)
    fixed = MaskingTerms(**round_.terms).fixed(3, elements=4_100_000)
    for client, update in updates.items():
        # By the library's own code: the plain one would take minutes.
        content = library_content(round_, client, update, 10)
        machine.store.put_bytes(machine.keys.update(client), content.read(0, content.nbytes))
    round_.ask()
    decided = keeper.step("check_request", key=f"requests/{machine.name}.json")
    assert len(decided["tasks"]) == 3
    keeper.answer(machine.name)
    manifest = round_.finish()
    assert manifest["shards"] == shards
    assert np.asarray(round_.result()["w"]).tobytes() == long_average(fixed.step)


def library_content(
    round_: MaskedRound, client: str, update: dict[str, Array], samples: int
) -> MaskedContent:
    """Mask an update with the client library."""
    from gradshard.updates.mask import Mask
    from gradshard.updates.mask import masked as mask_content

    mask = Mask(round_.keeper.signing_keys[client], round_.keeper.fingerprint)
    content = TensorContent(update, samples)
    opened = round_.machine.store.get_json(round_.machine.keys.spec)
    spec = parse_spec(opened["spec"])
    agreement = Agreement.of(spec)
    return mask_content(content, agreement, spec.layout, mask, client, round_.machine.name)


def test_the_library_masks_as_the_protocol_says(machine: Machine, keeper: Keeper) -> None:
    updates = updates_of(5)
    samples = samples_of(updates)
    for ring_bits in (32, 64):
        machine.begin(f"library-{ring_bits}")
        round_ = MaskedRound(machine, keeper, ring_bits=ring_bits)
        keeper.enrol([*updates])
        round_.open([*updates], updates["c0000"])
        for client, update in updates.items():
            content = library_content(round_, client, update, samples[client])
            # In pieces that fit no element, in any order.
            pieces = {
                at: content.read(at, min(at + 37, content.nbytes))
                for at in reversed(range(0, content.nbytes, 37))
            }
            body = b"".join(pieces[at] for at in sorted(pieces))
            assert len(body) == content.nbytes
            machine.store.put_bytes(machine.keys.update(client), body)
        round_.ask()
        keeper.answer(machine.name)
        round_.finish()
        check(round_, updates, samples)


def test_the_server_optimizer_sees_the_sum_alone(machine: Machine, keeper: Keeper) -> None:
    from tests.integration.by_hand import put_model

    model = {"w": np.arange(6, dtype="f4").reshape(2, 3)}
    put_model(machine.store, "m", model)
    updates = {name: {"w": np.full((2, 3), i + 1, "f4")} for i, name in enumerate("abc")}
    round_ = MaskedRound(machine, keeper)
    samples = dict.fromkeys("abc", 1)
    optimizer = {"model": "m", "optimizer": "fedavg", "updates": "deltas"}
    manifest = round_.run(updates, samples, layout=None, server_optimizer=optimizer)
    made = reference.decode(machine.store.objects[manifest["model"]["tensors"]["key"]])
    assert np.asarray(made["w"]).tolist() == (model["w"] + np.float32(2)).tolist()


# ----------------------------------------------------------------------- who learns what


def windows(data: bytes, size: int = 12) -> set[bytes]:
    return {data[at : at + size] for at in range(len(data) - size)}


def test_no_operator_has_a_single_update_or_the_other_ones_secrets(
    machine: Machine, keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(4)
    samples = samples_of(updates)
    round_.run(updates, samples)
    seeds = [bytes([number]) * 32 for number in range(4)]
    logged = capsys.readouterr().out.encode()
    aggregator = b"\0".join(machine.store.objects.values()) + logged
    for secret in [*seeds, keeper.private_key, *keeper.signing_keys.values()]:
        assert secret not in aggregator
        assert secret.hex().encode() not in aggregator
    for update in updates.values():
        for tensor in update.values():
            assert not windows(tensor.tobytes()) & windows(aggregator)
    kept = b"\0".join(keeper.store.objects.values()) + logged
    for number, client in enumerate(updates):
        masked_bytes = machine.store.objects[machine.keys.update(client)]
        start = 8 + int.from_bytes(masked_bytes[:8], "little")
        assert not windows(masked_bytes[start:]) & windows(kept)
        for tensor in updates[client].values():
            assert not windows(tensor.tobytes()) & windows(kept)
        # Neither does it keep the seeds, sealed or not, once it has answered.
        assert seeds[number] not in kept
        assert seeds[number].hex().encode() not in kept
    sealed = [c["share"][1] for c in machine.store.get_json(machine.keys.plan)["contributors"]]
    assert len(set(sealed)) == 4
    assert not any(text.encode() in kept for text in sealed)


@pytest.mark.parametrize("ring_bits", [32, 64])
def test_masked_updates_look_uniform(machine: Machine, keeper: Keeper, ring_bits: int) -> None:
    round_ = MaskedRound(machine, keeper, ring_bits=ring_bits)
    keeper.enrol(["a", "b"])
    update = {"w": np.zeros(300_000, "f4")}  # the worst: all of one value
    round_.open(["a", "b"], update)
    content = library_content(round_, "a", update, 7)
    body = content.read(0, content.nbytes)[-300_000 * ring_bits // 8 :]
    counts = np.bincount(np.frombuffer(body, np.uint8), minlength=256)
    expected = len(body) / 256
    # With 255 degrees of freedom it is over 377 once in a million times.
    assert ((counts - expected) ** 2 / expected).sum() < 377
    same = library_content(round_, "b", update, 7)
    assert same.read(0, same.nbytes)[-100:] != body[-100:]


# ----------------------------------------------------------------------- bad clients


def one_bad(
    round_: MaskedRound, *, bad: dict[str, Any] | None = None, seed: bytes = b"c" * 32
) -> tuple[dict[str, Any], str]:
    """Run a round of four, of whom c's seed is of no use; return the manifest and the reason."""
    machine, keeper = round_.machine, round_.keeper
    updates = dict(zip("abcd", updates_of(4).values(), strict=True))
    keeper.enrol([*updates])
    round_.open([*updates], updates["a"], min_clients=2)
    for client, update in updates.items():
        changes = (bad or {}) if client == "c" else {}
        changes = {k: v(round_) if callable(v) else v for k, v in changes.items()}
        round_.submit(client, update, 3, seed if client == "c" else client.encode() * 32, **changes)
    round_.ask()
    keeper.answer(machine.name)
    assert machine.turn(OPENED) == {"status": "awaiting"}  # asks again, without it
    keeper.answer(machine.name)
    manifest = round_.finish()
    check(round_, updates, dict.fromkeys(updates, 3), lost="c")
    rejection = machine.store.get_json(machine.keys.rejection("c"))
    assert [r["client"] for r in manifest["rejected"]] == ["c"]
    return manifest, rejection["reason"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"round_id": "other"}, "signature"),
        ({"client": "a"}, "signature"),
        ({"roster": ["a", "b", "c"]}, "signature"),
        ({"quorum": 1}, "signature"),
        ({"encoded": "{}"}, "signature"),
        ({"signing_key": b"k" * 32}, "signature"),
        ({"signing_key": lambda r: r.keeper.signing_keys["a"]}, "signature"),
    ],
)
def test_a_seed_that_was_sealed_for_other_terms_costs_its_sender_only(
    machine: Machine, keeper: Keeper, bad: dict[str, Any], reason: str
) -> None:
    _, told = one_bad(MaskedRound(machine, keeper), bad=bad)
    assert told.startswith("the mask keeper: ")
    assert reason in told


def test_a_seed_that_another_client_has_costs_the_second_one(
    machine: Machine, keeper: Keeper
) -> None:
    _, told = one_bad(MaskedRound(machine, keeper), seed=b"b" * 32)
    assert "its seed is that of b, too" in told


def test_a_seed_that_was_summed_before_is_never_summed_again(
    machine: Machine, keeper: Keeper
) -> None:
    updates = updates_of(2)
    MaskedRound(machine, keeper).run(updates, samples_of(updates))  # with seeds 0 and 1
    machine.begin("second")
    _, told = one_bad(MaskedRound(machine, keeper), seed=bytes([1]) * 32)
    assert "was summed in round 'r'" in told


def test_a_client_that_is_not_enrolled_does_not_count(machine: Machine, keeper: Keeper) -> None:
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(3)
    keeper.enrol([*updates][:2])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3, bytes([number]) * 32)
    round_.ask()
    keeper.answer(machine.name)
    machine.plan(OPENED)
    told = machine.store.get_json(machine.keys.rejection("c0002"))["reason"]
    assert "'c0002' is not enrolled" in told


def test_invented_clients_do_not_make_up_the_quorum(machine: Machine, keeper: Keeper) -> None:
    """The aggregator fills the roster with clients of its own, around one real client."""
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(3)
    keeper.enrol(["c0000"])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3, bytes([number]) * 32)
    round_.ask()
    keeper.answer(machine.name)
    with pytest.raises(QuorumError, match="1 good update, but min_clients is 2"):
        machine.plan(OPENED)
    for client in ("c0001", "c0002"):
        assert "not enrolled" in machine.store.get_json(machine.keys.rejection(client))["reason"]
    assert keeper.store.objects.keys() & {"answers/r.json", "work/r.json"} == set()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda body: body[:-4], "the tensors end at byte|data_offsets|fills bytes"),
        (lambda body: body + b"0000", "holds"),
        (lambda body: body.replace(b"masked_count", b"masked_kount"), "masked_count is missing"),
        (lambda body: body.replace(b'"sealed_seed": "', b'"sealed_seed": "x'), "sealed_seed is"),
        (lambda body: body.replace(b"U32", b"I32"), "'masked' is I32"),
    ],
)
def test_an_upload_of_another_form_costs_its_sender_only(
    machine: Machine, keeper: Keeper, change: Any, reason: str
) -> None:
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(3)
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        body = round_.submit(client, update, 3, bytes([number]) * 32)
        if number == 2:
            length = int.from_bytes(body[:8], "little")
            header = change(body[8:])[: len(change(body[8:]))]
            shift = len(header) - len(body[8:])
            at_end = shift in {-4, 4} and header[:20] == body[8:28]
            prefix = length if at_end else length + shift
            machine.store.put_bytes(
                machine.keys.update(client), prefix.to_bytes(8, "little") + header
            )
    round_.ask()
    keeper.answer(machine.name)
    round_.finish()
    check(round_, updates, dict.fromkeys(updates, 3), lost=["c0002"])
    told = machine.store.get_json(machine.keys.rejection("c0002"))["reason"]
    assert re.search(reason, told), told


def test_counts_that_no_clients_can_have_fail_the_round(machine: Machine, keeper: Keeper) -> None:
    round_ = MaskedRound(machine, keeper, max_samples=10)
    updates = updates_of(2)
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 11, bytes([number]) * 32)
    round_.ask()
    keeper.answer(machine.name)
    with pytest.raises(UpdateError, match="the counts of 2 clients add up to 22, not to 2 to 20"):
        machine.plan(OPENED)


# ----------------------------------------------------------------------- the keeper


def asking(machine: Machine, keeper: Keeper, **spec: Any) -> tuple[MaskedRound, Updates]:
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(3)
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"], **spec)
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3, bytes([number]) * 32)
    round_.ask()
    return round_, updates


def test_a_keeper_that_is_away_fails_the_round_at_its_timeout(
    machine: Machine, keeper: Keeper
) -> None:
    asking(machine, keeper, timeout=1)
    assert machine.turn(OPENED) == {
        "status": "awaiting"
    }  # a deadline of the first wait, say: it waits on
    time.sleep(1.1)
    late = {"reason": "deadline", "attempt": 0}
    with pytest.raises(KeeperError, match=r"the mask keeper has not answered by .* 3 masks"):
        machine.plan(late)


def test_a_keeper_that_is_late_is_waited_for(machine: Machine, keeper: Keeper) -> None:
    round_, updates = asking(machine, keeper)
    for _ in range(3):
        assert machine.turn(OPENED) == {"status": "awaiting"}
    keeper.answer(machine.name)
    round_.finish()
    check(round_, updates, dict.fromkeys(updates, 3))


def test_a_round_that_is_resumed_for_ever_fails(machine: Machine, keeper: Keeper) -> None:
    asking(machine, keeper)
    for _ in range(63):
        machine.plan(OPENED)
    with pytest.raises(KeeperError, match="resumed 65 times"):
        machine.plan(OPENED)


@pytest.mark.parametrize("cut", [1, 4])
def test_an_answer_of_another_size_fails_the_round(
    machine: Machine, keeper: Keeper, cut: int
) -> None:
    asking(machine, keeper)
    keeper.answer(machine.name)
    short = machine.store.objects[machine.keys.masks][:-cut]
    machine.store.put_bytes(machine.keys.masks, short)
    with pytest.raises(KeeperError, match=rf"keeper/masks has {len(short)} bytes, not "):
        machine.plan(OPENED)


def test_garbage_from_the_keeper_is_found_by_the_counts(machine: Machine, keeper: Keeper) -> None:
    asking(machine, keeper)
    keeper.answer(machine.name)
    size = len(machine.store.objects[machine.keys.masks])
    garbage = np.random.default_rng(5).bytes(size)
    machine.store.put_bytes(machine.keys.masks, garbage)
    with pytest.raises(UpdateError, match="the counts of 3 clients add up to"):
        machine.plan(OPENED)


def test_a_refusal_without_clients_fails_the_round_with_its_reason(
    machine: Machine, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADSHARD_LEAST_CLIENTS", "4")
    asking(machine, keeper)
    keeper.answer(machine.name)
    with pytest.raises(KeeperError, match=r"refused: 3 masks are to be summed, fewer than .* 4"):
        machine.plan(OPENED)


def test_an_update_that_is_gone_fails_the_round_and_is_not_planned_again(
    machine: Machine, keeper: Keeper
) -> None:
    asking(machine, keeper)
    keeper.answer(machine.name)
    planned = machine.plan(OPENED)
    machine.store.delete(machine.keys.update("c0001"))
    with pytest.raises(Exception, match="c0001"):
        machine.aggregate(planned)
    assert machine.store.get_json(machine.keys.plan)["attempt"] == 0


def test_the_answer_resumes_a_round_that_waits_for_it_and_no_other(
    machine: Machine, keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed: list[str] = []

    def resume(_token: str, reason: str) -> bool:
        resumed.append(reason)
        return True

    monkeypatch.setattr(aws_requests, "resume", resume)
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(2)
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"])
    # An answer that was not asked for would end the wait for updates.
    assert not collect_update(machine.store, machine.keys.masks, "e")["resumed"]
    assert not resumed
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3, bytes([number]) * 32)
    round_.ask()
    assert collect_update(machine.store, machine.keys.masks, "e")["answered"]
    assert collect_update(machine.store, machine.keys.refusal, "e")["answered"]
    assert resumed == ["complete", "complete"]


def run_until_done(machine: Machine, keeper: Keeper, function: str, event: Any) -> int:
    """Kill a function at its first request, then at its second, …; return how many it makes."""
    for number in itertools.count(1):
        for is_done in (False, True):
            fate = Fate(number, is_done=is_done)
            healthy, theirs = machine.store, machine.keeper
            machine.store = cast(MemoryStore, Mortal(healthy, fate))
            machine.keeper = cast(MemoryStore, Mortal(keeper.store, fate))
            try:
                machine.step(function, **event)
            except KilledError:
                pass
            finally:
                machine.store, machine.keeper = healthy, theirs
            if fate.count < number:
                return fate.count
    raise AssertionError


def test_functions_that_are_killed_at_any_request_ask_once_and_go_on(
    machine: Machine, keeper: Keeper
) -> None:
    round_ = MaskedRound(machine, keeper)
    updates = updates_of(3)
    keeper.enrol([*updates])
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items()):
        round_.submit(client, update, 3, bytes([number]) * 32)
    asking = {"entered_at": "2026-01-01T00:00:01Z", **OPENED}
    assert run_until_done(machine, keeper, "plan_round", asking) >= 3
    asked = keeper.store.get_json(f"requests/{machine.name}.json")
    keeper.answer(machine.name)
    going_on = asking | {"entered_at": "2026-01-01T00:00:02Z"}
    assert run_until_done(machine, keeper, "plan_round", going_on) >= 3
    planned = machine.step("plan_round", **going_on)
    for level in levels_of(planned):
        for batch in machine.store.get_json(level["key"]):
            for task in batch["tasks"]:
                assert run_until_done(machine, keeper, "aggregate_shard", task) >= 3
    assert run_until_done(machine, keeper, "finalize_round", {}) >= 3
    assert machine.step("finalize_round") == {"status": "completed"}
    check(round_, updates, dict.fromkeys(updates, 3))
    record = keeper.store.get_json(f"answers/{machine.name}.json")
    assert record["summed"].keys() == {seed["client"] for seed in asked["contributors"]}


# ----------------------------------------------------------------------- opening


def terms(**changes: Any) -> dict[str, Any]:
    keeper, others = "ab" * 32, changes.pop("masked", {})
    masking = {"bound": 1.0, "max_samples": 100, "keeper": keeper}
    masking |= others if isinstance(others, dict) else {}
    layout = {"w": {"dtype": "F32", "shape": [3]}}
    stated = {"clients": ["a", "b"], "layout": layout, "masked": masking}
    return stated | changes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"clients": 3}, "masked needs the clients' ids"),
        ({"layout": None}, "masked needs a layout"),
        ({"min_clients": 1}, "min_clients is 1, and the sum over one client is its update"),
        (
            {"rule": "median", "clients": list("abc")},
            "leave out rule: rules look at single updates",
        ),
        ({"rule": "fill"}, "leave out rule"),
        ({"weights": "counts"}, "leave out weights"),
        ({"order": "tree:2"}, "leave out order"),
        ({"assignments": {"batch_size": 1, "epochs": 1, "learning_rate": 0.1}}, "assignments"),
        ({"codecs": ["int8"]}, "leave out codecs: a mask has no shorter form"),
        ({"allow_nonfinite": True}, "leave out allow_nonfinite"),
        ({"updates_from": "other"}, "leave out updates_from: a seed is summed once"),
        ({"masked": {"keeper": "short"}}, "keeper is 'short', not a public key"),
        ({"masked": {"bits": 31}}, "no room for 2 clients .* take at most 24 bits, or a ring"),
        ({"masked": {"bits": 2.5}}, "bits is 2.5, not a whole number"),
        ({"masked": {"bound": "1"}}, "bound is '1', not a number"),
        ({"masked": {"bound": float("nan")}}, "bound is nan"),
        ({"masked": {"bound": None}}, "masked lacks bound"),
        ({"masked": {"other": 1}}, "unknown field 'other'"),
        ({"masked": 3}, "masked is 3, not an object"),
        ({"layout": {"n": {"dtype": "I64", "shape": [1]}}}, "'n' is I64: masked rounds average"),
        ({"layout": {"n": {"dtype": "F16", "shape": [1]}}}, "'n' is F16, and the ring reaches"),
    ],
)
def test_what_cannot_be_masked_is_refused_when_the_round_is_opened(
    changes: dict[str, Any], text: str
) -> None:
    stated = terms(**changes)
    if changes.get("masked") == 3:
        stated["masked"] = 3
    with pytest.raises(SpecError, match=text):
        parse_spec({k: v for k, v in stated.items() if v is not None})


def test_eager_masked_rounds_are_refused() -> None:
    eager = {"eager": True, "topology": "lifl", "weights": "counts"}
    with pytest.raises(SpecError, match="masked: leave out"):
        parse_spec(terms(**eager))


def test_a_stack_without_a_keeper_opens_no_masked_round(machine: Machine, told: Any) -> None:
    opened = machine.open(**terms())
    assert opened["status"] == "rejected"
    assert "has no mask keeper: deploy it with KeeperBucket" in opened["reason"]


def test_the_terms_come_back_as_they_were_stated() -> None:
    spec = parse_spec(terms())
    assert parse_spec(spec.to_json()) == spec
    assert spec.to_json()["masked"] == {
        "bound": 1.0,
        "bits": 16,
        "ring_bits": 32,
        "max_samples": 100,
        "keeper": "ab" * 32,
    }


def test_after_a_keeper_was_away_nothing_that_was_sent_is_of_use(
    machine: Machine, keeper: Keeper
) -> None:
    """The keeper may still answer the failed round, so a second sum would tell more than one."""
    _, updates = asking(machine, keeper, timeout=1)
    time.sleep(1.1)
    with pytest.raises(KeeperError, match="Clients must train anew") as failed:
        machine.plan({"reason": "deadline", "attempt": 0})
    machine.step("abort_round", error="KeeperError", cause=str(failed.value))
    sent = {client: machine.store.objects[machine.keys.update(client)] for client in updates}
    keeper.answer(machine.name)  # hours later
    manifest = machine.store.get_json(machine.keys.manifest)
    assert (manifest["status"], manifest["error"]) == ("failed", "KeeperError")
    assert machine.keys.result not in machine.store.objects
    # The same name is taken, and nothing that was sent to it is taken over.
    layout = {"w": {"dtype": "F32", "shape": [1]}}
    opened = {"clients": [*updates], "layout": layout, "masked": terms()["masked"]}
    assert "was opened before" in machine.open(**opened)["reason"]
    machine.begin("again")
    assert "leave out updates_from" in machine.open(**opened, updates_from="r")["reason"]
    # A copy of the objects under another name: the keeper opens no seed.
    round_ = MaskedRound(machine, keeper)
    round_.open([*updates], updates["c0000"])
    for client, body in sent.items():
        machine.store.put_bytes(machine.keys.update(client), body)
    round_.ask()
    keeper.answer("again")
    with pytest.raises(QuorumError, match="0 good updates"):
        machine.plan(OPENED)
    assert machine.keys.masks not in machine.store.objects
    # Updates that clients train and mask anew are averaged.
    machine.begin("anew")
    round_ = MaskedRound(machine, keeper)
    round_.open([*updates], updates["c0000"])
    for number, (client, update) in enumerate(updates.items(), 100):
        round_.submit(client, update, 3, bytes([number]) * 32)
    round_.ask()
    keeper.answer("anew")
    round_.finish()
    check(round_, updates, dict.fromkeys(updates, 3))
