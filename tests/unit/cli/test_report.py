"""``gradshard report``."""

import json
import shutil
from pathlib import Path

import pytest

from gradshard_core.costs.lambda_config import LambdaConfig
from gradshard_core.costs.round_projection import project
from gradshard_core.costs.workload import Workload
from tests.unit.cli.commands import REPORT, Run, assert_one_line
from tests.unit.client.test_federation import execution, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore


class TestReport:
    @pytest.fixture
    def reported(self, opened: MemoryStore) -> MemoryStore:
        """Give a round of two tasks, of which one has been done."""
        projected = project(Workload(24, ((1,),)), 2, LambdaConfig(512, "x86_64")).to_json()
        opened.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, projected=projected))
        opened.put_json("rounds/r1/task-reports/0/00000.json", REPORT)
        return opened

    def test_writes_one_page(self, run: Run, reported: MemoryStore, tmp_path: Path) -> None:
        result = run("report", "r1", "-o", tmp_path / "page.html")
        assert (result.exit_code, result.stderr) == (0, "")
        assert "page.html: 1 round, " in result.stdout
        written = (tmp_path / "page.html").read_text()
        assert written.startswith("<!DOCTYPE html>")
        assert "1 of 2" in written

    def test_goes_to_a_file_of_its_own_name_where_none_is_given(
        self, run: Run, reported: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert run("report", "r1").exit_code == 0
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_report_as_json_has_the_data_of_the_page_and_writes_no_page(
        self, run: Run, reported: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        document = json.loads(run("report", "r1", "r1", "--json").stdout)
        [facts] = document["rounds"]
        assert (facts["state"], facts["tasks_done"], facts["tasks_planned"]) == (
            "aggregating",
            1,
            2,
        )
        assert facts["tasks"][0]["seconds"] == 1.5
        assert facts["dollars"]["measured"]["lambda"] > 0
        assert [entry["round"] for entry in document["compared"]] == ["r1"]
        assert list(tmp_path.iterdir()) == []

    def test_of_an_unknown_round(self, run: Run, reported: MemoryStore, tmp_path: Path) -> None:
        result = run("report", "r1", "nope", "-o", tmp_path / "page.html")
        assert_one_line(result, "there is no round 'nope'")
        assert list(tmp_path.iterdir()) == []

    def test_into_a_folder_that_is_not_there(
        self, run: Run, reported: MemoryStore, tmp_path: Path
    ) -> None:
        result = run("report", "r1", "-o", tmp_path / "no" / "page.html")
        assert_one_line(result, f"there is no folder {tmp_path}/no to write page.html to")

    def test_of_no_round(self, run: Run) -> None:
        assert_one_line(run("report"), "Missing argument")

    def test_of_a_round_that_failed_without_a_manifest(
        self, run: Run, opened: MemoryStore, stack: MemoryStack, tmp_path: Path
    ) -> None:
        stack.executions["r1"] = execution("FAILED", cause="it burnt")
        assert run("report", "r1", "-o", tmp_path / "page.html").exit_code == 0
        assert "it burnt" in (tmp_path / "page.html").read_text()

    def test_leaves_the_page_that_was_there_when_the_disk_is_full(
        self, run: Run, reported: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "page.html").write_text("the one before")
        usage = shutil.disk_usage(tmp_path)._replace(free=3)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        result = run("report", "r1", "-o", tmp_path / "page.html")
        assert_one_line(result, "are needed on this disk, and 3 B are free")
        assert (tmp_path / "page.html").read_text() == "the one before"
