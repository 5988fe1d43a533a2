"""``gradshard show``."""

import json

import pytest
from rich.console import Group

from gradshard.cli import show
from gradshard.client.round import Round
from tests.unit.cli.commands import MANIFEST, Run, drawn
from tests.unit.fakes import MemoryStack, MemoryStore


def test_show_a_finished_round(run: Run, finished: MemoryStore) -> None:
    result = run("show", "r1")
    assert result.exit_code == 0
    for text in ("completed", "48.0 MB in 5 GETs", "$1.40 per 1000 rounds", "NaN", "2 of 2 done"):
        assert text in result.stdout


def test_show_as_json(run: Run, finished: MemoryStore) -> None:
    status = json.loads(run("show", "r1", "--json").stdout)
    assert status["state"] == "completed"
    assert status["manifest"] == MANIFEST


def test_control_characters_of_clients_are_escaped(run: Run, opened: MemoryStore) -> None:
    reason = "tensor '\x1b[2J\u202e[red]x\n' is odd"
    opened.put_json("rounds/r1/rejections/a.json", {"client": "a", "reason": reason, "late": False})
    opened.put_json("rounds/r1/manifest.json", {"status": "failed", "error": "E", "cause": reason})
    for command in ("show", "watch"):
        result = run(command, "r1")
        output = result.stdout + result.stderr
        assert "\x1b" not in output
        assert "\u202e" not in output
        assert r"\x1b[2J\u202e[red]x\n" in output.replace("\n", "").replace(" ", "")


def test_a_narrow_terminal_cuts_nothing_off(finished: MemoryStore, stack: MemoryStack) -> None:
    contributors = [
        {"client": f"hospital-number-{number}", "samples": 7, "weight": 0.5, "nbytes": 124}
        for number in (1, 2)
    ]
    finished.put_json("rounds/r1/manifest.json", MANIFEST | {"contributors": contributors})
    seen = drawn(Group(*show.render(Round(stack, "r1").status())), width=40)
    rows = [line for line in seen.splitlines() if line.startswith("│")]
    assert "…" not in "".join(rows)
    assert "".join(row.split()[1] for row in rows[:2]) == "hospital-number-1"


def test_nested_json_is_rejected(run: Run, opened: MemoryStore) -> None:
    result = run("open", "r2", "--clients", 1, "--rule", "[" * 200_000)
    assert result.exit_code != 0
    assert "is not JSON" in result.stderr
    assert len(result.stderr) < 1000


@pytest.mark.parametrize(("score", "columns"), [("norm", 4), ("Krum score", 5)])
def test_a_score_that_is_the_norm_is_shown_once(score: str, columns: int) -> None:
    entry = {"client": "a", "norm": 2.0, "score": 2.0, "weight": 0.5, "full_weight": 1.0}
    table = show._decision({"rule": {"name": "norm_clip"}, "score": score, "clients": [entry]})
    assert len(table.columns) == columns
    assert all(len([*column.cells]) == 1 for column in table.columns)
