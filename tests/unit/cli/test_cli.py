"""The command line, against a bucket in memory."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import Mock

import numpy as np
import pytest
from rich.console import Console, Group, RenderableType
from safetensors.numpy import save_file

import gradshard
from gradshard.cli import main, show, watch
from gradshard.client import federation, opening
from gradshard.client.federation import Federation
from gradshard.client.round import Round
from gradshard.client.stack import Stack
from gradshard.client.status import StatusPoller
from gradshard.client.ticket_round import TicketRound
from gradshard.client.tickets import Ticket
from gradshard.deployment import local_engine
from gradshard.deployment.local_engine import Engine
from gradshard.utils import polling
from gradshard.utils.interrupts import INTERRUPTED
from gradshard.utils.text import escape_terminal
from gradshard_core.errors import RoundNotFoundError
from gradshard_core.planning.lambda_config import DEFAULT_MEMORY_MB, LambdaConfig
from gradshard_core.planning.projection import project
from gradshard_core.planning.workload import Workload
from tests.unit.client.test_federation import OPENED, execution, plan_json
from tests.unit.fakes import MemoryStack, MemoryStore


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


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(autouse=True)
def stack(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> MemoryStack:
    stack = MemoryStack(store)
    monkeypatch.setattr(federation, "Stack", lambda *_, **__: stack)
    monkeypatch.setattr(polling, "FIRST_PAUSE_SECONDS", 0.01)
    return stack


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments], prog_name="gradshard")
        code = ended.value.code
        assert isinstance(code, int)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def opened(store: MemoryStore) -> MemoryStore:
    store.put_json("rounds/r1/spec.json", OPENED)
    return store


@pytest.fixture
def finished(opened: MemoryStore) -> MemoryStore:
    projected = {"seconds": 1.7, "memory_mb": 256, "needed_mb": 103.0}
    opened.put_json("rounds/r1/plan.json", plan_json({"a": "x"}, projected=projected))
    opened.put_json("rounds/r1/manifest.json", MANIFEST)
    return opened


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file({"w": np.ones(3)}, tmp_path / "u.safetensors")
    return tmp_path / "u.safetensors"


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


def test_open_prints_one_json_document(run: Run, opened: MemoryStore) -> None:
    result = run("open", "r1", "--client", "a", "--client", "b", "--timeout", 600, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == {
        "round": "r1",
        "bucket": "memory",
        "spec": OPENED["spec"],
    }
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["open", "r1"], "--client"),
        (["open", "r1", "--client", "a", "--clients", 3], "--client"),
        (["open", "r1", "--clients", 0], "clients is 0"),
        (["open", "r1", "--clients", 4097], "clients is 4097"),
        (["open", "r1", "--clients", 2, "--min-clients", 3], "min_clients is 3"),
        (
            ["open", "r1", "--clients", 2, "--shards", 2, "--time-budget", 9],
            "shards or time_budget",
        ),
        (["open", "../r1", "--clients", 2], "round id '../r1'"),
        (["open", "mönday", "--clients", 2], "'mönday' is not 1 to 64 ASCII letters"),
        (["open", "r\x1b[2J", "--clients", 2], r"round id 'r\x1b[2J'"),
        (["submit", "r1", "a", "/no/such.file", "--samples", 3], "/no/such.file: No such file"),
        (["submit", "r1", "a", "/no/such.file", "--samples", "x"], "--samples"),
        (["show", "nope"], "there is no round 'nope'"),
        (["watch", "nope"], "there is no round 'nope'"),
        (["fetch", "nope", "-o", "x"], "there is no round 'nope'"),
        (["fetch", "r1"], "--output"),
        (["fetch", "-o", "x"], "Give the ROUND, or a --ticket"),
        (["show"], "Give the ROUND, or a --ticket"),
        (["watch"], "Give the ROUND, or a --ticket"),
        (["submit", "r1", "a"], "Give ROUND, CLIENT and FILE"),
        (["submit"], "Give ROUND, CLIENT and FILE"),
        (["submit", "--ticket", "t"], "Give ROUND, CLIENT and FILE"),
        (["submit", "--ticket", "/no/such.ticket", "u"], "/no/such.ticket: No such file"),
        (["ticket", "nope", "a", "--max-size", "1MB"], "there is no round 'nope'"),
        (["nosuch"], "nosuch"),
    ],
)
def test_a_users_error_is_one_line(run: Run, arguments: list[Any], text: str) -> None:
    assert_one_line(run(*arguments), text)


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


@pytest.mark.usefixtures("opened")
class TestTicket:
    @pytest.fixture
    def ticket(self, run: Run, opened: MemoryStore, tmp_path: Path) -> Path:
        result = run("ticket", "r1", "a", "-o", tmp_path / "a.ticket", "--max-size", "2MB")
        assert result.exit_code == 0
        assert "one update of at most 2.0 MB by a to round r1, until 20" in result.stdout
        assert "http" not in result.stdout
        return tmp_path / "a.ticket"

    def test_is_written_where_nothing_is(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        made = ("ticket", "r1", "a", "--max-size", "2MB", "--expires", "2h")
        said = json.loads(run(*made, "--json").stdout)
        assert (said["file"], said["max_bytes"], said["temporary"]) == (
            "r1-a.ticket",
            2_000_000,
            False,
        )
        assert "X-Amz-Expires=7200" in Path("r1-a.ticket").read_text()
        assert_one_line(run(*made), "r1-a.ticket: is there already")

    def test_leaves_no_half_of_itself(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(Ticket, "dumps", Mock(side_effect=full))
        result = run("ticket", "r1", "a", "-o", tmp_path / "t", "--max-size", "2MB")
        assert_one_line(result, f"{tmp_path}/t: No space left on device")
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ([], "--max-size"),
            (["--max-size", "3TB"], "max_bytes is 3000000000000"),
            (["--max-size", "1MB", "--expires", "8d"], "'8d' is too long: at most 7d"),
            (["--max-size", "1MB", "--expires", "1.5"], "expires is 1.5"),
        ],
    )
    def test_that_cannot_be_made(
        self, run: Run, tmp_path: Path, options: list[str], text: str
    ) -> None:
        assert_one_line(run("ticket", "r1", "a", "-o", tmp_path / "t", *options), text)
        assert not (tmp_path / "t").exists()

    def test_of_another_round_or_client(self, run: Run, ticket: Path, file: Path) -> None:
        text = "a.ticket is a ticket of round 'r1', not 'r2'"
        for command in (["show", "r2"], ["watch", "r2"], ["fetch", "r2", "-o", "x"]):
            assert_one_line(run(*command, "--ticket", ticket), text)
        submit = ("submit", "--ticket", ticket)
        assert_one_line(run(*submit, "r2", "a", file), text)
        assert_one_line(run(*submit, "r1", "b", file), "is a ticket of client 'a', not 'b'")

    def test_that_is_another_file(self, run: Run, file: Path) -> None:
        assert_one_line(run("show", "--ticket", file), "is not a ticket: give the file that")

    def test_a_rejection_with_control_characters_is_escaped(
        self, run: Run, ticket: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(TicketRound, "wait", lambda _: None)
        monkeypatch.setattr(TicketRound, "rejection", lambda _: "tensor '\x1b[2J' holds NaN")
        monkeypatch.setattr(
            TicketRound,
            "status",
            lambda self: {
                "round": "r1",
                "client": "a",
                "state": "completed",
                "uploaded": 5,
                "reason": self.rejection(),
                "expires_at": "2026",
            },
        )
        for command in ("watch", "show"):
            result = run(command, "--ticket", ticket)
            assert result.exit_code == 0
            assert "\x1b" not in result.stdout
            assert r"tensor '\x1b[2J' holds NaN" in result.stdout


def test_submit_of_a_bad_file(run: Run, opened: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junkjunkjunk")
    assert_one_line(run("submit", "r1", "a", tmp_path / "junk", "--samples", 7), "junk: not a safe")
    assert "rounds/r1/updates/a.safetensors" not in opened.objects


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(RoundNotFoundError):
        run("show", "nope", "--debug")


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


def test_watch_ends_well_with_the_round(run: Run, finished: MemoryStore) -> None:
    result = run("watch", "r1")
    assert result.exit_code == 0
    assert result.stdout == (
        "completed: 0 of 2 updates in (1 rejected), 2 of 2 tasks done, 24 B read\n"
        "1 averaged, 1 rejected, 0 missing\n"
    )


@pytest.mark.parametrize(
    ("clients", "text"),
    [
        (["a", "b"], "1 of 2 updates in, waiting for b"),
        (["a", "b", "c"], "1 of 3 updates in, waiting for b and c"),
        ([*"abcdefgh"], "1 of 8 updates in, waiting for b, c, d, e, f and 2 more"),
        (3, "1 of 3 updates in, waiting for 2 more clients"),
    ],
)
def test_watch_names_the_missing_clients(
    run: Run,
    store: MemoryStore,
    stack: MemoryStack,
    monkeypatch: pytest.MonkeyPatch,
    clients: Any,
    text: str,
) -> None:
    terms = {"clients": clients, "min_clients": 1, "timeout": 600}
    store.put_json("rounds/r1/spec.json", OPENED | {"spec": terms})
    store.put_bytes("rounds/r1/updates/a.safetensors", b"1234")
    assert text.replace(",", "", 1) in " ".join(TestWatchOnATerminal.seen(stack).split())
    looks = iter(["RUNNING", "FAILED"])
    monkeypatch.setattr(stack, "execution", lambda _: execution(next(looks)))
    result = run("watch", "r1")
    assert result.stdout == f"awaiting: {text}\n"


def test_watch_fails_with_the_round(run: Run, opened: MemoryStore, stack: MemoryStack) -> None:
    stack.executions["r1"] = execution("FAILED", cause="it burnt")
    assert "rounds/r1/manifest.json" not in opened.objects
    assert_one_line(run("watch", "r1"), "it burnt", code=3)


def test_a_round_that_is_opened_again_after_its_end_says_so(
    run: Run, finished: MemoryStore, stack: MemoryStack
) -> None:
    terms = ("open", "r1", "--client", "a", "--client", "b", "--timeout", 600)
    finished.put_json("rounds/r1/spec.json", OPENED)
    # As one does whose updates are there already.
    assert "r1 is open for 2 clients" in run(*terms).stdout, "it ended while it was opened"
    stack.executions["r1"] = execution("SUCCEEDED")
    assert "r1 was opened before, with these options, and has ended" in run(*terms).stdout


def test_a_round_with_the_layout_of_a_file(
    run: Run, stack: MemoryStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "OPENING_SECONDS", 0.0)
    # Not an update: it says nothing of samples.
    save_file({"w": np.zeros((3, 2), "f4"), "b": np.zeros(2, "i8")}, tmp_path / "model")
    run("open", "r1", "--clients", 2, "--layout", tmp_path / "model")
    assert json.loads(stack.started[0])["layout"] == {
        "w": {"dtype": "F32", "shape": [3, 2]},
        "b": {"dtype": "I64", "shape": [2]},
    }
    (tmp_path / "other").write_bytes(b"x")
    asked = ("open", "r1", "--clients", 2, "--layout", tmp_path / "other")
    assert_one_line(run(*asked), "other: not a safetensors object")


def test_fetch_of_a_failed_round(run: Run, opened: MemoryStore, tmp_path: Path) -> None:
    opened.put_json(
        "rounds/r1/manifest.json", {"status": "failed", "error": "E", "cause": "nobody came"}
    )
    assert_one_line(run("fetch", "r1", "-o", tmp_path / "x"), "nobody came", code=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "nbytes"),
    [
        ("512MB", 512_000_000),
        ("1GiB", 2**30),
        ("43.5MB", 43_500_000),
        ("5e9", 5 * 10**9),
        ("7 kib", 7168),
        ("100B", 100),
    ],
)
def test_plan_reads_sizes(run: Run, size: str, nbytes: int) -> None:
    result = run("plan", "--size", size, "--clients", 2, "--json")
    assert json.loads(result.stdout)["nbytes"] == nbytes


@pytest.mark.parametrize("size", ["", "MB", "1XB", "-1MB", "0", "1iB", "1e999", "nan"])
def test_plan_rejects_other_sizes(run: Run, size: str) -> None:
    assert_one_line(run("plan", "--size", size, "--clients", 2), "'--size'")


@pytest.mark.parametrize("size", ["512", " 1000 "])
def test_a_size_without_a_unit_is_asked_for_one(run: Run, size: str) -> None:
    number = size.strip()
    told = f"{size!r} has no unit: write {number}MB, {number}MiB or {number}B"
    assert_one_line(run("plan", "--size", size, "--clients", 2), told)
    assert_one_line(run("papers", "cost", "--size", size), told)


@pytest.mark.parametrize("size", ["1MB", "512MB", "5GB"])
@pytest.mark.parametrize(
    "options", [[], ["--time-budget", 30], ["--shards", 1], ["--memory", 1024]]
)
def test_plan_leads_with_its_answer_and_shows_five_rows(
    run: Run, size: str, options: list[Any]
) -> None:
    result = run("plan", "--size", size, "--clients", 20, *options)
    if size == "5GB" and "--shards" in options:
        assert result.exit_code == 1
        return
    assert "at " in result.stdout.splitlines()[0]
    assert "the planner takes M=" in " ".join(result.stdout.split())
    rows = [line for line in result.stdout.splitlines() if line.count("│") > 2]
    assert len(rows) <= 5
    assert result.stdout.count("→") == 1
    everything = run("plan", "--size", size, "--clients", 20, *options, "--all").stdout
    all_rows = [line for line in everything.splitlines() if line.count("│") > 2]
    assert set(rows) <= set(all_rows)
    if len(all_rows) > 5:
        assert (rows[0], rows[-1]) == (all_rows[0], all_rows[-1])
        assert f"{len(all_rows) - len(rows)} more with --all" in result.stdout
    else:
        assert "--all" not in result.stdout


def test_the_default_memory_is_where_more_buys_no_time(run: Run) -> None:
    """The template's: at the price of the smallest function, in a quarter less time."""
    plans = {
        memory: json.loads(
            run("plan", "--size", "512MB", "--clients", 20, "--memory", memory, "--json").stdout
        )["choice"]
        for memory in (128, DEFAULT_MEMORY_MB, 256)
    }
    smallest, default, larger = plans.values()
    assert default["dollars"]["total"] <= 1.01 * smallest["dollars"]["total"]
    assert default["seconds"] <= 0.75 * smallest["seconds"]
    assert larger["dollars"]["total"] > 1.05 * default["dollars"]["total"]
    assert larger["seconds"] >= 0.99 * default["seconds"]


def test_plan_leaves_out_rows_that_hardly_differ(run: Run) -> None:
    arguments = ("plan", "--size", "5GB", "--clients", 20)
    frontier = json.loads(run(*arguments, "--json").stdout)["frontier"]
    shown = run(*arguments, "--all").stdout.splitlines()
    rows = [line for line in shown if line.count("│") > 2]
    assert 5 < len(rows) < len(frontier) / 2


def test_plan_of_given_shards(run: Run) -> None:
    document = json.loads(
        run("plan", "--size", "512MB", "--clients", 20, "--shards", 4, "--json").stdout
    )
    assert document["choice"]["shards"] == 4
    assert {projection["shards"] for projection in document["frontier"]} == {4}
    dollars = document["choice"]["dollars"]
    assert dollars["total"] == pytest.approx(
        dollars["full"]
        + sum(dollars[part] for part in ("requests", "step_functions", "round", "events", "starts"))
    )


def test_plan_for_the_deployed_functions(run: Run) -> None:
    document = json.loads(
        run("plan", "--size", "1GB", "--clients", 2, "--stack", "mine", "--json").stdout
    )
    assert document["choice"]["memory_mb"] == 512
    assert document["architecture"] == "x86_64"


def test_plan_of_more_clients_than_a_task_holds_is_a_grid(run: Run) -> None:
    result = run("plan", "--size", "5GB", "--clients", 1000, "--json")
    document = json.loads(result.stdout)
    assert document["topology"] == "grid"
    assert document["levels"] == [[63] * 15 + [55], [16]]
    assert document["choice"]["tasks"] == 17 * document["choice"]["shards"]
    assert document["choice"]["needed_mb"] <= 128


@pytest.mark.parametrize(
    ("options", "topology", "levels", "memory_mb"),
    [
        (["--topology", "lambda_fl"], "lambda_fl", [[5] * 4, [4]], 128),
        (["--topology", "lifl", "--fan-in", 5], "lifl", [[5] * 4, [4]], 128),
        (["--order", "tree:4,5"], "shards", [[20]], 128),
        (["--topology", "grid", "--order", "tree:4,5"], "grid", [[4] * 5, [5]], 128),
    ],
)
def test_plan_in_a_topology(
    run: Run, options: list[Any], topology: str, levels: list[list[int]], memory_mb: int
) -> None:
    result = run("plan", "--size", "500MB", "--clients", 20, *options, "--json")
    document = json.loads(result.stdout)
    assert (document["topology"], document["levels"]) == (topology, levels)
    assert document["choice"]["tasks"] == document["choice"]["shards"] * sum(map(len, levels))
    assert document["choice"]["needed_mb"] <= memory_mb
    assert run("plan", "--size", "500MB", "--clients", 20, *options).exit_code == 0


@pytest.mark.parametrize("clients", [20, 1000])
@pytest.mark.parametrize("size", ["5GB", "50GB", "500GB"])
def test_plan_is_quick_for_any_size(run: Run, size: str, clients: int) -> None:
    began = time.process_time()
    assert run("plan", "--size", size, "--clients", clients).exit_code == 0
    # Thrice what it takes: enough to tell 700 M from 10,000.
    assert time.process_time() - began < 2.5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--shards", 2, "--time-budget", 3], "not both"),
        (["--time-budget", 0.01], "no M aggregates within 0.01 s"),
        (["--time-budget", "nan"], "--time-budget"),
        (["--memory", 64], "--memory"),
        (["--topology", "ring"], "'ring' is not one of"),
        (["--topology", "lambda_fl", "--fan-in", 1], "fan_in is 1"),
        (["--topology", "lambda_fl", "--shards", 2], "lambda_fl adds whole updates"),
        (["--fan-in", 4], "topology shards has no groups"),
        (["--order", "tree:3,5"], "adds 20 contributors up to 2 sums, not to one: give tree:3,5,2"),
        (["--order", "tree:"], "order is 'tree:'"),
    ],
)
def test_plan_rejects(run: Run, options: list[Any], text: str) -> None:
    assert_one_line(run("plan", "--size", "512MB", "--clients", 20, *options), text)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--size", "5GB", "--clients", 4097], "4097"),
        (["--size", "6GB", "--clients", 20, "--topology", "lifl"], "at least 2 shards, since S3"),
        (
            ["--size", "500GB", "--clients", 20, "--shards", 10],
            "an update of 500000000000 bytes takes at least 94 shards",
        ),
        (["--size", "100TB", "--clients", 2], "a round takes at most 10000"),
        (["--size", "5GB", "--clients", 65, "--topology", "shards"], "over the 64 streams"),
    ],
)
def test_plan_rejects_beyond_the_limits(run: Run, arguments: list[Any], text: str) -> None:
    assert_one_line(run("plan", *arguments), text)


@pytest.mark.parametrize("pid", [None, 42])
def test_local_status_is_the_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pid: int | None
) -> None:
    engine = Engine(port=4566, pid=pid, folder=tmp_path, deployed=pid is not None)
    monkeypatch.setattr(local_engine, "status", lambda _port: engine)
    monkeypatch.setattr(local_engine, "has_application", lambda _engine: True)
    result = run("local", "status", "--json")
    assert result.exit_code == (0 if pid else 1)
    assert json.loads(result.stdout)["running"] is (pid is not None)


def test_no_engine_is_said_plainly(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(federation, "Stack", Stack)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    said = "no local engine is running on port 4566: start it with `gradshard local up`"
    assert_one_line(run("show", "r1", "--local"), said)
    said = "no local engine is running on port 4999: start it with `gradshard local up --port 4999`"
    assert_one_line(run("show", "r1", "--local", "--port", 4999), said)


def test_an_interruption_prints_one_line(
    run: Run, opened: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StatusPoller, "poll", Mock(side_effect=KeyboardInterrupt))
    assert_one_line(run("show", "r1"), "interrupted; the same command may be given again")


def test_little_is_imported_before_an_interrupt_is_answered() -> None:
    code = (
        "import sys; before = set(sys.modules); import gradshard.__main__;"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    # -S: the packages of this environment may load anything at its start.
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PYTHONPATH": str(Path(gradshard.__path__[0]).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "gradshard" in loaded
    assert not loaded & {"typing", "re", "click", "gradshard_core"}


def test_an_interruption_while_loading_prints_one_line(tmp_path: Path) -> None:
    slow = "import sys, time\nprint('loading', file=sys.stderr, flush=True)\ntime.sleep(60)"
    (tmp_path / "botocore.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), *sys.path])
    # A process in the background is started so that it ignores interrupts.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += "from gradshard.__main__ import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "show", "r1"],
        env=os.environ | {"PYTHONPATH": path},
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stderr is not None
        assert command.stderr.readline() == "loading\n"
        command.send_signal(signal.SIGINT)
        said = command.stderr.read()
    assert said == "gradshard: interrupted; the same command may be given again\n"
    assert command.returncode == 1


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


def test_shells_complete_commands(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_GRADSHARD_COMPLETE", "zsh_source")
    assert "#compdef gradshard" in run().stdout
    monkeypatch.setenv("_GRADSHARD_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "gradshard con")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().stdout == "plain,convert\n"
    monkeypatch.setenv("COMP_WORDS", "gradshard submit r1 a up")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert run().stdout == "file,up\n"


def test_plain_escapes_all_that_is_not_printed() -> None:
    assert escape_terminal("a b\t\x9b\u2028é漢[b]\ud800") == r"a b\t\x9b\u2028é漢[b]\ud800"


def test_cost_at_given_prices(run: Run) -> None:
    def dollars(*options: object) -> dict[str, float]:
        asked = (
            "papers",
            "cost",
            "--size",
            "512MB",
            "--system",
            "shards",
            "--shards",
            4,
            "--json",
            *options,
        )
        [system] = json.loads(run(*asked).stdout)["systems"]
        bill: dict[str, float] = system["bill"]
        return bill

    usual = dollars()
    dear = dollars("--price", "put_per_1000=0.01", "--price", "transitions_per_1000=0")
    # Four tasks write a part and a report each; PUTs cost twice the usual $0.005.
    assert dear["s3_aggregators"] - usual["s3_aggregators"] == pytest.approx(8 * 5e-6)
    # Seven states, a level and an execution at $0.025 a thousand less.
    assert usual["step_functions"] - dear["step_functions"] == pytest.approx(9 * 25e-6)
    assert dear["lambda"] == usual["lambda"]


@pytest.mark.parametrize(
    ("price", "text"),
    [
        ("put_per_1000=cheap", "'cheap' of 'put_per_1000=cheap' is not a number of dollars"),
        ("put_per_1000=-1", "is not a number of dollars"),
        ("put_per_1000=inf", "is not a number of dollars"),
        ("beer=1", "'beer=1' names no price; there are gb_second_x86_64"),
    ],
)
def test_prices_that_are_none(run: Run, price: str, text: str) -> None:
    assert_one_line(run("papers", "cost", "--size", "1GB", "--price", price), text)


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


class TestWatchOnATerminal:
    def test_shows_the_latest_arrivals_rejections_pace_and_cost(
        self, opened: MemoryStore, stack: MemoryStack
    ) -> None:
        projected = project(Workload(2**20, ((7,),)), 4, LambdaConfig(512, "x86_64")).to_json()
        clients = {f"c{n}": "x" for n in range(7)}
        opened.put_json(
            "rounds/r1/plan.json", plan_json(clients, shards=4, nbytes=2**20, projected=projected)
        )
        for client in clients:
            opened.put_bytes(f"rounds/r1/updates/{client}.safetensors", b"1234")
        for number in range(2):
            opened.put_json(
                f"rounds/r1/task-reports/0/0000{number}.json", REPORT | {"task": number}
            )
        reason = "tensor '\x1b[2J' is odd"
        record = {"client": "eve", "reason": reason, "late": False}
        opened.put_json("rounds/r1/rejections/eve.json", record)
        seen = self.seen(stack)
        for text in (
            "r1 ", "aggregating, open for 1 min", "7 of 2 updates in (2 rejected)",
            "2 of 4 tasks done", "3.7 MB of 7.3 MB read, 122.3 kB/s", "time left", "cost so far",
            "c6", r"tensor '\x1b[2J' is odd",
        ):  # fmt: skip
            assert text in seen, text
        # Five of the seven.
        assert seen.count("4 B") == 5

    def test_awaiting_says_how_long_the_deadline_is_off(
        self, opened: MemoryStore, stack: MemoryStack
    ) -> None:
        assert "awaiting, open for 1 min 30 s, 8 min 30 s to the deadline" in self.seen(stack)

    def test_fits_a_narrow_terminal(self, opened: MemoryStore, stack: MemoryStack) -> None:
        for client in "ab":
            opened.put_bytes(f"rounds/r1/updates/{client}.safetensors", b"1234")
        seen = self.seen(stack, width=40)
        assert "…" not in seen
        assert "2 of 2 updates" in seen

    @staticmethod
    def seen(stack: MemoryStack, width: int = 100) -> str:
        connected = Federation()
        connected.stack = stack
        observer = connected.round("r1").status_poller()
        status = observer.poll(check_execution=False)
        now = datetime.fromisoformat(str(OPENED["opened_at"])) + timedelta(seconds=90)
        return drawn(watch.View(observer, connected).render(status, now), width)


@pytest.mark.parametrize("command", [["fetch", "r1"], ["report", "r1"], ["model", "fetch"]])
def test_standard_output_takes_no_file(
    run: Run, finished: MemoryStore, command: list[str], tmp_path: Path
) -> None:
    with contextlib.chdir(tmp_path):
        result = run(*command, "-o", "-")
    assert result.exit_code != 0
    assert "Output cannot go to standard output (-), because the file appears" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_question_without_a_terminal(
    run: Run, opened: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> None:
        raise EOFError

    monkeypatch.setattr(StatusPoller, "poll", ask)
    assert_one_line(run("show", "r1"), "such as for the code of an MFA device")


@pytest.mark.parametrize(
    ("answer", "text"),
    [("", "standard input has no answer: answer in a terminal, or give --yes"), ("n\n", "")],
)
def test_rm_deletes_nothing_without_an_answer(
    run: Run, finished: MemoryStore, monkeypatch: pytest.MonkeyPatch, answer: str, text: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    before = dict(finished.objects)
    result = run("rm", "r1")
    assert result.exit_code == 1
    assert "gradshard: round 'r1' was left as it is" in result.stderr
    assert text in result.stderr
    assert "Aborted" not in result.stderr
    assert finished.objects == before


def test_rm_is_interrupted_at_its_question(
    run: Run, finished: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("click.termui.visible_prompt_func", ask)
    result = run("rm", "r1")
    assert result.exit_code == 1
    assert result.stderr.endswith(f"gradshard: {INTERRUPTED}\n")


def test_nested_json_is_rejected(run: Run, opened: MemoryStore) -> None:
    result = run("open", "r2", "--clients", 1, "--rule", "[" * 200_000)
    assert result.exit_code != 0
    assert "is not JSON" in result.stderr
    assert len(result.stderr) < 1000
