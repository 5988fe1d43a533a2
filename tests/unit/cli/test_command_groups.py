"""The top of the command line: it loads little, and helps with mistakes."""

import subprocess
import sys

import pytest

from gradshard.cli import SECTIONS, main, papers
from gradshard.cli.command_groups import Lazy

LAZY = [
    lazy
    for sections in (SECTIONS, papers.SECTIONS)
    for members in sections.values()
    for lazy in members
]


@pytest.mark.parametrize("lazy", LAZY, ids=lambda lazy: lazy.name)
def test_the_help_of_a_command_begins_with_its_line_in_the_list(lazy: Lazy) -> None:
    command = lazy.load()
    assert command.name == lazy.name
    assert (command.help or "").startswith(f"{lazy.help}\n") or command.help == lazy.help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_load_no_command(arguments: list[str]) -> None:
    program = (
        "import sys, atexit; from gradshard.cli import main\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert not loaded & {"boto3", "botocore", "numpy", "rich"}


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["opne"], prog_name="gradshard")
    assert ended.value.code == 2
    assert "Did you mean `gradshard open`?" in capsys.readouterr().err
