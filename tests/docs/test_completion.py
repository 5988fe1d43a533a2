"""Completion in shells, as docs/commands.md says to set it up."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from gradshard.cli import main
from tests.docs.pages import ROOT
from tests.docs.session import COMMANDS

PAGE = (ROOT / "docs" / "commands.md").read_text()
SOURCES = {
    shell: re.findall(rf"^.*_GRADSHARD_COMPLETE={shell}_source gradshard.*$", PAGE, re.MULTILINE)
    for shell in ("bash", "zsh", "fish")
}


@pytest.mark.parametrize("shell", SOURCES)
@pytest.mark.parametrize(
    ("words", "begun", "completed"),
    [
        ([], "sub", "submit"),
        (["open", "r1"], "--min", "--min-clients"),
        (["open", "r1", "--topology"], "la", "lambda_fl"),
        (["local"], "d", "down"),
    ],
)
def test_commands_options_and_choices_are_completed(
    shell: str, words: list[str], begun: str, completed: str
) -> None:
    assert len(SOURCES[shell]) == 1
    kind = get_completion_class(shell)
    assert kind
    completion = kind(main, {}, "gradshard", "_GRADSHARD_COMPLETE")
    assert [item.value for item in completion.get_completions(words, begun)] == [completed]


def test_the_line_for_bash_sets_it_up(tmp_path: Path) -> None:
    [line] = SOURCES["bash"]
    script = tmp_path / "script"
    # What bash does when Tab is pressed.
    script.write_text(
        f"{line}\n"
        "COMP_WORDS=(gradshard open r1 --top); COMP_CWORD=3\n"
        "complete -p gradshard\n"
        '_gradshard_completion gradshard --top r1; echo "${COMPREPLY[@]}"\n'
    )
    said = _run("bash", script)
    assert "complete -o nosort -F _gradshard_completion gradshard" in said
    assert said.endswith("--topology\n")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_line_for_another_shell_is_read_by_it(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here")
    [line] = SOURCES[shell]
    script = tmp_path / "script"
    if shell == "zsh":
        script.write_text(
            f"autoload -U compinit; compinit -u -D\n{line}\necho $_comps[gradshard]\n"
        )
        assert _run(shell, script) == "_gradshard_completion\n"
    else:
        folder = tmp_path / ".config" / "fish" / "completions"
        folder.mkdir(parents=True)
        script.write_text(f"{line}\ncomplete -C 'gradshard open r1 --top'\n")
        assert "--topology" in _run(shell, script, HOME=str(tmp_path))


def _run(shell: str, script: Path, **variables: str) -> str:
    path = os.pathsep.join([str(COMMANDS), os.environ["PATH"]])
    return subprocess.run(
        [shell, script],
        env=os.environ | {"PATH": path} | variables,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    ).stdout
