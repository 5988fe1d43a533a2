"""The command as a whole: errors in one line, interrupts, completion."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import gradshard
from gradshard.client import federation
from gradshard.client.round_status import StatusPoller
from gradshard.client.stack import Stack
from gradshard_core.errors import RoundNotFoundError
from tests.unit.cli.commands import Run, assert_one_line
from tests.unit.fakes import MemoryStore


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["open", "r1"], "--client"),
        (["open", "r1", "--client", "a", "--clients", 3], "--client"),
        (["open", "r1", "--clients", 0], "clients is 0"),
        (["open", "r1", "--clients", 100_001], "clients is 100001"),
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


def test_debug_shows_the_traceback(run: Run) -> None:
    with pytest.raises(RoundNotFoundError):
        run("show", "nope", "--debug")


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
