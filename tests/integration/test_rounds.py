"""A round's functions, called one after the other, over real HTTP."""

import json
import struct
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import ml_dtypes
import numpy as np
import pytest
import safetensors

from gradshard.utils.crc64 import crc64_text
from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import BrokenObjectError, PlanError, StoreError
from gradshard_core.planning import shard_count
from gradshard_core.planning.plan_parts import Rejection
from gradshard_core.rounds import aws_requests, waiting_record
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.quorum import QuorumError
from gradshard_core.s3.store import S3Store
from gradshard_core.s3.transport import ResponseError
from tests import reference
from tests.integration.by_hand import Round, assert_average, layout_of, put_model, small


@pytest.mark.parametrize("count", [1, 2, 64])
def test_mixed_types_in_any_order_of_tensors(open_round: Callable[..., Round], count: int) -> None:
    round_ = open_round(clients=count)
    updates = {f"c{i:02}": small(i) for i in range(count)}
    rng = np.random.default_rng(count)
    for i, (client, update) in enumerate(reversed(updates.items())):
        order = list(rng.permutation(list(update))) if i % 3 == 0 else list(update)
        round_.submit(client, update, 3 * (count - i), order=order)
    assert round_.go() == {"status": "completed"}
    samples = [3 * (i + 1) for i in range(count)]
    assert_average(round_.result(), list(updates.values()), samples)
    read = dict(safetensors.deserialize(round_.result()))
    assert read["empty"]["shape"] == [0, 4]


def test_every_number_of_shards_gives_the_same_bits(open_round: Callable[..., Round]) -> None:
    rng = np.random.default_rng(11)
    updates = [
        {
            "w": rng.standard_normal(9_000_001).astype("f4"),
            "b": rng.standard_normal(1_000_003).astype(ml_dtypes.bfloat16),
            "n": np.array([i], "i8"),
        }
        for i in range(3)
    ]
    results = []
    for shards in (1, 3, 6, None):
        round_ = open_round(clients=3, **({"shards": shards} if shards else {}))
        for i in (2, 0, 1):
            round_.submit(f"c{i}", updates[i], 5 + i)
        assert round_.plan()["shards"] == (shards or 1)
        # Backwards and twice: neither order nor repetition may matter.
        for task in [*reversed(round_.tasks()), round_.tasks()[0]]:
            round_.run(task)
        assert round_.finalize() == {"status": "completed"}
        data = round_.result()
        results.append(data[8 + int.from_bytes(data[:8], "little") :])
    assert len(set(results)) == 1
    assert_average(round_.result(), updates, [5, 6, 7])


def blob(header: Any, data: bytes = b"1234") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def w(start: int = 0, end: int = 4, dtype: str = "F32", shape: Sequence[int] = (1,)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


SAMPLES = {"num_samples": "1"}
BAD = {
    "no safetensors": (b"PK\x03\x04 a zip file", "not a safetensors object"),
    "empty object": (b"", "not a safetensors object: 0 bytes"),
    "cut header": (struct.pack("<Q", 5000) + b'{"w"', "5000 bytes is longer than the object"),
    "cut data": (blob({"__metadata__": SAMPLES, "w": w()}, b"12"), "out of the object's 2"),
    "no JSON": (struct.pack("<Q", 6) + b"{'w':}" + b"1234", "not a JSON object"),
    "overlap": (
        blob({"__metadata__": SAMPLES, "w": w(), "v": w(2, 6)}, b"123456"),
        "'v' begins at byte 2, not 4",
    ),
    "wrong length": (blob({"__metadata__": SAMPLES, "w": w(shape=[3])}), "12 bytes"),
    "unknown dtype": (blob({"__metadata__": SAMPLES, "w": w(dtype="F4")}), "dtype 'F4'"),
    "no samples": (blob({"w": w()}), "num_samples is missing"),
    "no number": (blob({"__metadata__": {"num_samples": "x"}, "w": w()}), "num_samples is 'x'"),
    "other layout": (
        blob({"__metadata__": SAMPLES, "w": w(0, 8, shape=[2])}, b"12345678"),
        "tensor 'w' is F32 [2], not F32 [1]",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_update_costs_its_sender_the_round(
    open_round: Callable[..., Round], what: str
) -> None:
    body, reason = BAD[what]
    round_ = open_round(clients=["a", "bad", "c"], min_clients=2)
    good = [{"w": np.array([3.0], "f4")}, {"w": np.array([6.0], "f4")}]
    round_.submit("a", good[0])
    round_.submit("c", good[1])
    etag = round_.upload("bad", body)
    collected = collect_update(round_.store, round_.keys.update("bad"), etag)
    assert collected["status"] == ("accepted" if what == "other layout" else "rejected")
    assert round_.go() == {"status": "completed"}
    assert_average(round_.result(), good, [1, 1])
    assert reason in round_.reason("bad")
    assert round_.keys.update("bad") in round_.reason("bad")
    assert [r["client"] for r in round_.manifest()["rejected"]] == ["bad"]


def test_two_updates_of_two_layouts_fail_the_round_and_can_be_averaged_with_a_layout(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=["a", "b"], min_clients=1)
    round_.submit("a", {"v": np.ones(1, "f4")})
    round_.submit("b", small(1))
    with pytest.raises(PlanError, match="1 have the one of client 'a', and 1 that of client 'b'"):
        round_.plan()
    assert round_.store.open_uploads(round_.keys.result) == []
    again = open_round(
        clients=2, min_clients=1, layout=layout_of(small(1)), updates_from=round_.name
    )
    assert again.go() == {"status": "completed"}
    assert_average(again.result(), [small(1)], [1])


def test_below_the_quorum_the_round_fails_with_all_reasons(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=["a", "b", "c"], min_clients=2)
    round_.submit("a", small(1))
    round_.upload("b", b"junk")
    text = "1 good update, but min_clients is 2; missing: c; rejected: b: "
    with pytest.raises(QuorumError, match=text):
        round_.plan()
    assert round_.store.open_uploads(round_.keys.result) == []


@pytest.mark.parametrize("shards", [1, 3])
def test_nan_is_rejected_by_name_and_the_round_goes_on(
    open_round: Callable[..., Round], shards: int
) -> None:
    rng = np.random.default_rng(5)
    updates = [
        {"a": np.ones(3, "f4"), "w": rng.standard_normal(5_000_000).astype("f4")} for _ in range(4)
    ]
    updates[1]["w"][4_999_999] = np.nan
    updates[2]["w"][17] = -np.inf
    round_ = open_round(clients=4, min_clients=2, shards=shards)
    for i, update in enumerate(updates):
        round_.submit(f"c{i}", update, i + 1)
    assert round_.go() == {"status": "completed"}
    assert "tensor 'w' holds a NaN or an infinity at element 4999999" in round_.reason("c1")
    assert "tensor 'w' holds a NaN or an infinity at element 17" in round_.reason("c2")
    manifest = round_.manifest()
    assert [r["client"] for r in manifest["rejected"]] == ["c1", "c2"]
    assert manifest["attempts"] == 2
    assert_average(round_.result(), [updates[0], updates[3]], [1, 4])
    assert round_.store.open_uploads(round_.keys.result) == []


def test_nan_is_averaged_where_that_is_allowed(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=2, allow_nonfinite=True)
    updates = [{"w": np.array([1, np.nan, np.inf], "f4")}, {"w": np.array([1, 2, 3], "f4")}]
    for i, update in enumerate(updates):
        round_.submit(f"c{i}", update)
    assert round_.go() == {"status": "completed"}
    assert_average(round_.result(), updates, [1, 1])


def test_a_sum_beyond_its_type_is_no_overflow_of_the_average(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=2)
    largest = np.finfo(np.float32).max
    updates = [{"w": np.array([largest, 1], "f4")}] * 3
    for i, update in enumerate(updates):
        round_.submit(f"c{i}", update, [1, 1, 1][i])
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["attempts"] == 1
    assert_average(round_.result(), updates, [1, 1, 1])


def test_the_declared_layout_wins_and_orders_the_result(open_round: Callable[..., Round]) -> None:
    layout = {"b": {"dtype": "F32", "shape": [1]}, "a": {"dtype": "F32", "shape": [2]}}
    round_ = open_round(clients=3, min_clients=1, layout=layout)
    good = {"a": np.array([1, 2], "f4"), "b": np.array([3], "f4")}
    round_.submit("x", good)
    for client in ("y", "z"):
        round_.submit(client, {"a": np.array([1, 2], "f4")})
    assert round_.go() == {"status": "completed"}
    assert list(reference.decode(round_.result())) == ["b", "a"]
    assert "(the one the round was opened with): tensor 'b' is missing" in round_.reason("y")


def test_the_last_upload_before_planning_counts_and_later_ones_do_not(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=["a", "b"])
    first, second, third = small(1), small(2), small(3)
    round_.upload("a", b"junk")
    collected = collect_update(round_.store, round_.keys.update("a"), "etag")
    assert collected["status"] == "rejected"
    etag = round_.submit("a", first)
    assert collect_update(round_.store, round_.keys.update("a"), etag)["status"] == "accepted"
    assert round_.store.get_json(round_.keys.rejection("a")) is None
    round_.submit("b", second, 4)
    round_.plan()
    # The event of the counted upload may come again; the upload itself may be replaced or deleted.
    repeated = collect_update(round_.store, round_.keys.update("a"), etag)
    assert (repeated["status"], repeated["reason"]) == ("ignored", "planned already")
    late = collect_update(round_.store, round_.keys.update("a"), round_.submit("a", third))
    assert late["status"] == "ignored"
    assert "after the round was planned; the version uploaded before" in round_.reason("a")
    round_.store.delete(round_.keys.update("b"))
    assert round_.go() == {"status": "completed"}
    assert_average(round_.result(), [first, second], [1, 4])
    assert round_.manifest()["rejected"] == []


def test_collecting_and_planning_reject_one_upload_only_once(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=2)
    etag = round_.submit("a", {"w": np.ones(2, "f4")})
    # Planning has rejected this very upload while its event was on the way.
    round_.store.put_json(
        round_.keys.rejection("a"), {"client": "a", "reason": "layout", "etag": f'"{etag}"'}
    )
    assert collect_update(round_.store, round_.keys.update("a"), etag)["status"] == "accepted"
    assert round_.reason("a") == "layout"


def test_a_rejection_does_not_outlive_the_upload_that_mended_it(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=1)
    key = round_.keys.update("a")
    collect_update(round_.store, key, round_.upload("a", b"junk"))
    mended = round_.submit("a", small(1))
    # Planned before the event of the better upload is handled.
    assert round_.go() == {"status": "completed"}
    assert collect_update(round_.store, key, mended)["status"] == "ignored"
    assert round_.store.get_json(round_.keys.rejection("a")) is None
    # A late upload's notice stays, whatever event comes again.
    collect_update(round_.store, key, round_.submit("a", small(2)))
    collect_update(round_.store, key, mended)
    assert "after the round was planned" in round_.reason("a")


def test_an_update_of_an_unexpected_client_is_rejected(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=["a"])
    round_.submit("a", small(1))
    etag = round_.submit("stranger", small(2))
    collected = collect_update(round_.store, round_.keys.update("stranger"), etag)
    assert collected["status"] == "rejected"
    assert "client 'stranger' is not expected" in round_.reason("stranger")
    assert round_.go() == {"status": "completed"}
    assert_average(round_.result(), [small(1)], [1])


@pytest.mark.parametrize(
    "key",
    ["rounds/it-none/updates/a.safetensors", "rounds/../updates/a.safetensors", "elsewhere"],
)
def test_events_that_concern_no_round(store: S3Store, key: str) -> None:
    assert collect_update(store, key, "etag")["status"] == "ignored"


def test_an_upload_whose_name_is_a_path(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    key = f"{round_.keys.updates}a/../b.safetensors"
    outcome = collect_update(round_.store, key, "etag")
    assert outcome["status"] == "ignored"
    assert "'a/../b'" in outcome["reason"]


def test_planning_twice_at_once_leaves_one_plan_and_one_upload(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=2)
    for client in "ab":
        round_.submit(client, small(1))
    with ThreadPoolExecutor(4) as pool:
        outcomes = list(pool.map(lambda _: round_.plan(), range(4)))
    assert all(outcome == outcomes[0] for outcome in outcomes)
    uploads = round_.store.open_uploads(round_.keys.result)
    assert uploads == [round_.store.get_json(round_.keys.plan)["upload_id"]]
    assert round_.go() == {"status": "completed"}


def test_planning_again_twice_at_once_leaves_one_plan_and_one_upload(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = open_round(clients=3)
    for i, client in enumerate("abc"):
        round_.submit(client, small(i))
    round_.plan()
    rejected = [Rejection("b", "a reason")]
    begin = round_.store.create_upload
    inner: list[dict[str, Any]] = []

    def overtaken(*args: Any) -> str:
        """Let another planning of the same attempt begin and end while this one is at work."""
        monkeypatch.undo()
        inner.append(round_.plan(1, rejected))
        return begin(*args)

    monkeypatch.setattr(round_.store, "create_upload", overtaken)
    assert round_.plan(1, rejected) == inner[0]
    uploads = round_.store.open_uploads(round_.keys.result)
    assert uploads == [round_.store.get_json(round_.keys.plan)["upload_id"]]
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert_average(round_.result(), [small(0), small(2)], [1, 1])


def test_a_plan_without_its_tasks_gets_them(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.plan()
    round_.store.delete(round_.keys.tasks(0))  # as if planning had been killed in between
    round_.plan()
    assert round_.go() == {"status": "completed"}


def test_a_task_of_an_abandoned_attempt_writes_nothing(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3)
    updates = {c: small(i) for i, c in enumerate("abc")}
    for client, update in updates.items():
        round_.submit(client, update)
    round_.plan()
    [stale] = round_.tasks()
    round_.run(stale)  # its report stays where that of the next attempt will be
    round_.plan(1, [Rejection("b", "a reason")])
    assert round_.run(stale) == {"task": 0, "attempt": 0, "superseded_by": 1}
    with pytest.raises(PlanError, match="task 0 of level 0 has not been done, of 1 tasks"):
        round_.finalize()
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert_average(round_.result(), [updates["a"], updates["c"]], [1, 1])


def test_finalizing_twice_is_once(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    assert round_.go() == {"status": "completed"}
    manifest, result = round_.manifest(), round_.store.head(round_.keys.result)
    assert round_.finalize() == {"status": "completed"}
    assert (round_.manifest(), round_.store.head(round_.keys.result)) == (manifest, result)
    assert manifest["update"]["etag"] == result.etag if result else False


def test_no_upload_is_left_open(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.store.create_upload(round_.keys.result)  # of a planning that was killed
    round_.plan(is_repeated=True)
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert round_.store.open_uploads(round_.keys.result) == []


def test_nothing_is_seen_before_the_end_or_after_an_abort(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.plan()
    round_.aggregate()
    assert round_.store.head(round_.keys.result) is None
    cause = json.dumps({"errorMessage": "what broke", "errorType": "SomeError"})
    outcome = abort_round(round_.store, round_.name, error="SomeError", cause=cause)
    assert outcome == {"status": "failed", "error": "SomeError", "cause": "what broke"}
    assert round_.store.open_uploads(round_.keys.result) == []
    assert round_.manifest()["cause"] == "what broke"
    again = abort_round(round_.store, round_.name, error="Other", cause="later")
    assert again["cause"] == "what broke"
    late = collect_update(round_.store, round_.keys.update("a"), round_.submit("a", small(2)))
    assert late["status"] == "ignored"


def test_planning_an_aborted_round_leaves_no_upload(open_round: Callable[..., Round]) -> None:
    """A planning that the machine took for dead may go on when all is over."""
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    abort_round(round_.store, round_.name, error="SomeError", cause="no more")
    with pytest.raises(PlanError, match="has ended"):
        round_.plan()
    assert round_.store.open_uploads(round_.keys.result) == []
    assert round_.manifest()["cause"] == "no more"


@pytest.mark.parametrize("junk", [b"", b'{"half": [1', b"\xff"])
def test_a_round_with_an_unreadable_plan_is_aborted(
    open_round: Callable[..., Round], junk: bytes
) -> None:
    round_ = open_round(clients=["a", "b", "c"], topology="lambda_fl", fan_in=2)
    for client in "abc":
        round_.submit(client, small(1))
    round_.plan()
    for task in round_.tasks():
        round_.run(task)
    assert len(list(round_.store.list_objects(round_.keys.partial_sums))) == 2
    round_.store.put_bytes(round_.keys.plan, junk)
    with pytest.raises(
        BrokenObjectError, match=r"/plan\.json: \d+ bytes that are no JSON"
    ) as caught:
        round_.finalize()
    cause = str(caught.value)
    assert abort_round(round_.store, round_.name, error="E", cause=cause)["status"] == "failed"
    assert round_.manifest()["cause"] == cause
    assert round_.store.open_uploads(round_.keys.result) == []
    assert list(round_.store.list_objects(round_.keys.partial_sums)) == []


@pytest.mark.parametrize("stands", ["layout", "state_layout"])
def test_a_late_second_planning_does_not_rename_tensors(
    store: S3Store, monkeypatch: pytest.MonkeyPatch, stands: str
) -> None:
    """It writes the layout of uploads that were replaced since, as long as the one that counts."""
    round_ = Round(store, clients=1)
    tensors = {"w1": np.ones(3, np.float32)}
    if stands == "state_layout":
        put_model(store, round_.name, tensors)
        terms = {"model": round_.name, "optimizer": "fedadam", "learning_rate": 0.5}
        round_ = Round(store, clients=1, server_optimizer=terms)
    round_.submit("a", tensors)
    monkeypatch.setattr("gradshard_core.planning.output_objects.IN_PLAN_BYTES", 0)
    kept: dict[str, bytes] = {}
    put_bytes = S3Store.put_bytes

    def put(self: S3Store, key: str, body: bytes, **options: Any) -> bool:
        if key == getattr(round_.keys, stands):
            kept[key] = body.replace(b"w1", b"w2")
        return put_bytes(self, key, body, **options)

    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "put_bytes", put)
        round_.plan()
    for key, belated in kept.items():
        store.put_bytes(key, belated)
    with pytest.raises(BrokenObjectError, match=r"layout\.header is not the one that was planned"):
        round_.aggregate()
    assert kept


def test_a_late_second_opening_keeps_the_rounds_token(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of open_round has a token of its own, and the machine takes the newest only."""
    round_ = open_round(clients=1)
    with ThreadPoolExecutor(4) as pool:
        tokens = ["newest", "belated", "more belated", "newest"]
        list(pool.map(lambda t: waiting_record.keep_token(round_.store, round_.keys, t), tokens))
    waiting_record.keep_token(round_.store, round_.keys, "the most belated")
    asked: list[str] = []

    def resume(token: str, reason: str) -> bool:
        asked.append(token)
        return token == "newest"

    monkeypatch.setattr(aws_requests, "resume", resume)
    assert waiting_record.resume(round_.store, round_.keys, "complete")
    assert asked[0] == "the most belated"
    assert asked[-1] == "newest"


def test_an_abort_after_the_end_changes_nothing(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.go()
    outcome = abort_round(round_.store, round_.name, error="States.Timeout", cause="")
    assert outcome == {"status": "completed"}
    assert_average(round_.result(), [small(1)], [1])


def test_finalizing_an_aborted_round_shows_nothing(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.plan()
    round_.aggregate()
    given_up = {"status": "failed", "error": "E", "cause": "given up"}
    round_.store.put_json(round_.keys.manifest, given_up)
    with pytest.raises(PlanError, match="was given up: given up"):
        round_.finalize()
    assert round_.store.head(round_.keys.result) is None


def test_finalizing_twice_and_giving_up_at_once(open_round: Callable[..., Round]) -> None:
    """Whoever writes the manifest first decides; the other leaves nothing that denies it."""

    def finalize(round_: Round) -> str:
        try:
            return str(round_.finalize()["status"])
        except (PlanError, StoreError):
            return "failed"

    def give_up(round_: Round, seconds: float) -> str:
        time.sleep(seconds)
        return str(abort_round(round_.store, round_.name, error="E", cause="why")["status"])

    for number in range(8):
        round_ = open_round(clients=1)
        round_.submit("a", small(1))
        round_.plan()
        round_.aggregate()
        with ThreadPoolExecutor(3) as pool:
            ends = [pool.submit(finalize, round_) for _ in range(2)]
            ends.append(pool.submit(give_up, round_, 0.03 * number))
        outcomes = {end.result() for end in ends}
        assert outcomes == {round_.manifest()["status"]}
        assert round_.store.open_uploads(round_.keys.result) == []
        assert (round_.store.head(round_.keys.result) is None) == (outcomes == {"failed"})


def test_the_first_cause_is_kept(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    round_.plan()
    task = {"level": 0, "number": 3}
    first = abort_round(round_.store, round_.name, error="OSError", cause="on fire", task=task)
    assert (first["error"], first["cause"]) == ("OSError", "task 3 of level 0: on fire")
    general = "States.ExceedToleratedFailureThreshold"
    assert abort_round(round_.store, round_.name, error=general, cause="one failed") == first


def test_an_update_deleted_for_good_costs_only_its_sender_the_round(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=2, min_clients=1)
    for i, client in enumerate("ab"):
        round_.submit(client, small(i))
    round_.plan()
    frozen = round_.store.head(round_.keys.update("b"))
    assert frozen is not None
    boto3.client("s3").delete_object(
        Bucket=round_.store.bucket, Key=frozen.key, VersionId=frozen.version
    )
    assert round_.go() == {"status": "completed"}
    assert "the planned version is gone" in round_.reason("b")
    assert_average(round_.result(), [small(0)], [1])


def test_a_round_that_does_not_fit_is_rejected_before_any_upload(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=1)
    round_.submit("a", small(1))
    with pytest.raises(PlanError, match="has 10; deploy with AggregatorMemory="):
        round_.plan(aggregator=LambdaConfig(memory_mb=10, architecture="arm64"))
    assert round_.store.open_uploads(round_.keys.result) == []


def test_more_arrivals_than_a_round_takes(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=3, order="tree:2,2")
    for client in "ecabd":
        round_.submit(client, small(1))
    assert round_.go() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == ["a", "b", "c", "d"]
    assert "takes 4 clients" in round_.reason("e")


def test_m_is_lowered_and_the_manifest_says_so(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=1, shards=1000)
    round_.submit("a", {"w": np.ones(3_000_000, "f4")})
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["shards"] == shard_count.max_shards(12_000_000) == 2
    assert round_.manifest()["notes"][0].startswith("M lowered from 1000 to 2")


def test_an_update_that_s3_does_not_give_costs_its_sender_the_round(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch
) -> None:
    round_ = open_round(clients=2, min_clients=1)
    for client in "ab":
        round_.submit(client, small(1))
    call = round_.store.call

    def archived(operation: str, **asked: Any) -> Any:
        if operation == "get_object" and asked["Key"] == round_.keys.update("b"):
            text = "S3 answered InvalidObjectState"
            raise ResponseError("InvalidObjectState", operation, text)
        return call(operation, **asked)

    monkeypatch.setattr(round_.store, "call", archived)
    assert round_.go() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == ["a"]
    monkeypatch.undo()
    assert "S3 answered InvalidObjectState" in round_.reason("b")


@pytest.mark.parametrize("shards", [1, 2])
def test_s3_keeps_the_checksum_of_the_result(open_round: Callable[..., Round], shards: int) -> None:
    update = {"w": np.arange(3_000_001, dtype="f4")}
    round_ = open_round(clients=1, shards=shards)
    round_.submit("c0", update)
    assert round_.go() == {"status": "completed"}
    assert round_.store.checksum(round_.keys.result) == crc64_text(round_.result())
