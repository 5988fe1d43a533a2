"""``gradshard fetch``."""

from pathlib import Path

from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStore


def test_fetch_of_a_failed_round(run: Run, opened: MemoryStore, tmp_path: Path) -> None:
    opened.put_json(
        "rounds/r1/manifest.json", {"status": "failed", "error": "E", "cause": "nobody came"}
    )
    assert_one_line(run("fetch", "r1", "-o", tmp_path / "x"), "nobody came", code=3)
    assert list(tmp_path.iterdir()) == []
