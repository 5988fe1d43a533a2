"""Trees and grids: rounds of several levels, over real HTTP."""

from collections.abc import Callable
from typing import Any

import boto3
import numpy as np
import pytest

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.errors import ChangedObjectError, PlanError, SpecError
from gradshard_core.records.plan_and_manifest import read_manifest
from gradshard_core.records.stored_spec import read_spec
from gradshard_core.rounds import resume_round
from gradshard_core.rounds.abort_round import abort_round
from gradshard_core.rounds.collect_update import collect_update
from gradshard_core.rounds.quorum import QuorumError
from gradshard_core.rounds.resume_round import deadline_passed
from gradshard_core.rounds.waiting_record import Seen
from tests import reference
from tests.integration.by_hand import Round, Update, layout_of, small
from tests.planned import levels_of

CLIENTS = [f"c{number:02}" for number in range(13)]
SAMPLES = [5, 1, 900, 17, 3, 64, 2, 250, 31, 8, 77, 410, 6]


def submit_all(round_: Round) -> list[Update]:
    updates = [small(seed) for seed in range(13)]
    for client, update, samples in zip(CLIENTS, updates, SAMPLES, strict=True):
        round_.submit(client, update, samples)
    return updates


def data_of(round_: Round) -> bytes:
    blob = round_.result()
    return blob[8 + int.from_bytes(blob[:8], "little") :]


def expected(updates: list[Update], samples: list[int], **how: Any) -> bytes:
    average = reference.average(updates, samples, **how)
    return b"".join(np.ascontiguousarray(average[name]).tobytes() for name in updates[0])


def versions_of(round_: Round) -> list[str]:
    """Every version of every partial sum that is left."""
    listed = boto3.client("s3").list_object_versions(
        Bucket=round_.store.bucket, Prefix=round_.keys.partial_sums
    )
    return [v["Key"] for v in [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]]


@pytest.mark.parametrize(
    ("terms", "order", "groups"),
    [
        ({}, "sequential", [[13]]),
        ({"order": "tree:4,4"}, "tree:4,4", [[13]]),
        ({"topology": "lambda_fl"}, "tree:4,4", [[4, 4, 4, 1], [4]]),
        ({"topology": "lambda_fl", "fan_in": 7}, "tree:7,2", [[7, 6], [2]]),
        ({"topology": "lifl"}, "tree:3,3,2", [[3, 3, 3, 3, 1], [3, 2], [2]]),
        ({"topology": "lifl", "weights": "counts"}, "tree:3,3,2", [[3, 3, 3, 3, 1], [3, 2], [2]]),
        (
            {"topology": "grid", "fan_in": 2},
            "tree:2,2,2,2",
            [[2] * 6 + [1], [2, 2, 2, 1], [2, 2], [2]],
        ),
        (
            {"topology": "grid", "order": "tree:2,2,4"},
            "tree:2,2,4",
            [[2] * 6 + [1], [2, 2, 2, 1], [4]],
        ),
    ],
)
def test_every_topology_over_real_http(
    open_round: Callable[..., Round], terms: dict[str, Any], order: str, groups: list[list[int]]
) -> None:
    round_ = open_round(clients=CLIENTS, **terms)
    updates = submit_all(round_)
    round_.aggregator = LambdaConfig(3008, "arm64", concurrency=3)
    assert round_.go() == {"status": "completed"}
    manifest = round_.manifest()
    assert (manifest["order"], manifest["groups"]) == (order, groups)
    assert manifest["topology"] == terms.get("topology", "shards")
    sizes = [int(size) for size in order.partition(":")[2].split(",") if size]
    counts = terms.get("weights") == "counts"
    assert data_of(round_) == expected(updates, SAMPLES, tree=sizes, counts=counts)
    assert len(manifest["tasks"]) == sum(map(len, groups))
    assert versions_of(round_) == []


def test_a_grid_is_cut_into_shards(open_round: Callable[..., Round]) -> None:
    rng = np.random.default_rng(0)
    updates = [
        {
            "w": rng.standard_normal(2_700_000, np.float32),
            "i": rng.integers(-100, 100, 1_000_001, dtype="i1"),
        }
        for _ in range(5)
    ]
    results = []
    for shards in (1, 2):
        round_ = open_round(clients=5, topology="grid", fan_in=2, shards=shards)
        for number, update in enumerate(updates):
            round_.submit(f"c{number}", update, number + 1)
        assert round_.go() == {"status": "completed"}
        assert round_.manifest()["shards"] == shards
        assert len(round_.manifest()["tasks"]) == shards * (3 + 2 + 1)
        results.append(data_of(round_))
    assert results[0] == results[1] == expected(updates, [1, 2, 3, 4, 5], tree=[2, 2, 2])


@pytest.mark.parametrize("piece", [5, 2])
def test_a_manifest_lists_every_task_whole_or_in_pieces(
    open_round: Callable[..., Round], monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr("gradshard_core.formats.long_lists.PIECE", piece)
    monkeypatch.setattr("gradshard_core.rounds.finalize_round.READ_AT_A_TIME", 2)
    round_ = open_round(clients=CLIENTS, topology="lambda_fl")
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    manifest = read_manifest(round_.store, round_.keys)
    assert manifest is not None
    keys = round_.store.list_objects(round_.keys.task_reports)
    reports = [round_.store.get_json(entry.key) for entry in keys]
    assert (len(manifest["tasks"]), len(reports)) == (5, 5)
    assert [task["task"] for task in manifest["tasks"]] == [r["task"] for r in reports]
    assert manifest["totals"]["tasks"] == 5
    for name in ("gets", "puts", "bytes_read", "bytes_written"):
        assert manifest["totals"][name] == sum(report[name] for report in reports)
    assert manifest["totals"]["peak_mb"] == max(report["peak_mb"] for report in reports)


def test_more_than_64_clients_make_a_grid(open_round: Callable[..., Round]) -> None:
    updates = [{"w": np.full(3, seed, "f4") / 7} for seed in range(66)]
    round_ = open_round(clients=66)
    for number, update in enumerate(updates):
        round_.submit(f"c{number:02}", update, number + 1)
    assert round_.go() == {"status": "completed"}
    manifest = round_.manifest()
    assert (manifest["topology"], manifest["groups"]) == ("grid", [[33, 33], [2]])
    assert data_of(round_) == expected(updates, list(range(1, 67)), tree=[33, 2])


@pytest.mark.parametrize("topology", ["lambda_fl", "lifl"])
def test_nan_in_a_leaf_costs_its_sender_the_round(
    open_round: Callable[..., Round], topology: str
) -> None:
    round_ = open_round(clients=CLIENTS, topology=topology)
    updates = submit_all(round_)
    updates[7]["fc.weight"][3, 1] = np.nan
    round_.submit("c07", updates[7], SAMPLES[7])
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["attempts"] == 2
    assert "tensor 'fc.weight' holds a NaN or an infinity at element 16" in round_.reason("c07")
    del updates[7]
    tree = [int(size) for size in round_.manifest()["order"][5:].split(",")]
    assert data_of(round_) == expected(updates, SAMPLES[:7] + SAMPLES[8:], tree=tree)
    assert versions_of(round_) == []


def test_a_sum_that_overflows_is_the_result_only_where_that_is_allowed(
    open_round: Callable[..., Round],
) -> None:
    updates = [{"w": np.array([3e38, 1.0], "f4")} for _ in range(4)]
    for allowed in (True, False):
        round_ = open_round(
            clients=4, topology="lambda_fl", weights="counts", allow_nonfinite=allowed
        )
        for number, update in enumerate(updates):
            round_.submit(f"c{number}", update, 2)
        if allowed:
            assert round_.go() == {"status": "completed"}
            assert data_of(round_) == np.array([np.inf, 1.0], "f4").tobytes()
            continue
        with pytest.raises(QuorumError, match="a partial sum would overflow F32 at element 0"):
            round_.go()


@pytest.mark.parametrize("level", ["leaf", "root"])
def test_the_client_behind_an_overflow_is_found_from_any_level(
    open_round: Callable[..., Round], level: str
) -> None:
    """In a leaf alone, or only together with what another leaf adds."""
    round_ = open_round(clients=9, topology="grid", fan_in=3, weights="counts", shards=2)
    updates = [{"w": np.ones(3_000_001, "f4")} for _ in range(9)]
    samples = [1] * 9
    samples[7] = 2**53 if level == "leaf" else 2
    updates[7]["w"][2_999_999] = 1.5e38
    updates[1]["w"][2_999_999] = 1.5e38
    for number, update in enumerate(updates):
        round_.submit(f"c{number}", update, samples[number])
    assert round_.go() == {"status": "completed"}
    assert round_.manifest()["attempts"] == 2
    assert [rejection["client"] for rejection in round_.manifest()["rejected"]] == ["c7"]
    sums = "the averaged update" if level == "root" else "a partial sum"
    assert f"{sums} would overflow F32 at element 2999999 of tensor 'w'" in round_.reason("c7")
    left = [number for number in range(9) if number != 7]
    expected = reference.average([updates[n] for n in left], [1] * 8, tree=(3, 3), counts=True)
    assert data_of(round_) == expected["w"].tobytes()


def test_aborting_a_completed_round_removes_its_leftovers(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS, topology="lambda_fl")
    submit_all(round_)
    assert round_.go() == {"status": "completed"}
    # As if finalize_round had been killed, twice, right after its manifest.
    round_.store.create_upload(round_.keys.result)
    round_.store.put_bytes(round_.keys.partial_sum(0, 0, 0), b"a sum")
    outcome = abort_round(round_.store, round_.name, error="Runtime.ExitError", cause="killed")
    assert outcome == {"status": "completed"}
    assert round_.store.open_uploads(round_.keys.result) == []
    assert versions_of(round_) == []
    assert round_.store.head(round_.keys.result) is not None


def test_a_lost_partial_sum_fails_its_task(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, topology="lambda_fl")
    submit_all(round_)
    round_.plan()
    for task in round_.tasks(0):
        round_.run(task)
    round_.store.delete_versions(round_.keys.partial_sum(0, 0, 2))
    with pytest.raises(ChangedObjectError, match="partial-sums/0/0/00002"):
        round_.run(round_.tasks(1)[0])
    abort_round(round_.store, round_.name, error="ChangedObjectError", cause="lost")
    assert versions_of(round_) == []
    assert round_.store.open_uploads(round_.keys.result) == []


def test_doing_every_task_twice_changes_nothing(open_round: Callable[..., Round]) -> None:
    round_ = open_round(clients=CLIENTS, topology="lifl")
    updates = submit_all(round_)
    round_.plan()
    for level in range(3):
        for task in [*reversed(round_.tasks(level)), *round_.tasks(level)]:
            round_.run(task)
    assert round_.finalize() == {"status": "completed"}
    assert data_of(round_) == expected(updates, SAMPLES, tree=[3, 3, 2])


def test_a_task_that_would_have_too_many_streams_fails_the_plan(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=3, topology="shards")
    for number in range(66):
        round_.submit(f"c{number:02}", {"w": np.ones(1, "f4")})
    assert round_.go() == {"status": "completed"}
    assert len(round_.manifest()["contributors"]) == 64
    assert "takes 64 clients" in round_.reason("c65")


# ---------------------------------------------------------------- the updates of another round


def test_the_updates_of_another_round(open_round: Callable[..., Round]) -> None:
    first = open_round(clients=CLIENTS)
    updates = submit_all(first)
    assert first.go() == {"status": "completed"}
    second = open_round(clients=CLIENTS, topology="lifl", updates_from=first.name)
    assert second.go() == {"status": "completed"}
    assert data_of(second) == expected(updates, SAMPLES, tree=[3, 3, 2])
    assert second.store.head(second.keys.update("c00")) is None
    missing = open_round(clients=["a"], updates_from="nobody-opened-this")
    with pytest.raises(SpecError, match="there is no round 'nobody-opened-this'"):
        missing.go()


# --------------------------------------------------------------------------------- eager rounds


def eager(open_round: Callable[..., Round], **terms: Any) -> tuple[Round, list[Update]]:
    """Open an eager round of 8 clients in groups of 2."""
    updates = [small(seed) for seed in range(8)]
    round_ = open_round(
        clients=CLIENTS[:8],
        topology="lifl",
        eager=True,
        weights="counts",
        layout=layout_of(updates[0]),
        **terms,
    )
    return round_, updates


def test_an_eager_leaf_starts_while_others_are_awaited(open_round: Callable[..., Round]) -> None:
    round_, updates = eager(open_round)
    seen: list[list[int]] = []
    for number, clients in enumerate([(2, 3), (6,), (7, 0, 1), (5, 4)]):
        for index in clients:
            round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
        spec, _ = read_spec(round_.store, round_.keys) or (None, None)
        assert spec is not None
        due = resume_round._is_due(round_.store, round_.keys, spec, "", Seen())
        if not due:
            seen.append([])
            continue
        round_.plan(entered_at=f"2026-01-01T00:00:0{number}Z")
        # The machine's repetition of a planning sets the same tasks to work.
        again = round_.plan(entered_at=f"2026-01-01T00:00:0{number}Z")
        assert again == round_.planned
        # Sums of sums wait until all groups are there.
        assert len(list(levels_of(again))) == (3 if len(seen) == 3 else 1)
        seen.append([task["task"]["number"] for task in round_.tasks(0)])
        round_.aggregate()
        outcome = round_.finalize()
    assert seen == [[1], [], [0, 3], [2]]
    assert outcome == {"status": "completed"}
    assert round_.manifest()["groups"] == [[2, 2, 2, 2], [2, 2], [2]]
    result = expected(updates, SAMPLES[:8], tree=[2, 2, 2], counts=True)
    assert data_of(round_) == result
    alone = open_round(
        clients=CLIENTS[:8], order="tree:2,2,2", weights="counts", updates_from=round_.name
    )
    assert alone.go() == {"status": "completed"}
    assert data_of(alone) == result


def test_an_eager_round_goes_on_with_the_updates_at_the_deadline(
    open_round: Callable[..., Round],
) -> None:
    round_, updates = eager(open_round)
    for index in (0, 1, 3, 6, 7):
        round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
    round_.plan(entered_at="1")
    assert len(round_.tasks(0)) == 2
    round_.aggregate()
    assert round_.finalize() == {"status": "awaiting"}
    # It is over while nobody waits: whoever waits next finds out.
    assert deadline_passed(round_.store, round_.name)["resumed"] is False
    assert round_.store.get_json(round_.keys.deadline) is not None
    round_.plan(entered_at="2", reason="deadline")
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    manifest = round_.manifest()
    assert manifest["groups"] == [[2, 1, 0, 2], [2, 2], [2]]
    assert manifest["missing"] == ["c02", "c04", "c05"]
    there = [0, 1, 3, 6, 7]
    groups = [[0, 1], [3], [6, 7]]
    wide = np.dtype("f4")
    name = "fc.weight"
    sums = [
        reference.add_up([updates[i][name] * np.array(SAMPLES[i], wide) for i in group])
        for group in groups
    ]
    total = (sums[0] + sums[1]) + sums[2]
    mean = total / np.array(sum(SAMPLES[i] for i in there), wide)
    assert reference.decode(round_.result())[name].tobytes() == mean.tobytes()


def test_a_group_of_rejected_updates_does_not_delay_the_round(
    open_round: Callable[..., Round],
) -> None:
    round_, updates = eager(open_round)
    for client in CLIENTS[:2]:
        round_.upload(client, b"not an update")
    round_.plan(entered_at="1")
    assert round_.tasks(0) == []
    round_.aggregate()
    assert round_.finalize() == {"status": "awaiting"}
    for index in range(2, 8):
        round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
    round_.plan(entered_at="2")
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == CLIENTS[2:8]
    assert round_.store.open_uploads(round_.keys.result) == []
    assert {rejection["client"] for rejection in round_.manifest()["rejected"]} == {"c00", "c01"}


def test_the_first_group_of_an_eager_round_does_not_decide_on_the_layout(
    open_round: Callable[..., Round],
) -> None:
    round_, updates = eager(open_round)
    for index in (0, 1):
        round_.submit(CLIENTS[index], {"other": np.ones(4, "f4")}, 1)
    round_.plan(entered_at="1")
    round_.aggregate()
    for index in (2, 3, 4, 5, 6, 7):
        round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
    round_.plan(entered_at="2")
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert [c["client"] for c in round_.manifest()["contributors"]] == CLIENTS[2:8]
    assert "(the one the round was opened with): tensor" in round_.reason("c00")


def test_an_eager_round_that_was_opened_without_a_layout_fails_and_says_so(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS[:8], topology="lifl", eager=True, weights="counts")
    for index, seed in enumerate(range(8)):
        round_.submit(CLIENTS[index], small(seed), SAMPLES[index])
    with pytest.raises(PlanError, match=r"eager begins with the first group.* --layout FILE"):
        round_.plan(entered_at="1")


def test_nan_in_an_eager_round_plans_all_groups_again(open_round: Callable[..., Round]) -> None:
    round_, updates = eager(open_round)
    updates[1]["fc.double"][0] = np.inf
    for number, clients in enumerate([range(4), range(4, 8)]):
        for index in clients:
            round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
        round_.plan(entered_at=str(number))
        round_.aggregate()
        outcome = round_.finalize()
    assert outcome["status"] == "replan"
    round_.plan(outcome["attempt"], entered_at="3", reason=outcome["reason"])
    assert len(round_.tasks(0)) == 4
    round_.aggregate()
    assert round_.finalize() == {"status": "completed"}
    assert round_.manifest()["groups"] == [[1, 2, 2, 2], [2, 2], [2]]


def test_an_update_after_its_group_was_planned_is_late_and_others_are_not(
    open_round: Callable[..., Round],
) -> None:
    round_, updates = eager(open_round)
    for index in (0, 1):
        round_.submit(CLIENTS[index], updates[index], SAMPLES[index])
    round_.plan(entered_at="1")
    etag = round_.submit("c00", updates[5], 1)
    late = collect_update(round_.store, round_.keys.update("c00"), etag)
    assert late["status"] == "ignored"
    assert "uploaded after the round was planned" in late["reason"]
    etag = round_.submit("c05", updates[5], 1)
    in_time = collect_update(round_.store, round_.keys.update("c05"), etag)
    assert in_time["status"] == "accepted"


def test_finalizing_before_all_levels_are_done_is_rejected(
    open_round: Callable[..., Round],
) -> None:
    round_ = open_round(clients=CLIENTS, topology="lambda_fl")
    submit_all(round_)
    round_.plan()
    for task in round_.tasks(0):
        round_.run(task)
    with pytest.raises(PlanError, match="task 0 of level 1 has not been done, of 5 tasks"):
        round_.finalize()
