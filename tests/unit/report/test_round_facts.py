"""The facts about a round, behind the page and `gradshard report --json`."""

import re
from datetime import datetime, timedelta

import numpy as np
import pytest

from gradshard.client.round_status import StatusPoller
from gradshard.report.round_facts import compared, facts_of
from gradshard_core.costs.request_counts import count_requests
from gradshard_core.costs.round_cost import US_EAST_1
from tests.unit.fakes import MemoryStack
from tests.unit.in_memory import OPENED as OPENED_ROUND
from tests.unit.in_memory import Machine
from tests.unit.report_rounds import OPENED, arrival, sample, small, task


@pytest.mark.filterwarnings("ignore:No application metrics")
def test_a_task_record_has_its_start(machine: Machine) -> None:
    machine.open(clients=4, topology="lambda_fl")
    for name in "abcd":
        machine.submit(name, {"w": np.ones(1, "f4")})
    assert machine.turn(OPENED_ROUND) == {"status": "completed"}
    manifest = machine.store.get_json(machine.keys.manifest)
    stated = [task["started_at"] for task in manifest["tasks"]]
    assert all(re.fullmatch(r"[0-9-]{10}T[0-9:]{8}\.[0-9]{3}\+00:00", at) for at in stated)
    planned, *started, finished = map(
        datetime.fromisoformat, (manifest["planned_at"], *stated, manifest["finished_at"])
    )
    # The two of the leaves and then the root's; to the millisecond, which is cut off.
    assert len(started) == 3
    moments = [planned - timedelta(milliseconds=1), *started, finished]
    assert moments == sorted(moments)


@pytest.mark.filterwarnings("ignore:No application metrics")
@pytest.mark.parametrize("is_private", [True, False])
def test_a_report_of_a_private_round_has_no_norms(machine: Machine, is_private: bool) -> None:
    dp = {"clip": 1.0, "noise_multiplier": 1.1, "delta": 1e-5}
    machine.open(clients=3, **({"dp": dp} if is_private else {"rule": "norm_clip"}))
    for name in "abc":
        machine.submit(name, {"w": np.full(4, 2.34375, "f4")})
    assert machine.finish() == {"status": "completed"}
    observer = StatusPoller(MemoryStack(machine.store), machine.keys)
    facts = facts_of(
        observer.poll(),
        plan=observer.plan(),
        tasks=observer.tasks(),
        partial_updates=observer.partial_updates(),
        architecture="arm64",
    )
    assert ("4.6875" in str(facts)) is not is_private


class TestFacts:
    def test_a_task_starts_when_its_record_says(self) -> None:
        written = {**sample()["tasks"][0], "started_at": "2026-11-20T12:00:01.234+00:00"}
        [task] = small(tasks=[{**written, "seconds": 0.512}])["tasks"]
        assert task["started_at"] == "2026-11-20T12:00:01.234+00:00"
        assert task["ended_at"] == "2026-11-20T12:00:01.746000+00:00"

    def test_each_upload_has_its_fate(self) -> None:
        fates = {upload["client"]: upload["fate"] for upload in sample(clients=2)["uploads"]}
        assert fates == {
            "client-0000": "counted",
            "client-0001": "counted",
            "mallory": "rejected",
            "tardy": "late",
        }

    def test_an_upload_that_was_replaced_after_planning_has_no_time(self) -> None:
        facts = small(arrived=[arrival("a", etag="newer")], contributors={"a": "planned"})
        assert facts["contributors"][0]["arrived_at"] is None
        assert [found["fate"] for found in facts["uploads"]] == ["unused"]

    def test_a_partial_update_counts_if_there_is_no_finished_one(self) -> None:
        facts = small(partial_updates=[arrival("a", etag="grown")], contributors={"a": "grown"})
        assert facts["contributors"][0]["arrived_at"] == OPENED.isoformat()
        both = small(
            arrived=[arrival("a", etag="done")],
            partial_updates=[arrival("a", etag="grown")],
            contributors={"a": "done"},
        )
        assert len(both["uploads"]) == 1

    def test_a_client_with_a_partial_update_is_not_missing(self) -> None:
        facts = small(partial_updates=[arrival("b")], missing=["b", "c"])
        assert facts["missing"] == ["c"]
        assert [found["fate"] for found in facts["uploads"]] == ["unused"]

    def test_measured_dollars_follow_from_the_seconds_of_tasks(self) -> None:
        one, two = (small(tasks=[task(seconds)])["dollars"]["measured"] for seconds in (1.0, 2.0))
        # 256 MB on arm64.
        assert two["lambda"] - one["lambda"] == pytest.approx(0.25 * 0.0000133334)
        assert small(tasks=[])["dollars"]["measured"] is None

    def test_measured_dollars_include_requests_of_the_server_optimizer(self) -> None:
        plain, applied = (
            small(tasks=[task(1.0)], server_optimizer=apply)["dollars"]["measured"]
            for apply in (None, {"optimizer": "fedadam"})
        )
        # The model and two objects of state, as the planner counts them.
        besides = US_EAST_1.s3(count_requests([1], 1, models=3)) - US_EAST_1.s3(
            count_requests([1], 1)
        )
        assert besides > 0
        assert applied["round"] - plain["round"] == pytest.approx(besides)

    def test_a_round_without_plan_has_the_settings_of_its_spec(self) -> None:
        facts = facts_of(
            {
                "round": "r", "state": "awaiting", "cause": None, "manifest": None, "plan": None,
                "opened_at": OPENED.isoformat(), "deadline_at": None, "tasks_done": 0,
                "arrived": [arrival("a")], "missing": ["b"], "rejected": [], "late": [],
                "spec": {"clients": ["a", "b"], "rule": {"name": "salf", "p": 0.2}},
            },
            plan=None, tasks=[], partial_updates=[], architecture="arm64",
        )  # fmt: skip
        assert (facts["rule"], facts["topology"], facts["expected"]) == ("salf", "auto", 2)
        assert facts["uploads"][0]["fate"] == "waiting"
        assert facts["missing"] == ["b"]


class TestCompared:
    def test_a_completed_round_has_its_numbers(self) -> None:
        [done] = compared([sample(clients=3)])
        assert (done["contributors"], done["rejected"]) == (3, 1)
        assert done["dollars"] > 0
        assert done["seconds"] > 0

    @pytest.mark.parametrize("is_planned", [True, False])
    def test_a_failed_round_has_no_average_instead_of_zeros(self, is_planned: bool) -> None:
        [failed] = compared([sample(state="failed", cause="x", done=0, is_planned=is_planned)])
        assert (failed["contributors"], failed["seconds"]) == (None, None)
        assert (failed["dollars"], failed["cold_starts"]) == (None, None)

    def test_a_round_that_waits_has_no_contributors_yet(self) -> None:
        [waiting] = compared([sample(state="awaiting")])
        assert (waiting["contributors"], waiting["seconds"]) == (None, None)
