"""What a script sees of commands, and the rounds that they are tried on."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

from rich.console import Console, RenderableType


class Result(NamedTuple):
    """What a script sees of a command."""

    exit_code: int
    stdout: str
    stderr: str


Run = Callable[..., Result]

MANIFEST: dict[str, Any] = {
    "round": "r1",
    "status": "completed",
    "shards": 2,
    "groups": [[1]],
    "contributors": [{"client": "a", "samples": 7, "weight": 1.0, "nbytes": 124}],
    "tasks": [{"level": 0}, {"level": 0}],
    "totals": {
        "tasks": 2,
        "gets": 5,
        "puts": 3,
        "bytes_read": 48_000_000,
        "bytes_written": 24,
        "peak_mb": 77.0,
        "longest_seconds": 0.3,
    },
    "projected": {"dollars": {"total": 0.0014}},
    "waited_seconds": 42.0,
    "seconds": 1.25,
}

REPORT: dict[str, Any] = {
    "level": 0,
    "task": 0,
    "attempt": 0,
    "start": 0,
    "end": 12,
    "started_at": "2026-01-01T00:01:00.250+00:00",
    "seconds": 1.5,
    "cpu_seconds": 0.2,
    "peak_mb": 41.0,
    "gets": 3,
    "puts": 2,
    "retries": 0,
    "bytes_read": 12,
    "bytes_written": 12,
    "is_cold": True,
    "is_written": True,
    "rejected": [],
}


def assert_one_line(result: Result, text: str, code: int = 1) -> None:
    # Errors of usage name the help.
    assert result.exit_code == (2 if result.stderr.endswith("--help`.\n") else code)
    assert result.stdout == ""
    assert result.stderr.startswith("gradshard: ")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1


def drawn(picture: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(picture)
    return console.export_text()
