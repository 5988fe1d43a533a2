"""A page as one session: shell and Python share a folder, and what the shell exports stays."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tests.docs.pages import Block

SECONDS: Final = 300

_NUMBER: Final = re.compile(r"\d+(?:[.,:T+-]\d+)*Z?")
_UNIT: Final = re.compile(r"# (B|kB|MB|GB|KiB|MiB|GiB|s|ms)\b")
_SPACES: Final = re.compile(r"\s+")
_RULE: Final = re.compile(r"[─━═\-]{2,}|(?<=[┏┳┡╇└┴])[─━]")
_ANYTHING: Final = ("…", "⋮")


class Session:
    """A folder, variables, and a Python namespace.

    Parameters
    ----------
    folder
        Where it begins.
    commands
        Folders of commands, looked in before the others.
    port
        Where the local engine is; pages have it at the default port.
    python
        The interpreter, if Python blocks are to run in processes of their own.
    variables
        The environment; this process's by default.
    """

    def __init__(
        self,
        folder: Path,
        commands: tuple[Path, ...] = (),
        *,
        port: int,
        python: Path | None = None,
        variables: dict[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self._variables = dict(os.environ if variables is None else variables)
        self._variables["PATH"] = os.pathsep.join([*map(str, commands), self._variables["PATH"]])
        self._state = folder.with_name(f"{folder.name}.state")
        self._port, self._python = port, python
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._groups: list[int] = []
        folder.mkdir(parents=True)

    def run(self, block: Block) -> None:
        """Run a block, and compare what it prints with what it shows."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text)
        elif block.language == "sh":
            self._shell(block.text, block, block.exit_code)
        elif block.language == "console":
            steps = console_steps(block.text)
            for number, (command, shown) in enumerate(steps, 1):
                code = block.exit_code if number == len(steps) else 0
                said = self._shell(command, block, code)
                # At the default port, which pages have, the command leaves the option out.
                said = said.replace(f" --port {self._port}", "")
                assert is_alike(shown, said), (
                    f"{block}: {command}\nprinted\n{said}\nand the page shows\n{shown}"
                )
        else:
            self._run_python(block)

    def _run_python(self, block: Block) -> None:
        text = block.text.replace("local=True", f"local=True, port={self._port}")
        if self._python:
            self._shell(f"{self._python} - <<'THE_END'\n{text}\nTHE_END", block)
            return
        # Lines are the page's in a traceback.
        code = compile("\n" * block.line + text, str(block.path), "exec")
        with contextlib.chdir(self.folder):
            exec(code, self._names)

    def _shell(self, text: str, block: Block, exit_code: int = 0) -> str:
        """Run commands; what they exported and where they went is kept."""
        before = f". {self._state}\n" if self._state.exists() else ""
        after = f'code=$?; {{ export -p; echo cd "$PWD"; }} >{self._state}; exit $code'
        with subprocess.Popen(
            ["bash", "-c", f"{before}trap '{after}' EXIT\nset -eo pipefail\n{text}"],
            cwd=self.folder,
            env=self._variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as shell:
            self._groups.append(shell.pid)
            try:
                said, warned = shell.communicate(timeout=SECONDS)
            except subprocess.TimeoutExpired:
                self.close()
                raise
        assert shell.returncode == exit_code, (
            f"{block}: ended with {shell.returncode}\n{text}\n{said}{warned}"
        )
        return said + warned

    def close(self) -> None:
        """End what blocks have left in the background."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._groups.clear()


def console_steps(text: str) -> list[tuple[str, str]]:
    """Take apart what a terminal shows: the commands after ``$``, each with its output."""
    steps: list[list[str]] = []
    inside = False  # of a command that goes on in the next line
    for line in text.splitlines():
        if line.startswith("$ "):
            steps.append([line[2:], ""])
        elif inside:
            steps[-1][0] += f"\n{line}"
        else:
            assert steps, f"output before the first command: {line}"
            steps[-1][1] += f"{line}\n"
        inside = inside or line.startswith("$ ")
        inside = inside and line.endswith("\\")
    return [(command, shown) for command, shown in steps]


def is_alike(shown: str, said: str) -> bool:
    """Whether a program printed what is shown, numbers, times and widths aside.

    A line of ``…`` or ``⋮`` stands for any lines, an ``…`` in a line for any text.
    """
    pattern = ""
    for line in shown.splitlines():
        if line.strip() in _ANYTHING:
            pattern += r"(?:.*\n)*?"
        else:
            pattern += ".*".join(map(re.escape, _plain(line).split("…"))) + r"\n"
    return (
        re.fullmatch(pattern, "".join(f"{_plain(line)}\n" for line in said.splitlines()))
        is not None
    )


def _plain(line: str) -> str:
    line = _UNIT.sub("# unit", _NUMBER.sub("#", line))
    return _SPACES.sub(" ", _RULE.sub("-", line)).strip()


def port_shim(folder: Path, real: Path, port: int) -> Path:
    """Make a `gradshard` whose local engine is on another port than the documented default."""
    folder.mkdir()
    shim = folder / "gradshard"
    shim.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in (local|--local) '
        f'set -- "$@" --port {port}; break ;; esac; done\n'
        f'exec {shlex.quote(str(real))} "$@"\n'
    )
    shim.chmod(0o755)
    return folder


COMMANDS: Final = Path(sys.executable).parent
