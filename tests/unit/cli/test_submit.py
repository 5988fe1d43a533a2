"""``gradshard submit``."""

from pathlib import Path

from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStore


def test_submit(run: Run, opened: MemoryStore, file: Path) -> None:
    result = run("submit", "r1", "a", file, "--samples", 7)
    assert result.exit_code == 0
    assert "to round r1 as a" in result.stdout
    assert "rounds/r1/updates/a.safetensors" in opened.objects
    assert "replaces" not in result.stdout
    again = run("submit", "r1", "a", file, "--samples", 7)
    assert "replaces" not in again.stdout
    other = run("submit", "r1", "a", file, "--samples", 8)
    assert other.stdout.endswith("to round r1 as a; it replaces the update sent before\n")


def test_submit_of_a_bad_file(run: Run, opened: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junkjunkjunk")
    assert_one_line(run("submit", "r1", "a", tmp_path / "junk", "--samples", 7), "junk: not a safe")
    assert "rounds/r1/updates/a.safetensors" not in opened.objects
